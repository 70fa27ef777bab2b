"""Questions to Slurm, by its own commands."""

import getpass
import os
import subprocess
from collections.abc import Iterable

from launch.ends import parse_fields

TIMEOUT_S = 60


def environment(slurm_conf: str | None) -> dict[str, str]:
    """The environment in which Slurm's commands find the cluster."""
    return {**os.environ, **({"SLURM_CONF": slurm_conf} if slurm_conf else {})}


def run(slurm_conf: str | None, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands to its end. Raises ValueError where it is not there or does not answer."""
    try:
        return subprocess.run(words, capture_output=True, text=True, env=environment(slurm_conf), timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise ValueError(f"there is no {words[0]} here; this is no login node of a Slurm cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"{words[0]} did not answer in {TIMEOUT_S} s; the scheduler may be down, try later."
        ) from error


def ask(slurm_conf: str | None, *words: str) -> str:
    """The output of one of Slurm's commands. Raises ValueError, with what it says, where it fails."""
    done = run(slurm_conf, *words)
    if done.returncode:
        raise ValueError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def queued(slurm_conf: str | None) -> dict[str, tuple[str, str]]:
    """State and reason of all jobs of this user that wait or run, by their id, each element of an array apart."""
    output = ask(slurm_conf, "squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r")
    rows = [line.split("|", 2) for line in output.splitlines()]
    return {job_id: (state, reason) for job_id, state, reason in rows}


def accounted(slurm_conf: str | None, job_ids: Iterable[str]) -> dict[str, str]:
    """Last known state of these jobs by their id, where there is accounting that answers."""
    try:
        output = ask(
            slurm_conf,
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            "--format=JobID,State",
            f"--jobs={','.join(job_ids)}",
        )
    except ValueError:
        return {}
    return dict(line.split("|", 1) for line in output.splitlines() if "|" in line)


def configuration(slurm_conf: str | None) -> dict[str, str]:
    """All settings of the cluster."""
    lines = ask(slurm_conf, "scontrol", "show", "config").splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line]
    return {name.strip(): value.strip() for name, value in pairs}


def partitions(slurm_conf: str | None) -> dict[str, dict[str, str]]:
    """All partitions of the cluster by name, with their limits."""
    lines = ask(slurm_conf, "scontrol", "show", "partition", "--oneliner").splitlines()
    found = [parse_fields(line) for line in lines if line.strip()]
    return {fields["PartitionName"]: fields for fields in found}
