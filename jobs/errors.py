"""Conversion of errors to messages. An error that a user or a machine can cause becomes one line that names the file
and says what to do. Any other error is a bug of deeplense and keeps its traceback."""

import contextlib
import csv
import errno
import os
import subprocess
import sys
import zipfile
import zlib
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import yaml

from jobs.runs.attempts import EXIT_DISK_FULL, EXIT_READ_ONLY, EXIT_REFUSED, NUMBER

EXIT_CRASHED = 1
"""Exit code of an attempt that a launcher starts again, because the error may be temporary."""
EXIT_PIPE = 141
"""Exit code of a command whose output pipe was closed by the reader, as in a shell."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
ADVICE = {
    errno.ENOENT: "Correct the path.",
    errno.EACCES: "You have no read or write permission there; ask for it, or give another path.",
    errno.EPERM: "You have no permission to do that there; ask for it, or give another path.",
    errno.EISDIR: "That is a folder; give the path of a file, or remove the folder.",
    errno.ENOTDIR: "A part of that path is a file, not a folder; give another path.",
    errno.EEXIST: "That name is already in use; give another path, or remove the existing file or folder.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ELOOP: "The symbolic links there form a loop; give the real path.",
    errno.EROFS: "The file system is read-only; give a path on another file system.",
    errno.EMFILE: "This process has too many open files; raise the limit with `ulimit -n`.",
    errno.ENFILE: "This machine has too many open files; close other programs.",
    errno.ENOMEM: "Close other programs, or request more memory.",
    errno.EADDRINUSE: "Another program uses that address; try again.",
}
AGAIN = "Try again; if the error persists, ask the administrators of the file system."
FORMATS = (yaml.YAMLError, csv.Error, zipfile.BadZipFile, zlib.error, UnpicklingError, EOFError)
LIBRARIES = ("wandb.errors", "safetensors_rust", "safetensors", "PIL")
"""Packages whose own errors are always caused by their input."""
NO_MEMORY = "use a smaller --batch_size or more --gradient_accumulation, or request more memory"


@dataclass(frozen=True)
class Told:
    """The one-line message of an error, and the exit code of the command."""

    message: str
    code: int


def told_of(error: BaseException) -> Told | None:
    """Return the message and exit code of an error; None for a bug of deeplense."""
    if isinstance(error, KeyboardInterrupt):
        return Told("interrupted; complete output is kept. Run the same command again to resume", 130)
    if isinstance(error, ValueError | subprocess.CalledProcessError):
        return Told(one_line(error), EXIT_REFUSED)
    if isinstance(error, OSError):
        return told_of_file(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Told(f"out of memory ({one_line(error)}); {NO_MEMORY}.", may_pass())
    if isinstance(error, BrokenExecutor):
        return Told("a worker process was killed, possibly for lack of memory; use fewer workers.", may_pass())
    if isinstance(error, FORMATS) or type(error).__module__.startswith(LIBRARIES):
        return Told(f"a file or a response cannot be read: {one_line(error)}.", EXIT_REFUSED)
    return None


def told_of_file(error: OSError) -> Told:
    """Return the message and exit code of a file system error."""
    if error.errno in DISK_FULL:
        stands = "the last checkpoint is kept. Free some space, then run the same command again to resume."
        return Told(f"{one_line(error)}; {stands}", EXIT_DISK_FULL)
    if error.errno == errno.EPIPE and is_gone():
        return Told("", EXIT_PIPE)
    if "AF_UNIX path too long" in str(error):
        folder = os.environ.get("TMPDIR", "")
        return Told(f"TMPDIR={folder} is too long for the sockets of processes; give a shorter one, such as /tmp.", 2)
    if error.errno is None or error.filename is None:
        return Told(f"{one_line(error)}. {ADVICE.get(error.errno or 0, AGAIN)}", may_pass())
    read_only = error.errno == errno.EROFS and NUMBER in os.environ
    code = EXIT_READ_ONLY if read_only else may_pass()
    names = " and ".join(shown(name) for name in (error.filename, error.filename2) if name is not None)
    return Told(f"{names}: {error.strerror}. {ADVICE.get(error.errno, AGAIN)}", code)


def shown(name: object) -> str:
    """Return a file name in which unprintable characters are escaped."""
    text = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    return text if text.isprintable() else repr(text)


def may_pass() -> int:
    """Return the exit code of an error that may be temporary: a launcher restarts the attempt, a user sees an error.
    Invalid settings and data raise ValueError, after which no launcher restarts the attempt."""
    return EXIT_CRASHED if NUMBER in os.environ else EXIT_REFUSED


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line; for an error in a data loader process, the last line of its
    traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


def is_gone() -> bool:
    """Whether the reader of the output has closed the pipe. If so, further output is discarded."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


SAYS = "DEEPLENSE_SAYS"
"""Environment variable with a folder where ranks write their error messages for the process that started them."""


def say(told: Told) -> int:
    """Print an error and return the exit code. Rank 0 prints to stderr. Other ranks print to their own log if they have
    one. Every rank also writes its message to the folder in `SAYS`, for the process that started the ranks."""
    rank, folder = os.environ.get("RANK", "0"), os.environ.get(SAYS)
    line = f"deeplense: {told.message if rank == '0' else f'rank {rank}: {told.message}'}\n"
    line = line.encode(errors="backslashreplace").decode()
    if told.message and (rank == "0" or NUMBER in os.environ):
        sys.stderr.write(line)
    if told.message and folder:
        with contextlib.suppress(OSError):
            Path(folder, f"rank_{rank}").write_text(f"{told.message}\n", errors="backslashreplace")
    return told.code
