"""Whole trainings on numbers of processes that do not divide the batch: losses and evaluations of one process."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, rank_variables
from test_train import train

SETTINGS: dict[str, Any] = {
    "model_name": "test_vit",
    "batch_size": 17,
    "epochs": 2,
    "log_interval": 1,
    "random_rotation": 20,
    "device": "cpu",
}
"""Without dropout and batch norms."""
NAMES = ("train/loss", "train/accuracy", "val/log_loss", "val/auc_macro")


def metrics_of(run: Path) -> dict[str, list[float]]:
    """The metrics of each line that has them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines if name in line] for name in NAMES}


@pytest.mark.parametrize("further", [{}, {"fsdp": 1}, {"gradient_accumulation": 2, "ema_decay": 0.9, "clip_grad": 0.5}])
def test_three_processes_have_the_losses_of_one(
    further: dict[str, Any], stamps: Path, tmp_path: Path, start: Any
) -> None:
    settings = SETTINGS | further
    alone: Command = start(*train(stamps, tmp_path / "alone", settings))
    ranks = [start(*train(stamps, tmp_path / "three", settings), environment=each) for each in rank_variables(3)]
    assert [alone.wait(), *(rank.wait() for rank in ranks)] == [0, 0, 0, 0], alone.log.read_text()
    expected, found = metrics_of(tmp_path / "alone"), metrics_of(tmp_path / "three")
    assert len(expected["train/loss"]) == 10
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], rel=1e-3), name
