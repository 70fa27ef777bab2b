"""The backbone that a run of `deeplense pretrain` has learnt."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deeplense.models.pretrained import fit_positions
from deeplense.models.registry import Network
from deeplense.training import checkpoint
from jobs.config import from_plain, require
from jobs.pretrain import ENCODERS, Settings
from jobs.runs import stored_config
from jobs.weights import newest_weights


@dataclass(frozen=True)
class Pretrained:
    """What a run has learnt, and by which settings."""

    run: Path
    settings: Settings
    weights: Mapping[str, Tensor]
    step: int


def pretrain_settings(run: Path) -> Settings:
    """The settings of a run. Raises ValueError where it is none of `deeplense pretrain`."""
    stored = stored_config(run)
    require("method" in stored, f"{run} is no run of `deeplense pretrain`; give one as --backbone.")
    return from_plain(Settings, stored)


def read_pretrained(run: Path) -> Pretrained:
    """The backbone of the newest good checkpoint. Raises ValueError where there is none."""
    settings = pretrain_settings(run)
    states = checkpoint.load(newest_weights(run, "last"))
    prefix = f"{ENCODERS[settings.method]}."
    found = {name.removeprefix(prefix): value for name, value in states["model"].items() if name.startswith(prefix)}
    weights = {name.removeprefix("vit."): value for name, value in found.items()}
    return Pretrained(run, settings, weights, states["progress"]["step"])


def load_encoder(network: Network, pretrained: Pretrained) -> None:
    """Let a network start from this backbone, with its embeddings of positions fitted to the size of its images. Raises
    ValueError where it is another one."""
    expected = network.backbone.state_dict()
    missing = sorted(set(expected) ^ set(pretrained.weights))
    model, run = pretrained.settings.model_name, pretrained.run
    require(not missing, f"{run} has the backbone {model}, which is another one: {', '.join(missing[:3])} differ.")
    fitted = fit_positions(dict(pretrained.weights), expected)
    wrong = [name for name, value in fitted.items() if value.shape != expected[name].shape]
    told = [f"{name} is {tuple(fitted[name].shape)}, not {tuple(expected[name].shape)}" for name in wrong]
    require(
        not wrong,
        f"the backbone of {run} does not fit: {'; '.join(told[:3])}. Give images with as many bands, and of a size "
        "that is cut into patches of the same size.",
    )
    network.backbone.load_state_dict(fitted)
