"""Networks that describe images by features and by class probabilities, for comparing generated with real images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from deeplense.data.dataset import Split
from deeplense.data.scaling import Scaling
from deeplense.evaluation import inception
from deeplense.evaluation.metrics import softmax
from deeplense.models.registry import Network
from deeplense.training.loop import make_accelerator
from jobs import command_line
from jobs.data.folders import find_datasets
from jobs.data.part import whole
from jobs.data.statistics import find_statistics
from jobs.evaluate.settings import Settings
from jobs.evaluate.sides import Images
from jobs.pretrain.backbone import load_encoder, read_pretrained
from jobs.runs.folder import find_run
from jobs.runs.stored import job_of, stored_config
from jobs.settings import require
from jobs.train.network import make_network
from jobs.train.settings import Settings as TrainSettings
from jobs.train.stored import open_trained, tell_unfinished

Result = TypeVar("Result")
AT_A_TIME = 256
SHOWN_RANGE = (0.001, 0.999)
"""Quantiles of the training pixels that are mapped to black and white in the input of Inception."""


@dataclass(frozen=True)
class Describer:
    """A network that maps images to features (n, D) and, if it is a classifier, to class probabilities (n, K)."""

    name: str
    features: Callable[[Images], Images]
    probabilities: Callable[[Images], Images] | None = None


def load_describer(settings: Settings, text: str) -> Describer:
    """Load the network of a run of `deeplense train` or `deeplense pretrain`."""
    run = find_run(text, settings.runs_root)
    accelerator = make_accelerator(device=settings.device, precision="fp32")
    if job_of(stored_config(run)) == "pretrain":
        return encoder_describer(run, accelerator)
    trained = open_trained(run, which="best")
    learnt = trained.settings
    require(not learnt.regression, f"{run} is a regression; give a run trained on classes, or a pretraining.")
    tell_unfinished([trained])
    scaling = Scaling(trained.opened.progress["statistics"], learnt.stretch)
    ask = partial(say_of, trained.network().to(accelerator.device).eval(), scaling)
    return Describer(
        f"{learnt.model_name} of {run.name}",
        lambda images: ask(images, whole=False),
        lambda images: softmax(ask(images, whole=True)),
    )


def encoder_describer(run: Path, accelerator: Accelerator) -> Describer:
    """Load the backbone of a pretraining, with the image statistics of its training data."""
    pretrained = read_pretrained(run)
    learnt = pretrained.settings
    train = Split(*(folder / "train" for folder in find_datasets(learnt.dataset, learnt.data_root)), labelled=False)
    pretrained.opened.require_data(train)
    words = [f"--run={run}", f"--dataset={learnt.dataset}", f"--model_name={learnt.model_name}"]
    asked: TrainSettings = command_line.parse("train", words)
    network = make_network(asked, train, load_pretrained=False)
    load_encoder(network, pretrained)
    statistics = find_statistics(whole(train), learnt.stretch, accelerator)
    ask = partial(say_of, network.to(accelerator.device).eval(), Scaling(statistics, learnt.stretch), whole=False)
    return Describer(f"{learnt.model_name}, {learnt.method}, of {run.name}", ask)


def inception_describer(weights: Path, train: Images) -> Describer:
    """Load the Inception network that defines FID."""
    low, high = np.quantile(train, SHOWN_RANGE)
    network = inception.load_inception(weights)
    return Describer(
        f"Inception-2015, {inception.RULE}, pixels clipped to {low:.4g} to {high:.4g}",
        partial(inception.inception_features, network, low=float(low), high=float(high)),
    )


@torch.no_grad()
def say_of(network: Network, scaling: Scaling, images: Images, *, whole: bool) -> Images:
    """Return the backbone's features (n, D) of images or, if `whole`, the outputs of the network (n, K)."""
    device = next(network.parameters()).device

    def ask(part: Images) -> Tensor:
        features = network.backbone(network.input_size(scaling.scaled(torch.from_numpy(part).to(device))))
        return network.head(features) if whole else features

    parts = [ask(images[k : k + AT_A_TIME]).float().cpu().numpy() for k in range(0, len(images), AT_A_TIME)]
    return np.concatenate(parts).astype(np.float64)
