"""The weights that a training keeps, by the rule of `deeplense benchmark selection`, however often it is stopped; and
that benchmark."""

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplense.evaluation.selection import RULES, Curve, Loss
from jobs.benchmark_selection import curves
from jobs.frame.learner import Evaluation
from jobs.frame.plan import Progress
from jobs.runs.resuming import OF_KEPT
from jobs.train import work as train_work
from jobs.train.learner import Supervised, SupervisedTrainee
from jobs.train.settings import Settings
from launch.__main__ import main

SMALL: dict[str, Any] = {"model_name": "simple_cnn", "batch_size": 16, "device": "cpu", "log_interval": 1000}
Found = tuple[float, float, float]


def evaluations(seed: int) -> list[Found]:
    """Scores, losses and their errors."""
    generator = np.random.default_rng(seed)
    return list(zip(generator.random(30), generator.gamma(2, size=30), generator.gamma(1, 0.2, size=30), strict=True))


def judged(found: list[Found], progress: Progress, *, first: int = 0) -> Progress:
    """After the evaluations from a step on."""
    for number, (score, mean, error) in enumerate(found[first:], start=first):
        progress.step = number + 1
        progress.judge(score, Loss(mean, error))
    return progress


@pytest.mark.parametrize("seed", range(20))
def test_a_training_keeps_what_the_rule_says_of_its_curve(seed: int) -> None:
    found = evaluations(seed)
    kept = RULES["last whose log loss is not worse"](Curve(*np.array(found).T))
    progress = judged(found, Progress())
    assert (progress.best_step, progress.best) == (kept + 1, found[kept][0])
    scores = [score for score, _, _ in found]
    assert (progress.highest, progress.highest_step) == (max(scores), int(np.argmax(scores)) + 1)


@pytest.mark.parametrize("seed", range(20))
def test_an_attempt_that_is_resumed_before_its_best_weights_comes_to_the_same(seed: int) -> None:
    found = evaluations(seed)
    unbroken = judged(found, Progress())
    killed = judged(found[:20], Progress())
    resumed = judged(found[:12], Progress())
    vars(resumed).update({name: vars(killed)[name] for name in OF_KEPT})
    assert vars(judged(found, resumed, first=12)) == vars(unbroken)


def test_what_an_older_version_wrote_is_taken_over() -> None:
    progress = Progress()
    progress.load_state_dict({"step": 9, "best": 0.8, "best_step": 6, "statistics": {}, "dataset_id": "x"})
    assert (progress.highest, progress.highest_step, progress.undefined) == (0.8, 6, 0)
    progress.step = 12
    assert progress.judge(0.7, Loss(0.5, 0.1))
    assert (progress.best, progress.best_step, progress.highest) == (0.7, 12, 0.8)


def test_without_a_loss_the_first_of_the_highest_score_is_kept() -> None:
    progress, kept = Progress(), []
    for step, score in enumerate((-3.0, -1.0, -1.0, -2.0), start=1):
        progress.step = step
        kept.append(progress.judge(score, None))
    assert kept == [True, True, False, False]


def undefined_until(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the score be undefined before a step."""
    evaluate = SupervisedTrainee.evaluate

    numbers = itertools.count(1)

    def evaluate_some(*words: Any, **named: Any) -> Evaluation:
        found = evaluate(*words, **named)
        return found if next(numbers) >= step else Evaluation({"auc_macro": math.nan}, math.nan)

    monkeypatch.setattr(SupervisedTrainee, "evaluate", evaluate_some)


def test_a_score_that_is_undefined_uses_up_no_patience_and_hides_no_weights(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    undefined_until(8, monkeypatch)
    settings = SMALL | {"epochs": 14, "patience_epochs": 2, "evaluate_epochs": 1, "lr": 1e-12}
    assert train_work.run(Settings(run=run, dataset=str(dataset), **settings)) == 0
    ending = json.loads((run / "finished.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in lines if "val/auc_macro" in line]
    assert ending["step"] in evaluated[9:]
    assert ending["best_step"] in evaluated[7:]
    assert [line["val/auc_macro"] for line in lines if "val/auc_macro" in line][:7] == [None] * 7
    said = capfd.readouterr().out
    told = "the AUC of the validation images is undefined; it is ignored for the choice of the best weights"
    assert said.count(told) == 7


def test_a_choice_by_few_images_is_told(dataset: Path, tmp_path: Path) -> None:
    few, many = (
        Supervised.of(Settings(run=tmp_path / "run", dataset=str(dataset), val_fraction=fraction, **SMALL))
        for fraction in (0.1, 0.4)
    )
    assert "3 of left, 3 of right, 3 of middle" in few.few
    assert "below 100" in many.few


def words(dataset: Path, output: Path, *more: str) -> list[str]:
    settings = SMALL | {"epochs": 4, "lr": 1e-3}
    cases = f"{dataset}:40,{dataset}:20/20/5"
    given = [f"--datasets={cases}", f"--output={output}", "--seeds=0:2", "--num_evaluations=2"]
    return ["benchmark", "selection", *given, *(f"--{name}={value}" for name, value in settings.items()), *more]


def test_rules_are_compared_on_held_out_images_and_what_is_done_is_not_done_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words(dataset, tmp_path)) == 0
    table = (tmp_path / "selection.csv").read_text()
    lines = list(csv.DictReader(table.splitlines()))
    assert len(lines) == 2 * (len(RULES) + 1)
    assert {line["case"]: line["num_train"] for line in lines} == {
        f"{dataset.name}-40": "37",
        f"{dataset.name}-20-20-5": "40",
    }
    by_hand = []
    for seed in (0, 1):
        with np.load(tmp_path / "curves" / f"{dataset.name}-40-{seed}.npz") as stored:
            assert stored["held_outputs"].shape == (2, 45, 3)
            assert np.bincount(stored["held_labels"]).tolist() == [15, 15, 15]
            by_hand.append((stored["held_outputs"][-1].argmax(axis=1) == stored["held_labels"]).mean())
    (last,) = [line for line in lines if line["case"].endswith("-40") and line["rule"] == "last weights"]
    assert float(last["accuracy"]) == pytest.approx(np.mean(by_hand))
    monkeypatch.setattr(curves, "follow", None)
    assert main(words(dataset, tmp_path)) == 0
    assert (tmp_path / "selection.csv").read_text() == table
    assert main(words(dataset, tmp_path, "--weight_decay=0.3")) == 2
    assert "was made with different settings; use those, or give another --output" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("cases", "told"),
    [("d:0", "a number of labels"), ("d:x", "a number of labels"), ("d:3/", "a number of labels"), ("", "is empty")],
)
def test_cases_that_cannot_be_read_are_refused(
    cases: str, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", "selection", f"--datasets={cases}", f"--output={tmp_path}"])
    assert told in capfd.readouterr().err
