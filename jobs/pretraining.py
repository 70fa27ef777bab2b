"""What `deeplense pretrain` learns: features of images, without their labels."""

import math
from collections.abc import Callable, Mapping, Sequence
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
from deeplense.ssl.collapse import collapse_panel, verdict
from deeplense.ssl.dino import DINO
from deeplense.ssl.ibot import IBOT
from deeplense.ssl.schedules import cosine
from deeplense.ssl.views import estimate_sky, make_views, num_uniforms
from deeplense.training.loop import from_main, share_buffers, sum_over_ranks
from jobs.experiment import Part, evenly, image_parts, predict_part
from jobs.learner import Evaluation
from jobs.methods import Method, make_method, share_batch_statistics, updates_of, view_settings
from jobs.pretrain import TEACHERS, Settings
from jobs.ranks import announce, on_main

EVALUATION_BATCH = 256
MOST_PROBED = 2048
"""Samples of each part that an evaluation looks at."""
SKY_SAMPLES = 512
MEMORIES = 3
"""A teacher that stays by a share m has after 3 / (1 - m) updates 5 % left of what it began as."""
ADVICE = (
    "Use a lower --lr, other --views, or another --method. The last checkpoint, if there is one, is from before; "
    "with --stop_on_collapse 0 it would go on."
)


class Pretraining:
    """The learner of a pretraining."""

    ema_decay: float | None = None
    patience_epochs: float | None = None
    layer_decay: float | None = None
    score_name = ""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fixed_rate: tuple[str, ...] = ("predictor.",) if settings.method == "simsiam" else ()
        self.train, self.val = image_parts(settings)
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
        """Take the mean and standard deviation of each band, measure the sky, and fit the method to the device."""
        device = next(self.method.encoder.parameters()).device
        if device.type == "cpu" and self.settings.precision == "bf16":
            write_out_attention(cast(nn.Module, self.method))
        share_batch_statistics(self.method, device=device.type, num_processes=PartialState().num_processes)
        self.scaling = Scaling(statistics, self.settings.stretch)
        chosen = self.train.only(evenly(len(self.train), SKY_SAMPLES))
        self.sky = estimate_sky(torch.from_numpy(chosen.split.images(chosen.indices)))

    def description(self, where: str) -> str:
        """Which method and backbone, on how many images."""
        settings, views = self.settings, self.views
        millions = sum(p.numel() for p in self.method.encoder.parameters()) / 1e6
        local = f" and {views.num_local} of {views.local_size}" if views.num_local else ""
        return (
            f"pretraining {settings.model_name} ({millions:.2f} M parameters) by {settings.method} on "
            f"{len(self.train)} images of {self.train.split.name} ({where}), in {views.num_global} views of "
            f"{views.global_size}{local} pixels, looking at {len(self.val)}"
        )

    def step(self, model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """The loss of the views of a batch."""
        self.updates_made = step
        count = num_uniforms(self.views)
        views = make_views(batch.images, batch.uniforms[:, :count], self.views, sky=self.sky.to(batch.images))
        return model([self.scaling.scaled(group) for group in views], batch.uniforms[:, count:], step)

    def inputs(self, batch: Batch) -> Tensor:
        """The middle of images, as the backbone gets them."""
        return self.scaling.scaled(center_crop(batch.images, [self.views.global_size]))

    def weight_decay(self, step: int, num_steps: int) -> float | None:
        """Constant, or a cosine."""
        start, end = self.settings.weight_decay, self.settings.weight_decay_end
        return None if end is None else cosine(step, num_steps, start=start, end=end)

    def after_update(self, step: int, accelerator: Accelerator) -> None:
        """Let the teacher follow."""
        self.updates_made = step
        self.method.after_update(step, partial(sum_over_ranks, accelerator))

    def evaluate(self, network: nn.Module, accelerator: Accelerator, beat: Callable[[], None]) -> Evaluation:
        """Whether the features collapse, which is said in words, and what they know of labels."""
        share_buffers(accelerator, network)
        look = partial(self.look, network, accelerator, beat)
        val, prototypes, train = look(self.features, self.val), None, None
        if self.settings.method in TEACHERS:
            prototypes = look(self.prototypes, self.val).outputs
        if len(told_apart(seen(self.train).labels, seen(self.val).labels)) > 1:
            train = look(self.features, self.train)
        found = on_main(accelerator, lambda: judged(val, prototypes) | probed(train, val))
        metrics: dict[str, float] = from_main(accelerator, found)
        words = self.judge(metrics)
        if words:
            announce(accelerator, f"after step {self.updates_made}: {words}")
        return Evaluation(metrics, problem=f"{words} {ADVICE}" if words and self.settings.stop_on_collapse else "")

    def look(
        self,
        network: nn.Module,
        accelerator: Accelerator,
        beat: Callable[[], None],
        forward: Callable[[nn.Module, Batch], Tensor],
        part: Part,
    ) -> Predictions:
        """Outputs of the samples of a part that are looked at, (n, D)."""
        return predict_part(network, forward, seen(part), accelerator, batch_size=EVALUATION_BATCH, after_batch=beat)

    def features(self, network: nn.Module, batch: Batch) -> Tensor:
        """What is used afterwards."""
        return cast(Method, network).encoder(self.inputs(batch))

    def prototypes(self, network: nn.Module, batch: Batch) -> Tensor:
        """What a teacher says."""
        return network.prototypes(self.inputs(batch), self.updates_made)  # type: ignore[operator]

    @property
    def first_verdict(self) -> int:
        """The update from which on features are judged: at the start no one has learnt anything yet, and a teacher who
        says the same of all images may only not have followed. From the end of the warm-up on, when the teacher has
        forgotten its start; the last update at the latest."""
        settings = self.settings
        warmup = round(settings.warmup_epochs * len(self.train) / settings.batch_size)
        momentum = cast(DINO | IBOT, self.method).momentum if settings.method in TEACHERS else 0.0
        return min(max(warmup, round(MEMORIES / (1 - momentum))), updates_of(settings, self.train))

    def judge(self, metrics: Mapping[str, float]) -> str:
        """In words how the features have collapsed, if they have, or are no numbers; empty where they are well."""
        panel = {name: value for name, value in metrics.items() if "/" not in name}
        is_early = self.updates_made < self.first_verdict and all(map(math.isfinite, panel.values()))
        return "" if is_early else verdict(panel)


def seen(part: Part) -> Part:
    """The samples of a part that an evaluation looks at."""
    return part.only(evenly(len(part), MOST_PROBED))


def told_apart(learnt: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The classes that a probe can be asked for: two samples at least to learn from, one to be asked about."""
    classes, counts = np.unique(learnt[learnt >= 0], return_counts=True)
    return np.intersect1d(classes[counts > 1], asked)


def probed(train: Predictions | None, val: Predictions) -> dict[str, float]:
    """What nearest neighbours and a linear classifier on features get right; they learn from samples that the
    pretraining learnt from."""
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
    """The panel of collapse."""
    said = None if prototypes is None else torch.from_numpy(prototypes)
    return collapse_panel(torch.from_numpy(val.outputs), probabilities=said)
