"""A submission: the commands, run folders, logs and code of jobs on a cluster."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import command_line
from jobs.settings import refuse_control, require
from launch.clusters import Cluster


@dataclass(frozen=True)
class Submission:
    """A submission: the command and folder of each run, and the folders of logs and code. Raises ValueError for paths
    with characters that have a special meaning in a batch script or in Slurm."""

    cluster: Cluster
    commands: tuple[tuple[str, ...], ...]
    folders: tuple[Path, ...]
    logs: Path
    code: Path
    kept: bool = False
    """whether the commands are from an earlier submission, which a newer version may find to have unused settings"""
    left_out: tuple[str, ...] = ()
    """notes on settings that were removed from such a command, one line each"""
    after: tuple[Path, ...] = ()
    """folders of the runs that must finish before these start"""
    dependency: str = ""
    """the same as the value of sbatch's `--dependency`, with the jobs that these runs have at present"""
    stage: tuple[str, int, str, str] | None = None
    """if it is a stage of a pipeline: folder of the records of the pipeline, number and name of the stage, and the mark
    of its making"""

    def __post_init__(self) -> None:
        refuse_control({"the command": self.commands, "run": self.folders, "logs": self.logs, "code": self.code})
        reader, signs = ("Slurm", "%\\") if self.cluster.executor == "slurm" else ("submitit", ("%j", "%t", "%A", "%a"))
        patterns = [sign for sign in signs if sign in str(self.logs)]
        told = f"{self.logs} contains {''.join(patterns[:1])}, which {reader} reads as a pattern in names of logs"
        require(not patterns, f"{told}; use a folder without it.")

    @property
    def name(self) -> str:
        """Name of the job in the scheduler."""
        return f"{self.commands[0][0].replace(' ', '-')}-{self.folders[0].name}"

    @functools.cached_property
    def settings(self) -> tuple[Any, ...]:
        """Settings of each command. Exits, with a line on stderr, if they are invalid."""
        return tuple(command_line.parse(command[0], command[1:]) for command in self.counting)

    @functools.cached_property
    def counting(self) -> tuple[tuple[str, ...], ...]:
        """Commands without unused settings, which commands of an earlier submission may contain."""
        return tuple(command_line.settle(*command)[0] if self.kept else command for command in self.commands)

    @functools.cached_property
    def recipes(self) -> list[dict[str, Path]]:
        """Files that the commands name with `--config`."""
        pairs = {pair for command in self.commands for pair in command_line.pairs_of(command[1:])}
        return [{name: command_line.find_recipe(value)} for name, value in sorted(pairs) if name == "config"]

    def pickle_of(self, place: object) -> Path:
        """Return the path of the pickle that submitit runs for a command; the name is known before Slurm answers."""
        words = json.dumps(self.commands).encode()
        return self.logs / f"commands_{hashlib.sha256(words).hexdigest()[:12]}_{place}"
