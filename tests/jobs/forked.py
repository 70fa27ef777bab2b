"""Commands of a table of runs, from processes that have loaded torch already."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

from conftest import CONTEXT, run_command, start_fork_server

from jobs.processes import Command

Hook = Callable[[], None]


class Forked:
    """What `children.start` gives, from a process that has loaded torch already."""

    started: ClassVar[list[str]] = []
    """What was started, by the names of jobs and runs."""

    def __init__(self, command: Command, environment: dict[str, str], hook: Hook | None = None) -> None:
        words, log = list(command.words), command.log or Path(os.devnull)
        log.parent.mkdir(parents=True, exist_ok=True)
        target, given = (measure, words[1:]) if words[0] != "jobs" else (run_command, words[1:])
        self.started.append(" ".join([words[0], *words[1:2]]) if words[0] == "jobs" else "measure")
        variables = {**environment, **command.environment}
        start_fork_server()
        self.process: BaseProcess = CONTEXT.Process(target=target, args=(given, log, variables, hook))
        self.process.start()

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process.pid
        os.kill(self.process.pid, number)


def measure(words: list[str], log: Path, environment: dict[str, str], hook: Hook | None) -> None:
    """Measure a model in a process of its own."""
    import torch

    from jobs.benchmark_models import costs

    torch.set_num_threads(1)
    costs.MOST_UPDATES = 2
    costs.main(words)


class StopAtStepTwo:
    """In a training: have the queue told to stop in the middle, and wait for what it passes on."""

    def __init__(self, queue: int) -> None:
        self.queue = queue

    def __call__(self) -> None:
        from jobs.frame import updates

        log = updates.log_update

        def log_and_stop(training: Any, update: Any) -> float:
            if update.step == 2:
                os.kill(self.queue, signal.SIGTERM)
                time.sleep(2)
            return log(training, update)

        updates.log_update = log_and_stop
