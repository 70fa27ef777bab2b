"""Every fault of `faults.py`, on each version of Slurm: a run goes on alone, with no step left out, to its end."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.boxes import SUITES
from tests.cluster.conftest import HERE, Clusters
from tests.cluster.faults import FAULTS
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import NEVER, Training, assert_counted_to_the_end, counting

AT_A_TIME = 6
OF_ONE_JOB = [name for name, fault in FAULTS.items() if not fault.to_all]
OF_ALL = [name for name, fault in FAULTS.items() if fault.to_all]


@pytest.fixture(scope="module", params=[HERE, *SUITES])
def played(
    request: pytest.FixtureRequest, clusters: Clusters, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[None]]]:
    """What came of each fault that only its own job feels; they are played beside one another."""
    slurm = clusters(request.param)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {name: pool.submit(play, name, slurm, tmp_path_factory.mktemp("run")) for name in OF_ONE_JOB}
    slurm.clear()


def play(name: str, slurm: PrivateSlurm, home: Path) -> None:
    """Let a fault come over a run."""
    assert_goes_on_alone(name, counting(slurm, home))


@pytest.mark.parametrize("name", OF_ONE_JOB)
def test_a_run_goes_on_alone_after(name: str, played: Mapping[str, Future[None]]) -> None:
    played[name].result()


@pytest.mark.parametrize("name", OF_ALL)
def test_a_run_goes_on_alone_after_what_all_jobs_feel(name: str, counted: Training) -> None:
    assert_goes_on_alone(name, counted)


def assert_goes_on_alone(name: str, run: Training) -> None:
    """A run over which a fault comes at its fifth step is counted to the end, and says why its attempts ended."""
    fault = FAULTS[name]
    run.hold(5)
    run.submit()
    run.wait_until_held(attempt=1, step=5)
    fault.act(run)
    run.hold(NEVER)
    run.wait_until_over()
    assert_counted_to_the_end(run)
    before = [kind for kind in run.kinds() if kind != "finished"]
    assert set(before) <= set(fault.ends), run.describe()
    assert fault.maybe or bool(before) == bool(fault.ends), run.describe()
