"""The loop: what chance decides in a step is a function of the step alone, in whatever library."""

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
    monkeypatch.setattr(loop, "seed_generators", lambda seed: torch.manual_seed(seed))
    resumed, unbroken = list(draws(3)), list(draws(0))[3:]
    for number, name in enumerate(["Python", "NumPy", "PyTorch"]):
        alike = [drawn[number] for drawn in resumed] == [drawn[number] for drawn in unbroken]
        assert alike == (name == "PyTorch"), name
