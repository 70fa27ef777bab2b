"""The run folder: who it belongs to, what was tried, and where it is found."""

import dataclasses
import json
from pathlib import Path

import pytest

from deeplense.training.tracking import wandb_id
from jobs.command_line import parse
from jobs.runs.attempts import begin_attempt
from jobs.runs.folder import ENVIRONMENT, find_run, open_run
from jobs.runs.stored import CONFIG, stored_config
from jobs.settings import plain
from jobs.train.settings import Settings


def settings_of(run: Path, *changes: str) -> Settings:
    """Settings of a training."""
    return parse("train", ["--run", str(run), "--dataset", "Model_I", *changes])


def begin(run: Path, *changes: str) -> Settings:
    """Make or continue a run."""
    settings = settings_of(run, *changes)
    open_run(run, settings)
    begin_attempt(run, first_step=0, num_processes=1)
    return settings


def test_a_run_is_made_once_and_opened_by_the_same_settings(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    settings = begin(run, "--lr", "1e-05", "--clip_grad", "0.3")
    content = {path.name: path.read_bytes() for path in run.iterdir()}
    assert stored_config(run) == plain(settings)
    open_run(run, settings)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == content
    environment = json.loads((run / ENVIRONMENT).read_text())
    assert environment["packages"].keys() >= {"torch", "timm", "numpy"}
    assert all(environment["packages"].values())


def test_the_config_of_a_run_is_a_recipe(tmp_path: Path) -> None:
    settings = begin(tmp_path / "a", "--schedule", "cosine", "--epochs", "3")
    assert parse("train", ["--config", str(settings.run / CONFIG)]) == settings


def test_another_value_of_a_setting_that_counts_is_refused_with_both_values(tmp_path: Path) -> None:
    begin(tmp_path, "--lr", "0.25")
    with pytest.raises(ValueError, match=r"lr=0\.5 \(the run has 0\.25\), seed=3 \(the run has 0\)"):
        begin(tmp_path, "--lr", "0.5", "--seed", "3")
    assert stored_config(tmp_path)["lr"] == 0.25


def test_settings_that_change_no_number_may_differ(tmp_path: Path) -> None:
    begin(tmp_path)
    free = {
        "device": "cpu",
        "log_interval": "3",
        "hang_minutes": "9",
        "checkpoint_minutes": "9",
        "keep_checkpoints": "3",
        "keep_every_hours": "12",
        "read_ahead": "3",
        "stage": "none",
        "fsdp": "1",
        "wandb": "offline",
        "take_over": "1",
    }
    begin(tmp_path, *(f"--{name}={value}" for name, value in free.items()))
    begin(tmp_path, "--num_workers=2")
    marked = {field.name for field in dataclasses.fields(Settings) if field.metadata.get("free")}
    assert marked == {*free, "num_workers", "data_root", "wandb_project"}


def test_settings_that_failed_before_the_first_attempt_can_be_mended(tmp_path: Path) -> None:
    open_run(tmp_path, settings_of(tmp_path, "--model_name", "resnet_18"))
    mended = begin(tmp_path, "--model_name", "resnet18")
    assert stored_config(tmp_path) == plain(mended)


def test_a_run_that_was_moved_can_be_continued(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    begin(tmp_path / "b")


@pytest.mark.parametrize("name", ["thesis.tex", CONFIG])
def test_a_folder_of_something_else_is_left_alone(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / name, tmp_path / "notes.txt"):
        path.write_text("years: of work\n")
    with pytest.raises(ValueError, match="not empty"):
        open_run(tmp_path, settings_of(tmp_path))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        (name, "notes.txt"), "years: of work\n"
    )


@pytest.mark.parametrize(
    "left", [[], [".writing-environment.json-0"], [ENVIRONMENT], [ENVIRONMENT, ".writing-config.yaml-0"]]
)
def test_a_run_whose_making_was_killed_is_made_by_the_next_attempt(left: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in left:
        (run / name).write_text("{}")
    open_run(run, settings_of(run))
    assert stored_config(run) == plain(settings_of(run))


def test_a_run_is_found_by_its_folder_and_by_its_wandb_id(tmp_path: Path) -> None:
    runs = [tmp_path / "runs" / "group" / name for name in ("a", "b")]
    for run in runs:
        open_run(run, settings_of(run))
        assert find_run(wandb_id(run), tmp_path / "runs") == run
        assert find_run(str(run), tmp_path / "elsewhere") == run


def test_a_run_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    open_run(tmp_path / "lenses_1", settings_of(tmp_path / "lenses_1"))
    identity = wandb_id(tmp_path / "lenses_1")
    with pytest.raises(ValueError, match=f"Did you mean {identity}"):
        find_run(identity[:-1] + "x", tmp_path)
    with pytest.raises(ValueError, match=r"Did you mean .*lenses_1"):
        find_run(str(tmp_path / "lense_1"), tmp_path)
    with pytest.raises(ValueError, match="neither a run folder nor"):
        find_run("anything", tmp_path / "nowhere")
