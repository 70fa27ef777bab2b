"""The backbone that a run of `deeplense pretrain` has learnt."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deeplense.models.pretrained import fit_positions
from deeplense.models.registry import Network
from jobs.config import require
from jobs.opening import Opened, checked_settings, open_run_for
from jobs.pretrain import ENCODERS, Settings


@dataclass(frozen=True)
class Pretrained:
    """What a run has learnt, and by which settings."""

    opened: Opened[Settings]
    settings: Settings
    weights: Mapping[str, Tensor]

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.opened.run


def pretrain_settings(run: Path) -> Settings:
    """The settings of a run. Raises ValueError where it is none of `deeplense pretrain`, or was edited."""
    settings, _ = checked_settings(run, "pretrain", Settings)
    return settings


def read_pretrained(run: Path) -> Pretrained:
    """The backbone of the newest good checkpoint. Raises ValueError where there is none."""
    opened = open_run_for(run, "pretrain", Settings, which="last")
    settings, prefix = opened.settings, f"{ENCODERS[opened.settings.method]}."
    model = opened.load("model")
    found = {name.removeprefix(prefix): value for name, value in model.items() if name.startswith(prefix)}
    weights = {name.removeprefix("vit."): value for name, value in found.items()}
    return Pretrained(opened, settings, weights)


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
