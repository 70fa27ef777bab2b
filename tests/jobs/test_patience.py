"""Patience: a training ends when nothing gets better, at the same step however often it was broken off."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command

from deeplense.data.order import num_steps
from jobs.frame.plan import Plan, Progress
from jobs.runs.folder import FINISHED
from jobs.runs.stored import stored_config
from jobs.settings import from_plain
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings

Start = Callable[..., Command]
HOPELESS = (
    "--model_name=simple_cnn",
    "--batch_size=16",
    "--epochs=40",
    "--patience_epochs=2",
    "--evaluate_epochs=0.5",
    "--lr=1e-12",
    "--log_interval=1",
    "--device=cpu",
)
"""Too slow to get better, but for what batch statistics do."""


def words(dataset: Path, run: Path, *changes: str) -> list[str]:
    return ["train", f"--dataset={dataset}", f"--run={run}", *HOPELESS, *changes]


def ending(run: Path) -> dict[str, int]:
    return json.loads((run / FINISHED).read_text())


def evaluations(run: Path) -> list[tuple[int, float]]:
    """Steps and validation scores."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["val/auc_macro"]) for line in lines if "val/auc_macro" in line]


def test_a_training_ends_when_as_many_epochs_as_asked_brought_nothing_better(
    dataset: Path, tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    assert start(*words(dataset, run)).wait() == 0
    steps, scores = zip(*evaluations(run), strict=True)
    first_best = steps[scores.index(max(scores))]
    told = ending(run)
    assert told["step"] == steps[-1]
    # No weights were worse than others, and so the last are kept.
    assert told["best_step"] == told["step"]
    between = steps[1] - steps[0]
    assert 4 * between <= told["step"] - first_best <= 5 * between
    # Finished it is: the same command does nothing more.
    assert start(*words(dataset, run)).wait() == 0
    assert ending(run) == told


def test_a_training_that_lost_its_ending_stops_at_the_same_step(dataset: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    assert start(*words(dataset, run)).wait() == 0
    told = ending(run)
    (run / FINISHED).unlink()
    assert start(*words(dataset, run)).wait() == 0
    assert ending(run) == told


def test_without_patience_it_goes_on_to_the_end(dataset: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    changed = [word for word in words(dataset, run, "--epochs=9") if not word.startswith(("--patience", "--epochs=40"))]
    assert start(*changed).wait() == 0
    steps, _ = zip(*evaluations(run), strict=True)
    told = ending(run)
    assert told["step"] == steps[-1]
    train, _ = learning_parts(from_plain(Settings, stored_config(run)))
    assert told["step"] == num_steps(9, num_samples=len(train), batch_size=16)
    assert told["step"] == told["best_step"]


@pytest.mark.parametrize(
    ("step", "highest_step", "ends"),
    [(40, 20, True), (45, 25, True), (35, 20, False), (40, 25, False), (41, 20, False), (20, 0, True)],
)
def test_patience_ends_with_the_evaluation_at_which_it_is_used_up_and_with_no_other_step(
    step: int, highest_step: int, ends: bool
) -> None:
    """Two epochs of 160 images in batches of 16 are 20 steps; each 5 are followed by an evaluation."""
    settings = Settings(run=Path("run"), dataset="data", batch_size=16, evaluate_epochs=0.5)
    progress = Progress(step=step, highest_step=highest_step)
    assert Plan(settings, 160, patience_epochs=2.0).is_out_of_patience(progress) == ends
    assert not Plan(settings, 160).is_out_of_patience(progress)


def test_patience_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="patience_epochs=0"):
        Settings(run=Path("run"), dataset="data", patience_epochs=0)
