"""Execute the runs of a table: measure, train and evaluate those that are left, each in its own process."""

import os
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import torch

from deeplense.training.stopping import StopFlag
from jobs.console import say
from jobs.processes import Command, Queue, Steps
from jobs.runs.attempts import (
    EXIT_STOPPED,
    FOLDER,
    NUMBER,
    add_to_attempt,
    end_attempt,
    number_given,
    open_attempt,
    read_attempts,
)
from jobs.runs.environment import num_cores
from jobs.runs.folder import LOGS
from jobs.settings import require
from jobs.trials.scores import problems_of
from jobs.trials.settings import QueueSettings
from jobs.trials.trials import Table, Training, Trial, chosen


def do_all(settings: QueueSettings, table: Table) -> int:
    """Execute all runs that are left, or one of them, and print the table; returns the exit code."""
    require("RANK" not in os.environ, "a benchmark starts its own processes; leave out --num_processes.")
    asked = chosen(table.trials, settings.only)
    left = [each for each in asked if is_left(*each, alone=bool(settings.only))]
    say(f"{len(left)} of {len(asked)} runs left in {settings.output}")
    with StopFlag() as stop:
        Queue([{}], stop).run(measuring(settings, table, left))
        works = [steps(settings, table, trial, training, stop) for trial, training in left]
        codes = Queue(slots(settings.at_once), stop).run(works)
        lines = table.write()
        if stop.signal_name:
            say(f"stopped by {stop.signal_name}. Run the same command again to resume.")
            return EXIT_STOPPED
    for line in lines:
        say(line)
    say(f"table: {settings.output / 'index.html'}")
    if settings.only:
        return next((code if code > 0 else 128 - code for code in codes), 0)
    return 1 if any(problems_of(trial) for trial in table.trials) else 0


def is_left(trial: Trial, training: Training, *, alone: bool) -> bool:
    """Whether there is something to do for a run: train it, or evaluate its trial if all its runs are trained. The
    first run of a trial does the evaluation."""
    mine = alone or training is trial.trainings[0]
    return not training.is_done or (mine and trial.is_trained and not trial.is_evaluated)


def slots(at_once: int) -> list[dict[str, str]]:
    """Return the environment of each of several parallel trainings: an equal share of the cores, and the GPUs in
    turn."""
    if at_once == 1:
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(num_cores() // at_once, 1)))
    devices = visible.split(",")
    gpus = [{"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if visible else {} for slot in range(at_once)]
    return [{"OMP_NUM_THREADS": threads} | gpu for gpu in gpus]


def measuring(settings: QueueSettings, table: Table, left: Sequence[tuple[Trial, Training]]) -> Iterator[Steps]:
    """Measure the cost of each model that is still to be trained, one after another, before any training starts."""
    first = {table.costs(trial): each for trial, each in left if table.costs and not each.is_done}
    for path, training in first.items():
        if not path.exists():
            yield measure(path, training, own_log(settings, training.run, "measure"))


def measure(path: Path, training: Training, log: Path | None) -> Steps:
    """Measure one model; if this fails, its cost stays blank in the table, and its training reports the error."""
    say(f"measuring the cost of {training.settings.model_name} for {path.stem}")
    yield Command(("jobs.benchmark_models.costs", str(path), *training.words[1:]), log=log)


def steps(settings: QueueSettings, table: Table, trial: Trial, training: Training, stop: StopFlag) -> Steps:
    """Execute the remaining steps of a run, then rewrite the table. The evaluation is part of the run's attempt."""
    number, problem = number_given(training.run) or open_attempt(training.run), None
    try:
        problem = yield from train_and_evaluate(settings, trial, training, number)
    finally:
        conclude(training.run, number, problem, stop)
    table.write()


def train_and_evaluate(
    settings: QueueSettings, trial: Trial, training: Training, number: int
) -> Generator[Command, int, str]:
    """Train, then evaluate if all runs of the trial are trained; returns the problem, or an empty text."""
    run, environment = training.run, {FOLDER: str(training.run), NUMBER: str(number)}
    if not training.is_done:
        say(f"training {training.name}")
        begun, log = time.monotonic(), own_log(settings, run, training.words[0])
        code = yield Command(("jobs", *training.words), environment, log)
        add_to_attempt(run, number, {"seconds": round(time.monotonic() - begun, 1)})
        if code:
            return f"exit code {code}{last_line(log)}"
    if trial.is_trained and not trial.is_evaluated:
        add_to_attempt(run, number, {"ended": None})
        say(f"evaluating {trial.name}")
        log = own_log(settings, run, trial.evaluation[0])
        code = yield Command(("jobs", *trial.evaluation), environment, log)
        return f"evaluate: exit code {code}{last_line(log)}" if code else ""
    return ""


def own_log(settings: QueueSettings, run: Path, name: str) -> Path | None:
    """Return the log file of a command; None for a single run, whose output goes to that of this process."""
    return None if settings.only else run / LOGS / f"{name}.log"


def last_line(log: Path | None) -> str:
    """Return the last line of a log, which says why a command failed."""
    lines = log.read_text(errors="replace").split("\n") if log and log.exists() else []
    told = [line.strip() for line in lines if line.strip()]
    return f": {told[-1].removeprefix('deeplense: ')}" if told else ""


def conclude(run: Path, number: int, problem: str | None, stop: StopFlag) -> None:
    """Record why an attempt ended, unless the training did so; `problem` is empty on success, and None if the work was
    aborted."""
    if read_attempts(run)[number - 1]["ended"]:
        return
    if problem == "":
        end_attempt(run, number, reason="finished")
    elif stop.signal_name:
        end_attempt(run, number, reason=f"stopped by {stop.signal_name}")
    else:
        end_attempt(run, number, reason=f"error: {problem}")
