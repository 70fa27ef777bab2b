"""The architectures of this field's published and proposed benchmarks by name, as plain data (zoo.csv): torch is not
imported."""

import csv
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from types import MappingProxyType

LARGEST_SMALL = 96
"""Images of up to so many pixels a side are cut into patches of 8 pixels, not 16, which leaves enough of them."""


@dataclass(frozen=True)
class Architecture:
    """One name.

    Args:
        name: what users call it.
        target: `timm.NAME`, or `file.Class` of this package.
        recipe: the settings that it learns well with, by the name of a file in jobs/recipes/models.
        multiple: images are padded (mirrored border) until their size is a multiple of it, so that no pixel is cut
            off; 0 for the size of a patch.
        options: what it is made with: `img_size` or `image_size` for the padded size, `patch_size` and `stride` (half a
            patch) by that size, or `name=value`; without pooling (`global_pool=`) the last layers attend to the map.
        drop_path: whether residual branches can be left out at random.
        millions: of parameters, with one band, 64 pixels and three outputs.
        paper: authors, year, where.
    """

    name: str
    target: str
    recipe: str
    multiple: int
    options: tuple[str, ...]
    drop_path: bool
    millions: float
    paper: str

    @property
    def of_timm(self) -> bool:
        """Whether the code is timm's."""
        return self.target.startswith("timm.")

    @property
    def as_published(self) -> "Architecture":
        """With the patches that timm's weights are for."""
        if not self.of_timm or "patch_size" not in self.options:
            return self
        return replace(self, options=("img_size",), multiple=16)

    def padded(self, image_size: int) -> int:
        """Pixels a side to which images of this size are padded."""
        step = self.multiple or patch_size(image_size)
        return -(-image_size // step) * step

    def arguments(self, size: int) -> dict[str, int | str]:
        """What it is made with for images of this padded size."""
        known = {"img_size": size, "image_size": size, "patch_size": patch_size(size), "stride": patch_size(size) // 2}
        given = [option.partition("=") for option in self.options]
        told = {name: int(value) if value.isdigit() else value for name, sign, value in given if sign}
        return {name: known[name] for name, sign, _ in given if not sign} | told


def patch_size(image_size: int) -> int:
    """Pixels a side of the patches that images of this size are cut into."""
    return 8 if image_size <= LARGEST_SMALL else 16


def read_zoo() -> Mapping[str, Architecture]:
    """All of them by name, in the order of the file."""
    with resources.files("deeplense.models").joinpath("zoo.csv").open(encoding="utf-8") as file:
        return MappingProxyType({row["name"]: from_row(row) for row in csv.DictReader(file)})


def from_row(row: Mapping[str, str]) -> Architecture:
    """One of them, from its line."""
    return Architecture(
        name=row["name"],
        target=row["target"],
        recipe=row["recipe"],
        multiple=int(row["multiple"]),
        options=tuple(row["options"].split()),
        drop_path=row["drop_path"] == "yes",
        millions=float(row["millions"]),
        paper=row["paper"],
    )


ARCHITECTURES = read_zoo()


def require_known(name: str) -> None:
    """Raise ValueError, telling the nearest names, where neither the zoo nor timm has a model of this name. timm, which
    takes seconds to import, is asked only for what the zoo does not have."""
    if name in ARCHITECTURES:
        return
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, {*ARCHITECTURES, *timm.list_models()}, n=3)
        raise ValueError(
            f"there is no model {name!r}. Nearest: {', '.join(near) or 'none'}; `deeplense models` lists the zoo, "
            "`timm.list_models()` the rest."
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        plain, _, tag = name.partition(".")
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{plain}.*")]
        raise ValueError(
            f"there are no weights {tag!r} of the model {plain!r}; there are: {', '.join(tags) or 'none'}."
        ) from error
