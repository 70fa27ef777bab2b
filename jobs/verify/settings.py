"""Read every byte of a data set or of a run's checkpoints, and report what is damaged, missing or inconsistent. For a
data set, --near also finds near copies: images that are rotated, flipped, shifted, rescaled or slightly changed copies
of others."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.conditions import counts_with
from jobs.settings import FREE, SWITCH, require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense verify`."""

    folder: Path = field(metadata={"help": "folder of a data set or of a run"})
    near: Literal[0, 1] = field(default=0, metadata=SWITCH)
    """for a data set: also search for near copies within and across its splits; those across splits or with different
    labels count as problems"""
    pairs: Path | None = field(default=None, metadata=counts_with(near=1))
    """CSV file for all pairs of near copies; by default only the first of each kind are printed"""
    num_workers: int = field(default=0, metadata=FREE | counts_with(near=1))
    """number of processes that search for near copies; 0: one per core"""

    def __post_init__(self) -> None:
        require(self.num_workers >= 0, f"num_workers={self.num_workers} must be 0 or more.")
        require(self.near == 1 or self.pairs is None, "--pairs needs --near; add --near, or leave --pairs out.")
