"""Few labels on a pretrained backbone: what is learnt from, where it starts, what probes say, what is refused."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import Command
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from stamps import make_stamps, pretrain, write_stamps
from torch.nn import functional

from deeplense.data.dataset import Split
from deeplense.data.order import num_steps
from deeplense.data.subsets import first_of_each
from deeplense.evaluation.metrics import softmax
from deeplense.training import checkpoint
from jobs import command_line
from jobs.data.part import image_parts
from jobs.finetune import probe as probing
from jobs.finetune import work as finetune_work
from jobs.finetune.settings import Settings
from jobs.finetune.work import duration, training_of
from jobs.pretrain.backbone import pretrain_settings
from jobs.runs.attempts import EXIT_REFUSED, read_attempts
from jobs.runs.opening import train_settings
from jobs.train.samples import learning_parts
from launch.__main__ import main

Start = Callable[..., Command]
SHORT = ("--num_updates=4", "--min_epochs=0", "--batch_size=16", "--log_interval=1")
"""Of trainings, and of no probe."""


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images to learn from, 40 to test on."""
    return make_stamps(tmp_path_factory.mktemp("data") / "stamps", num_train=80)


@pytest.fixture(scope="module")
def backbone(stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained backbone."""
    return pretrain(stamps, tmp_path_factory.mktemp("pretrained") / "dino")


def words(dataset: Path, run: Path, backbone: Path | str, mode: str = "full", *more: str) -> list[str]:
    """The command line of a fine-tuning."""
    given = [f"--dataset={dataset}", f"--run={run}", f"--backbone={backbone}", f"--mode={mode}", "--device=cpu"]
    modes = [word for word in [*given, *more] if word.startswith("--mode=")]
    return ["finetune", *given, *(SHORT if modes[-1] == "--mode=full" else ()), *more]


def parsed(line: list[str]) -> Settings:
    """Its settings."""
    return command_line.parse(line[0], line[1:])


def predictions(run: Path) -> dict[str, np.ndarray]:
    """What a report was made of."""
    with np.load(run / "report" / "predictions.npz") as stored:
        return dict(stored)


def held_out(run: Path) -> str:
    """What a report says of the images that it is of."""
    return json.loads((run / "report" / "report.json").read_text())["facts"]["held out"]


def weights(run: Path) -> Mapping[str, torch.Tensor]:
    """The model of the last checkpoint."""
    path, _ = checkpoint.newest_good(run / "checkpoints")
    assert path is not None
    return checkpoint.load(path)["model"]


def encoder(run: Path) -> dict[str, torch.Tensor]:
    """The backbone of a pretraining, as timm names its weights."""
    of_teacher = {name: value for name, value in weights(run).items() if name.startswith("teacher.backbone.")}
    return {name.removeprefix("teacher.backbone.").removeprefix("vit."): value for name, value in of_teacher.items()}


def features(backbone: Path, split: Split, known: np.ndarray) -> np.ndarray:
    """Features of all images of a split, by as little of the project's code as will do."""
    network = timm.create_model("test_vit", img_size=32, in_chans=1, num_classes=0).eval()
    ours = encoder(backbone)
    network.load_state_dict({name: ours[name] for name in network.state_dict()})
    images, learnt = split.images(np.arange(len(split))), Split(split.folders[0].parent / "train").images(known)
    stretched, of_known = (np.arcsinh(10 * some / learnt.std()) / 2 for some in (images, learnt))
    with torch.no_grad():
        return network(torch.from_numpy((stretched - of_known.mean()) / of_known.std())).numpy()


def test_full_starts_from_the_pretrained_weights_to_the_bit_and_scratch_does_not(
    stamps: Path, backbone: Path, tmp_path: Path
) -> None:
    still = ("--lr=1e-30", "--weight_decay=0", "--num_updates=1")
    assert main(words(stamps, tmp_path / "full", backbone, "full", *still)) == 0
    assert main(words(stamps, tmp_path / "scratch", "scratch", "full", "--model_name=test_vit", *still)) == 0
    pretrained = encoder(backbone)
    full, scratch = weights(tmp_path / "full"), weights(tmp_path / "scratch")
    names = [name.removeprefix("backbone.") for name in full if name.startswith("backbone.")]
    assert len(names) > 50
    assert all(torch.equal(full[f"backbone.{name}"], pretrained[name]) for name in names)
    assert not all(torch.equal(scratch[f"backbone.{name}"], pretrained[name]) for name in names)


@pytest.mark.usefixtures("whole_probes")
def test_the_linear_probe_is_scikit_learns_on_the_features_of_the_known_labels(
    stamps: Path, backbone: Path, tmp_path: Path
) -> None:
    assert main(words(stamps, tmp_path / "run", backbone, "linear", "--num_labels=30")) == 0
    train, test = Split(stamps / "train"), Split(stamps / "test")
    known = first_of_each(train.labels, 30, seed=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    grid = {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100]}
    model = GridSearchCV(pipeline, grid, scoring="neg_log_loss", cv=folds)
    model.fit(features(backbone, train, known)[known].astype(float), train.labels[known])
    found = predictions(tmp_path / "run")
    assert found["indices"].tolist() == list(range(40))
    expected = model.predict_proba(features(backbone, test, known).astype(float))
    np.testing.assert_allclose(softmax(found["outputs"]), expected, atol=2e-4)


def test_the_neighbours_vote_as_dino_weighs_them(stamps: Path, backbone: Path, tmp_path: Path) -> None:
    assert main(words(stamps, tmp_path / "run", backbone, "knn", "--num_labels=30")) == 0
    train, test = Split(stamps / "train"), Split(stamps / "test")
    known = first_of_each(train.labels, 30, seed=0)
    learnt, asked = (functional.normalize(torch.from_numpy(features(backbone, s, known))) for s in (train, test))
    cosines, nearest = (asked @ learnt[known].T).topk(20, dim=1)
    one_hot = functional.one_hot(torch.from_numpy(train.labels[known])[nearest], 2)
    votes = (one_hot * (cosines / 0.07).exp()[..., None]).sum(dim=1)
    expected = (votes / votes.sum(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(softmax(predictions(tmp_path / "run")["outputs"]), expected, atol=2e-4)


@pytest.mark.parametrize("mode", ["full", "linear", "knn"])
def test_no_more_labels_are_used_than_are_told(
    mode: str, stamps: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, known = Split(stamps / "train"), {}
    for count in (24, 40):
        line = words(stamps, tmp_path / f"{mode}{count}", backbone, mode, f"--num_labels={count}", "--seed=3")
        if mode == "full":
            parts = learning_parts(training_of(parsed(line)))
            known[count] = np.concatenate([part.indices for part in parts])
            assert 0 < len(parts[1]) <= 0.1 * count + 1, "some are looked at, and only some"
        else:
            seen: list[np.ndarray] = []
            probe = probing.PROBES[mode]
            monkeypatch.setitem(
                probing.PROBES, mode, lambda *given, told=seen, probe=probe: told.append(given[1]) or probe(*given)
            )
            assert main(line) == 0
            (labels,) = seen
            known[count] = first_of_each(train.labels, count, seed=3)
            assert labels.tolist() == train.labels[known[count]].tolist()
        assert len(set(known[count].tolist())) == count
    assert set(known[24]) < set(known[40])


@pytest.fixture(scope="module")
def leaking(stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose test images are, in part, those of train: 30 of 60."""
    folder = tmp_path_factory.mktemp("leaking") / "stamps"
    shutil.copytree(stamps / "train", folder / "train")
    write_stamps(folder, "test", 60, seed=1)
    return folder


@pytest.mark.parametrize("mode", ["full", "linear"])
def test_images_that_were_learnt_from_are_left_out_of_the_test(
    mode: str, leaking: Path, backbone: Path, tmp_path: Path
) -> None:
    allowed = ("--num_labels=40", "--allow_pretrained_overlap=1")
    assert main(words(leaking, tmp_path / "run", backbone, mode, *allowed)) == 0
    known = first_of_each(Split(leaking / "train").labels, 40, seed=0)
    shared = set(known) & set(range(60))
    assert 0 < len(shared) < 60
    assert predictions(tmp_path / "run")["indices"].tolist() == sorted(set(range(60)) - shared)
    counts = [int(text) for text in re.findall(r"(\d+) (?:trained on|used for validation)", held_out(tmp_path / "run"))]
    assert sum(counts) == len(shared)


@pytest.mark.parametrize("mode", ["full", "linear"])
def test_images_that_the_pretraining_saw_are_left_out_and_told_apart_unless_they_are_allowed(
    mode: str, leaking: Path, backbone: Path, tmp_path: Path
) -> None:
    train, test = Split(leaking / "train"), Split(leaking / "test")
    known = first_of_each(train.labels, 20, seed=0)
    pretrained = {*image_parts(pretrain_settings(backbone))[0].indices.tolist()} & set(range(len(test)))
    assert 0 < len(pretrained) < len(test)
    left = sorted(set(range(len(test))) - set(known.tolist()) - pretrained)
    few = ("--num_labels=20", *(["--batch_size=8"] if mode == "full" else []))
    assert main(words(leaking, tmp_path / "run", backbone, mode, *few)) == 0
    assert predictions(tmp_path / "run")["indices"].tolist() == left
    only = len(pretrained - set(known.tolist()))
    assert f"{only} seen without labels in pretraining" in held_out(tmp_path / "run")
    allowed = "--allow_pretrained_overlap=1"
    assert main(words(leaking, tmp_path / "allowed", backbone, mode, *few, allowed)) == 0
    assert predictions(tmp_path / "allowed")["indices"].tolist() == sorted({*range(len(test))} - set(known.tolist()))
    assert f"{only} seen without labels in pretraining are evaluated, as requested" in held_out(tmp_path / "allowed")


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_training_that_is_killed_and_started_again_gives_the_same_report(
    stamps: Path, backbone: Path, tmp_path: Path, start: Start
) -> None:
    more = ("--num_labels=40", "--num_updates=40", "--checkpoint_minutes=1e-9")
    assert main(words(stamps, tmp_path / "whole", backbone, "full", *more)) == 0
    line, checkpoints = words(stamps, tmp_path / "killed", backbone, "full", *more), tmp_path / "killed" / "checkpoints"
    command = start(*line)
    until(lambda: len([*checkpoints.glob("step_*")]) > 1)
    command.send(signal.SIGKILL)
    command.wait()
    assert not (tmp_path / "killed" / "report").exists()
    assert main(line) == 0
    assert [attempt["ended"] for attempt in read_attempts(tmp_path / "killed")] == ["killed", "finished"]
    assert read_attempts(tmp_path / "killed")[1]["first_step"] > 0
    whole, again = (predictions(tmp_path / name) for name in ("whole", "killed"))
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("mode", ["full", "knn"])
def test_an_evaluation_that_is_killed_leaves_no_finished_attempt_and_is_made_again(
    mode: str, stamps: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = words(stamps, tmp_path / "run", backbone, mode)
    where = {"full": (finetune_work, "evaluate"), "knn": (probing, "report")}[mode]
    with monkeypatch.context() as patch:
        patch.setattr(*where, lambda *given, **more: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(line) == 130
    assert read_attempts(tmp_path / "run")[-1]["ended"] != "finished"
    assert main(line) == 0
    assert read_attempts(tmp_path / "run")[-1]["ended"] == "finished"
    assert len(predictions(tmp_path / "run")["labels"]) == 40


def test_a_finished_probe_stays_and_refuses_other_settings_but_those_that_change_no_number(
    stamps: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(words(stamps, run, backbone, "knn")) == 0
    before = (run / "report" / "report.json").stat()
    assert main(words(stamps, run, backbone, "knn", f"--data_root={tmp_path}")) == 0
    after = (run / "report" / "report.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "is already finished; its report is" in capsys.readouterr().out
    for other in (["--num_labels=30"], ["--mode=linear"], ["--stretch=linear"]):
        assert main(words(stamps, run, backbone, "knn", *other)) == EXIT_REFUSED
        assert "was started with other settings: " in capsys.readouterr().err


@examples(derandomize=True, max_examples=200)
@given(st.integers(1, 5000), st.integers(1, 256), st.integers(1, 5000))
def test_there_are_as_many_updates_as_are_told_whatever_the_number_of_labels(
    num_updates: int, batch_size: int, num_train: int
) -> None:
    common = {"backbone": "scratch", "run": Path("r"), "dataset": "d", "training": {"model_name": "test_vit"}}
    told = duration(
        Settings(**common, num_updates=num_updates, min_epochs=0), batch_size=batch_size, num_train=num_train
    )
    assert num_steps(told["epochs"], num_samples=num_train, batch_size=batch_size) == num_updates
    assert told["warmup_epochs"] == pytest.approx(0.05 * told["epochs"])
    longer = duration(Settings(**common, min_epochs=1e6), batch_size=batch_size, num_train=num_train)
    assert longer["epochs"] == 1e6


def test_settings_that_are_given_go_over_those_that_are_found(stamps: Path, backbone: Path, tmp_path: Path) -> None:
    found = training_of(parsed(words(stamps, tmp_path / "run", backbone)))
    assert (found.model_name, found.stretch, found.weight_decay) == ("test_vit", "standard_asinh", 0.05)
    more = ("--evaluate_epochs=3.5", "--warmup_epochs=0", "--stretch=linear", "--weight_decay=0.1")
    given = training_of(parsed(words(stamps, tmp_path / "run", backbone, "full", *more)))
    assert (given.evaluate_epochs, given.warmup_epochs, given.stretch, given.weight_decay) == (3.5, 0, "linear", 0.1)


def test_the_weights_that_are_kept_are_evaluated_in_whole_precision_whatever_the_training_had(
    stamps: Path, backbone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(words(stamps, run, backbone, "full", "--precision=bf16")) == 0
    again = ["evaluate", f"--run={run}", "--device=cpu", f"--output={tmp_path / 'again'}"]
    assert main(again) == 0
    with np.load(tmp_path / "again" / "predictions.npz") as stored:
        assert np.array_equal(stored["outputs"], predictions(run)["outputs"])


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three bands."""
    folder = tmp_path_factory.mktemp("colours")
    write_stamps(folder, "train", 40, seed=1, num_bands=3)
    write_stamps(folder, "test", 20, seed=2, num_bands=3)
    return folder


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"dataset": "colours"},
            "does not fit: patch_embed.proj.weight has shape (64, 1, 16, 16), not (64, 3, 16, 16)",
        ),
        ({"dataset": "colours", "mode": "knn"}, "does not fit: patch_embed.proj.weight has shape (64, 1, 16, 16)"),
        ({"backbone": "nowhere"}, "backbone=nowhere does not exist; give a run of `deeplense pretrain`"),
        ({"backbone": "of_train"}, "is not a run of `deeplense pretrain`; give such a run as --backbone"),
        ({"backbone": "scratch"}, "backbone=scratch does not define the network; give --model_name"),
        ({"backbone": "scratch", "mode": "knn"}, "mode=knn needs a pretrained backbone"),
        ({"model_name": "simple_cnn"}, "has a different backbone, test_vit"),
        ({"num_labels": "81"}, "num_labels=81 exceeds the 80 labels of"),
        ({"num_labels": "0"}, "num_labels=0 must be above 0"),
        ({"num_labels": "12"}, "batch_size=16 exceeds the 10 training samples"),
        (
            {"num_labels": "2", "mode": "linear"},
            "a class has 1 training sample; a linear probe needs at least 2 per class",
        ),
        ({"split": "tset"}, "has no split 'tset'; it has test, train"),
        ({"split": "tset", "mode": "linear"}, "has no split 'tset'; it has test, train"),
        ({"min_epochs": "-1"}, "min_epochs=-1.0 must be 0 or more"),
        ({"lr": "-1"}, "lr=-1.0 must be above 0"),
        ({"epochs": "3"}, "unknown setting 'epochs'"),
        ({"label_file": "nowhere.txt"}, "nowhere.txt: neither one name per line nor a pickle"),
        ({"allow_overlap": "1"}, "--allow_overlap has an effect only with --label_file"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_leaves_nothing(
    changed: dict[str, str],
    said: str,
    stamps: Path,
    backbone: Path,
    colours: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "of_train").mkdir()
    (tmp_path / "of_train" / "config.yaml").write_text("model_name: test_vit\n")
    places = {"colours": str(colours), "of_train": str(tmp_path / "of_train")}
    changes = [f"--{name}={places.get(value, value)}" for name, value in changed.items()]
    line = words(stamps, tmp_path / "run", backbone, "full", *changes)
    try:
        code = main(line)
    except SystemExit as exit:
        code = exit.code
    assert code == EXIT_REFUSED
    assert said in capfd.readouterr().err
    assert not (tmp_path / "run" / "report").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_runs_of_other_jobs_are_refused_by_what_they_are_for(
    stamps: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = tmp_path / "probe"
    assert main(words(stamps, probe, backbone, "knn")) == 0
    for verb in (["evaluate", "--run"], ["export", f"--output={tmp_path / 'weights.safetensors'}"]):
        assert main([*verb, str(backbone)]) == EXIT_REFUSED
        assert f"`deeplense finetune --backbone {backbone}` trains one" in capsys.readouterr().err
        assert main([*verb, str(probe)]) == EXIT_REFUSED
        said = capsys.readouterr().err
        assert f"is a probe of `deeplense finetune --mode knn`, and contains no network; its report is {probe}" in said
    assert not (tmp_path / "weights.safetensors").exists()
    assert main(words(stamps, tmp_path / "run", probe, "knn")) == EXIT_REFUSED
    assert "is not a run of `deeplense pretrain`" in capsys.readouterr().err


def test_images_of_another_size_than_the_pretrainings_are_told(
    stamps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pretrain(stamps, tmp_path / "small", "--image_size=16", "--model_name=vit_tiny")
    assert main(words(stamps, tmp_path / "run", tmp_path / "small", "knn")) == 0
    said = (
        f"{tmp_path / 'small'} was pretrained on 16 x 16 pixels, these images have 32 x 32; "
        "`deeplense pack --crop 16` crops them"
    )
    assert said in capfd.readouterr().out.replace("\n", "")


def test_what_was_finetuned_can_be_exported(stamps: Path, backbone: Path, tmp_path: Path) -> None:
    assert main(words(stamps, tmp_path / "run", backbone)) == 0
    assert train_settings(tmp_path / "run").backbone == backbone
    assert (
        main(["export", str(tmp_path / "run"), f"--output={tmp_path / 'weights.safetensors'}", "--weights=last"]) == 0
    )


def test_several_processes_are_refused(
    stamps: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words(stamps, tmp_path / "run", backbone)) == EXIT_REFUSED
    assert "finetune runs as one process" in capsys.readouterr().err


def test_a_backbone_without_layers_that_may_be_left_out_is_finetuned_too(dataset: Path, tmp_path: Path) -> None:
    pretrain(dataset, tmp_path / "pre", "--method=simsiam", "--model_name=test_resnet", "--num_local=0")
    assert main(words(dataset, tmp_path / "run", tmp_path / "pre")) == 0
