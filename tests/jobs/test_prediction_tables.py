"""Tables of predictions: the numbers of each image, and exactly one row for each, whatever happens."""

import errno
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command, blobs, write_blobs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from test_train import SMALL, train

import deeplense
from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.data.shards import Samples
from deeplense.evaluation.conformal import thresholds
from deeplense.evaluation.temperature import fit_temperature
from deeplense.files import checksum, read_json
from jobs.data.seen import Seen
from jobs.predict import calibration, output
from jobs.predict.scoring import finite_only
from jobs.run_job import main

KILLED = -signal.SIGKILL
QUICK = ["--batch_size=16", "--images_per_file=16", "--device=cpu"]


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two classifiers with different seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert main(train(dataset, folder / f"run{seed}", SMALL | {"seed": seed})) == 0
    return [folder / "run0", folder / "run1"]


def predict(run: Path | str, dataset: Path, folder: Path, *more: str) -> list[str]:
    """The command line of a prediction."""
    return ["predict", f"--run={run}", f"--dataset={dataset}", f"--output={folder}", *QUICK, *more]


def table_of(folder: Path) -> pa.Table:
    """The whole table, in the order of its manifest."""
    manifest = read_json(folder / output.MANIFEST)
    for line in manifest["files"]:
        assert checksum(folder / line["file"]) == line["xxh3_128"]
    return pa.concat_tables([pq.read_table(folder / line["file"]) for line in manifest["files"]])


def values(table: pa.Table, *names: str) -> np.ndarray:
    """Columns side by side."""
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def of_classes(table: pa.Table, kind: str) -> np.ndarray:
    """The columns of a kind, one per class."""
    return values(table, *(f"{kind}_{name}" for name in ("left", "right", "middle")))


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(runs: list[Path], dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of both splits, written at once."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main(predict(runs[0], dataset, folder)) == 0
    return folder


def test_each_image_of_all_splits_has_one_row_with_the_numbers_of_the_python_interface(
    whole: Path, runs: list[Path], dataset: Path
) -> None:
    table, run = table_of(whole), deeplense.load_run(runs[0])
    splits = {name: deeplense.open_dataset(dataset, name) for name in ("test", "train")}
    images = np.concatenate([each.images() for each in splits.values()])
    assert table["id"].to_pylist() == [name for each in splits.values() for name in each.names]
    assert table["index"].to_pylist() == list(range(len(images)))
    assert table["source"].to_pylist() == [
        f"{dataset.name}/{name}" for name, each in splits.items() for _ in each.names
    ]
    temperature = read_json(whole / output.MANIFEST)["runs"][0]["temperature"]
    logits = run.predict(images) / temperature
    assert of_classes(table, "logit") == pytest.approx(logits, abs=1e-5)
    assert of_classes(table, "probability") == pytest.approx(softmax(logits, axis=1), abs=1e-6)
    assert len({checksum(whole / f"predictions-{k:05d}.parquet") for k in range(9)}) == 9


def test_images_that_a_run_was_trained_on_are_marked(whole: Path) -> None:
    table = table_of(whole)
    seen, trained = table["seen"].to_numpy(), np.array([s.endswith("train") for s in table["source"].to_pylist()])
    assert np.array_equal(seen, trained)


def test_the_temperature_fits_the_validation_images_and_is_kept_with_the_run(whole: Path, runs: list[Path]) -> None:
    from jobs.train.stored import open_trained

    stored = read_json(whole / output.MANIFEST)["runs"][0]
    val = open_trained(runs[0], which="best").val
    logits = deeplense.load_run(runs[0]).predict(val.split.images(val.indices))
    assert stored["temperature"] == pytest.approx(fit_temperature(logits, val.labels), rel=1e-4)
    assert stored["validation_images"] == len(val)
    (kept,) = read_json(runs[0] / "temperature.json")["temperatures"].values()
    assert kept["temperature"] == stored["temperature"]


def test_an_ensemble_gives_the_mean_and_the_spread_of_its_runs_and_views_their_mean_logits(
    runs: list[Path], dataset: Path, tmp_path: Path
) -> None:
    words = ["--split=test", "--calibrate=0", "--views=8", "--embeddings=1"]
    assert main(predict(f"{runs[0].parent}/run*", dataset, tmp_path / "out", *words)) == 0
    images, said = deeplense.open_dataset(dataset, "test").images(), []
    for path in runs:
        run = deeplense.load_run(path)
        ways = [np.rot90(images, k, axes=(2, 3)) for k in range(4)]
        ways += [way[..., ::-1] for way in ways]
        said.append(softmax(np.mean([run.predict(way.copy()) for way in ways], axis=0), axis=1))
    table = table_of(tmp_path / "out")
    assert of_classes(table, "probability") == pytest.approx(np.mean(said, axis=0), abs=1e-5)
    assert of_classes(table, "spread") == pytest.approx(np.std(said, axis=0, ddof=1), abs=1e-5)
    features = np.stack([np.asarray(row.as_py()) for row in table["embedding"]])
    assert features.shape[0] == 45
    assert np.ptp(features, axis=0).max() > 0.1


def test_a_linear_layer_of_the_embeddings_gives_the_logits(runs: list[Path], dataset: Path, tmp_path: Path) -> None:
    words = ["--split=test", "--calibrate=0", "--embeddings=1"]
    assert main(predict(runs[0], dataset, tmp_path / "out", *words)) == 0
    table = table_of(tmp_path / "out")
    head: Any = deeplense.load_run(runs[0]).network.head[-1]
    features = np.stack([np.asarray(row.as_py(), dtype=np.float32) for row in table["embedding"]])
    weight, bias = (value.detach().numpy() for value in (head.weight, head.bias))
    assert of_classes(table, "logit") == pytest.approx(features @ weight.T + bias, abs=1e-2)


def test_probabilities_follow_a_stated_prevalence_by_the_rule_of_bayes(
    whole: Path, runs: list[Path], dataset: Path, tmp_path: Path
) -> None:
    assert main(predict(runs[0], dataset, tmp_path / "out", "--prevalence=0.01", "--class_name=right")) == 0
    before, after = (of_classes(table_of(each), "probability") for each in (whole, tmp_path / "out"))
    fractions = np.array(read_json(whole / output.MANIFEST)["runs"][0]["class_fractions"])
    others = fractions[0] + fractions[2]
    wanted = np.array([fractions[0] / others * 0.99, 0.01, fractions[2] / others * 0.99])
    odds = before / before[:, :1] * (wanted / fractions) / (wanted / fractions)[0]
    assert after == pytest.approx(odds / odds.sum(axis=1, keepdims=True), abs=1e-5)
    assert np.array_equal(np.argsort(before[:, 1]), np.argsort(of_classes(table_of(whole), "probability")[:, 1]))


def test_sets_have_the_classes_above_the_thresholds_and_a_class_with_few_validation_images_is_always_in(
    runs: list[Path], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(predict(runs[0], dataset, tmp_path / "some", "--coverage=0.5")) == 0
    assert main(predict(runs[0], dataset, tmp_path / "all", "--coverage=0.99")) == 0
    least = np.array(read_json(tmp_path / "some" / output.MANIFEST)["thresholds"])
    table = table_of(tmp_path / "some")
    assert (least > 0).all()
    assert np.array_equal(of_classes(table, "in_set"), of_classes(table, "probability") >= least.astype(np.float32))
    assert of_classes(table_of(tmp_path / "all"), "in_set").all()
    assert "too few calibration images of left, right, middle for this --coverage" in capfd.readouterr().out


def test_images_without_labels_are_predicted(runs: list[Path], dataset: Path, tmp_path: Path) -> None:
    bare = replace(Split(dataset / "test").schema, split="train", num_samples=20, classes=(), targets={})

    def make(rows: range) -> Samples:
        made = blobs(rows, split="test", size=16)
        return replace(made, labels=np.full(len(rows), -1), targets={})

    list(build(tmp_path / "data" / "train", bare, make))
    assert Split(tmp_path / "data" / "train", labelled=False).schema.classes == ()
    assert main(predict(runs[0], tmp_path / "data", tmp_path / "out")) == 0
    assert table_of(tmp_path / "out").num_rows == 20


def test_a_regression_is_predicted_in_its_unit(dataset: Path, tmp_path: Path) -> None:
    assert main(train(dataset, tmp_path / "run", SMALL | {"target": "column"})) == 0
    assert main(predict(tmp_path / "run", dataset, tmp_path / "out", "--split=test")) == 0
    table, run = table_of(tmp_path / "out"), deeplense.load_run(tmp_path / "run")
    images = deeplense.open_dataset(dataset, "test").images()
    assert table["prediction_column"].to_numpy() == pytest.approx(run.predict(images), rel=1e-5, abs=1e-5)
    assert read_json(tmp_path / "out" / output.MANIFEST)["target"] == {"name": "column", "unit": "pixel"}


def test_parts_in_any_order_and_several_processes_write_the_bytes_of_one(
    whole: Path, runs: list[Path], dataset: Path, tmp_path: Path
) -> None:
    for part in ("3/4", "1/4", "4/4", "2/4"):
        assert main(predict(runs[0], dataset, tmp_path / "parts", f"--part={part}")) == 0
        assert (tmp_path / "parts" / output.MANIFEST).exists() == (part == "2/4")
    assert files(tmp_path / "parts") == files(whole)
    command = Command(predict(runs[0], dataset, tmp_path / "two", "--num_workers=2"), tmp_path / "log.txt")
    assert command.wait() == 0, (tmp_path / "log.txt").read_text()
    assert files(tmp_path / "two") == files(whole)


def die_at(number: int, folder: Path) -> None:
    """Kill this process at the so-many-th action on a file of a folder (open, rename, remove, link, list)."""
    count = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        ours = any(str(each).startswith(str(folder)) for each in arguments[:2])
        if ours and event in ("open", "os.rename", "os.remove", "os.link", "os.listdir", "os.scandir"):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(deaths=st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_killed_at_any_actions_on_files_it_ends_with_the_bytes_of_one_left_in_peace(
    deaths: list[int], whole: Path, runs: list[Path], dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    words, log = predict(runs[0], dataset, folder), tmp_path / "log.txt"
    codes = [Command(words, log, prepare=partial(die_at, number, folder)).wait() for number in deaths]
    assert set(codes) <= {0, KILLED}, log.read_text()
    assert codes[0] == KILLED
    assert main(words) == 0
    assert files(folder) == files(whole)


@pytest.mark.parametrize("parts", [("",), ("--part=1/2", "--part=2/2")])
def test_what_killed_writers_left_is_removed(
    parts: tuple[str, ...], whole: Path, runs: list[Path], dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for name in ("plan.json", "predictions.json", "predictions-00000.parquet", "predictions-00001.parquet"):
        (tmp_path / "out" / f".writing-{name}-0123abcd").write_text("half")
    for part in parts:
        assert main(predict(runs[0], dataset, tmp_path / "out", *filter(None, [part]))) == 0
    assert files(tmp_path / "out") == files(whole)


def test_a_full_disk_leaves_whole_files_and_the_same_command_goes_on(
    whole: Path, runs: list[Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = pq.write_table, []

    def until_full(table: pa.Table, path: Path, **options: Any) -> None:
        write(table, path, **options)
        written.append(path)
        if len(written) == 4:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    words = predict(runs[0], dataset, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", until_full)
        assert main(words) != 0
    assert sorted(files(tmp_path / "out")) == ["plan.json", *(f"predictions-{k:05d}.parquet" for k in range(3))]
    assert main(words) == 0
    assert files(tmp_path / "out") == files(whole)


def test_a_damaged_file_is_named_and_made_again_once_it_is_removed(
    whole: Path, runs: list[Path], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / output.MANIFEST).unlink()
    bad = tmp_path / "out" / "predictions-00002.parquet"
    bad.write_bytes(bad.read_bytes()[:-20])
    words = predict(runs[0], dataset, tmp_path / "out")
    assert main(words) != 0
    assert f"{bad} is damaged" in capfd.readouterr().err
    bad.unlink()
    assert main(words) == 0
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--views=4"], "has predictions with views=1, but views=4 is given"),
        (["--split=test"], "has predictions with dataset_id="),
        (["--split=val"], "has no split 'val'; it has test, train"),
        (
            ["--prevalence=0.1"],
            "unclear which class --prevalence is about; give --class_name, one of left, right, middle",
        ),
        (["--prevalence=0.1", "--class_name=up"], "there is no class 'up'"),
        (["--prevalence=1"], "prevalence=1.0 must be above 0 and below 1"),
        (["--class_name=left"], "class_name has an effect only with --prevalence"),
        (["--run={run},{run}"], "is given twice; give each run once"),
        (["--run=nowhere*"], "no run folder matches nowhere*"),
        (["--dataset={small}"], "has shape (1, 24, 24), but"),
        (["--output={run}"], "is not empty; give another --output"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    more: list[str],
    told: str,
    whole: Path,
    runs: list[Path],
    dataset: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_blobs(tmp_path / "small", "train", 20, size=24)
    before = files(whole)
    places = {"run": runs[0], "small": tmp_path / "small"}
    words = predict(runs[0], dataset, whole, *(each.format(**places) for each in more))
    try:
        code = main(words)
    except SystemExit as refused:
        code = refused.code
    assert code != 0
    assert told in capfd.readouterr().err.replace("\n", " ")
    assert files(whole) == before


def test_images_in_files_are_predicted_without_packing_and_one_that_cannot_be_read_has_a_row_that_says_why(
    whole: Path, runs: list[Path], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, folder = deeplense.open_dataset(dataset, "test").images(), tmp_path / "stamps"
    folder.mkdir()
    for k, image in enumerate(images):
        np.save(folder / f"stamp{k:02d}.npy", image)
    (folder / "stamp07.npy").write_bytes(b"no image")
    np.save(folder / "stamp20.npy", np.full_like(images[20], np.nan))
    np.save(folder / "stamp30.npy", images[30][:, :8])
    assert main(predict(runs[0], folder, tmp_path / "out", "--embeddings=1")) == 0
    told = capfd.readouterr().out
    assert "stamps is not a data set of deeplense; it is read with --layout files" in told.replace("\n", " ")
    assert "3 of them could not be predicted, see the column problem" in told.replace("\n", " ")
    table, bad = table_of(tmp_path / "out"), [7, 20, 30]
    problems = dict(enumerate(table["problem"].to_pylist()))
    assert [k for k, problem in problems.items() if problem] == bad
    for k, words in ((7, "not a readable"), (20, "256 pixels are NaN"), (30, "has the shape")):
        assert words in problems[k]
    assert table["id"].to_pylist() == [f"stamp{k:02d}" for k in range(45)]
    kept, expected = np.delete(np.arange(45), bad), of_classes(table_of(whole), "probability")[:45]
    assert of_classes(table, "probability")[kept] == pytest.approx(expected[kept], abs=1e-6)
    assert np.isnan(of_classes(table, "logit")[bad].astype(float)).all()
    features = np.array(table["embedding"].to_pylist(), dtype=float)
    assert np.flatnonzero(np.isnan(features).any(axis=1)).tolist() == bad
    assert files(tmp_path / "out").keys() == {
        "plan.json",
        "predictions.json",
        *(f"predictions-{k:05d}.parquet" for k in range(3)),
    }


def test_an_image_with_outputs_that_are_not_finite_has_a_problem_and_no_other_image_has() -> None:
    outputs = [np.array([[1.0, 2.0], [np.nan, 0.0], [3.0, 4.0]]), np.array([[0.0, 0.0], [0.0, 0.0], [np.inf, 0.0]])]
    found, problems = finite_only(outputs)
    assert sorted(problems) == [1, 2]
    assert [each.tolist() for each in found] == [[[1, 2], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]]]


def in_cross_sets(probabilities: list[np.ndarray], calibration: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Which classes are in sets with a coverage of one half, counted image by image: those of which enough images, each
    judged by the run that held it out, have no higher probability."""
    found = np.zeros(probabilities[0].shape, dtype=bool)
    for row, k in np.ndindex(*found.shape):
        own = [
            (given[labels == k, k], said[row, k])
            for said, (given, labels) in zip(probabilities, calibration, strict=True)
        ]
        count, total = sum((scores <= at).sum() for scores, at in own), sum(len(scores) for scores, _ in own)
        found[row, k] = (1 + count) / (total + 1) > 0.5
    return found


def test_runs_of_folds_are_calibrated_with_the_images_that_each_held_out(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from deeplense.data.subsets import fold_of

    for fold in range(3):
        more = SMALL | {"num_folds": 3, "fold": fold, "seed": fold}
        assert main(train(dataset, tmp_path / f"fold{fold}", more)) == 0
    words = predict(f"{tmp_path}/fold*", dataset, tmp_path / "out", "--coverage=0.5", "--split=test", "--calibrate=0")
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "they contain the true class with a probability near 0.5; in theory about 0 or more for many images" in said
    images, own = deeplense.open_dataset(dataset, "test").images(), Split(dataset / "train")
    folds = fold_of(own.labels, 3, seed=0)
    networks = [deeplense.load_run(tmp_path / f"fold{k}") for k in range(3)]
    held = [own.images(np.flatnonzero(folds == k)) for k in range(3)]
    expected = in_cross_sets(
        [softmax(each.predict(images), axis=1) for each in networks],
        [(softmax(each.predict(held[k]), axis=1), own.labels[folds == k]) for k, each in enumerate(networks)],
    )
    table = table_of(tmp_path / "out")
    assert np.array_equal(of_classes(table, "in_set"), expected)
    assert expected.any(axis=0).all()
    assert not expected.all()
    # The calibration images are in the plan, not in each file.
    manifest = read_json(tmp_path / "out" / output.MANIFEST)
    assert manifest["cross"]["networks"] == [[0], [1], [2]]
    assert "cross" not in table.schema.metadata[b"deeplense"].decode()


def test_runs_with_different_validation_images_have_cross_conformal_sets_and_a_run_alone_has_not(
    runs: list[Path], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = predict(f"{runs[0]},{runs[1]}", dataset, tmp_path / "out", "--coverage=0.5", "--split=test")
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "the sets are cross-conformal" in said
    assert "in theory" not in said
    assert main([*predict(runs[0], dataset, tmp_path / "one", "--coverage=0.5", "--split=test")]) == 0
    assert "cross-conformal" not in capfd.readouterr().out


def test_a_table_of_several_runs_that_an_earlier_version_began_has_a_note(
    runs: list[Path], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = predict(f"{runs[0]},{runs[1]}", dataset, tmp_path / "out", "--coverage=0.5", "--split=test")
    assert main([*words, "--part=1/2"]) == 0
    assert "an earlier version began" not in capfd.readouterr().out
    plan = read_json(tmp_path / "out" / output.PLAN)
    del plan["cross"]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / output.PLAN).write_text(json.dumps(plan | {"thresholds": [0.3, 0.3, 0.3]}))
    assert main([*words, "--part=1/2"]) == 0
    assert "less often than --coverage says; give a new --output" in capfd.readouterr().out.replace("\n", " ")


def test_images_that_the_initial_weights_were_trained_on_do_not_calibrate(
    runs: list[Path], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from jobs.train.stored import open_trained

    more = SMALL | {"seed": 1, "val_fraction": 0.5, "epochs": 1, "init_from": runs[0]}
    assert main(train(dataset, tmp_path / "run", more)) == 0
    capfd.readouterr()
    assert main(predict(tmp_path / "run", dataset, tmp_path / "out", "--coverage=0.5", "--split=test")) == 0
    val, base = open_trained(tmp_path / "run", which="best").val, open_trained(runs[0], which="best").train
    left = val.only(~np.isin(val.indices, base.indices))
    assert 0 < len(left) < len(val)
    assert f"{len(val) - len(left)} of the {len(val)} images to calibrate {tmp_path / 'run'}" in capfd.readouterr().out
    manifest = read_json(tmp_path / "out" / output.MANIFEST)
    assert manifest["runs"][0]["validation_images"] == len(left)
    logits = deeplense.load_run(tmp_path / "run").predict(left.split.images(left.indices))
    expected = thresholds(softmax(logits / manifest["runs"][0]["temperature"], axis=1), left.labels, 0.5)
    assert manifest["thresholds"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["trained", "pretrained"])
def test_a_run_whose_initial_weights_have_seen_all_of_its_validation_images_is_not_calibrated(
    kind: str,
    runs: list[Path],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = Split(dataset / "train")
    hashes = own.hashes(np.arange(len(own)))
    seen = Seen(trained=hashes) if kind == "trained" else Seen(pretrained=hashes)
    monkeypatch.setattr(calibration, "seen_of", lambda _: seen)
    words = predict(runs[0], dataset, tmp_path / "out", "--coverage=0.5", "--split=test")
    assert main(words) != 0
    told = capfd.readouterr().err.replace("\n", " ")
    assert "were seen before by its initial weights" in told
    assert "give --calibrate 0 and no --coverage" in told
    assert ("--allow_pretrained_overlap 1" in told) == (kind == "pretrained")
    assert not (tmp_path / "out" / "plan.json").exists()
    assert (main([*words, "--allow_pretrained_overlap=1"]) == 0) == (kind == "pretrained")


def test_initial_weights_with_an_unknown_past_are_reported_where_a_run_is_calibrated(
    runs: list[Path],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(calibration, "seen_of", lambda _: Seen(unknown=("it is unknown what they saw",)))
    told = f"note: it is unknown what they saw; if on those that calibrate {runs[0]}"
    assert main(predict(runs[0], dataset, tmp_path / "out", "--split=test")) == 0
    assert told in capfd.readouterr().out
    assert main(predict(runs[0], dataset, tmp_path / "plain", "--split=test", "--calibrate=0")) == 0
    assert told not in capfd.readouterr().out


def test_files_that_changed_since_are_not_mixed_with_earlier_ones(
    runs: list[Path], dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "stamps"
    folder.mkdir()
    for k, image in enumerate(deeplense.open_dataset(dataset, "test").images()):
        np.save(folder / f"{k:02d}.npy", image)
    (folder / "00.npy").write_bytes(b"no image")  # The first image may be the bad one.
    words = predict(runs[0], folder, tmp_path / "out", "--layout=files")
    assert main([*words, "--part=1/2"]) == 0
    np.save(folder / "44.npy", np.zeros((1, 16, 16), dtype=np.float64))
    assert main([*words, "--part=2/2"]) != 0
    assert "has predictions with dataset_id=" in capfd.readouterr().err


def test_a_file_that_is_made_again_belongs_to_a_new_manifest(
    whole: Path, runs: list[Path], dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "predictions-00004.parquet").unlink()
    (tmp_path / "out" / output.MANIFEST).write_text("{}")
    assert main(predict(runs[0], dataset, tmp_path / "out")) == 0
    assert files(tmp_path / "out") == files(whole)
