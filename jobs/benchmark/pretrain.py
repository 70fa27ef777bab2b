"""`deeplense benchmark pretrain`: compare DINO updates with lightly."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from deeplense.models.registry import Network
from deeplense.ssl.views import LENSES, make_views, num_uniforms
from deeplense.training.stopping import StopFlag
from jobs.benchmark.made import NEVER, begun_learning, make_noise, update
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Row, compare
from jobs.benchmark.views import NUM_BANDS, STAMP, transforms_of, view_batch, view_each
from jobs.frame.start import Training
from jobs.frame.updates import advance
from jobs.pretrain.learner import Pretraining
from jobs.pretrain.method import make_backbone
from jobs.pretrain.settings import Settings as PretrainSettings
from jobs.runs.environment import num_cores

OUT_DIM, HIDDEN_DIM, BOTTLENECK_DIM = 1024, 2048, 256
INSTALL = "lightly is not installed; run: pip install --no-deps lightly==1.6.0"
Precise = Callable[[], AbstractContextManager[Any]]
"""Returns the context manager (autocast) of the forward pass."""


def measure(settings: Settings) -> list[Row]:
    """Compare DINO on stamps of 32 pixels in 3 bands, with 2 + 8 views of 32 and 16 pixels: full updates and their
    parts. On a CPU, each side uses one core; with a GPU, the transforms of the other side use all cores."""
    if find_spec("lightly") is None:
        return [Row(what="pretraining", note=INSTALL)]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        training = begun(settings, Path(folder))
        rows = list(rows_of(training, settings))
        training.attempt.close()
    return rows


def begun(settings: Settings, folder: Path) -> Training:
    """Start a run of `deeplense pretrain` up to its first update; it neither evaluates nor saves checkpoints."""
    asked = PretrainSettings(
        run=folder / "run",
        dataset=str(make_noise(folder / "data", 4 * settings.batch_size, (NUM_BANDS, STAMP, STAMP))),
        model_name=settings.model_name,
        batch_size=settings.batch_size,
        out_dim=OUT_DIM,
        hidden_dim=HIDDEN_DIM,
        precision=settings.precision,
        device=settings.device,
        clip_grad=None,
        stage="none",
        **NEVER,
    )
    return begun_learning(asked, lambda: Pretraining.of(asked))


def rows_of(training: Training, settings: Settings) -> Iterator[Row]:
    """Yield the rows: full updates compared with lightly's example; updates on given views compared with the example,
    and with one forward pass per view size, as in lightly's own runs; views alone."""
    learner, device = training.learner, training.weights.accelerator.device
    assert isinstance(learner, Pretraining)
    images = torch.from_numpy(learner.train.split.images(learner.train.indices))
    some = images[: settings.batch_size]
    groups = make_views(some, torch.rand(len(some), num_uniforms(LENSES)), LENSES, sky=torch.ones(NUM_BANDS))
    groups = [group.to(device) for group in groups]
    views = [view for group in groups for view in group]
    backbone = make_backbone(learner.settings, learner.train.split)
    peer = Lightly(backbone).to(device)
    work = partial(update, device=device, num_images=settings.batch_size)
    of_lightly = partial(updates_of_lightly, peer, precise=lambda: training.weights.accelerator.autocast())
    timed = partial(compare, rounds=settings.rounds)
    title = f"{settings.model_name}, {settings.precision} on {device.type}"
    whole = work(advance(training, StopFlag()))
    yield timed(f"DINO, {title}", whole, work(of_lightly(loaded(images, settings, device))), other_name="lightly")
    alone = work(updates_of_ours(training, groups))
    for name, grouped in (("lightly", False), ("lightly, views of a size at once", True)):
        theirs = work(of_lightly(repeated(views), grouped=grouped))
        yield timed(f"update alone, {title}", alone, theirs, other_name=name)
    each = partial(view_each, some, transforms_of(LENSES))
    yield timed("views alone", partial(view_batch, some, LENSES), each, other_name="torchvision, each image")


def updates_of_ours(training: Training, groups: Sequence[Tensor]) -> Iterator[None]:
    """Make updates with precomputed views."""
    nothing = groups[0].new_zeros(groups[0].shape[1], 0)
    training.weights.model.train()
    while True:
        with training.weights.accelerator.autocast():
            loss = training.weights.model(groups, nothing, training.plan.num_steps // 2)["loss"]
        training.weights.accelerator.backward(loss)
        training.weights.optimizer.step()
        training.weights.optimizer.zero_grad()
        training.trainee.after_update(training.plan.num_steps // 2, training.weights.accelerator)
        yield


class Lightly(nn.Module):
    """DINO as in lightly's documentation, with our sizes."""

    def __init__(self, network: Network) -> None:
        from lightly.models.modules.heads import DINOProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        backbone = timm.create_model(network.timm_name, **network.timm_options, dynamic_img_size=True)
        assert isinstance(backbone, VisionTransformer)
        make_head = partial(DINOProjectionHead, backbone.num_features, HIDDEN_DIM, BOTTLENECK_DIM, OUT_DIM)
        self.student_backbone, self.student_head = backbone, make_head(freeze_last_layer=1)
        self.teacher_backbone, self.teacher_head = copy.deepcopy(backbone), make_head()
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the student."""
        return self.student_head(self.student_backbone(images))

    def forward_teacher(self, images: Tensor) -> Tensor:
        """Return the output of the teacher."""
        return self.teacher_head(self.teacher_backbone(images))


def updates_of_lightly(
    model: Lightly, batches: Iterator[Sequence[Tensor]], *, precise: Precise, grouped: bool = False
) -> Iterator[None]:
    """Make updates as in the loop of lightly's documentation; `grouped` makes one forward pass per view size."""
    from lightly.loss import DINOLoss
    from lightly.models.utils import update_momentum

    device = next(model.parameters()).device
    criterion = DINOLoss(OUT_DIM, warmup_teacher_temp_epochs=5).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    for batch in batches:
        update_momentum(model.student_backbone, model.teacher_backbone, m=0.996)
        update_momentum(model.student_head, model.teacher_head, m=0.996)
        views = [view.to(device) for view in batch]
        passes = [views[:2], views[2:]] if grouped else [[view] for view in views]
        with precise():
            teacher_out = [model.forward_teacher(torch.cat(some)) for some in passes[: 1 if grouped else 2]]
            student_out = [model(torch.cat(some)) for some in passes]
            count = len(views[0])
            loss = criterion(torch.cat(teacher_out).split(count), torch.cat(student_out).split(count), epoch=1)
        loss.backward()
        model.student_head.cancel_last_layer_gradients(current_epoch=1)
        optimizer.step()
        optimizer.zero_grad()
        yield


class Viewed(Dataset[list[Tensor]]):
    """Data set of the views of images, made as by lightly's MultiViewTransform (importing that one would need further
    packages)."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.transforms = [transform for views in transforms_of(LENSES) for transform in views]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return [transform(self.images[index]) for transform in self.transforms]


def loaded(images: Tensor, settings: Settings, device: torch.device) -> Iterator[list[Tensor]]:
    """Yield batches of views from a loader, endlessly."""
    num_workers = num_cores() if device.type == "cuda" else 0
    loader = DataLoader(
        Viewed(images),
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    while True:
        yield from loader


def repeated(views: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the same batch endlessly."""
    while True:
        yield views
