"""What `show`, `plot` and `compare` say of data sets and runs, and what they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from test_train import SMALL, train

from deeplense.evaluation.metrics import softmax
from jobs.compare.paired import paired_differences
from jobs.compare.work import Compared, finding_section
from jobs.run_job import main
from jobs.runs.curves import panels_of, read_curves

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two evaluated runs that differ in the learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in (("slow", 1e-4), ("fast", 1e-3)):
        assert main(train(dataset, folder / name, SMALL | {"lr": rate})) == 0
        assert main(["evaluate", f"--run={folder / name}"]) == 0
    return folder / "slow", folder / "fast"


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_show_tells_the_counts_classes_targets_and_units_and_draws_the_first_images(
    dataset: Path, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(dataset), "--num_images=3"]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["split", "images", "left", "right", "middle", "unlabelled"] in lines
    assert ["train", "96", "32", "32", "32", "0"] in lines
    assert ["test", "45", "15", "15", "15", "0"] in lines
    (target,) = [line for line in lines if line[:1] == ["column"]]
    # Of the class right no column is known.
    assert target[1:3] == ["pixel", "64"]
    assert (inside / f"{dataset.name}.png").read_bytes().startswith(PNG)
    assert [path.name for path in inside.iterdir()] == [f"{dataset.name}.png"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show", "{dataset}", "--split=val"], "has no split 'val'; it has test, train"),
        (["show", "{dataset}/train"], "is one split of a data set; give the data set itself"),
        (["show", "{dataset}", "--output=nowhere/a.png"], "the folder nowhere of output=nowhere/a.png does not exist"),
        (["plot", "nowhere"], "nowhere is neither a run folder nor the W&B id of a run"),
        (["plot", "{slow}", "--names=val/acuracy"], "no run has logged val/acuracy; logged: "),
        (["plot", "{slow}", "--output=a.gif"], "output=a.gif must end in .png, .pdf, .svg"),
        (["compare", "{slow}"], "give two or more runs to compare"),
        (["compare", "{slow}", "{slow}"], "a run is given twice"),
        (["compare"], "give RUNS; --help explains it"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_writes_nothing(
    words: list[str],
    told: str,
    dataset: Path,
    runs: tuple[Path, Path],
    inside: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    try:
        code = main([word.format(dataset=dataset, slow=runs[0]) for word in words])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert told in capfd.readouterr().err
    assert not any(inside.iterdir())


def test_plot_writes_the_curves_that_were_logged(
    runs: tuple[Path, Path], inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs[0].rglob("*") if path.is_file()}
    assert main(["plot", str(runs[0])]) == 0
    assert (runs[0] / "curves.png").read_bytes().startswith(PNG)
    assert main(["plot", *map(str, runs), "--names=train/loss,val/auc_macro"]) == 0
    assert (inside / "curves.png").read_bytes().startswith(PNG)
    assert main(["plot", str(runs[1]), "--output=one.svg"]) == 0
    assert "<svg" in (inside / "one.svg").read_text()
    said = capfd.readouterr().out
    assert "slow: step 16, train/loss " in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_without_a_step_has_no_curves(
    runs: tuple[Path, Path], inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (inside / "new").mkdir()
    shutil.copy(runs[0] / "config.yaml", inside / "new")
    assert main(["plot", "new"]) == 2
    assert "new: no metrics are logged yet" in capfd.readouterr().err


def test_losses_and_scores_have_axes_of_their_own_and_classes_their_names(runs: tuple[Path, Path]) -> None:
    curves = read_curves(runs[0])
    assert {"val/auc_left", "val/auc_right", "val/auc_middle"} < curves.keys()
    panels = panels_of({"slow": curves})
    titles = {label: [curve.title for curve in drawn] for label, drawn in panels.items()}
    assert titles["loss"] == ["training loss", "validation log loss"]
    assert "validation AUC left" in titles["AUC"]
    assert [*panels][-1] == "learning rate"
    both = panels_of({"slow": curves, "fast": read_curves(runs[1])})
    assert [curve.title for curve in both["AUC"]] == ["slow: validation AUC macro", "fast: validation AUC macro"]
    assert [curve.colour for curve in both["AUC"]] == [0, 1]


@pytest.mark.usefixtures("drawn_figures")
def test_compare_tells_the_settings_that_differ_and_the_paired_difference_on_the_same_images(
    runs: tuple[Path, Path], inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs)]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["lr", "0.0001", "0.001"] in lines
    assert not any(line[:1] == ["batch_size"] for line in lines)
    page = (inside / "compare.html").read_text()
    assert "Differences to slow" in page
    assert page.count("data:image/png") == 1
    pair = paired_differences(runs[0] / "report", runs[1] / "report")
    assert not isinstance(pair, str)
    found = []
    for run in runs:
        with np.load(run / "report" / "predictions.npz") as stored:
            probabilities, labels = softmax(stored["outputs"]), stored["labels"]
        auc = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        found.append((auc, log_loss(labels, probabilities)))
    assert pair.num_images == 45
    for place, name in enumerate(("auc_macro", "log_loss")):
        estimate = pair.differences[name]
        assert estimate.value == pytest.approx(found[1][place] - found[0][place], abs=1e-6)
        assert estimate.low < estimate.value < estimate.high


def test_the_interval_of_a_difference_is_paired(runs: tuple[Path, Path], tmp_path: Path) -> None:
    # A run against itself differs by nothing, whatever the images are.
    same = paired_differences(runs[0] / "report", runs[0] / "report")
    assert not isinstance(same, str)
    assert all((each.low, each.value, each.high) == (0, 0, 0) for each in same.differences.values())


def test_only_images_that_both_runs_were_evaluated_on_are_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "report"
    shutil.copytree(runs[1] / "report", other)
    with np.load(other / "predictions.npz") as stored:
        columns = dict(stored)
    kept = columns["indices"] >= 12
    fewer = {name: value[kept] if value.shape[:1] == kept.shape else value for name, value in columns.items()}
    np.savez(other / "predictions.npz", **fewer)
    pair = paired_differences(runs[0] / "report", other)
    assert not isinstance(pair, str)
    assert pair.num_images == 33
    document = json.loads((other / "report.json").read_text())
    for name, value, told in (
        ("of", {"dataset_id": "x"}, "other images"),
        ("classes", ["a", "b", "c"], "other classes"),
    ):
        (other / "report.json").write_text(json.dumps(document | {name: value}))
        assert paired_differences(runs[0] / "report", other) == f"the two reports are on {told}"


def test_a_run_that_was_not_evaluated_is_compared_by_settings_and_curves(
    runs: tuple[Path, Path], inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = inside / "third"
    shutil.copytree(runs[1], copy, ignore=lambda folder, names: {"report"} & set(names))
    assert main(["compare", str(runs[0]), str(copy)]) == 0
    said = capfd.readouterr().out
    assert f"not evaluated: deeplense evaluate --run {copy}" in said
    assert f"no report: {copy / 'report'}" in said


@pytest.mark.usefixtures("drawn_figures")
def test_numbers_are_compared_in_their_unit(dataset: Path, inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, rate in (("one", 1e-4), ("two", 1e-3)):
        settings = SMALL | {"lr": rate, "target": "column", "epochs": 1}
        assert main(train(dataset, inside / name, settings)) == 0
        assert main(["evaluate", f"--run={inside / name}"]) == 0
    said = capfd.readouterr().out
    assert "mae [pixel]" in said
    assert json.loads((inside / "one" / "report" / "report.json").read_text())["unit"] == "pixel"
    page = (inside / "one" / "report" / "index.html").read_text()
    assert "mae [pixel]" in page
    changed = page.partition("These differ from their defaults")[2].partition("<details>")[0]
    assert "<td>target</td>" in changed
    assert "<td>weight_decay</td>" not in changed
    assert main(["compare", "one", "two"]) == 0
    pair = paired_differences(inside / "one" / "report", inside / "two" / "report")
    assert not isinstance(pair, str)
    assert set(pair.differences) == {"mae", "gain"}


def rates_of(rate: float, low: float, high: float) -> dict[str, dict[str, dict[str, float | str]]]:
    """The numbers of one class in a report."""
    return {
        "lens": {
            "tpr_at_fpr_0.01": {"value": rate, "low": low, "high": high},
            "tpr_at_fpr_0.001": {"undefined": "needs 2,000 images of other classes, has 300"},
        }
    }


def test_rates_at_low_false_positive_rates_are_listed_if_any_run_has_them(tmp_path: Path) -> None:
    runs = [
        Compared(name, tmp_path, {}, {}, {"finding": finding}, tmp_path)
        for name, finding in (("a", rates_of(0.5, 0.4, 0.6)), ("b", {}))
    ]
    (section,) = finding_section(runs)
    assert section.headings == ["run", "lens: true positive rate at a false positive rate of 1 %"]
    assert section.rows == [["a", "0.5000\n0.4000 to 0.6000"], ["b", ""]]
    assert finding_section(runs[1:]) == []
