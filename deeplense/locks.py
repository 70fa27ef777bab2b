"""A lock on a folder: one process writes in it at a time, and others learn which.

The lock is a file. Of a process on the same machine its number and its start tell whether it lives. A process on
another machine lives as long as it renews the time of the file: so file systems that know no locks do, and no two
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
    """Another process holds the lock; `holder` is what its file says, empty where that is damaged."""

    def __init__(self, path: Path, holder: Facts) -> None:
        super().__init__(f"{path.parent} is being written by {in_words(holder)} ({path.name}).")
        self.holder = holder


class Lock:
    """A lock that this process takes and releases; a thread renews it meanwhile."""

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
        """Take the lock, with further facts about the holder. One whose process is gone is replaced, and one that
        `may_replace` says of. Raises Held where another process has it; to know that may take a lease."""
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
    """What a lock says of this process."""
    return {
        "host": platform.node(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "user": user(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def machine() -> str:
    """What tells machines, their starts, and containers with processes of their own apart."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def user() -> str:
    """The name of the user, or the number of one without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def read_holder(path: Path) -> dict[str, Any]:
    """What a lock says of its holder; nothing where it is damaged."""
    try:
        return read_record(path, KINDS)
    except ValueError:
        return {}


def in_words(holder: Facts) -> str:
    """Who holds a lock, and since when."""
    if not holder:
        return "a process that its lock does not name, for the lock is damaged"
    return f"process {holder['pid']} of {holder['user']} on {holder['host']}, since {holder['since']}"


def create(path: Path, content: str) -> bool:
    """Make a file with this content, unless there is one; returns whether it was made."""
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
    """The same where the file system has no hard links: others may see the file before its content."""
    try:
        with path.open("x") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def is_alive(path: Path, holder: Facts, tell: Callable[[str], None] = lambda text: None) -> bool:
    """Whether the process that holds a lock lives. Raises FileNotFoundError where the lock is released meanwhile."""
    if holder and holder["machine"] == machine():
        return is_process(holder["pid"], holder["started"])
    left = SECONDS_OF_A_LEASE - age(path)
    if left > 0:
        tell(f"{path.parent} may be in use by {in_words(holder)}; looking for up to {left:.0f} s whether it is")
    before, deadline = path.stat().st_mtime_ns, time.monotonic() + left
    while time.monotonic() < deadline:
        if path.stat().st_mtime_ns != before:
            return True
        time.sleep(min(0.5, SECONDS_BETWEEN_BEATS))
    return False


def is_process(pid: int, started: float) -> bool:
    """Whether there is such a process, which began at this time and has not ended."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError, OverflowError):
        return False


def age(path: Path) -> float:
    """Seconds since the time of a file, by the clock of the file system."""
    probe = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    probe.touch()
    try:
        return max(probe.stat().st_mtime - path.stat().st_mtime, 0.0)
    finally:
        probe.unlink(missing_ok=True)


def clear(path: Path, seen: bytes) -> None:
    """Remove the lock that was seen; one that another process has taken meanwhile stays."""
    aside = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    path.rename(aside)
    if aside.read_bytes() != seen:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
