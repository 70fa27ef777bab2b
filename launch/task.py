"""One task of a submitted job: under Slurm it is one rank; with submitit's local executor it starts all ranks.

`python -m launch.task JOB ...` does the same in scripts where srun runs it without submitit.
"""

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import Told, say, told_of
from jobs.runs.attempts import EXIT_REFUSED
from jobs.runs.environment import num_cores
from jobs.settings import require
from jobs.verbs import SPREAD, STOPPABLE, with_joined_name
from launch.copied import WHERE, refuse_other_code

SIOCGIFADDR = 0x8915
HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Run:
    """The object that is pickled: the name of a job and its command line, as text. All state is in the run folder."""

    job: str
    words: tuple[str, ...]

    def __call__(self) -> None:
        """Run the job; the process ends with it."""
        if in_step():
            run_rank([self.job, *self.words])
        from jobs.run_job import leave
        from launch.local import supervise

        leave(lambda: supervise([self.job, *self.words]))


def in_step() -> bool:
    """Whether srun started this process as a rank. (Slurm 26.05 also sets SLURM_STEP_ID in a batch script.)"""
    return "SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SUBMITIT_EXECUTOR") != "local"


def run_rank(command: Sequence[str]) -> None:
    """Run a job as the rank given by Slurm's variables; the process ends with it."""
    hold_signals(command[0])
    from jobs.run_job import answered, leave
    from launch.job import run_job

    def rank() -> int:
        try:
            become_rank(os.environ)
            if code := os.environ.get(WHERE):
                refuse_other_code(Path(code))
        except (ValueError, OSError) as error:
            return say(told_of(error) or Told(str(error), EXIT_REFUSED))
        return answered(lambda: run_job(with_joined_name(command), 1))

    leave(rank)


def hold_signals(job: str) -> None:
    """Remove submitit's signal handlers. Block stop signals until a job handles them, if it can."""
    for number in (*HELD_BACK, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    if job in STOPPABLE + SPREAD:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)


def become_rank(environment: MutableMapping[str, str]) -> None:
    """Set the variables that set up the process group for Accelerate and torch, from those of Slurm.

    Raises ValueError if tasks are distributed unevenly, or the address of the first rank is missing.
    """
    size = int(environment["SLURM_STEP_NUM_TASKS"])
    threads = environment.get("SLURM_CPUS_PER_TASK") or str(max(num_cores() // local_size(environment), 1))
    environment.setdefault("OMP_NUM_THREADS", threads)
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if size == 1:
        return
    require(
        "MASTER_PORT" in environment,
        "several tasks, but MASTER_ADDR and MASTER_PORT are not set; use `deeplense submit` with or without --export.",
    )
    environment.update(
        {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(local_size(environment)),
            "MASTER_ADDR": reachable(environment),
        }
    )
    if int(environment["SLURM_STEP_NUM_NODES"]) > 1 and (interface := interface_to(other_node(environment))):
        # gloo would use the address of the host's own name, which may be the loopback address.
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)


def local_size(environment: Mapping[str, str]) -> int:
    """Return the tasks per node from `SLURM_STEP_TASKS_PER_NODE`, such as `2(x4)`. Raises ValueError if they differ."""
    text = environment["SLURM_STEP_TASKS_PER_NODE"]
    match = re.fullmatch(r"(\d+)(\(x\d+\))?", text)
    require(match is not None, f"tasks are distributed unevenly over the nodes ({text}); use --ntasks-per-node.")
    assert match
    return int(match[1])


def reachable(environment: Mapping[str, str]) -> str:
    """Return the first node: its name if this node can resolve it, else its address."""
    name = environment["MASTER_ADDR"]
    with contextlib.suppress(OSError):
        socket.getaddrinfo(name, None)
        return name
    return [*environment.get("DEEPLENSE_NODE_ADDRESSES", "").split(), name][0]


def other_node(environment: Mapping[str, str]) -> str:
    """Return the address of another node, to find the network interface between ranks."""
    addresses = environment.get("DEEPLENSE_NODE_ADDRESSES", "").split()
    return addresses[-1 if environment["SLURM_NODEID"] == "0" else 0] if addresses else environment["MASTER_ADDR"]


def interface_to(address: str) -> str | None:
    """Return the network interface that reaches an address; None if unknown."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        ours = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                if fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24] == ours:
                    return name
    return None


if __name__ == "__main__":
    run_rank(sys.argv[1:])
