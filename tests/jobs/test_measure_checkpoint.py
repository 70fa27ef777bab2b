"""The benchmark of checkpoints measures what it says, and leaves nothing behind."""

from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from jobs.benchmark.checkpoint import REFERENCES, measure, states_of, tensors_of
from jobs.benchmark.settings import Settings

SMALL = "mobilenetv3_small_050"


def test_each_way_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    rows = measure(Settings(what="checkpoint", rounds=2, folder=tmp_path), model_name=SMALL)
    assert [row.what for row in rows] == list(REFERENCES)
    assert all(row.ratio == 1 for row in rows if row.what == row.other_name)
    assert all(0 < (row.ratio_min or 0) <= (row.ratio or 0) <= (row.ratio_max or 0) for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_a_way_of_others_that_fails_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such backend")

    monkeypatch.setattr(dcp, "async_save", fail)
    rows = measure(Settings(what="checkpoint", rounds=1, folder=tmp_path), model_name=SMALL)
    missing = {row.what for row in rows if row.ours is None and "failed" in row.note}
    assert missing == {"torch async_save: stall", "torch async_save: in the background"}
    told = capsys.readouterr()
    assert "torch async_save failed and is omitted: RuntimeError('no such backend')" in told.out + told.err


def test_the_state_is_four_times_the_weights() -> None:
    states = states_of(SMALL)
    weights = [tensor for tensor in tensors_of(states["model"]).values() if tensor.dtype == torch.float32]
    assert set(states["optimizer"]["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    total = sum(tensor.nbytes for tensor in tensors_of(states).values())
    assert 3.9 < total / sum(tensor.nbytes for tensor in weights) < 4.1
