"""Real Slurm clusters for tests: one with accounting, and one without, whose hosts have no names and which warns by
SIGUSR2."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.private_slurm import PrivateSlurm, missing_programs
from tests.cluster.trainings import Training

NUMBER = int(os.environ.get("DEEPLENSE_TEST_CLUSTER", "11"))
REQUIRED = "DEEPLENSE_REQUIRE_PROGRAMS"


def missing(what: list[str]) -> None:
    """Skip where programs are missing, or fail where they are required."""
    if what:
        told = f"not installed: {', '.join(what)}"
        pytest.fail(told) if os.environ.get(REQUIRED) else pytest.skip(told)


def running(cluster: PrivateSlurm) -> Iterator[PrivateSlurm]:
    """The cluster, started, and stopped in the end whatever happens."""
    missing(missing_programs(accounting=cluster.accounting))
    if os.geteuid() != 0:
        missing(["root's rights"])
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    """Four hosts with slurmdbd."""
    with tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield from running(PrivateSlurm(Path(folder), number=NUMBER))


@pytest.fixture(scope="session")
def bare_slurm() -> Iterator[PrivateSlurm]:
    """Four hosts without accounting; they do not know each other's names, and preemption warns by SIGUSR2."""
    with tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True) as folder:
        bare = PrivateSlurm(Path(folder), number=NUMBER + 1, accounting=False, user_signal=True, resolvable=False)
        yield from running(bare)


@pytest.fixture(scope="session")
def unbroken(slurm: PrivateSlurm, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training that nothing happens to."""
    training = Training(slurm, tmp_path_factory.mktemp("unbroken"), dataset)
    training.submit()
    training.wait_until_over()
    assert training.ends() == ["finished"], training.describe()
    return training


@pytest.fixture
def training(slurm: PrivateSlurm, dataset: Path, tmp_path: Path) -> Iterator[Training]:
    """A training not yet submitted; what is left of it in the end is removed from the queue."""
    yield Training(slurm, tmp_path, dataset)
    slurm.clear()


@pytest.fixture
def bare_training(bare_slurm: PrivateSlurm, dataset: Path, tmp_path: Path) -> Iterator[Training]:
    """The same on the other cluster."""
    yield Training(bare_slurm, tmp_path, dataset)
    bare_slurm.clear()
