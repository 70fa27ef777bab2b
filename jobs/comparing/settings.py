"""The settings that tables of many runs share, beside those of the runs."""

from dataclasses import dataclass
from pathlib import Path

from jobs.config import require


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Data sets, seeds, and the folder of the table."""

    datasets: str
    """data sets, with commas between: folders, or names below data_root; the runs on each are compared. real+made
    (of models) is learnt from both, in as many updates as real alone, and tested on real"""
    output: Path
    """folder of the table, and of the runs"""
    seeds: str = "0:3"
    """seeds of the runs: 0:3 is 0, 1 and 2; or a list, such as 0,1,5"""

    def __post_init__(self) -> None:
        require(bool(self.all_seeds), f"seeds={self.seeds!r} holds none; give 0:3 for three, or a list such as 0,1,5.")
        self.require_each_once("datasets")

    def names(self, name: str) -> list[str]:
        """What stands between the commas of a setting."""
        return [word.strip() for word in getattr(self, name).split(",") if word.strip()]

    def require_each_once(self, name: str) -> None:
        """Raise ValueError where a setting names nothing, or something twice."""
        found = self.names(name)
        require(bool(found), f"{name} names none; give one or more, with commas between.")
        twice = [word for word in found if found.count(word) > 1]
        require(not twice, f"{name}={getattr(self, name)} has {''.join(twice[:1])} twice; give each once.")

    @property
    def all_seeds(self) -> list[int]:
        """The seeds, each once."""
        return list(dict.fromkeys(seed for word in self.names("seeds") for seed in read_seeds(word)))


@dataclass(frozen=True, kw_only=True)
class QueueSettings(TableSettings):
    """The settings of tables whose runs may go side by side, or be the elements of an array."""

    at_once: int = 1
    """runs side by side on this machine; they share its cores and take its GPUs in turn"""
    only: str = ""
    """do one run alone, by its name; that is what an element of an array does"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.at_once > 0, f"at_once={self.at_once} must be above 0.")


def read_seeds(word: str) -> range:
    """The seeds that a number, or a range such as 0:3, stands for. Raises ValueError where it is neither."""
    first, colon, end = word.partition(":")
    good = first.isdecimal() and (end.isdecimal() if colon else True)
    require(good, f"seeds: {word!r} is neither a number, 0 or more, nor a range such as 0:3.")
    return range(int(first), int(end) if colon else int(first) + 1)
