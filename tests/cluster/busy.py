"""How much sooner a run finishes on a busy cluster with a range of nodes than with a fixed number: a simulation, which
needs no Slurm and is a function of its seeds.

    python -m tests.cluster.busy                                    prints the table of docs/slurm.md
    python -m tests.cluster.busy --seeds 0:20 --loads 0.8 --hours 6

What is assumed, none of it measured at a site:

- A cluster of 16 nodes, on which other users submit jobs at random times (Poisson). A job has 1, 2, 4 or 8 nodes, half
  of them one; its length is lognormal, with a median of 1.5 h and a mean of 3.1 h, and at most a day. Users ask for
  twice the time that they need.
- Three in ten jobs are urgent: they start before all others, and requeue jobs that are not urgent, the last that began
  first. These wait in one queue, first come, first served, with backfill: a job may pass the first one if that does not
  start later for it, by the limits of the jobs that run (EASY; Lifka 1995, doi:10.1007/3-540-60153-8_35).
- The run comes to the end of the queue, again after each preemption or time limit, after 2 minutes. It saves before it
  stops, and an attempt makes its first step after 2 minutes. A range takes as many nodes as are free, not fewer than
  its least, and keeps them until the attempt ends.
- The run needs 96 h on one node. On w nodes it is w / (1 + 0.03 (w - 1)) times as fast: 3.7 times on four.

`load` is the part of all node hours that the other users ask for. Both ways see the same jobs of others.
"""

import argparse
import functools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

NUM_NODES = 16
SIZES, SHARES = (1, 2, 4, 8), (0.5, 0.25, 0.15, 0.1)
MEDIAN_H, SIGMA, LONGEST_H = 1.5, 1.25, 24.0
URGENT_SHARE = 0.3
LIMIT_FACTOR = 2.0
WARM_UP_H, HORIZON_H = 72.0, 1500.0
START_H = HOLD_H = 2 / 60
WORK_H, OVERHEAD = 96.0, 0.03
FIXED = (4, 4)
OTHERS = {"1:4": (1, 4), "2:4": (2, 4), "2:8": (2, 8), "8 nodes": (8, 8)}
FEW = 1e-9


@dataclass(eq=False)
class Job:
    """A job in the queue or on nodes; times in hours. `work` is what is left to do, in hours on one node for the run,
    and of its own time for others; `limit` is the time that it asks for."""

    least: int
    most: int
    work: float
    limit: float
    urgent: bool = False
    ours: bool = False
    eligible: float = 0.0
    began: float = 0.0
    width: int = 0

    @property
    def ends(self) -> float:
        """When it leaves its nodes, if nothing happens to it."""
        if not self.ours:
            return self.began + self.work
        return self.began + min(START_H + self.work / speed(self.width), self.limit)

    def left_after(self, hours: float) -> float:
        """The work that is left after so many hours on its nodes."""
        done = max(hours - START_H, 0.0) * speed(self.width) if self.ours else hours
        return max(self.work - done, 0.0)


@dataclass
class Outcome:
    """How a run fared: when it finished after its submission, the hours that it waited, and the width and hours of each
    attempt."""

    hours: float = math.inf
    waited: float = 0.0
    attempts: list[tuple[int, float]] = field(default_factory=list)


def speed(width: int) -> float:
    """How much faster so many nodes are than one."""
    return width / (1 + OVERHEAD * (width - 1))


def arrivals(seed: int, load: float, *, num_nodes: int = NUM_NODES) -> list[tuple[float, Job]]:
    """The jobs of others, and when each is submitted."""
    chance = random.Random(seed)
    mean_node_hours = mean_length() * sum(s * p for s, p in zip(SIZES, SHARES, strict=True))
    rate, time, found = load * num_nodes / mean_node_hours, 0.0, []
    while rate and (time := time + chance.expovariate(rate)) < HORIZON_H:
        size, length = chance.choices(SIZES, SHARES)[0], draw_length(chance)
        urgent = chance.random() < URGENT_SHARE
        found.append((time, Job(size, size, length, LIMIT_FACTOR * length, urgent=urgent)))
    return found


@functools.cache
def mean_length() -> float:
    """The mean length of a job of another user, in hours."""
    chance = random.Random(0)
    return statistics.fmean(draw_length(chance) for _ in range(50_000))


def draw_length(chance: random.Random) -> float:
    """The length of a job of another user, in hours."""
    return min(chance.lognormvariate(math.log(MEDIAN_H), SIGMA), LONGEST_H)


@dataclass
class Cluster:
    """The nodes, who is on them, and who waits."""

    num_nodes: int = NUM_NODES
    now: float = 0.0
    running: list[Job] = field(default_factory=list)
    queue: list[Job] = field(default_factory=list)

    @property
    def free(self) -> int:
        """Nodes that nobody has."""
        return self.num_nodes - sum(job.width for job in self.running)

    def start(self, job: Job, width: int) -> None:
        """Give a job nodes."""
        self.queue.remove(job)
        job.began, job.width = self.now, width
        self.running.append(job)

    def put_back(self, job: Job) -> None:
        """Take a job from its nodes, to the end of the queue; it goes on from where it is."""
        self.running.remove(job)
        job.work, job.eligible = job.left_after(self.now - job.began), self.now + HOLD_H
        self.queue.append(job)

    def schedule(self) -> None:
        """Start what can start now."""
        self.start_urgent()
        promised: tuple[float, int] | None = None
        for job in [job for job in self.queue if not job.urgent and job.eligible <= self.now + FEW]:
            width = min(job.most, self.free)
            if promised is not None and self.now + job.limit > promised[0] + FEW:
                width = min(width, promised[1])
            if width >= job.least:
                self.start(job, width)
                if promised is not None and self.now + job.limit > promised[0] + FEW:
                    promised = (promised[0], promised[1] - width)
            elif promised is None:
                promised = self.promise(job)

    def start_urgent(self) -> None:
        """Start urgent jobs in their order, on nodes of others if need be."""
        for job in [job for job in self.queue if job.urgent]:
            victims = sorted((other for other in self.running if not other.urgent), key=lambda other: -other.began)
            if self.free + sum(victim.width for victim in victims) < job.least:
                return
            while self.free < job.least:
                self.put_back(victims.pop(0))
            self.start(job, job.least)

    def promise(self, job: Job) -> tuple[float, int]:
        """When the first job of the queue can start by the limits of those that run, and how many nodes are left over
        then."""
        free = self.free
        for other in sorted(self.running, key=lambda other: other.began + other.limit):
            free += other.width
            if free >= job.least:
                return other.began + other.limit, free - job.least
        return math.inf, 0


def run_through(
    others: Sequence[tuple[float, Job]], nodes: tuple[int, int], *, limit_h: float, num_nodes: int = NUM_NODES
) -> Outcome:
    """Submit the run among the jobs of others; returns how it fared.

    Args:
        others: their jobs, and when each is submitted.
        nodes: the least and the most nodes of an attempt of the run.
        limit_h: time limit of an attempt, in hours.
        num_nodes: nodes of the cluster.
    """
    cluster, outcome = Cluster(num_nodes), Outcome()
    ours = Job(*nodes, WORK_H, limit_h, ours=True, eligible=WARM_UP_H)
    coming = sorted([*((time, replace(job)) for time, job in others), (WARM_UP_H, ours)], key=lambda pair: pair[0])
    place = 0
    while math.isinf(outcome.hours):
        times = [job.ends for job in cluster.running]
        times += [job.eligible for job in cluster.queue if job.eligible > cluster.now + FEW]
        times += [coming[place][0]] if place < len(coming) else []
        cluster.now = min(times)
        while place < len(coming) and coming[place][0] <= cluster.now + FEW:
            cluster.queue.append(coming[place][1])
            place += 1
        before = ours if ours in cluster.running else None
        finish(cluster, ours, outcome)
        cluster.schedule()
        note(cluster, ours, outcome, was_running=before is not None)
    return outcome


def finish(cluster: Cluster, ours: Job, outcome: Outcome) -> None:
    """Let those leave whose time has come; the run goes on later if it has work left."""
    for job in [job for job in cluster.running if job.ends <= cluster.now + FEW]:
        if job is not ours:
            cluster.running.remove(job)
            continue
        outcome.attempts[-1] = (job.width, cluster.now - job.began)
        if job.left_after(cluster.now - job.began) > FEW * WORK_H:
            cluster.put_back(job)
        else:
            cluster.running.remove(job)
            outcome.hours = cluster.now - WARM_UP_H
            outcome.waited = outcome.hours - sum(hours for _, hours in outcome.attempts)


def note(cluster: Cluster, ours: Job, outcome: Outcome, *, was_running: bool) -> None:
    """Write down an attempt of the run that has begun, or that was preempted."""
    if ours in cluster.running and ours.began == cluster.now:
        outcome.attempts.append((ours.width, 0.0))
    elif was_running and ours in cluster.queue and outcome.attempts[-1][1] == 0.0:
        outcome.attempts[-1] = (ours.width, cluster.now - ours.began)


def table(seeds: range, loads: Sequence[float], limits: Sequence[float]) -> list[str]:
    """The lines of the table, in Markdown."""
    heads = ["load", "time limit", "4 nodes", *OTHERS]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for load in loads:
        jobs = [arrivals(seed, load) for seed in seeds]
        for limit_h in limits:
            fixed = [run_through(each, FIXED, limit_h=limit_h) for each in jobs]
            cells = [f"{load:.0%}", f"{limit_h:g} h", in_hours(fixed)]
            for nodes in OTHERS.values():
                found = [run_through(each, nodes, limit_h=limit_h) for each in jobs]
                cells.append(f"{in_hours(found)}, {sooner(found, fixed)}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def in_hours(outcomes: Sequence[Outcome]) -> str:
    """The median hours to the end, and the median wait, as text."""
    hours, waited = (statistics.median(getattr(one, name) for one in outcomes) for name in ("hours", "waited"))
    return f"{hours:.0f} h ({waited:.0f})"


def sooner(found: Sequence[Outcome], fixed: Sequence[Outcome]) -> str:
    """The part of the time that is saved, seed by seed: the median and the limits of the middle half, as text."""
    gains = [100 * (1 - one.hours / other.hours) for one, other in zip(found, fixed, strict=True)]
    low, middle, high = (round(value) for value in statistics.quantiles(gains, n=4, method="inclusive"))
    return f"{middle} % [{low}, {high}]"


def seeds_of(text: str) -> range:
    """Seeds such as 0:20."""
    first, _, last = text.partition(":")
    return range(int(first), int(last))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default=range(100), help="seeds of the jobs of others, such as 0:100")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.7, 0.9], help="part of all node hours")
    parser.add_argument("--hours", type=float, nargs="+", default=[2.0, 12.0], help="time limits of an attempt")
    given = parser.parse_args()
    print("\n".join(table(given.seeds, given.loads, given.hours)))


if __name__ == "__main__":
    main()
