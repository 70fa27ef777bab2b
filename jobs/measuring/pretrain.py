"""`deeplense benchmark pretrain`: updates of DINO against those of lightly."""

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
from jobs.benchmark import Settings
from jobs.measuring.made import NEVER, begun_learning, make_noise, update
from jobs.measuring.timing import Row, compare
from jobs.measuring.views import NUM_BANDS, STAMP, transforms_of, view_batch, view_each
from jobs.methods import make_backbone
from jobs.pretrain import Settings as PretrainSettings
from jobs.pretraining import Pretraining
from jobs.runs import num_cores
from jobs.training_run import advance
from jobs.training_start import TrainingRun

OUT_DIM, HIDDEN_DIM, BOTTLENECK_DIM = 1024, 2048, 256
INSTALL = "lightly is not installed: pip install --no-deps lightly==1.6.0"
Precise = Callable[[], AbstractContextManager[Any]]
"""What the forward pass is made in."""


def measure(settings: Settings) -> list[Row]:
    """DINO on stamps of 32 pixels in 3 bands, 2 + 8 views of 32 and 16 pixels: all of it, and its parts alone. On a CPU
    each side has one core; with a GPU the transforms of the other side have all of them."""
    if find_spec("lightly") is None:
        return [Row(what="pretraining", note=INSTALL)]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        training = begun(settings, Path(folder))
        rows = list(rows_of(training, settings))
        if training.tracker is not None:
            training.tracker.close(exit_code=0)
    return rows


def begun(settings: Settings, folder: Path) -> TrainingRun:
    """A pretraining of `deeplense pretrain` before its first update, which neither evaluates nor saves."""
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
    return begun_learning(asked, lambda: Pretraining(asked))


def rows_of(training: TrainingRun, settings: Settings) -> Iterator[Row]:
    """The whole against lightly's example; the update alone against that, and against the same with one pass for each
    size of view, as in lightly's own runs; the views alone."""
    learner, device = training.learner, training.accelerator.device
    assert isinstance(learner, Pretraining)
    images = torch.from_numpy(learner.train.split.images(learner.train.indices))
    some = images[: settings.batch_size]
    groups = make_views(some, torch.rand(len(some), num_uniforms(LENSES)), LENSES, sky=torch.ones(NUM_BANDS))
    groups = [group.to(device) for group in groups]
    views = [view for group in groups for view in group]
    backbone = make_backbone(learner.settings, learner.train.split)
    peer = Lightly(backbone).to(device)
    work = partial(update, device=device, num_images=settings.batch_size)
    of_lightly = partial(updates_of_lightly, peer, precise=lambda: training.accelerator.autocast())
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


def updates_of_ours(training: TrainingRun, groups: Sequence[Tensor]) -> Iterator[None]:
    """Updates by views that are ready."""
    nothing = groups[0].new_zeros(groups[0].shape[1], 0)
    training.model.train()
    while True:
        with training.accelerator.autocast():
            loss = training.model(groups, nothing, training.num_steps // 2)["loss"]
        training.accelerator.backward(loss)
        training.optimizer.step()
        training.optimizer.zero_grad()
        training.learner.after_update(training.num_steps // 2, training.accelerator)
        yield


class Lightly(nn.Module):
    """DINO as lightly's documentation builds it, with our sizes."""

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
        """What the student says."""
        return self.student_head(self.student_backbone(images))

    def forward_teacher(self, images: Tensor) -> Tensor:
        """What the teacher says."""
        return self.teacher_head(self.teacher_backbone(images))


def updates_of_lightly(
    model: Lightly, batches: Iterator[Sequence[Tensor]], *, precise: Precise, grouped: bool = False
) -> Iterator[None]:
    """Updates as in the loop of lightly's documentation; `grouped` makes one pass for each size of view."""
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
    """Images of a tensor, each with its views, which are made as by lightly's MultiViewTransform (to import that needs
    packages that lightly itself does not)."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.transforms = [transform for views in transforms_of(LENSES) for transform in views]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return [transform(self.images[index]) for transform in self.transforms]


def loaded(images: Tensor, settings: Settings, device: torch.device) -> Iterator[list[Tensor]]:
    """Batches of views without end, from a loader."""
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
    """The same batch again and again."""
    while True:
        yield views
