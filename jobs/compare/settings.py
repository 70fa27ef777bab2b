"""Compare runs: the settings that differ, the held-out metrics with the paired differences on the same images, and the
curves. Evaluate each run first with `deeplense evaluate`."""

from dataclasses import dataclass, field
from pathlib import Path

from jobs.settings import require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `deeplense compare`."""

    runs: list[str] = field(metadata={"help": "run folders, two or more; each is compared with the first"})
    report: str = "report"
    """name of the report folder in each run, such as report-other-test"""
    output: Path = Path("compare.html")
    """page to write"""

    def __post_init__(self) -> None:
        require(len(self.runs) > 1, "give two or more runs to compare: deeplense compare RUN RUN ...")
        require(self.output.suffix == ".html", f"output={self.output} must end in .html.")
