"""Which weights of a run are meant."""

from pathlib import Path
from typing import Literal

from deeplense.training import checkpoint
from jobs.progress import say
from jobs.resuming import problem_of

Which = Literal["best", "last"]


def newest_weights(run: Path, which: Which) -> Path:
    """The newest good checkpoint with the best weights of a run, or with its last ones; damaged ones are reported.
    Raises ValueError where there is none."""
    path, reports = checkpoint.newest_good(
        run / "checkpoints", kind={"best": "best", "last": "step"}[which], problem_of=problem_of
    )
    for report in reports:
        say(report)
    if path is None:
        raise ValueError(f"{run} has no good checkpoint of its {which} weights yet; let it learn further.")
    return path
