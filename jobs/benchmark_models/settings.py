"""Train and evaluate many models on the same data, with several seeds each, and compare them in one table.

Run the same command again to resume; if everything is done, it only rewrites the table. `deeplense submit --on CLUSTER
benchmark models ...` runs it as a job array with one task per training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deeplense.models.zoo import ARCHITECTURES
from jobs.settings import BUT, OF
from jobs.trials.settings import QueueSettings

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Settings(QueueSettings):
    """Settings of `deeplense benchmark models`. Settings of `deeplense train` override those of each model's recipe."""

    models: str
    """comma-separated names of models; all: those listed by `deeplense models`"""
    training: Mapping[str, Any] = field(
        default_factory=dict, metadata={OF: "train", BUT: ("run", "dataset", "model_name", "seed", "fold", "lengthen")}
    )
    """settings of `deeplense train` that apply to all models"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_each_once("models")

    def names(self, name: str) -> list[str]:
        """Return the comma-separated values of a setting; `all` models are those of the zoo."""
        return list(ARCHITECTURES) if name == "models" and self.models == ALL else super().names(name)
