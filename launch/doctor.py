"""Checks of `deeplense doctor`: whether Slurm, this machine, the image and the folders of a cluster are usable."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from jobs.runs.environment import num_cores, version_of
from jobs.settings import require
from launch import slurm
from launch.checks import image_problems, machine_problems, num_gpus_here, when_it_starts
from launch.clusters import Cluster
from launch.environment import left_out
from launch.findings import Finding, graded, note, one_line, plural, right, wrong
from launch.limits import (
    ASKED,
    Fields,
    Site,
    account_findings,
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
from launch.widths import in_words

PROGRAMS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
GB = 1024**3
MUNGE_S = 5.0
"""Time limit for an answer of munge, which normally takes milliseconds, in seconds."""


def examine(cluster: Cluster, *, run_job: bool = False) -> list[Finding]:
    """Check whether a cluster is usable; return one finding per check. `run_job` also submits a small job that checks
    the nodes."""
    findings = collect(examine_slurm(cluster) if cluster.executor == "slurm" else examine_machine(cluster))
    findings += collect([*image_findings(cluster), *folder_findings(cluster)])
    if run_job and cluster.executor == "slurm" and not any(finding.level == "wrong" for finding in findings):
        findings += collect(probe(cluster))
    return findings


def collect(found: Iterable[Finding]) -> list[Finding]:
    """Return all findings. If an error ends the checks, the last finding reports it."""
    findings: list[Finding] = []
    try:
        findings.extend(found)
    except ValueError as error:
        findings.append(wrong(one_line(error)))
    return findings


def examine_slurm(cluster: Cluster) -> Iterator[Finding]:
    """Yield all findings about a Slurm cluster that need no job. Raises ValueError if Slurm does not answer."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    require(not missing, f"{', '.join(missing)} not found; use a login node of the cluster, or extend PATH.")
    slurm.refuse_dead_munge(cluster.slurm_conf, timeout_s=MUNGE_S)
    site = look(cluster)
    yield right(
        f"Slurm {site.config.get('SLURM_VERSION', '?')} answers; the cluster is named {site.config['ClusterName']}"
    )
    yield from left_out(os.environ, cluster)
    yield from account_findings(cluster, site)
    for partition in partitions_of(cluster, site.partitions):
        yield from partition_findings(cluster, partition, site)
        yield preemption_of(cluster, partition, site)
    yield from restart_findings(site.config)
    yield from further_findings(site.config)
    done = slurm.run(cluster.slurm_conf, "sacct", "--noheader", "--allocations")
    yield accounting_finding(site.config, answers=done.returncode == 0)
    yield right(when_it_starts(example(cluster, Path.cwd()), "a job of this profile"))


def partition_findings(cluster: Cluster, partition: Fields, site: Site) -> Iterator[Finding]:
    """Check whether a partition can run a job of this profile."""
    name, nodes = partition["PartitionName"], nodes_in(partition, site.nodes)
    problems = [*limit_problems(cluster, partition, site), *node_problems(cluster, partition, site.nodes)]
    limits = f"MaxTime={partition.get('MaxTime')}, MaxNodes={partition.get('MaxNodes')}"
    asked = f"{in_words(cluster.nodes)} for {cluster.hours:g} h"
    fine = right(f"partition {name}: {describe(nodes)}; {limits}; the profile requests {asked}")
    yield from map(wrong, problems) if problems else [fine]
    here = sum(not is_away(node) for node in nodes)
    if here < cluster.least_nodes <= len(nodes):
        yield note(f"partition {name}: only {here} of {len(nodes)} nodes are available; a job waits for the others")
    allowed = partition.get("AllowAccounts", "ALL")
    if allowed != "ALL" and not cluster.account:
        yield note(f"partition {name}: AllowAccounts={allowed}, but the profile has no account; set one if needed")


def describe(nodes: Iterable[Fields]) -> str:
    """Return the number of nodes and the maximum of each resource as text."""
    having = [resources(node, None) for node in nodes]
    most = {thing: max((resource[thing] for resource in having), default=0) for thing in ASKED}
    return f"{plural(len(having), 'node')} of up to " + ", ".join(f"{round(most[thing])} {thing}" for thing in ASKED)


def further_findings(config: Fields) -> Iterator[Finding]:
    """Check limits of job arrays and jobs, and whether Slurm ends all processes of a job."""
    if config.get("EnforcePartLimits", "NO") == "NO":
        told = "Slurm accepts jobs that exceed its limits and never starts them; `deeplense submit` rejects them"
        yield right(f"EnforcePartLimits=NO: {told}")
    sizes = {name: int(config.get(name, default)) for name, default in (("MaxArraySize", 1001), ("MaxJobCount", 10000))}
    most, told = max(min(sizes.values()), 1), ", ".join(f"{name}={size}" for name, size in sizes.items())
    yield graded(most > 1, f"{told}: a sweep can have up to {plural(most, 'run')}", "submit runs one by one")
    tracking = config.get("ProctrackType", "proctrack/cgroup")
    if tracking in ("proctrack/linuxproc", "proctrack/pgid"):
        told = "a process that is detached from its parent may outlive its job; proctrack/cgroup would end it"
        yield note(f"ProctrackType={tracking}: {told}")


def accounting_finding(config: Fields, *, answers: bool) -> Finding:
    """Return whether Slurm accounting is available."""
    kind = config.get("AccountingStorageType", "(null)")
    if answers:
        return right(f"sacct answers ({kind}): it gives the reason if an attempt ends without recording one")
    told = "if an attempt ends without recording the reason, the reason is inferred from scontrol; nothing else is lost"
    return note(f"sacct does not answer (AccountingStorageType={kind}): {told}")


def examine_machine(cluster: Cluster) -> Iterator[Finding]:
    """Check the resources of this machine, for jobs that run on it."""
    cores, asked = num_cores(), cluster.tasks * cluster.cpus_per_task
    told = f"{plural(cores, 'core')} available, {asked} requested (tasks_per_node * cpus_per_task)"
    yield graded(asked <= cores, told, "the processes share cores and are slow")
    problems = [*machine_problems(cluster)]
    yield from map(wrong, problems) if problems else [right(f"{plural(num_gpus_here(), 'GPU')} available")]
    version = version_of("submitit")
    yield right(f"submitit {version}") if version else wrong("submitit is not installed; run `pip install submitit`.")


def image_findings(cluster: Cluster) -> Iterator[Finding]:
    """Check whether the image is readable and its Python runs on this machine."""
    problems = [*image_problems(cluster)]
    yield from map(wrong, problems)
    if cluster.image and not problems:
        yield try_image(cluster)


def try_image(cluster: Cluster) -> Finding:
    """Check whether Python runs in the image on this machine. node_local is not mounted, as it may not exist here."""
    words = shlex.split(python_command(example(replace(cluster, node_local=None), Path.cwd())))
    told = f"image: {cluster.image} with `{cluster.apptainer}`"
    if not shutil.which(words[0]):
        return note(f"{told}: {words[0]} not found on this machine; --run_job tests it on the nodes")
    try:
        done = subprocess.run([*words, "-c", ""], capture_output=True, text=True, timeout=slurm.TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return wrong(f"{told}: {words[-1]} does not start within {slurm.TIMEOUT_S} s; run it manually to see why.")
    bad = f"{words[-1]} does not run in it; correct `image` or `apptainer`. Error: {one_line(done.stderr)}"
    return wrong(f"{told}: {bad}") if done.returncode else right(f"{told}: {words[-1]} runs in it")


def folder_findings(cluster: Cluster) -> Iterator[Finding]:
    """Check the free space of the folders that are visible on this machine."""
    if cluster.scratch and not os.path.isdir(cluster.scratch):
        yield wrong(f"scratch: there is no folder {cluster.scratch}; create it, or correct the path.")
    for name, folder in (("scratch", cluster.scratch), ("current folder", str(Path.cwd()))):
        if folder and os.path.isdir(folder):
            yield room_finding(f"{name} {folder}", shutil.disk_usage(folder).free / GB)
