"""The one way a file that must survive is written: beside, synced, then renamed into place; and how files are found
where others write so."""

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
    """Give a temporary path beside `path`; on success it takes the place of `path` at once, on failure it goes.

    What is written there may be a file or a folder. A reader, or a restart after a kill at any moment, sees the old
    content or the new one, whole. (A folder in the way is moved aside just before the rename.)
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
    """Hold a folder, made if need be, against other processes that want it so; the lock ends with the process. An empty
    folder is removed in the end. Several may hold it at a time where all say `shared`.

    Raises ValueError where another process holds it, and where it cannot be made or written. Where the file system
    knows no locks, the folder is not held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error.strerror}); give another folder.") from error
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
    """Lock an open folder. Raises ValueError where another process has, or where it may not be written."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} may not be written by this user; give another folder.")
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"another process is writing {folder} now. Wait for it, stop it, or give another folder."
        ) from error
    except OSError:
        return


def exchange(first: Path, second: Path) -> None:
    """Let two paths change places at once (Linux); where the file system cannot, by three renames."""
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
    """Force a file, or a folder with all that is in it, to the disk."""
    for inner in path.rglob("*") if path.is_dir() else ():
        sync(inner)
    sync(path)


def sync(path: Path) -> None:
    """Force one file, or the entries of one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left half-written in a folder. Only the folder's single writer may call this."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        remove(leftover)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def find_below(root: Path, name: str) -> list[Path]:
    """All files of a name at or below a folder, in order. What vanishes meanwhile, as unfinished checkpoints do, is
    left out, where `Path.rglob` raises FileNotFoundError before Python 3.13."""
    return sorted(Path(folder) / name for folder, _, files in os.walk(root) if name in files)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError, naming the file, where it is not JSON, or nested too deeply."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); it is damaged or of another program.") from error


def inside(folder: Path, name: object, *, record: Path) -> Path:
    """The path of a file of a folder that a record names, which may come from anyone.

    Raises ValueError, naming the record, unless the name is a plain one (no folder in it, no control character) and
    what stands there, if anything does, is no symbolic link that leads out of the folder.
    """
    if not is_plain(name):
        raise ValueError(
            f"{record} names the file {name!r}, which is no plain name of a file beside it; do not use it."
        )
    path = folder / str(name)
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{path} is a symbolic link that leads out of its folder; put the file itself there.")
    return path


def is_plain(name: object) -> bool:
    """Whether this is the name of a file in a folder, and can be of no other place: text without `/`, not `.` or `..`,
    of characters that can be printed, and short enough for a file system."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and name.isprintable()
        and len(name.encode(errors="surrogatepass")) <= LONGEST_NAME
    )


def checksum(path: Path) -> str:
    """The xxh3-128 hash of a file's bytes, in hexadecimal."""
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """The same value with null for numbers that are not finite, which JSON does not know."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
