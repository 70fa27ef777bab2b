"""Runs of a table, and ranks, in processes that are forked from the one that starts them, which has loaded torch."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import IO

from jobs import processes
from jobs.processes import Command, die_with_parent
from jobs.run_job import leave, main
from launch import local


class Fork:
    """What `jobs.processes.start` gives, without a fresh interpreter."""

    def __init__(self, command: Command, environment: Mapping[str, str]) -> None:
        if command.log:
            command.log.parent.mkdir(parents=True, exist_ok=True)
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            die_with_parent()
            os._exit(work(command, {**environment, **command.environment}))

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def work(command: Command, environment: Mapping[str, str]) -> int:
    """Run a command in this process; returns its exit code."""
    from jobs.benchmark_models import costs

    os.environ.update(environment)
    if command.log:
        descriptor = os.open(command.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    module, *words = command.words
    if module != "jobs":
        costs.MOST_UPDATES = 2
        costs.main(words)
        return 0
    return main(words)


class Rank(Fork):
    """What `launch.local` takes from `subprocess.Popen` for a rank, without a fresh interpreter."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        preexec_fn: Callable[[], None],
        stdout: IO[str] | None,
        stderr: IO[str] | None,
    ) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            begin_rank(env, preexec_fn, stdout, stderr)
            leave(lambda: main(words[words.index("jobs") + 1 :]))

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, if it runs."""
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


def begin_rank(
    env: Mapping[str, str], preexec_fn: Callable[[], None], stdout: IO[str] | None, stderr: IO[str] | None
) -> None:
    """Give this process what a new one would have: its variables, its output, and no handlers of signals."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    preexec_fn()
    os.environ.clear()
    os.environ.update(env)
    for descriptor, file in ((1, stdout), (2, stderr)):
        if file is not None:
            os.dup2(file.fileno(), descriptor)


def fork_runs() -> None:
    """Let this process fork the runs of its tables, and its ranks."""
    processes.start = Fork  # type: ignore[assignment]
    local.subprocess = SimpleNamespace(Popen=Rank)  # type: ignore[assignment]
