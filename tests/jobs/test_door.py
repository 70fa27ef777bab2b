"""The door through which every run goes that is used: its settings, its data, what it has seen, how far it is."""

import ast
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import blobs, write_blobs
from stamps import pretrain, write_stamps

from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.data.shards import Samples
from deeplense.training import checkpoint
from jobs.data.seen import Seen, as_text, from_text, read_seen, without_seen, write_seen
from jobs.pretrain.settings import Settings as PretrainSettings
from jobs.runs.attempts import EXIT_REFUSED
from jobs.runs.lineage import seen_before, seen_of
from jobs.runs.opening import open_run_for, train_settings
from jobs.train.settings import Settings as TrainSettings
from jobs.train.stored import open_trained
from launch.__main__ import main

ROOT = Path(__file__).parents[2]
SMALL = ("--model_name=simple_cnn", "--batch_size=16", "--epochs=2", "--device=cpu")


def trained_on(dataset: Path, run: Path, *more: str) -> Path:
    """A short training, in this process."""
    assert main(["train", f"--dataset={dataset}", f"--run={run}", *SMALL, *more]) == 0
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set, `data`, and a finished run on it, `run`, that names it by that folder."""
    folder = tmp_path_factory.mktemp("made")
    write_blobs(folder / "data", "train", 48)
    write_blobs(folder / "data", "test", 30)
    trained_on(folder / "data", folder / "run")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of that run, whose data set is a copy, too."""
    shutil.copytree(made / "data", tmp_path / "data")
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    for path in (run / "checkpoints").iterdir():
        saved = checkpoint.load(path)
        record = saved["record"]
        settings = {**record["settings"], "run": str(run), "dataset": str(tmp_path / "data")}
        (run / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        record = {name: value for name, value in record.items() if name != "config_hash"} | {"settings": settings}
        checkpoint.save(path, saved | {"record": record})
    return run


def said(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    code = main(list(words))
    told = capfd.readouterr()
    return code, told.out + told.err


def document(folder: Path) -> dict[str, Any]:
    """What a report says."""
    return json.loads((folder / "report.json").read_text())


def parts_of(run: Path) -> dict[str, list[str]]:
    """The command lines of all verbs that use a run of `deeplense train`."""
    return {
        "evaluate": ["evaluate", f"--run={run}", "--device=cpu"],
        "explain": ["evaluate", f"--run={run}", "--device=cpu", "--explain=1"],
        "export": ["export", str(run), f"--output={run.parent / 'out.safetensors'}"],
        "folds": ["evaluate", f"--run={run.parent}/ru*", "--device=cpu"],
    }


def repack(run: Path) -> None:
    """Other images where the training images of a run were."""
    shutil.rmtree(run.parent / "data" / "train")
    write_blobs(run.parent / "data", "train", 42)


def swap(run: Path) -> None:
    """Test images where the training images of a run were, and those where the test images were."""
    data = run.parent / "data"
    read = {name: Split(data / name) for name in ("train", "test")}
    samples = {
        name: Samples(old.images(np.arange(len(old))), old.labels, {}, old.ids, np.arange(len(old)))
        for name, old in read.items()
    }
    for name, other in (("train", "test"), ("test", "train")):
        schema = replace(read[other].schema, split=name, targets={})
        shutil.rmtree(data / name)
        list(build(data / name, schema, partial(chosen_of, samples[other])))


def chosen_of(samples: Samples, rows: range) -> Samples:
    """All of them."""
    return samples


@pytest.mark.parametrize("verb", ["evaluate", "explain", "export", "folds"])
@pytest.mark.parametrize("spoil", [repack, swap])
def test_no_verb_takes_another_data_set_for_the_one_that_was_trained_on(
    spoil: Callable[[Path], None], verb: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(run)
    code, told = said(capfd, *parts_of(run)[verb])
    assert code == EXIT_REFUSED
    assert f"is not the data set that {run} was trained on" in told
    assert not (run / "report").exists()


@pytest.mark.parametrize("verb", ["evaluate", "explain", "export", "folds"])
@pytest.mark.parametrize(
    ("line", "other", "problem"),
    [
        ("fold: 0", "fold: 1", "config.yaml has fold=1, but the checkpoint of step"),
        ("seed: 0", "seed: 8", "the correct line is `seed: 0`"),
        ("dropout: 0.0", "dropout: 0.1", "has dropout=0.0: the file was damaged or edited; restore it"),
        ("num_folds: 0", "num_folds: [", "config.yaml cannot be read"),
        ("target: class", "targat: class", "has targat=class"),
        ("model_name: simple_cnn", "model_name: simple_cnm", "has model_name=simple_cnm"),
    ],
)
def test_no_verb_believes_settings_that_the_run_was_not_trained_with(
    line: str, other: str, problem: str, verb: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (run / "config.yaml").read_text()
    assert line in text
    (run / "config.yaml").write_text(text.replace(line, other))
    code, told = said(capfd, *parts_of(run)[verb])
    assert (code, problem in told) == (EXIT_REFUSED, True), told
    assert "Traceback" not in told
    assert not (run / "report").exists()


def test_settings_that_change_no_number_may_be_edited(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("log_interval: 10", "log_interval: x").replace("fsdp: 0", "fsdp: 1"))
    assert said(capfd, *parts_of(run)["evaluate"])[0] == 0


def test_what_was_trained_on_is_a_fact_of_the_run_and_not_of_what_lies_at_a_path(run: Path, tmp_path: Path) -> None:
    train, val = (
        part.split.hashes(part.indices) for part in (lambda t: (t.train, t.val))(open_trained(run, which="best"))
    )
    opened = open_run_for(run, "train", TrainSettings, which="best")
    noted = seen_of(opened)
    assert set(noted.trained) == set(train)
    assert set(noted.chose) == set(val)
    (run / "seen.npz").unlink()
    derived = seen_of(opened)
    assert [derived.trained.tolist(), derived.chose.tolist()] == [noted.trained.tolist(), noted.chose.tolist()]
    repack(run)
    with pytest.raises(ValueError, match="is not the data set"):
        seen_of(opened)


def test_a_run_of_an_older_version_without_records_is_still_evaluated(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "seen.npz").unlink()
    for path in (run / "checkpoints").iterdir():
        saved = checkpoint.load(path)
        checkpoint.save(path, {name: value for name, value in saved.items() if name != "record"})
    code, told = said(capfd, *parts_of(run)["evaluate"])
    assert (code, "30 images, split test" in told) == (0, True)
    repack(run)
    assert said(capfd, *parts_of(run)["evaluate"])[0] == EXIT_REFUSED


def test_the_best_weights_hold_the_settings_too(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        assert checkpoint.load(path, only=("record",))["record"]["settings"]["model_name"] == "simple_cnn"


def test_an_unfinished_run_is_told_in_the_terminal_and_in_the_report(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, told = said(capfd, *parts_of(run)["evaluate"])
    assert (code, "NOT finished" in told) == (0, False)
    assert document(run / "report")["training"][0] == {"run": str(run), "steps": 5, "num_steps": 5, "finished": True}
    (run / "finished.json").unlink()
    (last,) = (run / "checkpoints").glob("step_*")
    saved = checkpoint.load(last)
    checkpoint.save(last.with_name("step_00000003"), {**saved, "progress": {**saved["progress"], "step": 3}})
    shutil.rmtree(last)
    code, told = said(capfd, *parts_of(run)["evaluate"], "--weights=last")
    assert (code, "NOT finished: 3 of 5 steps" in told) == (0, True), told
    assert document(run / "report")["training"][0]["finished"] is False
    assert "NOT finished: 3 of 5 steps" in (run / "report" / "index.html").read_text()
    code, told = said(capfd, *parts_of(run)["export"], "--weights=last")
    assert (code, "NOT finished: 3 of 5 steps" in told) == (0, True)


def test_a_report_is_kept_for_each_data_set_and_split_and_none_replaces_another(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = parts_of(run)["evaluate"]
    assert said(capfd, *base)[0] == 0
    own = (run / "report" / "report.json").read_bytes()
    write_blobs(tmp_path / "other", "val", 12)
    assert said(capfd, *base, f"--dataset={tmp_path / 'other'}", "--split=val")[0] == 0
    assert (run / "report" / "report.json").read_bytes() == own
    assert document(run / "report-other-val")["of"]["split"] == "val"
    assert said(capfd, *base)[0] == 0, "the same again may replace it"
    write_blobs(tmp_path / "elsewhere" / "other", "val", 15)
    code, told = said(capfd, *base, f"--dataset={tmp_path / 'elsewhere' / 'other'}", "--split=val")
    assert (code, "would be overwritten by one on other images; give another --output" in told) == (EXIT_REFUSED, True)
    code, told = said(capfd, *base, f"--dataset={tmp_path / 'other'}", "--split=val", f"--output={run / 'report'}")
    assert (code, "would be overwritten" in told) == (EXIT_REFUSED, True)
    assert (run / "report" / "report.json").read_bytes() == own


def test_what_is_no_report_is_never_replaced_by_one(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("text")
    for output, problem in (("mine", "is not empty and not a report"), ("file", "is a file")):
        code, told = said(capfd, *parts_of(run)["evaluate"], f"--output={tmp_path / output}")
        assert (code, problem in told) == (EXIT_REFUSED, True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def with_labels(dataset: Path, labels: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A split test of new images with other labels."""
    write_blobs(dataset / "like", "test", 24)
    schema = Split(dataset / "like" / "test").schema

    def make(rows: range) -> Samples:
        found = blobs(rows, split="unseen")
        return replace(found, labels=labels(found.labels))

    list(build(dataset / "test", schema, make))
    return dataset


def test_what_is_undefined_is_not_printed_as_a_number(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    single = with_labels(tmp_path / "single", np.zeros_like)
    code, told = said(capfd, *parts_of(run)["evaluate"], f"--dataset={single}")
    assert (code, "undefined (only class left)" in told, "nan" in told) == (0, True, False), told
    folder = run / "report-single-test"
    metrics = document(folder)["metrics"]
    assert metrics["auc_macro"]["value"] is None
    assert metrics["auc_left"]["undefined"] == "only class left"
    assert metrics["accuracy"]["value"] is not None
    page = (folder / "index.html").read_text()
    assert "undefined (only class left)" in page
    assert ">nan" not in page
    two = with_labels(tmp_path / "two", lambda labels: labels % 2)
    told = said(capfd, *parts_of(run)["evaluate"], f"--dataset={two}")[1]
    assert ("undefined (no image of class middle)" in told, "nan" in told) == (True, False), told


def test_images_without_labels_are_refused_in_plain_words(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_blobs(tmp_path / "like", "test", 12)
    schema = replace(Split(tmp_path / "like" / "test").schema, classes=(), targets={})

    def make(rows: range) -> Samples:
        return replace(blobs(rows, split="unseen"), labels=np.full(len(rows), -1), targets={})

    list(build(tmp_path / "none" / "test", schema, make))
    code, told = said(capfd, *parts_of(run)["evaluate"], f"--dataset={tmp_path / 'none'}")
    assert (code, "none/test has no labels" in told) == (EXIT_REFUSED, True), told


@pytest.fixture(scope="module")
def folds(made: Path) -> Path:
    """Runs of two folds of three, and of the second of two."""
    folder = made / "folds"
    for fold in (0, 2):
        trained_on(made / "data", folder / f"fold{fold}", "--num_folds=3", f"--fold={fold}")
    trained_on(made / "data", folder / "other1", "--num_folds=3", "--fold=1", "--lr=0.01")
    return folder


def test_only_folds_of_one_training_are_put_together_and_missing_ones_are_named(
    folds: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, told = said(capfd, "evaluate", f"--run={folds}/fold*", "--device=cpu", f"--output={tmp_path / 'two'}")
    assert (code, "there is no run for fold 1 of 3" in told) == (0, True), told
    assert document(tmp_path / "two")["of"]["folds"] == [0, 2]
    assert "no run for fold 1 of 3" in (tmp_path / "two" / "index.html").read_text()


@pytest.mark.parametrize("pattern", ["*", "[fo]*[012]"])
def test_runs_of_other_settings_are_refused_before_anything_is_predicted(
    pattern: str, folds: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*words: object, **more: object) -> None:
        raise AssertionError("it has predicted")

    monkeypatch.setattr("jobs.evaluate.runs.predict_part", never)
    code, told = said(capfd, "evaluate", f"--run={folds}/{pattern}", "--device=cpu")
    assert (code, "have different settings: lr=0.0003 and lr=0.01" in told) == (EXIT_REFUSED, True), told


def test_the_same_fold_twice_is_refused_before_anything_is_predicted(
    folds: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shutil.copytree(folds / "fold0", tmp_path / name)
    monkeypatch.setattr("jobs.evaluate.runs.predict_part", None)
    code, told = said(capfd, "evaluate", f"--run={tmp_path}/[ab]", "--device=cpu")
    assert (code, "hold out the same fold, 0, so they predict the same images" in told) == (2, True), told


def test_a_fold_of_another_split_is_a_report_of_its_own(folds: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert said(capfd, "evaluate", f"--run={folds / 'fold0'}", "--device=cpu")[0] == 0
    assert document(folds / "fold0" / "report")["of"]["folds"] == [0]
    code, told = said(
        capfd, "evaluate", f"--run={folds}/fold*", "--device=cpu", f"--output={folds / 'fold0' / 'report'}"
    )
    assert (code, "would be overwritten" in told) == (EXIT_REFUSED, True)


def test_the_images_of_an_exported_run_count_as_seen_by_who_starts_from_its_weights(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "data", tmp_path / "weights.safetensors"
    write_blobs(data, "train", 30)
    write_blobs(tmp_path / "first", "train", 24)
    images = Split(made / "data" / "test")
    samples = Samples(images.images(np.arange(30)), images.labels, {}, images.ids, np.arange(30))
    list(build(tmp_path / "leak" / "train", replace(images.schema, split="train", targets={}), lambda rows: samples))
    resnet = ("--model_name=test_resnet", "--batch_size=8", "--epochs=1", "--device=cpu")
    assert main(["train", f"--dataset={tmp_path / 'leak'}", f"--run={tmp_path / 'a'}", *resnet]) == 0
    assert main(["export", str(tmp_path / "a"), f"--output={output}"]) == 0
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "leak")
    start = ("--pretrained=1", f"--pretrained_file={output}")
    assert main(["train", f"--dataset={data}", f"--run={tmp_path / 'b'}", *resnet, *start]) == 0
    output.with_name(f"{output.name}.json").unlink()
    noted = seen_of(open_run_for(tmp_path / "b", "train", TrainSettings, which="best"))
    assert set(images.hashes(np.arange(30))) <= {*noted.trained, *noted.chose}
    code, told = said(capfd, "evaluate", f"--run={tmp_path / 'b'}", f"--dataset={made / 'data'}", "--device=cpu")
    assert (code, "all 30 images" in told, "were seen in training" in told) == (EXIT_REFUSED, True, True), told


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretraining, `dino`, on `stamps`."""
    folder = tmp_path_factory.mktemp("pretrained")
    write_stamps(folder / "stamps", "train", 60, seed=1)
    pretrain(folder / "stamps", folder / "dino")
    return folder


def test_where_nobody_can_tell_what_a_pretraining_saw_it_is_refused_unless_allowed_and_told(
    pretrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone, data = Path(shutil.copytree(pretrained / "dino", tmp_path / "dino")), tmp_path / "few"
    write_stamps(data, "train", 40, seed=3)
    write_stamps(data, "test", 40, seed=4)
    known = seen_of(open_run_for(backbone, "pretrain", PretrainSettings, which="last"))
    assert (len(known.pretrained), len(known.trained)) == (54, 0)
    (backbone / "seen.npz").unlink()
    (pretrained / "stamps").rename(pretrained / "gone")
    try:
        words = ["finetune", f"--backbone={backbone}", f"--dataset={data}", "--mode=knn", "--device=cpu"]
        code, told = said(capfd, *words, f"--run={tmp_path / 'a'}")
        assert (code, "it is unknown which images the pretraining of" in told) == (EXIT_REFUSED, True), told
        assert not (tmp_path / "a").exists()
        code, told = said(capfd, *words, f"--run={tmp_path / 'b'}", "--allow_pretrained_overlap=1")
        assert code == 0, told
        assert "it is unknown which images" in (tmp_path / "b" / "report" / "index.html").read_text()
        assert len(document(tmp_path / "b" / "report")["not_known"]) == 1
    finally:
        (pretrained / "gone").rename(pretrained / "stamps")


def test_a_training_notes_what_its_backbone_saw_so_that_this_may_go(
    pretrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone, data = Path(shutil.copytree(pretrained / "dino", tmp_path / "dino")), tmp_path / "few"
    write_stamps(data, "train", 40, seed=3)
    write_stamps(data, "test", 60, seed=1)
    words = ["train", f"--dataset={data}", f"--run={tmp_path / 'run'}", f"--backbone={backbone}", "--epochs=1"]
    network = ("--model_name=test_vit", "--stretch=standard_asinh", "--batch_size=16", "--device=cpu")
    assert main([*words, *network]) == 0
    shutil.rmtree(backbone)
    code, told = said(capfd, "evaluate", f"--run={tmp_path / 'run'}", "--device=cpu")
    assert (code, "6 images, split test; excluded: 0 trained on, 0 used for validation, 54 seen without" in told) == (
        0,
        True,
    )
    assert document(tmp_path / "run" / "report")["left_out"]["pretrained"] == 54
    code, told = said(capfd, "evaluate", f"--run={tmp_path / 'run'}", "--device=cpu", "--allow_pretrained_overlap=1")
    assert (code, "54 seen without labels in pretraining are evaluated, as requested" in told) == (0, True), told


def test_a_file_of_weights_of_another_program_is_told_and_not_refused(made: Path, tmp_path: Path) -> None:
    settings = replace(train_settings(made / "run"), pretrained=1, pretrained_file=tmp_path / "timm.safetensors")
    (found,) = seen_before(settings)
    assert "do not record their training images" in found.foreign[0]
    assert not found.unknown
    (tmp_path / "timm.safetensors.json").write_text('{"settings": {"run": "a", "dataset": "gone"}, "dataset_id": "x"}')
    (found,) = seen_before(settings)
    assert "it is unknown which images the weights of" in found.unknown[0]


def test_what_was_seen_is_the_same_from_its_file_and_from_text(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = [np.unique(generator.integers(0, 2**64 - 1, size=k, dtype=np.uint64)) for k in (5, 0, 3)]
    seen = Seen(*words, unknown=("ä, b",), foreign=())
    expected = write_seen(tmp_path / "seen.npz", seen)
    for found in (read_seen(tmp_path / "seen.npz", expected), from_text(json.loads(json.dumps(as_text(seen))))):
        assert found is not None
        assert [vars(found)[name].tolist() for name in ("trained", "chose", "pretrained")] == [
            w.tolist() for w in words
        ]
        assert (found.unknown, found.foreign) == (("ä, b",), ())
    assert read_seen(tmp_path / "seen.npz", "0" * 32) is None
    assert read_seen(tmp_path / "seen.npz", None) is None


def test_an_image_is_left_out_once_under_the_first_reason(made: Path) -> None:
    held = open_trained(made / "run", which="best").train.only(np.arange(6))
    hashes = held.split.hashes(held.indices)
    seen = Seen(trained=hashes[:2], chose=hashes[1:3], pretrained=hashes[:5])
    part, out = without_seen(held, seen)
    assert (out.trained, out.chose, out.pretrained, out.kept, out.total, len(part)) == (2, 1, 2, 0, 5, 1)
    part, out = without_seen(held, seen, keep_pretrained=True)
    assert (out.trained, out.chose, out.pretrained, out.kept, len(part)) == (2, 1, 0, 2, 3)
    with pytest.raises(ValueError, match=r"all 6 images of .* were seen in training"):
        without_seen(held, Seen(trained=hashes))


def calls_in(path: Path) -> set[str]:
    """The functions of the module `checkpoint` that a file calls, and the names that it imports from it."""
    tree = ast.parse(path.read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and by_name(node.value)}
    imported = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "checkpoint" in (node.module or "")
    ]
    return names | {alias.name for node in imported for alias in node.names}


def by_name(node: ast.expr) -> bool:
    """Whether an expression is the module `checkpoint`."""
    return isinstance(node, ast.Name) and node.id == "checkpoint"


def test_weights_are_read_through_the_door_alone() -> None:
    reading = {"load", "load_state", "load_part", "newest_good"}
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "jobs").rglob("*.py") if calls_in(path) & reading}
    # The second continues a run, and the third measures how fast checkpoints are.
    assert found == {
        "jobs/runs/opening.py",
        "jobs/runs/checkpoints.py",
        "jobs/runs/resuming.py",
        "jobs/benchmark/checkpoint.py",
    }


def test_the_law_of_the_door_tells_right_from_wrong(tmp_path: Path) -> None:
    for text, called in (("checkpoint.load(path)", {"load"}), ("saved.load(path)", set()), ("json.load(f)", set())):
        (tmp_path / "some.py").write_text(text)
        assert calls_in(tmp_path / "some.py") == called


def test_settings_of_a_run_are_read_by_the_door_and_by_who_continues_or_lists_runs() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "jobs").rglob("*.py")
        if {"stored_config", "train_settings"}
        & {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
    }
    # describers.py asks which job a run is of, before it goes through the door; trials.py compares what is asked.
    assert users == {
        "jobs/runs/folder.py",
        "jobs/runs/stored.py",
        "jobs/runs/opening.py",
        "jobs/evaluate/describers.py",
        "jobs/trials/trials.py",
    }
