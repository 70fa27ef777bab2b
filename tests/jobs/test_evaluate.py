"""Evaluation: every number is of images that were held out, each counted once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import Command, rank_variables, write_blobs
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    mean_absolute_error,
    roc_auc_score,
)

from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.data.shards import Samples
from deeplense.evaluation.metrics import softmax
from deeplense.training import checkpoint
from jobs.run_job import main
from jobs.runs.opening import train_settings
from jobs.runs.stored import stored_config
from jobs.settings import from_plain
from jobs.train.network import make_network
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings

Start = Callable[..., Command]
SMALL = ("--model_name=simple_cnn", "--batch_size=16", "--epochs=2", "--device=cpu")


def numbers(folder: Path) -> dict[str, Any]:
    """What a report says."""
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("trained") / "run"
    command = Command(
        ["train", f"--dataset={dataset}", f"--run={run}", "--wandb=offline", *SMALL], run.parent / "log.txt"
    )
    assert command.wait() == 0, command.log.read_text()
    return run


def outputs_by_hand(run: Path, split: Split) -> np.ndarray:
    """The outputs of a run's best weights, by as little of the project's code as will do."""
    path, _ = checkpoint.newest_good(run / "checkpoints", kind="best")
    assert path is not None
    saved = checkpoint.load(path)
    network = make_network(from_plain(Settings, stored_config(run)), split, load_pretrained=False).eval()
    network.load_state_dict(saved["model"])
    statistics = saved["progress"]["statistics"]
    images = (split.images(np.arange(len(split))) - statistics["mean"][0]) / statistics["std"][0]
    with torch.no_grad():
        return network(torch.from_numpy(images).float()).numpy()


def test_the_report_agrees_with_scikit_learn(dataset: Path, trained: Path, start: Start) -> None:
    assert start("evaluate", f"--run={trained}", "--device=cpu").wait() == 0
    found, split = numbers(trained / "report"), Split(dataset / "test")
    probabilities = softmax(outputs_by_hand(trained, split))
    metrics = {name: value["value"] for name, value in found["metrics"].items()}
    expected = roc_auc_score(split.labels, probabilities, multi_class="ovr", average=None)  # type: ignore[arg-type]
    for k, name in enumerate(split.schema.classes):
        assert metrics[f"auc_{name}"] == pytest.approx(np.asarray(expected)[k], abs=1e-6)
    assert metrics["auc_macro"] == pytest.approx(np.mean(expected), abs=1e-6)
    predicted = probabilities.argmax(axis=1)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(split.labels, predicted))
    assert found["confusion"] == confusion_matrix(split.labels, predicted).tolist()
    for value in found["metrics"].values():
        assert value["low"] <= value["value"] <= value["high"]
    page = (trained / "report" / "index.html").read_text()
    for name, oracle in (("log_loss", log_loss), ("brier", brier_score_loss)):
        assert metrics[name] == pytest.approx(oracle(split.labels, probabilities), rel=1e-5)
        assert f"{metrics[name]:.4f}" in page


def test_the_number_of_processes_changes_no_number(trained: Path, tmp_path: Path, start: Start) -> None:
    assert start("evaluate", f"--run={trained}", "--device=cpu", f"--output={tmp_path / 'one'}").wait() == 0
    ranks = [
        start(
            *("evaluate", f"--run={trained}", "--device=cpu", f"--output={tmp_path / 'many'}", "--explain=2"),
            environment=variables,
        )
        for variables in rank_variables(4)
    ]
    assert [rank.wait() for rank in ranks] == [0] * 4, ranks[0].log.read_text()
    assert (tmp_path / "many" / "explanations.png").exists()
    one, many = numbers(tmp_path / "one"), numbers(tmp_path / "many")
    assert one["confusion"] == many["confusion"]
    assert sum(map(sum, many["confusion"])) == 45
    for name, value in one["metrics"].items():
        assert many["metrics"][name]["value"] == pytest.approx(value["value"], abs=1e-6)


def test_a_run_is_found_by_its_wandb_id(trained: Path, tmp_path: Path, start: Start) -> None:
    name = (trained / "wandb_id.txt").read_text().strip()
    found = start("evaluate", f"--run={name}", f"--runs_root={trained.parent}", f"--output={tmp_path / 'report'}")
    assert found.wait() == 0, found.log.read_text()
    unknown = start("evaluate", "--run=abc123", f"--runs_root={trained.parent}")
    assert unknown.wait() == 2
    assert "neither a run folder nor the W&B id" in unknown.log.read_text()


def test_images_that_were_learnt_from_are_refused(trained: Path, start: Start) -> None:
    command = start("evaluate", f"--run={trained}", "--split=train")
    assert command.wait() == 2
    assert "all 96 images" in command.log.read_text()


def test_images_that_were_learnt_from_are_left_out_of_another_data_set_and_counted(
    dataset: Path, trained: Path, tmp_path: Path, start: Start
) -> None:
    train, test = Split(dataset / "train"), Split(dataset / "test")
    images = np.concatenate([test.images(np.arange(20)), train.images(np.arange(7))])
    labels = np.concatenate([test.labels[:20], train.labels[:7]])
    schema = test.schema.__class__(**(vars(test.schema) | {"num_samples": 27, "targets": {}}))
    samples = Samples(images, labels, {}, [f"mixed-{k}" for k in range(27)], np.arange(27))
    list(build(tmp_path / "mixed" / "test", schema, lambda rows: samples))
    command = start(
        "evaluate", f"--run={trained}", f"--dataset={tmp_path / 'mixed'}", f"--output={tmp_path / 'report'}"
    )
    assert command.wait() == 0, command.log.read_text()
    found = numbers(tmp_path / "report")
    assert sum(map(sum, found["confusion"])) == 20
    assert "excluded: 7 trained on, 0 used for validation" in found["facts"]["held out"]
    assert "validation images (few: " in found["facts"]["weights"], "that few images chose the weights is said"


def test_images_of_another_kind_are_refused(trained: Path, tmp_path: Path, start: Start) -> None:
    write_blobs(tmp_path, "test", 12)
    path = next((tmp_path / "test").glob("shard-*.h5"))
    with h5py.File(path) as file:
        assert "image" in file
    other = Split(tmp_path / "test")
    schema = other.schema.__class__(**(vars(other.schema) | {"classes": ("a", "b", "c"), "targets": {}}))
    samples = Samples(other.images(np.arange(12)), other.labels, {}, [f"id{k}" for k in range(12)], np.arange(12))
    list(build(tmp_path / "other" / "test", schema, lambda rows: samples))
    command = start("evaluate", f"--run={trained}", f"--dataset={tmp_path / 'other'}")
    assert command.wait() == 2
    assert "but the run was trained on" in command.log.read_text()


def test_folds_hold_out_every_sample_once_and_are_put_together(dataset: Path, tmp_path: Path, start: Start) -> None:
    for fold in range(3):
        command = start(
            "train", f"--dataset={dataset}", f"--run={tmp_path}/fold{fold}", "--num_folds=3", f"--fold={fold}", *SMALL
        )
        assert command.wait() == 0, command.log.read_text()
    together = start("evaluate", f"--run={tmp_path}/fold*", f"--output={tmp_path / 'report'}")
    assert together.wait() == 0, together.log.read_text()
    confusion = np.array(numbers(tmp_path / "report")["confusion"])
    assert confusion.sum(axis=1).tolist() == [32, 32, 32]
    shutil.copytree(tmp_path / "fold0", tmp_path / "fold0b")
    twice = start("evaluate", f"--run={tmp_path}/fold0*")
    assert twice.wait() == 2
    assert "predict the same image" in twice.log.read_text()


def test_a_number_is_learnt_and_told_against_chance(dataset: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    settings = ("--target=column", "--epochs=12", "--lr=3e-3", "--flips=0", *SMALL[:3], "--device=cpu")
    command = start("train", f"--dataset={dataset}", f"--run={run}", *settings)
    assert command.wait() == 0, command.log.read_text()
    assert start("evaluate", f"--run={run}", "--explain=2").wait() == 0
    survey = start("evaluate", f"--run={run}", "--prevalence=0.1")
    assert survey.wait() == 2
    assert "predicts column, not classes; leave out --prevalence" in survey.log.read_text()
    assert "15 images of the split have no label and are left out" in numbers(run / "report")["facts"]["held out"]
    assert "the evidence for a larger predicted value" in (run / "report" / "index.html").read_text()
    metrics = {name: value["value"] for name, value in numbers(run / "report")["metrics"].items()}
    truth = Split(dataset / "test").column("target/column")
    known = truth[np.isfinite(truth)]
    train, _ = learning_parts(train_settings(run))
    learnt = Split(dataset / "train").column("target/column")[train.indices]
    guess = np.full(len(known), np.median(learnt))
    assert metrics["mae_chance"] == pytest.approx(mean_absolute_error(known, guess), rel=1e-6)
    assert metrics["mae"] < 0.6 * metrics["mae_chance"]


@pytest.mark.usefixtures("drawn_figures")
def test_what_is_found_in_a_survey_is_in_the_report_and_on_the_page(trained: Path, tmp_path: Path) -> None:
    words = ["--prevalence=0.2", "--top=9", "--survey_size=900", f"--output={tmp_path / 'report'}"]
    assert main(["evaluate", f"--run={trained}", "--device=cpu", *words]) == 0
    found = numbers(tmp_path / "report")
    assert found["survey"] == {"prevalence": 0.2, "top": 9, "size": 900}
    with np.load(tmp_path / "report" / "predictions.npz") as stored:
        probabilities, labels = softmax(stored["outputs"]), stored["labels"]
    for k, name in enumerate(found["classes"]):
        of_class = found["finding"][name]
        expected = average_precision_score(labels == k, probabilities[:, k])
        assert of_class["average_precision"]["value"] == pytest.approx(expected)
        best = np.argsort(-probabilities[:, k])[:9]
        assert of_class["in_top_9"]["value"] == pytest.approx((labels[best] == k).sum())
        assert set(of_class["in_top_9_of_900"]) in ({"value", "low", "high"}, {"undefined", "at_least"})
        assert of_class["tpr_at_fpr_0.01"] == {"undefined": "needs 200 images of other classes, has 30"}
    page = (tmp_path / "report" / "index.html").read_text()
    assert "the fraction of the class is 0.2" in page
    assert "purity at completeness 0.5 in the survey" in page
    assert (tmp_path / "report" / "purity.png").exists()


def test_without_a_prevalence_the_page_tells_how_to_give_one(trained: Path, tmp_path: Path) -> None:
    assert main(["evaluate", f"--run={trained}", "--device=cpu", f"--output={tmp_path / 'report'}"]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "needs the fraction of the class in the survey (--prevalence)" in page
    assert "at the class fraction of these images; bands" in page


def test_explanations_are_the_same_each_time_and_change_no_number(trained: Path, tmp_path: Path, start: Start) -> None:
    def report(name: str, *settings: str) -> dict[str, bytes]:
        command = start("evaluate", f"--run={trained}", "--device=cpu", f"--output={tmp_path / name}", *settings)
        assert command.wait() == 0, command.log.read_text()
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    plain, explained, again = report("plain"), report("a", "--explain=4"), report("b", "--explain=4")
    assert explained["explanations.png"] == again["explanations.png"]
    assert "explanations.png" not in plain
    assert plain["report.json"] == explained["report.json"]
    assert b"The positions of the substructure are unknown for this data set" in explained["index.html"]
