"""What partitions, nodes and qualities of service allow, from what Slurm says of itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import slurm
from launch.limits import is_away, limit_problems, look, node_problems, num_gpus, partitions_of
from tests.launch.made_up import HIGH, LOW, MINE, NODE, NODES, SETTINGS, SHORT, SITE

LIMITS = {"AccountingStorageEnforce": "associations,limits,qos"}


def test_a_cluster_whose_configuration_is_missing_is_told_at_once(here: Path) -> None:
    with pytest.raises(ValueError, match=r"slurm_conf: /nowhere/slurm\.conf does not exist"):
        look(replace(MINE, slurm_conf="/nowhere/slurm.conf"))


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
    ({"hours": 48.001}, {}, "hours: 48.001 exceeds MaxTime=2-00:00:00 of partition low; set --hours 48 or less."),
    ({"hours": 1.0}, {"MaxTime": "00:20:00"}, "set --hours 0.33 or less"),
    ({"hours": 1000.0}, {"MaxTime": "UNLIMITED"}, ""),
    ({"nodes": 4}, {}, ""),
    ({"nodes": 5}, {}, "nodes: 5 exceeds TotalNodes=4 of partition low; request fewer."),
    ({"nodes": 2}, {"MaxNodes": "1"}, "nodes: 2 exceeds MaxNodes=1"),
    ({"nodes": 1}, {"MinNodes": "2"}, "nodes: 1 is below MinNodes=2"),
    ({"nodes": "1:4"}, {}, ""),
    ({"nodes": "1:4"}, {"MinNodes": "2"}, ""),
    ({"nodes": "1:2"}, {"MinNodes": "3"}, "nodes: 1:2 is below MinNodes=3"),
    ({"nodes": "1:5"}, {}, "nodes: 1:5 exceeds TotalNodes=4 of partition low; request 1:4."),
    ({"nodes": "3:4"}, {"MaxNodes": "2"}, "nodes: 3:4 exceeds MaxNodes=2 of partition low; request fewer."),
    ({}, {"State": "DOWN"}, "partition: low is DOWN, not UP"),
    ({"account": "ab"}, {"AllowAccounts": "xy,ab"}, ""),
    ({"account": "ab"}, {"AllowAccounts": "xy"}, "account: 'ab' is not in AllowAccounts=xy of partition low"),
    ({"account": "ab"}, {"DenyAccounts": "ab"}, "account: 'ab' is in DenyAccounts=ab"),
    ({"qos": "long"}, {"AllowQos": "short"}, "qos: 'long' is not in AllowQos=short"),
    ({}, {"AllowAccounts": "xy", "AllowQos": "short"}, ""),
    ({"qos": "short", "hours": 2.0}, {}, "hours: 2 exceeds MaxWall=01:00:00 of QOS short; set --hours 1 or less"),
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
        ValueError, match=r"unknown partition 'lo' on cluster 'mine'\. Did you mean low\? Known names: high, low"
    ):
        partitions_of(replace(MINE, partition="lo"), SITE.partitions)
    assert partitions_of(replace(MINE, partition=None), SITE.partitions) == [LOW]
    assert partitions_of(replace(MINE, partition="high,low"), SITE.partitions) == [HIGH, LOW]
    with pytest.raises(ValueError, match="has no default partition; set one of: high"):
        partitions_of(replace(MINE, partition=None), {"high": HIGH})


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
        ({"gpus_per_node": 4}, "gpus_per_node: 4 GPUs, but a node of partition low has at most 2; request less."),
        ({"gpus_per_node": 1, "gpu_type": "h100"}, "has at most 0"),
        ({"tasks_per_node": 3, "cpus_per_task": 3}, "tasks_per_node * cpus_per_task: 9 cores"),
        ({"memory_gb_per_task": 16.0}, "tasks_per_node * memory_gb_per_task: 16 GB of memory"),
        ({"nodes": 2, "cpus_per_task": 5}, "nodes: 2, but partition low has only 1 with 5 cores; request fewer."),
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
