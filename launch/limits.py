"""Check whether Slurm's partitions, nodes and qualities of service (QOS) allow a job of a profile.

`look` reads the configuration of Slurm once; all other functions depend on it alone. Slurm accepts some jobs that it
never starts, even with `sbatch --test-only`; the limits identify these. (Measured with Slurm 22.05, 24.11 and 26.05.)
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.settings import require
from launch import slurm
from launch.clusters import Cluster, nearest
from launch.findings import Finding, note, wrong

Fields = Mapping[str, str]
"""What Slurm reports about one object, by Slurm's names of the fields."""
ASKED = {
    "cores": "tasks_per_node * cpus_per_task",
    "GB of memory": "tasks_per_node * memory_gb_per_task",
    "GPUs": "gpus_per_node",
}
"""Resources that a job needs on each node, with the profile keys that set the amounts."""


@dataclass(frozen=True)
class Site:
    """The configuration of a Slurm cluster: its settings, partitions, nodes of the partitions of a profile, qualities
    of service, and accounts with whether this user may use each (None if not needed or not available)."""

    config: Fields
    partitions: Mapping[str, Fields]
    nodes: Mapping[str, Fields] = field(default_factory=dict)
    qualities: Mapping[str, Fields] = field(default_factory=dict)
    accounts: Mapping[str, bool] | None = None


def look(cluster: Cluster) -> Site:
    """Read the configuration of a cluster. Raises ValueError if Slurm does not answer or has no such partition."""
    conf = cluster.slurm_conf
    there = conf is None or os.path.exists(conf)
    require(there, f"slurm_conf: {conf} does not exist; start that cluster (`make cluster`?), or correct the path.")
    partitions = slurm.partitions(conf)
    lists = [partition.get("Nodes", "") for partition in partitions_of(cluster, partitions)]
    names = ",".join(text for text in lists if text not in ("", "(null)"))
    nodes = slurm.nodes(conf, names) if names else {}
    accounts = slurm.accounts(conf) if cluster.account else None
    return Site(slurm.configuration(conf), partitions, nodes, slurm.qualities(conf), accounts)


def partitions_of(cluster: Cluster, partitions: Mapping[str, Fields]) -> list[Fields]:
    """Return the partitions of a profile, or the default one. Raises ValueError if there is none."""
    defaults = [name for name, fields in partitions.items() if fields.get("Default") == "YES"]
    names = cluster.partition.split(",") if cluster.partition else defaults
    every = ", ".join(sorted(partitions))
    require(bool(names), f"partition: cluster {cluster.name!r} has no default partition; set one of: {every}.")
    for name in names:
        hint = nearest(name, partitions, every=True)
        require(name in partitions, f"partition: unknown partition {name!r} on cluster {cluster.name!r}. {hint}")
    return [partitions[name] for name in names]


def limit_problems(cluster: Cluster, partition: Fields, site: Site) -> Iterator[str]:
    """Yield why a partition would never start a job of this profile."""
    name, state = partition["PartitionName"], partition.get("State", "UP")
    flags = site.qualities.get(cluster.qos or "", {}).get("Flags", "").split(",")
    if state != "UP":
        yield f"partition: {name} is {state}, not UP; choose another, or try again later."
    if "PartitionTimeLimit" not in flags:
        yield from time_problems(cluster, "MaxTime", partition.get("MaxTime", "UNLIMITED"), f"partition {name}")
    for quality in limiting_qualities(cluster, partition, site):
        yield from time_problems(cluster, "MaxWall", quality["MaxWall"], f"QOS {quality['Name']}")
    yield from size_problems(cluster, partition, flags)
    yield from access_problems(cluster, partition)


def time_problems(cluster: Cluster, limit: str, value: str, owner: str) -> Iterator[str]:
    """Yield a problem if the time limit of an attempt exceeds a limit of Slurm."""
    most_s = slurm.duration_s(value)
    if 60 * math.ceil(60 * cluster.hours) > most_s:
        most = math.floor(most_s / 36) / 100
        yield f"hours: {cluster.hours:g} exceeds {limit}={value} of {owner}; set --hours {most:g} or less."


def limiting_qualities(cluster: Cluster, partition: Fields, site: Site) -> list[Fields]:
    """Return the quality of service that limits the time of a job, if any: that of the partition takes precedence over
    that of the job, unless the latter has the flag OverPartQOS."""
    if "limits" not in site.config.get("AccountingStorageEnforce", "").split(","):
        return []
    names = [partition.get("QoS", ""), cluster.qos or ""]
    if "OverPartQOS" in site.qualities.get(names[1], {}).get("Flags", ""):
        names.reverse()
    found = [site.qualities[name] for name in names if name in site.qualities]
    return [quality for quality in found if quality["MaxWall"]][:1]


def size_problems(cluster: Cluster, partition: Fields, flags: Sequence[str]) -> Iterator[str]:
    """Yield problems with the number of nodes of a job; `flags` of its quality of service may lift limits. The upper
    end of a range must be possible, though Slurm would accept a range of which only the lower end is."""
    most = cluster.most_nodes
    for limit in ("TotalNodes", "MaxNodes", "MinNodes"):
        value, told = partition.get(limit, ""), f"of partition {partition['PartitionName']}"
        if not value.isdigit() or f"Partition{limit}" in flags:
            continue
        if limit == "MinNodes" and most < int(value):
            yield f"nodes: {cluster.nodes} is below {limit}={value} {told}; request more."
        if limit != "MinNodes" and most > int(value):
            yield f"nodes: {cluster.nodes} exceeds {limit}={value} {told}; request {fewer_than(cluster, int(value))}."


def fewer_than(cluster: Cluster, most: int) -> str:
    """Return what to request if at most this number of nodes is possible, as text."""
    ranged = cluster.least_nodes < min(cluster.most_nodes, most)
    return f"{cluster.least_nodes}:{most}" if ranged else "fewer"


def access_problems(cluster: Cluster, partition: Fields) -> Iterator[str]:
    """Yield problems with the account and the quality of service of a job. (Slurm itself rejects wrong groups.)"""
    for key, what, value in (("account", "Accounts", cluster.account), ("qos", "Qos", cluster.qos)):
        allowed, denied = partition.get(f"Allow{what}", "ALL"), partition.get(f"Deny{what}", "")
        told = f"of partition {partition['PartitionName']}"
        if value and allowed != "ALL" and value not in allowed.split(","):
            yield f"{key}: {value!r} is not in Allow{what}={allowed} {told}; choose one of these."
        if value and value in denied.split(","):
            yield f"{key}: {value!r} is in Deny{what}={denied} {told}; choose another."


def account_findings(cluster: Cluster, site: Site) -> Iterator[Finding]:
    """Check that this user may use the account of a profile, if Slurm itself does not enforce it."""
    name, enforced = cluster.account, site.config.get("AccountingStorageEnforce", "none")
    if not name or "associations" in enforced.split(","):
        return
    unchecked = f"Slurm accepts any account here (AccountingStorageEnforce={enforced})"
    if site.accounts is None:
        yield note(f"account: {name} cannot be checked, as accounting does not answer, and {unchecked}")
    elif name not in site.accounts:
        yield wrong(f"account: unknown account {name!r}, but {unchecked}. {nearest(name, site.accounts, every=True)}")
    elif not site.accounts[name]:
        yield note(f"account: {name!r} is not one of yours, but {unchecked}; request access, or correct it")


def node_problems(cluster: Cluster, partition: Fields, nodes: Mapping[str, Fields]) -> Iterator[str]:
    """Yield resources that the nodes of a partition do not have enough of."""
    name, asked = partition["PartitionName"], needs(cluster)
    having = [resources(node, cluster.gpu_type) for node in nodes_in(partition, nodes)]
    for thing, amount in asked.items():
        most = max((resource[thing] for resource in having), default=0)
        if amount > most:
            told = f"{amount:g} {thing}, but a node of partition {name} has at most {most:g}"
            yield f"{ASKED[thing]}: {told}; request less."
    fitting = sum(all(resource[thing] >= asked[thing] for thing in asked) for resource in having)
    if 0 < fitting < min(cluster.least_nodes, len(having)):
        told = ", ".join(f"{amount:g} {thing}" for thing, amount in asked.items() if amount)
        yield f"nodes: {cluster.nodes}, but partition {name} has only {fitting} with {told}; request fewer."


def needs(cluster: Cluster) -> dict[str, float]:
    """Return the resources that a job needs on each node."""
    memory_gb = cluster.memory_gb_per_task or 0
    amounts = (cluster.cpus_per_task * cluster.tasks_on_node, memory_gb * cluster.tasks_on_node, cluster.gpus_per_node)
    return dict(zip(ASKED, amounts, strict=True))


def resources(node: Fields, gpu_type: str | None) -> dict[str, float]:
    """Return the resources of a node."""
    cores = int(node.get("CPUEfctv") or node.get("CPUTot") or 0)
    amounts = (cores, int(node.get("RealMemory", 0)) / 1024, num_gpus(node.get("Gres", ""), gpu_type))
    return dict(zip(ASKED, amounts, strict=True))


def num_gpus(gres: str, gpu_type: str | None) -> int:
    """Return the number of GPUs in a list of generic resources, such as `gpu:a100:4(S:0-1),nvme:1`; if a type is given,
    count only this type."""
    parts = [part.split(":") for part in re.sub(r"\(.*?\)", "", gres).split(",")]
    gpus = [part for part in parts if part[0] == "gpu" and (gpu_type is None or gpu_type in part[1:2])]
    return sum(int(part[-1]) if part[-1].isdigit() else 1 for part in gpus)


def nodes_in(partition: Fields, nodes: Mapping[str, Fields]) -> list[Fields]:
    """Return the nodes of a partition."""
    return [node for node in nodes.values() if partition["PartitionName"] in places_of(node)]


def places_of(node: Fields) -> list[str]:
    """Return the partitions that a node belongs to."""
    return node.get("Partitions", "").split(",")


def is_away(node: Fields) -> bool:
    """Whether a node is unavailable for jobs now."""
    state, *flags = node.get("State", "").split("+")
    return state.startswith("DOWN") or state.endswith("*") or bool({"DRAIN", "FAIL", "NOT_RESPONDING"} & {*flags})
