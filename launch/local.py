"""Run several processes of one job on this machine, as ranks of one process group."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from jobs.errors import SAYS
from jobs.imports import PYTHON
from jobs.processes import die_with_parent, meeting_at
from jobs.runs.attempts import EXIT_STOPPED, FOLDER, NUMBER
from jobs.runs.environment import num_cores
from jobs.runs.folder import LAUNCH
from jobs.settings import require
from launch.ends import CANCELLED, TIME_LIMIT, begin_line

T = TypeVar("T")
VISIBLE = "DEEPLENSE_VISIBLE_DEVICES"
RESTART_BY_SUBMITIT = 144
"""Exit code on which submitit's local controller restarts a job, at most six times."""
SECONDS_TO_DIE = 30.0
PAUSE, PATIENCE, LONGEST_PAUSE_S = "DEEPLENSE_PAUSE_S", "DEEPLENSE_PATIENCE_S", 300.0
"""Environment variables, as in the batch script, for the first pause and for all pauses together, in seconds."""


def run_processes(command: Sequence[str], num_processes: int) -> int:
    """Run `deeplense COMMAND` with this number of ranks; return their common exit code.

    Signals to this process are forwarded to all ranks, which save a checkpoint and exit.
    """
    group = Group()
    group.start(command, num_processes)
    return group.wait()


def supervise(command: Sequence[str]) -> int:
    """Run a submitted job on this machine, as the batch script does on Slurm: start attempts as long as the reason of
    the last end allows another. Return the exit code for submitit's controller, or that of the last attempt.
    """
    from launch.copied import WHERE, refuse_other_code
    from launch.judging import Job, launched
    from launch.notices import send_due
    from launch.requeue import Over, Waits, begin, end

    folder, group = Path(os.environ[FOLDER]), Group()
    restore_devices()
    if group.forwarded is not None:
        return RESTART_BY_SUBMITIT if group.forwarded == signal.SIGUSR2 else EXIT_STOPPED
    job = launched(folder)
    missing = [name for name in ("logs", "tasks") if name not in job]
    require(not missing, f"{folder / LAUNCH} is damaged: it lacks {' and '.join(missing)}; submit the run again.")
    if code := os.environ.get(WHERE):
        refuse_other_code(Path(code))
    log = Path(job["logs"]) / f"{os.environ['SUBMITIT_LOCAL_JOB_ID']}_0_log.out"
    while True:
        try:
            number = persist(partial(begin, folder, log=log, job=Job()))
        except Over as over:
            print(f"deeplense: {over}", flush=True)
            send_due(folder)
            return 0
        except Waits as waits:
            print(f"deeplense: {waits}", flush=True)
            return EXIT_STOPPED
        os.environ[NUMBER] = str(number)
        print(begin_line(number), flush=True)
        group.start(command, job["tasks"], log=log)
        code = group.wait()
        near_limit = group.forwarded == signal.SIGUSR2
        cause = None if group.forwarded is None else TIME_LIMIT if near_limit else CANCELLED
        what = persist(partial(end, folder, number, log=log, job=Job(), code=code, cause=cause))
        send_due(folder)
        if what != "requeue":
            return code
        if near_limit:
            return RESTART_BY_SUBMITIT


def persist(do: Callable[[], T]) -> T:
    """Call a function; on OSError, retry with growing pauses for hours. Raises the last OSError."""
    pause_s = float(os.environ.get(PAUSE, "5"))
    deadline = time.monotonic() + float(os.environ.get(PATIENCE, "21600"))
    while True:
        try:
            return do()
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            print(f"deeplense: {error}; trying again in {pause_s:g} s", flush=True)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def restore_devices() -> None:
    """Make the GPUs visible that were visible at submission; submitit's local executor hides them."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    visible = os.environ.pop(VISIBLE, None)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


class Group:
    """The ranks of one attempt. Once created, it forwards signals of this process to the ranks, including ranks that
    start later."""

    def __init__(self) -> None:
        self.forwarded: int | None = None
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.private: tempfile.TemporaryDirectory[str] | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self.forward)

    def start(self, command: Sequence[str], num_processes: int, *, log: Path | None = None) -> None:
        """Start the ranks of an attempt. With a log, each rank except the first writes to its own log."""
        # A folder of mode 0700, new for each attempt, so that files of an earlier attempt are not read.
        self.ranks, self.private = [], tempfile.TemporaryDirectory(prefix="deeplense-")
        place = Path(self.private.name) / "meeting"
        says = {} if log else {SAYS: self.private.name}
        for rank in range(num_processes):
            apart = log.with_name(log.name.replace("_0_log", f"_{rank}_log")).open("a") if log and rank else None
            process = subprocess.Popen(
                [*PYTHON, "-m", "jobs", *command],
                env=os.environ | says | rank_environment(rank, num_processes, place),
                preexec_fn=die_with_parent,
                stdout=apart,
                stderr=apart,
            )
            if apart:
                apart.close()
            self.ranks.append(process)
            if self.forwarded is not None:
                process.send_signal(self.forwarded)

    def forward(self, number: int, frame: object) -> None:
        """Forward a signal to the ranks."""
        self.forwarded = number
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def wait(self) -> int:
        """Wait for all ranks and return the exit code. If one fails, end the others, which would wait forever."""
        while None in (codes := [rank.poll() for rank in self.ranks]):
            if failures(codes):
                self.end()
                break
            time.sleep(0.05)
        if failures(codes):
            self.tell(codes)
        if self.private is not None:
            self.private.cleanup()
        if failed := failures(codes):
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        return max(code or 0 for code in codes)

    def tell(self, codes: Sequence[int | None]) -> None:
        """Print the error of the failed rank, unless the first rank has already printed the same."""
        failed = next(rank for rank, code in enumerate(codes) if failures([code]))
        folder = Path(self.private.name if self.private else "")
        said, of_first = (read_if_there(folder / f"rank_{rank}") for rank in (failed, 0))
        if said and said != of_first:
            sys.stderr.write(f"deeplense: rank {failed}: {said}")

    def end(self) -> None:
        """Terminate the ranks that still run, and kill those that do not exit in time."""
        deadline = time.monotonic() + SECONDS_TO_DIE
        for rank in self.ranks:
            rank.terminate()
        while None in [rank.poll() for rank in self.ranks] and time.monotonic() < deadline:
            time.sleep(0.05)
        for rank in self.ranks:
            rank.kill()
            rank.wait()


def read_if_there(path: Path) -> str:
    """Return the text of a file; empty if it does not exist."""
    return path.read_text() if path.exists() else ""


def failures(codes: Sequence[int | None]) -> list[int]:
    """Return the known exit codes that mean a failure."""
    return [code for code in codes if code not in (None, 0, EXIT_STOPPED)]


def rank_environment(rank: int, num_processes: int, place: Path) -> dict[str, str]:
    """Return the variables that set up the process group for Accelerate and torch. Cores are divided among the ranks.

    Ranks trust all data from other ranks, so no rank may listen on an external interface: they rendezvous through a
    file that only this user can read, and exchange data over the loopback interface.
    """
    threads = max(num_cores() // num_processes, 1)
    shared = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        # Suppress messages of DDP about its buckets.
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }
    if num_processes == 1:
        return shared
    return shared | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "GLOO_SOCKET_IFNAME": loopback(),
        "NCCL_SOCKET_IFNAME": loopback(),
        **meeting_at(place),
    }


def loopback() -> str:
    """Return the name of the loopback interface."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
