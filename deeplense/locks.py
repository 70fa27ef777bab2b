"""A lock on a folder: one process writes in it at a time, and others learn which one.

The lock is a file. A process on the same machine is identified by its number and start time. A process on another
machine counts as alive as long as it renews the time of the file: this works on file systems without locks, and no two
clocks are compared.
"""

import contextlib
import getpass
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from deeplense.files import TEMPORARY
from deeplense.records import line_of, read_record

SECONDS_BETWEEN_BEATS, SECONDS_OF_A_LEASE = 5.0, 60.0
KINDS = {"host": str, "machine": str, "pid": int, "started": int | float, "user": str, "since": str}
TRIES = 20
Facts = Mapping[str, Any]


class Held(ValueError):
    """Another process holds the lock; `holder` is the content of its file, empty if that is damaged.

    Args:
        path: file of the lock.
        holder: facts about the holder.
    """

    def __init__(self, path: Path, holder: Facts) -> None:
        super().__init__(f"{path.parent} is being written by {in_words(holder)} ({path.name}).")
        self.holder = holder


class Lock:
    """A lock that this process takes and releases; a thread renews it meanwhile.

    Args:
        path: file of the lock.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = Lock(Path(folder) / "lock.json")
        ...     lock.take({"job": "train"})
        ...     print(lock.path.exists())
        ...     lock.release()
        ...     lock.path.exists()
        True
        False
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = b""
        self.process = os.getpid()
        self.over = threading.Event()

    def take(
        self,
        facts: Facts,
        *,
        may_replace: Callable[[Facts], bool] = lambda holder: False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Take the lock. It replaces a lock whose process has ended, or that `may_replace` accepts.

        Args:
            facts: further facts about this holder, JSON values.
            may_replace: whether a lock with these facts may be replaced.
            tell: prints a message while waiting.

        Raises:
            Held: another process holds the lock; to find this out may take up to 60 s.
        """
        for _ in range(TRIES):
            content = line_of(holder_of_now() | dict(facts))
            if create(self.path, content):
                self.content = content.encode()
                threading.Thread(target=self.renew, daemon=True).start()
                return
            with contextlib.suppress(FileNotFoundError):
                seen = self.path.read_bytes()
                holder = read_holder(self.path)
                if not may_replace(holder) and is_alive(self.path, holder, tell):
                    raise Held(self.path, holder)
                clear(self.path, seen)
        raise Held(self.path, read_holder(self.path) if self.path.exists() else {})

    def renew(self) -> None:
        """Renew the time of the file until the lock is released, or another has replaced it."""
        while not self.over.wait(SECONDS_BETWEEN_BEATS):
            with contextlib.suppress(OSError):
                if self.path.read_bytes() != self.content:
                    return
                os.utime(self.path)

    def release(self) -> None:
        """Give the lock back, unless another has replaced it."""
        self.over.set()
        with contextlib.suppress(OSError):
            if self.process == os.getpid() and self.content and self.path.read_bytes() == self.content:
                self.path.unlink()
        self.content = b""


def holder_of_now() -> dict[str, Any]:
    """Return the content of a lock of this process."""
    return {
        "host": platform.node(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "user": user(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def machine() -> str:
    """Return a name that differs between machines, their boots, and containers with processes of their own."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def user() -> str:
    """Return the name of the user, or the number of a user without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def read_holder(path: Path) -> dict[str, Any]:
    """Return the content of a lock; empty if it is damaged."""
    try:
        return read_record(path, KINDS)
    except ValueError:
        return {}


def in_words(holder: Facts) -> str:
    """Return who holds a lock, and since when, in words."""
    if not holder:
        return "an unknown process (its lock file is damaged)"
    return f"process {holder['pid']} of {holder['user']} on {holder['host']}, since {holder['since']}"


def create(path: Path, content: str) -> bool:
    """Create a file with this content, unless it exists; returns whether it was created.

    Args:
        path: file to create.
        content: its text.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    temporary.write_text(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        return create_without_links(path, content)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def create_without_links(path: Path, content: str) -> bool:
    """Do the same on a file system without hard links: others may see the file before its content.

    Args:
        path: file to create.
        content: its text.
    """
    try:
        with path.open("x") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def is_alive(path: Path, holder: Facts, tell: Callable[[str], None] = lambda text: None) -> bool:
    """Whether the process that holds a lock is alive.

    Args:
        path: file of the lock.
        holder: its content.
        tell: prints a message while waiting.

    Raises:
        FileNotFoundError: the lock is released meanwhile.
    """
    if holder and holder["machine"] == machine():
        return is_process(holder["pid"], holder["started"])
    left = SECONDS_OF_A_LEASE - age(path)
    if left > 0:
        tell(f"{path.parent} may be in use by {in_words(holder)}; checking for up to {left:.0f} s")
    before, deadline = path.stat().st_mtime_ns, time.monotonic() + left
    while time.monotonic() < deadline:
        if path.stat().st_mtime_ns != before:
            return True
        time.sleep(min(0.5, SECONDS_BETWEEN_BEATS))
    return False


def is_process(pid: int, started: float) -> bool:
    """Whether a process exists, has this start time and has not ended.

    Args:
        pid: number of the process.
        started: its start time in seconds since the epoch.
    """
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError, OverflowError):
        return False


def age(path: Path) -> float:
    """Return the seconds since the time of a file, by the clock of the file system."""
    probe = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    probe.touch()
    try:
        return max(probe.stat().st_mtime - path.stat().st_mtime, 0.0)
    finally:
        probe.unlink(missing_ok=True)


def clear(path: Path, seen: bytes) -> None:
    """Remove a lock, unless another process has taken it meanwhile.

    Args:
        path: file of the lock.
        seen: its content when it was read.
    """
    aside = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    path.rename(aside)
    if aside.read_bytes() != seen:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
