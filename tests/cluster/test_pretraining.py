"""Pretrainings of 2 nodes x 2 ranks on a real Slurm: a teacher and its centres survive what weights survive."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import NEVER, Training, assert_nothing_was_lost, kill, same, steps_lost, take_all_nodes


@pytest.fixture
def trainings(slurm: PrivateSlurm, stamps: Path, tmp_path: Path) -> Iterator[tuple[Training, Training]]:
    """Two pretrainings not yet submitted; what is left of them in the end is removed from the queue."""
    homes = [tmp_path / name for name in ("unbroken", "broken")]
    for home in homes:
        home.mkdir()
    first, second = (Training(slurm, home, stamps, job="pretrain") for home in homes)
    yield first, second
    slurm.clear()


@pytest.mark.parametrize(("method", "fsdp"), [("dino", 0), ("ibot", 0), ("dino", 1)])
def test_a_pretraining_that_is_preempted_and_killed_ends_with_the_bits_of_an_unbroken_one(
    method: str, fsdp: int, trainings: tuple[Training, Training]
) -> None:
    unbroken, training = trainings
    unbroken.submit(method=method, fsdp=fsdp)
    unbroken.wait_until_over()
    assert unbroken.ends() == ["finished"], unbroken.describe()

    training.hold(6)
    training.submit("--restarts", "crash=4", method=method, fsdp=fsdp)
    training.wait_until_held(attempt=1, step=6)
    take_all_nodes(training.slurm)
    training.wait_for_end(1)
    training.hold(15)
    training.wait_until_held(attempt=2, step=15)
    kill(training.ranks()[3])
    training.hold(NEVER)
    training.wait_until_over()

    kinds = [re.split(r"[:(]", end)[0] for end in training.ends()]
    assert kinds == ["preempted, with grace", "crash", "finished"], training.describe()
    assert_nothing_was_lost(training, unbroken)
    assert steps_lost(training)[0] == 0
    teacher, student = (
        {name.removeprefix(part): value for name, value in training.weights()["model"].items() if name.startswith(part)}
        for part in ("teacher.", "student.")
    )
    assert not same(teacher, student), "the comparison is of a teacher that is not its student"
