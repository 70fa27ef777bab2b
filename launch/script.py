"""Batch scripts for Slurm: the shell code around srun, the parameters of submitit, and a script without submitit."""

import math
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.clusters import Cluster
from launch.containers import container_words
from launch.copied import WHERE
from launch.environment import unset_by_script
from launch.submission import Submission
from launch.widths import for_slurm, is_range

TEMPLATES = Path(__file__).parents[1] / "slurm_templates"
FOLDERS = "folders.txt"
MOST_FOLLOWED = 64
"""Arrays of more runs have no successor jobs, which would fill the queue."""
MAIL_AT = "END,FAIL,INVALID_DEPEND"
"""Events of which Slurm sends mails."""
SRUN_OPTIONS = ("--open-mode=append", "--export=ALL", "--kill-on-bad-exit=1", "--wait=60")


def render(template: str, **values: Any) -> str:
    """Render a template of `slurm_templates/`; a missing value is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=False
    )
    return environment.get_template(template).render(**values)


def pieces(submission: Submission, *, pickles: bool) -> tuple[str, str]:
    """Return the shell code before and after srun. With `pickles`, srun runs pickled commands with submitit."""
    cluster = submission.cluster
    folders = {"DEEPLENSE_SCRATCH": cluster.scratch, "DEEPLENSE_NODE_LOCAL": cluster.node_local}
    # Not quoted with '', so that the shell of the node expands variables.
    lines = {name: f'"{folder}"' for name, folder in folders.items() if folder}
    values = {
        "folders": shlex.quote(str(submission.logs / FOLDERS)),
        "logs": shlex.quote(str(submission.logs)),
        "code": shlex.quote(str(submission.code)),
        "python": python_command(submission),
        "environment": lines | {name: shlex.quote(value) for name, value in cluster.environment.items()},
        "setup": cluster.setup,
        "successor": cluster.successor and len(submission.folders) <= MOST_FOLLOWED,
        "notify": shlex.join(shlex.split(cluster.notify)) if cluster.notify else "",
        "mail": MAIL_AT if cluster.mail else "",
        "ranks_on_node": cluster.tasks_on_node if is_range(cluster.nodes) else None,
    }
    identity = render(
        "identity.sh",
        stale=unset_by_script(array=len(submission.folders) > 1, has_gpus=cluster.gpus_per_node > 0),
        code=f"{WHERE}={values['code']}",
    )
    named = shlex.quote(str(submission.pickle_of(""))) if pickles else None
    return render("setup.sh", **values, identity=identity, pickles=named), render("teardown.sh", **values)


def python_command(submission: Submission) -> str:
    """Return the shell command of the job's Python interpreter, inside its container if it has one."""
    cluster = submission.cluster
    if not cluster.image:
        return shlex.quote(cluster.python or sys.executable)
    return shlex.join([*container_words(submission), cluster.python or "python"])


def slurm_parameters(submission: Submission) -> dict[str, Any]:
    """Return the parameters of a job for submitit's Slurm executor."""
    cluster = submission.cluster
    setup, teardown = pieces(submission, pickles=True)
    given = {name: getattr(cluster, name) for name in ("partition", "account", "qos", "constraint")}
    further = {name: value or True for name, value in cluster.sbatch.items()}
    return {
        "job_name": submission.name,
        "time": max(math.ceil(cluster.hours * 60), 1),
        "nodes": for_slurm(cluster.nodes),
        **ranks_of_node(cluster),
        "gpus_per_node": cluster.gpus,
        "signal_delay_s": cluster.signal_delay_s,
        "setup": setup.splitlines(),
        "teardown": teardown.splitlines(),
        "srun_args": srun_options(cluster),
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True, **unnamed(cluster), **further, **waiting(submission)},
        **{name: value for name, value in given.items() if value},
    }


def ranks_of_node(cluster: Cluster) -> dict[str, int]:
    """Return the options for the ranks of each node.

    With a range of nodes, the cores of a node are requested as those of one task, and srun starts the ranks. Otherwise
    Slurm 22.05 would give only as many nodes as there are ranks per node, and never fewer than an attempt has had.
    """
    if is_range(cluster.nodes):
        return {"cpus_per_task": cluster.tasks_on_node * cluster.cpus_per_task}
    return {"ntasks_per_node": cluster.tasks_on_node, "cpus_per_task": cluster.cpus_per_task}


def waiting(submission: Submission) -> dict[str, str]:
    """Return the options of a job that waits for others. It stays in the queue if one of these fails, because a job
    that continues the failed one may satisfy the dependency."""
    if not submission.dependency:
        return {}
    return {"dependency": submission.dependency, "kill-on-invalid-dep": "no"}


def unnamed(cluster: Cluster) -> dict[str, str]:
    """Return options that submitit does not have, or has in another unit."""
    options = {"reservation": cluster.reservation} if cluster.reservation else {}
    if cluster.mail:
        options |= {"mail-user": cluster.mail, "mail-type": MAIL_AT}
    if cluster.memory_gb_per_task:
        options["mem"] = f"{math.ceil(1024 * cluster.memory_gb_per_task * cluster.tasks_on_node)}M"
    return options


def srun_options(cluster: Cluster) -> list[str]:
    """Return the options of srun: the number of cores, which it does not inherit from sbatch, and to end all ranks if
    one fails."""
    return [f"--cpus-per-task={cluster.cpus_per_task}", *SRUN_OPTIONS]


def submitit_script(submission: Submission) -> str:
    """Return the complete batch script, made by submitit."""
    # submitit would read a different signal from this variable of the shell.
    os.environ.pop("SUBMITIT_PREEMPT_SIGNAL", None)
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{python_command(submission)} -u -m submitit.core._submit {shlex.quote(str(submission.logs))}"
    count = len(submission.folders) if len(submission.folders) > 1 else None
    parameters = slurm_parameters(submission)
    return _make_sbatch_string(command=command, folder=submission.logs, map_count=count, **parameters) + "\n"


def whole_script(submission: Submission) -> str:
    """Return a batch script for `sbatch FILE` that does the same without submitit."""
    setup, teardown = pieces(submission, pickles=False)
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
    """Return the environment variables of a job without a batch script."""
    return {
        **submission.cluster.environment,
        "DEEPLENSE_FOLDER": str(folder),
        "PYTHONPATH": str(submission.code),
        WHERE: str(submission.code),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
