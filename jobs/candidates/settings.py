"""Make a page with the images of the highest scores, to look at them and grade them in a browser. The page needs no
network connection. It starts from a folder of `deeplense predict`."""

from dataclasses import dataclass, field
from pathlib import Path

from jobs.settings import require

MOST_SHOWN = 20_000
"""Largest number of images of a page."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense candidates`."""

    predictions: Path = field(metadata={"help": "folder of predictions"})
    output: Path
    """folder for the page; open its index.html in a browser"""
    top: int = 1000
    """number of images, those with the highest scores"""
    class_name: str = ""
    """class whose probability is the score; by default the one called lens, lenses or lensed"""
    dataset: Path | None = None
    """folder of the data set with the images, if it is no longer where it was when they were predicted"""
    rgb: str = ""
    """comma-separated names of the three bands that are drawn red, green and blue, or of one for grey images; by
    default i,r,g, or the last, the middle and the first band"""
    crop: int = 0
    """side of the central part that is shown, in pixels; 0 for the whole image"""
    similar: int = 8
    """number of similar images that are shown with an image, if the predictions have embeddings; 0 for none"""

    def __post_init__(self) -> None:
        require(1 <= self.top <= MOST_SHOWN, f"top={self.top} must be from 1 to {MOST_SHOWN}; a page holds no more.")
        require(self.crop == 0 or self.crop >= 8, f"crop={self.crop} must be 8 or more, or 0 for the whole image.")
        require(self.similar >= 0, f"similar={self.similar} must be 0 or more.")
        require(len(self.bands) in (0, 1, 3), f"rgb={self.rgb} must name three bands, reddest first, or one.")

    @property
    def bands(self) -> tuple[str, ...]:
        """The names in `rgb`."""
        return tuple(name.strip() for name in self.rgb.split(",") if name.strip())
