"""Whether a job will start, and come back, on a cluster, told before it is submitted."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import config
from jobs.config import require
from jobs.models import require_model
from launch import slurm
from launch.clusters import Cluster
from launch.findings import Finding, note, one_line, wrong
from launch.limits import Fields, Site, limit_problems, look, node_problems, partitions_of
from launch.preemption import duration, loss_finding, preemption_of
from launch.script import Submission, submitit_script

INPUTS = {"train": "pretrained_file", "pack": "source", "verify": "folder"}
"""Settings that name what a job reads, beside the data set."""
LOCAL_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that are each machine's own nearly everywhere."""
DEFEATING = ("NO_REQUEUE", "SIGNAL", "OUTPUT", "ERROR", "OPEN_MODE", "ARRAY_INX", "WAIT")
"""Variables, after SBATCH_, that win over what deeplense must decide."""
OVERRIDING = {
    **{name.upper(): name for name in ("partition", "account", "qos", "constraint", "reservation", "gpus_per_node")},
    "MEM_PER_NODE": "memory_gb_per_task",
    "TIMELIMIT": "hours",
}
"""Variables, after SBATCH_, that win over this key of a profile."""


def check_before_submission(submission: Submission) -> Iterator[str]:
    """What is worth knowing before a job is sent. Raises ValueError where it would fail, or never start."""
    cluster = submission.cluster
    for command in submission.commands:
        check_job(command, cluster)
    refuse([*image_problems(cluster), *machine_problems(cluster)])
    if cluster.executor == "slurm":
        yield from check_slurm(submission, look(cluster))
        yield from (f"note: {text}" for text in folder_notes(submission))


def check_slurm(submission: Submission, site: Site) -> Iterator[str]:
    """When Slurm expects a job to start, and what weakens its stopping and restarting there."""
    cluster, used = submission.cluster, partitions_of(submission.cluster, site.partitions)
    refuse(finding.text for finding in environment_findings(os.environ, cluster) if finding.level == "wrong")
    problems = [[*limit_problems(cluster, partition, site)] for partition in used]
    refuse(problems[0] if all(problems) else [])
    check_sweep(len(submission.commands), site.config)
    yield start_or_lack(submission, site)
    findings = [note(text) for found in problems for text in found]
    findings += environment_findings(os.environ, cluster)
    findings += [preemption_of(cluster, partition, site) for partition in used]
    findings.append(loss_finding(duration(site.config, "SlurmdTimeout", 300)))
    yield from (f"note: {finding.text}" for finding in findings if finding.level == "note")


def refuse(problems: Iterable[str]) -> None:
    """Raise ValueError with the first problem, if there is one."""
    for problem in problems:
        raise ValueError(problem)


def check_job(command: Sequence[str], cluster: Cluster) -> None:
    """Raise ValueError for settings that cannot be right on this cluster."""
    job, settings = command[0], config.parse(command[0], command[1:])
    check_tasks(job, cluster)
    learning = settings.learning if job == "finetune" else settings
    if job in config.STOPPABLE:
        check_batch(learning.batch_size, learning.gradient_accumulation, cluster.tasks)
    if job in ("train", "pretrain"):
        require_model(settings.model_name)
    if "dependency" not in cluster.sbatch:
        check_inputs(job, learning)


def check_tasks(job: str, cluster: Cluster) -> None:
    """Raise ValueError where several tasks would each do the whole job."""
    told = f"{job} runs as one process that uses all cores of its node, not as {cluster.tasks}"
    alone = job in config.TRAININGS or cluster.tasks == 1
    require(alone, f"{told}; use --nodes 1 --tasks_per_node 1 --cpus_per_task N.")


def check_batch(batch_size: int, pieces: int, tasks: int) -> None:
    """Raise ValueError where the batch does not divide among the ranks, or a rank's part among the pieces."""
    parts = tasks * pieces
    among = f"{tasks} ranks" + (f" of {pieces} pieces" if pieces > 1 else "")
    told = f"batch_size={batch_size} does not divide among {among}"
    require(batch_size % parts == 0, f"{told}; use a multiple of {parts}.")


def check_inputs(job: str, settings: Any) -> None:
    """Raise ValueError where what a job reads is not there."""
    if name := INPUTS.get(job):
        path = getattr(settings, name)
        require(path is None or path.exists(), f"{name}={path} is not there; correct the path.")
    # An evaluation looks there for the real images of generated ones alone.
    if hasattr(settings, "data_root") and getattr(settings, "generated", True) and settings.dataset:
        for dataset in settings.dataset.split(","):
            check_dataset(dataset.strip(), settings.data_root)


def check_dataset(dataset: str, data_root: Path) -> None:
    """Raise ValueError where there is no such data set, or nothing to learn from in it."""
    found = [folder for folder in (Path(dataset), data_root / dataset) if splits_of(folder)]
    where = f"neither as a folder nor below data_root={data_root}"
    make = "Make one by `deeplense simulate` or `deeplense pack`"
    verify = "if there is one, `deeplense verify` says what it lacks"
    require(bool(found), f"there is no data set {dataset!r}, {where}. {make}; {verify}.")
    splits = splits_of(found[0])
    require("train" in splits, f"{found[0]} has no split 'train'; it has {', '.join(splits)}.")


def splits_of(folder: Path) -> list[str]:
    """Names of the finished splits of a data set."""
    return sorted(path.parent.name for path in folder.glob("*/manifest.json"))


def folder_notes(submission: Submission) -> Iterator[str]:
    """Folders that the nodes of most clusters would not see."""
    ours = [*submission.folders, submission.logs, submission.code, Path.cwd()]
    local = [root for root in LOCAL_FOLDERS if any(path.resolve().is_relative_to(root) for path in ours)]
    if local:
        told = f"on most clusters each node has its own {', '.join(local)}, and all must see runs, logs and code"
        yield f"{told}; `deeplense doctor --on {submission.cluster.name} --run_job` tries the current folder"


def check_sweep(num_runs: int, config: Fields) -> None:
    """Raise ValueError for more runs than Slurm takes as one array."""
    most = int(config.get("MaxArraySize", "1001"))
    told = f"{num_runs} runs are more than MaxArraySize={most} of this cluster"
    require(num_runs == 1 or num_runs <= most, f"{told}; send fewer at a time.")


def start_or_lack(submission: Submission, site: Site) -> str:
    """When Slurm expects a job to start. Raises ValueError where it refuses it, with what the nodes lack."""
    cluster, several = submission.cluster, len(submission.commands) > 1
    try:
        return when_it_starts(submission, "the first run" if several else "the job")
    except ValueError as error:
        used = partitions_of(cluster, site.partitions)
        lacks = [text for partition in used for text in node_problems(cluster, partition, site.nodes)]
        raise ValueError(". ".join([one_line(error), *lacks[:1]])) from error


def when_it_starts(submission: Submission, what: str) -> str:
    """When and where Slurm expects a job to start. Raises ValueError where it refuses it."""
    line = slurm.expected_start(submission.cluster.slurm_conf, submitit_script(submission))
    found = re.search(r"to start at (\S+) .*on nodes (\S+)", line)
    return f"Slurm expects {what} to start at {found[1]}, on {found[2]}" if found else f"Slurm takes {what}: {line}"


def environment_findings(environment: Mapping[str, str], cluster: Cluster) -> list[Finding]:
    """Variables that win over what deeplense tells sbatch."""
    given = {name: value for name, value in environment.items() if name.startswith("SBATCH_")}
    bad = [name for name in given if name.removeprefix("SBATCH_") in DEFEATING]
    findings = [wrong(f"{name} is set here, and wins over what deeplense decides; unset {name}.") for name in bad]
    for name, value in given.items():
        key = OVERRIDING.get(name.removeprefix("SBATCH_"))
        ours = getattr(cluster, key) if key else None
        if ours and value != str(ours):
            findings.append(note(f"{name}={value} is set here, and wins over {key}: {ours}; unset {name} to have that"))
    return findings


def machine_problems(cluster: Cluster) -> Iterator[str]:
    """What this machine lacks for a job that runs on it."""
    asked = cluster.gpus_per_node if cluster.executor == "local" else 0
    if asked and asked > (found := num_gpus_here()):
        yield f"gpus_per_node: {asked}, but nvidia-smi shows {found} on this machine; give --gpus_per_node {found}."


def num_gpus_here() -> int:
    """GPUs of this machine that nvidia-smi lists."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=slurm.TIMEOUT_S)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def image_problems(cluster: Cluster) -> Iterator[str]:
    """Whether the image can be read."""
    if cluster.image and not os.path.exists(cluster.image):
        yield f"image: there is no {cluster.image}; build it by containers/build.sh, or correct the path."
    elif cluster.image and not os.access(cluster.image, os.R_OK):
        yield f"image: {cluster.image} cannot be read by you; ask its owner, or make your own."
