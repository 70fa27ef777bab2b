"""Read every byte of a run's checkpoints, and check its records against each other and against the files."""

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
from jobs.console import say
from jobs.data.seen import SEEN_HASH
from jobs.runs.attempts import ATTEMPTS
from jobs.runs.attempts import KINDS as KINDS_OF_ATTEMPT
from jobs.runs.checkpoints import newest_record
from jobs.runs.folder import FINISHED, KINDS, LAUNCH, SEEN, STOPPED, WANDB_ID
from jobs.runs.opening import edited_settings, file_was_changed
from jobs.runs.progress import KINDS as KINDS_OF_PROGRESS
from jobs.runs.progress import PROGRESS
from jobs.runs.resuming import progress_problem
from jobs.runs.stored import CONFIG

NAME = re.compile(r"(?P<aside>damaged_)?(?P<kind>.+)_(?P<step>\d+)")
WEIGHTS = ("model", "ema")
RECORDS = KINDS | {PROGRESS: KINDS_OF_PROGRESS, LAUNCH: {"cluster": dict, "logs": str}}
"""The keys of the records of a run, with the types of their values."""
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Checked:
    """A checkpoint that was read: its size in bytes and its problem, if any. `aside` is set if a training has moved it
    aside, so that it is no longer used."""

    name: str
    kind: str
    step: int
    num_bytes: int
    problem: str | None
    aside: bool

    def __str__(self) -> str:
        found = f"DAMAGED: {self.problem}" if self.problem else "sound"
        aside = ", moved aside and not used" if self.aside else ""
        return f"step {self.step}, {self.num_bytes / 1e6:.1f} MB, {found}{aside}"


def verify_run(run: Path) -> int:
    """Print each checkpoint and each problem; returns exit code 1 if there is a problem."""
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
    """Read all checkpoints of a folder one after another; those that a training removes meanwhile are skipped."""
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
    """Return the problem of a checkpoint, or None: every byte is read, and every weight must be finite."""
    try:
        for name, state in checkpoint.read_states(path):
            if name in WEIGHTS and (bad := not_finite(state)):
                return f"{bad} of {name} is not finite; such weights cannot be used"
    except (ValueError, OSError, RecursionError) as error:
        return str(error)
    return progress_problem(path)


def not_finite(state: Mapping[str, Any]) -> str:
    """Return the name of the first weight that is not finite; empty if all are finite."""
    return next((name for name, value in state.items() if isinstance(value, Tensor) and not value.isfinite().all()), "")


def newest_sound(checked: Sequence[Checked], *, kind: str) -> Checked | None:
    """Return the newest usable checkpoint of a kind."""
    sound = [found for found in checked if found.kind == kind and not found.problem and not found.aside]
    return max(sound, key=lambda found: found.step, default=None)


def checkpoint_problems(checked: Sequence[Checked], *, finished: bool) -> Iterator[str]:
    """Say what to do about each damaged checkpoint that would be used."""
    for found in checked:
        if not found.problem or found.aside:
            continue
        newest = newest_sound(checked, kind=found.kind)
        if found.kind != "step":
            other = f"{newest.name} is the newest intact one" if newest else f"there is no other {found.kind}"
            ways = "restore it from a backup, or use --weights last"
            yield f"{found.name} is damaged: {other}; {ways if finished else 'run the same command again'}"
        elif newest and newest.step > found.step:
            yield f"{found.name} is damaged but not needed, because {newest.name} is newer; remove it"
        else:
            begin = f"from {newest.name}" if newest else "from the first step, because no other is intact"
            first = f"remove {FINISHED}, then " if finished else ""
            yield f"{found.name} is damaged: {first}run the same command again; it moves it aside and resumes {begin}"


def record_problems(run: Path, checked: Sequence[Checked]) -> Iterator[str]:
    """Report records of a run that are unreadable or inconsistent."""
    if not (run / CONFIG).exists():
        yield f"{run / CONFIG} is missing, so the settings of the run are unknown; restore it from a backup"
    read = {CONFIG: mapping(run / CONFIG)} | {name: record_in(run / name, kinds) for name, kinds in RECORDS.items()}
    for problems, _ in read.values():
        yield from problems
    finished, stopped = read[FINISHED][1], read[STOPPED][1]
    if finished and stopped:
        yield f"{run / STOPPED} and {FINISHED} both exist; remove {STOPPED}"
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
    """Report if the stored W&B id is not the one that the training logged to."""
    path, known = run / WANDB_ID, record.get("wandb_id")
    found = read_wandb_id(run)
    if path.exists() and found is None:
        yield f"{path} is damaged; run the same command again to rewrite it" + (f", with {known}" if known else "")
    elif known and found != known:
        yield f"{path} contains {found}, but the training logged to {known}; write {known} into it"


def settings_problems(run: Path, stored: Line | None, record: Line, *, step: int) -> Iterator[str]:
    """Report if the settings of a run are not those that it was trained with, with the correct ones."""
    right = yaml.safe_dump(dict(record["settings"]), sort_keys=False)
    if stored is None:
        yield f"the checkpoint of step {step} contains the settings; write these lines to {run / CONFIG}:\n{right}"
        return
    changed = file_was_changed(run, record)
    found = list(edited_settings(run, stored, record["settings"], step=step, with_free=changed))
    if changed and not found:
        found = [f"{run / CONFIG} is not the file that the training wrote, although it has the same settings"]
    yield from found


def seen_problems(path: Path, record: Line) -> Iterator[str]:
    """Report if the list of images that a run was trained on is missing or changed."""
    expected = record.get(SEEN_HASH)
    if expected and not (path.is_file() and checksum(path) == expected):
        how = "is damaged" if path.is_file() else "is missing"
        yield f"{path} {how}: the images seen are taken from the data set as long as it exists; restore a backup"


def mapping(path: Path) -> tuple[list[str], Line | None]:
    """Return the problems of a settings file, and its content; no problem and None if it does not exist."""
    if not path.exists():
        return [], None
    try:
        value = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        return [f"{path} cannot be read: {' '.join(str(error).split())}"], None
    return ([], value) if isinstance(value, dict) else ([f"{path} does not contain settings; it is damaged"], None)


def record_in(path: Path, kinds: Kinds) -> tuple[list[str], Line | None]:
    """Return the problems of a record, and its content; no problem and None if it does not exist."""
    if not path.exists():
        return [], None
    try:
        return [], read_record(path, kinds)
    except (OSError, ValueError) as error:
        return [" ".join(str(error).split())], None


def ending_problems(path: Path, ending: Line, checked: Sequence[Checked]) -> Iterator[str]:
    """Report if the record of a run's end names a step without a checkpoint."""
    for key, kind in (("step", "step"), ("best_step", "best")):
        step = ending.get(key, 0)
        if step and not any(found.kind == kind and found.step == step and not found.aside for found in checked):
            again = f"; remove {FINISHED} and run the same command again to resume" if kind == "step" else ""
            yield f"{path} has {key} {step}, but there is no such checkpoint{again}"


def attempts_problems(path: Path, *, begun: bool) -> Iterator[str]:
    """Report problems of the list of attempts: bad lines, wrong numbering, or an attempt that went backwards."""
    lines = read_lines(path, KINDS_OF_ATTEMPT)
    attempts = list(lines.good.values())
    if lines.bad:
        yield f"{path}: lines {lines.bad} are unreadable or were changed"
    elif begun and not attempts:
        yield f"{path} is missing or empty, but there are checkpoints"
    elif [attempt.get("attempt") for attempt in attempts] != list(range(1, len(attempts) + 1)):
        yield f"{path}: the attempts are not numbered 1 to {len(attempts)}"
    for attempt in attempts:
        first, last = attempt.get("first_step"), attempt.get("last_step")
        if first is not None and last is not None and last < first:
            yield f"{path}: attempt {attempt.get('attempt')} ends after step {last}, but started after step {first}"


def metrics_problems(path: Path, finished: Line | None, expected: Line | None, *, step: int) -> Iterator[str]:
    """Report problems of the metrics: bad lines, changes, steps that go backwards, or missing lines. A truncated last
    line of an unfinished run is no problem, because the next attempt removes it."""
    lines = read_lines(path, KINDS_OF_LINE)
    steps, bad = [line["step"] for line in lines.good.values()], lines.bad
    torn = [] if finished else [len(steps) + len(bad)]
    if set(bad) - set(torn):
        yield f"{path}: lines {bad} are unreadable; the others can be used"
    content = path.read_bytes() if path.exists() else b""
    if expected and mark_of(content[: expected.get("bytes")]) != expected:
        yield f"{path}: it was changed before step {step}; restore a backup, or use it with care"
    if steps != sorted(steps):
        yield f"{path}: the steps go backwards; lines of two attempts are mixed"
    if finished and max(steps, default=0) != finished.get("step"):
        yield f"{path} ends at step {max(steps, default=0)}, but the run finished after step {finished.get('step')}"


def state(run: Path, checked: Sequence[Checked]) -> str:
    """Describe the state of a run without problems."""
    newest = newest_sound(checked, kind="step")
    if (run / FINISHED).exists():
        return "sound and finished"
    return f"sound; the same command resumes from {newest.name}" if newest else "sound; no checkpoint saved yet"
