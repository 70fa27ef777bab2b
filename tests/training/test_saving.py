"""Saving in the background: the training goes on, what is written is what was, and nothing that fails is hidden."""

import errno
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deeplense.training import checkpoint
from deeplense.training.checkpoint import Snapshot, load, newest_good, step_folder
from deeplense.training.saving import Saver

Write = Callable[[Snapshot], None]


def states(value: float) -> dict[str, dict[str, Any]]:
    """States of some thousand numbers, all the same."""
    return {"model": {"weight": torch.full((3000,), value)}, "progress": {"step": int(value), "of": [value]}}


def values(path: Path) -> set[float]:
    """All numbers of a checkpoint."""
    saved = load(path)
    return {*saved["model"]["weight"].tolist(), saved["progress"]["step"], *saved["progress"]["of"]}


def overwrite(live: dict[str, dict[str, Any]], value: float) -> None:
    """What an update does to states."""
    live["model"]["weight"].fill_(value)
    live["progress"] |= {"step": int(value), "of": [value]}


def held(gate: threading.Event, write: Write) -> Write:
    """A write that waits at a gate."""

    def wait_and_write(taken: Snapshot) -> None:
        assert gate.wait(60)
        write(taken)

    return wait_and_write


def test_the_training_goes_on_while_a_write_waits_and_what_was_is_written(tmp_path: Path) -> None:
    saver, gate, live = Saver(), threading.Event(), states(1)
    saver.begin(live, held(gate, lambda taken: checkpoint.write(tmp_path / "copied", taken)))
    assert saver.writing
    assert saver.seconds > 0
    overwrite(live, 2)
    gate.set()
    saver.wait()
    assert (saver.writing, saver.failed, saver.seconds) == (False, False, 0)
    assert values(tmp_path / "copied") == {1}


def test_without_the_copy_it_would_not(tmp_path: Path) -> None:
    saver, gate, live = Saver(), threading.Event(), states(1)
    saver.begin({}, held(gate, lambda _: checkpoint.save(tmp_path / "live", live)))
    overwrite(live, 2)
    gate.set()
    saver.wait()
    assert values(tmp_path / "live") == {2}


def test_there_are_never_two_writes_at_once_and_none_is_left_out(tmp_path: Path) -> None:
    saver, gate, told = Saver(), threading.Event(), []

    def noted(step: int) -> Write:
        def write(taken: Snapshot) -> None:
            told.append(f"begin {step}")
            checkpoint.write(step_folder(tmp_path, step), taken)
            told.append(f"end {step}")

        return write

    saver.begin(states(1), held(gate, noted(1)))
    others = threading.Thread(target=lambda: [saver.begin(states(k), noted(k)) for k in (2, 3)])
    others.start()
    assert told == []
    gate.set()
    others.join()
    saver.wait()
    assert told == [f"{what} {step}" for step in (1, 2, 3) for what in ("begin", "end")]
    assert [values(step_folder(tmp_path, step)) for step in (1, 2, 3)] == [{1}, {2}, {3}]


@pytest.mark.parametrize("part", ["put", "sync_tree", "write_manifest"])
def test_a_write_that_fails_is_told_once_at_the_next_and_the_one_before_stands(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver()

    def save(step: int) -> None:
        saver.begin(states(step), lambda taken: checkpoint.write(step_folder(tmp_path, step), taken))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    save(1)
    saver.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, part, fail)
        save(2)
        saver.thread.join()
    assert saver.failed
    with pytest.raises(OSError, match="No space left") as raised:
        save(3)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "there")
    assert newest_good(tmp_path) == (step_folder(tmp_path, 1), [])
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    save(4)
    saver.wait()
    assert values(step_folder(tmp_path, 4)) == {4}


def test_what_bars_a_write_at_the_last_moment_leaves_nothing_of_it(tmp_path: Path) -> None:
    seen = []

    def bar(folder: Path) -> None:
        seen.append(values(folder))
        raise ValueError("a later attempt has begun")

    saver = Saver()
    saver.begin(states(1), lambda taken: checkpoint.write(tmp_path / "it", taken, ready=bar))
    with pytest.raises(ValueError, match="a later attempt"):
        saver.wait()
    assert seen == [{1}]
    assert list(tmp_path.iterdir()) == []


def test_memory_is_got_once_and_may_be_got_early(tmp_path: Path) -> None:
    saver = Saver()

    def places() -> dict[str, int]:
        return {name: image.content.data_ptr() for name, image in saver.buffers.items()}

    saver.prepare(states(1))
    saver.wait()
    prepared = places()
    for step in (2, 3):
        saver.begin(states(step), lambda taken: checkpoint.write(tmp_path / "it", taken))
        saver.wait()
        assert places() == prepared
        assert values(tmp_path / "it") == {step}
    saver.begin({"model": {"weight": torch.zeros(7)}}, lambda taken: checkpoint.write(tmp_path / "it", taken))
    saver.wait()
    assert load(tmp_path / "it")["model"]["weight"].tolist() == [0] * 7


def test_a_process_ends_though_a_write_does_not() -> None:
    program = (
        "import threading; from deeplense.training.saving import Saver; "
        "Saver().begin({}, lambda taken: threading.Event().wait()); print('over')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr
