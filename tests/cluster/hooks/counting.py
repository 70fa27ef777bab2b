"""Ranks without torch: what `deeplense train` is to the launch layer, as a job that counts.

It begins, meets, agrees, saves, answers signals, hangs, fails and ends as a training does, with the same records and
exit codes, but its network is one hash, and a step is a hash of the state before. So a fault costs the seconds that
Slurm takes, and whether a step was left out or made twice is seen in the last state.

Beside what sitecustomize.py reads, the folder of the test may have `begin_seconds` (as long as torch takes to be
imported), `step_seconds`, `save_seconds`, and `stubborn` (ranks that no signal stops).
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from counted_state import newest, next_state
from sitecustomize import NEXT_STEP, die_if_told, hold, note, read

from deeplense.files import remove, replacing
from deeplense.records import write_record
from deeplense.training.meeting import VARIABLE
from deeplense.training.stopping import StopFlag
from jobs.frame.watchdog import Watchdog
from jobs.runs.attempts import EXIT_STOPPED, begin_attempt, end_attempt, refuse_if_superseded, settle_finished
from jobs.runs.claim import Claim
from jobs.runs.folder import FINISHED, STOPPED, is_finished
from jobs.runs.progress import ProgressFile

SIGNALS = (None, "SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
REFUSED, FAILED = 99, 100
"""Wishes beside the numbers of SIGNALS: to leave by a ValueError; by an OSError, to which its number is added."""
MEETING_SECONDS = 120.0
KEPT = 2


class Group:
    """Context manager of the ranks of an attempt, which talk by way of the first."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.address = (os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0")))
        self.file = os.environ.get(VARIABLE)
        self.others: list[socket.socket] = []

    def __enter__(self) -> "Group":
        if self.size > 1:
            self.others = self.accept() if self.rank == 0 else [self.connect()]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for other in self.others:
            other.close()

    def accept(self) -> list[socket.socket]:
        """Wait for all others."""
        with self.listen() as server:
            server.settimeout(MEETING_SECONDS)
            met = [server.accept()[0] for _ in range(self.size - 1)]
        for other in met:
            other.settimeout(None)
        return met

    def listen(self) -> socket.socket:
        """Where the others find the first rank: at its port, or on one machine at a file."""
        if not self.file:
            return socket.create_server(("", self.address[1]))
        return socket.create_server(self.file, family=socket.AF_UNIX)

    def connect(self) -> socket.socket:
        """Wait for the first rank."""
        deadline = time.monotonic() + MEETING_SECONDS
        while True:
            try:
                return self.call()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def call(self) -> socket.socket:
        """A connection to the first rank. Raises OSError where it does not listen yet."""
        if not self.file:
            return socket.create_connection(self.address, timeout=None)
        line = socket.socket(socket.AF_UNIX)
        line.connect(self.file)
        return line

    def agree(self, wish: int) -> int:
        """The greatest wish of all ranks. Raises ConnectionError where one is gone."""
        if self.rank == 0:
            agreed = max([wish, *(receive(other) for other in self.others)])
            for other in self.others:
                other.sendall(bytes([agreed]))
            return agreed
        self.others[0].sendall(bytes([wish]))
        return receive(self.others[0])


def receive(other: socket.socket) -> int:
    """A wish of another rank."""
    data = other.recv(1)
    if not data:
        raise ConnectionResetError("another rank is gone")
    return data[0]


def seconds(name: str, otherwise: float) -> float:
    """What the test says in a file."""
    return float(read(name) or otherwise)


def run(settings: Any) -> int:
    """Count until done or told to stop; returns 0, or 85 when stopped with the state saved."""
    time.sleep(seconds("begin_seconds", 0.2))
    with (
        StopFlag() as stop,
        Watchdog(settings.run, minutes=settings.hang_minutes) as watchdog,
        Claim(settings, take_over=bool(settings.take_over)) as claim,
        Group() as group,
    ):
        return Count(settings, group, stop, watchdog).begin(claim)


class Count:
    """One attempt."""

    def __init__(self, settings: Any, group: Group, stop: StopFlag, watchdog: Watchdog) -> None:
        self.run, self.total = settings.run, round(settings.epochs)
        self.group, self.stop, self.watchdog = group, stop, watchdog
        self.number = 0
        self.step, self.state = 0, ""
        self.main = group.rank == 0

    def begin(self, claim: Claim) -> int:
        """Go on from the newest good checkpoint, to the end of the attempt."""
        self.on_main(claim.check)
        if self.group.agree(int(self.main and is_finished(self.run))):
            self.on_main(lambda: settle_finished(self.run))
            return 0
        self.on_main(claim.open)
        self.step, self.state = newest(self.run / "checkpoints")
        NEXT_STEP[0] = self.step
        self.on_main(self.record_beginning)
        reason, code = "error", 1
        try:
            reason, code = self.count()
        except BaseException as error:
            reason = f"error: {type(error).__name__}: {error}"
            raise
        finally:
            self.record_end(reason)
        self.group.agree(0)
        return code

    def on_main(self, do: Callable[[], object]) -> None:
        """Do something on the first rank while the others wait; bad input or a full disk there is an error on all."""
        error: ValueError | OSError | None = None
        if self.main:
            try:
                do()
            except (ValueError, OSError) as caught:
                error = caught
        number = FAILED + (error.errno or 0) if isinstance(error, OSError) else REFUSED if error else 0
        if number := self.group.agree(number):
            known = ValueError("see the first rank") if number == REFUSED else OSError(number - FAILED, "elsewhere")
            raise error or known

    def record_beginning(self) -> None:
        """The attempt's line begins."""
        self.number = begin_attempt(self.run, first_step=self.step, num_processes=self.group.size)
        (self.run / STOPPED).unlink(missing_ok=True)
        print(f"continuing after step {self.step}", flush=True)

    def record_end(self, reason: str) -> None:
        """It ends; a full disk must not hide why."""
        if self.main:
            with contextlib.suppress(OSError):
                end_attempt(self.run, self.number, reason=reason, last_step=self.step)

    def count(self) -> tuple[str, int]:
        """The remaining steps; returns why they ended and the exit code."""
        file = ProgressFile(self.run, total=self.total, first=self.step) if self.main else None
        while self.step < self.total:
            self.make_step()
            if file is not None:
                file.update(self.step)
            asked = SIGNALS.index(None if read("stubborn") else self.stop.signal_name)
            agreed = self.group.agree(asked)
            self.on_main(self.save)
            if agreed:
                return self.leave(f"{SIGNALS[agreed]}")
        if file is not None:
            file.update(self.step, at_once=True)
        self.on_main(lambda: write_record(self.run / FINISHED, {"step": self.step}))
        return "finished", 0

    def leave(self, name: str) -> tuple[str, int]:
        """What is left to do when told to stop, after the save."""
        self.on_main(lambda: write_record(self.run / STOPPED, {"step": self.step, "signal": name}))
        return f"stopped by {name}", EXIT_STOPPED

    def make_step(self) -> None:
        """One step of this rank."""
        die_if_told("before_step")
        hold(self.step)
        time.sleep(seconds("step_seconds", 0.05))
        self.state = next_state(self.state, self.step)
        note(self.step, [self.group.rank])
        self.step += 1
        NEXT_STEP[0] = self.step
        self.watchdog.beat()

    def save(self) -> None:
        """Write a checkpoint; the two newest are kept."""
        folder = self.run / "checkpoints"
        with replacing(folder / f"step_{self.step:08d}") as temporary:
            temporary.mkdir()
            write_record(temporary / "manifest.json", {"step": self.step, "state": self.state})
            (temporary / "weights").write_bytes(b"x" * int(read("save_bytes") or 0))
            time.sleep(seconds("save_seconds", 0.0))
            refuse_if_superseded(self.run, self.number)
        for old in sorted(folder.glob("step_*"))[:-KEPT]:
            remove(old)
        self.watchdog.beat()
