"""Whether a cluster is usable, and whether a job will start and come back there, told before it is submitted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from launch.clusters import Cluster
from launch.script import Submission


@dataclass(frozen=True)
class Finding:
    """One thing found: `right`, `note` for what works with a loss, `wrong` for what does not."""

    level: Literal["right", "note", "wrong"]
    text: str


def examine(cluster: Cluster) -> list[Finding]:
    return []


def check_before_submission(submission: Submission) -> Iterator[str]:
    yield from ()
