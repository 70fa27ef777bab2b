"""Run a small job that checks the nodes of a cluster under the conditions of a real job, and report what it finds."""

import json
import math
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import slurm
from launch.clusters import Cluster
from launch.ends import parse_fields
from launch.findings import Finding, graded, note, one_line, plural, right, wrong
from launch.script import python_command, submitit_script
from launch.submission import Submission

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
SCARCE_GB = 10.0


def probe(cluster: Cluster) -> Iterator[Finding]:
    """Run a small job and yield what it finds on the nodes. Raises ValueError if Slurm rejects it."""
    with tempfile.TemporaryDirectory(prefix=".deeplense-doctor-", dir=Path.cwd(), ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "job.sh").write_text(probe_script(cluster, folder))
        job_id = send_probe(cluster, folder)
        try:
            yield requeue_finding(slurm.ask(cluster.slurm_conf, "scontrol", "show", "job", "--oneliner", job_id))
            if waits := wait_for_probe(cluster.slurm_conf, job_id):
                yield note(f"the test job is {waits} and was cancelled; the nodes could not be checked")
            else:
                yield from node_findings(cluster, *read_probe(folder / "log", cluster.least_nodes))
        finally:
            slurm.run(cluster.slurm_conf, "scancel", job_id)


def probe_script(cluster: Cluster, folder: Path) -> str:
    """Return a batch script that checks each node under the conditions of a job of this profile."""
    submission = example(cluster, folder)
    options = [line for line in submitit_script(submission).splitlines() if line.startswith("#SBATCH ")]
    folders = {"DEEPLENSE_SCRATCH": cluster.scratch, "DEEPLENSE_NODE_LOCAL": cluster.node_local}
    exports = [f'export {name}="{value}"' for name, value in folders.items() if value]
    exports += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    tasks = f'--ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task={cluster.cpus_per_task}'
    words = shlex.join(["-c", LOOK, str(folder / "job.sh"), NODE_SAYS])
    srun = f"srun {tasks} --kill-on-bad-exit=0 {python_command(submission)} {words}"
    return "\n".join(["#!/bin/bash", *options, *exports, *cluster.setup, srun, ""])


def example(cluster: Cluster, folder: Path) -> Submission:
    """Return an example submission with this profile, which does not train."""
    return Submission(cluster, (("models",),), (folder / "doctor",), folder, folder)


def send_probe(cluster: Cluster, folder: Path) -> str:
    """Submit the job that checks the nodes; return its id."""
    minutes = min(LIMIT_MINUTES, math.ceil(60 * cluster.hours))
    options = ["--job-name=deeplense-doctor", f"--time={minutes}", f"--output={folder}/log", f"--error={folder}/log"]
    return slurm.ask(cluster.slurm_conf, "sbatch", "--parsable", *options, str(folder / "job.sh")).strip().split(";")[0]


def requeue_finding(job: str) -> Finding:
    """Return whether Slurm allows the requeueing of a job; `job` is the output of `scontrol show job`."""
    if parse_fields(job).get("Requeue") != "0":
        return right("the test job was accepted and can be requeued (Requeue=1)")
    told = "Slurm ignores --requeue on this cluster (Requeue=0, a rule of the site): a preempted run is resumed by its"
    return note(f"{told} successor job, or by `deeplense resume RUN`; ask the administrators")


def wait_for_probe(slurm_conf: str | None, job_id: str) -> str | None:
    """Wait until the test job has ended. If it does not start or end in time, return its state."""
    begun = time.monotonic()
    while job_id in (jobs := slurm.queued(slurm_conf)):
        state, reason = jobs[job_id]
        limit_s = START_S + 60 * LIMIT_MINUTES * (state not in ("PENDING", "CONFIGURING"))
        if time.monotonic() - begun > limit_s:
            return f"{state.lower()} ({reason}) after {limit_s:g} s"
        time.sleep(1)
    return None


def read_probe(log: Path, num_nodes: int) -> tuple[list[dict[str, Any]], str]:
    """Return the reports of the nodes and the rest of the log. A shared file system may lag by some seconds."""
    deadline = time.monotonic() + LATE_S
    while True:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        told = [json.loads(line.removeprefix(NODE_SAYS)) for line in lines if line.startswith(NODE_SAYS)]
        if len(told) >= num_nodes or time.monotonic() > deadline:
            return told, one_line(" ".join(line for line in lines if not line.startswith(NODE_SAYS)))
        time.sleep(1)


def node_findings(cluster: Cluster, told: Sequence[Mapping[str, Any]], log: str) -> Iterator[Finding]:
    """Yield findings from the reports of the nodes; nodes with the same finding share one line."""
    names: dict[Finding, list[str]] = {}
    for node in sorted(told, key=lambda node: node["node"]):
        for finding in findings_of_node(cluster, node):
            names.setdefault(finding, []).append(node["node"])
    yield from (Finding(finding.level, f"{','.join(nodes)}: {finding.text}") for finding, nodes in names.items())
    if len(told) < cluster.least_nodes:
        said = f"its log: {log[-300:]}" if log else f"it has no log, so {Path.cwd()} may not be visible on the nodes"
        yield wrong(f"the test job reported on {len(told)} of {plural(cluster.least_nodes, 'node')}; {said}")


def findings_of_node(cluster: Cluster, told: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings from the report of one node."""
    here, packages = Path.cwd(), told["packages"]
    unseen = f"cannot access {here}; work in a folder that is visible on all nodes."
    yield right(f"can access {here}") if told["sees"] else wrong(unseen)
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
    """Check whether torch sees the requested GPUs."""
    told = f"torch sees {found} of {plural(asked, 'GPU')}"
    if asked:
        yield (
            right(told)
            if found >= asked
            else wrong(f"{told}; check that torch has CUDA support and matches the driver.")
        )


def room_finding(what: str, free_gb: float | None) -> Finding:
    """Check whether a folder exists and has space for checkpoints."""
    if free_gb is None:
        return wrong(f"{what}: the folder does not exist; create it, or correct the path.")
    return graded(free_gb >= SCARCE_GB, f"{what}: {free_gb:.1f} GB free", "this may be too little for checkpoints")
