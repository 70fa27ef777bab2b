"""What many tests share: a small data set, and jobs that run in processes of their own and can be killed."""

import contextlib
import gc
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Small matrices of two processes on two cores: threads of OpenBLAS would mostly wait for each other, at up to twenty
# times the cost. Read when numpy is loaded, and by processes that tests start.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

from deeplense.data.building import build
from deeplense.data.shards import Samples, Schema
from deeplense.simulation.populations import ModelName, Population, Preset, default_mass_slope

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm"])
ROOT = Path(__file__).parents[1]
CLASSES = ("left", "right", "middle")
SIZE = 16
COARSE = {"STRENGTHS": np.array([0.01, 1.0]), "MOST_FOLDS": 2}
LONGEST = (
    "jobs/test_pieces.py",
    "launch/test_submit_local.py",
    "jobs/test_zoo_trainings.py",
    "jobs/test_train.py",
    "test_docs.py",
    "launch/test_processes.py",
    "jobs/test_pretrain.py",
    "jobs/test_no_waiting.py",
    "jobs/test_benchmark_models.py",
    "launch/test_submit_models.py",
    "jobs/test_finetune.py",
    "jobs/test_benchmark_labels.py",
    "models/test_zoo.py",
    "training/test_checkpoint.py",
    "data/test_building.py",
    "jobs/test_measure.py",
    "jobs/test_door.py",
    "models/test_registry.py",
    "launch/test_script.py",
    "test_release.py",
    "jobs/test_staged.py",
    "jobs/test_watchdog.py",
    "jobs/test_export.py",
    "jobs/test_prediction_tables.py",
    "jobs/test_candidates_page.py",
)
"""Files that take longest: they come first, so that no process of tests works alone in the end."""

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; all else stays in its order."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Let no collection of garbage look at all that was loaded until now; a process that is forked would copy it."""
    gc.collect()
    gc.freeze()


def blobs(rows: range, *, split: str, num_bands: int = 1, size: int = SIZE) -> Samples:
    """Noisy images with a bright column, left, right or in the middle; `column` says where, but not for the right."""
    generator = np.random.default_rng((len(split), 7))
    images = generator.normal(0, 1, size=(1000, num_bands, size, size)).astype(np.float32)
    labels = np.arange(1000) % len(CLASSES)
    columns = np.array([3, 12, 8])[labels]
    images[np.arange(1000), :, :, columns] += 1.5
    known = np.where(labels != 1, columns + 0.1 * images[:, 0, 0, 0], np.nan)
    chosen = slice(rows.start, rows.stop)
    return Samples(
        images[chosen],
        labels[chosen],
        {"column": known[chosen]},
        [f"{split}-{k}" for k in rows],
        np.arange(rows.start, rows.stop),
    )


def write_blobs(dataset: Path, split: str, num_samples: int, *, size: int = SIZE) -> None:
    """One split of such images."""
    schema = Schema(
        split=split,
        num_samples=num_samples,
        shape=(1, size, size),
        dtype="float32",
        bands=("r",),
        unit="",
        pixel_scale_arcsec=0.1,
        classes=CLASSES,
        targets={"column": "pixel"},
    )
    list(build(dataset / split, schema, lambda rows: blobs(rows, split=split, size=size)))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 96 samples to learn from and 45 to test on, 16 x 16 pixels, three classes."""
    folder = tmp_path_factory.mktemp("blobs")
    write_blobs(folder, "train", 96)
    write_blobs(folder, "test", 45)
    return folder


@pytest.fixture(scope="session")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of 32 x 32 pixels, which transformers with patches of 16 pixels can be shown."""
    folder = tmp_path_factory.mktemp("stamps")
    write_blobs(folder, "train", 96, size=32)
    write_blobs(folder, "test", 45, size=32)
    return folder


def population(model: ModelName = "Model_III", preset: Preset = "noisy") -> Population:
    """A population with the mass function of its preset."""
    return Population(model, preset, default_mass_slope(preset))


def put(path: Path, array: Any) -> None:
    """Save a .npy file, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=True)


def axion(image: Any, mass: Any) -> np.ndarray:
    """What DeepLenseSim saves for an axion image: objects, image and mass."""
    array = np.empty(2, dtype=object)
    array[0], array[1] = image, mass
    return array


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def rank_variables(num_processes: int) -> list[dict[str, str]]:
    """The environment of each rank of a group on this machine."""
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": str(num_processes),
        "OMP_NUM_THREADS": "1",
    }
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


def run_command(
    arguments: list[str], log: Path, environment: dict[str, str], prepare: Callable[[], None] | None
) -> None:
    """Run a `deeplense` command in a process of its own; its output goes to a file."""
    from launch.__main__ import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if prepare:
        prepare()
    os._exit(main(arguments))


def save_at_once() -> None:
    """Let this process wait for each write of a checkpoint, so that none is put off on a slow disk."""
    from deeplense.training.saving import Saver

    begin = Saver.begin

    def begin_and_wait(saver: Saver, *words: Any) -> None:
        begin(saver, *words)
        saver.wait()

    Saver.begin = begin_and_wait  # type: ignore[method-assign]


def start_fork_server() -> None:
    """Start the server that forks processes which have loaded torch, unless it runs. It imports from its folder, and
    would say nothing where it cannot."""
    with contextlib.chdir(ROOT):
        forkserver.ensure_running()


class Command:
    """A `deeplense` command in another process."""

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.log = log
        target = (arguments, log, environment or {}, prepare)
        start_fork_server()
        self.process: BaseProcess = CONTEXT.Process(target=run_command, args=target)
        self.process.start()

    def wait(self) -> int:
        """Its exit code; negative for the signal that ended it."""
        self.process.join(120)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.log.read_text())
        return self.process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process.pid
        os.kill(self.process.pid, number)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands, and ends those that a failing test leaves."""
    started: list[Command] = []

    def begin(
        *arguments: str, environment: dict[str, str] | None = None, prepare: Callable[[], None] | None = None
    ) -> Command:
        started.append(Command(list(arguments), tmp_path / "log.txt", environment, prepare))
        return started[-1]

    yield begin
    for command in started:
        if command.process.is_alive():
            command.process.kill()
            command.process.join()


@pytest.fixture(scope="module", autouse=True)
def coarse_probes(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """For tests of jobs, linear probes that try two strengths on two folds: seven on five take two thirds of a short
    pretraining. Gives what was there before; tests of the probes themselves have that."""
    if request.path.parent.name != "jobs":
        yield {}
        return
    from deeplense.evaluation import probes

    before = {name: getattr(probes, name) for name in COARSE}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in COARSE.items():
            patch.setattr(probes, name, value)
        yield before


@pytest.fixture
def whole_probes(coarse_probes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear probes as they are for users."""
    for name, value in coarse_probes.items():
        monkeypatch.setattr(f"deeplense.evaluation.probes.{name}", value)


@pytest.fixture(scope="module", autouse=True)
def undrawn_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """For tests of jobs, figures of reports and pages that are made but not drawn."""
    if request.path.parent.name != "jobs":
        yield
        return
    from deeplense.evaluation import page, report
    from tests import undrawn

    with pytest.MonkeyPatch.context() as patch:
        for module in (page, report):
            patch.setattr(module, "figure", undrawn.figure)
        yield


@pytest.fixture
def drawn_figures(undrawn_figures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of reports and pages as they are for users."""
    from deeplense.evaluation import plots

    for name in ("page", "report"):
        monkeypatch.setattr(f"deeplense.evaluation.{name}.figure", plots.figure)


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """An empty folder where temporary files are by default, though those of tests may be in memory."""
    with tempfile.TemporaryDirectory(prefix="deeplense-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of real and public images, outside the project."""
    folder = Path(os.environ.get("DEEPLENSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real images are not at {folder}; set DEEPLENSE_DATA to their folder")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path
