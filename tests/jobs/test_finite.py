"""Nothing that is not finite is saved or evaluated: a training ends instead, and names the step."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import Command, rank_variables

from deeplense.training import checkpoint
from deeplense.training.finite import LossWatch, NotFinite, is_finite, tensors_in
from deeplense.training.loop import Update, make_accelerator
from deeplense.training.saving import Saver
from jobs.data import statistics
from jobs.frame import divergence, updates
from jobs.frame.start import Training
from jobs.runs.attempts import read_attempts
from jobs.train import work as train_work
from jobs.train.settings import Settings
from launch.__main__ import main

Change = Callable[[Training], object]
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


def enlarge(training: Training) -> None:
    """Let finite weights give outputs that are not."""
    for parameter in training.weights.counted.parameters():
        parameter.data *= 1e30


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Change], None]:
    """Does something after an update; each write of a checkpoint is waited for."""
    begin, make_updates = Saver.begin, updates.updates

    def begin_and_wait(saver: Saver, *words: Any) -> None:
        begin(saver, *words)
        saver.wait()

    def act(step: int, change: Change) -> None:
        def updates_and_change(training: Training) -> Iterator[Update]:
            for update in make_updates(training):
                if update.step == step:
                    change(training)
                yield update

        monkeypatch.setattr(updates, "updates", updates_and_change)

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
        (lambda run: spoil(list(run.weights.network.parameters()), torch.nan), 100, "the weights: some values"),
        (lambda run: spoil(dict(run.weights.network.named_buffers()), torch.inf), 100, "the weights: some values"),
        (
            lambda run: spoil(run.weights.optimizer.state_dict()["state"], torch.inf),
            100,
            "the states of the optimizer: some values",
        ),
        (
            lambda run: spoil(run.weights.ema.module.state_dict(), -torch.inf),
            100,
            "the running mean of the weights: some values",
        ),
        (lambda run: spoil(list(run.weights.network.parameters()), torch.nan), 0.01, "the weights: some values"),
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
        train_work.run(Settings(run=run, dataset=str(dataset), **settings))
    assert [name for name in checkpoints(run) if "step" in name] == ["step_00000002", "step_00000003"]
    ended = read_attempts(run)[-1]["ended"]
    assert ended.startswith(f"diverged: {told}")
    assert f"after step {POISONED}" in ended or "outputs" in ended


def test_what_is_finite_goes_on(dataset: Path, tmp_path: Path, at_step: Callable[..., None]) -> None:
    run = tmp_path / "run"
    at_step(POISONED, lambda training: None)
    assert train_work.run(Settings(run=run, dataset=str(dataset), **(SMALL | EACH_STEP))) == 0
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
    at_step(POISONED, lambda training: spoil(list(training.weights.network.parameters()), torch.nan))
    common = {"batch_size": 16, "device": "cpu", "checkpoint_minutes": 1e-9, "log_interval": 1000}
    own: dict[str, dict[str, Any]] = {
        "pretrain": {"model_name": "test_resnet", "method": "simsiam", "hidden_dim": 16, "out_dim": 32, "epochs": 2},
        "diffuse": {"model_name": "unet_small", "num_times": 50, "num_sampled": 0, "epochs": 2},
        "finetune": {"backbone": "scratch", "model_name": "simple_cnn", "num_updates": 8, "min_epochs": 1},
    }
    words = [f"--{name}={value}" for name, value in (common | own[job]).items()]
    assert main([job, f"--dataset={stamps if job == 'pretrain' else dataset}", f"--run={run}", *words]) == 2
    told = capfd.readouterr().err
    assert re.search(rf"deeplense: (the weights: some values are not finite after step {POISONED}|the loss)", told)
    assert told.count("\n") == 1
    assert read_attempts(run)[-1]["ended"].startswith("diverged: ")
    assert checkpoints(run)[-1] == f"step_{POISONED - 1:08d}"


def first_bad_step(run: Path, dataset: Path, **changes: Any) -> int:
    """The step that a diverging training names."""
    with pytest.raises(NotFinite, match=r"the loss is (nan|inf|-inf) at step") as found:
        train_work.run(Settings(run=run, dataset=str(dataset), **DIVERGING | changes))
    assert checkpoints(run) == []
    named = re.search(r"at step (\d+)", str(found.value))
    assert named
    return int(named[1])


def test_the_first_step_is_named_though_nobody_looks_at_each(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = first_bad_step(tmp_path / "seen", dataset)
    assert read_attempts(tmp_path / "seen")[-1]["last_step"] == first
    # As on a GPU from which no loss has come yet.
    monkeypatch.setattr(LossWatch, "seen", lambda losses: False)
    assert first_bad_step(tmp_path / "logged", dataset, log_interval=7) == first
    assert read_attempts(tmp_path / "logged")[-1]["last_step"] == 7
    assert first_bad_step(tmp_path / "evaluated", dataset, evaluate_epochs=1) == first
    assert first_bad_step(tmp_path / "at_the_end", dataset) == first


def test_told_to_stop_after_it_diverged_it_saves_nothing(
    dataset: Path, tmp_path: Path, at_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossWatch, "seen", lambda losses: False)
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
        from jobs.frame import updates

        watch = updates.watch

        def watch_or_lose(losses: Any, accelerator: Any, update: Any) -> None:
            if update.step == self.step and os.environ["RANK"] == "1":
                update.metrics["loss"].fill_(torch.inf)
            watch(losses, accelerator, update)

        updates.watch = watch_or_lose


def test_all_ranks_end_where_one_diverges(dataset: Path, tmp_path: Path, start: Callable[..., Command]) -> None:
    run = tmp_path / "run"
    settings = DIVERGING | {"lr": 1e-3}
    words = ["train", f"--dataset={dataset}", f"--run={run}"]
    words += [f"--{name}={value}" for name, value in settings.items() if value is not None]
    ranks = [start(*words, environment=each, prepare=LoseOnOneRank(3)) for each in rank_variables(2)]
    assert [rank.wait() for rank in ranks] == [2, 2], ranks[0].log.read_text()
    (attempt,) = read_attempts(run)
    assert attempt["ended"].startswith("diverged: the loss is inf at step 3")
    assert 4 <= attempt["last_step"] <= 10, "ranks learn of it later, and at the last save at the latest"
    assert checkpoints(run) == []
    assert "Traceback" not in ranks[0].log.read_text()


def test_updates_that_the_scaler_of_fp16_leaves_out_are_none_of_it() -> None:
    accelerator = make_accelerator(device="cpu", precision="fp32")
    scale = 2.0
    accelerator.scaler = cast(Any, SimpleNamespace(get_scale=lambda: scale))
    losses = LossWatch()
    update = cast(Any, SimpleNamespace(step=3, metrics={"loss": torch.tensor(torch.nan)}, weight=1.0))
    divergence.watch(losses, accelerator, update)
    assert losses.read() is None
    assert divergence.means_of(update, losses, accelerator)["loss"] != 0
    scale = 0.5
    with pytest.raises(NotFinite, match="the loss is nan at step 3"):
        divergence.means_of(update, losses, accelerator)


def test_a_loss_on_the_host_that_is_not_finite_is_seen_at_once() -> None:
    watch = LossWatch()
    for step, (value, expected) in enumerate([(1.0, False), (-torch.inf, True), (1.0, True)]):
        watch.note(step, torch.tensor(value))
        assert watch.seen() == expected
    assert watch.read() == (1, -torch.inf)


def test_a_loss_that_is_on_its_way_is_not_waited_for_until_it_is_read() -> None:
    watch, there = LossWatch(), SimpleNamespace(query=lambda: False, synchronize=lambda: None)
    watch.pending.append((1, torch.tensor(torch.nan), cast(Any, there)))
    watch.note(2, torch.tensor(torch.inf))
    assert not watch.seen()
    assert watch.read() == (1, pytest.approx(torch.nan, nan_ok=True))
    assert watch.seen()


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
    assert train_work.run(Settings(run=run, dataset=str(dataset), **SMALL)) == 0
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
    assert "model.safetensors contains non-finite numbers" in capfd.readouterr().out
    assert main(["export", str(run), f"--output={tmp_path / 'x.safetensors'}"]) == 2
    assert main(["evaluate", f"--run={run}"]) == 2
    assert "non-finite" in "".join(capfd.readouterr())
    assert not (run / "report").exists()
    assert main(["evaluate", f"--run={run}", "--weights=last"]) == 0


def test_a_training_goes_on_from_the_last_checkpoint_that_is_finite(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    spoiled(run, dataset, "step")
    (run / "finished.json").unlink()
    assert train_work.run(Settings(run=run, dataset=str(dataset), **SMALL)) == 0
    assert "damaged_step_00000010" in [path.name for path in (run / "checkpoints").iterdir()]
    assert json.loads((run / "finished.json").read_text())["step"] == 10
    assert read_attempts(run)[-1]["first_step"] < 10


def test_pixels_that_cannot_be_computed_with_are_refused_before_the_first_step(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "measure_bands", lambda *words, **more: {"mean": [0.0], "std": [torch.nan]})
    with pytest.raises(ValueError, match="has pixels in the bands r that are not finite"):
        train_work.run(Settings(run=tmp_path / "run", dataset=str(dataset), **SMALL))
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("name", ["lr", "weight_decay", "epochs", "clip_grad", "evaluate_epochs"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_settings_that_are_not_finite_are_refused(name: str, value: float) -> None:
    changed: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Settings(run=Path("run"), dataset="d", **changed)
