"""The backbone from a run of `deeplense pretrain`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deeplense.models.pretrained import fit_positions
from deeplense.models.registry import Network
from deeplense.ssl.zoo import METHODS
from jobs.pretrain.settings import Settings
from jobs.runs.opening import Opened, checked_settings, open_run_for
from jobs.settings import require


@dataclass(frozen=True)
class Pretrained:
    """A pretrained backbone and the settings it was trained with."""

    opened: Opened[Settings]
    settings: Settings
    weights: Mapping[str, Tensor]

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.opened.run


def pretrain_settings(run: Path) -> Settings:
    """Return the settings of a run. Raises ValueError if it is not a run of `deeplense pretrain`, or was edited."""
    settings, _ = checked_settings(run, "pretrain", Settings)
    return settings


def read_pretrained(run: Path) -> Pretrained:
    """Return the backbone of the newest intact checkpoint. Raises ValueError if there is none."""
    opened = open_run_for(run, "pretrain", Settings, which="last")
    settings, prefix = opened.settings, f"{METHODS[opened.settings.method].encoder}."
    model = opened.load("model")
    found = {name.removeprefix(prefix): value for name, value in model.items() if name.startswith(prefix)}
    weights = {name.removeprefix("vit."): value for name, value in found.items()}
    return Pretrained(opened, settings, weights)


def load_encoder(network: Network, pretrained: Pretrained) -> None:
    """Load this backbone into a network, with position embeddings resized to its images. Raises ValueError if the
    backbones differ."""
    load_backbone(network, pretrained.weights, model=pretrained.settings.model_name, run=pretrained.run)


def load_backbone(network: Network, weights: Mapping[str, Tensor], *, model: str, run: Path) -> None:
    """Load the weights of the backbone of another run into a network, with position embeddings resized to its images.
    Raises ValueError if the backbones differ.

    Args:
        network: network, changed in place.
        weights: weights of the backbone by name.
        model: model_name of the other run, for messages.
        run: the other run, for messages.
    """
    expected = network.backbone.state_dict()
    missing = sorted(set(expected) ^ set(weights))
    require(
        not missing,
        f"{run} has a different backbone, {model}: {', '.join(missing[:3])} differ; give --model_name {model}.",
    )
    fitted = fit_positions(dict(weights), expected)
    wrong = [name for name, value in fitted.items() if value.shape != expected[name].shape]
    told = [f"{name} has shape {tuple(fitted[name].shape)}, not {tuple(expected[name].shape)}" for name in wrong]
    require(
        not wrong,
        f"the backbone of {run} does not fit: {'; '.join(told[:3])}. Use images with the same number of bands, and of "
        "a size that gives the same patch size.",
    )
    network.backbone.load_state_dict(fitted)
