"""A finished run is made longer in a new run, as if it had been that long from the start; a run may start from the
weights of another."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, write_blobs
from test_train import LONG, SMALL, final_tensors, metrics, same, train, wait_for_step

from jobs.run_job import main
from jobs.runs.attempts import EXIT_STOPPED
from jobs.runs.lineage import seen_of
from jobs.runs.opening import open_run_for
from jobs.settings import from_plain
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings
from jobs.train.work import make_learner
from launch.__main__ import main as typed

SHORT = SMALL | {"epochs": 2, "dropout": 0.2, "ema_decay": 0.9}


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def short(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    run = tmp_path_factory.mktemp("short") / "run"
    assert main(train(dataset, run, SHORT)) == 0
    return run


def longer(dataset: Path, run: Path, short: Path, **changes: object) -> list[str]:
    """The command that makes it longer."""
    return train(dataset, run, SHORT | {"epochs": 4, "lengthen": short} | changes)


def test_a_lengthened_run_equals_one_of_that_length_and_the_short_one_is_untouched(
    dataset: Path, short: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = tree(short)
    assert main(longer(dataset, tmp_path / "longer", short)) == 0
    assert f"lengthening {short}: copied its state after step 10" in capfd.readouterr().out
    assert main(train(dataset, tmp_path / "whole", SHORT | {"epochs": 4})) == 0
    assert same(final_tensors(tmp_path / "longer"), final_tensors(tmp_path / "whole"))
    curves = [
        {line["step"]: line.get("train/loss") for line in metrics(tmp_path / name)} for name in ("longer", "whole")
    ]
    assert curves[0] == curves[1]
    best = [open_run_for(tmp_path / name, "train", Settings, which="best") for name in ("longer", "whole")]
    assert best[0].step == best[1].step
    assert all(torch.equal(best[0].load("model")[name], value) for name, value in best[1].load("model").items())
    seen = [seen_of(each) for each in best]
    assert np.array_equal(seen[0].trained, seen[1].trained)
    assert tree(short) == before
    # It is a run like any other: finished, and evaluated without a complaint.
    assert main(longer(dataset, tmp_path / "longer", short)) == 0
    assert "already finished" in capfd.readouterr().out
    assert main(["evaluate", f"--run={tmp_path / 'longer'}"]) == 0


def test_a_lengthened_run_that_is_stopped_resumes(dataset: Path, short: Path, tmp_path: Path) -> None:
    run, epochs = tmp_path / "longer", LONG["epochs"]
    command = Command(longer(dataset, run, short, epochs=epochs), tmp_path / "log.txt")
    wait_for_step(run, 20)
    command.send(signal.SIGTERM)
    assert command.wait() == EXIT_STOPPED, command.log.read_text()
    assert main(longer(dataset, run, short, epochs=epochs)) == 0
    assert json.loads((run / "finished.json").read_text())["step"] > 20


def test_a_run_that_has_begun_needs_the_run_it_started_from_no_more(
    dataset: Path, short: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(short, source)
    words = {
        "longer": longer(dataset, tmp_path / "longer", source),
        "next": train(dataset, tmp_path / "next", SMALL | {"epochs": 1, "init_from": source}),
    }
    assert [typed(words[name]) for name in words] == [0, 0]
    source.rename(tmp_path / "gone")
    for name in words:
        (tmp_path / name / "finished.json").unlink()
        assert typed(words[name]) == 0, capfd.readouterr().err
    assert typed(longer(dataset, tmp_path / "other", source)) == 2
    assert "does not exist; give a finished run" in capfd.readouterr().err


def test_a_copy_that_was_interrupted_is_completed(dataset: Path, short: Path, tmp_path: Path) -> None:
    run = tmp_path / "longer"
    run.mkdir()
    shutil.copy(short / "metrics.jsonl", run)
    assert main(longer(dataset, run, short)) == 0
    steps = [line["step"] for line in metrics(run) if "train/loss" in line]
    assert steps == list(range(1, 22))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.5}, "other settings: lr=0.5 (the run has 0.001). Only epochs"),
        ({"epochs": 2}, "epochs=2.0 is not above the 2.0 epochs"),
        ({"epochs": 1}, "epochs=1.0 is not above the 2.0 epochs"),
    ],
)
def test_what_cannot_be_lengthened_is_refused_and_leaves_nothing(
    changes: dict[str, object],
    words: str,
    dataset: Path,
    short: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(longer(dataset, tmp_path / "run", short, **changes)) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_finished_or_damaged_or_of_another_job_is_not_lengthened(
    dataset: Path, short: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(short, copy)
    (copy / "finished.json").unlink()
    assert main(longer(dataset, tmp_path / "run", copy)) == 2
    assert "is not finished; run its own command again" in capfd.readouterr().err
    (copy / "finished.json").write_bytes((short / "finished.json").read_bytes())
    for path in (copy / "checkpoints").glob("step_*/model*"):
        path.write_bytes(b"damaged")
    assert main(longer(dataset, tmp_path / "run", copy)) == 2
    assert "no intact checkpoint" in capfd.readouterr().err
    words = [
        f"--{name}={value}" for name, value in {"dataset": dataset, "run": tmp_path / "run", "lengthen": short}.items()
    ]
    assert main(["diffuse", *words, "--model_name=unet_small", "--device=cpu", "--batch_size=16"]) == 2
    assert "is a run of `deeplense train`" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_lengthened_with_other_data(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    assert main(train(data, tmp_path / "short", SMALL | {"epochs": 1})) == 0
    shutil.rmtree(data / "train")
    write_blobs(data, "train", 90)
    assert main(train(data, tmp_path / "longer", SMALL | {"epochs": 2, "lengthen": tmp_path / "short"})) == 2
    assert "is not the data set that" in capfd.readouterr().err
    assert not (tmp_path / "longer").exists()


def test_a_finished_run_that_is_given_more_epochs_says_how(
    dataset: Path, short: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(train(dataset, short, SHORT | {"epochs": 9})) == 2
    told = capfd.readouterr().err
    assert f"deeplense train --config {short}/config.yaml --run NEW --lengthen {short} --epochs 9" in told
    assert main(train(dataset, short, SHORT | {"epochs": 9, "lr": 1})) == 2
    assert "--lengthen" not in capfd.readouterr().err


def test_a_jump_of_the_learning_rate_is_announced(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cosine = SMALL | {"schedule": "cosine", "epochs": 1}
    assert main(train(dataset, tmp_path / "short", cosine)) == 0
    changes = {"epochs": 2, "lengthen": tmp_path / "short"}
    assert main(train(dataset, tmp_path / "longer", cosine | changes)) == 0
    assert "now spans 2 instead of 1 epochs: the learning rate changes from 9.5e-05 to 0.0005" in capfd.readouterr().out


def start_from(short: Path, dataset: Path, **changes: object) -> Settings:
    """Settings of a run that starts from its weights."""
    given = SMALL | {"dataset": str(dataset), "run": "run", "init_from": str(short)} | changes
    return from_plain(Settings, given)


def test_a_run_starts_from_the_best_weights_of_another(dataset: Path, short: Path) -> None:
    best = open_run_for(short, "train", Settings, which="best").load("model")
    found = make_learner(start_from(short, dataset)).make_network(load_pretrained=True).state_dict()
    assert all(torch.equal(found[name], value) for name, value in best.items())
    other = make_learner(start_from(short, dataset, target="column")).make_network(load_pretrained=True).state_dict()
    backbone = {name for name in best if name.startswith("backbone.")}
    assert all(torch.equal(other[name], best[name]) for name in backbone)
    assert len([*other.values()][-1]) == 1


def test_images_that_the_initial_weights_were_trained_on_are_known_and_reported(
    dataset: Path, short: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "next"
    assert main(train(dataset, run, SMALL | {"epochs": 0.2, "init_from": short, "seed": 5})) == 0
    told = capfd.readouterr().out
    opened = open_run_for(run, "train", Settings, which="last")
    first = learning_parts(from_plain(Settings, SHORT | {"dataset": str(dataset), "run": "run"}))[0]
    assert set(first.split.hashes(first.indices)) <= set(seen_of(opened).trained)
    val = learning_parts(opened.settings)[1]
    known = len(set(val.indices) & set(first.indices))
    assert known
    assert f"were trained on {known} of the {len(val)} validation images" in told
    # With the seed of the other run, the validation images are the same, and there is nothing to report.
    assert main(train(dataset, tmp_path / "same", SMALL | {"epochs": 0.2, "init_from": short})) == 0
    assert "validation images, so" not in capfd.readouterr().out


def test_two_kinds_of_initial_weights_are_refused(dataset: Path, short: Path) -> None:
    with pytest.raises(ValueError, match="init_from and backbone cannot be combined"):
        start_from(short, dataset, backbone=short)
