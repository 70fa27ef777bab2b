"""Pretrainings and diffusion on two nodes of a real Slurm: a teacher with its centres, weights that are spread
over the ranks, and a running mean survive what weights survive."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.cluster.boxes import SUITES
from tests.cluster.conftest import Clusters, finished
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import NEVER, Training, assert_nothing_was_lost, kill, same, steps_lost, take_all_nodes

Job = Literal["pretrain", "diffuse"]
Unbroken = Callable[..., Training]


@pytest.fixture(scope="module")
def unbroken_of(clusters: Clusters, stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """What makes a training to which nothing happens, on this machine's Slurm, or gives it where it is made."""
    made: dict[str, Training] = {}

    def unbroken(job: Job, **settings: Any) -> Training:
        name = f"{job} {settings}"
        if name not in made:
            made[name] = finished(
                Training(clusters(), tmp_path_factory.mktemp("unbroken"), stamps, job=job), **settings
            )
        return made[name]

    return unbroken


@pytest.fixture(params=SUITES)
def newer_slurm(request: pytest.FixtureRequest, clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> PrivateSlurm:
    """Four hosts of each newer version in turn."""
    cluster = clusters(request.param)
    monkeypatch.setenv("PATH", cluster.environment["PATH"])
    return cluster


@pytest.fixture
def trainings(slurm: PrivateSlurm, stamps: Path, tmp_path: Path) -> Iterator[Callable[[Job], Training]]:
    """What makes a training not yet submitted; what is left of it in the end is removed from the queue."""
    yield lambda job: Training(slurm, tmp_path, stamps, job=job)
    slurm.clear()


CASES: list[tuple[Job, dict[str, Any]]] = [
    ("pretrain", {"method": "dino"}),
    ("pretrain", {"method": "ibot"}),
    ("pretrain", {"method": "dino", "fsdp": 1}),
    ("diffuse", {}),
]


@pytest.mark.parametrize(("job", "settings"), CASES)
def test_preempted_and_killed_it_ends_with_the_bits_of_an_unbroken_one(
    job: Job, settings: dict[str, Any], trainings: Callable[[Job], Training], unbroken_of: Unbroken
) -> None:
    unbroken, training = unbroken_of(job, **settings), trainings(job)
    preempt_and_kill(training, **settings)
    assert_nothing_was_lost(training, unbroken)
    assert steps_lost(training)[0] == 0
    mean, learnt = means_of(job, training)
    assert not same(mean, learnt), "the comparison is of a running mean that is not what it is the mean of"


def test_on_a_newer_slurm_a_training_preempted_and_killed_has_the_bits_of_an_unbroken_one_here(
    newer_slurm: PrivateSlurm, unbroken: Training, dataset: Path, tmp_path: Path
) -> None:
    training = Training(newer_slurm, tmp_path, dataset)
    try:
        preempt_and_kill(training)
        assert_nothing_was_lost(training, unbroken)
    finally:
        newer_slurm.clear()


def test_on_a_newer_slurm_a_training_that_loses_a_node_has_the_bits_of_an_unbroken_one_here(
    newer_slurm: PrivateSlurm, unbroken: Training, dataset: Path, tmp_path: Path
) -> None:
    # Pretrainings would differ in the last bits from those here: a box has another libm.
    training = Training(newer_slurm, tmp_path, dataset)
    try:
        training.hold(9)
        training.submit()
        training.wait_until_held(attempt=1, step=9)
        host = training.hosts()[-1]
        newer_slurm.kill_host(host)
        training.wait_for_attempt(2)
        newer_slurm.bring_back(host)
        training.hold(NEVER)
        training.wait_until_over()
        assert training.kinds() == ["node lost", "finished"], training.describe()
        assert_nothing_was_lost(training, unbroken)
    finally:
        newer_slurm.clear()


def preempt_and_kill(training: Training, **settings: Any) -> None:
    """Submit it, preempt it at one step, kill a rank at another, and wait for its end."""
    training.hold(6)
    training.submit("--restarts", "crash=4", **settings)
    training.wait_until_held(attempt=1, step=6)
    take_all_nodes(training.slurm)
    training.wait_for_end(1)
    training.hold(15)
    training.wait_until_held(attempt=2, step=15)
    kill(training.ranks()[1])
    training.hold(NEVER)
    training.wait_until_over()
    assert training.kinds() == ["preempted, with grace", "crash", "finished"], training.describe()


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
