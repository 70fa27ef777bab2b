"""What `deeplense pretrain` learns: features of images, without their labels."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from deeplense.data.dataset import Batch
from deeplense.data.transforms import normalise
from deeplense.evaluation.metrics import classification_metrics
from deeplense.evaluation.predict import Predictions
from deeplense.evaluation.probes import knn_probabilities, linear_probabilities
from deeplense.ssl.collapse import collapse_panel, verdict
from deeplense.ssl.schedules import cosine
from deeplense.ssl.views import estimate_sky, make_views, num_uniforms
from deeplense.training.loop import from_main, share_buffers, sum_over_ranks
from jobs.config import require
from jobs.experiment import Part, predict_part
from jobs.learner import Evaluation
from jobs.methods import Method, make_method, unlabelled_parts, view_settings
from jobs.pretrain import TEACHERS, Settings
from jobs.ranks import announce, on_main

EVALUATION_BATCH = 256
MOST_PROBED = 2048
"""Samples of each part that an evaluation looks at."""
SKY_SAMPLES = 512


class Pretraining:
    """The learner of a pretraining."""

    ema_decay: float | None = None
    patience_epochs: float | None = None
    layer_decay: float | None = None
    score_name = ""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.train, self.val = unlabelled_parts(settings)
        self.views = view_settings(settings, self.train.split)
        self.updates_made = 0

    @property
    def read(self) -> Sequence[Part]:
        """What is learnt from, and what is looked at."""
        return [self.train, self.val]

    @property
    def num_uniforms(self) -> int:
        """Those of the views, and after them those of the method."""
        return num_uniforms(self.views) + self.method.num_uniforms

    def make_network(self, *, load_pretrained: bool) -> nn.Module:
        """The method, which holds all that learns and follows."""
        network = make_method(self.settings, self.train, self.views)
        self.method = cast(Method, network)
        return network

    def begin(self, statistics: Mapping[str, list[float]]) -> None:
        """Take the mean and standard deviation of each band, and measure the sky."""
        self.mean, self.std = (torch.tensor(statistics[name]) for name in ("mean", "std"))
        chosen = self.train.only(evenly(len(self.train), SKY_SAMPLES))
        self.sky = estimate_sky(torch.from_numpy(chosen.split.images(chosen.indices)))

    def description(self, where: str) -> str:
        """Which method and backbone, on how many images."""
        parameters, settings = sum(p.numel() for p in self.method.encoder.parameters()) / 1e6, self.settings
        return (
            f"pretraining {settings.model_name} ({parameters:.2f} M parameters) by {settings.method} on "
            f"{len(self.train)} images of {self.train.split.name} ({where}), in views of {self.views.global_size} "
            f"and {self.views.num_local} of {self.views.local_size} pixels, looking at {len(self.val)}"
        )

    def step(self, model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The loss of the views of a batch."""
        self.updates_made = step
        count = num_uniforms(self.views)
        views = make_views(batch.images, batch.uniforms[:, :count], self.views, sky=self.sky.to(batch.images))
        return model([self.stretched(group) for group in views], batch.uniforms[:, count:], step)

    def stretched(self, images: Tensor) -> Tensor:
        """Images (..., C, S, S) as the backbone gets them."""
        mean, std = self.mean.to(images), self.std.to(images)
        return normalise(images, mean, std, stretch=self.settings.stretch)

    def inputs(self, batch: Batch) -> Tensor:
        """The middle of images, as the backbone gets them."""
        return self.stretched(center_crop(batch.images, [self.views.global_size]))

    def weight_decay(self, step: int, num_steps: int) -> float | None:
        """Constant, or a cosine."""
        start, end = self.settings.weight_decay, self.settings.weight_decay_end
        return None if end is None else cosine(step, num_steps, start=start, end=end)

    def after_update(self, step: int, accelerator: Accelerator) -> None:
        """Let the teacher follow."""
        self.updates_made = step
        self.method.after_update(step, partial(sum_over_ranks, accelerator))

    def evaluate(self, network: nn.Module, accelerator: Accelerator, beat: Callable[[], None]) -> Evaluation:
        """Whether the features collapse, and what they know of labels. Raises ValueError where they have collapsed and
        that is to be an end."""
        share_buffers(accelerator, network)
        val = self.look(self.features, self.val, network, accelerator, beat)
        prototypes = None
        if self.settings.method in TEACHERS:
            prototypes = self.look(self.prototypes, self.val, network, accelerator, beat).outputs
        train = self.look(self.features, self.train, network, accelerator, beat) if self.is_labelled else None
        found = on_main(accelerator, lambda: judged(val, prototypes) | self.probed(train, val))
        metrics: dict[str, float] = from_main(accelerator, found)
        self.tell(metrics, accelerator)
        return Evaluation(metrics)

    def look(
        self,
        forward: Callable[[nn.Module, Batch], Tensor],
        part: Part,
        network: nn.Module,
        accelerator: Accelerator,
        beat: Callable[[], None],
    ) -> Predictions:
        """Outputs of some samples of a part, evenly chosen, (n, D)."""
        chosen = part.only(evenly(len(part), MOST_PROBED))
        return predict_part(network, forward, chosen, accelerator, batch_size=EVALUATION_BATCH, after_batch=beat)

    def features(self, network: nn.Module, batch: Batch) -> Tensor:
        """What is used afterwards."""
        return cast(Method, network).encoder(self.inputs(batch))

    def prototypes(self, network: nn.Module, batch: Batch) -> Tensor:
        """What a teacher says."""
        return network.prototypes(self.inputs(batch), self.updates_made)  # type: ignore[operator]

    @property
    def is_labelled(self) -> bool:
        """Whether two classes at least are known, two samples of each."""
        known = [np.bincount(part.labels[part.labels >= 0], minlength=2) for part in self.read]
        return all((counts > 1).sum() > 1 for counts in known)

    def probed(self, train: Predictions | None, val: Predictions) -> dict[str, float]:
        """What nearest neighbours and a linear classifier on features get right; they learn from samples that the
        pretraining learnt from."""
        if train is None:
            return {}
        learnt, asked, num_classes = train.labels >= 0, val.labels >= 0, len(self.train.split.schema.classes)
        weights, metrics = np.ones((1, int(asked.sum()))), {}
        for name, probe in (("knn", knn_probabilities), ("linear", linear_probabilities)):
            said = probe(train.outputs[learnt], train.labels[learnt], val.outputs[asked], num_classes)
            rows = classification_metrics(said, val.labels[asked], weights)
            metrics |= {f"{name}/{key}": float(rows[key][0]) for key in ("accuracy", "auc_macro")}
        return metrics

    def tell(self, metrics: Mapping[str, float], accelerator: Accelerator) -> None:
        """Say in words how the features have collapsed, if they have."""
        words = verdict({name: value for name, value in metrics.items() if "/" not in name})
        if words:
            announce(accelerator, f"after step {self.updates_made}: {words}")
        require(
            not (words and self.settings.stop_on_collapse),
            f"{words} Use a lower --lr, other --views, or another --method; the last checkpoint is from before.",
        )


def judged(val: Predictions, prototypes: np.ndarray | None) -> dict[str, float]:
    """The panel of collapse."""
    said = None if prototypes is None else torch.from_numpy(prototypes)
    return collapse_panel(torch.from_numpy(val.outputs), probabilities=said)


def evenly(number: int, most: int) -> np.ndarray:
    """Places of some of so many things, evenly spaced."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.int64))
