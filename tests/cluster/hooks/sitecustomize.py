"""Loaded by Python in the ranks of a test: notes the samples of each step, waits where told, dies where told.

DEEPLENSE_TEST names a folder. In it `hold` has the step before which ranks wait, until they are told to stop, and
`die` has lines `ATTEMPT RANK WHERE NUMBER`: kill yourself at the NUMBER-th WHERE, one of `before_step`, and
`before_rename` and `after_rename` of a checkpoint; `raise` after the number raises an error instead. Each rank writes
`samples_ATTEMPT_RANK.txt`, a line for each step. `hold_shards` has the names of shards before which a job that makes a
data set waits.

DEEPLENSE_COUNTS=1 puts the ranks of counting.py, without torch, in the place of trainings. DEEPLENSE_HERE=1 does all
this without Slurm (tests/launch/hooked.py). DEEPLENSE_FORKS is the folder of forks.py, with which a table forks its
runs.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("DEEPLENSE_TEST")


def rank() -> str:
    """Of this process."""
    return os.environ.get("SLURM_PROCID", os.environ.get("RANK", "0"))


def attempt() -> str:
    """Its number."""
    return os.environ.get("DEEPLENSE_ATTEMPT", "0")


def read(name: str) -> str:
    """What the test says in a file."""
    path = Path(FOLDER or ".") / name
    return path.read_text() if path.exists() else ""


def hold(step: int) -> None:
    """Wait as long as the test says that this step must not begin."""
    while step >= int(read("hold") or 10**9) and not TOLD_TO_STOP:
        time.sleep(0.02)


COUNTS: dict[str, int] = {}


def die_if_told(where: str) -> None:
    """Kill this process where the test wants it."""
    COUNTS[where] = COUNTS.get(where, 0) + 1
    here, lines = f"{attempt()} {rank()} {where} {COUNTS[where]}", read("die").splitlines()
    if here in lines:
        os.kill(os.getpid(), signal.SIGKILL)
    if f"{here} raise" in lines:
        raise RuntimeError("the test wants it")


def note(step: int, samples: Sequence[int]) -> None:
    """Write down what this rank makes a step of."""
    with (Path(FOLDER or ".") / f"samples_{attempt()}_{rank()}.txt").open("a") as file:
        file.write(f"{step} {' '.join(map(str, samples))}\n")


def note_samples(kind: Any) -> None:
    """Note the samples of each update that a class makes."""
    step = kind.step

    def noted(self: Any, network: Any, batch: Any, *words: Any) -> Any:
        # Each step has its checkpoint, on a disk however slow: so it is known how many a fault may cost.
        while any(saver.writing for saver in SAVERS):
            time.sleep(0.002)
        die_if_told("before_step")
        hold(NEXT_STEP[0])
        note(NEXT_STEP[0], batch.indices.tolist())
        NEXT_STEP[0] += 1
        return step(self, network, batch, *words)

    kind.step = noted


NEXT_STEP = [0]
SAVERS: list[Any] = []


def patch_saving(module: Any) -> None:
    """Know what writes checkpoints."""
    make = module.Saver.__init__

    def noted(self: Any, *words: Any, **settings: Any) -> None:
        make(self, *words, **settings)
        SAVERS.append(self)

    module.Saver.__init__ = noted


def patch_loop(module: Any) -> None:
    """Learn from which step the attempt goes on."""
    fit = module.fit

    def noted(*words: Any, first_step: int, **settings: Any) -> Any:
        NEXT_STEP[0] = first_step
        return fit(*words, first_step=first_step, **settings)

    module.fit = noted


def patch_building(module: Any) -> None:
    """Wait before a shard where told."""
    make_and_write = module.make_and_write

    def held(path: Path, *words: Any) -> None:
        while path.name in read("hold_shards").split():
            time.sleep(0.02)
        make_and_write(path, *words)

    module.make_and_write = held


def patch_output(module: Any) -> None:
    """Wait before a file of predictions where told."""
    write_file = module.write_file

    def held(folder: Path, plan: Any, make: Any, number: int) -> None:
        while module.file_name(number) in read("hold_shards").split():
            time.sleep(0.02)
        write_file(folder, plan, make, number)

    module.write_file = held


TOLD_TO_STOP: list[int] = []


def patch_stopping(module: Any) -> None:
    """Learn of signals."""
    note = module.StopFlag.note

    def noted(self: Any, number: int, frame: Any) -> None:
        if not read("stubborn"):
            TOLD_TO_STOP.append(number)
        note(self, number, frame)

    module.StopFlag.note = noted


def patch_files() -> None:
    """Die around the rename of a checkpoint."""
    replace = Path.replace

    def noted(self: Path, target: Path) -> Path:
        is_checkpoint = Path(target).name.startswith("step_")
        if is_checkpoint:
            die_if_told("before_rename")
        done = replace(self, target)
        if is_checkpoint:
            die_if_told("after_rename")
        return done

    setattr(Path, "replace", noted)  # noqa: B010


def put_counting(module: Any) -> None:
    """Let ranks count in the place of a training."""

    def run(settings: Any) -> int:
        from counting import run as count

        return count(settings)

    module.run = run


def patch_processes(module: Any) -> None:
    """Fork the runs of a table where told."""
    if "DEEPLENSE_FORKS" not in os.environ:
        return

    def start(*words: Any) -> Any:
        from forking import start as fork

        return fork(*words)

    module.start = start


class Patcher(MetaPathFinder):
    """Patches modules of the project when they are loaded."""

    counting = {"jobs.train.work": put_counting, "deeplense.training.stopping": patch_stopping}  # noqa: RUF012
    patches = {  # noqa: RUF012
        "jobs.train.objective": lambda module: note_samples(module.Objective),
        "jobs.pretrain.learner": lambda module: note_samples(module.PretrainingTrainee),
        "jobs.diffuse.learner": lambda module: note_samples(module.DiffusionTrainee),
        "deeplense.data.building": patch_building,
        "jobs.predict.output": patch_output,
        "jobs.processes": patch_processes,
        "deeplense.training.loop": patch_loop,
        "deeplense.training.saving": patch_saving,
        "deeplense.training.stopping": patch_stopping,
    }

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        patches = self.counting if os.environ.get("DEEPLENSE_COUNTS") else self.patches
        patch = patches.get(name)
        if patch is None:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def load(module: Any) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = load
        return spec


if FOLDER and ("SLURM_STEP_NUM_TASKS" in os.environ or "DEEPLENSE_HERE" in os.environ):
    sys.meta_path.insert(0, Patcher())
    patch_files()
