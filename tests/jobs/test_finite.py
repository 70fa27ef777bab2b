"""Nothing that is not finite is saved or evaluated: a training ends instead, and names the step."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import Command, rank_variables

from deeplense.training import checkpoint
from deeplense.training.finite import LossWatch, NotFinite, is_finite, tensors_in
from deeplense.training.loop import Request, agree, make_accelerator
from deeplense.training.saving import Saver
from jobs import statistics, train, training_run
from jobs.attempts import read_attempts
from jobs.train import Settings
from jobs.training_start import TrainingRun
from launch.__main__ import main

Change = Callable[[TrainingRun], object]
SMALL: dict[str, Any] = {
    "model_name": "simple_cnn",
    "batch_size": 16,
    "epochs": 2,
    "device": "cpu",
    "lr": 1e-3,
    "ema_decay": 0.9,
    "evaluate_epochs": 100,
    "checkpoint_minutes": 1e-9,
}
DIVERGING = SMALL | {"optimizer": "sgd", "lr": 1e12, "ema_decay": None, "log_interval": 1000, "checkpoint_minutes": 100}
EACH_STEP: dict[str, Any] = {"evaluate_epochs": 0.01}
POISONED = 4


def spoil(tensors: Any, value: float) -> None:
    """Put a value at the end of the last of some floating tensors."""
    last = [tensor for tensor in tensors_in(tensors) if tensor.is_floating_point()][-1]
    last.data.view(-1)[-1] = value


def enlarge(training: TrainingRun) -> None:
    """Let finite weights give outputs that are not."""
    for parameter in training.counted.parameters():
        parameter.data *= 1e30


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Change], None]:
    """Does something after an update; each write of a checkpoint is waited for."""
    begin, watched = Saver.begin, training_run.watched

    def begin_and_wait(saver: Saver, *words: Any) -> None:
        begin(saver, *words)
        saver.wait()

    def act(step: int, change: Change) -> None:
        def change_and_watch(training: TrainingRun, update: Any) -> Any:
            if update.step == step:
                change(training)
            return watched(training, update)

        monkeypatch.setattr(training_run, "watched", change_and_watch)

    monkeypatch.setattr(Saver, "begin", begin_and_wait)
    return act


def checkpoints(run: Path) -> list[str]:
    """The names of the checkpoints of a run, of which all numbers are finite."""
    paths = sorted((run / "checkpoints").iterdir()) if (run / "checkpoints").exists() else []
    assert all(is_finite(tensors_in(checkpoint.load(path))) for path in paths)
    return [path.name for path in paths]


@pytest.mark.parametrize(
    ("change", "evaluate_epochs", "told"),
    [
        (lambda run: spoil(list(run.network.parameters()), torch.nan), 100, "the weights: not all"),
        (lambda run: spoil(dict(run.network.named_buffers()), torch.inf), 100, "the weights: not all"),
        (lambda run: spoil(run.optimizer.state_dict()["state"], torch.inf), 100, "the states of the optimizer: not"),
        (lambda run: spoil(run.ema.module.state_dict(), -torch.inf), 100, "the running mean of the weights: not"),
        (lambda run: spoil(list(run.network.parameters()), torch.nan), 0.01, "the weights: not all"),
        (enlarge, 0.01, "the outputs of the network are not finite for 9 of 9 images"),
    ],
)
def test_what_is_not_finite_is_neither_saved_nor_evaluated_and_the_last_good_checkpoints_stay(
    change: Change, evaluate_epochs: float, told: str, dataset: Path, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    at_step(POISONED, change)
    settings: dict[str, Any] = SMALL | {"evaluate_epochs": evaluate_epochs}
    with pytest.raises(NotFinite, match=told):
        train.run(Settings(run=run, dataset=str(dataset), **settings))
    assert [name for name in checkpoints(run) if "step" in name] == ["step_00000002", "step_00000003"]
    ended = read_attempts(run)[-1]["ended"]
    assert ended.startswith(f"diverged: {told}")
    assert f"after step {POISONED}" in ended or "outputs" in ended


def test_what_is_finite_goes_on(dataset: Path, tmp_path: Path, at_step: Callable[..., None]) -> None:
    run = tmp_path / "run"
    at_step(POISONED, lambda training: None)
    assert train.run(Settings(run=run, dataset=str(dataset), **(SMALL | EACH_STEP))) == 0
    assert checkpoints(run)[-1] == "step_00000010"


@pytest.mark.parametrize("job", ["pretrain", "diffuse", "finetune"])
def test_each_job_that_learns_ends_so(
    job: str,
    dataset: Path,
    stamps: Path,
    tmp_path: Path,
    at_step: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    at_step(POISONED, lambda training: spoil(list(training.network.parameters()), torch.nan))
    common = {"batch_size": 16, "device": "cpu", "checkpoint_minutes": 1e-9, "log_interval": 1000}
    own: dict[str, dict[str, Any]] = {
        "pretrain": {"model_name": "test_resnet", "method": "simsiam", "hidden_dim": 16, "out_dim": 32, "epochs": 2},
        "diffuse": {"model_name": "unet_small", "num_times": 50, "num_sampled": 0, "epochs": 2},
        "finetune": {"backbone": "scratch", "model_name": "simple_cnn", "num_updates": 8, "min_epochs": 1},
    }
    words = [f"--{name}={value}" for name, value in (common | own[job]).items()]
    assert main([job, f"--dataset={stamps if job == 'pretrain' else dataset}", f"--run={run}", *words]) == 2
    told = capfd.readouterr().err
    assert re.search(rf"deeplense: (the weights: not all numbers are finite after step {POISONED}|the loss)", told)
    assert told.count("\n") == 1
    assert read_attempts(run)[-1]["ended"].startswith("diverged: ")
    assert checkpoints(run)[-1] == f"step_{POISONED - 1:08d}"


def first_bad_step(run: Path, dataset: Path, **changes: Any) -> int:
    """The step that a diverging training names."""
    with pytest.raises(NotFinite, match=r"the loss is (nan|inf|-inf) at step") as found:
        train.run(Settings(run=run, dataset=str(dataset), **DIVERGING | changes))
    assert checkpoints(run) == []
    named = re.search(r"at step (\d+)", str(found.value))
    assert named
    return int(named[1])


def test_the_first_step_is_named_though_nobody_looks_at_each(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = first_bad_step(tmp_path / "seen", dataset)
    assert read_attempts(tmp_path / "seen")[-1]["last_step"] == first
    # As one process on a GPU, which does not wait for the loss of each step.
    monkeypatch.setattr(training_run, "agree", lambda accelerator, requests, loss: requests)
    assert first_bad_step(tmp_path / "logged", dataset, log_interval=7) == first
    assert read_attempts(tmp_path / "logged")[-1]["last_step"] == 7
    assert first_bad_step(tmp_path / "evaluated", dataset, evaluate_epochs=1) == first
    assert first_bad_step(tmp_path / "at_the_end", dataset) == first


def test_told_to_stop_after_it_diverged_it_saves_nothing(
    dataset: Path, tmp_path: Path, at_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "agree", lambda accelerator, requests, loss: requests)
    at_step(9, lambda training: os.kill(os.getpid(), signal.SIGTERM))
    assert first_bad_step(tmp_path / "run", dataset) < 9
    attempt = read_attempts(tmp_path / "run")[-1]
    assert attempt["last_step"] == 9
    assert attempt["ended"].startswith("diverged: the loss is")
    assert not (tmp_path / "run" / "stopped.json").exists()


class LoseOnOneRank:
    """Lets the second rank alone lose its loss, at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self) -> None:
        from jobs import training_run

        watched = training_run.watched

        def watched_or_lost(training: Any, update: Any) -> Any:
            if update.step == self.step and os.environ["RANK"] == "1":
                update.metrics["loss"].fill_(torch.inf)
            return watched(training, update)

        training_run.watched = watched_or_lost


def test_all_ranks_end_where_one_diverges(dataset: Path, tmp_path: Path, start: Callable[..., Command]) -> None:
    run = tmp_path / "run"
    settings = DIVERGING | {"lr": 1e-3}
    words = ["train", f"--dataset={dataset}", f"--run={run}"]
    words += [f"--{name}={value}" for name, value in settings.items() if value is not None]
    ranks = [start(*words, environment=each, prepare=LoseOnOneRank(3)) for each in rank_variables(2)]
    assert [rank.wait() for rank in ranks] == [2, 2], ranks[0].log.read_text()
    (attempt,) = read_attempts(run)
    assert attempt["ended"].startswith("diverged: the loss is inf at step 3")
    assert attempt["last_step"] == 3
    assert "Traceback" not in ranks[0].log.read_text()


def test_updates_that_the_scaler_of_fp16_leaves_out_are_none_of_it() -> None:
    accelerator = make_accelerator(device="cpu", precision="fp32")
    scale = 2.0
    accelerator.scaler = cast(Any, SimpleNamespace(get_scale=lambda: scale))
    training = cast(
        TrainingRun,
        SimpleNamespace(
            accelerator=accelerator,
            progress=SimpleNamespace(step=3),
            settings=SimpleNamespace(batch_size=4),
            tracker=None,
            losses=LossWatch(),
        ),
    )
    update = cast(Any, SimpleNamespace(step=3, metrics={"loss": torch.tensor(torch.nan)}))
    assert training_run.watched(training, update) is None
    assert training.losses.read() is None
    assert training_run.log_update(training, 0.1, update.metrics) != 0
    scale = 0.5
    with pytest.raises(NotFinite, match="the loss is nan at step 3"):
        training_run.log_update(training, 0.1, update.metrics)


def test_a_loss_that_is_not_finite_is_a_request_of_one_process() -> None:
    accelerator = make_accelerator(device="cpu", precision="fp32")
    for value, expected in ((1.0, Request.SAVE), (torch.nan, Request.SAVE | Request.DIVERGED)):
        assert agree(accelerator, Request.SAVE, loss=torch.tensor(value)) == expected
    assert agree(accelerator, Request.SAVE) == Request.SAVE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 17, 4098])
def test_any_number_that_is_not_finite_is_found(dtype: torch.dtype, bad: float, place: int) -> None:
    tensors = [torch.zeros(0), torch.arange(3), torch.full((4099,), torch.finfo(dtype).max, dtype=dtype)]
    assert is_finite(tensors)
    tensors[-1][place] = bad
    assert not is_finite(tensors)
    assert not is_finite(reversed(tensors))


def test_the_losses_of_many_updates_are_not_kept() -> None:
    watch = LossWatch()
    for step in range(5000):
        watch.note(step, torch.tensor(1.0 if step < 4000 else torch.nan))
        assert len(watch.pending) <= 1024
    assert watch.read() == (4000, pytest.approx(torch.nan, nan_ok=True))


def spoiled(run: Path, dataset: Path, kind: str) -> None:
    """A finished run whose newest checkpoint of a kind has weights that are not finite, as older versions wrote it."""
    assert train.run(Settings(run=run, dataset=str(dataset), **SMALL)) == 0
    path = sorted((run / "checkpoints").glob(f"{kind}_*"))[-1]
    states = checkpoint.load(path)
    spoil(states["model"], torch.nan)
    checkpoint.save(path, states)


def test_a_checkpoint_of_weights_that_are_not_finite_is_unsound_and_not_used(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    spoiled(run, dataset, "best")
    assert main(["verify", str(run)]) == 1
    assert "model.safetensors holds numbers that are not finite" in capfd.readouterr().out
    assert main(["export", str(run), f"--output={tmp_path / 'x.safetensors'}"]) == 2
    assert main(["evaluate", f"--run={run}"]) == 2
    assert "not finite" in "".join(capfd.readouterr())
    assert not (run / "report").exists()
    assert main(["evaluate", f"--run={run}", "--weights=last"]) == 0


def test_a_training_goes_on_from_the_last_checkpoint_that_is_finite(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    spoiled(run, dataset, "step")
    (run / "finished.json").unlink()
    assert train.run(Settings(run=run, dataset=str(dataset), **SMALL)) == 0
    assert "damaged_step_00000010" in [path.name for path in (run / "checkpoints").iterdir()]
    assert json.loads((run / "finished.json").read_text())["step"] == 10
    assert read_attempts(run)[-1]["first_step"] < 10


def test_pixels_that_cannot_be_computed_with_are_refused_before_the_first_step(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "measure_bands", lambda *words, **more: {"mean": [0.0], "std": [torch.nan]})
    with pytest.raises(ValueError, match="has pixels in the bands r that are not finite"):
        train.run(Settings(run=tmp_path / "run", dataset=str(dataset), **SMALL))
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("name", ["lr", "weight_decay", "epochs", "clip_grad", "evaluate_epochs"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_settings_that_are_not_finite_are_refused(name: str, value: float) -> None:
    changed: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Settings(run=Path("run"), dataset="d", **changed)
