"""Write the weights of a trained run alone, for timm, with all that is needed to use them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.config import require

SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to export, and to where."""

    run: str = field(metadata={"help": "folder of a run, or its W&B id"})
    output: Path
    """file of the weights, NAME.safetensors; NAME.safetensors.json beside it says how to use them"""
    weights: Literal["best", "last"] = "best"
    """the best on the validation samples, or those of the last checkpoint"""
    runs_root: Path = Path("runs")
    """where runs are looked for by W&B id"""

    def __post_init__(self) -> None:
        require(
            self.output.suffix == SUFFIX, f"output={self.output} must end in {SUFFIX}, by which timm knows the format."
        )


def run(settings: Settings) -> int:
    """Write the files, once a model made of them has given the outputs of the run's own."""
    from jobs.export_run import export

    return export(settings)
