"""The one door for errors: what a user or a machine can cause becomes one line that names the file and says what to do.
What is not known here is our own bug, and keeps its traceback."""

import csv
import errno
import os
import subprocess
import sys
import zipfile
import zlib
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pickle import UnpicklingError

import yaml

from jobs.attempts import EXIT_DISK_FULL, EXIT_REFUSED, NUMBER

EXIT_CRASHED = 1
"""Exit code of an attempt that a launcher starts again, for what went wrong may pass."""
EXIT_PIPE = 141
"""Exit code of a command whose reader has gone, as a shell has it."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
ADVICE = {
    errno.ENOENT: "Correct the path.",
    errno.EACCES: "You may not read or write there; ask for the right to, or give another path.",
    errno.EPERM: "You may not do that there; ask for the right to, or give another path.",
    errno.EISDIR: "That is a folder; give the path of a file, or remove it.",
    errno.ENOTDIR: "A part of that path is a file, not a folder; give another path.",
    errno.EEXIST: "Something else has that name; give another path, or remove it.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ELOOP: "The symbolic links there lead to each other; give the path itself.",
    errno.EROFS: "Nothing can be written there; give a path on another file system.",
    errno.EMFILE: "This process has too many files open; raise the limit with `ulimit -n`.",
    errno.ENFILE: "This machine has too many files open; end other programs.",
    errno.ENOMEM: "End other programs, or ask for more memory.",
    errno.EADDRINUSE: "Another program listens there; try again.",
}
AGAIN = "Try again; if it stays so, ask those who look after the file system."
FORMATS = (yaml.YAMLError, csv.Error, zipfile.BadZipFile, zlib.error, UnpicklingError, EOFError)
LIBRARIES = ("wandb.errors", "safetensors_rust", "safetensors", "PIL")
"""Packages whose own errors are always of what they were given."""
NO_MEMORY = "use a smaller --batch_size or more --gradient_accumulation, or ask for more memory"


@dataclass(frozen=True)
class Told:
    """What a command says of an error, in one line, and the code that it ends with."""

    message: str
    code: int


def told_of(error: BaseException) -> Told | None:
    """What is said of an error; None for our own bugs."""
    if isinstance(error, KeyboardInterrupt):
        return Told("interrupted; what is whole stays, and the same command continues", 130)
    if isinstance(error, ValueError | subprocess.CalledProcessError):
        return Told(one_line(error), EXIT_REFUSED)
    if isinstance(error, OSError):
        return told_of_file(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Told(f"the memory is not enough ({one_line(error)}); {NO_MEMORY}.", may_pass())
    if isinstance(error, BrokenExecutor):
        return Told("a process that worked for this one was killed, as where memory runs out; use fewer.", may_pass())
    if isinstance(error, FORMATS) or type(error).__module__.startswith(LIBRARIES):
        return Told(f"a file cannot be read or an answer understood: {one_line(error)}.", EXIT_REFUSED)
    return None


def told_of_file(error: OSError) -> Told:
    """What is said of an error of the file system."""
    if error.errno in DISK_FULL:
        stands = "the last checkpoint stands. Make room, and the same command continues."
        return Told(f"{one_line(error)}; {stands}", EXIT_DISK_FULL)
    if error.errno == errno.EPIPE and is_gone():
        return Told("", EXIT_PIPE)
    if "AF_UNIX path too long" in str(error):
        folder = os.environ.get("TMPDIR", "")
        return Told(f"TMPDIR={folder} is too long for the sockets of processes; give a shorter one, as /tmp.", 2)
    if error.errno is None or error.filename is None:
        return Told(f"{one_line(error)}. {ADVICE.get(error.errno or 0, AGAIN)}", may_pass())
    names = " and ".join(shown(name) for name in (error.filename, error.filename2) if name is not None)
    return Told(f"{names}: {error.strerror}. {ADVICE.get(error.errno, AGAIN)}", may_pass())


def shown(name: object) -> str:
    """The name of a file, with what cannot be printed written out."""
    text = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    return text if text.isprintable() else repr(text)


def may_pass() -> int:
    """The code for what may be different next time: a launcher starts the attempt again, a user sees that it is over.
    What is wrong with settings and data is a ValueError, which no launcher repeats."""
    return EXIT_CRASHED if NUMBER in os.environ else EXIT_REFUSED


def one_line(error: BaseException) -> str:
    """What an error says, in one line; of one from a process of the loader the last line of its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


def is_gone() -> bool:
    """Whether nobody reads the output any more; then nothing more is written there."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def say(told: Told) -> int:
    """Say what is wrong, on the first rank; returns the exit code."""
    rank, line = os.environ.get("RANK", "0"), f"deeplense: {told.message}\n"
    if told.message and rank == "0":
        sys.stderr.write(line.encode(errors="backslashreplace").decode())
    return told.code
