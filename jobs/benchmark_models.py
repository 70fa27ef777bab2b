"""Train and evaluate many models on the same data, several seeds each, and put them side by side in one table.

The same command continues what was stopped, and makes the table at once where all is done. `deeplense submit --on
CLUSTER benchmark models ...` makes a job array of it, an element for each training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deeplense.models.zoo import ARCHITECTURES
from jobs.comparing.settings import QueueSettings
from jobs.config import BUT, OF

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Settings(QueueSettings):
    """Which models, on which data. The settings of `deeplense train` that are given go over each model's recipe."""

    models: str
    """names of models, with commas between, or all for those that `deeplense models` lists"""
    training: Mapping[str, Any] = field(
        default_factory=dict, metadata={OF: "train", BUT: ("run", "dataset", "model_name", "seed", "fold")}
    )
    """settings of `deeplense train` for all models"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_each_once("models")

    def names(self, name: str) -> list[str]:
        """What stands between the commas of a setting; `all` models are those of the zoo."""
        return list(ARCHITECTURES) if name == "models" and self.models == ALL else super().names(name)


def run(settings: Settings) -> int:
    """Do what is left, and print the table; returns 0, 1 where a training failed, or 85 when told to stop."""
    from jobs.comparing.plan import make_table
    from jobs.comparing.queue import do_all

    return do_all(settings, make_table(settings))


def runs_left(settings: Settings) -> dict[str, Path]:
    """Names and folders of the runs that are not trained yet."""
    from jobs.comparing.plan import make_plan
    from jobs.comparing.trials import left

    return left(make_plan(settings), settings.only)
