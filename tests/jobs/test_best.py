"""The best weights: the scores that chose them are theirs, and what a run says of them is what lies on the disk."""

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, rank_variables, save_at_once
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from deeplense.training import checkpoint
from jobs.runs.stored import stored_config
from jobs.settings import from_plain
from jobs.train.network import make_network
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings

Start = Callable[..., Command]
SMALL = (
    "--model_name=simple_cnn",
    "--batch_size=16",
    "--epochs=2",
    "--evaluate_epochs=0.5",
    "--log_interval=1",
    "--device=cpu",
    "--lr=3e-3",
    "--val_fraction=0.4",
)


def best(run: Path) -> Path:
    """The one checkpoint of best weights."""
    (path,) = (run / "checkpoints").glob("best_*")
    return path


def score_by_hand(path: Path) -> float:
    """The AUC of a checkpoint's weights on the validation samples, by scikit-learn."""
    settings = from_plain(Settings, stored_config(path.parents[1]))
    train, val = learning_parts(settings)
    saved = checkpoint.load(path)
    network = make_network(settings, train.split, load_pretrained=False).eval()
    network.load_state_dict(saved["model"])
    statistics = saved["progress"]["statistics"]
    images = (val.split.images(val.indices) - statistics["mean"][0]) / statistics["std"][0]
    with torch.no_grad():
        outputs = network(torch.from_numpy(images).float()).numpy()
    return float(np.mean(roc_auc_score(val.labels, softmax(outputs, axis=1), multi_class="ovr", average=None)))  # type: ignore[arg-type]


def logged_score(run: Path, step: int) -> float:
    """The AUC on the validation samples that the metrics tell for a step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (score,) = [line["val/auc_macro"] for line in lines if line["step"] == step and "val/auc_macro" in line]
    return score


@pytest.mark.parametrize("more", [(), ("--ema_decay=0.8",)])
def test_the_score_that_processes_find_together_is_that_of_the_weights_that_are_saved(
    more: tuple[str, ...], dataset: Path, tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    words = ("train", f"--dataset={dataset}", f"--run={run}", *SMALL, *more)
    ranks = [start(*words, environment=variables) for variables in rank_variables(2)]
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log.read_text()
    assert logged_score(run, int(best(run).name[-8:])) == pytest.approx(score_by_hand(best(run)), abs=1e-6)


def die_at_step(step: int) -> None:
    """Make this process kill itself when it logs a step."""
    import os

    from deeplense.training.tracking import Tracker

    save_at_once()
    log = Tracker.log

    def log_or_die(tracker: Tracker, now: int, values: dict[str, float]) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)
        log(tracker, now, values)

    Tracker.log = log_or_die  # type: ignore[method-assign]


def find_lower_scores() -> None:
    """Let this process find lower scores, as other rounding would."""
    from jobs.frame.learner import Evaluation
    from jobs.train.learner import SupervisedTrainee

    evaluate = SupervisedTrainee.evaluate

    def evaluate_lower(*words: Any, **named: Any) -> Evaluation:
        found = evaluate(*words, **named)
        return Evaluation(found.metrics, (found.score or 0.0) - 0.5)

    SupervisedTrainee.evaluate = evaluate_lower  # type: ignore[method-assign]


def test_best_weights_of_a_killed_attempt_that_are_not_reached_again_are_those_that_the_run_tells(
    dataset: Path, tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    words = ("train", f"--dataset={dataset}", f"--run={run}", *SMALL)
    assert start(*words, prepare=partial(die_at_step, 5)).wait() == -signal.SIGKILL
    written = best(run)
    assert start(*words, prepare=find_lower_scores).wait() == 0
    finished = json.loads((run / "finished.json").read_text())
    assert best(run) == written == checkpoint.step_folder(run / "checkpoints", finished["best_step"], kind="best")
    assert checkpoint.load(written)["progress"]["best"] == finished["best"]


def test_best_weights_that_are_damaged_give_way_to_the_next(dataset: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    words = ("train", f"--dataset={dataset}", f"--run={run}", *SMALL)
    assert start(*words, "--checkpoint_minutes=1e-9", prepare=partial(die_at_step, 5)).wait() == -signal.SIGKILL
    file = best(run) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    again = start(*words, prepare=find_lower_scores)
    assert again.wait() == 0
    assert f"the checkpoint {file.parent.name} is damaged" in again.log.read_text()
    finished = json.loads((run / "finished.json").read_text())
    assert best(run) == checkpoint.step_folder(run / "checkpoints", finished["best_step"], kind="best")
    assert checkpoint.damage(best(run)) is None
