"""Plot the loss, the validation metrics and the learning rate of one run, or of several for comparison. This also works
while they train."""

from dataclasses import dataclass, field
from pathlib import Path

from jobs.settings import require

SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense plot`."""

    runs: list[str] = field(metadata={"help": "run folders"})
    names: str = ""
    """comma-separated metrics to plot, such as train/loss,val/auc_macro; by default all, but with several runs only
    the mean of the AUCs"""
    output: Path | None = None
    """file for the figure, .png, .pdf or .svg; by default RUN/curves.png, or curves.png in the current folder for
    several runs"""

    def __post_init__(self) -> None:
        right = self.output is None or self.output.suffix in SUFFIXES
        require(right, f"output={self.output} must end in {', '.join(SUFFIXES)}.")
