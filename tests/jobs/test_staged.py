"""Trainings that read from a copy: the same bits, no leftovers, and errors that all ranks learn of."""

import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
from conftest import Command, rank_variables, write_blobs
from test_train import LONG, SMALL, final_tensors, same, train, wait_for_step

from deeplense.data.shards import Manifest
from deeplense.training.loop import make_accelerator
from deeplense.training.stopping import StopFlag
from jobs.frame import staging
from jobs.frame.staging import NODE_LOCAL, Copies
from jobs.frame.watchdog import Watchdog
from jobs.runs.attempts import EXIT_STOPPED, read_attempts

Start = Callable[..., Command]
NEEDS_SHARED_MEMORY = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A node-local folder."""
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture(scope="module")
def with_val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three splits."""
    folder = tmp_path_factory.mktemp("with_val")
    for name, count in (("train", 96), ("val", 30), ("test", 12)):
        write_blobs(folder, name, count)
    return folder


def both(start: Start, words: list[str], place: Path, prepare: Callable[[], None] | None = None) -> list[Command]:
    """Two ranks on this machine."""
    local = {NODE_LOCAL: str(place)}
    return [start(*words, environment=variables | local, prepare=prepare) for variables in rank_variables(2)]


def copied(place: Path) -> list[Path]:
    """The files of copies in a place."""
    return sorted(path for path in place.glob("deeplense-*/**/*") if path.is_file())


@NEEDS_SHARED_MEMORY
def test_ranks_that_read_a_copy_in_memory_end_with_the_bits_of_those_that_do_not(
    with_val: Path, tmp_path: Path, place: Path, start: Start
) -> None:
    for way in ("none", "memory"):
        ranks = both(start, train(with_val, tmp_path / way, SMALL | {"stage": way}), place)
        assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log.read_text()
    assert same(final_tensors(tmp_path / "memory"), final_tensors(tmp_path / "none"))
    said = ranks[0].log.read_text()
    assert f"on {with_val}/train (in place): 96 training, 30 validation images" in said
    assert f"on {with_val}/train (a copy in memory): 96 training, 30 validation images" in said
    assert f"copied {with_val}/train and {with_val}/val (0.0" in said


def spoil_originals(dataset: Path) -> None:
    """Just before the first step, overwrite the images that a run may no longer read."""
    from jobs.frame import updates

    advance = updates.advance

    def spoil_and_advance(*arguments: object) -> object:
        for path in dataset.glob("*/*.h5"):
            path.write_bytes(bytes(path.stat().st_size))
        return advance(*arguments)  # type: ignore[arg-type]

    updates.advance = spoil_and_advance  # type: ignore[assignment]


def test_only_the_copy_is_read_and_only_what_the_run_needs_is_copied(
    with_val: Path, tmp_path: Path, place: Path, start: Start
) -> None:
    dataset = tmp_path / "data"
    words = train(dataset, tmp_path / "run", SMALL | {"num_workers": 1})
    shutil.copytree(with_val, dataset)
    killed = start(*train(dataset, tmp_path / "killed", LONG), environment={NODE_LOCAL: str(place)})
    wait_for_step(tmp_path / "killed", 1)
    assert len([path for path in copied(place) if path.name == "manifest.json"]) == 2
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert copied(place), "the negative control: a killed run leaves its copy"
    reads = start(*words, environment={NODE_LOCAL: str(place)}, prepare=partial(spoil_originals, dataset))
    assert reads.wait() == 0, reads.log.read_text()
    assert start(*train(with_val, tmp_path / "unbroken", SMALL)).wait() == 0
    assert same(final_tensors(tmp_path / "run"), final_tensors(tmp_path / "unbroken"))
    assert copied(place) == []


def test_ranks_killed_while_they_read_a_copy_are_continued_with_the_same_bits(
    dataset: Path, tmp_path: Path, place: Path, start: Start
) -> None:
    settings = SMALL | {"epochs": 6, "checkpoint_minutes": 1e-9}
    killed = both(start, train(dataset, tmp_path / "run", settings), place)
    wait_for_step(tmp_path / "run", 5)
    for rank in killed:
        rank.send(signal.SIGKILL)
    assert [rank.wait() for rank in killed] == [-signal.SIGKILL] * 2
    before = {path: path.stat().st_ino for path in copied(place) if path.suffix == ".h5"}
    assert before
    again = both(start, train(dataset, tmp_path / "run", settings), place)
    assert [rank.wait() for rank in again] == [0, 0], again[0].log.read_text()
    whole = both(start, train(dataset, tmp_path / "whole", settings | {"stage": "none"}), place)
    assert [rank.wait() for rank in whole] == [0, 0]
    assert same(final_tensors(tmp_path / "run"), final_tensors(tmp_path / "whole"))
    assert copied(place) == []


def no_room() -> None:
    """Let no place have room."""
    from deeplense.data import staging

    staging.room = lambda folder: 1000


def full_disk() -> None:
    """Let the place fill up with the second block."""
    import errno

    count, blocks = Copies.count, []

    def count_or_fail(copies: Copies, num_bytes: int) -> None:
        blocks.append(num_bytes)
        if len(blocks) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        count(copies, num_bytes)

    Copies.count = count_or_fail  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("prepare", "code", "told"),
    [(no_room, 2, "has room for 0.000 GB"), (full_disk, 87, "No space left on device")],
)
def test_a_place_that_does_not_do_is_an_error_on_all_ranks_unless_the_choice_is_ours(
    prepare: Callable[[], None], code: int, told: str, dataset: Path, tmp_path: Path, place: Path, start: Start
) -> None:
    run = tmp_path / "run"
    refused = both(start, train(dataset, run, SMALL | {"stage": "node_local"}), place, prepare)
    assert [rank.wait() for rank in refused] == [code] * 2
    assert told in refused[0].log.read_text()
    assert "Traceback" not in refused[0].log.read_text()
    assert copied(place) == []
    goes_on = both(start, train(dataset, run, SMALL | {"epochs": 1}), place, prepare)
    assert [rank.wait() for rank in goes_on] == [0, 0], goes_on[0].log.read_text()
    (line,) = [
        line
        for line in goes_on[0].log.read_text().splitlines()
        if line.startswith("images are read in place, not copied")
    ]
    assert told in line
    assert f"{dataset}/train (in place)" in goes_on[0].log.read_text()
    assert copied(place) == []


@pytest.mark.parametrize("way", ["auto", "node_local"])
def test_a_damaged_shard_is_an_error_on_all_ranks(
    way: str, dataset: Path, tmp_path: Path, place: Path, start: Start
) -> None:
    shutil.copytree(dataset, tmp_path / "data")
    shard = Manifest.read(tmp_path / "data" / "train").shards[1]
    path = tmp_path / "data" / "train" / shard["file"]
    content = bytearray(path.read_bytes())
    content[shard["image_offset"]] ^= 1
    path.write_bytes(content)
    ranks = both(start, train(tmp_path / "data", tmp_path / "run", SMALL | {"stage": way}), place)
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert f"{path} does not match its checksum" in ranks[0].log.read_text()
    assert copied(place) == []


@pytest.mark.parametrize(
    ("stage", "local", "told"),
    [
        ("node_local", "", "stage=node_local, but DEEPLENSE_NODE_LOCAL is not set"),
        ("node_local", "/nowhere", "/nowhere is not a folder on this machine"),
        ("auto", "/nowhere", "images are read in place, not copied: /nowhere is not a folder on this machine"),
    ],
)
def test_a_node_local_folder_that_is_not_there_is_named(
    stage: str, local: str, told: str, dataset: Path, tmp_path: Path, start: Start
) -> None:
    words = train(dataset, tmp_path / "run", SMALL | {"stage": stage, "epochs": 0.2})
    command = start(*words, environment={NODE_LOCAL: local})
    assert command.wait() == (0 if stage == "auto" else 2)
    assert told in command.log.read_text()


def signal_and_never_end() -> None:
    """Send this process SIGTERM with the first block, and let there be no end of blocks until it heeds it."""
    import time

    from deeplense.data import staging

    def pour(source: Path, target: object, *, after_block: Callable[[int], None]) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            after_block(1)
            time.sleep(0.01)

    staging.pour = pour


def test_a_signal_to_one_rank_while_it_copies_ends_all_before_the_first_step(
    dataset: Path, tmp_path: Path, place: Path, start: Start
) -> None:
    run, words = tmp_path / "run", train(dataset, tmp_path / "run", SMALL | {"stage": "node_local"})
    ranks = both(start, words, place, signal_and_never_end)
    assert [rank.wait() for rank in ranks] == [EXIT_STOPPED] * 2
    assert (
        ranks[0].log.read_text()
        == "stopped by a signal while the images were copied. Run the same command again to resume.\n"
    )
    assert read_attempts(run) == []
    assert copied(place) == []
    again = both(start, words, place)
    assert [rank.wait() for rank in again] == [0, 0], again[0].log.read_text()
    assert [attempt["ended"] for attempt in read_attempts(run)] == ["finished"]


def test_the_watchdog_is_told_of_every_round_in_which_a_copy_grows_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog, beats, work = Watchdog(tmp_path, minutes=0), [], Future[None]()
    copies = Copies(StopFlag(), watchdog)
    monkeypatch.setattr(watchdog, "beat", lambda: beats.append(copies.num_bytes))
    rounds = iter([lambda: None, lambda: copies.count(5), lambda: None, lambda: None, lambda: copies.count(7)])

    def one_round(pending: object, *, timeout: float) -> None:
        next(rounds, lambda: work.set_result(None))()

    monkeypatch.setattr(staging, "wait", one_round)
    copies.wait_in_rounds(work, make_accelerator(device="cpu", precision="fp32"), 12)
    assert beats == [0, 5, 12, 12], "with the first round, with each that grew, and at the end"
