"""Export the weights of a trained run for timm, with a description of how to use them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.settings import require

SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense export`: what to export and where to."""

    run: str = field(metadata={"help": "folder of a run, or its W&B id"})
    output: Path
    """file for the weights, NAME.safetensors; NAME.safetensors.json beside it describes how to use them"""
    weights: Literal["best", "last"] = "best"
    """best: the weights selected on the validation images; last: those of the last checkpoint"""
    runs_root: Path = Path("runs")
    """folder that is searched for runs by W&B id"""

    def __post_init__(self) -> None:
        require(
            self.output.suffix == SUFFIX,
            f"output={self.output} must end in {SUFFIX}; timm recognises the format by it.",
        )
