"""A pipeline of five stages, from images to a report, on a real Slurm where everything goes wrong: it ends with the
bytes of one that ran on this machine without Slurm."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from launch.chains import waiting_jobs
from launch.parents import is_done
from tests.cluster.faults import without_controller
from tests.cluster.private_slurm import PrivateSlurm, surroundings
from tests.cluster.trainings import NEVER, ROOT, Training, kill, take_all_nodes, wait_for

STAGES = {
    "images": "simulate --output data --num_per_class 60 --split train --num_workers 1",
    "held_out": "simulate --output data --num_per_class 12 --split test --num_workers 1",
    "train": "train --model_name simple_cnn --dataset data --run runs/first --epochs 2 --batch_size 16 --device cpu "
    "--log_interval 1 --checkpoint_minutes 0.0001",
    "table": "predict --run runs/first --dataset data --split test --output table --batch_size 8 --images_per_file 8 "
    "--num_workers 1 --device cpu",
    "report": "evaluate --run runs/first --device cpu",
}
SAME = ("data", "table", "runs/first/report/predictions.npz", "runs/first/report/report.json")
SHARDS = "shard-00001.h5 shard-00002.h5 shard-00003.h5"


@dataclass(frozen=True)
class Place:
    """A folder in which the pipeline is typed."""

    home: Path
    path: str = ""

    def write(self, profile: dict[str, object] | None = None) -> None:
        """Write the file, and the profile of a cluster."""
        self.home.mkdir(parents=True)
        stages = {name: {"job": job} for name, job in STAGES.items()}
        (self.home / "five.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
        (self.home / "clusters.yaml").write_text(yaml.safe_dump({"test": profile} if profile else {}))

    def type(self, *words: str) -> str:
        """A command of deeplense in this folder; returns what it says."""
        told = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DEEPLENSE_CLUSTERS": str(self.home / "clusters.yaml")}
        environment = surroundings() | told | ({"PATH": self.path} if self.path else {})
        command = [sys.executable, "-m", "launch", *words]
        done = subprocess.run(command, cwd=self.home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def files(self) -> dict[str, bytes]:
        """The results, by their names: all but checkpoints other than the last and the best."""
        paths = [path for name in SAME for path in [self.home / name, *(self.home / name).rglob("*")] if path.is_file()]
        for kind in ("best", "step"):
            newest = max((self.home / "runs/first/checkpoints").glob(f"{kind}_*"))
            paths += [newest / "model.safetensors"]
        return {str(path.relative_to(self.home)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pipeline is typed, both times, as tables record the full paths of what they are made from."""
    return tmp_path_factory.mktemp("pipeline") / "place"


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> dict[str, bytes]:
    """The results of the same file on this machine, without Slurm."""
    place = Place(folder)
    place.write()
    place.type("pipeline", "five.yaml")
    found = place.files()
    folder.rename(folder.with_name("unbroken"))
    return found


@dataclass(frozen=True)
class Broken:
    """The pipeline on a cluster, with hooks for what its jobs do."""

    slurm: PrivateSlurm
    place: Place

    def stage(self, name: str) -> Training:
        """The run of a stage."""
        home = self.place.home
        folder = home / "runs" / "first" if name == "train" else home / "launches" / "five" / name
        return Training(self.slurm, home, home / "data", run_folder=folder)

    def waits(self, name: str) -> str:
        """What Slurm says that the job of a stage waits for."""
        return dict(waiting_jobs(str(self.slurm.folder / "slurm.conf"))).get(self.stage(name).job_id, "")

    def wait_for_steps(self, attempt: int, step: int) -> None:
        """Wait until the training waits before a step."""
        path = self.place.home / f"samples_{attempt}_0.txt"
        told = self.stage("train")

        def there() -> bool:
            begun = len(told.attempts()) >= attempt and (told.attempts()[attempt - 1]["first_step"] or 0) >= step
            return begun or (path.exists() and len(path.read_text().splitlines()) > 0 and step_in(path) >= step - 1)

        wait_for(there, told.describe)
        time.sleep(0.5)


def step_in(path: Path) -> int:
    """The last step that a rank has noted."""
    return int(path.read_text().splitlines()[-1].split()[0])


@pytest.fixture
def broken(slurm: PrivateSlurm, folder: Path, unbroken: dict[str, bytes]) -> Iterator[Broken]:
    """The pipeline on a cluster, not yet submitted."""
    place = Place(folder, slurm.environment["PATH"])
    hooks = ROOT / "tests" / "cluster" / "hooks"
    profile = {
        "slurm_conf": str(slurm.folder / "slurm.conf"),
        "partition": "normal",
        "hours": 0.5,
        "environment": {"DEEPLENSE_TEST": str(place.home), "OMP_NUM_THREADS": "1"},
        "setup": [f'export PYTHONPATH="$PYTHONPATH:{hooks}"'],
    }
    place.write(profile)
    yield Broken(slurm, place)
    slurm.clear()


def test_five_stages_that_are_broken_end_with_the_bytes_of_unbroken_ones(
    broken: Broken, unbroken: dict[str, bytes]
) -> None:
    slurm, place, home = broken.slurm, broken.place, broken.place.home
    (home / "hold_shards").write_text(SHARDS)
    train = broken.stage("train")
    (home / "hold").write_text("4")
    said = place.type("pipeline", "five.yaml", "--on", "test", "--allow_untracked")
    assert said.count(": submitted as job") == 5, said

    # The simulation is preempted between two shards.
    images = broken.stage("images")
    wait_for((home / "data" / "train" / "shard-00000.h5").exists, images.describe)
    take_all_nodes(slurm)
    images.wait_for_end(1)
    assert not train.attempts()
    (home / "hold_shards").unlink()

    # The training is requeued; then its script is killed, and another job goes on; then it is cancelled.
    broken.wait_for_steps(1, 4)
    slurm.ask("scontrol", "requeue", train.job_id)
    train.wait_for_end(1)
    (home / "hold").write_text("8")
    broken.wait_for_steps(2, 8)
    before = train.job_id
    for pid in train.programs("script"):
        kill(pid)
    (home / "hold").write_text("12")
    broken.wait_for_steps(3, 12)
    for name in ("table", "report"):
        wait_for(lambda name=name: f"afterok:{train.job_id}(" in broken.waits(name), lambda: broken.waits("table"))
    assert train.job_id != before
    place.type("cancel", "runs/first")
    train.wait_until_over()
    status = place.type("status")
    assert "train stopped, table pending (after train), report pending (after train)" in status, status
    (home / "hold").write_text(str(NEVER))
    (home / "hold_shards").write_text("predictions-00001.parquet")

    # The same command resumes it; the table is interrupted while the controller is dead.
    place.type("pipeline", "five.yaml", "--on", "test", "--allow_untracked")
    table = broken.stage("table")
    wait_for((home / "table" / "predictions-00000.parquet").exists, table.describe)
    with without_controller(slurm):
        for pid in table.ranks().values():
            kill(pid)
        time.sleep(5)
    (home / "hold_shards").unlink()
    for name in ("table", "report"):
        wait_for(lambda name=name: is_done(broken.stage(name).run), broken.stage(name).describe, seconds=240)
        broken.stage(name).wait_until_over()

    assert {name.split(":")[0] for name in train.ends()} >= {"requeued", "cancelled", "finished"}, train.describe()
    assert table.ends()[0].startswith("crash"), table.describe()
    assert_same(place.files(), unbroken)
    assert [line.split()[1] for line in place.type("pipeline", "five.yaml", "--dry_run").splitlines()] == ["DO"] + 5 * [
        "-"
    ]


def assert_same(found: dict[str, bytes], unbroken: dict[str, bytes]) -> None:
    """The files are the same, to the byte."""
    assert sorted(found) == sorted(unbroken)
    assert len([name for name in found if name.endswith(".h5")]) > 3
    assert [name for name in found if found[name] != unbroken[name]] == []


def test_the_comparison_sees_a_byte(unbroken: dict[str, bytes]) -> None:
    assert_same(unbroken, unbroken)
    name = next(iter(unbroken))
    with pytest.raises(AssertionError):
        assert_same(unbroken | {name: unbroken[name][:-1] + bytes([unbroken[name][-1] ^ 1])}, unbroken)
