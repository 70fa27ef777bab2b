"""Faults in an order and at times that a seed draws, on a real Slurm of each version.

    python -m tests.cluster.schedules --suite trixie --seeds 0:20             draws and plays them
    python -m tests.cluster.schedules --suite trixie --play '4.1 preempted, 0.7 first rank killed'

What a schedule does is seen by ranks that count, without torch; one after which a run does not go on alone to its last
state is printed as the command that plays it again. `--suite here` is this machine's own Slurm. Needs root.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.faults import FAULTS
from tests.cluster.private_slurm import PrivateSlurm, take_number
from tests.cluster.trainings import STEPS, Training, assert_counted_to_the_end, counting, wait_for

HERE = "here"
FIRST_NUMBER = 101
MOST_SECONDS = 8.0
SLOW_SECONDS, FAST_SECONDS = 3.0, 0.05
"""Of a step, until all faults have come, and then."""
PATIENCE_SECONDS = 800.0
ORPHANING = "slurmstepd killed"
MEETING_SECONDS = 130.0
"""More than ranks that count wait for one another when they begin."""


@dataclass(frozen=True)
class Schedule:
    """Faults, and for each how many seconds after the one before it comes."""

    faults: tuple[tuple[float, str], ...]

    def __str__(self) -> str:
        return ", ".join(f"{wait:.1f} {name}" for wait, name in self.faults)


def draw(seed: int) -> Schedule:
    """Two to five faults, the first of them while the job starts or runs."""
    chance = random.Random(seed)
    names = [chance.choice(list(FAULTS)) for _ in range(chance.randint(2, 5))]
    return Schedule(tuple((round(chance.uniform(0, MOST_SECONDS), 1), name) for name in names))


def parse(text: str) -> Schedule:
    """A schedule as it is printed. Raises ValueError where it names no fault."""
    pairs = [part.strip().split(" ", 1) for part in text.split(",")]
    unknown = [pair for pair in pairs if len(pair) != 2 or pair[1] not in FAULTS]
    if unknown:
        raise ValueError(f"{unknown[0]} is none of: SECONDS {' | '.join(FAULTS)}")
    return Schedule(tuple((float(wait), name) for wait, name in pairs))


def command(schedule: Schedule, suite: str) -> str:
    """What plays a schedule again."""
    return f"python -m tests.cluster.schedules --suite {suite} --play '{schedule}'"


def play(schedule: Schedule, run: Training) -> None:
    """Submit a run and let the faults come. Raises AssertionError or TimeoutError unless it goes on alone."""
    pace = run.home / "step_seconds"
    pace.write_text(str(SLOW_SECONDS))
    run.submit("--restarts", "crash=30,hang=30")
    for wait, name in schedule.faults:
        time.sleep(wait)
        if not run.state():
            break
        FAULTS[name].act(run)
    pace.write_text(str(FAST_SECONDS))
    run.wait_until_over(seconds=PATIENCE_SECONDS)
    if any(name == ORPHANING for _, name in schedule.faults):
        # A rank without its slurmstepd, which still waits for others, is out of Slurm's reach until it gives up.
        wait_for(lambda: not run.processes(), run.describe, seconds=MEETING_SECONDS)
    assert_counted_to_the_end(run)
    most = 1 + 2 * len(schedule.faults)
    assert len(run.attempts()) <= most, f"more than {most} attempts: {run.describe()}"


@contextmanager
def cluster(suite: str) -> Iterator[PrivateSlurm]:
    """A cluster of a suite, for as long as it is needed."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True))
        number = take_number(stack, FIRST_NUMBER)
        slurm = PrivateSlurm(Path(folder), number=number, suite=None if suite == HERE else suite)
        slurm.start()
        stack.callback(slurm.stop)
        yield slurm


def attempt_to_play(schedule: Schedule, slurm: PrivateSlurm, suite: str) -> bool:
    """Play a schedule and tell what came of it; returns whether all went well."""
    with tempfile.TemporaryDirectory(prefix="schedule", ignore_cleanup_errors=True) as home:
        run, begun = counting(slurm, Path(home)), time.monotonic()
        try:
            play(schedule, run)
        except (AssertionError, TimeoutError) as error:
            print(f"FAILED: {command(schedule, suite)}\n{error}", flush=True)
            return False
        finally:
            slurm.clear()
        ends = "; ".join(run.ends())
        print(f"{suite}, {time.monotonic() - begun:.0f} s, {len(STEPS)} steps after {schedule}: {ends}", flush=True)
    return True


def main(words: Sequence[str] | None = None) -> int:
    """Play schedules; returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--suite", default=HERE, help="here, or a suite of Debian in a box: trixie, unstable")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", help="FIRST:END")
    what.add_argument("--play", type=parse, help="SECONDS FAULT, SECONDS FAULT ...")
    given = parser.parse_args(words)
    schedules = [given.play] if given.play else [draw(seed) for seed in range(*map(int, given.seeds.split(":")))]
    with cluster(given.suite) as slurm:
        good = [attempt_to_play(schedule, slurm, given.suite) for schedule in schedules]
    print(f"{given.suite}: {sum(good)} of {len(good)} schedules went well")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
