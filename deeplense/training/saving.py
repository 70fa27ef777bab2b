"""Checkpoints written while the training goes on: only the copy of the states holds it up."""

import threading
import time
from collections.abc import Callable, Mapping

from deeplense.training.checkpoint import Buffers, Snapshot, State, prepare, snapshot


class Saver:
    """Takes snapshots and writes them in a thread, one at a time, from memory that it keeps.

    The thread ends with the process, whatever it is at. To write or prepare anything waits for what is under way, and
    raises what that failed with.
    """

    def __init__(self) -> None:
        self.buffers: Buffers = {}
        self.thread = threading.Thread()
        self.begun = time.monotonic()
        self.failure: BaseException | None = None

    @property
    def writing(self) -> bool:
        """Whether a write is under way."""
        return self.thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a write failed, which nobody was told yet."""
        return self.failure is not None

    @property
    def seconds(self) -> float:
        """How long the write under way has taken so far; 0 where there is none."""
        return time.monotonic() - self.begun if self.writing else 0.0

    def prepare(self, states: Mapping[str, State]) -> None:
        """Get the memory for such states in the background, so that their first snapshot is as fast as later ones."""
        self.wait()
        self.start(lambda: prepare(states, self.buffers))

    def begin(self, states: Mapping[str, State], write: Callable[[Snapshot], None]) -> None:
        """Copy the states, which may change from then on, and let `write` write the copy in the background."""
        self.wait()
        taken = snapshot(states, self.buffers)
        self.start(lambda: write(taken))

    def start(self, action: Callable[[], None]) -> None:
        """Do something in the background."""

        def act() -> None:
            try:
                action()
            except BaseException as error:
                self.failure = error

        self.begun = time.monotonic()
        self.thread = threading.Thread(target=act, daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Wait for the end of the write under way. Raises what it, or one before, failed with."""
        if self.thread.ident is not None:
            self.thread.join()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
