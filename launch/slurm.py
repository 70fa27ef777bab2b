"""Query Slurm with its command-line tools."""

import contextlib
import math
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.ends import parse_fields
from launch.environment import for_jobs, for_questions

TIMEOUT_S = 60
MOST_JOBS = 2000
"""Jobs in one question to the accounting: an argument of a program has a largest length."""


def is_held(reason: str) -> bool:
    """Whether a job with this reason is held: it starts only when somebody releases it."""
    return "held" in reason.lower()


def run(slurm_conf: str | None, *words: str, epoch: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command and wait for its end. With `epoch`, it prints times in seconds since the epoch. Raises
    ValueError if it is not installed or does not answer."""
    refuse_dead_munge(slurm_conf)
    environment = (for_jobs if words[0] == "sbatch" else for_questions)(os.environ, slurm_conf)
    environment |= {"SLURM_TIME_FORMAT": "%s"} if epoch else {}
    try:
        return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise ValueError(
            f"{words[0]} not found: this is not a login node of a Slurm cluster; log in to one."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"{words[0]} did not answer within {TIMEOUT_S} s; the scheduler may be down, try again later."
        ) from error


MUNGE = "/run/munge/munge.socket.2"
"""Default socket of munge, if slurm.conf does not set one."""


def refuse_dead_munge(slurm_conf: str | None, *, timeout_s: float | None = None) -> None:
    """Raise ValueError if munge is not running, as Slurm commands would then wait for a minute. With a timeout, also
    check that it answers."""
    conf, place = Path(slurm_conf or os.environ.get("SLURM_CONF") or "/etc/slurm/slurm.conf"), MUNGE
    with contextlib.suppress(OSError):
        told = re.search(r"^\s*AuthInfo\s*=.*?socket=([^,\s]+)", conf.read_text(errors="replace"), re.M | re.I)
        place = told[1] if told else place
    why = None
    with contextlib.suppress(FileNotFoundError, PermissionError), socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(place)
        except ConnectionRefusedError as error:
            why = error.strerror
    if timeout_s and not why and os.path.exists(place) and shutil.which("munge"):
        try:
            subprocess.run(["munge", "--no-input", "--socket", place], capture_output=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            why = f"no answer in {timeout_s:g} s"
    if why:
        told = f"munge, the authentication service of Slurm, does not answer on this machine ({place}: {why})"
        raise ValueError(f"{told}; ask the administrators to start it, or use another login node.")


def ask(slurm_conf: str | None, *words: str, epoch: bool = False) -> str:
    """Return the output of a Slurm command; see `run`. Raises ValueError, with its error message, if it fails."""
    done = run(slurm_conf, *words, epoch=epoch)
    if done.returncode:
        told = done.stderr.strip() or done.stdout.strip()
        if "Munge encode failed" in told:
            why = re.sub(r"(?s).*Munge encode failed: ([^\n]*).*", r"\1", told)
            raise ValueError(f"munge, the authentication service of Slurm, does not run on this machine: {why}")
        raise ValueError(f"{' '.join(words)}: {told}")
    return done.stdout


FOLLOWER = re.compile(r"deeplense-after-([\d_.]+)")
"""Name of a successor job. It contains the ids of the jobs before it, newest first."""


@dataclass(frozen=True)
class Queued:
    """A job in the queue: its state, the reason why it is pending, and, for a successor job, the jobs before it."""

    job_id: str
    state: str
    reason: str
    after: tuple[str, ...] = ()


def queue(slurm_conf: str | None, *, users: Iterable[int] = ()) -> list[Queued]:
    """Return all jobs of this user in the queue, and of further users, with one entry per array task."""
    numbers = ",".join(map(str, dict.fromkeys([os.geteuid(), *sorted(users)])))
    output = ask(slurm_conf, "squeue", "--noheader", "--array", f"--user={numbers}", "--format=%i|%T|%r|%j")
    rows = [[*line.split("|", 3), ""] for line in output.splitlines() if line.count("|") >= 2]
    return [Queued(row[0], row[1], row[2], jobs_before(row[3])) for row in rows]


def jobs_before(name: str) -> tuple[str, ...]:
    """Return the jobs before a successor job, from its name; empty for other jobs."""
    found = FOLLOWER.fullmatch(name)
    return tuple(found[1].split(".")) if found else ()


def queued(slurm_conf: str | None) -> dict[str, tuple[str, str]]:
    """Return state and reason of all jobs of this user in the queue, by job id."""
    return {job.job_id: (job.state, job.reason) for job in queue(slurm_conf)}


def send(slurm_conf: str | None, script: Path, logs: Path) -> str:
    """Submit a batch script with sbatch and return the job id. If the answer is lost, as on a busy cluster, look for
    the job in the queue by the folder of its `logs`. Raises ValueError if it is not there."""
    try:
        answer = ask(slurm_conf, "sbatch", "--parsable", str(script))
        if found := re.search(r"^(?:Submitted batch job )?(\d+)\b", answer, re.MULTILINE):
            return found[1]
        raise ValueError(f"sbatch should print a job id, but printed {answer.strip()[:80]!r}.")
    except ValueError as error:
        job_ids = {job_id.partition("_")[0] for folder, job_id in by_logs(slurm_conf) if folder == str(logs)}
        if job_ids:
            return max(job_ids, key=int)
        raise ValueError(f"{error} No job with logs in {logs} is in the queue; submit again.") from error


def pending(slurm_conf: str | None) -> list[str]:
    """Return all pending jobs of the cluster that this user may see, one entry per array task: id, partitions,
    priority, expected start in seconds since the epoch, and reason, separated by `|`."""
    form = "--format=%i|%P|%Q|%S|%r"
    return ask(slurm_conf, "squeue", "--noheader", "--array", "--states=PENDING", form, epoch=True).splitlines()


def by_logs(slurm_conf: str | None) -> list[tuple[str, str]]:
    """Return the folder of the logs and the id of all jobs of this user in the queue, with one entry per array task.
    This finds jobs whose id was not recorded."""
    form = "JobArrayID:40,State:20,STDOUT:4096"
    output = ask(slurm_conf, "squeue", "--noheader", "--array", f"--user={os.geteuid()}", f"--Format={form}")
    rows = [(line[:40].strip(), line[40:60].strip(), line[60:].strip()) for line in output.splitlines()]
    return [(os.path.dirname(log), job_id) for job_id, state, log in rows if state != "COMPLETING"]


def accounted(slurm_conf: str | None, job_ids: Iterable[str]) -> dict[str, str]:
    """Return the last known state of these jobs by job id; empty if Slurm accounting does not answer."""
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


def history(slurm_conf: str | None, job_ids: Sequence[str], fields: Sequence[str]) -> list[str]:
    """Return rows of the accounting on all starts of these jobs and on their steps, with values separated by `|`; times
    are in seconds since the epoch. Raises ValueError if Slurm accounting does not answer."""
    rows = []
    words = ("sacct", "--duplicates", "--noheader", "--parsable2", f"--format={','.join(fields)}")
    for first in range(0, len(job_ids), MOST_JOBS):
        jobs = ",".join(job_ids[first : first + MOST_JOBS])
        rows += ask(slurm_conf, *words, f"--jobs={jobs}", epoch=True).splitlines()
    return rows


def configuration(slurm_conf: str | None) -> dict[str, str]:
    """Return all settings of the cluster."""
    lines = ask(slurm_conf, "scontrol", "show", "config").splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line]
    return {name.strip(): value.strip() for name, value in pairs}


def partitions(slurm_conf: str | None) -> dict[str, dict[str, str]]:
    """Return all partitions of the cluster by name, including hidden ones, with their limits."""
    return named("PartitionName", ask(slurm_conf, "scontrol", "--all", "show", "partition", "--oneliner"))


def nodes(slurm_conf: str | None, names: str) -> dict[str, dict[str, str]]:
    """Return nodes by name, with their resources; `names` is in Slurm's notation, such as `node[1-4]`."""
    return named("NodeName", ask(slurm_conf, "scontrol", "show", "node", names, "--oneliner"))


def named(key: str, output: str) -> dict[str, dict[str, str]]:
    """Parse the output of scontrol, with one object per line, into fields by the name under this key. Raises ValueError
    for unexpected output."""
    lines = [line for line in output.splitlines() if line.strip()]
    found = [parse_fields(line) for line in lines]
    wrong = [line for line, fields in zip(lines, found, strict=True) if key not in fields]
    if wrong or not found:
        answer = repr(wrong[0][:80]) if wrong else "nothing"
        told = f"scontrol should print each {key}, but printed {answer}"
        raise ValueError(f"{told}; check that scontrol is that of Slurm and that the cluster is up.")
    return {fields[key]: fields for fields in found}


QUALITY = ("Name", "Flags", "GraceTime", "PreemptMode", "MaxWall")


def qualities(slurm_conf: str | None) -> dict[str, dict[str, str]]:
    """Return all qualities of service by name, with the fields that affect times; empty if Slurm accounting does not
    answer."""
    try:
        output = ask(slurm_conf, "sacctmgr", "--noheader", "--parsable2", "show", "qos", f"format={','.join(QUALITY)}")
    except ValueError:
        return {}
    rows = [line.split("|") for line in output.splitlines()]
    return {row[0]: dict(zip(QUALITY, row, strict=True)) for row in rows if len(row) == len(QUALITY)}


def accounts(slurm_conf: str | None) -> dict[str, bool] | None:
    """Return all accounts and whether this user may use each; None if Slurm accounting does not answer."""
    try:
        form = "format=Account,User"
        output = ask(slurm_conf, "sacctmgr", "--noheader", "--parsable2", "show", "associations", form)
    except ValueError:
        return None
    ours, found = pwd.getpwuid(os.geteuid()).pw_name, {}
    for account, _, name in (line.partition("|") for line in output.splitlines()):
        found[account] = found.get(account, False) or name == ours
    return found


def expected_start(slurm_conf: str | None, script: str) -> str:
    """Return Slurm's line on when and where a batch script would start. Raises ValueError, with Slurm's message, if
    Slurm would reject it. It does not detect jobs that Slurm would accept but never start."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        done = run(slurm_conf, "sbatch", "--test-only", file.name)
    lines = [re.sub(r"^(\w+|allocation failure): (error: )?", "", line) for line in done.stderr.splitlines()]
    if done.returncode:
        raise ValueError(f"Slurm rejects the job: {'; '.join(dict.fromkeys(lines))}")
    return next((line for line in lines if " to start at " in line), "")


def duration_s(text: str) -> float:
    """Convert a time of Slurm, such as `30 sec`, `01:30:00` or `2-00:00:00`, to seconds; a word such as UNLIMITED is
    infinite."""
    if found := re.fullmatch(r"(\d+)(?: (sec|min))?", text.strip()):
        return float(found[1]) * (60 if found[2] == "min" else 1)
    days, _, rest = text.strip().rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in [days or "0", *parts]):
        return math.inf
    seconds = sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))
    return 86400 * float(days or 0) + seconds
