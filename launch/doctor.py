"""Whether a cluster is usable: what `deeplense doctor` finds of Slurm, of this machine, of the image and of folders."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from jobs.config import require
from jobs.runs import num_cores, version_of
from launch import slurm
from launch.checks import environment_findings, image_problems, machine_problems, num_gpus_here, when_it_starts
from launch.clusters import Cluster
from launch.findings import Finding, graded, note, one_line, plural, right, wrong
from launch.limits import (
    ASKED,
    Fields,
    Site,
    is_away,
    limit_problems,
    look,
    node_problems,
    nodes_in,
    partitions_of,
    resources,
)
from launch.preemption import preemption_of, restart_findings
from launch.probe import example, probe, room_finding
from launch.script import python_command

PROGRAMS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
GB = 1024**3


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


def examine_machine(cluster: Cluster) -> Iterator[Finding]:
    """What this machine has, for jobs that run on it."""
    cores, asked = num_cores(), cluster.tasks * cluster.cpus_per_task
    told = f"{plural(cores, 'core')} here, {asked} asked for (tasks_per_node * cpus_per_task)"
    yield graded(asked <= cores, told, "the processes take turns, and are slow")
    problems = [*machine_problems(cluster)]
    yield from map(wrong, problems) if problems else [right(f"{plural(num_gpus_here(), 'GPU')} here")]
    version = version_of("submitit")
    yield right(f"submitit {version}") if version else wrong("there is no submitit here; `pip install submitit`.")


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
