"""Atomic file writes: written beside the target, synced to the disk, then renamed into place; and how files are found
in folders where others write this way."""

import ctypes
import fcntl
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

TEMPORARY = ".writing-"
BLOCK = 1 << 20
LONGEST_NAME = 255
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` atomically, on failure it is removed.

    A file or a folder may be written there. A reader, or a restart after a kill at any moment, finds the old content or
    the new one, complete. (An existing folder is moved aside just before the rename.)

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as temporary:
        ...         count = temporary.write_text("complete")
        ...     (Path(folder) / "a.txt").read_text()
        'complete'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        yield temporary
        sync_tree(temporary)
        if path.is_dir():
            exchange(temporary, path)
        else:
            temporary.replace(path)
        sync(path.parent)
    finally:
        remove(temporary)


@contextmanager
def sole_writer(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock a folder, created if needed, against other writers. The lock ends with the process.

    An empty folder is removed in the end. If the file system has no locks, the folder is not locked.

    Args:
        folder: folder to lock.
        shared: whether several processes that all pass `shared` may hold it at a time.

    Raises:
        ValueError: another process holds the folder, or it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ValueError(f"{folder} cannot be created ({error.strerror}); give another folder.") from error
    try:
        lock(folder, descriptor, kind=fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):  # It is not empty, or another has removed it.
                folder.rmdir()
    finally:
        os.close(descriptor)


def lock(folder: Path, descriptor: int, *, kind: int) -> None:
    """Lock an open folder.

    Args:
        folder: its path, for messages.
        descriptor: file descriptor of the open folder.
        kind: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.

    Raises:
        ValueError: another process holds the lock, or this user may not write the folder.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"this user may not write to {folder}; give another folder.")
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"another process is writing {folder} now. Wait for it, stop it, or give another folder."
        ) from error
    except OSError:
        return


def exchange(first: Path, second: Path) -> None:
    """Exchange two paths atomically (Linux); if the file system cannot do that, by three renames.

    Args:
        first: existing file or folder.
        second: existing file or folder.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        done = renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0
    except AttributeError:
        done = False
    if not done:
        aside = first.with_name(f"{first.name}-old")
        second.rename(aside)
        first.rename(second)
        aside.rename(first)


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder with everything in it, to the disk."""
    for inner in path.rglob("*") if path.is_dir() else ():
        sync(inner)
    sync(path)


def sync(path: Path) -> None:
    """Flush one file, or the entries of one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of killed writers from a folder. Only the folder's single writer may call this."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        remove(leftover)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Args:
        path: file to write or replace.
        value: anything that JSON can hold.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "a.json", {"loss": 0.5})
        ...     read_json(Path(folder) / "a.json")
        {'loss': 0.5}
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def find_below(root: Path, name: str) -> list[Path]:
    """Return all files of a name at or below a folder, sorted.

    Folders that vanish meanwhile, as unfinished checkpoints do, are left out; `Path.rglob` raises FileNotFoundError for
    them before Python 3.13.

    Args:
        root: folder to search.
        name: file name without folders.
    """
    return sorted(Path(folder) / name for folder, _, files in os.walk(root) if name in files)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError, naming the file, if it is not JSON or nested too deeply."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); it is damaged or from another program. Restore or remove it."
        ) from error


def inside(folder: Path, name: object, *, record: Path) -> Path:
    """Return the path of a file in a folder that a record names; the record may come from anyone.

    Args:
        folder: folder that the file must be in.
        name: file name as the record gives it.
        record: path of the record, for messages.

    Raises:
        ValueError: the name is not a plain file name (it has a folder or a control character), or the path is a
            symbolic link that leads out of the folder.

    Example:
        >>> str(inside(Path("data"), "shard_0.h5", record=Path("data/manifest.json")))
        'data/shard_0.h5'
    """
    if not is_plain(name):
        raise ValueError(
            f"{record} lists the file {name!r}, which is not a plain file name in the same folder; do not use it."
        )
    path = folder / str(name)
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{path} is a symbolic link that leads out of its folder; replace it with the file itself.")
    return path


def is_plain(name: object) -> bool:
    """Whether a value is a plain file name that can only refer to a file in its folder.

    It is a string without `/`, not `.` or `..`, printable, and short enough for a file system.

    Example:
        >>> is_plain("manifest.json"), is_plain("../secret")
        (True, False)
    """
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and name.isprintable()
        and len(name.encode(errors="surrogatepass")) <= LONGEST_NAME
    )


def checksum(path: Path) -> str:
    """Return the xxh3-128 hash of a file's bytes, in hexadecimal."""
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """Return the same value with None for numbers that are not finite, which JSON does not have.

    Example:
        >>> finite({"loss": float("nan"), "steps": [1, 2.5]})
        {'loss': None, 'steps': [1, 2.5]}
    """
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
