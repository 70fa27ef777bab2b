"""Training of `deeplense pretrain`: self-supervised learning of image features."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from deeplense.data.dataset import Batch
from deeplense.data.scaling import Scaling
from deeplense.evaluation.metrics import classification_metrics
from deeplense.evaluation.predict import Predictions
from deeplense.evaluation.probes import knn_probabilities, linear_probabilities
from deeplense.models.tokens import write_out_attention
from deeplense.random.columns import Columns
from deeplense.schedules import cosine
from deeplense.ssl.collapse import collapse_panel, verdict
from deeplense.ssl.views import ViewSettings, estimate_sky, make_views, num_uniforms
from deeplense.ssl.zoo import METHODS
from deeplense.training.loop import from_main, share_buffers, sum_over_ranks
from jobs.data.part import Part, evenly, image_parts
from jobs.frame.learner import Evaluation
from jobs.frame.predict import predict_part
from jobs.pretrain.method import Method, make_method, share_batch_statistics, updates_of, view_settings
from jobs.pretrain.settings import Settings
from jobs.ranks import announce, on_main

EVALUATION_BATCH = 256
MOST_PROBED = 2048
"""Maximum number of samples of each part that an evaluation uses."""
SKY_SAMPLES = 512
MEMORIES = 3
"""Decay time of a teacher: with momentum m, 5 % of its initial weights remain after 3 / (1 - m) updates."""
ADVICE = (
    "Use a lower --lr, other --views, or another --method. The last checkpoint, if any, was saved before this; "
    "with --stop_on_collapse 0 the training would continue."
)


@dataclass(frozen=True)
class Pretraining:
    """The learner of a pretraining."""

    settings: Settings
    train: Part
    val: Part
    views: ViewSettings
    ema_decay: float | None = None
    patience_epochs: float | None = None
    layer_decay: float | None = None
    score_name: str = ""

    @classmethod
    def of(cls, settings: Settings) -> "Pretraining":
        """Return the learner for these settings."""
        train, val = image_parts(settings)
        return cls(settings, train, val, view_settings(settings, train.split))

    @property
    def read(self) -> Sequence[Part]:
        """Training and validation images."""
        return [self.train, self.val]

    @property
    def fixed_rate(self) -> tuple[str, ...]:
        """Prefixes of the parameters whose learning rate is constant, from the method."""
        return METHODS[self.settings.method].fixed_rate

    def weight_decay(self, step: int, num_steps: int) -> float | None:
        """Return the weight decay of a cosine schedule; None if it is constant."""
        start, end = self.settings.weight_decay, self.settings.weight_decay_end
        return None if end is None else cosine(step, num_steps, start=start, end=end)

    def make_network(self, *, load_pretrained: bool) -> nn.Module:
        """Return the method, which holds all trained and averaged networks."""
        return make_method(self.settings, self.train, self.views)

    def make_trainee(self, network: nn.Module, statistics: Mapping[str, list[float]]) -> "PretrainingTrainee":
        """Prepare the method for its device, and measure the sky background."""
        method = cast(Method, network)
        device = next(method.encoder.parameters()).device
        if device.type == "cpu" and self.settings.precision == "bf16":
            write_out_attention(network)
        share_batch_statistics(method, device=device.type, num_processes=PartialState().num_processes)
        chosen = self.train.only(evenly(len(self.train), SKY_SAMPLES))
        sky = estimate_sky(torch.from_numpy(chosen.split.images(chosen.indices))).to(device)
        columns = Columns({"views": num_uniforms(self.views), "method": method.num_uniforms})
        return PretrainingTrainee(self, method, Scaling(statistics, self.settings.stretch), sky, columns)

    @property
    def num_updates(self) -> int:
        """Number of updates of the whole pretraining."""
        return updates_of(self.settings, self.train)


@dataclass(frozen=True)
class PretrainingTrainee:
    """A self-supervised method with the scaling of its images, the sky background of each band (C,), and its random
    numbers."""

    learner: Pretraining
    method: Method
    scaling: Scaling
    sky: Tensor
    columns: Columns

    @property
    def settings(self) -> Settings:
        """The settings of the pretraining."""
        return self.learner.settings

    def description(self, where: str) -> str:
        """Describe the method, the backbone and the number of images."""
        settings, learner, views = self.settings, self.learner, self.learner.views
        millions = sum(p.numel() for p in self.method.encoder.parameters()) / 1e6
        local = f" and {views.num_local} of {views.local_size}" if views.num_local else ""
        return (
            f"pretraining {settings.model_name} ({millions:.2f} M parameters) by {settings.method} on "
            f"{learner.train.split.name} ({where}): {len(learner.train)} training, {len(learner.val)} validation "
            f"images, {views.num_global} views of {views.global_size}{local} pixels"
        )

    def step(self, model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Return the loss of the views of a batch."""
        drawn = self.columns.of(batch.uniforms, "views")
        views = make_views(batch.images, drawn, self.learner.views, sky=self.sky.to(batch.images))
        return model([self.scaling.scaled(group) for group in views], self.columns.of(batch.uniforms, "method"), step)

    def inputs(self, batch: Batch) -> Tensor:
        """Return the central crop of the images as input of the backbone."""
        return self.scaling.scaled(center_crop(batch.images, [self.learner.views.global_size]))

    def after_update(self, step: int, accelerator: Accelerator) -> None:
        """Update the teacher."""
        self.method.after_update(step, partial(sum_over_ranks, accelerator))

    def evaluate(
        self, network: nn.Module, accelerator: Accelerator, *, step: int, beat: Callable[[], None]
    ) -> Evaluation:
        """Check the features for collapse, which is reported, and probe them with the labels."""
        share_buffers(accelerator, network)
        look = partial(self.look, network, accelerator, beat)
        train, val = self.learner.train, self.learner.val
        features, prototypes, learnt = look(self.features, val), None, None
        if METHODS[self.settings.method].teacher:
            prototypes = look(partial(self.prototypes, step=step), val).outputs
        if len(told_apart(seen(train).labels, seen(val).labels)) > 1:
            learnt = look(self.features, train)
        found = on_main(accelerator, lambda: judged(features, prototypes) | probed(learnt, features))
        metrics: dict[str, float] = from_main(accelerator, found)
        words = self.judge(metrics, step)
        if words:
            announce(accelerator, f"after step {step}: {words}")
        return Evaluation(metrics, problem=f"{words} {ADVICE}" if words and self.settings.stop_on_collapse else "")

    def look(
        self,
        network: nn.Module,
        accelerator: Accelerator,
        beat: Callable[[], None],
        forward: Callable[[nn.Module, Batch], Tensor],
        part: Part,
    ) -> Predictions:
        """Return the outputs (n, D) for the samples of a part that an evaluation uses."""
        return predict_part(network, forward, seen(part), accelerator, batch_size=EVALUATION_BATCH, after_batch=beat)

    def features(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the features of the backbone."""
        return cast(Method, network).encoder(self.inputs(batch))

    def prototypes(self, network: nn.Module, batch: Batch, *, step: int) -> Tensor:
        """Return the output of a teacher after `step` updates."""
        return network.prototypes(self.inputs(batch), step)  # type: ignore[operator]

    @property
    def first_verdict(self) -> int:
        """First update at which collapse is judged: after the warm-up, and once the teacher has forgotten its initial
        weights. Constant outputs are normal before. It is never later than the last update."""
        settings = self.settings
        warmup = round(settings.warmup_epochs * len(self.learner.train) / settings.batch_size)
        momentum = getattr(self.method, "momentum", 0.0)
        return min(max(warmup, round(MEMORIES / (1 - momentum))), self.learner.num_updates)

    def judge(self, metrics: Mapping[str, float], step: int) -> str:
        """Describe how the features have collapsed after `step` updates, or that they are not finite; empty if they are
        fine."""
        panel = {name: value for name, value in metrics.items() if "/" not in name}
        is_early = step < self.first_verdict and all(map(math.isfinite, panel.values()))
        return "" if is_early else verdict(panel)


def seen(part: Part) -> Part:
    """Return the samples of a part that an evaluation uses."""
    return part.only(evenly(len(part), MOST_PROBED))


def told_apart(learnt: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the classes that a probe can predict: at least two training samples and one test sample."""
    classes, counts = np.unique(learnt[learnt >= 0], return_counts=True)
    return np.intersect1d(classes[counts > 1], asked)


def probed(train: Predictions | None, val: Predictions) -> dict[str, float]:
    """Return metrics of a k-nearest-neighbour and a linear probe of the features. The probes are fitted on training
    samples of the pretraining."""
    if train is None or not (np.isfinite(train.outputs).all() and np.isfinite(val.outputs).all()):
        return {}
    classes = told_apart(train.labels, val.labels)
    learnt, asked = np.isin(train.labels, classes), np.isin(val.labels, classes)
    labels, truth = (np.searchsorted(classes, each) for each in (train.labels[learnt], val.labels[asked]))
    metrics = {}
    for name, probe in (("knn", knn_probabilities), ("linear", linear_probabilities)):
        said = probe(train.outputs[learnt], labels, val.outputs[asked], len(classes))
        rows = classification_metrics(said, truth, np.ones((1, len(truth))))
        metrics |= {f"{name}/{key}": float(rows[key][0]) for key in ("accuracy", "auc_macro")}
    return metrics


def judged(val: Predictions, prototypes: np.ndarray | None) -> dict[str, float]:
    """Return the collapse metrics of the features."""
    said = None if prototypes is None else torch.from_numpy(prototypes)
    return collapse_panel(torch.from_numpy(val.outputs), probabilities=said)
