"""Stop on request: a signal only sets a flag; all ranks agree on it at the end of a step."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SECOND_S = 1.0
"""Seconds after which another Ctrl-C is a second one. A terminal and a launcher may both pass on the first."""
ANSWER = "deeplense: stopping after this step, then saving. Ctrl-C again leaves at once, at the last checkpoint.\n"


class StopFlag:
    """Context manager that turns SIGTERM, SIGINT, SIGUSR1 and SIGUSR2, even repeated ones, into a flag.

    The first Ctrl-C (SIGINT) is answered at once on stderr. A second one raises KeyboardInterrupt.
    Only the process that entered it listens: a forked child that inherited the handlers sets nothing.

    Example:
        >>> with StopFlag() as flag:
        ...     signal.raise_signal(signal.SIGUSR1)
        ...     flag.signal_name
        'SIGUSR1'
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.previous: dict[int, Any] = {}
        self.process = os.getpid()
        self.interrupted: float | None = None

    def __enter__(self) -> "StopFlag":
        self.previous = {number: signal.signal(number, self.note) for number in STOP_SIGNALS}
        # A launcher may hold them back until now: one that came while torch was imported is not lost.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; this is the signal handler.

        Args:
            number: number of the signal.
            frame: not used.

        Raises:
            KeyboardInterrupt: a second Ctrl-C.
        """
        if os.getpid() != self.process:
            return
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name
        if number == signal.SIGINT:
            self.interrupt()

    def interrupt(self) -> None:
        """Answer the first Ctrl-C, and raise KeyboardInterrupt at the second."""
        now = time.monotonic()
        if self.interrupted is None:
            self.interrupted = now
            if os.environ.get("RANK", "0") == "0":
                # Not `print`: this may interrupt one.
                os.write(2, ANSWER.encode())
        elif now - self.interrupted > SECOND_S:
            raise KeyboardInterrupt


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Block the signals by which a scheduler stops all processes of a job, for everything that is started within,
    including processes forked later: only the main process may act on them. Signals to this process are delivered
    afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
