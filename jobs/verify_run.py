"""Read every byte of a run's checkpoints, and compare what its records say with each other and with what is there."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from deeplense.files import TEMPORARY, checksum
from deeplense.records import Kinds, read_lines, read_record
from deeplense.training import checkpoint
from deeplense.training.tracking import KINDS as KINDS_OF_LINE
from deeplense.training.tracking import METRICS, mark_of, read_wandb_id
from jobs.attempts import ATTEMPTS
from jobs.attempts import KINDS as KINDS_OF_ATTEMPT
from jobs.opening import edited_settings, file_was_changed, newest_record
from jobs.progress import say
from jobs.progress_file import KINDS as KINDS_OF_PROGRESS
from jobs.progress_file import PROGRESS
from jobs.resuming import progress_problem
from jobs.runs import CONFIG, FINISHED, KINDS, LAUNCH, SEEN, STOPPED, WANDB_ID
from jobs.seen import SEEN_HASH

NAME = re.compile(r"(?P<aside>damaged_)?(?P<kind>.+)_(?P<step>\d+)")
WEIGHTS = ("model", "ema")
RECORDS = KINDS | {PROGRESS: KINDS_OF_PROGRESS, LAUNCH: {"cluster": dict, "logs": str}}
"""What the records of a run say, and of which type."""
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Checked:
    """A checkpoint that was read: its size in bytes, and what is wrong with it, if anything. One that a training has
    set aside is used no more."""

    name: str
    kind: str
    step: int
    num_bytes: int
    problem: str | None
    aside: bool

    def __str__(self) -> str:
        found = f"DAMAGED: {self.problem}" if self.problem else "sound"
        aside = ", set aside and not used" if self.aside else ""
        return f"step {self.step}, {self.num_bytes / 1e6:.1f} MB, {found}{aside}"


def verify_run(run: Path) -> int:
    """Print each checkpoint and each problem; exit code 1 where there is a problem."""
    begun, checked = time.monotonic(), []
    for found in check_all(run / "checkpoints"):
        checked.append(found)
        say(f"{run / 'checkpoints' / found.name}: {found}")
    gigabytes, seconds = sum(found.num_bytes for found in checked) / 1e9, time.monotonic() - begun
    problems = [*checkpoint_problems(checked, finished=(run / FINISHED).exists()), *record_problems(run, checked)]
    for problem in problems:
        say(problem)
    say(f"{gigabytes:.3f} GB of {len(checked)} checkpoints read at {gigabytes / max(seconds, 1e-9):.2f} GB/s")
    say(f"{run}: {len(problems)} problems" if problems else f"{run}: {state(run, checked)}")
    return 1 if problems else 0


def check_all(checkpoints: Path) -> Iterator[Checked]:
    """All checkpoints of a folder, read one after another; one that a training removes meanwhile is left out."""
    for path in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else ():
        named = NAME.fullmatch(path.name)
        if path.name.startswith(TEMPORARY) or not path.is_dir() or not named:
            continue
        problem = unsound(path)
        try:
            num_bytes = sum(file.stat().st_size for file in path.iterdir())
        except FileNotFoundError:
            continue
        yield Checked(path.name, named["kind"], int(named["step"]), num_bytes, problem, bool(named["aside"]))


def unsound(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every byte of it is read, and every weight must be finite."""
    try:
        for name, state in checkpoint.read_states(path):
            if name in WEIGHTS and (bad := not_finite(state)):
                return f"{bad} of {name} is not finite; nothing can be done with such weights"
    except (ValueError, OSError, RecursionError) as error:
        return str(error)
    return progress_problem(path)


def not_finite(state: Mapping[str, Any]) -> str:
    """The first of some weights that are not finite; empty where all are."""
    return next((name for name, value in state.items() if isinstance(value, Tensor) and not value.isfinite().all()), "")


def newest_sound(checked: Sequence[Checked], *, kind: str) -> Checked | None:
    """The newest checkpoint of a kind that can be used."""
    sound = [found for found in checked if found.kind == kind and not found.problem and not found.aside]
    return max(sound, key=lambda found: found.step, default=None)


def checkpoint_problems(checked: Sequence[Checked], *, finished: bool) -> Iterator[str]:
    """What to do about each checkpoint that is damaged and would be used."""
    for found in checked:
        if not found.problem or found.aside:
            continue
        newest = newest_sound(checked, kind=found.kind)
        if found.kind != "step":
            other = f"{newest.name} is the newest that is sound" if newest else f"there is no other {found.kind}"
            ways = "copy it back from elsewhere, or use --weights last"
            yield f"{found.name} is damaged: {other}; {ways if finished else 'the same command makes new ones'}"
        elif newest and newest.step > found.step:
            yield f"{found.name} is damaged, and not needed: {newest.name} is newer; remove it"
        else:
            begin = f"from {newest.name}" if newest else "from the first step, for no other is sound"
            first = f"remove {FINISHED}; then " if finished else ""
            yield f"{found.name} is damaged: {first}the command that made the run sets it aside and goes on {begin}"


def record_problems(run: Path, checked: Sequence[Checked]) -> Iterator[str]:
    """What is unreadable, or contradicts something else, among the records of a run."""
    if not (run / CONFIG).exists():
        yield f"{run / CONFIG} is missing: nobody knows what was trained; copy it back from elsewhere"
    read = {CONFIG: mapping(run / CONFIG)} | {name: record_in(run / name, kinds) for name, kinds in RECORDS.items()}
    for problems, _ in read.values():
        yield from problems
    finished, stopped = read[FINISHED][1], read[STOPPED][1]
    if finished and stopped:
        yield f"{run / STOPPED} and {FINISHED} are both there; remove {STOPPED}"
    for name, ending in ((FINISHED, finished), (STOPPED, stopped)):
        if ending:
            yield from ending_problems(run / name, ending, checked)
    step, record = newest_record(run)
    if record.get("settings"):
        yield from settings_problems(run, read[CONFIG][1], record, step=step)
        yield from seen_problems(run / SEEN, record)
    yield from wandb_problems(run, record)
    yield from attempts_problems(run / ATTEMPTS, begun=bool(checked))
    yield from metrics_problems(run / METRICS, finished, record.get("metrics"), step=step)


def wandb_problems(run: Path, record: Line) -> Iterator[str]:
    """Where the id at Weights & Biases is not the one that the training logged under."""
    path, known = run / WANDB_ID, record.get("wandb_id")
    found = read_wandb_id(run)
    if path.exists() and found is None:
        yield f"{path} is damaged; the command that made the run makes it anew" + (f", with {known}" if known else "")
    elif known and found != known:
        yield f"{path} says {found}, but the training logged as {known}; write that into it"


def settings_problems(run: Path, stored: Line | None, record: Line, *, step: int) -> Iterator[str]:
    """Where the settings of a run are not those that it was trained with, and what is right."""
    right = yaml.safe_dump(dict(record["settings"]), sort_keys=False)
    if stored is None:
        yield f"the checkpoint of step {step} says what was trained; these lines make {run / CONFIG} anew:\n{right}"
        return
    changed = file_was_changed(run, record)
    found = list(edited_settings(run, stored, record["settings"], step=step, with_free=changed))
    if changed and not found:
        found = [f"{run / CONFIG} is not the file that the training wrote, though it says the same settings"]
    yield from found


def seen_problems(path: Path, record: Line) -> Iterator[str]:
    """Where the list of the images that a run has seen is not as it was written."""
    expected = record.get(SEEN_HASH)
    if expected and not (path.is_file() and checksum(path) == expected):
        how = "is damaged" if path.is_file() else "is missing"
        yield f"{path} {how}: which images were seen is taken from the data set, while that is there; copy it back"


def mapping(path: Path) -> tuple[list[str], Line | None]:
    """What is wrong with a file of settings, and what it says. One that is not there says nothing."""
    if not path.exists():
        return [], None
    try:
        value = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        return [f"{path} cannot be read: {' '.join(str(error).split())}"], None
    return ([], value) if isinstance(value, dict) else ([f"{path} holds no names and values; it is damaged"], None)


def record_in(path: Path, kinds: Kinds) -> tuple[list[str], Line | None]:
    """What is wrong with a record, and what it says. One that is not there says nothing."""
    if not path.exists():
        return [], None
    try:
        return [], read_record(path, kinds)
    except (OSError, ValueError) as error:
        return [" ".join(str(error).split())], None


def ending_problems(path: Path, ending: Line, checked: Sequence[Checked]) -> Iterator[str]:
    """Where an ending names a step whose checkpoint is not there."""
    for key, kind in (("step", "step"), ("best_step", "best")):
        step = ending.get(key, 0)
        if step and not any(found.kind == kind and found.step == step and not found.aside for found in checked):
            again = f"; remove {FINISHED}, and the same command goes on from the newest one" if kind == "step" else ""
            yield f"{path} says {key} {step}, of which there is no checkpoint{again}"


def attempts_problems(path: Path, *, begun: bool) -> Iterator[str]:
    """What is wrong with the attempts: numbered from 1, all but the last with an end, none that went backwards."""
    lines = read_lines(path, KINDS_OF_ATTEMPT)
    attempts = list(lines.good.values())
    if lines.bad:
        yield f"{path}: lines {lines.bad} cannot be read, or are not as they were written"
    elif begun and not attempts:
        yield f"{path} is missing or empty, but there are checkpoints"
    elif [attempt.get("attempt") for attempt in attempts] != list(range(1, len(attempts) + 1)):
        yield f"{path}: the attempts are not numbered 1 to {len(attempts)}"
    for attempt in attempts:
        first, last = attempt.get("first_step"), attempt.get("last_step")
        if first is not None and last is not None and last < first:
            yield f"{path}: attempt {attempt.get('attempt')} ends after step {last}, but began after step {first}"


def metrics_problems(path: Path, finished: Line | None, expected: Line | None, *, step: int) -> Iterator[str]:
    """What is wrong with the metrics: steps that go backwards, or lines of the last step that are missing. A torn last
    line of a run that goes on is none: the next attempt cuts it off."""
    lines = read_lines(path, KINDS_OF_LINE)
    steps, bad = [line["step"] for line in lines.good.values()], lines.bad
    torn = [] if finished else [len(steps) + len(bad)]
    if set(bad) - set(torn):
        yield f"{path}: lines {bad} cannot be read; the others can be used"
    content = path.read_bytes() if path.exists() else b""
    if expected and mark_of(content[: expected.get("bytes")]) != expected:
        yield f"{path}: up to step {step} it is not as it was written; copy it back, or use it with care"
    if steps != sorted(steps):
        yield f"{path}: the steps go backwards; lines of two attempts are mixed"
    if finished and max(steps, default=0) != finished.get("step"):
        yield f"{path} ends at step {max(steps, default=0)}, but the run finished after step {finished.get('step')}"


def state(run: Path, checked: Sequence[Checked]) -> str:
    """What a sound run can be used for."""
    newest = newest_sound(checked, kind="step")
    if (run / FINISHED).exists():
        return "sound and finished"
    return f"sound; the same command goes on from {newest.name}" if newest else "sound; it has saved nothing yet"
