"""What Slurm's partitions, nodes and qualities of service allow a job of a profile.

What Slurm says of itself is read once, by `look`; what follows from it are functions of that alone. Slurm takes some
jobs that it never starts, with `sbatch --test-only` too; those are told from the limits. (Slurm 22.05; measured.)
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.config import require
from launch import slurm
from launch.clusters import Cluster, nearest

Fields = Mapping[str, str]
"""What Slurm says of one thing, by the names that Slurm gives."""
ASKED = {
    "cores": "tasks_per_node * cpus_per_task",
    "GB of memory": "tasks_per_node * memory_gb_per_task",
    "GPUs": "gpus_per_node",
}
"""What a job takes of a node, with the keys of a profile that say how much."""


@dataclass(frozen=True)
class Site:
    """What a Slurm cluster says of itself: its settings, partitions, the nodes of those that a profile names, and
    qualities of service."""

    config: Fields
    partitions: Mapping[str, Fields]
    nodes: Mapping[str, Fields] = field(default_factory=dict)
    qualities: Mapping[str, Fields] = field(default_factory=dict)


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
