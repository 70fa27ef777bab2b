"""Watchdog of an attempt that hangs: after too long without a step, each rank prints its stack traces and exits."""

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from jobs.runs.attempts import EXIT_HUNG, FOLDER, NUMBER, STACKS

SECONDS_FOR_OTHERS = 5.0
TELL = signal.SIGRTMIN + 5
"""Signal on which a process prints the stack traces of its threads, even while the Python interpreter lock is held."""
GUARD = """
import os, select, signal, sys, time
parent, number, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
limit, seconds = float(sys.argv[4]), float(sys.argv[5])
for told in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(told, signal.SIG_IGN)
left, tick = limit, min(limit / 10, 1.0)
while left > 0:
    if not select.select([0], [], [], tick)[0]:
        left -= tick
    elif os.read(0, 4096):
        left = limit
    else:
        sys.exit()
    if os.getppid() != parent:
        sys.exit()
try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as file:
        file.write("Python's lock was held\\n")
except OSError:
    pass
os.kill(parent, number)
time.sleep(seconds)
os.kill(parent, signal.SIGKILL)
"""
"""Code of a process that kills its parent if the parent has written nothing for this number of seconds. Time in which
this process itself was suspended is not counted."""


class Watchdog:
    """Context manager that ends the process with exit code 86 if `beat` is not called for `minutes` minutes; 0 disables
    it.

    The stack traces of all threads go to stderr and to `RUN/stacks/`. A second timer, in a separate process that the
    Python interpreter lock cannot block, does the same a little later. Stopped ranks of the same attempt on this
    machine are continued, so that they print theirs. Time for which Slurm has suspended the whole job is not counted.
    """

    def __init__(self, run: Path, *, minutes: float) -> None:
        self.run, self.number = run, int(os.environ.get(NUMBER, "0"))
        self.file = run / STACKS / f"attempt_{self.number}_rank_{os.environ.get('RANK', '0')}.txt"
        self.seconds, self.minutes = 60 * minutes, minutes
        self.last = time.monotonic()
        self.over, self.given_up = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self.set_guard()
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        if self.seconds:
            self.thread.join()
            assert self.guard is not None
            self.guard.kill()
            self.guard.communicate()
            faulthandler.unregister(TELL)

    def beat(self) -> None:
        """Report that the job makes progress. If the watchdog has given up already, block until the process ends."""
        if self.given_up.is_set():
            threading.Event().wait()
        self.last = time.monotonic()

    def set_guard(self) -> None:
        """Start the second timer."""
        faulthandler.register(TELL, all_threads=True)
        limit_s = self.seconds + 2 * SECONDS_FOR_OTHERS
        told = (os.getpid(), int(TELL), self.file, limit_s, SECONDS_FOR_OTHERS / 2)
        words = [sys.executable, "-I", "-S", "-c", GUARD, *map(str, told)]
        self.guard = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0)

    def watch(self) -> None:
        """Wait for the end, or until no `beat` arrives in time."""
        interval = min(self.seconds / 10, 1.0)
        seen = time.monotonic()
        while not self.over.wait(interval):
            self.tell_guard()
            now = time.monotonic()
            # This process was suspended. If another rank reports a hang, only this process was, not the whole job.
            if now - seen > 2 * interval and not hung(self.run, self.number):
                self.last += now - seen - interval
            seen = now
            if now - self.last > self.seconds:
                self.end()

    def tell_guard(self) -> None:
        """Reset the second timer."""
        assert self.guard is not None
        assert self.guard.stdin is not None
        with contextlib.suppress(OSError):
            self.guard.stdin.write(b".")

    def end(self) -> None:
        """Print the stack traces of all threads, wait until the other ranks have done so too, the stopped ones last,
        and exit."""
        self.given_up.set()
        sys.stderr.write(
            f"no step for {self.minutes:g} minutes (rank {os.environ.get('RANK', '0')}); stack traces of its threads:\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        time.sleep(SECONDS_FOR_OTHERS / 2)
        wake_others()
        time.sleep(SECONDS_FOR_OTHERS / 2)
        os._exit(EXIT_HUNG)


def wake_others() -> None:
    """Continue the stopped processes of this attempt on this machine."""
    folder = os.environ.get(FOLDER)
    wanted = f"{FOLDER}={folder}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ") if folder else ():
        with contextlib.suppress(OSError):
            if wanted in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGCONT)


def hung(run: Path, number: int) -> bool:
    """Whether a rank of this attempt has reported that it hangs."""
    return any((run / STACKS).glob(f"attempt_{number}_rank_*.txt"))
