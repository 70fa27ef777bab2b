"""Train and evaluate many models on the same data, several seeds each, and put them side by side in one table.

The same command continues what was stopped, and makes the table at once where all is done. `deeplense submit --on
CLUSTER benchmark models ...` makes a job array of it, an element for each training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deeplense.models.zoo import ARCHITECTURES
from jobs.config import BUT, OF, require

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which models, on which data. The settings of `deeplense train` that are given go over each model's recipe."""

    models: str
    """names of models, with commas between, or all for those that `deeplense models` lists"""
    datasets: str
    """data sets, with commas between: folders, or names below data_root; each is a column of trainings of its own"""
    output: Path
    """folder of the table, and of the runs"""
    seeds: str = "0:3"
    """seeds of the trainings: 0:3 is 0, 1 and 2; or a list, such as 0,1,5"""
    at_once: int = 1
    """trainings side by side on this machine; they share its cores and take its GPUs in turn"""
    only: str = ""
    """do one run alone, such as resnet18-m3-0; that is what an element of an array does"""
    training: Mapping[str, Any] = field(
        default_factory=dict, metadata={OF: "train", BUT: ("run", "dataset", "model_name", "seed", "fold")}
    )
    """settings of `deeplense train` for all models"""

    def __post_init__(self) -> None:
        require(self.at_once > 0, f"at_once={self.at_once} must be above 0.")
        for name in ("models", "datasets"):
            require(bool(self.names(name)), f"{name} names none; give one or more, with commas between.")
            twice = [word for word in self.names(name) if self.names(name).count(word) > 1]
            require(not twice, f"{name}={getattr(self, name)} has {''.join(twice[:1])} twice; give each once.")
        require(bool(self.all_seeds), f"seeds={self.seeds!r} holds none; give 0:3 for three, or a list such as 0,1,5.")

    def names(self, name: str) -> list[str]:
        """What stands between the commas of a setting; `all` models are those of the zoo."""
        if name == "models" and self.models == ALL:
            return list(ARCHITECTURES)
        return [word.strip() for word in getattr(self, name).split(",") if word.strip()]

    @property
    def all_seeds(self) -> list[int]:
        """The seeds, each once."""
        return list(dict.fromkeys(seed for word in self.names("seeds") for seed in read_seeds(word)))


def read_seeds(word: str) -> range:
    """The seeds that a number, or a range such as 0:3, stands for. Raises ValueError where it is neither."""
    first, colon, end = word.partition(":")
    good = first.isdecimal() and (end.isdecimal() if colon else True)
    require(good, f"seeds: {word!r} is neither a number, 0 or more, nor a range such as 0:3.")
    return range(int(first), int(end) if colon else int(first) + 1)


def run(settings: Settings) -> int:
    """Do what is left, and print the table; returns 0, 1 where a training failed, or 85 when told to stop."""
    from jobs.comparing.queue import do_all

    return do_all(settings)


def runs_left(settings: Settings) -> dict[str, Path]:
    """Names and folders of the runs that are not trained yet."""
    from jobs.comparing.plan import chosen, make_plan

    asked = chosen(make_plan(settings), settings.only)
    return {training.name: training.run for _, training in asked if not training.is_done}
