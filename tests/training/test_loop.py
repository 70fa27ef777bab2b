"""The loop: what chance decides in a step is a function of the step alone, in whatever library."""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deeplense.training import loop
from deeplense.training.loop import fit, make_accelerator
from deeplense.training.surroundings import ignore_surroundings


@dataclass
class Rows:
    """The smallest batch."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device) -> "Rows":
        return self

    def split(self, parts: int) -> list["Rows"]:
        return [self] * parts


def draws(first_step: int) -> Iterator[list[float]]:
    """What three libraries draw in each step of a training that begins, or goes on, at a step."""
    model = nn.Linear(1, 1)
    drawn: list[float] = []

    def step(batch: Rows) -> dict[str, Tensor]:
        drawn[:] = [random.random(), np.random.rand(), torch.rand(()).item()]
        return {"loss": model(batch.values).mean()}

    # As if something else had drawn before.
    random.seed()
    np.random.seed()
    torch.seed()
    settings: dict[str, Any] = {
        "learning_rate": lambda step: 0.1,
        "num_steps": 8,
        "step_seed": lambda step: 2**63 - step - 1,
    }
    optimizer = torch.optim.SGD(model.parameters())
    batches = iter(lambda: Rows(torch.ones(2, 1)), None)
    accelerator = make_accelerator(device="cpu", precision="fp32")
    for _ in fit(
        step, batches, accelerator=accelerator, model=model, optimizer=optimizer, first_step=first_step, **settings
    ):
        yield list(drawn)


def test_a_resumed_training_draws_what_an_unbroken_one_does() -> None:
    unbroken = list(draws(0))
    assert len({tuple(drawn) for drawn in unbroken}) == 8
    assert list(draws(3)) == unbroken[3:]


def test_without_the_seeds_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "seed_generators", lambda seed, device: torch.manual_seed(seed))
    resumed, unbroken = list(draws(3)), list(draws(0))[3:]
    for number, name in enumerate(["Python", "NumPy", "PyTorch"]):
        alike = [drawn[number] for drawn in resumed] == [drawn[number] for drawn in unbroken]
        assert alike == (name == "PyTorch"), name


OBEYED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_CPU_AFFINITY": "1",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "FSDP_OFFLOAD_PARAMS": "true",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "NVIDIA_TF32_OVERRIDE": "1",
    "XLA_USE_BF16": "1",
}
"""Variables that Accelerate, torch or CUDA obey."""


def learnt_weight() -> float:
    """A weight after two updates."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    accelerator = make_accelerator(device="cpu", precision="fp32")
    prepared, optimizer = loop.prepare(accelerator, model, torch.optim.SGD(model.parameters()))
    updates = fit(
        lambda batch: {"loss": prepared(batch.values).mean()},
        iter(lambda: Rows(torch.ones(2, 1)), None),
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        learning_rate=lambda step: 0.1,
        first_step=0,
        num_steps=2,
        step_seed=lambda step: step,
    )
    for _ in updates:
        pass
    return model.weight.item()


@pytest.mark.parametrize("name", OBEYED)
def test_variables_of_the_environment_that_change_numbers_are_ignored_and_told(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = learnt_weight()
    assert expected == pytest.approx(0.8)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(name, OBEYED[name])
    assert learnt_weight() == expected
    assert name not in os.environ
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (f"deeplense: in the environment, {name} changes results and is ignored; use settings instead")


def test_with_it_the_gradients_would_be_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "ignore_surroundings", lambda: [])
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert learnt_weight() != pytest.approx(0.8)


def test_what_libraries_need_of_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    assert ignore_surroundings() == []
