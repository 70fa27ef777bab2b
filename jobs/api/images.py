"""Data sets as arrays and tensors, and simulated images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deeplense.data.dataset import Split
from deeplense.simulation.images import CLASSES
from deeplense.simulation.images import simulate as simulate_images
from deeplense.simulation.images import unit as unit_of
from deeplense.simulation.populations import ModelName, Population, Preset, default_mass_slope
from jobs.data.folders import splits_of
from jobs.settings import require


class Images(Dataset[tuple[Tensor, int]]):
    """One split of a data set. It is a `torch.utils.data.Dataset`: item i is the image (C, H, W) and its label.

    Attributes:
        classes: names of the classes; label k is the class `classes[k]`.
        bands: names of the bands.
        unit: unit of the pixels; empty if unknown.
        pixel_scale_arcsec: size of a pixel, in arcsec; None if unknown.
        labels: number of the class of each image, (N,) int64; -1 for no label.
        names: name of each image.
        targets: unit of each regression target, by name.
    """

    def __init__(self, split: Split) -> None:
        schema = split.schema
        self.split = split
        self.classes: tuple[str, ...] = tuple(schema.classes)
        self.bands: tuple[str, ...] = tuple(schema.bands)
        self.unit = schema.unit
        self.pixel_scale_arcsec = schema.pixel_scale_arcsec
        self.labels = split.labels.astype(np.int64)
        self.names = split.ids
        self.targets: Mapping[str, str] = dict(schema.targets)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return torch.from_numpy(self.images([index % len(self)])[0]), int(self.labels[index])

    def __repr__(self) -> str:
        channels, height, width = self.split.schema.shape
        counts = ", ".join(f"{int((self.labels == k).sum())} {name}" for k, name in enumerate(self.classes))
        return f"<{self.split.name}: {len(self)} images of {channels} x {height} x {width} pixels: {counts}>"

    def images(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return images, (n, C, H, W) float32, in the unit of the data set.

        Args:
            indices: numbers of the images, 0 to N - 1, in any order; None for all.

        Raises:
            IndexError: there is no image of such a number.
        """
        wanted = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        wrong = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(wrong):
            raise IndexError(f"there is no image {wrong[0]}; {self.split.name} has the images 0 to {len(self) - 1}")
        return self.split.images(wanted)

    def target(self, name: str) -> np.ndarray:
        """Return a regression target of each image, (N,) float, NaN where it is unknown.

        Args:
            name: one of `targets`.

        Raises:
            ValueError: the data set has no such target.
        """
        known = ", ".join(self.targets) or "none"
        require(name in self.targets, f"{self.split.name} has no target {name!r}; its targets: {known}.")
        return self.split.column(f"target/{name}")


def open_dataset(folder: str | Path, split: str = "train") -> Images:
    """Open one split of a data set. Each file is compared with its checksum the first time.

    Args:
        folder: folder of the data set, as `deeplense simulate --output` or `deeplense pack --output` wrote it.
        split: name of the split: `train`, `val` or `test`.

    Raises:
        ValueError: there is no such split, or a file is damaged.

    Example:
        >>> test = deeplense.open_dataset("data/m3", split="test")  # doctest: +SKIP
        >>> test.images([0, 1]).shape, test.classes  # doctest: +SKIP
        ((2, 1, 64, 64), ('no_sub', 'cdm', 'axion'))
    """
    root = Path(folder)
    known = list(splits_of(root)) if root.is_dir() else []
    require(
        bool(known),
        f"{root} is not a data set: it has no folder with a manifest.json. Give the folder that `deeplense simulate` "
        "or `deeplense pack` wrote.",
    )
    require(split in known, f"{root} has no split {split!r}; it has {', '.join(known)}.")
    return Images(Split(root / split))


@dataclass(frozen=True)
class SimulatedLenses:
    """Simulated images with the truth.

    Args:
        images: (N, 1, H, W) float32.
        labels: number of the class, (N,) int64.
        classes: names of the classes.
        unit: unit of the pixels.
        pixel_scale_arcsec: size of a pixel, in arcsec.
        truth: `theta_E`, `source_x`, `source_y` (arcsec), `substructure_mass` (solar masses) and `log10_axion_mass`
            (log10 eV; NaN for other classes), each (N,).
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    unit: str
    pixel_scale_arcsec: float
    truth: Mapping[str, np.ndarray]


TRUTH = ("theta_E", "source_x", "source_y", "substructure_mass", "log10_axion_mass")


def simulate(
    model: ModelName = "Model_III", preset: Preset = "noisy", *, num_images: int, seed: int = 0, split: str = "train"
) -> SimulatedLenses:
    """Simulate lenses, the same images as `deeplense simulate` writes for this seed and split.

    Args:
        model: `Model_I`, `Model_II` (Euclid VIS) or `Model_III` (HST WFC3 F160W).
        preset: `published` repeats the public data sets, `noisy` adds the noise of the instrument, `physical` also
            corrects the physics.
        num_images: number of images; image i is of class i modulo 3.
        seed: seed of the data set, 0 or more.
        split: name of the split; another split has other images.

    Raises:
        ValueError: unknown model or preset, or a negative number of images.

    Example:
        >>> lenses = simulate("Model_III", "noisy", num_images=3)
        >>> lenses.images.shape, lenses.classes
        ((3, 1, 64, 64), ('no_sub', 'cdm', 'axion'))
    """
    require(num_images > 0, f"num_images={num_images} is not positive.")
    require(seed >= 0, f"seed={seed} is negative.")
    population = Population(model, preset, default_mass_slope(preset))
    made = simulate_images(range(num_images), population=population, seed=seed, split=split)
    return SimulatedLenses(
        images=made.images[:, None],
        labels=np.array([system.label for system in made.systems], dtype=np.int64),
        classes=CLASSES,
        unit=unit_of(population),
        pixel_scale_arcsec=population.survey.pixel_scale_arcsec,
        truth={name: np.array([getattr(system, name) for system in made.systems], dtype=float) for name in TRUTH},
    )
