"""Which shards were verified, so that no byte is read again for that: a small file per split in the user's cache, bound
to path, size, times, inode and expected checksum of each shard.

$XDG_CACHE_HOME/deeplense/checked/<hash of the folder>.json        (~/.cache if it is not set)

The cache is optional: if it cannot be read or written, the shards are read again.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from deeplense.data.shards import REMAKE, Manifest
from deeplense.files import checksum, remove

NUM_THREADS = 4
MOST_SPLITS = 256
SECONDS_TO_SETTLE = 2.0
"""A file that was changed within this time before it was read may be changed again without a new time."""
MOST_SECONDS_TO_WAIT, SECONDS_BETWEEN_LOOKS = 600.0, 0.1

Line = dict[str, Any]


def require_sound(manifest: Manifest) -> None:
    """Compare each shard with its checksum in the manifest, unless it was verified before and has not changed since.
    One process of a machine reads, and the others wait for its result.

    Raises ValueError, naming the shard, if one does not match.
    """
    if not unknown(manifest):
        return
    with alone(lambda: not unknown(manifest)):
        begun = time.time()
        lines = unknown(manifest)
        before = [stamp(manifest, line) for line in lines]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(lambda line: refuse_damaged(manifest, line), lines))
        settled = {
            line["file"]: seen
            for line, seen in zip(lines, before, strict=True)
            if seen == stamp(manifest, line) and seen[-1] < (begun - SECONDS_TO_SETTLE) * 1e9
        }
        remember(manifest, settled)


def refuse_damaged(manifest: Manifest, line: Line) -> None:
    """Raise an error unless a shard matches its checksum.

    Args:
        manifest: manifest of the split.
        line: entry of the shard.

    Raises:
        ValueError: it does not match, or cannot be read; the message names it.
    """
    path = manifest.folder / line["file"]
    try:
        found = checksum(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); run `deeplense verify` for details.") from error
    if found != line["xxh3_128"]:
        dataset = manifest.folder.parent
        raise ValueError(
            f"{path} does not match its checksum, so it is damaged. `deeplense verify {dataset}` lists all damaged "
            f"files; copy this file again from its origin, or {REMAKE}."
        )


def unknown(manifest: Manifest) -> list[Line]:
    """Return the shards that were not verified, or have changed since."""
    known = recalled(manifest)
    return [line for line in manifest.shards if known.get(line["file"]) != stamp(manifest, line)]


def stamp(manifest: Manifest, line: Line) -> list[Any]:
    """Return the expected checksum of a shard, and the file's size, inode and times. A missing file equals no other.

    Args:
        manifest: manifest of the split.
        line: entry of the shard.
    """
    with contextlib.suppress(OSError):
        found = (manifest.folder / line["file"]).stat()
        return [line["xxh3_128"], found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
    return ["missing", 0, 0, time.time_ns(), 0]


def cache() -> Path:
    """Return the folder of the cache. Raises RuntimeError if the user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "deeplense" / "checked"


def file_of(manifest: Manifest) -> Path:
    """Return the file of the cache for a split."""
    return cache() / f"{xxhash.xxh3_128_hexdigest(os.fsencode(os.path.realpath(manifest.folder)))}.json"


def recalled(manifest: Manifest) -> dict[str, list[Any]]:
    """Return the stamp of each verified shard of a split, from the time of its verification."""
    try:
        content = json.loads(file_of(manifest).read_text())
        return content["shards"] if content["folder"] == os.path.realpath(manifest.folder) else {}
    except Exception:  # never needed, and whatever is wrong with it, it is made anew
        return {}


def remember(manifest: Manifest, found: dict[str, list[Any]]) -> None:
    """Record the stamps of verified shards; splits that were not used for the longest time are removed.

    Args:
        manifest: manifest of the split.
        found: stamps by file name.
    """
    with contextlib.suppress(OSError, RuntimeError):
        path = file_of(manifest)
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {line["file"]: line for line in manifest.shards}
        kept = {name: seen for name, seen in recalled(manifest).items() if name in known} | found
        # Not synced, as files that must survive are: a torn one is as none.
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            temporary.write_text(json.dumps({"folder": os.path.realpath(manifest.folder), "shards": kept}))
            temporary.replace(path)
        finally:
            remove(temporary)
        forget(path.parent)


def forget(folder: Path) -> None:
    """Keep the newest `MOST_SPLITS` files only."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in files[:-MOST_SPLITS]:
        path.unlink(missing_ok=True)


@contextmanager
def alone(is_done: Callable[[], bool]) -> Iterator[None]:
    """Let one process of this machine in at a time; one that waited need not work if everything is done by then. A
    process that waited too long, or cannot lock, goes in."""
    with contextlib.ExitStack() as leaving:
        with contextlib.suppress(OSError, RuntimeError):
            cache().mkdir(parents=True, exist_ok=True)
            lock = cache() / f"{socket.gethostname()}.lock"
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            leaving.callback(os.close, descriptor)
            wait_for(descriptor, is_done)
        yield


def wait_for(descriptor: int, is_done: Callable[[], bool]) -> None:
    """Hold a lock, or wait until there is nothing to do, for a limited time.

    Args:
        descriptor: open lock file.
        is_done: whether there is nothing to do.

    Raises:
        OSError: files cannot be locked.
    """
    until = time.monotonic() + MOST_SECONDS_TO_WAIT
    while time.monotonic() < until:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if is_done():
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)
