"""What keeps a run from going on for a while, and what ends it: disks that are away, and scancel at each moment."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.sight.table import table
from tests.cluster.conftest import Clusters
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.test_walk import assert_all_are_gone
from tests.cluster.trainings import NEVER, assert_counted_to_the_end, wait_for
from tests.cluster.walk import Walk


def remount(options: str) -> Callable[[Walk], None]:
    """Mount the small disk once more, so."""

    def act(walk: Walk) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", walk.slurm.small_disk], check=True)

    return act


def use_up_inodes(walk: Walk) -> None:
    """Leave no room for another file on the small disk."""
    found = os.statvfs(walk.slurm.small_disk)
    remount(f"nr_inodes={found.f_files - found.f_ffree}")(walk)


def rename(source: str, target: str) -> Callable[[Walk], None]:
    """Take something of a run away, or bring it back."""

    def act(walk: Walk) -> None:
        names = {"run": walk.run, "run_away": walk.run.with_name("away")}
        paths = [names.get(name, walk.home / name) for name in (source, target)]
        paths[0].rename(paths[1])

    return act


AWAY: dict[str, tuple[Callable[[Walk], None], Callable[[Walk], None]]] = {
    "the disk is read-only": (remount("ro"), remount("rw")),
    "the disk has no room for a file": (use_up_inodes, remount("nr_inodes=100000")),
    "the folder of the run is away": (rename("run", "run_away"), rename("run_away", "run")),
    "Python is away": (rename("bin/python", "bin/gone"), rename("bin/gone", "bin/python")),
    "the list of folders is away": (rename("logs/folders.txt", "logs/f"), rename("logs/f", "logs/folders.txt")),
}
"""What is away for a while, and how it comes back."""


@pytest.fixture
def walk(clusters: Clusters, tmp_path: Path) -> Iterator[Walk]:
    """A run on the small disk, not yet submitted."""
    slurm = clusters()
    remount("rw")(walked := Walk(slurm, tmp_path, slurm.small_disk / tmp_path.name))
    yield walked
    remount("rw,nr_inodes=100000")(walked)
    slurm.clear()


@pytest.mark.parametrize("name", AWAY)
def test_what_is_away_when_an_attempt_begins_is_waited_for(name: str, walk: Walk) -> None:
    take, bring = AWAY[name]
    walk.slurm.ask("scontrol", "update", "partition=normal", "state=down")
    try:
        walk.send()
        take(walk)
    finally:
        walk.slurm.ask("scontrol", "update", "partition=normal", "state=up")
    wait_for(lambda: "trying again in 2 s" in walk.log, walk.training.describe)
    assert name != "the folder of the run is away" or not walk.run.exists()
    bring(walk)
    walk.training.wait_until_over()
    assert walk.training.ends() == ["finished"], walk.training.describe()
    assert_counted_to_the_end(walk.training)


def wait_until_held(walk: Walk, step: int) -> None:
    """Wait until the only rank waits before a step."""
    made = walk.home / "samples_1_0.txt"
    wait_for(lambda: made.exists() and len(made.read_text().splitlines()) >= step, walk.training.describe)
    time.sleep(0.5)


def test_a_disk_that_becomes_read_only_costs_one_attempt_and_is_the_reason(walk: Walk) -> None:
    training = walk.training
    training.hold(4)
    walk.send()
    wait_until_held(walk, 4)
    remount("ro")(walk)
    training.hold(NEVER)
    wait_for(lambda: "trying again in 2 s" in walk.log, training.describe)
    remount("rw")(walk)
    training.wait_until_over()
    assert training.ends() == ["disk read-only", "finished"], training.describe()
    assert_counted_to_the_end(training)


def followers(slurm: PrivateSlurm) -> list[str]:
    """Jobs that would go on in the place of another."""
    names = (slurm.ask("squeue", "-h", "-o", "%j") or "").split()
    return [name for name in names if name.startswith("deeplense-after-")]


def held(walk: Walk) -> Walk:
    """A run that has made some steps and waits, followed by a job."""
    walk.training.hold(4)
    walk.send()
    wait_until_held(walk, 4)
    wait_for(lambda: followers(walk.slurm), walk.training.describe)
    return walk


def assert_stays_cancelled(walk: Walk) -> None:
    """Nothing is left of a run, `status` says so, and what continues it does."""
    training = walk.training
    wait_for(lambda: not training.state() and not followers(walk.slurm), training.describe)
    time.sleep(2)
    assert not training.state(), "nobody has brought it back meanwhile"
    assert_all_are_gone(walk)
    (note,) = [line for line in table([walk.run]) if line.startswith("note: ")]
    assert "cancelled" in note
    assert f"`deeplense resume {walk.run}` resumes it" in note
    (walk.home / "stubborn").unlink(missing_ok=True)
    training.hold(NEVER)
    training.deeplense("resume", str(walk.run))
    training.wait_until_over()
    assert_counted_to_the_end(training)


@pytest.fixture
def anywhere(each_slurm: PrivateSlurm, tmp_path: Path) -> Iterator[Walk]:
    """A run on a cluster of each version."""
    yield Walk(each_slurm, tmp_path)
    each_slurm.clear()


def test_scancel_of_ranks_that_do_not_heed_it_is_scancel(anywhere: Walk) -> None:
    (anywhere.home / "stubborn").write_text("1")
    held(anywhere)
    anywhere.slurm.ask("scancel", anywhere.training.job_id)
    assert_stays_cancelled(anywhere)
    assert anywhere.training.ends() == ["cancelled", "finished"]


def test_scancel_of_a_job_that_waits_for_its_next_start_is_scancel(anywhere: Walk) -> None:
    training = held(anywhere).training
    anywhere.slurm.ask("scontrol", "requeue", training.job_id)
    wait_for(lambda: training.state() == "PENDING", training.describe)
    anywhere.slurm.ask("scancel", training.job_id)
    assert_stays_cancelled(anywhere)
    assert training.ends() == ["requeued", "finished"]


def test_deeplense_cancel_takes_the_job_that_follows_too(walk: Walk) -> None:
    training = held(walk).training
    training.deeplense("cancel", str(walk.run))
    assert_stays_cancelled(walk)
    assert training.ends() == ["cancelled", "finished"]
