"""Pretrained backbones over numbers of labels: made from what is finished, beside scratch, and told in words."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Forked, StopAtStepTwo
from stamps import make_stamps, pretrain

from deeplense.data.dataset import Split
from deeplense.data.subsets import first_of_each
from deeplense.evaluation.comparison import difference
from deeplense.evaluation.metrics import Estimate
from jobs import command_line, processes
from jobs.benchmark_labels import page as labels_page
from jobs.benchmark_labels import plan as labels_plan
from jobs.benchmark_labels import table as labels_table
from jobs.benchmark_labels.table import Backbone, Row
from jobs.finetune.work import training_of
from jobs.runs.attempts import EXIT_REFUSED, EXIT_STOPPED, read_attempts
from jobs.train.samples import known_part
from jobs.trials.scores import scores_of
from launch.__main__ import main

SHORT = ("--num_updates=3", "--min_epochs=0", "--batch_size=8", "--device=cpu", "--log_interval=1")


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands come from the fork server; the list of what was started."""
    monkeypatch.setattr(processes, "start", Forked)
    monkeypatch.setattr(Forked, "started", [])
    return Forked.started


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images to learn from, 40 to test on."""
    return make_stamps(tmp_path_factory.mktemp("data") / "stamps", num_train=60)


@pytest.fixture(scope="module")
def backbone(stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained backbone, called dino."""
    return pretrain(stamps, tmp_path_factory.mktemp("pretrained") / "dino")


def words(output: Path, backbones: str, dataset: Path | str, *more: str) -> list[str]:
    """The command line of a table."""
    given = [f"--backbones={backbones}", f"--datasets={dataset}", f"--output={output}", "--seeds=0:2"]
    return ["benchmark", "labels", *given, "--num_labels=20,all", "--modes=full,knn", *SHORT, *more]


@pytest.fixture(scope="module")
def made(stamps: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of one backbone, two numbers of labels, two ways and two seeds."""
    output = tmp_path_factory.mktemp("table") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "start", Forked)
        assert main(words(output, str(backbone), stamps)) == 0
    return output


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def table(output: Path) -> list[dict[str, Any]]:
    """The rows."""
    return json.loads((output / "table.json").read_text())["rows"]


def plan(line: list[str]) -> list[labels_table.Cell]:
    """The cells of a command line."""
    return labels_plan.make_plan(command_line.parse("benchmark labels", line[2:]))


def report(output: Path, name: str) -> dict[str, float]:
    """What the evaluation of a run says."""
    metrics = json.loads((output / "runs" / name / "report" / "report.json").read_text())["metrics"]
    return {key: value["value"] for key, value in metrics.items()}


def test_each_number_is_the_mean_of_the_evaluations_of_all_seeds(made: Path) -> None:
    rows = table(made)
    told = [(row["mode"], row["num_labels"], row["backbone"]["name"]) for row in rows]
    full = [("full", count, name) for count in (20, 60) for name in ("scratch", "dino")]
    assert told == [*full, ("knn", 20, "dino"), ("knn", 60, "dino")]
    for row in rows:
        count = {20: "20", 60: "all"}[row["num_labels"]]
        name = f"{row['backbone']['name']}-{row['mode']}-{count}-stamps"
        evaluated = [report(made, f"{name}-{seed}") for seed in (0, 1)]
        for metric in ("auc_left", "auc_macro", "accuracy"):
            found = row["metrics"][metric]
            assert found["value"] == pytest.approx(np.mean([each[metric] for each in evaluated]))
            assert found["low"] <= found["value"] <= found["high"]
        assert (row["seeds"], row["num_images"], row["problem"]) == ([0, 1], 40, "")


def test_differences_are_to_scratch_with_as_many_labels_seed_by_seed(made: Path, stamps: Path, backbone: Path) -> None:
    cells = plan(words(made, str(backbone), stamps))
    for row in table(made):
        if row["backbone"]["name"] == "scratch":
            assert row["differences"] == {}
            continue
        ours, other = (
            {
                cell.trial.seed: scores_of(cell.trial)
                for cell in cells
                if (cell.mode, cell.num_labels, cell.backbone.name) == (mode, row["num_labels"], name)
            }
            for mode, name in ((row["mode"], "dino"), ("full", "scratch"))
        )
        for metric in ("auc_macro", "accuracy"):
            expected, found = difference(ours, other, metric), row["differences"][metric]
            assert expected is not None
            assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
            by_hand = [ours[seed].values[metric] - other[seed].values[metric] for seed in (0, 1)]
            assert found["value"] == pytest.approx(np.mean(by_hand))


def test_all_rows_of_a_seed_learn_from_the_same_labels_and_the_baseline_is_the_same_network(
    made: Path, stamps: Path, backbone: Path
) -> None:
    labels_of = Split(stamps / "train").labels
    for cell in plan(words(made, str(backbone), stamps)):
        command = cell.trial.trainings[0].words
        trained = training_of(command_line.parse(command[0], command[1:]))
        expected = first_of_each(labels_of, cell.num_labels, seed=cell.trial.seed)
        assert known_part(trained).indices.tolist() == expected.tolist()
        assert (trained.model_name, trained.stretch) == ("test_vit", "standard_asinh")
        assert (trained.backbone is None) == (cell.backbone.name == "scratch")


@pytest.mark.usefixtures("drawn_figures")
def test_the_table_is_the_same_in_all_its_forms(
    copy: Path, stamps: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = list(csv.DictReader((copy / "table.csv").read_text().splitlines()))
    assert main(words(copy, str(backbone), stamps)) == 0
    page = (copy / "index.html").read_text()
    said = capsys.readouterr().out
    for line, row in zip(lines, table(copy), strict=True):
        assert (line["name"], line["mode"]) == (row["backbone"]["name"], row["mode"])
        for name, found in (row["metrics"] | {f"difference_{k}": v for k, v in row["differences"].items()}).items():
            ends = [found[key] for key in ("value", "low", "high")]
            assert [float(line[f"{name}{end}"]) for end in ("", "_low", "_high")] == pytest.approx(ends)
        for name in ("auc_macro", "accuracy"):
            assert f"{row['metrics'][name]['value']:.4f}" in page
        assert f"{row['metrics']['auc_macro']['value']:.4f} [" in said
    assert page.count("data:image/png;base64,") == 2
    assert re.search(r"By AUC, dino [^.]* with (20|20 and 60|60) labels", page)
    assert "http" not in page
    assert "Published numbers" not in page


def test_a_second_time_nothing_is_done_and_only_what_is_missing_is_done(
    copy: Path, stamps: Path, backbone: Path, forked: list[str]
) -> None:
    files = [copy / name for name in ("table.json", "table.csv", "index.html")]
    before = [file.read_bytes() for file in files]
    assert main(words(copy, str(backbone), stamps)) == 0
    assert forked == []
    shutil.rmtree(copy / "runs" / "dino-knn-20-stamps-1")
    shutil.rmtree(copy / "runs" / "dino-full-all-stamps-0" / "report")
    assert main(words(copy, str(backbone), stamps)) == 0
    assert forked == ["jobs finetune"] * 2
    assert before == [file.read_bytes() for file in files]


def test_a_signal_saves_the_training_and_the_same_command_continues_to_the_same_table(
    copy: Path, stamps: Path, backbone: Path, forked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    before, run = table(copy), copy / "runs" / "dino-full-20-stamps-1"
    shutil.rmtree(run)
    hook = StopAtStepTwo(os.getpid())
    with monkeypatch.context() as patch:
        patch.setattr(processes, "start", lambda command, environment: Forked(command, environment, hook))
        assert main(words(copy, str(backbone), stamps)) == EXIT_STOPPED
    assert [row["problem"] for row in table(copy) if row["problem"]] == ["seed 1: stopped by SIGTERM"]
    assert main(words(copy, str(backbone), stamps)) == 0
    assert [(each["first_step"], each["ended"]) for each in read_attempts(run)] == [
        (0, "stopped by SIGTERM"),
        (2, "finished"),
    ]
    assert table(copy) == before


def test_a_run_that_fails_is_told_and_the_others_go_on(
    copy: Path, stamps: Path, backbone: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(backbone, spoilt)
    for checkpoint in (spoilt / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    assert main(words(copy, f"{backbone},{spoilt}", stamps, "--modes=knn", "--num_labels=20")) == 1
    good, bad = [row for row in table(copy) if row["mode"] == "knn"]
    assert (good["problem"], good["seeds"]) == ("", [0, 1])
    assert bad["problem"].startswith("seed 0: error: exit code 2: ")
    assert "has no intact checkpoint of its last weights yet; train it further" in bad["problem"]
    assert "spoilt has no results yet" in (copy / "index.html").read_text()


def test_backbones_of_two_networks_are_each_held_against_their_own_from_scratch(
    stamps: Path, backbone: Path, tmp_path: Path
) -> None:
    pretrain(stamps, tmp_path / "linear", "--stretch=linear")
    cells = plan(words(tmp_path / "out", f"{backbone},{tmp_path / 'linear'}", stamps))
    baselines = {cell.backbone.name: cell.backbone.baseline for cell in cells}
    of_standard, of_linear = "scratch-test_vit-standard_asinh", "scratch-test_vit-linear"
    expected = {"dino": of_standard, "linear": of_linear, of_standard: of_standard, of_linear: of_linear}
    assert baselines == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backbones": "nowhere"}, "nowhere is not a run folder"),
        ({"backbones": ","}, "backbones is empty"),
        ({"num_labels": "20,20"}, "has 20 twice"),
        ({"num_labels": "many"}, "'many' is neither a number above 0 nor all"),
        ({"num_labels": "60,all"}, "num_labels: 60 is the same as `all` for"),
        ({"num_labels": "61"}, "num_labels=61 exceeds the 60 labels of"),
        ({"batch_size": "32"}, "batch_size=32 exceeds the 18 training samples"),
        ({"modes": "full,probe"}, "unknown mode 'probe'; choose from full, linear, knn"),
        ({"seeds": "3:3"}, "seeds='3:3' contains none"),
        ({"only": "dino-full-20-stamps-7"}, "Did you mean"),
        ({"datasets": "nowhere"}, "no such data set 'nowhere'"),
        ({"datasets": "a+b"}, "datasets=a+b: data sets cannot be combined with +"),
        ({"model_name": "resnet18"}, "unknown setting 'model_name'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_done(
    given: dict[str, str],
    said: str,
    stamps: Path,
    backbone: Path,
    tmp_path: Path,
    forked: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = words(tmp_path / "out", str(backbone), stamps, *(f"--{name}={value}" for name, value in given.items()))
    try:
        code = main(line)
    except SystemExit as exit:
        code = exit.code
    assert code == EXIT_REFUSED
    assert said in capsys.readouterr().err
    assert forked == []
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_test_and_runs_of_other_settings_are_refused(
    copy: Path, stamps: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stamps / "train", tmp_path / "data" / "train")
    assert main(words(tmp_path / "new", str(backbone), tmp_path / "data")) == EXIT_REFUSED
    assert "has no split 'test'; it has train" in capsys.readouterr().err
    assert main(words(copy, str(backbone), stamps, "--lr=0.1")) == EXIT_REFUSED
    assert "was started with other settings: lr=0.1" in capsys.readouterr().err


def test_each_run_that_is_left_is_an_element_of_an_array(
    copy: Path, stamps: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "runs" / "dino-knn-20-stamps-1")
    shutil.rmtree(copy / "runs" / "scratch-full-all-stamps-0")
    assert main(["submit", "--on", "local", "--dry_run", *words(copy, str(backbone), stamps)]) == 0
    said = capsys.readouterr().out.splitlines()[1:]
    names = [Path(line.removeprefix("# ")).name for line in said]
    assert names == ["dino-knn-20-stamps-1", "scratch-full-all-stamps-0"]
    assert main(words(copy, str(backbone), stamps, f"--only={names[0]}")) == 0
    assert [row["problem"] for row in table(copy) if row["problem"]] == ["seed 0: not started"]


BACKBONE = Backbone("dino", "dino", "vit_small", "asinh", "runs/dino", "scratch")
ROW = Row("hsc", "lens-finding", "full", 300, BACKBONE, seeds=[0, 1], num_seeds=2, num_paired=2)


@pytest.mark.parametrize(
    ("low", "high", "num_paired", "verdict"),
    [
        (0.01, 0.05, 5, "better"),
        (-0.05, -0.01, 5, "worse"),
        (-0.01, 0.05, 5, "not significant"),
        (0.0, 0.05, 5, "not significant"),
        (0.01, 0.05, 1, "not significant (one seed)"),
    ],
)
def test_the_verdict_is_that_of_the_interval(low: float, high: float, num_paired: int, verdict: str) -> None:
    estimate = Estimate((low + high) / 2, low, high)
    assert replace(ROW, differences={"auc_macro": estimate}, num_paired=num_paired).verdict("auc_macro") == verdict
    assert ROW.verdict("auc_macro") == ""


def test_the_conclusions_name_each_verdict_with_its_numbers_of_labels() -> None:
    found = {"auc_macro": Estimate(0.02, 0.01, 0.03)}, {"auc_macro": Estimate(0.01, -0.01, 0.03)}
    rows = [replace(ROW, num_labels=count, differences=found[count > 600]) for count in (300, 600, 1200)]
    assert [*labels_page.conclusions(rows)] == [
        "By AUC, dino is better than from scratch with 300 and 600 labels; "
        "does not differ significantly from scratch with 1,200 labels"
    ]


def test_published_numbers_stand_beside_the_same_network_and_method_on_their_images_only(public_data: Path) -> None:
    current, older = labels_table.published(ROW)
    assert (current["accuracy"], current["auc"]) == ("0.911609", "0.9689")
    assert "47 of the 300 labels are of images of the test set" in current["caveat"]
    assert "older split" in older["caveat"]
    others = ({"kind": "Model_III"}, {"mode": "knn"}, {"num_labels": 301})
    assert [labels_table.published(replace(ROW, **other)) for other in others] == [[], [], []]
    other = replace(ROW, backbone=replace(BACKBONE, model_name="vit_tiny"))
    assert labels_table.published(other) == []


def test_published_numbers_are_those_of_the_table_that_was_published(public_data: Path) -> None:
    path = public_data.parent / "reference" / "results" / "ssl_lens_finding.csv"
    if not path.exists():
        pytest.skip("the published table is not here")
    source = list(csv.DictReader(path.read_text().splitlines()))
    ours = [one for one in labels_table.all_published() if one["auc"]]
    for theirs, one in zip(source, ours, strict=True):
        assert (one["method"], one["network"], one["auc"]) == (theirs["pretraining"], theirs["backbone"], theirs["auc"])
        assert float(one["accuracy"]) == pytest.approx(float(theirs["accuracy_percent"]) / 100)
        assert one["num_labels"] == {"3256": "3863"}.get(theirs["num_labelled"], theirs["num_labelled"])
    assert all(one["caveat"] for one in labels_table.all_published())


def test_the_page_of_lens_finding_has_the_published_numbers(tmp_path: Path) -> None:
    row = replace(ROW, published=labels_table.published(ROW))
    labels_page.write_table(tmp_path, [row])
    page = (tmp_path / "index.html").read_text()
    assert "Published numbers" in page
    assert "0.9116 (AUC 0.9689)" in page
