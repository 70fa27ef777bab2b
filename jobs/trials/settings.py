"""Settings shared by the jobs that compare many runs in a table."""

from dataclasses import dataclass
from pathlib import Path

from jobs.settings import require


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Data sets, seeds and the output folder of a table."""

    datasets: str
    """comma-separated data sets (folders, or names below data_root); runs on the same data set are compared. real+made
    (benchmark models only) trains on both, with as many updates as on real alone, and tests on real"""
    output: Path
    """folder for the table and the runs"""
    seeds: str = "0:3"
    """seeds of the runs: a range (0:3 is 0, 1 and 2) or a list, such as 0,1,5"""

    def __post_init__(self) -> None:
        require(bool(self.all_seeds), f"seeds={self.seeds!r} contains none; give a range (0:3) or a list (0,1,5).")
        self.require_each_once("datasets")

    def names(self, name: str) -> list[str]:
        """Return the comma-separated values of a setting."""
        return [word.strip() for word in getattr(self, name).split(",") if word.strip()]

    def require_each_once(self, name: str) -> None:
        """Raise ValueError if a setting has no value, or the same value twice."""
        found = self.names(name)
        require(bool(found), f"{name} is empty; give one or more values, separated by commas.")
        twice = [word for word in found if found.count(word) > 1]
        require(not twice, f"{name}={getattr(self, name)} has {''.join(twice[:1])} twice; give each once.")

    @property
    def all_seeds(self) -> list[int]:
        """The distinct seeds, in their order."""
        return list(dict.fromkeys(seed for word in self.names("seeds") for seed in read_seeds(word)))


@dataclass(frozen=True, kw_only=True)
class QueueSettings(TableSettings):
    """Settings of tables whose runs can be executed in parallel or as the tasks of a job array."""

    at_once: int = 1
    """number of runs in parallel on this machine; they share its cores and are assigned to its GPUs in turn"""
    only: str = ""
    """name of a single run to execute; used by the tasks of a job array"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.at_once > 0, f"at_once={self.at_once} must be above 0.")


def read_seeds(word: str) -> range:
    """Parse a seed (5) or a range of seeds (0:3). Raises ValueError if it is neither."""
    first, colon, end = word.partition(":")
    good = first.isdecimal() and (end.isdecimal() if colon else True)
    require(good, f"seeds: {word!r} must be a number, 0 or more, or a range such as 0:3.")
    return range(int(first), int(end) if colon else int(first) + 1)
