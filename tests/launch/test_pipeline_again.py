"""What a pipeline must not touch: live runs of other commands, and results that it did not make."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from deeplense.locks import Lock
from deeplense.records import write_record
from jobs.runs.attempts import open_attempt
from jobs.runs.folder import LAUNCH, LOCK
from launch.__main__ import main
from launch.clusters import Cluster
from launch.commands import OPTIONS
from launch.pipelines import work
from launch.pipelines.jobs import cluster_of, differences
from launch.pipelines.making import new_record, write_stage_record
from launch.pipelines.plans import Step
from launch.pipelines.stages import Stage, read_pipeline
from launch.submission import Submission

KINDS = {name: kind for name, (kind, _) in OPTIONS.items()}
TRAIN = "train --model_name simple_cnn --dataset data --run runs/first"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pipelines are typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(stages: dict[str, Any]) -> list[Stage]:
    """Write the file of a pipeline; returns its stages."""
    Path("file.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    return read_pipeline(Path("file.yaml"), KINDS)


def begun(stage: Stage, **values: Any) -> None:
    """Record that a stage was begun."""
    record = new_record(stage, Path("file.yaml").absolute(), {})
    write_stage_record(Path("launches/file") / stage.name, record | values)


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Type the command, which is refused; returns the line that says why."""
    capfd.readouterr()
    assert main(["pipeline", "file.yaml", *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    return line


@pytest.fixture
def live(here: Path) -> Iterator[Path]:
    """A training that the pipeline began here, and that another command continues: its lock is held."""
    (stage,) = write({"train": {"job": TRAIN}})
    begun(stage)
    run = here / "runs" / "first"
    open_attempt(run)
    lock = Lock(run / LOCK)
    lock.take({"attempt": 1, "job_id": None})
    write({"train": {"job": f"{TRAIN} --lr 0.5"}})
    yield run
    lock.release()


def test_a_training_that_other_commands_continue_is_not_moved(live: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = refused(capfd)
    assert "has to be made again, but runs/first is running; cancel it first: `deeplense cancel runs/first`" in told
    assert live.is_dir()


@pytest.mark.parametrize("recorded", [True, False])
def test_a_training_that_was_submitted_once_and_is_continued_directly_is_not_moved(
    recorded: bool, live: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = {"executor": "local", "slurm_conf": None}
    write_record(live / LAUNCH, {"job_id": None, "logs": str(live), "cluster": cluster, "attempts_before": 0})
    (stage,) = write({"train": {"job": TRAIN}})
    begun(stage, runs=[str(live)] if recorded else [])
    write({"train": {"job": f"{TRAIN} --lr 0.5"}})
    assert "but runs/first is being trained by process" in refused(capfd)
    assert live.is_dir()


def test_a_training_that_another_command_submitted_is_not_moved(
    live: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work.by_hand, "holder_of", lambda run: None)
    monkeypatch.setattr(work.status, "active", lambda runs: {run: ("PENDING", "Priority") for run in runs})
    monkeypatch.setattr(work, "has_attempt", lambda run: False)
    assert "runs/first is pending, submitted by another command" in refused(capfd)
    (stage,) = write({"train": {"job": TRAIN}})
    begun(stage, runs=[str(live)])
    write({"train": {"job": f"{TRAIN} --lr 0.5"}})
    monkeypatch.setattr(work, "has_attempt", lambda run: True)
    assert "runs/first has run and is pending again" in refused(capfd)
    assert live.is_dir()


def test_a_training_of_other_commands_is_moved_if_it_is_asked_for_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"train": {"job": TRAIN}})
    monkeypatch.setattr("launch.pipelines.making.was_trained", lambda stage: True)
    (here / "runs" / "first").mkdir(parents=True)
    (here / "runs" / "first" / "mine.txt").touch()
    request = work.Request(Path("file.yaml"), None, ("train",), here / "launches" / "file", KINDS)
    pipeline = work.Pipeline(request)
    assert "note: runs/first will be moved aside, not deleted" in pipeline.describe()
    pipeline.withdraw()
    pipeline.begin(pipeline.steps[0])
    assert not (here / "runs" / "first").exists()
    assert (here / "runs" / f"old-{pipeline.now}" / "first" / "mine.txt").exists()


def test_nothing_is_submitted_or_recorded_if_the_run_folder_of_a_new_stage_is_another_run(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "one.csv").write_text("id,grade\na,A\n")
    (here / "runs" / "first").mkdir(parents=True)
    (here / "runs" / "first" / "mine.txt").touch()
    write({"one": {"job": "grades one.csv --output made.csv"}, "train": {"job": TRAIN, "after": ["one"]}})
    told = refused(capfd, "--on", "local", "--allow_untracked")
    assert "stage train: runs/first is not a run folder, and not empty" in told
    assert not list(here.glob("launches/file/*/*.json"))
    assert "runs/first is not a run folder" in refused(capfd)
    assert [path.parent.name for path in here.glob("launches/file/*/stage.json")] == ["one"]


def test_a_resumed_stage_says_which_options_have_changed_since_it_was_submitted(here: Path) -> None:
    cluster = Cluster(name="gpu", hours=2, nodes=1)
    job = Submission(cluster, (("train",),), (here / "run",), here / "logs", here / "code")
    (here / "run").mkdir()
    told = {"job_id": "5", "logs": "logs", "attempts_before": 0, "cluster": asdict(cluster)}
    write_record(here / "run" / LAUNCH, told)
    assert differences([here / "run"], job) == []
    assert differences([here / "run"], replace(job, cluster=replace(cluster, hours=3, nodes=2))) == ["nodes", "hours"]
    assert differences([here / "run"], replace(job, cluster=replace(cluster, name="cpu", hours=3))) == ["on"]


def test_a_stage_keeps_its_notices_on_this_machine(here: Path) -> None:
    options = {"hours": 2, "notify": "echo", "mail": "me@example.org"}
    (stage,) = write({"train": {"job": TRAIN} | options})
    cluster = cluster_of(Step(stage, "make", "not made yet"), "local")
    assert (cluster.hours, cluster.notify) == (2, "echo")
