"""One task of a submitted job: under Slurm it is one rank; through submitit's local executor it starts the ranks.

`python -m launch.task JOB ...` is the same for scripts that srun runs without submitit.
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

from jobs.attempts import EXIT_REFUSED
from jobs.config import SPREAD, STOPPABLE, require
from jobs.runs import num_cores
from launch.errors import Told, say

SIOCGIFADDR = 0x8915
HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Run:
    """All that is pickled: the name of a job and its command line, as text. State is in the folder of the run."""

    job: str
    words: tuple[str, ...]

    def __call__(self) -> None:
        """Run the job to the end of the process."""
        from launch.__main__ import leave

        if in_step():
            run_rank([self.job, *self.words])
        from launch.local import supervise

        leave(lambda: supervise([self.job, *self.words]))


def in_step() -> bool:
    """Whether srun started this process."""
    return "SLURM_STEP_ID" in os.environ or "SLURM_STEPID" in os.environ


def run_rank(command: Sequence[str]) -> None:
    """Run a job as the rank that Slurm's variables say; the process ends with it."""
    from launch.__main__ import leave, main

    hold_signals(command[0])

    def rank() -> int:
        try:
            become_rank(os.environ)
        except ValueError as error:
            return say(Told(str(error), EXIT_REFUSED))
        return main(command)

    leave(rank)


def hold_signals(job: str) -> None:
    """Undo what submitit does on signals. Those that ask a job to stop wait until it can, or end one that cannot."""
    for number in (*HELD_BACK, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    if job in STOPPABLE + SPREAD:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)


def become_rank(environment: MutableMapping[str, str]) -> None:
    """Set the variables by which Accelerate and torch find the group, from Slurm's.

    Raises ValueError where the tasks are not spread evenly, or nothing says where the ranks meet.
    """
    size = int(environment["SLURM_STEP_NUM_TASKS"])
    threads = environment.get("SLURM_CPUS_PER_TASK") or str(max(num_cores() // local_size(environment), 1))
    environment.setdefault("OMP_NUM_THREADS", threads)
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if size == 1:
        return
    require(
        "MASTER_PORT" in environment,
        "several tasks, but no MASTER_ADDR and MASTER_PORT; use `deeplense submit`, or the script of its --export.",
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
        # gloo would take the address that the host's own name has, which may be the loopback's.
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)


def local_size(environment: Mapping[str, str]) -> int:
    """Tasks on each node, from `SLURM_STEP_TASKS_PER_NODE`, such as `2(x4)`. Raises ValueError where they differ."""
    text = environment["SLURM_STEP_TASKS_PER_NODE"]
    match = re.fullmatch(r"(\d+)(\(x\d+\))?", text)
    require(match is not None, f"the tasks are spread unevenly over the nodes ({text}); use --ntasks-per-node.")
    assert match
    return int(match[1])


def reachable(environment: Mapping[str, str]) -> str:
    """The first node, by name where this node knows the name, else by its address."""
    name = environment["MASTER_ADDR"]
    with contextlib.suppress(OSError):
        socket.getaddrinfo(name, None)
        return name
    return [*environment.get("DEEPLENSE_NODE_ADDRESSES", "").split(), name][0]


def other_node(environment: Mapping[str, str]) -> str:
    """The address of a node that is not this one, by way of which the ranks talk."""
    addresses = environment.get("DEEPLENSE_NODE_ADDRESSES", "").split()
    return addresses[-1 if environment["SLURM_NODEID"] == "0" else 0] if addresses else environment["MASTER_ADDR"]


def interface_to(address: str) -> str | None:
    """The network interface by which an address is reached; None where that cannot be told."""
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
