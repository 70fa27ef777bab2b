"""Stopping on request: a signal only sets a flag; all ranks agree on it at the boundary of a step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Context manager that turns SIGTERM, SIGINT, SIGUSR1 and SIGUSR2, however often they come, into a flag.

    Only the process that entered it listens: a forked child that inherited the handlers sets nothing.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.previous: dict[int, Any] = {}
        self.process = os.getpid()

    def __enter__(self) -> "StopFlag":
        self.previous = {number: signal.signal(number, self.note) for number in STOP_SIGNALS}
        # A launcher may hold them back until now: one that came while torch was imported is not lost.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler: remember the first signal."""
        if os.getpid() == self.process and self.signal_name is None:
            self.signal_name = signal.Signals(number).name


@contextmanager
def signals_held_back() -> Iterator[None]:
    """What starts in it, processes that fork later included, does not see the signals by which a scheduler asks all
    processes of a job to stop: only the main one may act on them. Those to this process come after."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
