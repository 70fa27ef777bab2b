"""Show what a data set contains: its images, classes, targets and units, and a figure of its first images."""

from dataclasses import dataclass, field
from pathlib import Path

from jobs.settings import FREE, require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense show`."""

    dataset: str = field(metadata={"help": "data set folder, or its name below data_root"})
    data_root: Path = field(default=Path("datasets"), metadata=FREE)
    """folder that contains the data sets"""
    split: str = ""
    """split whose images are in the figure; by default train, or the first one"""
    num_images: int = 8
    """number of images of each class in the figure; 0 for no figure"""
    output: Path | None = None
    """file for the figure; by default NAME.png in the current folder"""

    def __post_init__(self) -> None:
        require(0 <= self.num_images <= 50, f"num_images={self.num_images} must be from 0 to 50.")
        right = self.output is None or self.output.suffix == ".png"
        require(right, f"output={self.output} must end in .png.")
