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
"""Under which names files of torch hold weights beside other things, in timm's order."""


@dataclass(frozen=True)
class Weights:
    """Whether to start from trained weights, and from which file; None for timm's published ones. With `load` off
    others follow, and only the network must be the same."""

    wanted: bool = False
    file: Path | None = None
    load: bool = True


@runtime_checkable
class FromTimm(Protocol):
    """A backbone of ours that can start from timm's weights."""

    published: str
    """the model of timm that they are of"""

    def fitted(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those weights, for the sizes and bands of this backbone."""
        ...


def create(name: str, options: dict[str, Any], weights: Weights) -> nn.Module:
    """timm.create_model, with weights if they are wanted. Raises ValueError where these cannot be had or are of another
    model."""
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
            f"The pretrained weights of {name} cannot be had ({type(error).__name__}: {str(error)[:200]}). "
            f"Where the hub cannot be reached, fetch model.safetensors of {hub} from the Hugging Face hub "
            "elsewhere, copy it here, and give --pretrained_file FILE."
        ) from error
    if wanted:
        refuse_untouched(name, model, options, generator)
    return model


def make(name: str, options: dict[str, Any], wanted: dict[str, Any], given: Mapping[str, Tensor]) -> nn.Module:
    """timm.create_model; where timm cannot fit weights to this size of image, those for the published size are fitted
    here. Raises RuntimeError where that is not possible."""
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
    """timm.create_model with weights that have been read, which it names and fits as it does those of a file."""
    overlay = {"pretrained_cfg_overlay": {"state_dict": dict(given), "custom_load": False}} if given else {}
    all_options: dict[str, Any] = options | overlay
    model = timm.create_model(name, **all_options)
    if given:
        cast(dict[str, Any], model.pretrained_cfg)["state_dict"] = None
    return model


def fit_positions(given: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings of positions (1, N, D) or (1, D, H, W) resampled to the number that is expected."""
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
    """Whether it is one."""
    return isqrt(number) ** 2 == number


def timm_options(name: str, weights: Weights) -> dict[str, Any]:
    """What timm is told about weights. Raises ValueError where there are none."""
    if not (weights.wanted and weights.load):
        return {}
    refuse_missing(weights)
    config = timm.get_pretrained_cfg(name)
    if config and not (weights.file or config.has_weights):
        raise ValueError(f"{name} has no published weights; give --pretrained_file FILE, or leave out --pretrained 1.")
    return {"pretrained": True}


def refuse_missing(weights: Weights) -> None:
    """Raise ValueError where the file is not there."""
    if weights.file and not weights.file.exists():
        raise ValueError(f"pretrained_file={weights.file} is not there.")


def refuse_untouched(name: str, model: nn.Module, options: dict[str, Any], generator: Tensor) -> None:
    """Raise ValueError where weights kept their random start: timm takes a file in which they are missing and only
    logs it."""
    torch.set_rng_state(generator)
    blank, other = (dict(timm.create_model(name, **options).named_parameters()) for _ in range(2))
    drawn = {key for key, value in blank.items() if not value.equal(other[key])}
    untouched = [key for key, value in model.named_parameters() if key in drawn and value.equal(blank[key])]
    if untouched:
        raise ValueError(
            f"the pretrained weights hold nothing for {len(untouched)} parts of {name}, such as {untouched[0]}; "
            "give a file of weights of this very model, as timm names them."
        )


def load_own(backbone: nn.Module, name: str, weights: Weights) -> None:
    """Take the weights of a backbone that is not timm's. Raises ValueError where they cannot be had or are of another
    network."""
    if not (weights.wanted and weights.load):
        return
    refuse_missing(weights)
    try:
        backbone.load_state_dict(own_weights(backbone, name, weights))
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{weights.file} does not hold the weights of {name} for images of this size: {why}"
        ) from error


def own_weights(backbone: nn.Module, name: str, weights: Weights) -> dict[str, Tensor]:
    """Those of a file of `deeplense export`, where bands are summed if it had more; else timm's, if they fit."""
    exported = weights_of_backbone(weights.file) if weights.file else {}
    if isinstance(backbone, FromTimm) and not exported:
        return backbone.fitted(create(backbone.published, {"num_classes": 0}, weights).state_dict())
    if weights.file is None:
        raise ValueError(
            f"{name} has no published weights; give --pretrained_file FILE, which `deeplense export` writes, or leave "
            "out --pretrained 1."
        )
    return fit_bands(exported, backbone.state_dict())


def weights_of_backbone(file: Path) -> dict[str, Tensor]:
    """Those in a file of `deeplense export`; none where all are named otherwise. Raises ValueError where it is no file
    of weights."""
    given = read_weights(file)
    return {key.removeprefix("backbone."): value for key, value in given.items() if key.startswith("backbone.")}


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors in a file of safetensors, or of torch where it holds nothing but tensors; of several sets those that
    timm takes. Nothing in it is run. Raises ValueError, naming the file, where it is none."""
    try:
        is_plain = file.suffix == SAFETENSORS
        found: Any = load_file(file) if is_plain else torch.load(file, map_location="cpu", weights_only=True)
    # What is no pickle, or a damaged one, may raise anything.
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{file} is no file of weights alone ({why}); give one that ends in {SAFETENSORS}, such as `deeplense "
            "export` writes, or one of torch that holds tensors and nothing else."
        ) from error
    if isinstance(found, Mapping):
        found = next((found[key] for key in SETS if isinstance(found.get(key), Mapping)), found)
    tensors = (
        {key: value for key, value in found.items() if isinstance(value, Tensor)} if isinstance(found, Mapping) else {}
    )
    if not tensors:
        raise ValueError(f"{file} holds no weights by name; give a file of the model's state.")
    return clean_state_dict(tensors)


def fit_bands(given: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of convolutions for other bands fitted to those that are expected: summed for one, as timm does it."""
    fitted = dict(given)
    for key, value in given.items():
        shape = expected[key].shape if key in expected else value.shape
        if value.ndim == 4 and value.shape[1] == 3 != shape[1] and value.shape[2:] == shape[2:]:
            fitted[key] = adapt_input_conv(shape[1], value)
    return fitted
