"""Checks before submission: whether a job will start on a cluster, and restart after an interruption."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs import command_line, verbs
from jobs.data.folders import find_dataset, splits_of
from jobs.finetune.settings import SCRATCH
from jobs.models.settings import require_model
from jobs.runs.attempts import has_begun
from jobs.settings import require
from launch import slurm
from launch.clusters import Cluster
from launch.environment import left_out
from launch.findings import note, one_line
from launch.first_checks import check_batch, without_initial
from launch.limits import Fields, Site, account_findings, limit_problems, look, node_problems, partitions_of
from launch.preemption import duration, loss_finding, preemption_of
from launch.script import submitit_script
from launch.submission import Submission

INPUTS = ("pretrained_file", "source", "folder", "backbone", "init_from", "lengthen")
"""Settings that name inputs of a job other than the data set."""
LOCAL_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that are local to each machine on nearly all clusters."""


def check_before_submission(submission: Submission) -> Iterator[str]:
    """Yield notes for the user before a job is submitted. Raises ValueError if it would fail or never start."""
    cluster = submission.cluster
    for command in submission.counting:
        check_job(command, cluster, waits=bool(submission.after))
    refuse([*image_problems(cluster), *machine_problems(cluster)])
    yield from notice_notes(cluster)
    if cluster.executor == "slurm":
        yield from check_slurm(submission, look(cluster))
        yield from (f"note: {text}" for text in folder_notes(submission))


def notice_notes(cluster: Cluster) -> Iterator[str]:
    """Yield a note if the command for notices is not on this machine; the nodes may have it."""
    program = shlex.split(cluster.notify)[0] if cluster.notify else ""
    if program and not shutil.which(program):
        yield f"note: notify: {program} is not on this machine; without it on the nodes, no notice arrives"


def check_slurm(submission: Submission, site: Site) -> Iterator[str]:
    """Yield when Slurm expects a job to start, and notes on what limits its stopping and restarting there."""
    cluster, used = submission.cluster, partitions_of(submission.cluster, site.partitions)
    problems = [[*limit_problems(cluster, partition, site)] for partition in used]
    refuse(problems[0] if all(problems) else [])
    check_sweep(len(submission.commands), site.config)
    yield start_or_lack(submission, site)
    findings = [note(text) for found in problems for text in found]
    findings += [*left_out(os.environ, cluster), *account_findings(cluster, site)]
    findings += [preemption_of(cluster, partition, site) for partition in used]
    findings.append(loss_finding(duration(site.config, "SlurmdTimeout", 300)))
    yield from (f"note: {finding.text}" for finding in findings if finding.level != "right")


def refuse(problems: Iterable[str]) -> None:
    """Raise ValueError with the first problem, if any."""
    for problem in problems:
        raise ValueError(problem)


def check_job(command: Sequence[str], cluster: Cluster, *, waits: bool = False) -> None:
    """Raise ValueError if the settings of a job cannot work on this cluster. The inputs of a job that `waits` for other
    runs may not exist yet."""
    job, settings = command[0], command_line.parse(command[0], command[1:])
    check_tasks(job, cluster)
    learning = settings.learning if job == "finetune" else settings
    if job in verbs.STOPPABLE:
        check_batch(learning, cluster.tasks)
    if job in ("train", "pretrain"):
        require_model(settings.model_name)
    if not waits and "dependency" not in cluster.sbatch:
        check_inputs(job, learning)


def check_tasks(job: str, cluster: Cluster) -> None:
    """Raise ValueError if several tasks would each do the whole job."""
    told = f"{job} runs as a single process that uses all cores of its node, not as {cluster.tasks} processes"
    alone = job in verbs.TRAININGS or cluster.tasks == 1
    require(alone, f"{told}; use --nodes 1 --tasks_per_node 1 --cpus_per_task N.")


def check_inputs(job: str, settings: Any) -> None:
    """Raise ValueError if an input of a job does not exist."""
    given = vars(settings)
    if job in verbs.TRAININGS and has_begun(settings.run):
        given = without_initial(given)
    for name in INPUTS:
        path = given.get(name)
        exists = path is None or str(path) == SCRATCH or Path(path).exists()
        require(exists, f"{name}={path} does not exist; correct the path.")
    # An evaluation reads real images from there only if it evaluates generated ones.
    of_shards = getattr(settings, "layout", "dataset") == "dataset" and not reads_files(settings)
    if hasattr(settings, "data_root") and getattr(settings, "generated", True) and settings.dataset and of_shards:
        for dataset in settings.dataset.split(","):
            check_dataset(dataset.strip(), settings.data_root, needs_train=job != "predict")


def reads_files(settings: Any) -> bool:
    """Whether a job can read images in files, and `dataset` names existing ones instead of a data set."""
    path = Path(getattr(settings, "dataset", None) or "")
    return hasattr(settings, "layout") and path.exists() and not splits_of(path)


def check_dataset(dataset: str, data_root: Path, *, needs_train: bool) -> None:
    """Raise ValueError if a data set does not exist, or has no training split and needs one."""
    found = find_dataset(dataset, data_root)
    splits = splits_of(found)
    require("train" in splits or not needs_train, f"{found} has no split 'train', only: {', '.join(splits)}; add one.")


def folder_notes(submission: Submission) -> Iterator[str]:
    """Yield a note if folders of a submission are probably not visible on the nodes."""
    ours = [*submission.folders, submission.logs, submission.code, Path.cwd()]
    local = [root for root in LOCAL_FOLDERS if any(path.resolve().is_relative_to(root) for path in ours)]
    if local:
        told = f"on most clusters {', '.join(local)} is local to each node, but all nodes must see runs, logs and code"
        yield f"{told}; `deeplense doctor --on {submission.cluster.name} --run_job` tests the current folder"


def check_sweep(num_runs: int, config: Fields) -> None:
    """Raise ValueError if there are more runs than Slurm accepts as one job array."""
    most = int(config.get("MaxArraySize", "1001"))
    told = f"{num_runs} runs exceed MaxArraySize={most} of this cluster"
    require(num_runs == 1 or num_runs <= most, f"{told}; submit fewer runs at a time.")


def start_or_lack(submission: Submission, site: Site) -> str:
    """Return when Slurm expects a job to start. Raises ValueError, with what the nodes lack, if Slurm rejects it."""
    cluster, several = submission.cluster, len(submission.commands) > 1
    try:
        return when_it_starts(submission, "the first run" if several else "the job")
    except ValueError as error:
        used = partitions_of(cluster, site.partitions)
        lacks = [text for partition in used for text in node_problems(cluster, partition, site.nodes)]
        unused = [finding.text for finding in left_out(os.environ, cluster)]
        raise ValueError(". ".join([one_line(error), *lacks[:1], *unused])) from error


def when_it_starts(submission: Submission, what: str) -> str:
    """Return when and where Slurm expects a job to start. Raises ValueError if Slurm rejects it."""
    line = slurm.expected_start(submission.cluster.slurm_conf, submitit_script(submission))
    found = re.search(r"to start at (\S+) .*on nodes (\S+)", line)
    return f"Slurm expects {what} to start at {found[1]}, on {found[2]}" if found else f"Slurm accepts {what}: {line}"


def machine_problems(cluster: Cluster) -> Iterator[str]:
    """Yield what this machine lacks for a job that runs on it."""
    asked = cluster.gpus_per_node if cluster.executor == "local" else 0
    if asked and asked > (found := num_gpus_here()):
        yield f"gpus_per_node: {asked}, but nvidia-smi lists {found} on this machine; set --gpus_per_node {found}."


def num_gpus_here() -> int:
    """Return the number of GPUs of this machine that nvidia-smi lists."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=slurm.TIMEOUT_S)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def image_problems(cluster: Cluster) -> Iterator[str]:
    """Yield why the image cannot be read, if so."""
    if cluster.image and not os.path.exists(cluster.image):
        yield f"image: {cluster.image} does not exist; build it with containers/build.sh, or correct the path."
    elif cluster.image and not os.access(cluster.image, os.R_OK):
        yield f"image: you have no permission to read {cluster.image}; ask its owner, or build your own."
