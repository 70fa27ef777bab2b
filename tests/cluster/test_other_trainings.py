"""Pretrainings and diffusion, 2 nodes x 2 ranks on a real Slurm: a teacher with its centres, weights that are spread
over the ranks, and a running mean survive what weights survive."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import NEVER, Training, assert_nothing_was_lost, kill, same, steps_lost, take_all_nodes

Job = Literal["pretrain", "diffuse"]
Pair = tuple[Training, Training]


@pytest.fixture
def trainings(slurm: PrivateSlurm, stamps: Path, tmp_path: Path) -> Iterator[Callable[[Job], Pair]]:
    """Two trainings not yet submitted; what is left of them in the end is removed from the queue."""

    def pair(job: Job) -> Pair:
        homes = [tmp_path / name for name in ("unbroken", "broken")]
        for home in homes:
            home.mkdir()
        return Training(slurm, homes[0], stamps, job=job), Training(slurm, homes[1], stamps, job=job)

    yield pair
    slurm.clear()


CASES: list[tuple[Job, dict[str, Any]]] = [
    ("pretrain", {"method": "dino"}),
    ("pretrain", {"method": "ibot"}),
    ("pretrain", {"method": "dino", "fsdp": 1}),
    ("diffuse", {}),
]


@pytest.mark.parametrize(("job", "settings"), CASES)
def test_preempted_and_killed_it_ends_with_the_bits_of_an_unbroken_one(
    job: Job, settings: dict[str, Any], trainings: Callable[[Job], Pair]
) -> None:
    unbroken, training = trainings(job)
    unbroken.submit(**settings)
    unbroken.wait_until_over()
    assert unbroken.ends() == ["finished"], unbroken.describe()

    training.hold(6)
    training.submit("--restarts", "crash=4", **settings)
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
    mean, learnt = means_of(job, training)
    assert not same(mean, learnt), "the comparison is of a running mean that is not what it is the mean of"


def means_of(job: Job, training: Training) -> tuple[dict[str, Any], dict[str, Any]]:
    """What follows in a training, and what it follows."""
    weights = training.weights()
    if job == "diffuse":
        return weights["ema"], weights["model"]
    teacher, student = (
        {name.removeprefix(part): value for name, value in weights["model"].items() if name.startswith(part)}
        for part in ("teacher.", "student.")
    )
    return teacher, student
