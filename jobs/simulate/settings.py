"""Simulate one split of a data set of strong lenses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.bounds import read_part
from jobs.settings import FREE, require

BASIC = ("output", "model", "preset", "num_per_class", "split", "seed")
"""Settings that `--help` lists first."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense simulate`."""

    output: Path
    """folder of the data set; the split is written to a subfolder"""
    model: Literal["Model_I", "Model_II", "Model_III"] = "Model_III"
    """survey to simulate: Model_I has 150 x 150 pixels; Model_II is Euclid VIS, 64 x 64; Model_III is HST F160W,
    64 x 64"""
    preset: Literal["published", "noisy", "physical"] = "noisy"
    """published: like the public data sets, flaws included; noisy: the same physics with instrument noise; physical:
    correct Einstein radii, a random number of subhaloes, a subhalo mass function with slope -1.9"""
    num_per_class: int = 1000
    """number of images per class; there are three classes"""
    split: str = "train"
    """name of the split; images of different splits differ, even with the same seed"""
    seed: int = 0
    """random seed, 0 or more"""
    mass_slope: float | None = None
    """slope of the subhalo mass function dN/dm; by default -1.9 for preset physical, else -0.9"""
    dtype: Literal["float32", "float16"] = "float32"
    """data type of the stored pixels; float16 takes half the space and keeps 3 significant digits"""
    compression: Literal["none", "lz4", "zstd"] = "none"
    """lossless compression of each stored image; needs the package hdf5plugin. Uncompressed images are read fastest"""
    num_workers: int = field(default=0, metadata=FREE)
    """number of processes; 0: one per core. The output does not depend on it"""
    part: str | None = field(default=None, metadata=FREE)
    """K/N writes only every N-th shard, starting from the K-th; the part that ends last completes the split"""

    def __post_init__(self) -> None:
        require(self.num_per_class > 0, f"num_per_class={self.num_per_class} must be above 0.")
        require(self.seed >= 0, f"seed={self.seed} must be 0 or more.")
        require(self.split.isidentifier(), f"split={self.split!r} must be a plain name, such as train, val or test.")
        if self.part is not None:
            read_part(self.part)
