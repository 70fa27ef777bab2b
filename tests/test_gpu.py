"""What only a GPU can show, run wherever there is one. For the speed: `deeplense benchmark train --device cuda`."""

import itertools
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Command, rank_variables
from steps import STEPS, make_step, updates
from timm.utils import ModelEmaV3

from deeplense.models.zoo import ARCHITECTURES
from deeplense.training.agreement import Agreement, Request
from deeplense.training.checkpoint import load, snapshot, write
from deeplense.training.finite import LossWatch
from deeplense.training.loop import make_accelerator, prepare
from jobs.frame.weights import optimizer_for
from jobs.runs.attempts import EXIT_STOPPED, read_attempts
from jobs.train import settings as train_settings
from jobs.train import work as train_work

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
SETTINGS = ("--model_name=simple_cnn", "--batch_size=16", "--epochs=30", "--device=cuda")
SETTINGS += ("--log_interval=1",)


@pytest.mark.parametrize(("precision", "stage"), [("fp32", "none"), ("bf16", "device"), ("fp16", "memory")])
def test_a_training_on_a_gpu_learns_stops_and_continues(
    precision: str, stage: str, dataset: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    run = tmp_path / "run"
    words = ["train", f"--dataset={dataset}", f"--run={run}", f"--precision={precision}", f"--stage={stage}", *SETTINGS]
    first = start(*words)
    while first.process.is_alive() and not (run / "metrics.jsonl").exists():
        first.process.join(0.1)
    first.send(signal.SIGTERM)
    assert first.wait() == EXIT_STOPPED, first.log.read_text()
    second = start(*words)
    assert second.wait() == 0, second.log.read_text()
    ends = [attempt["ended"] for attempt in read_attempts(run)]
    assert ends == ["stopped by SIGTERM", "finished"]
    assert start("evaluate", f"--run={run}", "--device=cuda").wait() == 0
    metrics = json.loads((run / "report" / "report.json").read_text())["metrics"]
    assert metrics["auc_macro"]["value"] > 0.9


def test_a_submitted_training_sees_its_gpus_and_comes_back_after_a_signal(
    dataset: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    run, num_gpus = tmp_path / "run", min(torch.cuda.device_count(), 2)
    words = ["train", f"--dataset={dataset}", f"--run={run}", *SETTINGS, "--epochs=300"]
    submitted = start("submit", "--on=local", f"--gpus_per_node={num_gpus}", "--allow_untracked", *words)
    assert submitted.wait() == 0, submitted.log.read_text()
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(read_attempts(run)[0]["pid"], signal.SIGTERM)
    assert start("logs", str(run), "--follow").wait() == 0
    assert [attempt["ended"] for attempt in read_attempts(run)] == ["stopped by SIGTERM", "finished"]
    log = next((run / "logs").glob("*_0_log.out")).read_text()
    assert f"{num_gpus} processes on cuda" in log


def test_a_snapshot_of_a_gpu_is_taken_before_the_training_goes_on(tmp_path: Path) -> None:
    weights = torch.full((1 << 22,), 1.0, device="cuda")
    buffers = {}
    for value in (1.0, 2.0):
        weights.fill_(value)
        taken = snapshot({"model": {"weights": weights}}, buffers)
        weights.fill_(-1.0)
        write(tmp_path / f"step_{value:.0f}", taken)
        assert (load(tmp_path / f"step_{value:.0f}")["model"]["weights"] == value).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_learns_in_bf16_on_a_gpu(name: str, dataset: Path, tmp_path: Path) -> None:
    settings = train_settings.Settings(
        run=tmp_path / "run",
        dataset=str(dataset),
        model_name=name,
        batch_size=16,
        epochs=2,
        precision="bf16",
        device="cuda",
        log_interval=1,
    )
    assert train_work.run(settings) == 0
    lines = [json.loads(line) for line in (settings.run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)


WARM, WATCHED = 3, 4


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[], None]]:
    """What, once called, makes PyTorch raise an error where the host waits for the GPU, as far as it knows."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_a_host_that_waits_is_noticed(waiting_is_an_error: Callable[[], None]) -> None:
    there = torch.ones(2, device="cuda")
    waiting_is_an_error()
    for wait in (lambda: there.sum().item(), lambda: there[there > 0], lambda: torch.ones(2).to("cuda")):
        with pytest.raises(RuntimeError, match="synchroniz"):
            wait()
    torch.ones(2).pin_memory().to("cuda", non_blocking=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_waits_for_nobody(
    name: str, precision: str, stamps: Path, tmp_path: Path, waiting_is_an_error: Callable[[], None]
) -> None:
    step = make_step(name, stamps, tmp_path / "run", device="cuda")
    accelerator = make_accelerator(device="cuda", precision=precision)  # type: ignore[arg-type]
    learner, network = step.learner, step.network.to(accelerator.device)
    trainee = step.trainee(network)
    decay = learner.ema_decay
    ema = ModelEmaV3(network, decay=decay, use_warmup=True) if decay else None
    model, optimizer = prepare(accelerator, network, optimizer_for(network, step.settings, learner))
    losses, agreement, made = LossWatch(), Agreement(accelerator), 0
    batches = (step.batch.pinned() for _ in itertools.count())
    for update in updates(
        step,
        trainee,
        model,
        batches,
        accelerator=accelerator,
        optimizer=optimizer,
        ema=ema,
        num_steps=WARM + WATCHED,
    ):
        losses.note(update.step, update.metrics["loss"])
        agreement.exchange(Request.DIVERGED if losses.seen() else Request(0))
        made += 1
        # The first ones make the states of the optimizer, what is kept, and the plans of libraries.
        if made == WARM:
            waiting_is_an_error()
    torch.cuda.set_sync_debug_mode("default")
    assert made == WARM + WATCHED
    assert losses.read() is None


PRETRAIN = (
    "--model_name=vit_base_patch8_224",
    "--batch_size=16",
    "--num_local=4",
    "--precision=bf16",
    "--checkpoint_blocks=1",
)
PRETRAIN += ("--epochs=4", "--warmup_epochs=1", "--log_interval=1", "--device=cuda", "--hidden_dim=64", "--out_dim=128")


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_a_vit_base_is_pretrained_in_bf16_with_its_blocks_computed_twice_and_goes_on_after_a_signal(
    method: str, stamps: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    run = tmp_path / "run"
    words = ["pretrain", f"--dataset={stamps}", f"--run={run}", f"--method={method}", *PRETRAIN]
    first = start(*words)
    while first.process.is_alive() and not (run / "metrics.jsonl").exists():
        first.process.join(0.1)
    first.send(signal.SIGTERM)
    assert first.wait() == EXIT_STOPPED, first.log.read_text()
    assert start(*words).wait() == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs on this machine")
def test_two_gpus_with_parts_of_the_weights_learn_what_one_learns(
    stamps: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    losses = {}
    for name, environments in (("one", [{}]), ("two", rank_variables(2))):
        words = ["pretrain", f"--dataset={stamps}", f"--run={tmp_path / name}", *PRETRAIN, "--precision=fp32"]
        ranks = [start(*words, f"--fsdp={len(environments) - 1}", environment=each) for each in environments]
        assert {rank.wait() for rank in ranks} == {0}, ranks[0].log.read_text()
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-2)
