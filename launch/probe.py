"""A small job that looks at the nodes of a cluster as a real one would see them, and what it finds there."""

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
from launch.script import Submission, python_command, submitit_script

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


def example(cluster: Cluster, folder: Path) -> Submission:
    """A job of this profile that is not meant to train."""
    return Submission(cluster, (("train",),), (folder / "doctor",), folder, folder)


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


def room_finding(what: str, free_gb: float | None) -> Finding:
    """Whether a folder is there, with room for checkpoints."""
    if free_gb is None:
        return wrong(f"{what}: it is not there; make it, or correct the path.")
    return graded(free_gb >= SCARCE_GB, f"{what}: {free_gb:.1f} GB free", "checkpoints may not find room")
