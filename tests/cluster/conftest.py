"""Real Slurm clusters for tests, of this machine's version and, in boxes, of newer ones: with accounting, and without,
where hosts have no names and preemption warns by SIGUSR2. Each is started when a test asks for it, and shared."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.cluster.boxes import SUITES, prepared
from tests.cluster.private_slurm import PrivateSlurm, take_number
from tests.cluster.trainings import Training, counting

FIRST_NUMBER = int(os.environ.get("DEEPLENSE_TEST_CLUSTER", "11"))
REQUIRED = "DEEPLENSE_REQUIRE_PROGRAMS"
HERE = "here"
TRAININGS = ("test_other_trainings.py", "test_parts.py")
IMAGES = ("test_ways.py", "test_binds.py", "test_image.py")
FIRST = ("test_faults.py", *TRAININGS, *IMAGES)
Clusters = Callable[..., PrivateSlurm]


class ByCluster(LoadScopeScheduling):
    """With `--numprocesses`: each file goes to one process, for each version of Slurm to another; faults of trainings
    to one, all other trainings to one, and images to one, as those leave no core idle."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, name = nodeid.partition("::")
        if Path(file).name in TRAININGS:
            return "other trainings"
        if Path(file).name in IMAGES:
            return "images"
        return next((f"{file} {suite}" for suite in SUITES if suite in name), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByCluster:
    """How tests are spread over processes; what takes longest begins first."""
    config.option.loadscopereorder = False
    return ByCluster(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Trainings before all others, in each process in the same order."""
    items.sort(key=lambda item: item.path.name not in FIRST)


def missing(what: str) -> None:
    """Skip where something is missing, or fail where it is required."""
    pytest.fail(what) if os.environ.get(REQUIRED) else pytest.skip(what)


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """What starts the cluster of a suite, or gives it where it runs; all are stopped in the end."""
    running: dict[tuple[str, bool], PrivateSlurm] = {}
    with ExitStack() as stack:

        def cluster(suite: str = HERE, *, bare: bool = False) -> PrivateSlurm:
            if (suite, bare) not in running:
                running[suite, bare] = started(stack, None if suite == HERE else suite, bare=bare)
            return running[suite, bare]

        yield cluster


def started(stack: ExitStack, suite: str | None, *, bare: bool) -> PrivateSlurm:
    """A cluster, stopped at the end of a stack."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True))
    number = take_number(stack, FIRST_NUMBER)
    cluster = PrivateSlurm(
        Path(folder), number=number, accounting=not bare, user_signal=bare, resolvable=not bare, suite=suite
    )
    if os.geteuid() != 0:
        missing("needs root's rights")
    if cluster.missing:
        missing(f"not installed: {', '.join(cluster.missing)}")
    if suite:
        try:
            prepared(suite)
        except (RuntimeError, OSError) as error:
            missing(str(error))
    cluster.start()
    stack.callback(cluster.stop)
    return cluster


@pytest.fixture
def slurm(clusters: Clusters) -> PrivateSlurm:
    """Four hosts with slurmdbd, of this machine's Slurm."""
    return clusters()


@pytest.fixture(params=[HERE, *SUITES])
def suite(request: pytest.FixtureRequest) -> str:
    """Where Slurm is from: this machine, or a suite of Debian."""
    return request.param


@pytest.fixture
def each_slurm(suite: str, clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> PrivateSlurm:
    """Four hosts with slurmdbd, of each version in turn; its clients are those of this process."""
    cluster = clusters(suite)
    monkeypatch.setenv("PATH", cluster.environment["PATH"])
    return cluster


@pytest.fixture
def each_bare_slurm(suite: str, clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> PrivateSlurm:
    """Four hosts without accounting, of each version in turn; they do not know each other's names, and preemption warns
    by SIGUSR2."""
    cluster = clusters(suite, bare=True)
    monkeypatch.setenv("PATH", cluster.environment["PATH"])
    return cluster


@pytest.fixture(scope="session")
def unbroken(clusters: Clusters, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training that nothing happens to."""
    return finished(Training(clusters(), tmp_path_factory.mktemp("unbroken"), dataset))


@pytest.fixture(scope="session")
def unbroken_of_four(clusters: Clusters, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """The same with four ranks."""
    return finished(Training(clusters(), tmp_path_factory.mktemp("unbroken"), dataset, tasks_per_node=2))


def finished(training: Training, **settings: Any) -> Training:
    """A training, once it is submitted with these settings and finished."""
    training.submit(**settings)
    training.wait_until_over()
    assert training.ends() == ["finished"], training.describe()
    return training


@pytest.fixture
def training(slurm: PrivateSlurm, dataset: Path, tmp_path: Path) -> Iterator[Training]:
    """A training not yet submitted; what is left of it in the end is removed from the queue."""
    yield Training(slurm, tmp_path, dataset)
    slurm.clear()


@pytest.fixture
def training_of_four(training: Training) -> Training:
    """The same with two ranks on each node."""
    return replace(training, tasks_per_node=2)


@pytest.fixture
def bare_slurm(clusters: Clusters) -> PrivateSlurm:
    """Four hosts without accounting, of this machine's Slurm."""
    return clusters(bare=True)


@pytest.fixture
def bare_training(bare_slurm: PrivateSlurm, dataset: Path, tmp_path: Path) -> Iterator[Training]:
    """A training on a cluster without accounting and names."""
    yield Training(bare_slurm, tmp_path, dataset)
    bare_slurm.clear()


@pytest.fixture
def counted(each_slurm: PrivateSlurm, tmp_path: Path) -> Iterator[Training]:
    """Ranks that count, without torch, on two nodes of each version; not yet submitted."""
    yield counting(each_slurm, tmp_path)
    each_slurm.clear()


@pytest.fixture
def bare_counted(each_bare_slurm: PrivateSlurm, tmp_path: Path) -> Iterator[Training]:
    """The same on clusters without accounting and names."""
    yield counting(each_bare_slurm, tmp_path)
    each_bare_slurm.clear()
