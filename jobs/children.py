"""Commands as processes of their own, some at a time, each next one begun when the one before has ended."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from deeplense.training import meeting
from deeplense.training.stopping import StopFlag
from jobs.attempts import EXIT_STOPPED

PR_SET_PDEATHSIG = 1
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Command:
    """A module of Python with its arguments, what is added to its environment, and the log that its output is added to
    (ours, if there is none)."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None


Steps = Generator[Command, int, None]
"""Commands one after the other; each is answered with its exit code."""


def start(command: Command, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a command; it is told to stop when this process is gone."""
    if command.log:
        command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab") if command.log else nullcontext() as output:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", *command.words],
            env={**os.environ, **environment, **command.environment},
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    """In a new process: be told to stop when the parent is gone, however it went (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Queue:
    """Does works, as many at once as there are slots, each with what its slot adds to the environment.

    Where this process, or one of the commands, is told to stop, all commands are told it, and no other is begun.
    """

    def __init__(self, slots: Sequence[Mapping[str, str]], stop: StopFlag) -> None:
        self.slots, self.stop = slots, stop
        self.running: dict[int, tuple[Steps, subprocess.Popen[bytes]]] = {}

    def run(self, works: Iterable[Steps]) -> list[int]:
        """Do these works; returns the exit codes that are not 0, in the order in which they came."""
        waiting, codes, told = deque(works), [], False
        while True:
            for slot in range(len(self.slots)):
                while waiting and slot not in self.running and not self.stop.signal_name:
                    self.proceed(slot, waiting.popleft())
            if not self.running:
                return codes
            if self.stop.signal_name and not told:
                self.tell(signal.Signals[self.stop.signal_name])
                told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
            codes += filter(None, self.look())

    def look(self) -> list[int]:
        """See which commands have ended, and go on where they were; returns their exit codes."""
        ended = {slot: code for slot, (_, child) in self.running.items() if (code := child.poll()) is not None}
        for slot, code in ended.items():
            if code == EXIT_STOPPED:
                self.stop.note(signal.SIGTERM, None)
            self.proceed(slot, self.running.pop(slot)[0], code)
        return list(ended.values())

    def proceed(self, slot: int, work: Steps, code: int | None = None) -> None:
        """Tell a work how its last command ended, and start its next one, if there is one."""
        try:
            command = next(work) if code is None else work.send(code)
        except StopIteration:
            return
        if self.stop.signal_name:
            work.close()
        else:
            self.running[slot] = (work, start(command, self.slots[slot]))

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the commands that run."""
        for _, child in self.running.values():
            if child.poll() is None:
                child.send_signal(number)


def meeting_at(file: Path) -> dict[str, str]:
    """The environment of ranks that find each other by a file."""
    return {meeting.VARIABLE: str(file)}
