"""The text that Slurm gets: what stands around srun, submitit's parameters, and a whole script without submitit."""

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs.config import refuse_control, require
from launch.clusters import Cluster
from launch.containers import container_words

TEMPLATES = Path(__file__).parents[1] / "slurm_templates"
FOLDERS = "folders.txt"
SRUN_OPTIONS = ("--kill-on-bad-exit=1", "--wait=60")


@dataclass(frozen=True)
class Submission:
    """What is submitted: the command of each run, the folder of each, and where they keep logs and code. Raises
    ValueError for paths that a batch script or Slurm would read as something else."""

    cluster: Cluster
    commands: tuple[tuple[str, ...], ...]
    folders: tuple[Path, ...]
    logs: Path
    code: Path

    def __post_init__(self) -> None:
        refuse_control({"the command": self.commands, "run": self.folders, "logs": self.logs, "code": self.code})
        patterns = [sign for sign in "%\\" if sign in str(self.logs)]
        require(
            self.cluster.executor != "slurm" or not patterns,
            f"{self.logs} has a {''.join(patterns[:1])}, which Slurm takes for a pattern in the names of logs; use "
            "a folder without it.",
        )

    @property
    def name(self) -> str:
        """What the scheduler calls it."""
        return f"{self.commands[0][0].replace(' ', '-')}-{self.folders[0].name}"


def render(template: str, **values: Any) -> str:
    """A template of `slurm_templates/`; a value that it lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=False
    )
    return environment.get_template(template).render(**values)


def pieces(submission: Submission) -> tuple[str, str]:
    """What stands before and after srun."""
    cluster = submission.cluster
    folders = {"DEEPLENSE_SCRATCH": cluster.scratch, "DEEPLENSE_NODE_LOCAL": cluster.node_local}
    # Not quoted with '': variables of the node's shell are allowed.
    lines = {name: f'"{folder}"' for name, folder in folders.items() if folder}
    values = {
        "folders": shlex.quote(str(submission.logs / FOLDERS)),
        "logs": shlex.quote(str(submission.logs)),
        "code": shlex.quote(str(submission.code)),
        "python": python_command(submission),
        "environment": lines | {name: shlex.quote(value) for name, value in cluster.environment.items()},
        "setup": cluster.setup,
    }
    return render("setup.sh", **values), render("teardown.sh", **values)


def python_command(submission: Submission) -> str:
    """The interpreter of the job, in its container if it has one, as a shell takes it."""
    cluster = submission.cluster
    if not cluster.image:
        return shlex.quote(cluster.python or sys.executable)
    return shlex.join([*container_words(submission), cluster.python or "python"])


def slurm_parameters(submission: Submission) -> dict[str, Any]:
    """The job as submitit's Slurm executor is told."""
    cluster = submission.cluster
    setup, teardown = pieces(submission)
    given = {name: getattr(cluster, name) for name in ("partition", "account", "qos", "constraint")}
    further = {name: value or True for name, value in cluster.sbatch.items()}
    return {
        "job_name": submission.name,
        "time": max(math.ceil(cluster.hours * 60), 1),
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks_on_node,
        "cpus_per_task": cluster.cpus_per_task,
        "gpus_per_node": cluster.gpus,
        "signal_delay_s": cluster.signal_delay_s,
        "setup": setup.splitlines(),
        "teardown": teardown.splitlines(),
        "srun_args": srun_options(cluster),
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True, **unnamed(cluster), **further},
        **{name: value for name, value in given.items() if value},
    }


def unnamed(cluster: Cluster) -> dict[str, str]:
    """Options that submitit has no word for, or another unit."""
    options = {"reservation": cluster.reservation} if cluster.reservation else {}
    if cluster.memory_gb_per_task:
        options["mem"] = f"{math.ceil(1024 * cluster.memory_gb_per_task * cluster.tasks_on_node)}M"
    return options


def srun_options(cluster: Cluster) -> list[str]:
    """What srun is told: the cores (which it does not take over from sbatch), and to end all ranks with the first."""
    return [f"--cpus-per-task={cluster.cpus_per_task}", *SRUN_OPTIONS]


def submitit_script(submission: Submission) -> str:
    """The whole batch script that submitit hands to Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{python_command(submission)} -u -m submitit.core._submit {shlex.quote(str(submission.logs))}"
    count = len(submission.folders) if len(submission.folders) > 1 else None
    parameters = slurm_parameters(submission)
    return _make_sbatch_string(command=command, folder=submission.logs, map_count=count, **parameters) + "\n"


def whole_script(submission: Submission) -> str:
    """A batch script that does the same without submitit, for `sbatch FILE`."""
    setup, teardown = pieces(submission)
    parameters = slurm_parameters(submission)
    apart = ("setup", "teardown", "srun_args", "stderr_to_stdout", "wckey", "signal_delay_s", "additional_parameters")
    options = {name.replace("_", "-"): value for name, value in parameters.items() if name not in apart}
    options |= {"signal": f"USR2@{submission.cluster.signal_delay_s}", "open-mode": "append"}
    options |= {"output": f"{submission.logs}/%j_0_log.out"} | parameters["additional_parameters"]
    (command,) = submission.commands
    return (
        render(
            "job.sh",
            sbatch={
                name: value if value is True else shlex.quote(str(value))
                for name, value in sorted(options.items())
                if value is not None
            },
            setup_lines=setup,
            teardown_lines=teardown,
            srun=shlex.join(
                ["srun", "--unbuffered", "--output", f"{submission.logs}/%j_%t_log.out", *parameters["srun_args"]]
            ),
            python=python_command(submission),
            command=shlex.join(command),
        )
        + "\n"
    )


def job_environment(submission: Submission, folder: Path) -> Mapping[str, str]:
    """What a job without a batch script is told by its environment."""
    return {
        **submission.cluster.environment,
        "DEEPLENSE_FOLDER": str(folder),
        "PYTHONPATH": str(submission.code),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
