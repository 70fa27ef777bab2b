"""Weights to start from: timm's published ones, or a file of timm's or of `deeplense export`."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import timm
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn
from torch.nn import functional

SAFETENSORS = ".safetensors"
SETS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Names under which files of torch hold weights beside other things, in timm's order."""


@dataclass(frozen=True)
class Weights:
    """The weights to start from.

    Args:
        wanted: whether to start from trained weights.
        file: file of the weights; None for timm's published ones.
        load: False if others are loaded later, and only the architecture must be the same.
    """

    wanted: bool = False
    file: Path | None = None
    load: bool = True


@runtime_checkable
class FromTimm(Protocol):
    """A backbone of the zoo that can start from timm's weights."""

    published: str
    """the model of timm that the weights belong to"""

    def fitted(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those weights, adapted to the sizes and bands of this backbone."""
        ...


def create(name: str, options: dict[str, Any], weights: Weights) -> nn.Module:
    """Return a model of timm, with weights if they are wanted.

    Args:
        name: name in timm.
        options: arguments of `timm.create_model`.
        weights: weights to start from.

    Raises:
        ValueError: the weights cannot be obtained or belong to another model.
    """
    generator = torch.get_rng_state()
    wanted = timm_options(name, weights)
    given = read_weights(weights.file) if wanted and weights.file else {}
    try:
        model = make(name, options, wanted, given)
    except (OSError, KeyError) as error:
        if not wanted:
            raise
        config = timm.get_pretrained_cfg(name)
        hub = (config and config.hf_hub_id) or f"timm/{name}"
        raise ValueError(
            f"The pretrained weights of {name} cannot be loaded ({type(error).__name__}: {str(error)[:200]}). "
            f"If the hub cannot be reached, download model.safetensors of {hub} from the Hugging Face hub "
            "on another machine, copy it here, and give --pretrained_file FILE."
        ) from error
    if wanted:
        refuse_untouched(name, model, options, generator)
    return model


def make(name: str, options: dict[str, Any], wanted: dict[str, Any], given: Mapping[str, Tensor]) -> nn.Module:
    """Return a model of timm; if timm cannot adapt the weights to this image size, those for the published size are
    adapted here.

    Args:
        name: name in timm.
        options: arguments of `timm.create_model`.
        wanted: further arguments about weights.
        given: weights that have been read from a file; empty for none.

    Raises:
        RuntimeError: the weights cannot be adapted.
    """
    try:
        return make_from(name, {**options, **wanted}, given)
    except RuntimeError as error:
        if "size mismatch" not in str(error) or "img_size" not in options:
            raise
    published = make_from(name, {key: options[key] for key in options if key != "img_size"} | wanted, given)
    model = timm.create_model(name, **options)
    model.load_state_dict(fit_positions(published.state_dict(), model.state_dict()))
    return model


def make_from(name: str, options: dict[str, Any], given: Mapping[str, Tensor]) -> nn.Module:
    """Return a model of timm with weights that have been read; timm renames and adapts them as those of a file.

    Args:
        name: name in timm.
        options: arguments of `timm.create_model`.
        given: weights that have been read; empty for none.
    """
    overlay = {"pretrained_cfg_overlay": {"state_dict": dict(given), "custom_load": False}} if given else {}
    all_options: dict[str, Any] = options | overlay
    model = timm.create_model(name, **all_options)
    if given:
        cast(dict[str, Any], model.pretrained_cfg)["state_dict"] = None
    return model


def fit_positions(given: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with position embeddings resampled to the expected number.

    Args:
        given: weights by name; position embeddings are (1, N, D) or (1, D, H, W).
        expected: weights of the model by name; only their shapes matter.
    """
    fitted = dict(given)
    for key, value in given.items():
        shape = expected[key].shape
        if value.shape == shape or "pos" not in key:
            continue
        if value.ndim == 4:
            fitted[key] = functional.interpolate(value, size=shape[2:], mode="bicubic", antialias=True)
        elif value.ndim == 3:
            prefix = next(k for k in range(3) if is_square(value.shape[1] - k) and is_square(shape[1] - k))
            side = isqrt(shape[1] - prefix)
            fitted[key] = resample_abs_pos_embed(value, [side, side], num_prefix_tokens=prefix)  # type: ignore[operator]
    return fitted


def is_square(number: int) -> bool:
    """Whether a number is a square."""
    return isqrt(number) ** 2 == number


def timm_options(name: str, weights: Weights) -> dict[str, Any]:
    """Return the arguments of timm about weights.

    Args:
        name: name in timm.
        weights: weights to start from.

    Raises:
        ValueError: the model has no published weights, or the file does not exist.
    """
    if not (weights.wanted and weights.load):
        return {}
    refuse_missing(weights)
    config = timm.get_pretrained_cfg(name)
    if config and not (weights.file or config.has_weights):
        raise ValueError(f"{name} has no published weights; give --pretrained_file FILE, or remove --pretrained 1.")
    return {"pretrained": True}


def refuse_missing(weights: Weights) -> None:
    """Raise ValueError if the file does not exist."""
    if weights.file and not weights.file.exists():
        raise ValueError(f"pretrained_file={weights.file} does not exist; give an existing file.")


def refuse_untouched(name: str, model: nn.Module, options: dict[str, Any], generator: Tensor) -> None:
    """Raise an error if weights kept their random initialisation: timm accepts a file in which they are missing, and
    only logs it.

    Args:
        name: name in timm.
        model: model after loading.
        options: arguments of `timm.create_model`.
        generator: state of torch's random generator before the model was made.

    Raises:
        ValueError: a part of the model was not loaded.
    """
    torch.set_rng_state(generator)
    blank, other = (dict(timm.create_model(name, **options).named_parameters()) for _ in range(2))
    drawn = {key for key, value in blank.items() if not value.equal(other[key])}
    untouched = [key for key, value in model.named_parameters() if key in drawn and value.equal(blank[key])]
    if untouched:
        raise ValueError(
            f"the pretrained weights lack {len(untouched)} parameters of {name}, such as {untouched[0]}; "
            "give a weight file of exactly this model, with timm's parameter names."
        )


def load_own(backbone: nn.Module, name: str, weights: Weights) -> None:
    """Load the weights of a backbone that is not timm's.

    Args:
        backbone: backbone, changed in place.
        name: its name.
        weights: weights to start from.

    Raises:
        ValueError: the weights cannot be obtained or belong to another network.
    """
    if not (weights.wanted and weights.load):
        return
    refuse_missing(weights)
    try:
        backbone.load_state_dict(own_weights(backbone, name, weights))
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{weights.file} does not contain the weights of {name} for images of this size: {why}"
        ) from error


def own_weights(backbone: nn.Module, name: str, weights: Weights) -> dict[str, Tensor]:
    """Return the weights of a file of `deeplense export`, adapted to the bands; otherwise timm's, if they fit.

    Args:
        backbone: backbone of the zoo.
        name: its name.
        weights: weights to start from.

    Raises:
        ValueError: there are no published weights and no file.
    """
    exported = weights_of_backbone(weights.file) if weights.file else {}
    if isinstance(backbone, FromTimm) and not exported:
        return backbone.fitted(create(backbone.published, {"num_classes": 0}, weights).state_dict())
    if weights.file is None:
        raise ValueError(
            f"{name} has no published weights; give --pretrained_file FILE, which `deeplense export` writes, or remove "
            "--pretrained 1."
        )
    return fit_bands(exported, backbone.state_dict())


def weights_of_backbone(file: Path) -> dict[str, Tensor]:
    """Return the weights of a backbone in a file of `deeplense export`; none if they have other names.

    Raises:
        ValueError: the file does not hold weights.
    """
    given = read_weights(file)
    return {key.removeprefix("backbone."): value for key, value in given.items() if key.startswith("backbone.")}


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors in a file of safetensors, or of torch if it holds nothing but tensors; of several sets, the
    one that timm takes. No code in it is run.

    Raises:
        ValueError: the file does not hold weights; the message names it.
    """
    try:
        is_plain = file.suffix == SAFETENSORS
        found: Any = load_file(file) if is_plain else torch.load(file, map_location="cpu", weights_only=True)
    # What is no pickle, or a damaged one, may raise anything.
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{file} is not a pure weight file ({why}); give a {SAFETENSORS} file, such as `deeplense "
            "export` writes, or a torch file that contains only tensors."
        ) from error
    if isinstance(found, Mapping):
        found = next((found[key] for key in SETS if isinstance(found.get(key), Mapping)), found)
    tensors = (
        {key: value for key, value in found.items() if isinstance(value, Tensor)} if isinstance(found, Mapping) else {}
    )
    if not tensors:
        raise ValueError(f"{file} contains no named weights; give a file of the model's state dict.")
    return clean_state_dict(tensors)


def fit_bands(given: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with convolutions adapted from three bands to the expected number: summed for one, as in timm.

    Args:
        given: weights by name.
        expected: weights of the model by name; only their shapes matter.

    Example:
        >>> given, expected = {"conv": torch.ones(4, 3, 5, 5)}, {"conv": torch.zeros(4, 1, 5, 5)}
        >>> fit_bands(given, expected)["conv"].shape
        torch.Size([4, 1, 5, 5])
    """
    fitted = dict(given)
    for key, value in given.items():
        shape = expected[key].shape if key in expected else value.shape
        if value.ndim == 4 and value.shape[1] == 3 != shape[1] and value.shape[2:] == shape[2:]:
            fitted[key] = adapt_input_conv(shape[1], value)
    return fitted
