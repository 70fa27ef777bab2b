"""What may happen to a run on a cluster: each fault is a function that does it to a running job, and mends the cluster
again as an administrator would, with the ends of attempts that it may leave behind."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.cluster.private_slurm import PrivateSlurm, kill
from tests.cluster.trainings import Training, take_all_nodes, wait_for

AWAY_SECONDS = 12.0
"""How long what answers no more stays away."""
SHORT_SECONDS = 3.0


@dataclass(frozen=True)
class Fault:
    """`act` does it; `ends` are the ends of attempts, each without its detail, that it may leave; none where it leaves
    no trace. With `maybe` the attempt may live on, too; with `to_all` other jobs of the cluster feel it."""

    act: Callable[[Training], object]
    ends: tuple[str, ...] = ()
    maybe: bool = False
    to_all: bool = False


def told(name: str) -> Callable[[Training], object]:
    """A signal from Slurm to all ranks."""
    return lambda run: run.slurm.ask("scancel", f"--signal={name}", run.job_id)


def told_with_the_script(run: Training) -> None:
    """A signal to all processes of the job, the batch script among them."""
    run.slurm.ask("scancel", "--full", "--signal=TERM", run.job_id)


def told_twice(run: Training) -> None:
    """Two signals, one right after the other."""
    for _ in range(2):
        told("USR2")(run)


def preempted(run: Training) -> None:
    """An urgent job takes all nodes."""
    take_all_nodes(run.slurm)


def requeued(run: Training) -> None:
    """An administrator requeues the job."""
    run.slurm.ask("scontrol", "requeue", run.job_id)


def requeued_and_held(run: Training) -> None:
    """An administrator requeues and holds the job, and lets it go later."""
    run.slurm.ask("scontrol", "requeuehold", run.job_id)
    time.sleep(SHORT_SECONDS)
    run.slurm.ask("scontrol", "release", run.job_id)


def suspended(run: Training) -> None:
    """The job stands still for a while."""
    run.slurm.ask("scontrol", "suspend", run.job_id)
    time.sleep(SHORT_SECONDS)
    run.slurm.ask("scontrol", "resume", run.job_id)


def on_host(place: int, do: Callable[[Training, int], object]) -> Callable[[Training], None]:
    """Something that is done to the first (0) or last (-1) node of the job; nothing where it has none now."""

    def act(run: Training) -> None:
        if hosts := run.hosts():
            do(run, hosts[place])

    return act


def set_down(run: Training, host: int) -> None:
    """An administrator sets a node down."""
    run.slurm.ask("scontrol", "update", f"nodename=node{host}", "state=down", "reason=test")
    time.sleep(SHORT_SECONDS)
    run.slurm.bring_back(host)


def drained(run: Training, host: int) -> None:
    """A node shall take no more jobs, for a while."""
    run.slurm.ask("scontrol", "update", f"nodename=node{host}", "state=drain", "reason=test")
    time.sleep(SHORT_SECONDS)
    run.slurm.ask("scontrol", "update", f"nodename=node{host}", "state=resume")


def partition_down(run: Training) -> None:
    """The partition starts no jobs, for a while."""
    run.slurm.ask("scontrol", "update", "partition=normal", "state=down")
    time.sleep(SHORT_SECONDS)
    run.slurm.ask("scontrol", "update", "partition=normal", "state=up")


def daemon_killed(run: Training, host: int) -> None:
    """slurmd of a node dies, what it started lives on."""
    run.slurm.kill_daemon(host)
    run.wait_until_lost()
    run.slurm.bring_back(host)


def cable_cut(run: Training, host: int) -> None:
    """A node is cut off until the job has gone on elsewhere."""
    run.slurm.cut(host)
    run.wait_until_lost()
    run.slurm.mend(host)
    run.slurm.bring_back(host)


def power_lost(run: Training, host: int) -> None:
    """A node is without power until the job has gone on elsewhere."""
    run.slurm.kill_host(host)
    run.wait_until_lost()
    run.slurm.bring_back(host)


def rebooted(run: Training, host: int) -> None:
    """A node loses all processes, and is back before anybody has noticed."""
    run.slurm.bring_back(host)


def rank_killed(rank: int) -> Callable[[Training], None]:
    """kill -9 of a rank."""

    def act(run: Training) -> None:
        if pid := run.ranks().get(rank):
            kill(pid, signal.SIGKILL)

    return act


def ranks_killed(run: Training) -> None:
    """kill -9 of all ranks at once."""
    for pid in run.ranks().values():
        kill(pid, signal.SIGKILL)


def rank_stopped(run: Training) -> None:
    """A rank stands still for a moment."""
    pids = list(run.ranks().values())[-1:]
    for pid in pids:
        kill(pid, signal.SIGSTOP)
    time.sleep(SHORT_SECONDS)
    for pid in pids:
        kill(pid, signal.SIGCONT)


def program_killed(name: str) -> Callable[[Training], None]:
    """kill -9 of what Slurm runs for the job: `srun`, `slurmstepd`, or the batch script."""

    def act(run: Training) -> None:
        for pid in run.programs(name):
            kill(pid, signal.SIGKILL)

    return act


def srun_killed(run: Training) -> None:
    """kill -9 of `srun`. The batch script notices that, but the ranks do not: those that go on could finish before it
    has judged."""
    concluded = run.num_concluded()
    program_killed("srun")(run)
    deadline = time.monotonic() + 120
    while run.num_concluded() == concluded and run.state() and time.monotonic() < deadline:
        time.sleep(0.2)


def program_stopped(name: str) -> Callable[[Training], None]:
    """The same, stopped for a moment."""

    def act(run: Training) -> None:
        pids = run.programs(name)
        for pid in pids:
            kill(pid, signal.SIGSTOP)
        time.sleep(SHORT_SECONDS)
        for pid in pids:
            kill(pid, signal.SIGCONT)

    return act


def controller_killed(run: Training) -> None:
    """slurmctld dies, and comes back."""
    with without_controller(run.slurm):
        time.sleep(AWAY_SECONDS)


def controller_hung(run: Training) -> None:
    """slurmctld answers nobody for a while."""
    run.slurm.signal_daemon("slurmctld", signal.SIGSTOP)
    time.sleep(AWAY_SECONDS)
    run.slurm.signal_daemon("slurmctld", signal.SIGCONT)


def accounting_hung(run: Training) -> None:
    """slurmdbd answers nobody for a while."""
    run.slurm.signal_daemon("slurmdbd", signal.SIGSTOP)
    time.sleep(SHORT_SECONDS)
    run.slurm.signal_daemon("slurmdbd", signal.SIGCONT)


def told_without_controller(run: Training) -> None:
    """The ranks are told to stop while nobody takes the request for another attempt."""
    with without_controller(run.slurm):
        for pid in run.ranks().values():
            kill(pid, signal.SIGTERM)
        time.sleep(AWAY_SECONDS)


@contextmanager
def without_controller(slurm: PrivateSlurm) -> Iterator[None]:
    """slurmctld is dead meanwhile. It has written down all that it knew before: a job that it took in its last five
    seconds would be lost, with all that follows it."""
    wait_until_written(slurm)
    slurm.signal_daemon("slurmctld", signal.SIGKILL)
    try:
        yield
    finally:
        # It dies before it has written all that it asks for, which real ones have from days before.
        slurm.start_controller("-i")


def wait_until_written(slurm: PrivateSlurm) -> None:
    """Change a job, and wait until the controller has written all jobs. The first file may be one that it had begun to
    write before."""
    state = slurm.folder / "state" / "job_state"
    for _ in range(2):
        jobs = (slurm.ask("squeue", "-h", "-o", "%A") or "").split()
        before = state.stat().st_mtime_ns if state.exists() else 0
        if jobs and slurm.ask("scontrol", "update", f"jobid={jobs[0]}", f"comment=at-{before}") is not None:
            wait_for(
                lambda old=before: state.exists() and state.stat().st_mtime_ns > old, lambda: f"{state} is as it was"
            )


LOST = ("node lost",)
FAULTS: dict[str, Fault] = {
    "told near the limit": Fault(told("USR2"), ("time limit",)),
    "told near the limit twice": Fault(told_twice, ("time limit",)),
    "told to stop": Fault(told("TERM"), ("stopped by SIGTERM",)),
    # srun ends its ranks when it is told to stop.
    "told to stop with the script": Fault(told_with_the_script, ("stopped by SIGTERM", "crash")),
    "preempted": Fault(preempted, ("preempted, with grace",), to_all=True),
    "requeued": Fault(requeued, ("requeued",)),
    "requeued and held": Fault(requeued_and_held, ("requeued",)),
    "suspended": Fault(suspended),
    "last node down": Fault(on_host(-1, set_down), LOST, to_all=True),
    "first node down": Fault(on_host(0, set_down), LOST, to_all=True),
    "node drained": Fault(on_host(-1, drained), to_all=True),
    "partition down": Fault(partition_down, to_all=True),
    "daemon killed": Fault(on_host(-1, daemon_killed), LOST, to_all=True),
    "cable of the last node cut": Fault(on_host(-1, cable_cut), LOST, to_all=True),
    "cable of the first node cut": Fault(on_host(0, cable_cut), LOST, to_all=True),
    "power of the last node lost": Fault(on_host(-1, power_lost), (*LOST, "crash"), to_all=True),
    "power of the first node lost": Fault(on_host(0, power_lost), LOST, to_all=True),
    "last node rebooted": Fault(on_host(-1, rebooted), (*LOST, "crash", "requeued"), to_all=True),
    "first node rebooted": Fault(on_host(0, rebooted), (*LOST, "requeued", "killed"), to_all=True),
    "first rank killed": Fault(rank_killed(0), ("crash",)),
    "last rank killed": Fault(rank_killed(1), ("crash",)),
    "all ranks killed": Fault(ranks_killed, ("crash",)),
    "rank stopped": Fault(rank_stopped),
    "srun killed": Fault(srun_killed, ("crash",)),
    "slurmstepd killed": Fault(program_killed("slurmstepd"), ("crash", *LOST, "killed"), maybe=True),
    "script killed": Fault(program_killed("script"), ("killed", *LOST, "crash", "stopped by SIGTERM")),
    "script stopped": Fault(program_stopped("script")),
    "srun stopped": Fault(program_stopped("srun")),
    "controller killed": Fault(controller_killed, to_all=True),
    "controller hung": Fault(controller_hung, to_all=True),
    "accounting hung": Fault(accounting_hung, to_all=True),
    "told to stop without a controller": Fault(told_without_controller, ("stopped by SIGTERM",), to_all=True),
}
"""Of a job on two nodes with a rank each, after which it goes on by itself."""
