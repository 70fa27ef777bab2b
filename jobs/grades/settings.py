"""Merge files of grades from several people into one grade per image, and measure how well they agree. The files come
from pages of `deeplense candidates`; `deeplense pack` makes labels of the result."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs.settings import require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense grades`."""

    files: list[str] = field(metadata={"help": "CSV files of grades"})
    output: Path = Path("merged.csv")
    """CSV file to write, a line per image"""
    rule: Literal["majority", "median"] = "majority"
    """which grade counts. majority: the one that most people gave, and of several such grades the worst; median: the
    middle one, and of two middle ones the worse"""

    def __post_init__(self) -> None:
        require(self.output.suffix == ".csv", f"output={self.output} must end in .csv.")
        given = [Path(file).resolve() for file in self.files]
        require(len(set(given)) == len(given), "a file is given twice; give it once.")
        require(self.output.resolve() not in given, f"output={self.output} is one of the files; give another name.")
