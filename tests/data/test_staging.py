"""Copies of splits: true to the source, shared, never half, never taken from one who reads, and gone after."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import write_blobs

from deeplense.data import staging
from deeplense.data.dataset import Split
from deeplense.data.shards import Manifest
from deeplense.data.staging import Unfit, held, staged
from deeplense.files import TEMPORARY

CHILD = """
import os, random, signal, sys, time
from pathlib import Path
from deeplense.data import staging
from deeplense.data.shards import Manifest

deed, place, *splits = sys.argv[1:]
manifests = [Manifest.read(Path(split)) for split in splits]
random.seed(os.environ.get("SEED"))
left = int(os.environ.get("BLOCKS", "-1"))

def after_block(num_bytes):
    global left
    left -= 1
    if left == 0 and deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if left == 0 and deed == "wait":
        print("copies", flush=True)
        sys.stdin.readline()

def read(manifest):
    with staging.staged([manifest], Path(place), after_block=after_block) as (copy,):
        assert not staging.broken(manifest, copy, lambda num_bytes: None)
        time.sleep(random.random() / 100)
        assert not staging.broken(manifest, copy, lambda num_bytes: None)

if deed == "again":
    for _ in range(40):
        read(random.choice(manifests))
else:
    with staging.staged(manifests, Path(place), after_block=after_block):
        print("reads", flush=True)
        sys.stdin.readline()
"""
NUM_SAMPLES = 200
NUM_SHARDS = 4


class Reader:
    """A process that stages a split, says so, and reads on until it is told to leave."""

    def __init__(self, deed: str, place: Path, *splits: Path, **variables: str) -> None:
        words = [sys.executable, "-c", CHILD, deed, str(place), *map(str, splits)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process: subprocess.Popen[str] = subprocess.Popen(words, env=os.environ | variables, **pipes)

    def says(self) -> str:
        """Its next line."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Let it do what comes next."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def leave(self) -> int:
        """Let it leave; its exit code."""
        self.go_on()
        return self.process.wait(60)


Start = Callable[..., Reader]


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Starts readers, and ends those that are left."""
    started: list[Reader] = []

    def begin(deed: str, *splits: Path, **variables: str) -> Reader:
        started.append(Reader(deed, place, *splits, **variables))
        return started[-1]

    yield begin
    for reader in started:
        reader.process.kill()
        reader.process.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder for copies."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two splits; only to be read."""
    folder = tmp_path_factory.mktemp("sound")
    write_blobs(folder, "train", NUM_SAMPLES)
    write_blobs(folder, "val", NUM_SAMPLES // 2)
    return folder


@pytest.fixture
def split(sound: Path, tmp_path: Path) -> Path:
    """A split of its own for each test."""
    shutil.copytree(sound / "train", tmp_path / "data" / "train")
    return tmp_path / "data" / "train"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in sorted(folder.iterdir())}


def left_in(place: Path) -> list[str]:
    """What lies among the copies of a place."""
    return sorted(str(path.relative_to(place)).partition("/")[2] for path in place.glob("*/*"))


def abandoned(split: Path, place: Path) -> Path:
    """A whole copy that nobody holds, as a killed job leaves it."""
    with staged([Manifest.read(split)], place) as (copy,):
        copy.rename(place / "aside")
    return (place / "aside").rename(copy)


def test_a_copy_has_the_bytes_and_the_samples_of_the_split(split: Path, place: Path) -> None:
    original = Split(split)
    chosen = np.arange(NUM_SAMPLES)[::-3]
    with staged(original.manifests, place) as (copy,):
        assert bytes_of(copy) == bytes_of(split)
        assert len(bytes_of(copy)) == NUM_SHARDS + 1
        assert Split(copy).dataset_id == original.dataset_id
        before = original.images(chosen)
        original.read_from([copy])
        (copy / "shard-00000.h5").write_bytes(bytes(len((copy / "shard-00000.h5").read_bytes())))
        assert not np.array_equal(original.images(chosen), before), "the negative control: it is the copy that is read"
        assert np.array_equal(Split(split).images(chosen), before)
        assert original.folders == (split,)


def test_only_its_user_sees_a_copy_and_it_goes_with_the_last_who_reads_it(split: Path, place: Path) -> None:
    manifest = Manifest.read(split)
    with staged([manifest], place) as (copy,):
        assert copy.parent.stat().st_mode & 0o777 == 0o700
        assert staging.lock_of(copy).stat().st_mode & 0o777 == 0o600
        with staged([manifest], place) as (same,), held(manifest, place) as held_copy:
            assert same == held_copy == copy
        assert bytes_of(copy) == bytes_of(split)
    assert left_in(place) == []


def test_several_splits_are_staged_together(sound: Path, place: Path) -> None:
    manifests = [Manifest.read(sound / name) for name in ("train", "val")]
    with staged(manifests, place) as (train, val):
        assert bytes_of(train) == bytes_of(sound / "train")
        assert bytes_of(val) == bytes_of(sound / "val")
    assert left_in(place) == []


def test_a_sound_copy_that_stands_is_verified_and_not_written_again(split: Path, place: Path) -> None:
    before = inodes(abandoned(split, place))
    blocks: list[int] = []
    with staged([Manifest.read(split)], place, after_block=blocks.append) as (copy,):
        assert inodes(copy) == before
    assert sum(blocks) == sum(len(content) for name, content in bytes_of(split).items() if name != "manifest.json")


def truncate(copy: Path) -> None:
    os.truncate(copy / "shard-00001.h5", 100)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "truncated": (truncate, {"shard-00001.h5"}),
    "another byte": (lambda copy: flip(copy / "shard-00002.h5"), {"shard-00002.h5"}),
    "missing": (lambda copy: (copy / "shard-00000.h5").unlink(), {"shard-00000.h5"}),
    "unfinished": (lambda copy: (copy / "manifest.json").unlink(), set()),
    "other manifest": (lambda copy: (copy / "manifest.json").write_text("{}"), set()),
    "one too many": (lambda copy: (copy / "shard-00099.h5").write_text("x"), set()),
    "half-written": (lambda copy: (copy / f"{TEMPORARY}shard-00000.h5-1").write_text("x"), set()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_copy_that_is_broken_is_seen_and_made_again_where_it_is(damage: str, split: Path, place: Path) -> None:
    spoil, again = DAMAGE[damage]
    copy = abandoned(split, place)
    before = inodes(copy)
    spoil(copy)
    with staged([Manifest.read(split)], place) as (copy,):
        assert bytes_of(copy) == bytes_of(split)
        shards = [f"shard-{k:05d}.h5" for k in range(NUM_SHARDS)]
        assert {name for name in shards if inodes(copy)[name] != before[name]} <= again


@pytest.mark.parametrize(
    "spoil", [truncate, lambda split: flip(split / "shard-00001.h5"), lambda split: (split / "shard-00001.h5").unlink()]
)
def test_a_split_that_does_not_match_its_manifest_is_named_and_nothing_is_left(
    spoil: Callable[[Path], object], split: Path, place: Path
) -> None:
    spoil(split)
    told = r"data/train/shard-00001.h5 is missing or does not match"
    with pytest.raises(ValueError, match=told) as raised, staged([Manifest.read(split)], place):
        pass
    assert not isinstance(raised.value, Unfit)
    assert left_in(place) == []


def test_too_little_room_is_refused_before_a_byte_is_written(
    sound: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = [Manifest.read(sound / name) for name in ("train", "val")]
    needed = sum(shard["bytes"] for manifest in manifests for shard in manifest.shards)
    monkeypatch.setattr(staging, "room", lambda root: needed - 1)
    monkeypatch.setattr(staging, "pour", None)
    told = rf"needs {needed / 1e9:.3f} GB more, but \S+ has room for {(needed - 1) / 1e9:.3f} GB"
    with pytest.raises(Unfit, match=told), staged(manifests, place):
        pass
    assert left_in(place) == []
    monkeypatch.undo()
    monkeypatch.setattr(staging, "room", lambda root: needed)
    with staged(manifests, place):
        monkeypatch.setattr(staging, "room", lambda root: 0)
        with staged(manifests, place):
            assert len(left_in(place)) == 4, "what stands needs no room"


def test_what_killed_jobs_left_goes_before_room_is_looked_for(
    sound: Path, split: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, own = abandoned(sound / "val", place), abandoned(split, place)
    (own / f"{TEMPORARY}shard-00000.h5-1").write_text("half-written")

    def look(root: Path) -> int:
        assert not other.exists()
        assert set(bytes_of(own)) == set(bytes_of(split))
        return 2**40

    monkeypatch.setattr(staging, "room", look)
    with staged([Manifest.read(split)], place):
        assert left_in(place) == [own.name, f"{own.name}.lock"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), InterruptedError("told to stop")])
@pytest.mark.parametrize("countdown", [1, 3, NUM_SHARDS])
def test_an_error_while_copying_leaves_no_half_copy(error: OSError, countdown: int, split: Path, place: Path) -> None:
    blocks: list[int] = []

    def after_block(num_bytes: int) -> None:
        blocks.append(num_bytes)
        if len(blocks) == countdown:
            raise error

    with pytest.raises(type(error)), staged([Manifest.read(split)], place, after_block=after_block):
        pass
    assert left_in(place) == []


def mode_of_all(root: Path) -> None:
    root.mkdir()
    root.chmod(0o755)


def owned_by_another(root: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give a folder away")
    root.mkdir(mode=0o700)
    os.chown(root, 12345, 12345)


@pytest.mark.parametrize(
    "prepare",
    [
        mode_of_all,
        owned_by_another,
        lambda root: root.write_text("a file"),
        lambda root: root.symlink_to("elsewhere"),
        lambda root: root.symlink_to(root.parent.parent / "data"),
    ],
    ids=["all may read", "of another user", "a file", "a dangling link", "a link to a folder"],
)
def test_a_folder_that_is_not_ours_alone_is_refused(
    prepare: Callable[[Path], object], split: Path, place: Path
) -> None:
    prepare(place / f"deeplense-{os.getuid()}")
    before = bytes_of(split)
    with pytest.raises(Unfit, match="not a folder that belongs to you alone"), staged([Manifest.read(split)], place):
        pass
    assert bytes_of(split) == before
    assert list(split.parent.iterdir()) == [split]


def test_a_place_that_is_not_there_is_named(split: Path, tmp_path: Path) -> None:
    with pytest.raises(Unfit, match=r"nowhere is not a folder"), staged([Manifest.read(split)], tmp_path / "nowhere"):
        pass


def test_a_copy_that_nobody_staged_cannot_be_held(split: Path, place: Path) -> None:
    with pytest.raises(Unfit, match="is gone"), held(Manifest.read(split), place):
        pass
    assert left_in(place) == []


def test_a_copy_that_is_being_made_cannot_be_held_and_asking_for_it_leaves_nothing_open(
    split: Path, place: Path
) -> None:
    manifest = Manifest.read(split)
    copy = staging.own_folder(place) / manifest.dataset_id
    maker = staging.locked(copy, alone=True)
    assert maker is not None
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unfit, match="is being rewritten or removed by another process"), held(manifest, place):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    staging.leave(copy, maker)
    assert left_in(place) == []


def test_of_two_processes_at_the_same_time_one_copies_and_both_read(split: Path, place: Path, start: Start) -> None:
    first = start("wait", split, BLOCKS="2")
    assert first.says() == "copies"
    manifest, waits = Manifest.read(split), []

    def wait(num_bytes: int) -> None:
        waits.append(num_bytes)
        if len(waits) == 2:
            assert waits == [0, 0], "while the other one copies, this one does not"
            first.go_on()

    with staged([manifest], place, after_block=wait) as (copy,):
        before = inodes(copy)
        assert first.says() == "reads"
        second = start("read", split)
        assert second.says() == "reads"
        assert first.leave() == 0
        assert inodes(copy) == before
        assert bytes_of(copy) == bytes_of(split)
    assert inodes(copy) == before
    assert second.leave() == 0
    assert left_in(place) == []


def test_a_copy_that_another_process_reads_is_neither_removed_nor_rewritten(
    sound: Path, split: Path, place: Path, start: Start
) -> None:
    reader = start("read", split)
    assert reader.says() == "reads"
    manifest = Manifest.read(split)
    copy = place / f"deeplense-{os.getuid()}" / manifest.dataset_id
    before = inodes(copy)
    with staged([Manifest.read(sound / "val")], place):
        assert inodes(copy) == before
    flip(copy / "shard-00003.h5")
    with (
        pytest.raises(Unfit, match=r"shard-00003.h5 is damaged, and other processes are using"),
        staged([manifest], place),
    ):
        pass
    assert inodes(copy) == before
    reader.process.kill()
    reader.process.wait()
    with staged([manifest], place):
        assert bytes_of(copy) == bytes_of(split)
    assert left_in(place) == []


@pytest.mark.parametrize("blocks", range(1, NUM_SHARDS + 1))
def test_after_a_kill_in_the_middle_the_next_one_succeeds_and_nothing_is_left(
    blocks: int, split: Path, place: Path, start: Start
) -> None:
    killed = start("die", split, BLOCKS=str(blocks))
    assert killed.process.wait(60) == -signal.SIGKILL
    assert left_in(place), "the negative control: it left something"
    assert not list(place.rglob("manifest.json"))
    with staged([Manifest.read(split)], place) as (copy,):
        assert bytes_of(copy) == bytes_of(split)
    assert left_in(place) == []


def test_a_kill_while_a_broken_copy_is_mended_leaves_one_that_names_itself_unfinished(
    split: Path, place: Path, start: Start
) -> None:
    copy = abandoned(split, place)
    truncate(copy)
    assert start("die", split, BLOCKS=str(NUM_SHARDS)).process.wait(60) == -signal.SIGKILL
    assert not (copy / "manifest.json").exists()
    with staged([Manifest.read(split)], place):
        assert bytes_of(copy) == bytes_of(split)


def interrupt(monkeypatch: pytest.MonkeyPatch, operation: int, action: Callable[[int], object]) -> None:
    """Have something happen just before the next time that a lock is asked for in this way."""
    flock, left = fcntl.flock, [action]

    def wait_and_lock(descriptor: int, asked: int) -> None:
        if asked == operation and left:
            left.pop()(descriptor)
        flock(descriptor, asked)

    monkeypatch.setattr(fcntl, "flock", wait_and_lock)


def test_a_lock_of_a_copy_that_was_removed_in_the_meantime_is_none(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = place / "copy"
    interrupt(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB, lambda descriptor: staging.lock_of(copy).unlink())
    descriptor = staging.locked(copy, alone=True)
    assert descriptor is not None
    assert staging.is_lock_of(copy, descriptor)
    assert staging.locked(copy, alone=False) is None
    os.close(descriptor)


def test_a_copy_that_another_removes_between_the_two_locks_is_made_again(
    split: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, removed = Manifest.read(split), []

    def another_comes_and_leaves(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        with staged([manifest], place) as (copy,):
            pass
        removed.append(not copy.exists())

    interrupt(monkeypatch, fcntl.LOCK_SH, another_comes_and_leaves)
    with staged([manifest], place) as (copy,):
        assert removed == [True]
        assert bytes_of(copy) == bytes_of(split)
    assert left_in(place) == []


def test_who_leaves_late_does_not_remove_what_another_made_in_the_meantime(
    split: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(split)

    def one_removes_and_another_makes(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        staging.tidy(place / f"deeplense-{os.getuid()}", keep=[])
        assert left_in(place) == []
        another.enter_context(staged([manifest], place))

    with ExitStack() as another:
        with staged([manifest], place) as (copy,):
            interrupt(monkeypatch, fcntl.LOCK_EX | fcntl.LOCK_NB, one_removes_and_another_makes)
        assert bytes_of(copy) == bytes_of(split)
    assert left_in(place) == []


def test_many_who_come_and_go_and_are_killed_always_read_whole_copies(
    sound: Path, split: Path, place: Path, start: Start
) -> None:
    killed = [start("die", split, BLOCKS=str(blocks), SEED=str(blocks)) for blocks in (2, 9)]
    living = [start("again", split, sound / "val", SEED=str(seed)) for seed in range(4)]
    assert [reader.process.wait(120) for reader in living] == [0] * 4
    for reader in killed:
        reader.process.kill()
        reader.process.wait()
    with staged([Manifest.read(split)], place) as (copy,):
        assert bytes_of(copy) == bytes_of(split)
    assert left_in(place) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm")
def test_a_copy_in_memory_is_one_too(split: Path) -> None:
    with staged([Manifest.read(split)], Path("/dev/shm")) as (copy,):
        assert bytes_of(copy) == bytes_of(split)
    assert not copy.exists()
    assert not staging.lock_of(copy).exists()
    with suppress(OSError):
        copy.parent.rmdir()
