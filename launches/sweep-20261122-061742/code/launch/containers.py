"""Jobs in an Apptainer image: the words that run one, and the folders that it sees."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.script import Submission


def container_words(submission: "Submission") -> list[str]:
    """The words that run a command in the image of the cluster, with its GPUs where there are some."""
    cluster = submission.cluster
    assert cluster.image
    gpus = ["--nv"] if cluster.gpus_per_node else []
    binds = [word for bind in binds_of(submission) for word in ("--bind", bind)]
    return [*shlex.split(cluster.apptainer), *gpus, *binds, cluster.image]


def binds_of(submission: "Submission") -> list[str]:
    """What the container sees beside itself: the code, the runs, the logs, the data, this folder, and scratch."""
    cluster = submission.cluster
    parents = [folder.parent for folder in submission.folders]
    ours = [Path.cwd(), submission.code, submission.logs, *parents, *paths_in(submission.commands[0])]
    scratch = [Path(cluster.scratch)] if cluster.scratch else []
    local = [cluster.node_local] if cluster.node_local and "$" not in cluster.node_local else []
    return [*outermost([*ours, *scratch]), *local, *cluster.binds]


def paths_in(command: Iterable[str]) -> list[Path]:
    """Folders that the values of a command name and that are there."""
    values = [word.partition("=")[2] if word.startswith("--") else word for word in command]
    paths = [Path(value) for value in values if value]
    return [path if path.is_dir() else path.parent for path in paths if path.exists() and os.sep in str(path)]


def outermost(paths: Iterable[Path]) -> list[str]:
    """The paths, absolute, without those that lie in others."""
    whole = sorted({path.absolute() for path in paths})
    return [str(path) for path in whole if not any(other in path.parents for other in whole)]
