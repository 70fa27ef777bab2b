"""Runs of a table in processes that are forked from the one that starts them, which has loaded torch."""

import os
import signal
from collections.abc import Mapping

from jobs import processes
from jobs.processes import Command, die_with_parent


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
    from jobs import run_job
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
    return run_job.main(words)


def fork_runs() -> None:
    """Let this process fork the runs of its tables."""
    processes.start = Fork  # type: ignore[assignment]
