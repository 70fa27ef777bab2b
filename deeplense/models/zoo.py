"""The architectures of this field's published and proposed benchmarks by name, as plain data (zoo.csv): torch is not
imported."""

import csv
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from types import MappingProxyType

OWN = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
"""A class of the user: `module:Class`."""
LARGEST_SMALL = 96
"""Images of up to this many pixels per side are cut into patches of 8 pixels, not 16, to have enough of them."""


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Args:
        name: name in the settings.
        target: `timm.NAME`, or `file.Class` of this package.
        recipe: settings that it trains well with: name of a file in jobs/recipes/models.
        multiple: images are padded by reflection to a multiple of it, so that no pixel is cut off; 0 for the patch
            size.
        options: arguments of its constructor: `img_size` or `image_size` for the padded size, `patch_size` and `stride`
            (half a patch) by that size, or `name=value`; without pooling (`global_pool=`) the head attends to the map.
        drop_path: whether it has residual branches for stochastic depth.
        millions: parameters in millions, with one band, 64 pixels and three outputs.
        least_samples: fewest samples of a forward pass in training for large images; a batch norm of features needs
            two. Small images may need two with others: their last maps may have one pixel.
        paper: authors, year, source.

    Example:
        >>> ARCHITECTURES["resnet18"].target
        'timm.resnet18'
    """

    name: str
    target: str
    recipe: str
    multiple: int
    options: tuple[str, ...]
    drop_path: bool
    millions: float
    least_samples: int
    paper: str

    @property
    def of_timm(self) -> bool:
        """Whether the code is timm's."""
        return self.target.startswith("timm.")

    @property
    def as_published(self) -> "Architecture":
        """The same architecture with the patches that timm's weights are for."""
        if not self.of_timm or "patch_size" not in self.options:
            return self
        return replace(self, options=("img_size",), multiple=16)

    def padded(self, image_size: int) -> int:
        """Return the pixels per side to which images of this size are padded."""
        step = self.multiple or patch_size(image_size)
        return -(-image_size // step) * step

    def arguments(self, size: int) -> dict[str, int | str]:
        """Return the arguments of its constructor for images of this padded size."""
        known = {"img_size": size, "image_size": size, "patch_size": patch_size(size), "stride": patch_size(size) // 2}
        given = [option.partition("=") for option in self.options]
        told = {name: int(value) if value.isdigit() else value for name, sign, value in given if sign}
        return {name: known[name] for name, sign, _ in given if not sign} | told


def patch_size(image_size: int) -> int:
    """Return the pixels per side of the patches of images of this size.

    Example:
        >>> patch_size(64), patch_size(128)
        (8, 16)
    """
    return 8 if image_size <= LARGEST_SMALL else 16


def read_zoo() -> Mapping[str, Architecture]:
    """Return all architectures by name, in the order of the file."""
    with resources.files("deeplense.models").joinpath("zoo.csv").open(encoding="utf-8") as file:
        return MappingProxyType({row["name"]: from_row(row) for row in csv.DictReader(file)})


def from_row(row: Mapping[str, str]) -> Architecture:
    """Return the architecture of a line."""
    return Architecture(
        name=row["name"],
        target=row["target"],
        recipe=row["recipe"],
        multiple=int(row["multiple"]),
        options=tuple(row["options"].split()),
        drop_path=row["drop_path"] == "yes",
        millions=float(row["millions"]),
        least_samples=int(row["least_samples"]),
        paper=row["paper"],
    )


ARCHITECTURES = read_zoo()


def require_known(name: str) -> None:
    """Raise ValueError, with the nearest names, if neither the zoo nor timm has a model of this name.

    timm, which takes seconds to import, is used only for names that the zoo does not have.
    """
    if name in ARCHITECTURES or re.fullmatch(OWN, name):
        return
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, {*ARCHITECTURES, *timm.list_models()}, n=3)
        raise ValueError(
            f"unknown model {name!r}. Nearest: {', '.join(near) or 'none'}; `deeplense models` lists the zoo, "
            "`timm.list_models()` the rest."
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        plain, _, tag = name.partition(".")
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{plain}.*")]
        raise ValueError(
            f"unknown weights {tag!r} of the model {plain!r}; known weights: {', '.join(tags) or 'none'}."
        ) from error
