"""Several processes of one job on this machine, as ranks of one group."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.attempts import EXIT_STOPPED, FOLDER, NUMBER
from jobs.children import die_with_parent, meeting_at
from jobs.config import require
from jobs.runs import LAUNCH, num_cores
from launch.ends import CANCELLED, TIME_LIMIT, begin_line

VISIBLE = "DEEPLENSE_VISIBLE_DEVICES"
RESTART_BY_SUBMITIT = 144
"""Exit code on which submitit's local controller starts a job again, six times at most."""
SECONDS_TO_DIE = 30.0


def run_processes(command: Sequence[str], num_processes: int) -> int:
    """Run `deeplense COMMAND` as this many ranks; returns the exit code of the whole.

    A signal to this process goes on to all ranks, which save and leave.
    """
    group = Group()
    group.start(command, num_processes)
    return group.wait()


def supervise(command: Sequence[str]) -> int:
    """Run a submitted job on this machine, as the batch script does on Slurm: attempt after attempt, as long as the
    reason of each end allows. Returns the exit code for submitit's controller, or of the last attempt.
    """
    from launch.requeue import begin, end, launched

    folder, group = Path(os.environ[FOLDER]), Group()
    restore_devices()
    if group.forwarded is not None:
        return RESTART_BY_SUBMITIT if group.forwarded == signal.SIGUSR2 else EXIT_STOPPED
    job = launched(folder)
    missing = [name for name in ("logs", "tasks") if name not in job]
    require(not missing, f"{folder / LAUNCH} is damaged: it has no {' and no '.join(missing)}; submit the run again.")
    log = Path(job["logs"]) / f"{os.environ['SUBMITIT_LOCAL_JOB_ID']}_0_log.out"
    while True:
        number = begin(folder, log=log, scheduler="", history="")
        os.environ[NUMBER] = str(number)
        print(begin_line(number), flush=True)
        group.start(command, job["tasks"], log=log)
        code = group.wait()
        near_limit = group.forwarded == signal.SIGUSR2
        cause = None if group.forwarded is None else TIME_LIMIT if near_limit else CANCELLED
        what = end(folder, number, log=log, scheduler="", code=code, cause=cause)
        if what != "requeue":
            return code
        if near_limit:
            return RESTART_BY_SUBMITIT


def restore_devices() -> None:
    """Show the GPUs that were visible when the job was submitted; submitit's local executor hides them."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    visible = os.environ.pop(VISIBLE, None)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


class Group:
    """The ranks of one attempt. From its making on, signals to this process go to the ranks, also those not yet
    started."""

    def __init__(self) -> None:
        self.forwarded: int | None = None
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.private: tempfile.TemporaryDirectory[str] | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self.forward)

    def start(self, command: Sequence[str], num_processes: int, *, log: Path | None = None) -> None:
        """Start the ranks of an attempt; where there is a log, each but the first writes to one of its own."""
        # A folder of mode 0700, new for each attempt: what an earlier one left in it would be taken for this one's.
        self.ranks, self.private = [], tempfile.TemporaryDirectory(prefix="deeplense-")
        place = Path(self.private.name) / "meeting"
        for rank in range(num_processes):
            apart = log.with_name(log.name.replace("_0_log", f"_{rank}_log")).open("a") if log and rank else None
            process = subprocess.Popen(
                [sys.executable, "-m", "launch", *command],
                env=os.environ | rank_environment(rank, num_processes, place),
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
        """Pass a signal on to the ranks."""
        self.forwarded = number
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def wait(self) -> int:
        """Wait for all ranks; where one fails, end the others, which would wait for it for ever."""
        while None in (codes := [rank.poll() for rank in self.ranks]):
            if failures(codes):
                self.end()
                break
            time.sleep(0.05)
        if self.private is not None:
            self.private.cleanup()
        if failed := failures(codes):
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        return max(code or 0 for code in codes)

    def end(self) -> None:
        """Terminate the ranks that still run, and kill those that do not heed it."""
        deadline = time.monotonic() + SECONDS_TO_DIE
        for rank in self.ranks:
            rank.terminate()
        while None in [rank.poll() for rank in self.ranks] and time.monotonic() < deadline:
            time.sleep(0.05)
        for rank in self.ranks:
            rank.kill()
            rank.wait()


def failures(codes: Sequence[int | None]) -> list[int]:
    """Exit codes that mean a failure, of those that are known."""
    return [code for code in codes if code not in (None, 0, EXIT_STOPPED)]


def rank_environment(rank: int, num_processes: int, place: Path) -> dict[str, str]:
    """The variables by which Accelerate and torch find the group; the cores are shared out among the ranks.

    The ranks trust whatever another rank sends, so nothing of this group may listen beyond this machine: they meet in a
    file that only this user can read, and exchange data over the loopback interface.
    """
    threads = max(num_cores() // num_processes, 1)
    shared = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        # DDP warns that its buckets keep their layout, which is what we want (`loop.FIXED_BUCKETS`).
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
    """The name of the interface of 127.0.0.1."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
