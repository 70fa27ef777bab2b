"""What is told of a cluster and of a job before it is submitted: from what Slurm says of itself, without one."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import config
from launch import checks, slurm
from launch.checks import (
    Finding,
    Site,
    accounting_finding,
    check_before_submission,
    check_job,
    check_slurm,
    check_sweep,
    collect,
    environment_findings,
    examine,
    folder_notes,
    further_findings,
    is_away,
    limit_problems,
    node_findings,
    node_problems,
    num_gpus,
    partition_findings,
    partitions_of,
    preemption_finding,
    preemption_of,
    probe_script,
    read_probe,
    requeue_finding,
    restart_findings,
    wait_for_probe,
)
from launch.clusters import Cluster
from launch.script import Submission

MINE = Cluster(name="mine", partition="low")
HERE = Cluster(name="here", executor="local")
LOW = {
    "PartitionName": "low",
    "AllowAccounts": "ALL",
    "AllowQos": "ALL",
    "Default": "YES",
    "QoS": "N/A",
    "GraceTime": "60",
    "MaxNodes": "UNLIMITED",
    "MaxTime": "2-00:00:00",
    "MinNodes": "0",
    "Nodes": "node[1-4]",
    "PreemptMode": "REQUEUE",
    "PriorityTier": "1",
    "State": "UP",
    "TotalNodes": "4",
}
HIGH = LOW | {"PartitionName": "high", "Default": "NO", "PreemptMode": "OFF", "PriorityTier": "10"}
NODE = {"CPUTot": "8", "RealMemory": "16000", "Gres": "gpu:a100:2(S:0-1)", "Partitions": "low,high", "State": "IDLE"}
SETTINGS = {
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "CANCEL",
    "KillWait": "30 sec",
    "ClusterName": "big",
}
BY_QUALITY = {"PreemptType": "preempt/qos"}
LIMITS = {"AccountingStorageEnforce": "associations,limits,qos"}
SHORT = {"Name": "short", "Flags": "", "GraceTime": "00:02:00", "PreemptMode": "cluster", "MaxWall": "01:00:00"}
NODES = {f"node{k}": NODE for k in range(1, 5)}
SITE = Site(SETTINGS, {"low": LOW, "high": HIGH}, NODES, {"short": SHORT})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    """A program of this name in a folder, by a script."""
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def make_dataset(folder: Path, *splits: str) -> Path:
    """What is seen of a data set without opening it."""
    for split in splits:
        (folder / split).mkdir(parents=True)
        (folder / split / "manifest.json").write_text("{}")
    return folder


def submitting(command: str, cluster: Cluster, home: Path = Path("/scratch/run")) -> Submission:
    """A command, submitted."""
    return Submission(cluster, (tuple(command.split()),), (home,), home / "logs", home / "code")


# Preemption


PREEMPTION = [
    ({"PreemptType": "preempt/none"}, {}, {}, ["high"], "right", ["none", "PreemptType=preempt/none"]),
    ({"PreemptType": "(null)"}, {}, {}, ["high"], "right", ["none", "PreemptType=(null)"]),
    ({}, {"PreemptMode": "OFF"}, {}, ["high"], "right", ["none", "partition low", "PreemptMode=OFF"]),
    ({}, {}, {}, [], "right", ["none", "PriorityTier"]),
    ({}, {}, {}, ["high"], "right", ["REQUEUE", "SIGTERM", "preempt_send_user_signal is not set", "GraceTime=60 s"]),
    ({}, {"GraceTime": "9"}, {}, ["high"], "note", ["GraceTime=9 s", "checkpoint_minutes", "longer GraceTime"]),
    ({}, {"GraceTime": "0"}, {}, ["high"], "note", ["GraceTime=0 of partition low", "KillWait=30 s", "SIGTERM"]),
    ({}, {"PreemptMode": "CANCEL"}, {}, ["high"], "note", ["CANCEL", "does not start them again", "deeplense resume"]),
    ({}, {"PreemptMode": "GANG,SUSPEND"}, {}, ["high"], "note", ["SUSPEND of partition low", "--hang_minutes 0"]),
    ({}, {"PreemptMode": "GANG"}, {}, ["high"], "right", ["none"]),
    ({}, {"PreemptMode": "WITHIN,REQUEUE"}, {}, ["high"], "right", ["REQUEUE"]),
    (
        {"SlurmctldParameters": "idle_on_node_suspend,preempt_send_user_signal"},
        {},
        {},
        ["high"],
        "right",
        ["SIGUSR2", "preempt_send_user_signal is set"],
    ),
    ({"PreemptParameters": "send_user_signal"}, {}, {}, ["high"], "right", ["SIGUSR2"]),
    ({"SlurmctldParameters": "preempt_send_user_signal"}, {"GraceTime": "0"}, {}, ["high"], "note", ["by SIGTERM"]),
    (BY_QUALITY, {}, SHORT, [], "note", ["CANCEL", "GraceTime=120 s of QOS short"]),
    (BY_QUALITY, {}, SHORT | {"PreemptMode": "requeue"}, [], "right", ["REQUEUE", "GraceTime=120 s of QOS short"]),
    (BY_QUALITY | {"PreemptMode": "OFF"}, {}, SHORT, [], "right", ["none in QOS short"]),
    (BY_QUALITY, {}, {}, [], "note", ["CANCEL", "GraceTime=0"]),
]


@pytest.mark.parametrize(("settings", "partition", "quality", "rivals", "level", "words"), PREEMPTION)
def test_what_preemption_does_follows_from_the_settings(
    settings: dict[str, str],
    partition: dict[str, str],
    quality: dict[str, str],
    rivals: list[str],
    level: str,
    words: list[str],
) -> None:
    finding = preemption_finding(SETTINGS | settings, LOW | partition, rivals=rivals, quality=quality)
    assert finding.level == level
    assert [word for word in words if word not in finding.text] == []


def test_only_partitions_of_a_higher_tier_on_the_same_nodes_preempt() -> None:
    elsewhere = {name: node | {"Partitions": "low"} for name, node in NODES.items()}
    assert "REQUEUE" in preemption_of(MINE, LOW, SITE).text
    assert "none" in preemption_of(MINE, LOW | {"PriorityTier": "10"}, SITE).text
    assert "none" in preemption_of(MINE, LOW, replace(SITE, nodes=elsewhere)).text


@pytest.mark.parametrize(("qos", "seconds"), [("short", 120), (None, 7)])
def test_the_quality_of_service_of_the_profile_decides_and_else_normal(qos: str | None, seconds: int) -> None:
    normal = SHORT | {"Name": "normal", "GraceTime": "00:00:07", "PreemptMode": "requeue"}
    site = replace(SITE, config=SETTINGS | BY_QUALITY, qualities={"short": SHORT, "normal": normal})
    assert f"GraceTime={seconds} s" in preemption_of(replace(MINE, qos=qos), LOW, site).text


@pytest.mark.parametrize(
    ("setting", "value", "level", "words"),
    [
        ("KillWait", "30 sec", "right", "KillWait=30 s"),
        ("KillWait", "5 sec", "note", "checkpoint_minutes"),
        ("JobRequeue", "1", "right", "JobRequeue=1"),
        ("JobRequeue", "0", "right", "--requeue"),
        ("AuthInfo", "(null)", "right", "cred_expire=120 (the default): a requeued job waits 121 s"),
        ("AuthInfo", "socket=/run/munge.socket,cred_expire=10", "right", "cred_expire=10: a requeued job waits 11 s"),
        ("AuthInfo", "cred_expire=600", "note", "601 s"),
        ("SlurmdTimeout", "300 sec", "right", "SlurmdTimeout=300 s"),
        ("SlurmdTimeout", "3600 sec", "note", "SlurmdTimeout=3600 s"),
        ("SlurmdTimeout", "0 sec", "note", "never noticed"),
    ],
)
def test_what_decides_over_restarts_is_told_with_its_setting(setting: str, value: str, level: str, words: str) -> None:
    found = [finding for finding in restart_findings({setting: value}) if words in finding.text]
    assert [finding.level for finding in found] == [level]


def test_settings_beside_restarts_are_told() -> None:
    def told(**settings: str) -> list[tuple[str, str]]:
        return [(finding.level, finding.text.split(":")[0]) for finding in further_findings(settings)]

    cgroup = "proctrack/cgroup"
    assert told(EnforcePartLimits="ALL", ProctrackType=cgroup) == [("right", "MaxArraySize=1001, MaxJobCount=10000")]
    assert ("right", "EnforcePartLimits=NO") in told(EnforcePartLimits="NO")
    assert ("note", "ProctrackType=proctrack/linuxproc") in told(ProctrackType="proctrack/linuxproc")
    assert ("note", "MaxArraySize=0, MaxJobCount=10000") in told(MaxArraySize="0")


def test_accounting_that_does_not_answer_is_a_note() -> None:
    none = {"AccountingStorageType": "accounting_storage/none"}
    assert accounting_finding(none, answers=False).level == "note"
    assert accounting_finding({"AccountingStorageType": "accounting_storage/slurmdbd"}, answers=True).level == "right"


# Limits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30 sec", 30),
        ("2 min", 120),
        ("15", 15),
        ("00:00:30", 30),
        ("01:30:00", 5400),
        ("1-00:00:00", 86400),
        ("UNLIMITED", float("inf")),
        ("INFINITE", float("inf")),
        ("(null)", float("inf")),
    ],
)
def test_times_are_read_as_slurm_writes_them(text: str, seconds: float) -> None:
    assert slurm.duration_s(text) == seconds


PROBLEMS: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"hours": 48.0}, {}, ""),
    ({"hours": 48.001}, {}, "hours: 48.001 is more than MaxTime=2-00:00:00 of partition low; give --hours 48 or less."),
    ({"hours": 1.0}, {"MaxTime": "00:20:00"}, "give --hours 0.33 or less"),
    ({"hours": 1000.0}, {"MaxTime": "UNLIMITED"}, ""),
    ({"nodes": 4}, {}, ""),
    ({"nodes": 5}, {}, "nodes: 5 is more than TotalNodes=4 of partition low; give fewer."),
    ({"nodes": 2}, {"MaxNodes": "1"}, "nodes: 2 is more than MaxNodes=1"),
    ({"nodes": 1}, {"MinNodes": "2"}, "nodes: 1 is fewer than MinNodes=2"),
    ({}, {"State": "DOWN"}, "partition: low is DOWN, not UP"),
    ({"account": "ab"}, {"AllowAccounts": "xy,ab"}, ""),
    ({"account": "ab"}, {"AllowAccounts": "xy"}, "account: 'ab' is not in AllowAccounts=xy of partition low"),
    ({"account": "ab"}, {"DenyAccounts": "ab"}, "account: 'ab' is in DenyAccounts=ab"),
    ({"qos": "long"}, {"AllowQos": "short"}, "qos: 'long' is not in AllowQos=short"),
    ({}, {"AllowAccounts": "xy", "AllowQos": "short"}, ""),
    ({"qos": "short", "hours": 2.0}, {}, "hours: 2 is more than MaxWall=01:00:00 of QOS short; give --hours 1 or less"),
    ({"hours": 2.0}, {"QoS": "short"}, "MaxWall=01:00:00 of QOS short"),
]


@pytest.mark.parametrize(("profile", "partition", "problem"), PROBLEMS)
def test_a_job_over_a_limit_is_told_which_one_and_what_to_give(
    profile: dict[str, Any], partition: dict[str, str], problem: str
) -> None:
    site = replace(SITE, config=SETTINGS | LIMITS)
    found = list(limit_problems(MINE.override(**profile), LOW | partition, site))
    assert (not found) if not problem else len(found) == 1 and problem in found[0]


def test_a_quality_of_service_counts_only_where_limits_are_enforced_and_may_lift_those_of_the_partition() -> None:
    asked = MINE.override(qos="short", hours=2.0)
    assert list(limit_problems(asked, LOW, SITE)) == []
    lifting = replace(SITE, qualities={"short": SHORT | {"Flags": "PartitionTimeLimit,PartitionMaxNodes"}})
    assert list(limit_problems(asked.override(hours=100.0, nodes=2), LOW | {"MaxNodes": "1"}, lifting)) == []


def test_the_partitions_quality_of_service_goes_first_unless_the_jobs_says_otherwise() -> None:
    def told(flags: str) -> str:
        site = replace(
            SITE,
            config=SETTINGS | LIMITS,
            qualities={"short": SHORT | {"Flags": flags}, "part": SHORT | {"Name": "part", "MaxWall": "00:30:00"}},
        )
        (problem,) = limit_problems(MINE.override(qos="short", hours=2.0), LOW | {"QoS": "part"}, site)
        return problem

    assert "QOS part" in told("")
    assert "QOS short" in told("OverPartQOS")


def test_a_partition_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(
        ValueError, match=r"there is no 'lo' on cluster 'mine'\. Did you mean low\? There are: high, low"
    ):
        partitions_of(replace(MINE, partition="lo"), SITE.partitions)
    assert partitions_of(replace(MINE, partition=None), SITE.partitions) == [LOW]
    assert partitions_of(replace(MINE, partition="high,low"), SITE.partitions) == [HIGH, LOW]
    with pytest.raises(ValueError, match="has no default one; give one of: high"):
        partitions_of(replace(MINE, partition=None), {"high": HIGH})


def test_a_sweep_may_have_as_many_runs_as_an_array() -> None:
    check_sweep(1001, {"MaxArraySize": "1001"})
    check_sweep(1, {"MaxArraySize": "0"})
    with pytest.raises(ValueError, match=r"1002 runs are more than MaxArraySize=1001"):
        check_sweep(1002, {"MaxArraySize": "1001"})


# Nodes


@pytest.mark.parametrize(
    ("gres", "gpu_type", "count"),
    [
        ("(null)", None, 0),
        ("", None, 0),
        ("gpu:4", None, 4),
        ("gpu:4", "a100", 0),
        ("gpu:a100:4(S:0-1)", None, 4),
        ("gpu:a100:4(S:0,1)", "a100", 4),
        ("gpu:a100:2,gpu:h100:4,nvme:8", None, 6),
        ("gpu:a100:2,gpu:h100:4,nvme:8", "h100", 4),
        ("nvme:1,gpu", None, 1),
    ],
)
def test_gpus_of_a_node_are_counted_by_type(gres: str, gpu_type: str | None, count: int) -> None:
    assert num_gpus(gres, gpu_type) == count


@pytest.mark.parametrize(
    ("profile", "problem"),
    [
        ({"nodes": 4, "gpus_per_node": 2, "cpus_per_task": 4, "memory_gb_per_task": 7.5}, ""),
        ({"gpus_per_node": 4}, "gpus_per_node: 4 GPUs, but a node of partition low has at most 2; give less."),
        ({"gpus_per_node": 1, "gpu_type": "h100"}, "has at most 0"),
        ({"tasks_per_node": 3, "cpus_per_task": 3}, "tasks_per_node * cpus_per_task: 9 cores"),
        ({"memory_gb_per_task": 16.0}, "tasks_per_node * memory_gb_per_task: 16 GB of memory"),
        ({"nodes": 2, "cpus_per_task": 5}, "nodes: 2, but partition low has only 1 with 5 cores; give fewer."),
    ],
)
def test_nodes_that_have_too_little_are_told(profile: dict[str, Any], problem: str) -> None:
    small = {f"small{k}": NODE | {"CPUTot": "4"} for k in range(3)} if "5 cores" in problem else {}
    nodes = {"node1": NODE, "other": NODE | {"Partitions": "high", "CPUTot": "99"}} | (small or NODES)
    found = list(node_problems(MINE.override(**profile), LOW, nodes))
    assert (not found) if not problem else problem in found[0]


@pytest.mark.parametrize(
    ("state", "away"),
    [
        ("IDLE", False),
        ("MIXED+PLANNED", False),
        ("IDLE+CLOUD+POWERED_DOWN", False),
        ("IDLE+DRAIN", True),
        ("DOWN*", True),
        ("DOWN+NOT_RESPONDING", True),
        ("IDLE*", True),
    ],
)
def test_a_node_that_is_down_or_drained_is_away(state: str, away: bool) -> None:
    assert is_away({"State": state}) == away


def test_a_partition_is_described_and_nodes_that_are_away_are_told() -> None:
    (fine,) = partition_findings(MINE, LOW, SITE)
    assert fine.level == "right"
    assert "4 nodes of up to 8 cores, 16 GB of memory, 2 GPUs; MaxTime=2-00:00:00" in fine.text
    down = replace(SITE, nodes=NODES | {f"node{k}": NODE | {"State": "DOWN*"} for k in (1, 2, 3)})
    findings = list(partition_findings(MINE.override(nodes=2), LOW | {"AllowAccounts": "xy"}, down))
    assert [finding.level for finding in findings] == ["right", "note", "note"]
    assert "only 1 of 4 nodes" in findings[1].text
    assert "AllowAccounts=xy" in findings[2].text


# The environment


def test_variables_that_win_over_the_script_are_told_and_those_that_defeat_it_refused() -> None:
    def levels(**environment: str) -> list[str]:
        return [finding.level for finding in environment_findings(environment, MINE.override(hours=2.0))]

    assert levels(PATH="/bin", SLURM_CONF="/x", SBATCH_DEBUG="1", SBATCH_ACCOUNT="a", SBATCH_PARTITION="low") == []
    assert levels(SBATCH_PARTITION="high") == ["note"]
    assert levels(SBATCH_TIMELIMIT="10") == ["note"]
    assert levels(SBATCH_NO_REQUEUE="1", SBATCH_SIGNAL="USR1") == ["wrong", "wrong"]


# The job


@pytest.mark.parametrize(
    ("profile", "settings", "problem"),
    [
        ({"nodes": 2, "tasks_per_node": 4}, "--batch_size 64", ""),
        (
            {"nodes": 2, "tasks_per_node": 4},
            "--batch_size 100",
            "100 does not divide among 8 ranks; use a multiple of 8.",
        ),
        ({"gpus_per_node": 3}, "--batch_size 64", "64 does not divide among 3 ranks; use a multiple of 3."),
        (
            {"tasks_per_node": 2},
            "--batch_size 6 --gradient_accumulation 2",
            "among 2 ranks of 2 pieces; use a multiple of 4.",
        ),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_in_the_words_of_the_job(
    profile: dict[str, Any], settings: str, problem: str, here: Path
) -> None:
    from jobs.training_run import check_batch

    make_dataset(here / "ds", "train", "test")
    cluster, command = MINE.override(**profile), f"train --run r --dataset ds {settings}".split()
    if not problem:
        check_job(command, cluster)
        return
    with pytest.raises(ValueError, match="does not divide") as ours:
        check_job(command, cluster)
    with pytest.raises(ValueError, match="does not divide") as theirs:
        check_batch(config.parse("train", command[1:]), [0] * 1000, cluster.tasks)  # type: ignore[arg-type]
    assert str(ours.value) == str(theirs.value)
    assert problem in str(ours.value)


def test_a_data_set_that_is_missing_is_refused_in_the_words_of_the_job(here: Path) -> None:
    from jobs.experiment import find_dataset

    with pytest.raises(ValueError, match="there is no data set 'ds'") as ours:
        check_job(["train", "--run", "r", "--dataset", "ds"], MINE)
    with pytest.raises(ValueError, match="there is no data set") as theirs:
        find_dataset("ds", Path("datasets"))
    assert str(ours.value) == str(theirs.value)


def test_a_data_set_may_be_a_folder_or_a_name_below_the_root_and_needs_a_split_to_learn_from(here: Path) -> None:
    make_dataset(here / "datasets" / "named", "train")
    make_dataset(here / "there", "train")
    make_dataset(here / "tests only", "test")
    for dataset in ("named", "there", str(here / "there")):
        check_job(["train", "--run", "r", "--dataset", dataset], MINE)
    with pytest.raises(ValueError, match=r"has no split 'train'; it has test\."):
        check_job(["train", "--run", "r", "--dataset", "tests only"], MINE)
    with pytest.raises(ValueError, match="neither as a folder nor below data_root=elsewhere"):
        check_job(["train", "--run", "r", "--dataset", "named", "--data_root", "elsewhere"], MINE)


def test_what_another_job_will_have_made_need_not_be_there_yet(here: Path) -> None:
    check_job(["train", "--run", "r", "--dataset", "ds"], MINE.override(sbatch={"dependency": "afterok:7"}))


@pytest.mark.parametrize(
    "command", ["pack --layout npz --source there.npz --output o", "verify there", "train --pretrained 1 --run r"]
)
def test_a_file_that_is_missing_is_refused(command: str, here: Path) -> None:
    make_dataset(here / "ds", "train")
    more = ["--dataset", "ds", "--pretrained_file", "there.pth"] if command.startswith("train") else []
    with pytest.raises(ValueError, match=r"=there.* is not there; correct the path\."):
        check_job([*command.split(), *more], MINE)


@pytest.mark.parametrize("command", ["simulate --output ds", "evaluate --run r", "benchmark train"])
def test_a_job_of_one_process_is_refused_several(command: str, here: Path) -> None:
    check_job(command.split(), MINE.override(gpus_per_node=1, cpus_per_task=8))
    for profile in ({"nodes": 2}, {"tasks_per_node": 2}, {"gpus_per_node": 4}):
        with pytest.raises(ValueError, match=r"runs as one process .* use --nodes 1 --tasks_per_node 1"):
            check_job(command.split(), MINE.override(**profile))


def test_folders_of_one_machine_are_told() -> None:
    (told,) = folder_notes(submitting("train", MINE, Path("/dev/shm/run")))
    assert "/dev/shm" in told
    assert "deeplense doctor --on mine --run_job" in told


def test_folders_elsewhere_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert list(folder_notes(submitting("train", MINE, Path("/scratch/run")))) == []


def test_checks_need_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, launch.checks; sys.exit('torch' in sys.modules)"], capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_what_slurm_expects_comes_with_notes_only_on_what_weakens_restarts(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "Job 7 to start at 2026-11-22T05:49:46 using 2 processors on nodes node[1-2] in partition low"
    monkeypatch.setattr(slurm, "expected_start", lambda *_: line)
    start = "Slurm expects the job to start at 2026-11-22T05:49:46, on node[1-2]"
    job = submitting("train", MINE)
    assert list(check_slurm(job, SITE)) == [start]
    weak = {"low": LOW | {"GraceTime": "0"}, "high": HIGH}
    _, preempted, lost = check_slurm(job, Site(SETTINGS | {"SlurmdTimeout": "0 sec"}, weak, NODES))
    assert preempted.startswith("note: preemption (PreemptMode=REQUEUE)")
    assert lost.startswith("note: SlurmdTimeout=0")
    several = replace(job, commands=job.commands * 2)
    assert "Slurm expects the first run to start" in next(check_slurm(several, SITE))


def test_of_several_partitions_one_that_can_start_the_job_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "expected_start", lambda *_: "")
    cluster = MINE.override(partition="low,high", hours=60.0)
    with pytest.raises(ValueError, match="MaxTime=2-00:00:00 of partition low"):
        list(check_slurm(submitting("train", cluster), SITE))
    long = Site(SETTINGS, {"low": LOW, "high": HIGH | {"MaxTime": "UNLIMITED"}}, NODES)
    told = list(check_slurm(submitting("train", cluster), long))
    assert told[1] == "note: hours: 60 is more than MaxTime=2-00:00:00 of partition low; give --hours 48 or less."


def test_a_refusal_of_slurm_is_told_with_what_the_nodes_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise ValueError("Slurm refuses the job: Requested node configuration is not available")

    monkeypatch.setattr(slurm, "expected_start", refuse)
    with pytest.raises(ValueError, match=r"configuration is not available\. tasks_per_node \* cpus_per_task: 9 cores"):
        list(check_slurm(submitting("train", MINE.override(cpus_per_task=9)), SITE))


# This machine, images and folders


def test_a_missing_slurm_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    first, *_ = examine(MINE)
    assert first.level == "wrong"
    assert "there is no sbatch, srun, squeue, scontrol, scancel here" in first.text


def test_a_cluster_whose_configuration_is_missing_is_told_at_once(here: Path) -> None:
    with pytest.raises(ValueError, match=r"slurm_conf: there is no /nowhere/slurm\.conf"):
        checks.look(replace(MINE, slurm_conf="/nowhere/slurm.conf"))


def test_this_machine_is_asked_for_no_more_gpus_than_it_has(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(here / "ds", "train")
    program(here, "nvidia-smi", 'echo "GPU 0: H200 (UUID: x)"')
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    command = "train --run r --dataset ds"
    assert list(check_before_submission(submitting(command, HERE.override(gpus_per_node=1)))) == []
    with pytest.raises(ValueError, match=r"gpus_per_node: 2, but nvidia-smi shows 1 .* give --gpus_per_node 1\."):
        list(check_before_submission(submitting(command, HERE.override(gpus_per_node=2))))
    assert [finding.level for finding in examine(HERE)][:3] == ["right", "right", "right"]
    assert next(iter(examine(HERE.override(tasks_per_node=1000)))).level == "note"
    assert "wrong" in {finding.level for finding in examine(HERE.override(gpus_per_node=2))}


def test_an_image_is_looked_for_and_tried(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(script: str | None, image: str = "image.sif") -> Finding:
        (here / "apptainer").unlink(missing_ok=True)
        if script is not None:
            program(here, "apptainer", script)
        (finding,) = checks.image_findings(HERE.override(image=str(here / image), apptainer="apptainer exec"))
        return finding

    monkeypatch.setenv("PATH", f"{here}:/bin")
    (here / "image.sif").touch()
    monkeypatch.setattr(checks.shutil, "which", lambda name: str(here / name) if (here / name).exists() else None)
    assert told('[ "${*: -4}" = "$PWD/image.sif python -c " ]').level == "right"
    assert told("printf '\\033[91mFATAL:\\033[0m no user\\nnamespace' >&2; exit 255") == Finding(
        "wrong",
        f"image: {here}/image.sif by `apptainer exec`: python does not run there; correct `image` or `apptainer`. "
        "It says: FATAL: no user namespace",
    )
    assert told(None).level == "note"
    assert told("exit 0", "other.sif").level == "wrong"


def test_a_job_whose_image_is_missing_is_refused(here: Path) -> None:
    make_dataset(here / "ds", "train")
    with pytest.raises(ValueError, match=r"image: there is no .*none\.sif; build it by containers/build.sh"):
        list(check_before_submission(submitting("train --run r --dataset ds", MINE.override(image="/none.sif"))))


def test_folders_without_room_are_a_note_and_a_missing_one_is_wrong(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * checks.GB))
    missing, current = checks.folder_findings(MINE.override(scratch="/nowhere"))
    assert (missing.level, current.level) == ("wrong", "note")
    assert "2.0 GB free" in current.text


def test_what_stops_an_examination_is_its_last_line() -> None:
    def found() -> Any:
        yield Finding("right", "fine")
        raise ValueError("it does\nnot answer")

    assert collect(found()) == [Finding("right", "fine"), Finding("wrong", "it does not answer")]


# The job that looks at the nodes


SEEN = {
    "node": "node1",
    "sees": True,
    "python": "3.11.7",
    "packages": {"torch": "2.9.0", "submitit": "1.5.4"},
    "gpus": 2,
    "free": {"DEEPLENSE_SCRATCH": 400.0, "DEEPLENSE_NODE_LOCAL": None},
}


def told_by(*nodes: Mapping[str, Any], log: str = "", **profile: Any) -> list[str]:
    """The findings of a job that looked at nodes, as lines."""
    found = node_findings(MINE.override(nodes=len(nodes), **profile), nodes, log)
    return [f"{finding.level}: {finding.text}" for finding in found]


def test_nodes_that_say_the_same_share_a_line(here: Path) -> None:
    assert told_by(SEEN | {"node": "node2"}, SEEN, gpus_per_node=2, scratch="/s", node_local="/l") == [
        f"right: node1,node2: sees {here}",
        "right: node1,node2: has Python 3.11.7, torch 2.9.0, submitit 1.5.4",
        "right: node1,node2: torch sees 2 of 2 GPUs",
        "right: node1,node2: scratch /s: 400.0 GB free",
        "wrong: node1,node2: node_local /l: it is not there; make it, or correct the path.",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"sees": False}, "wrong: node2: does not see"),
        (
            {"packages": {"torch": "ImportError: libcudart.so"}},
            "wrong: node2: cannot import torch (ImportError: libcud",
        ),
        ({"gpus": 0}, "wrong: node2: torch sees 0 of 2 GPUs"),
    ],
)
def test_a_node_that_differs_has_a_line_of_its_own(change: dict[str, Any], line: str, here: Path) -> None:
    lines = told_by(SEEN, SEEN | {"node": "node2"} | change, gpus_per_node=2)
    assert [found for found in lines if found.startswith(line)]


def test_nodes_that_say_nothing_are_told_with_what_the_log_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LATE_S", 0.0)
    log = here / "log"
    two = MINE.override(nodes=2)
    (unseen,) = node_findings(two, *read_probe(log, 2))
    assert "0 of 2 nodes answered" in unseen.text
    assert f"may not see {here}" in unseen.text
    log.write_text('module: not found\ndeeplense-node: {"node": "node1"}\nsrun: error: node2: exit 127\n')
    told, rest = read_probe(log, 2)
    assert told == [{"node": "node1"}]
    assert rest == "module: not found srun: error: node2: exit 127"


def test_the_job_that_looks_asks_as_the_real_one_does(here: Path) -> None:
    cluster = MINE.override(
        nodes=2,
        gpus_per_node=2,
        qos="short",
        setup=("module load cuda",),
        environment={"A": "b c"},
        node_local="$TMPDIR",
        python="/opt/python",
    )
    script = probe_script(cluster, here)
    for line in ("#SBATCH --nodes=2", "#SBATCH --qos=short", "#SBATCH --gpus-per-node=2", "#SBATCH --requeue"):
        assert f"{line}\n" in script
    assert script.index("export DEEPLENSE_NODE_LOCAL=\"$TMPDIR\"\nexport A='b c'\nmodule load cuda\nsrun ") > 0
    assert "/opt/python -c" in script
    assert "launch.requeue" not in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_a_site_that_takes_the_restart_away_is_told() -> None:
    assert requeue_finding("JobId=7 Requeue=1 Restarts=0").level == "right"
    assert "deeplense resume" in requeue_finding("JobId=7 Requeue=0 Restarts=0").text


def test_a_small_job_is_waited_for_while_it_runs_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(checks, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    states = iter([{"7": ("PENDING", "None")}, *[{"7": ("RUNNING", "None")}] * 20, {}])
    monkeypatch.setattr(slurm, "queued", lambda _: next(states))
    assert wait_for_probe(None, "7") is None
    monkeypatch.setattr(slurm, "queued", lambda _: {"7": ("PENDING", "Priority")})
    assert wait_for_probe(None, "7") == "pending (Priority) after 60 s"
    monkeypatch.setattr(slurm, "queued", lambda _: {"7": ("RUNNING", "None")})
    assert wait_for_probe(None, "7") == "running (None) after 360 s"
