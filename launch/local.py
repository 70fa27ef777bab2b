"""Several processes of one job on this machine, as ranks of one group."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from jobs.runs import EXIT_STOPPED, num_cores

SECONDS_TO_DIE = 30.0
PR_SET_PDEATHSIG = 1


def run_processes(command: Sequence[str], num_processes: int, *, restarts: int) -> int:
    """Run `deeplense COMMAND` as this many ranks; returns the exit code of the whole.

    A signal to this process goes on to all ranks, which save and leave. Where the ranks were told to stop by others,
    as a
    scheduler does, they are started again, `restarts` times at most.
    """
    group = Group()
    for attempt in range(restarts + 1):
        group.start(command, num_processes)
        code = group.wait()
        if code != EXIT_STOPPED or group.forwarded is not None or attempt == restarts:
            return code
        print("the ranks were told to stop and saved; starting again", flush=True)
    raise AssertionError


class Group:
    """The ranks of one attempt. From its making on, signals to this process go to the ranks, also those not yet
    started."""

    def __init__(self) -> None:
        self.forwarded: int | None = None
        self.ranks: list[subprocess.Popen[bytes]] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self.forward)

    def start(self, command: Sequence[str], num_processes: int) -> None:
        """Start the ranks of an attempt."""
        self.ranks, port = [], free_port()
        for rank in range(num_processes):
            process = subprocess.Popen(
                [sys.executable, "-m", "launch", *command],
                env=os.environ | rank_environment(rank, num_processes, port),
                preexec_fn=die_with_parent,
            )
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


def rank_environment(rank: int, num_processes: int, port: int) -> dict[str, str]:
    """The variables by which Accelerate and torch find the group; the cores are shared out among the ranks."""
    threads = max(num_cores() // num_processes, 1)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        # DDP warns that its buckets keep their layout, which is what we want (`loop.FIXED_BUCKETS`).
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    """In a new process: be told to stop when the parent is gone, however it went (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
