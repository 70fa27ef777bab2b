"""Queue of subprocesses: a limited number run at a time, and the next one starts when one ends."""

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
from jobs.imports import PYTHON
from jobs.runs.attempts import EXIT_STOPPED

PR_SET_PDEATHSIG = 1
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Command:
    """A Python module with its arguments, additional environment variables, and the log file to append its output to
    (the output of this process if there is none)."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None


Steps = Generator[Command, int, None]
"""Commands to run one after another. Each receives the exit code of the one before."""


def start(command: Command, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a command. It receives SIGTERM when this process ends."""
    if command.log:
        command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab") if command.log else nullcontext() as output:
        return subprocess.Popen(
            [*PYTHON, "-u", "-m", *command.words],
            env={**os.environ, **environment, **command.environment},
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    """Request SIGTERM for this new process when its parent ends for any reason (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Queue:
    """Runs works in parallel, one per slot. Each slot adds its own environment variables.

    If this process or one of its commands is stopped by a signal, all commands receive the signal and no further one is
    started.
    """

    def __init__(self, slots: Sequence[Mapping[str, str]], stop: StopFlag) -> None:
        self.slots, self.stop = slots, stop
        self.running: dict[int, tuple[Steps, subprocess.Popen[bytes]]] = {}

    def run(self, works: Iterable[Steps]) -> list[int]:
        """Run these works. Returns the exit codes that are not 0, in the order in which the commands ended."""
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
        """Check which commands have ended, continue their works, and return their exit codes."""
        ended = {slot: code for slot, (_, child) in self.running.items() if (code := child.poll()) is not None}
        for slot, code in ended.items():
            if code == EXIT_STOPPED:
                self.stop.note(signal.SIGTERM, None)
            self.proceed(slot, self.running.pop(slot)[0], code)
        return list(ended.values())

    def proceed(self, slot: int, work: Steps, code: int | None = None) -> None:
        """Pass the exit code of its last command to a work, and start the next command, if there is one."""
        try:
            command = next(work) if code is None else work.send(code)
        except StopIteration:
            return
        if self.stop.signal_name:
            work.close()
        else:
            self.running[slot] = (work, start(command, self.slots[slot]))

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to all running commands."""
        for _, child in self.running.values():
            if child.poll() is None:
                child.send_signal(number)


def meeting_at(file: Path) -> dict[str, str]:
    """Return environment variables that let ranks find each other through a file."""
    return {meeting.VARIABLE: str(file)}
