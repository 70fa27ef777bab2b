"""Whether a cluster is usable, and whether a job will start and come back there, told before it is submitted.

What Slurm says of itself is read once, by `look`; what follows from it are functions of that alone. Slurm takes some
jobs that it never starts, with `sbatch --test-only` too; those are told from the limits. (Slurm 22.05; measured.)
"""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jobs import config
from jobs.config import require
from jobs.runs import num_cores, version_of
from launch import slurm
from launch.clusters import Cluster, nearest
from launch.ends import parse_fields
from launch.script import Submission, python_command, submitit_script

Fields = Mapping[str, str]
"""What Slurm says of one thing, by the names that Slurm gives."""

PROGRAMS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
SHORT_SAVE_S = 10.0
"""A notice that is shorter than this may be too short to save in."""
LONG_TIMEOUT_S = 600.0
SCARCE_GB = 10.0
GB = 1024**3
LOCAL_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that are each machine's own nearly everywhere."""
INPUTS = {"train": "pretrained_file", "pack": "source", "verify": "folder"}
"""Settings that name what a job reads, beside the data set."""
DEFEATING = ("NO_REQUEUE", "SIGNAL", "OUTPUT", "ERROR", "OPEN_MODE", "ARRAY_INX", "WAIT")
"""Variables, after SBATCH_, that win over what deeplense must decide."""
OVERRIDING = {
    **{name.upper(): name for name in ("partition", "account", "qos", "constraint", "reservation", "gpus_per_node")},
    "MEM_PER_NODE": "memory_gb_per_task",
    "TIMELIMIT": "hours",
}
"""Variables, after SBATCH_, that win over this key of a profile."""
ASKED = {
    "cores": "tasks_per_node * cpus_per_task",
    "GB of memory": "tasks_per_node * memory_gb_per_task",
    "GPUs": "gpus_per_node",
}
"""What a job takes of a node, with the keys of a profile that say how much."""


@dataclass(frozen=True)
class Finding:
    """One thing found: `right`, `note` for what works with a loss, `wrong` for what does not."""

    level: Literal["right", "note", "wrong"]
    text: str


@dataclass(frozen=True)
class Site:
    """What a Slurm cluster says of itself: its settings, partitions, the nodes of those that a profile names, and
    qualities of service."""

    config: Fields
    partitions: Mapping[str, Fields]
    nodes: Mapping[str, Fields] = field(default_factory=dict)
    qualities: Mapping[str, Fields] = field(default_factory=dict)


def right(text: str) -> Finding:
    """Something is as it should be."""
    return Finding("right", text)


def note(text: str) -> Finding:
    """Something works with a loss."""
    return Finding("note", text)


def wrong(text: str) -> Finding:
    """Something does not work."""
    return Finding("wrong", text)


def graded(is_right: bool, told: str, loss: str) -> Finding:
    """What is told, with the loss that it means unless it is right."""
    return right(told) if is_right else note(f"{told}; {loss}")


def examine(cluster: Cluster, *, run_job: bool = False) -> list[Finding]:
    """Whether a cluster is usable, a line for each thing; `run_job` also sends a small job that looks at the nodes."""
    findings = collect(examine_slurm(cluster) if cluster.executor == "slurm" else examine_machine(cluster))
    findings += collect([*image_findings(cluster), *folder_findings(cluster)])
    if run_job and cluster.executor == "slurm" and not any(finding.level == "wrong" for finding in findings):
        findings += collect(probe(cluster))
    return findings


def collect(found: Iterable[Finding]) -> list[Finding]:
    """All findings; where something stops them, the last one tells what."""
    findings: list[Finding] = []
    try:
        findings.extend(found)
    except ValueError as error:
        findings.append(wrong(one_line(error)))
    return findings


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


def one_line(text: object) -> str:
    """Several lines as one, without colours."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(text)).split())


def plural(count: int, thing: str) -> str:
    """A count of things."""
    return f"{count} {thing}" + ("" if count == 1 else "s")


# The job


def check_job(command: Sequence[str], cluster: Cluster) -> None:
    """Raise ValueError for settings that cannot be right on this cluster."""
    job, settings = command[0], config.parse(command[0], command[1:])
    check_tasks(job, cluster)
    if job in config.STOPPABLE:
        check_batch(settings.batch_size, settings.gradient_accumulation, cluster.tasks)
    if "dependency" not in cluster.sbatch:
        check_inputs(job, settings)


def check_tasks(job: str, cluster: Cluster) -> None:
    """Raise ValueError where several tasks would each do the whole job."""
    told = f"{job} runs as one process that uses all cores of its node, not as {cluster.tasks}"
    alone = job in config.STOPPABLE or cluster.tasks == 1
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
    if hasattr(settings, "data_root"):
        check_dataset(settings.dataset, settings.data_root)


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


# What Slurm says


def look(cluster: Cluster) -> Site:
    """What a cluster says of itself. Raises ValueError where it does not answer, or lacks the partition."""
    conf = cluster.slurm_conf
    there = conf is None or os.path.exists(conf)
    require(there, f"slurm_conf: there is no {conf}; start that cluster (`make cluster`?), or correct the path.")
    partitions = slurm.partitions(conf)
    lists = [partition.get("Nodes", "") for partition in partitions_of(cluster, partitions)]
    names = ",".join(text for text in lists if text not in ("", "(null)"))
    nodes = slurm.nodes(conf, names) if names else {}
    return Site(slurm.configuration(conf), partitions, nodes, slurm.qualities(conf))


def partitions_of(cluster: Cluster, partitions: Mapping[str, Fields]) -> list[Fields]:
    """The partitions that a profile names, or the default one. Raises ValueError where there is none."""
    defaults = [name for name, fields in partitions.items() if fields.get("Default") == "YES"]
    names = cluster.partition.split(",") if cluster.partition else defaults
    every = ", ".join(sorted(partitions))
    require(bool(names), f"partition: cluster {cluster.name!r} has no default one; give one of: {every}.")
    for name in names:
        hint = nearest(name, partitions, every=True)
        require(name in partitions, f"partition: there is no {name!r} on cluster {cluster.name!r}. {hint}")
    return [partitions[name] for name in names]


def limit_problems(cluster: Cluster, partition: Fields, site: Site) -> Iterator[str]:
    """Why a partition would not start a job, however long one waits."""
    name, state = partition["PartitionName"], partition.get("State", "UP")
    flags = site.qualities.get(cluster.qos or "", {}).get("Flags", "").split(",")
    if state != "UP":
        yield f"partition: {name} is {state}, not UP; give another, or try again later."
    if "PartitionTimeLimit" not in flags:
        yield from time_problems(cluster, "MaxTime", partition.get("MaxTime", "UNLIMITED"), f"partition {name}")
    for quality in limiting_qualities(cluster, partition, site):
        yield from time_problems(cluster, "MaxWall", quality["MaxWall"], f"QOS {quality['Name']}")
    yield from size_problems(cluster.nodes, partition, flags)
    yield from access_problems(cluster, partition)


def time_problems(cluster: Cluster, limit: str, value: str, owner: str) -> Iterator[str]:
    """Whether one attempt is longer than a limit."""
    most_s = slurm.duration_s(value)
    if 60 * math.ceil(60 * cluster.hours) > most_s:
        most = math.floor(most_s / 36) / 100
        yield f"hours: {cluster.hours:g} is more than {limit}={value} of {owner}; give --hours {most:g} or less."


def limiting_qualities(cluster: Cluster, partition: Fields, site: Site) -> list[Fields]:
    """The quality of service that limits the time of a job, if one does: the partition's goes before the job's, unless
    that says otherwise."""
    if "limits" not in site.config.get("AccountingStorageEnforce", "").split(","):
        return []
    names = [partition.get("QoS", ""), cluster.qos or ""]
    if "OverPartQOS" in site.qualities.get(names[1], {}).get("Flags", ""):
        names.reverse()
    found = [site.qualities[name] for name in names if name in site.qualities]
    return [quality for quality in found if quality["MaxWall"]][:1]


def size_problems(nodes: int, partition: Fields, flags: Sequence[str]) -> Iterator[str]:
    """Whether a partition gives a job so many nodes; `flags` of its quality of service may lift limits."""
    for limit in ("TotalNodes", "MaxNodes", "MinNodes"):
        value, told = partition.get(limit, ""), f"of partition {partition['PartitionName']}"
        if not value.isdigit() or f"Partition{limit}" in flags:
            continue
        if limit == "MinNodes" and nodes < int(value):
            yield f"nodes: {nodes} is fewer than {limit}={value} {told}; give more."
        if limit != "MinNodes" and nodes > int(value):
            yield f"nodes: {nodes} is more than {limit}={value} {told}; give fewer."


def access_problems(cluster: Cluster, partition: Fields) -> Iterator[str]:
    """Whether a partition takes the account and the quality of service. (Slurm itself refuses wrong groups.)"""
    for key, what, value in (("account", "Accounts", cluster.account), ("qos", "Qos", cluster.qos)):
        allowed, denied = partition.get(f"Allow{what}", "ALL"), partition.get(f"Deny{what}", "")
        told = f"of partition {partition['PartitionName']}"
        if value and allowed != "ALL" and value not in allowed.split(","):
            yield f"{key}: {value!r} is not in Allow{what}={allowed} {told}; give one that is."
        if value and value in denied.split(","):
            yield f"{key}: {value!r} is in Deny{what}={denied} {told}; give another."


def check_sweep(num_runs: int, config: Fields) -> None:
    """Raise ValueError for more runs than Slurm takes as one array."""
    most = int(config.get("MaxArraySize", "1001"))
    told = f"{num_runs} runs are more than MaxArraySize={most} of this cluster"
    require(num_runs == 1 or num_runs <= most, f"{told}; give fewer values, in several sweeps.")


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


# Nodes


def node_problems(cluster: Cluster, partition: Fields, nodes: Mapping[str, Fields]) -> Iterator[str]:
    """What the nodes of a partition have too little of."""
    name, asked = partition["PartitionName"], needs(cluster)
    having = [resources(node, cluster.gpu_type) for node in nodes_in(partition, nodes)]
    for thing, amount in asked.items():
        most = max((resource[thing] for resource in having), default=0)
        if amount > most:
            told = f"{amount:g} {thing}, but a node of partition {name} has at most {most:g}"
            yield f"{ASKED[thing]}: {told}; give less."
    fitting = sum(all(resource[thing] >= asked[thing] for thing in asked) for resource in having)
    if 0 < fitting < min(cluster.nodes, len(having)):
        told = ", ".join(f"{amount:g} {thing}" for thing, amount in asked.items() if amount)
        yield f"nodes: {cluster.nodes}, but partition {name} has only {fitting} with {told}; give fewer."


def needs(cluster: Cluster) -> dict[str, float]:
    """What a job takes of each node."""
    memory_gb = cluster.memory_gb_per_task or 0
    amounts = (cluster.cpus_per_task * cluster.tasks_on_node, memory_gb * cluster.tasks_on_node, cluster.gpus_per_node)
    return dict(zip(ASKED, amounts, strict=True))


def resources(node: Fields, gpu_type: str | None) -> dict[str, float]:
    """What a node has."""
    cores = int(node.get("CPUEfctv") or node.get("CPUTot") or 0)
    amounts = (cores, int(node.get("RealMemory", 0)) / 1024, num_gpus(node.get("Gres", ""), gpu_type))
    return dict(zip(ASKED, amounts, strict=True))


def num_gpus(gres: str, gpu_type: str | None) -> int:
    """GPUs in a list of generic resources, such as `gpu:a100:4(S:0-1),nvme:1`; of one type, if given."""
    parts = [part.split(":") for part in re.sub(r"\(.*?\)", "", gres).split(",")]
    gpus = [part for part in parts if part[0] == "gpu" and (gpu_type is None or gpu_type in part[1:2])]
    return sum(int(part[-1]) if part[-1].isdigit() else 1 for part in gpus)


def nodes_in(partition: Fields, nodes: Mapping[str, Fields]) -> list[Fields]:
    """The nodes of a partition."""
    return [node for node in nodes.values() if partition["PartitionName"] in places_of(node)]


def places_of(node: Fields) -> list[str]:
    """The partitions that a node belongs to."""
    return node.get("Partitions", "").split(",")


def is_away(node: Fields) -> bool:
    """Whether a node cannot be given a job now."""
    state, *flags = node.get("State", "").split("+")
    return state.startswith("DOWN") or state.endswith("*") or bool({"DRAIN", "FAIL", "NOT_RESPONDING"} & {*flags})


# What `doctor` says of Slurm


def examine_slurm(cluster: Cluster) -> Iterator[Finding]:
    """All of a Slurm cluster that can be seen without a job. Raises ValueError where it does not answer."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    require(not missing, f"there is no {', '.join(missing)} here; go to a login node of the cluster, or extend PATH.")
    site = look(cluster)
    yield right(f"Slurm {site.config.get('SLURM_VERSION', '?')} answers; it calls itself {site.config['ClusterName']}")
    yield from environment_findings(os.environ, cluster)
    for partition in partitions_of(cluster, site.partitions):
        yield from partition_findings(cluster, partition, site)
        yield preemption_of(cluster, partition, site)
    yield from restart_findings(site.config)
    yield from further_findings(site.config)
    done = slurm.run(cluster.slurm_conf, "sacct", "--noheader", "--allocations")
    yield accounting_finding(site.config, answers=done.returncode == 0)
    yield right(when_it_starts(example(cluster, Path.cwd()), "a job of this profile"))


def example(cluster: Cluster, folder: Path) -> Submission:
    """A job of this profile that is not meant to train."""
    return Submission(cluster, (("train",),), (folder / "doctor",), folder, folder)


def partition_findings(cluster: Cluster, partition: Fields, site: Site) -> Iterator[Finding]:
    """Whether a partition can have such a job."""
    name, nodes = partition["PartitionName"], nodes_in(partition, site.nodes)
    problems = [*limit_problems(cluster, partition, site), *node_problems(cluster, partition, site.nodes)]
    limits = f"MaxTime={partition.get('MaxTime')}, MaxNodes={partition.get('MaxNodes')}"
    asked = f"{plural(cluster.nodes, 'node')} for {cluster.hours:g} h"
    fine = right(f"partition {name}: {describe(nodes)}; {limits}; the profile asks for {asked}")
    yield from map(wrong, problems) if problems else [fine]
    here = sum(not is_away(node) for node in nodes)
    if here < cluster.nodes <= len(nodes):
        yield note(f"partition {name}: only {here} of {len(nodes)} nodes can be used now; a job waits for the others")
    allowed = partition.get("AllowAccounts", "ALL")
    if allowed != "ALL" and not cluster.account:
        yield note(f"partition {name}: AllowAccounts={allowed}, and the profile has no account; give one, if need be")


def describe(nodes: Iterable[Fields]) -> str:
    """How many nodes there are, with what the largest has."""
    having = [resources(node, None) for node in nodes]
    most = {thing: max((resource[thing] for resource in having), default=0) for thing in ASKED}
    return f"{plural(len(having), 'node')} of up to " + ", ".join(f"{round(most[thing])} {thing}" for thing in ASKED)


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


# Stopping and restarting


def preemption_of(cluster: Cluster, partition: Fields, site: Site) -> Finding:
    """How preemption takes back what runs in a partition."""
    tier = int(partition.get("PriorityTier", "1"))
    beside = {place for node in nodes_in(partition, site.nodes) for place in places_of(node)} & set(site.partitions)
    rivals = [name for name in sorted(beside) if int(site.partitions[name].get("PriorityTier", "1")) > tier]
    names = [name for name in (cluster.qos, partition.get("QoS"), "normal") if name and name in site.qualities]
    return preemption_finding(site.config, partition, rivals=rivals, quality=site.qualities[names[0]] if names else {})


def preemption_finding(config: Fields, partition: Fields, *, rivals: Sequence[str], quality: Fields) -> Finding:
    """What preemption does to a job of a partition.

    Args:
        rivals: partitions of a higher tier that share its nodes.
        quality: the quality of service of the job, as far as it is known.
    """
    name, kind = partition["PartitionName"], config.get("PreemptType", "preempt/none")
    if kind not in ("preempt/partition_prio", "preempt/qos"):
        return right(f"preemption: none (PreemptType={kind})")
    by_quality = kind == "preempt/qos"
    source, owner = (quality, f"QOS {quality.get('Name', '?')}") if by_quality else (partition, f"partition {name}")
    mode = preempt_mode(source.get("PreemptMode", ""), config.get("PreemptMode", "OFF"))
    if mode not in AFTER_PREEMPTION:
        return right(f"preemption: none in {owner} (PreemptMode={mode})")
    if not by_quality and not rivals:
        return right(f"preemption: none in {owner} (nothing on its nodes has a higher PriorityTier)")
    grace_s = slurm.duration_s(source.get("GraceTime") or "0")
    return AFTER_PREEMPTION[mode](Notice(owner, grace_s, duration(config, "KillWait", 30), has_user_signal(config)))


def preempt_mode(own: str, default: str) -> str:
    """One word for a mode such as `GANG,SUSPEND`; the default where there is none of its own."""
    text = default if own.lower() in ("", "cluster") else own
    return next((mode for mode in AFTER_PREEMPTION if mode in text.upper().split(",")), "OFF")


def has_user_signal(config: Fields) -> bool:
    """Whether preemption warns by the signal that sbatch was told; both names of the setting count."""
    both = config.get("SlurmctldParameters", "") + config.get("PreemptParameters", "")
    return "send_user_signal" in both.lower()


def duration(config: Fields, name: str, default: float) -> float:
    """Seconds of a setting."""
    return slurm.duration_s(config.get(name) or str(default))


@dataclass(frozen=True)
class Notice:
    """How long a job has that is preempted, by whose setting, and which signal tells it."""

    owner: str
    grace_s: float
    kill_wait_s: float
    user_signal: bool

    def __str__(self) -> str:
        name = "SIGUSR2" if self.user_signal else "SIGTERM"
        setting = f"preempt_send_user_signal is {'' if self.user_signal else 'not '}set; both signals are heeded"
        if not self.grace_s:
            return f"tells jobs by SIGTERM, only KillWait={self.kill_wait_s:g} s ahead (GraceTime=0 of {self.owner})"
        return f"tells jobs by {name} ({setting}), GraceTime={self.grace_s:g} s of {self.owner} ahead"


def after_requeue(notice: Notice) -> Finding:
    """Slurm starts a preempted job again."""
    told = f"preemption (PreemptMode=REQUEUE) {notice}; they save in that time, and start again"
    lost = "a save that takes longer is lost, at most checkpoint_minutes of work"
    return graded(notice.grace_s >= SHORT_SAVE_S, told, f"{lost}; a longer GraceTime would leave time")


def after_cancel(notice: Notice) -> Finding:
    """Slurm ends a preempted job for good."""
    told = f"preemption (PreemptMode=CANCEL) {notice}, and Slurm does not start them again; in that time they save and"
    late = "one that takes longer stays ended, until `deeplense resume RUN`; PreemptMode=REQUEUE would start it again"
    return note(f"{told} ask for another attempt themselves; {late}")


def after_suspend(notice: Notice) -> Finding:
    """Slurm freezes a preempted job."""
    told = f"preemption (PreemptMode=SUSPEND of {notice.owner}): jobs get no signal, save nothing, and stand still"
    hang = "a pause longer than hang_minutes counts as a crash, so give --hang_minutes 0"
    return note(f"{told} in memory until the nodes are free; {hang}; PreemptMode=REQUEUE would let them save and go")


AFTER_PREEMPTION = {"REQUEUE": after_requeue, "CANCEL": after_cancel, "SUSPEND": after_suspend}
"""What follows from each mode of preemption."""


def restart_findings(config: Fields) -> Iterator[Finding]:
    """What decides over stopping and restarting beside preemption."""
    wait_s = duration(config, "KillWait", 30)
    told = f"KillWait={wait_s:g} s is the time to save of a job that is cancelled"
    yield graded(wait_s >= SHORT_SAVE_S, told, "a longer save is lost, at most checkpoint_minutes of work; 30 is usual")
    asked = "only jobs that ask for it start again, and `deeplense submit` asks (--requeue)"
    can = asked if config.get("JobRequeue") == "0" else "jobs may start again"
    yield right(f"JobRequeue={config.get('JobRequeue', '1')}: {can}")
    yield wait_finding(config.get("AuthInfo", ""))
    yield loss_finding(duration(config, "SlurmdTimeout", 300))


def wait_finding(text: str) -> Finding:
    """How long a job waits that starts again, from the setting AuthInfo."""
    found = re.search(r"cred_expire=(\d+)", text)
    seconds = int(found[1]) if found else 120
    told = f"cred_expire={seconds}{'' if found else ' (the default)'}: a requeued job waits {seconds + 1} s at least"
    return graded(seconds <= 120, told, "120 in AuthInfo is usual")


def loss_finding(timeout_s: float) -> Finding:
    """How long until a lost node is noticed."""
    told = f"SlurmdTimeout={timeout_s:g} s: a lost node is noticed after about that time, and its jobs start again"
    never = "SlurmdTimeout=0: a lost node is never noticed, and a run stands still until its hang_minutes are over"
    return (
        note(f"{never}; 300 is usual") if not timeout_s else graded(timeout_s <= LONG_TIMEOUT_S, told, "300 is usual")
    )


def further_findings(config: Fields) -> Iterator[Finding]:
    """Limits on sweeps and on jobs, and how thoroughly processes are ended."""
    if config.get("EnforcePartLimits", "NO") == "NO":
        told = "Slurm takes jobs over its limits and never starts them; `deeplense submit` refuses them"
        yield right(f"EnforcePartLimits=NO: {told}")
    sizes = {name: int(config.get(name, default)) for name, default in (("MaxArraySize", 1001), ("MaxJobCount", 10000))}
    most, told = max(min(sizes.values()), 1), ", ".join(f"{name}={size}" for name, size in sizes.items())
    yield graded(most > 1, f"{told}: a sweep may have {plural(most, 'run')}", "submit runs one by one")
    tracking = config.get("ProctrackType", "proctrack/cgroup")
    if tracking in ("proctrack/linuxproc", "proctrack/pgid"):
        told = "a process that left its parent may outlive its job; proctrack/cgroup would end it"
        yield note(f"ProctrackType={tracking}: {told}")


def accounting_finding(config: Fields, *, answers: bool) -> Finding:
    """Whether the past of a job can be asked for."""
    kind = config.get("AccountingStorageType", "(null)")
    if answers:
        return right(f"sacct answers ({kind}): it tells why an attempt ended that could not tell it itself")
    told = "why an attempt ended that could not tell it itself is concluded from scontrol; nothing else is lost"
    return note(f"sacct does not answer (AccountingStorageType={kind}): {told}")


# What is on this machine


def examine_machine(cluster: Cluster) -> Iterator[Finding]:
    """What this machine has, for jobs that run on it."""
    cores, asked = num_cores(), cluster.tasks * cluster.cpus_per_task
    told = f"{plural(cores, 'core')} here, {asked} asked for (tasks_per_node * cpus_per_task)"
    yield graded(asked <= cores, told, "the processes take turns, and are slow")
    problems = [*machine_problems(cluster)]
    yield from map(wrong, problems) if problems else [right(f"{plural(num_gpus_here(), 'GPU')} here")]
    version = version_of("submitit")
    yield right(f"submitit {version}") if version else wrong("there is no submitit here; `pip install submitit`.")


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


def image_findings(cluster: Cluster) -> Iterator[Finding]:
    """Whether the image can be read, and its Python runs here."""
    problems = [*image_problems(cluster)]
    yield from map(wrong, problems)
    if cluster.image and not problems:
        yield try_image(cluster)


def try_image(cluster: Cluster) -> Finding:
    """Whether Python runs in the image on this machine, which may lack the fast folder of the nodes."""
    words = shlex.split(python_command(example(replace(cluster, node_local=None), Path.cwd())))
    told = f"image: {cluster.image} by `{cluster.apptainer}`"
    if not shutil.which(words[0]):
        return note(f"{told}: no {words[0]} is here; --run_job tries it on the nodes")
    try:
        done = subprocess.run([*words, "-c", ""], capture_output=True, text=True, timeout=slurm.TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return wrong(f"{told}: {words[-1]} does not start in {slurm.TIMEOUT_S} s; try it by hand.")
    bad = f"{words[-1]} does not run there; correct `image` or `apptainer`. It says: {one_line(done.stderr)}"
    return wrong(f"{told}: {bad}") if done.returncode else right(f"{told}: {words[-1]} runs there")


def folder_findings(cluster: Cluster) -> Iterator[Finding]:
    """Room in the folders that this machine sees."""
    if cluster.scratch and not os.path.isdir(cluster.scratch):
        yield wrong(f"scratch: there is no folder {cluster.scratch}; make it, or correct the path.")
    for name, folder in (("scratch", cluster.scratch), ("current folder", str(Path.cwd()))):
        if folder and os.path.isdir(folder):
            yield room_finding(f"{name} {folder}", shutil.disk_usage(folder).free / GB)


def room_finding(what: str, free_gb: float | None) -> Finding:
    """Whether a folder is there, with room for checkpoints."""
    if free_gb is None:
        return wrong(f"{what}: it is not there; make it, or correct the path.")
    return graded(free_gb >= SCARCE_GB, f"{what}: {free_gb:.1f} GB free", "checkpoints may not find room")


# A job that looks at the nodes

START_S, LATE_S = 60.0, 10.0
LIMIT_MINUTES = 5
NODE_SAYS = "deeplense-node: "
LOOK = """
import json, os, shutil, sys
def free(path):
    return shutil.disk_usage(path).free / 1024**3 if path and os.path.isdir(path) else None
def version(name):
    try:
        return __import__(name).__version__
    except Exception as error:
        return f"{type(error).__name__}: {error}"
told = {"node": os.environ["SLURMD_NODENAME"], "sees": os.path.exists(sys.argv[1]), "python": sys.version.split()[0]}
told["free"] = {name: free(os.environ.get(name)) for name in ("DEEPLENSE_SCRATCH", "DEEPLENSE_NODE_LOCAL")}
told["packages"] = {name: version(name) for name in ("torch", "submitit")}
torch = sys.modules.get("torch")
told["gpus"] = torch.cuda.device_count() if hasattr(torch, "cuda") else 0
print(sys.argv[2] + json.dumps(told), flush=True)
"""


def probe(cluster: Cluster) -> Iterator[Finding]:
    """What a small job finds on the nodes. Raises ValueError where Slurm does not take it."""
    with tempfile.TemporaryDirectory(prefix=".deeplense-doctor-", dir=Path.cwd(), ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "job.sh").write_text(probe_script(cluster, folder))
        job_id = send_probe(cluster, folder)
        try:
            yield requeue_finding(slurm.ask(cluster.slurm_conf, "scontrol", "show", "job", "--oneliner", job_id))
            if waits := wait_for_probe(cluster.slurm_conf, job_id):
                yield note(f"a small job is {waits}, and was taken back; of the nodes nothing is known")
            else:
                yield from node_findings(cluster, *read_probe(folder / "log", cluster.nodes))
        finally:
            slurm.run(cluster.slurm_conf, "scancel", job_id)


def probe_script(cluster: Cluster, folder: Path) -> str:
    """A batch script that looks at each node as a job of this profile would see it."""
    submission = example(cluster, folder)
    options = [line for line in submitit_script(submission).splitlines() if line.startswith("#SBATCH ")]
    folders = {"DEEPLENSE_SCRATCH": cluster.scratch, "DEEPLENSE_NODE_LOCAL": cluster.node_local}
    exports = [f'export {name}="{value}"' for name, value in folders.items() if value]
    exports += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    tasks = f'--ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task={cluster.cpus_per_task}'
    words = shlex.join(["-c", LOOK, str(folder / "job.sh"), NODE_SAYS])
    srun = f"srun {tasks} --kill-on-bad-exit=0 {python_command(submission)} {words}"
    return "\n".join(["#!/bin/bash", *options, *exports, *cluster.setup, srun, ""])


def send_probe(cluster: Cluster, folder: Path) -> str:
    """Submit the job that looks at the nodes; returns its id."""
    minutes = min(LIMIT_MINUTES, math.ceil(60 * cluster.hours))
    options = ["--job-name=deeplense-doctor", f"--time={minutes}", f"--output={folder}/log", f"--error={folder}/log"]
    return slurm.ask(cluster.slurm_conf, "sbatch", "--parsable", *options, str(folder / "job.sh")).strip().split(";")[0]


def requeue_finding(job: str) -> Finding:
    """Whether Slurm has left a job its wish to be started again; `job` is what scontrol shows."""
    if parse_fields(job).get("Requeue") != "0":
        return right("a small job was taken, and may start again (Requeue=1)")
    told = "Slurm takes --requeue from jobs (Requeue=0, a rule of this site): what is preempted stays ended, until"
    return note(f"{told} `deeplense resume RUN`; ask the administrators")


def wait_for_probe(slurm_conf: str | None, job_id: str) -> str | None:
    """Wait until a small job has ended; returns what it does where it does not start, or end."""
    begun = time.monotonic()
    while job_id in (jobs := slurm.queued(slurm_conf)):
        state, reason = jobs[job_id]
        limit_s = START_S + 60 * LIMIT_MINUTES * (state not in ("PENDING", "CONFIGURING"))
        if time.monotonic() - begun > limit_s:
            return f"{state.lower()} ({reason}) after {limit_s:g} s"
        time.sleep(1)
    return None


def read_probe(log: Path, num_nodes: int) -> tuple[list[dict[str, Any]], str]:
    """What the nodes told, and the rest of the log; a shared file system may be some seconds late."""
    deadline = time.monotonic() + LATE_S
    while True:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        told = [json.loads(line.removeprefix(NODE_SAYS)) for line in lines if line.startswith(NODE_SAYS)]
        if len(told) >= num_nodes or time.monotonic() > deadline:
            return told, one_line(" ".join(line for line in lines if not line.startswith(NODE_SAYS)))
        time.sleep(1)


def node_findings(cluster: Cluster, told: Sequence[Mapping[str, Any]], log: str) -> Iterator[Finding]:
    """What nodes told, one line for all that say the same."""
    names: dict[Finding, list[str]] = {}
    for node in sorted(told, key=lambda node: node["node"]):
        for finding in findings_of_node(cluster, node):
            names.setdefault(finding, []).append(node["node"])
    yield from (Finding(finding.level, f"{','.join(nodes)}: {finding.text}") for finding, nodes in names.items())
    if len(told) < cluster.nodes:
        said = f"its log says: {log[-300:]}" if log else f"its log is not here, so they may not see {Path.cwd()}"
        yield wrong(f"{len(told)} of {plural(cluster.nodes, 'node')} answered a small job; {said}")


def findings_of_node(cluster: Cluster, told: Mapping[str, Any]) -> Iterator[Finding]:
    """What one node told."""
    here, packages = Path.cwd(), told["packages"]
    yield right(f"sees {here}") if told["sees"] else wrong(f"does not see {here}; go to a folder that all nodes see.")
    bad = {name: version for name, version in packages.items() if ": " in version}
    for name, why in bad.items():
        yield wrong(f"cannot import {name} ({why}); correct `python` or `image`, or install it there.")
    versions = [f"{name} {version}" for name, version in packages.items() if name not in bad]
    yield right(f"has {', '.join(['Python ' + told['python'], *versions])}")
    yield from gpu_findings(cluster.gpus_per_node, told["gpus"])
    for name, folder in (("scratch", cluster.scratch), ("node_local", cluster.node_local)):
        if folder:
            yield room_finding(f"{name} {folder}", told["free"][f"DEEPLENSE_{name.upper()}"])


def gpu_findings(asked: int, found: int) -> Iterator[Finding]:
    """Whether torch sees the GPUs that were asked for."""
    told = f"torch sees {found} of {plural(asked, 'GPU')}"
    if asked:
        yield right(told) if found >= asked else wrong(f"{told}; has it CUDA, and does the driver fit?")
