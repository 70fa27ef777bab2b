"""Checkpoints that are written while the training continues: only the copy of the states delays it."""

import threading
import time
from collections.abc import Callable, Mapping

from deeplense.training.checkpoint import Buffers, Snapshot, State, prepare, snapshot


class Saver:
    """Takes snapshots and writes them in a thread, one at a time, into memory that is reused.

    The thread ends with the process. To write or prepare waits for the operation under way, and raises its error.
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
        """Whether a write has failed and the error has not been reported yet."""
        return self.failure is not None

    @property
    def seconds(self) -> float:
        """Seconds since the start of the write under way; 0 if there is none."""
        return time.monotonic() - self.begun if self.writing else 0.0

    def prepare(self, states: Mapping[str, State]) -> None:
        """Allocate the memory for such states in the background, so that their first snapshot is as
        fast as later ones."""
        self.wait()
        self.start(lambda: prepare(states, self.buffers))

    def begin(self, states: Mapping[str, State], write: Callable[[Snapshot], None]) -> None:
        """Copy the states, which may change from then on, and write the copy in the background.

        Args:
            states: states by name.
            write: writes a snapshot.
        """
        self.wait()
        taken = snapshot(states, self.buffers)
        self.start(lambda: write(taken))

    def start(self, action: Callable[[], None]) -> None:
        """Run an action in the background."""

        def act() -> None:
            try:
                action()
            except BaseException as error:
                self.failure = error

        self.begun = time.monotonic()
        self.thread = threading.Thread(target=act, daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Wait for the end of the write under way. Raises its error, or that of an earlier one."""
        if self.thread.ident is not None:
            self.thread.join()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
