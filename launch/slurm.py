"""Questions to Slurm, by its own commands."""

import getpass
import math
import os
import re
import subprocess
import tempfile
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
    rows = [line.split("|", 2) for line in output.splitlines() if line.count("|") >= 2]
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
    """All partitions of the cluster by name, hidden ones too, with their limits."""
    return named("PartitionName", ask(slurm_conf, "scontrol", "--all", "show", "partition", "--oneliner"))


def nodes(slurm_conf: str | None, names: str) -> dict[str, dict[str, str]]:
    """Nodes by name, with what they have; `names` as Slurm writes them, such as `node[1-4]`."""
    return named("NodeName", ask(slurm_conf, "scontrol", "show", "node", names, "--oneliner"))


def named(key: str, output: str) -> dict[str, dict[str, str]]:
    """What scontrol says of things, a line each, by the name that is under this key. Raises ValueError where it says
    something else."""
    lines = [line for line in output.splitlines() if line.strip()]
    found = [parse_fields(line) for line in lines]
    wrong = [line for line, fields in zip(lines, found, strict=True) if key not in fields]
    if wrong or not found:
        answer = repr(wrong[0][:80]) if wrong else "nothing"
        raise ValueError(f"scontrol should tell each {key}, but answers {answer}; is that Slurm's, and its cluster up?")
    return {fields[key]: fields for fields in found}


QUALITY = ("Name", "Flags", "GraceTime", "PreemptMode", "MaxWall")


def qualities(slurm_conf: str | None) -> dict[str, dict[str, str]]:
    """All qualities of service by name, with what decides over times; none where no accounting answers."""
    try:
        output = ask(slurm_conf, "sacctmgr", "--noheader", "--parsable2", "show", "qos", f"format={','.join(QUALITY)}")
    except ValueError:
        return {}
    rows = [line.split("|") for line in output.splitlines()]
    return {row[0]: dict(zip(QUALITY, row, strict=True)) for row in rows if len(row) == len(QUALITY)}


def expected_start(slurm_conf: str | None, script: str) -> str:
    """What Slurm would do with a batch script: its line on time and nodes. Raises ValueError, with what Slurm says,
    where it would refuse it; of what it would take and then never start it says nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        done = run(slurm_conf, "sbatch", "--test-only", file.name)
    lines = [re.sub(r"^(\w+|allocation failure): (error: )?", "", line) for line in done.stderr.splitlines()]
    if done.returncode:
        raise ValueError(f"Slurm refuses the job: {'; '.join(dict.fromkeys(lines))}")
    return next((line for line in lines if " to start at " in line), "")


def duration_s(text: str) -> float:
    """Seconds in a time as Slurm writes it: `30 sec`, `01:30:00`, `2-00:00:00`; infinite for a word such as
    UNLIMITED."""
    if found := re.fullmatch(r"(\d+)(?: (sec|min))?", text.strip()):
        return float(found[1]) * (60 if found[2] == "min" else 1)
    days, _, rest = text.strip().rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in [days or "0", *parts]):
        return math.inf
    seconds = sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))
    return 86400 * float(days or 0) + seconds
