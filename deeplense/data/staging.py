"""Copies of splits on this machine, in memory or on its disk: made once, shared by all readers, removed afterwards.

PLACE/deeplense-<user id>/<data set id>/manifest.json shard-*.h5 PLACE/deeplense-<user id>/<data set id>.lock      held
exclusively to make or remove the copy, shared to read it

The kernel releases the locks of a process that ends, in whatever way, so a copy without a lock has no reader: the next
process that stages something here takes it over, or removes it.
"""

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from deeplense.data.room import room
from deeplense.data.shards import MANIFEST, Manifest
from deeplense.files import inside, remove, remove_leftovers, replacing

LOCK = ".lock"
NUM_THREADS = 4
BLOCK_BYTES = 2**22
SECONDS_BETWEEN_LOOKS = 0.1

AfterBlock = Callable[[int], None]


class Unfit(ValueError):
    """A place that cannot hold the copy, for a reason that the user can fix."""


@contextmanager
def staged(
    manifests: Sequence[Manifest], place: Path, *, after_block: AfterBlock = lambda num_bytes: None
) -> Iterator[list[Path]]:
    """Yield verified copies of some splits in a folder of this machine, for the duration of the context.

    An existing copy is verified and used; broken parts are copied again. If another process makes the same copy, this
    one waits for it. The last process to leave removes it.

    Args:
        manifests: manifests as read beside the shards.
        place: folder such as /dev/shm.
        after_block: called with the bytes of each block that was copied or verified, and with 0 now and then while
            waiting, from several threads; an exception in it ends the staging.

    Raises:
        Unfit: the place is not a folder, has too little room, or its copy belongs to another user or is broken and in
            use. Nothing was copied.
        ValueError: a shard does not match its manifest. The copy is removed.
        OSError: the place filled up meanwhile. The copy is removed.
    """
    root = own_folder(place)
    copies = [root / manifest.dataset_id for manifest in manifests]
    tidy(root, keep=copies)
    require_room(root, sum(missing_bytes(*pair) for pair in zip(manifests, copies, strict=True)))
    with ExitStack() as leaving:
        for manifest, copy in zip(manifests, copies, strict=True):
            leaving.callback(leave, copy, make_or_join(manifest, copy, after_block))
        yield copies


@contextmanager
def held(manifest: Manifest, place: Path) -> Iterator[Path]:
    """Yield the copy that another process has staged; it stays for the duration of the context.

    Args:
        manifest: manifest of the split.
        place: folder of the copies.

    Raises:
        Unfit: there is no such copy.
    """
    copy = own_folder(place) / manifest.dataset_id
    descriptor = locked(copy, alone=False)
    if descriptor is None:
        raise Unfit(f"{copy} is being rewritten or removed by another process; run the command again.")
    try:
        if not same_manifest(manifest, copy):
            raise Unfit(f"{copy} is gone or not visible to this process; run the command again, or give --stage none.")
        yield copy
    finally:
        leave(copy, descriptor)


def own_folder(place: Path) -> Path:
    """Return the folder of this user's copies, created if needed. Raises Unfit if others have access to it."""
    if not place.is_dir():
        raise Unfit(f"{place} is not a folder on this machine; give another folder for the copy, or --stage none.")
    root = place / f"deeplense-{os.getuid()}"
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise Unfit(f"{root} is not a folder that belongs to you alone (mode 700); remove it, or give --stage none.")
    return root


def require_room(root: Path, num_bytes: int) -> None:
    """Raise an error unless there is enough free space.

    Args:
        root: folder of the copies.
        num_bytes: bytes that are needed.

    Raises:
        Unfit: there is less.
    """
    if num_bytes > (free := room(root)):
        raise Unfit(
            f"the copy needs {num_bytes / 1e9:.3f} GB more, but {root} has room for {free / 1e9:.3f} GB (a "
            "tenth of the "
            "free space, or of the job's remaining memory limit, is reserved). Request more memory or disk, give "
            "another folder for the copy, or --stage none."
        )


def missing_bytes(manifest: Manifest, copy: Path) -> int:
    """Return the bytes of the shards that a copy lacks, judged by sizes.

    Args:
        manifest: manifest of the split.
        copy: folder of the copy.
    """
    return sum(shard["bytes"] for shard in manifest.shards if size(copy / shard["file"]) != shard["bytes"])


def size(path: Path) -> int | None:
    """Return the bytes of a file; None if it does not exist."""
    with suppress(FileNotFoundError):
        return path.stat().st_size


def tidy(root: Path, *, keep: Sequence[Path]) -> None:
    """Remove copies that nobody holds, except those to keep, and unfinished files of the latter.

    Args:
        root: folder of the copies.
        keep: copies that are needed now.
    """
    for name in {path.name.removesuffix(LOCK) for path in root.iterdir()}:
        copy = root / name
        descriptor = locked(copy, alone=True)
        if descriptor is None:
            continue
        if copy in keep:
            remove_leftovers(copy)
            os.close(descriptor)
        else:
            leave(copy, descriptor)


def make_or_join(manifest: Manifest, copy: Path, after_block: AfterBlock) -> int:
    """Complete a copy, or wait for the process that does; returns the descriptor that holds it.

    Args:
        manifest: manifest of the split.
        copy: folder of the copy.
        after_block: see `staged`.
    """
    while True:
        if (descriptor := locked(copy, alone=True)) is not None:
            try:
                complete(manifest, copy, after_block)
            except BaseException:
                leave(copy, descriptor)
                raise
            # Another process may come in between the two locks, and leave without the copy.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if is_lock_of(copy, descriptor):
                return descriptor
            os.close(descriptor)
        elif (descriptor := locked(copy, alone=False)) is not None and is_sound(
            manifest, copy, descriptor, after_block
        ):
            return descriptor
        after_block(0)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def is_sound(manifest: Manifest, copy: Path, descriptor: int, after_block: AfterBlock) -> bool:
    """Whether a copy that others hold is complete; one that is not is released.

    Args:
        manifest: manifest of the split.
        copy: folder of the copy.
        descriptor: descriptor that holds it.
        after_block: see `staged`.

    Raises:
        Unfit: the copy is damaged.
    """
    sound = False
    try:
        if same_manifest(manifest, copy):
            if wrong := broken(manifest, copy, after_block):
                raise Unfit(
                    f"{copy / wrong[0]['file']} is damaged, and other processes are using this copy; wait until "
                    "they have "
                    "ended, or give --stage none."
                )
            sound = True
    finally:
        if not sound:
            leave(copy, descriptor)
    return sound


def leave(copy: Path, descriptor: int) -> None:
    """Release a copy; the last process to do so removes it.

    Args:
        copy: folder of the copy.
        descriptor: descriptor that holds it.
    """
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_lock_of(copy, descriptor):
                remove(copy)
                lock_of(copy).unlink()
    finally:
        os.close(descriptor)


def lock_of(copy: Path) -> Path:
    """Return the lock file of a copy."""
    return copy.with_name(copy.name + LOCK)


def locked(copy: Path, *, alone: bool) -> int | None:
    """Return a descriptor that holds a copy, or None if other processes prevent that.

    Args:
        copy: folder of the copy.
        alone: True for an exclusive lock, False for a shared one.
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(lock_of(copy), flags, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if is_lock_of(copy, descriptor):
            return descriptor
        os.close(descriptor)


def is_lock_of(copy: Path, descriptor: int) -> bool:
    """Whether a descriptor belongs to the present lock file; removing a copy removes its lock file, too.

    Args:
        copy: folder of the copy.
        descriptor: an open descriptor.
    """
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), lock_of(copy).stat())
    return False


def complete(manifest: Manifest, copy: Path, after_block: AfterBlock) -> None:
    """Complete a copy: its good parts stay, and the manifest is written last. The caller holds an exclusive lock.

    Args:
        manifest: manifest of the split.
        copy: folder of the copy.
        after_block: see `staged`.
    """
    copy.mkdir(exist_ok=True)
    expected = {MANIFEST, *(shard["file"] for shard in manifest.shards)}
    for path in copy.iterdir():
        if path.name not in expected:
            remove(path)
    wrong = broken(manifest, copy, after_block)
    if not wrong and same_manifest(manifest, copy):
        return
    for name in (MANIFEST, *(shard["file"] for shard in wrong)):
        remove(copy / name)
    in_threads(partial(copy_shard, folder=manifest.folder, copy=copy, after_block=after_block), wrong)
    with replacing(copy / MANIFEST) as temporary:
        temporary.write_bytes((manifest.folder / MANIFEST).read_bytes())


def same_manifest(manifest: Manifest, copy: Path) -> bool:
    """Whether the copy has the manifest of the split, and so was complete once.

    Args:
        manifest: manifest of the split.
        copy: folder of the copy.
    """
    with suppress(FileNotFoundError):
        return (copy / MANIFEST).read_bytes() == (manifest.folder / MANIFEST).read_bytes()
    return False


def broken(manifest: Manifest, copy: Path, after_block: AfterBlock) -> list[dict[str, Any]]:
    """Return the shards that are missing in a copy or do not match the manifest.

    Args:
        manifest: manifest of the split.
        copy: folder of the copy.
        after_block: see `staged`.
    """
    right = in_threads(partial(matches, copy=copy, after_block=after_block), manifest.shards)
    return [shard for shard, is_right in zip(manifest.shards, right, strict=True) if not is_right]


def matches(shard: dict[str, Any], *, copy: Path, after_block: AfterBlock) -> bool:
    """Whether size and checksum of a shard of a copy agree with the manifest.

    Args:
        shard: its entry in the manifest.
        copy: folder of the copy.
        after_block: see `staged`.
    """
    path = copy / shard["file"]
    return size(path) == shard["bytes"] and pour(path, None, after_block=after_block) == shard["xxh3_128"]


def copy_shard(shard: dict[str, Any], *, folder: Path, copy: Path, after_block: AfterBlock) -> None:
    """Copy one shard.

    Args:
        shard: its entry in the manifest.
        folder: folder of the split.
        copy: folder of the copy.
        after_block: see `staged`.

    Raises:
        ValueError: the shard does not match the manifest; the message names it.
    """
    source, target_path = (inside(place, shard["file"], record=folder / MANIFEST) for place in (folder, copy))
    with replacing(target_path) as temporary:
        with temporary.open("wb") as target:
            found = pour(source, target, after_block=after_block) if source.exists() else None
        if found != shard["xxh3_128"]:
            raise ValueError(
                f"{source} is missing or does not match its checksum in the manifest; run `deeplense verify` "
                "for details."
            )


def pour(source: Path, target: BinaryIO | None, *, after_block: AfterBlock) -> str:
    """Read a file to its end; returns its xxh3-128 hash in hexadecimal.

    Args:
        source: file to read.
        target: file to write the bytes to; None for none.
        after_block: called with the bytes of each block.
    """
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(BLOCK_BYTES))
    with source.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            if target is not None:
                target.write(buffer[:count])
            after_block(count)
    return digest.hexdigest()


def in_threads(work: Callable[[dict[str, Any]], Any], shards: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the result of some work on each shard; after an error no other shard is started.

    Args:
        work: function of a shard.
        shards: entries in the manifest.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(work, shards))
