"""The end of an attempt that hangs: without a step for too long, each rank tells what it was doing and leaves."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

from jobs.attempts import EXIT_HUNG, FOLDER, NUMBER, STACKS

SECONDS_FOR_OTHERS = 5.0


class Watchdog:
    """Context manager that ends the process with exit code 86 when `beat` is not called for so many minutes; 0 for
    never.

    The stacks of all threads go to stderr and to `RUN/stacks/`. A second clock, that Python's lock cannot hold up, does
    the same a little later. Ranks of the same attempt on this machine that were stopped are woken, to tell theirs.
    """

    def __init__(self, run: Path, *, minutes: float) -> None:
        self.file = run / STACKS / f"attempt_{os.environ.get(NUMBER, '0')}_rank_{os.environ.get('RANK', '0')}.txt"
        self.seconds, self.minutes = 60 * minutes, minutes
        self.last = time.monotonic()
        self.over, self.given_up = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self.arm()
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        if self.seconds:
            self.thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """The job goes on; unless it has been given up, then it waits here for its end."""
        if self.given_up.is_set():
            threading.Event().wait()
        self.last = time.monotonic()

    def arm(self) -> None:
        """Set the second clock."""
        faulthandler.dump_traceback_later(self.seconds + 2 * SECONDS_FOR_OTHERS, exit=True)

    def watch(self) -> None:
        """Wait for the end, or for a beat that does not come."""
        interval = min(self.seconds / 10, 1.0)
        while not self.over.wait(interval):
            self.arm()
            if time.monotonic() - self.last > self.seconds:
                self.end()

    def end(self) -> None:
        """Tell what all threads do, wait for the other ranks to tell it too, the stopped ones last, and leave."""
        self.given_up.set()
        sys.stderr.write(f"no step for {self.minutes:g} minutes (rank {os.environ.get('RANK', '0')}); its threads:\n")
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
    """Whether a rank of this attempt told that it hangs."""
    return any((run / STACKS).glob(f"attempt_{number}_rank_*.txt"))
