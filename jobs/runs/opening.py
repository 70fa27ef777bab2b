"""Access to a finished or unfinished run in order to evaluate it, start from it, sample from it or export it.

The settings in the record of the checkpoint are authoritative, and `config.yaml` is compared with them. Nothing in the
run folder is changed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from deeplense.data.dataset import Split
from deeplense.files import checksum, read_json
from deeplense.training import checkpoint
from jobs.console import say
from jobs.diffuse.settings import Settings as DiffuseSettings
from jobs.frame.settings import LearningSettings
from jobs.pretrain.settings import Settings as PretrainSettings
from jobs.runs.checkpoints import Which, newest_first, newest_record, step_of
from jobs.runs.folder import FINISHED
from jobs.runs.resuming import problem_of
from jobs.runs.stored import CONFIG, CONFIG_HASH, job_of, require_job, stored_config
from jobs.settings import RETIRED, from_plain, require
from jobs.train.settings import Settings as TrainSettings

AnySettings = TypeVar("AnySettings", bound=LearningSettings)
JOBS: Mapping[str, type[LearningSettings]] = {
    "train": TrainSettings,
    "pretrain": PretrainSettings,
    "diffuse": DiffuseSettings,
}
NOTHING = "nothing"


@dataclass(frozen=True)
class Opened(Generic[AnySettings]):
    """A run, one of its checkpoints, and the settings that the run was trained with. `record` is empty if the run was
    made by a version that stored none."""

    run: Path
    settings: AnySettings
    which: Which
    checkpoint: Path
    progress: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The step of these weights."""
        return self.progress["step"]

    @property
    def files(self) -> Mapping[str, str]:
        """The files of the checkpoint with their checksums."""
        return checkpoint.read_manifest(self.checkpoint)["files"]

    def load(self, name: str) -> Mapping[str, Any]:
        """Return one state of the checkpoint, such as `model`. Raises ValueError if it is damaged or missing."""
        found = checkpoint.load(self.checkpoint, only=(name,))
        require(name in found, f"{self.checkpoint} contains no {name}; it was written by another program.")
        return found[name]

    def load_all(self) -> dict[str, Any]:
        """Return all states of the checkpoint. Raises ValueError if one is damaged."""
        return checkpoint.load(self.checkpoint)

    def require_data(self, split: Split) -> None:
        """Raise ValueError if this is not the split that the run was trained on."""
        require(
            self.progress["dataset_id"] == split.dataset_id,
            f"{split.name} is not the data set that {self.run} was trained on: its images or labels have changed. "
            "Restore the original data set, or train again with another --run.",
        )


@dataclass(frozen=True)
class Extent:
    """Progress of a training."""

    steps: int
    num_steps: int
    finished: bool

    def __str__(self) -> str:
        if self.finished:
            return f"finished after step {self.steps}"
        return f"NOT finished: {self.steps} of {self.num_steps} steps"


def open_run_for(
    run: Path, job: str, kind: type[AnySettings], *, which: Which, may_fall_back: bool = True
) -> Opened[AnySettings]:
    """Open a run of a job, with its best or last weights. Raises ValueError if it is a run of another job, has no
    intact checkpoint, or `config.yaml` differs from the settings that the run was trained with.

    `may_fall_back`: if the newest checkpoint is damaged, report it and use the previous one.
    """
    settings, record = checked_settings(run, job, kind)
    path = good_checkpoint(run, which, may_fall_back=may_fall_back)
    found = checkpoint.load(path, only=("progress", "record"))
    return Opened(run, settings, which, path, found["progress"], found.get("record") or record)


def checked_settings(run: Path, job: str, kind: type[AnySettings]) -> tuple[AnySettings, Mapping[str, Any]]:
    """Return the settings that a run was trained with, and the record that holds them, empty if there is none. Raises
    ValueError if it is a run of another job, or `config.yaml` differs."""
    step, record = newest_record(run)
    recorded = record.get("settings")
    stored = stored_config(run)
    require_job(run, recorded or stored, job)
    if recorded:
        refuse_edited(run, stored, recorded, step=step)
        # Of the settings that do not affect results, only the data folder is needed, which may have moved.
        recorded = dict(recorded) | {"data_root": stored.get("data_root", recorded["data_root"])}
    values = dict(recorded or stored) | {"run": str(run)}
    try:
        return from_plain(kind, values), record
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{run / CONFIG} does not contain valid settings of `deeplense {job}`: {error}") from error


def good_checkpoint(run: Path, which: Which, *, may_fall_back: bool) -> Path:
    """Return the newest intact checkpoint with the best or last weights. Raises ValueError if there is none."""
    for path in newest_first(run, which):
        problem = problem_of(path)
        if problem is None:
            return path
        told = f"The checkpoint {path} is damaged: {problem}."
        require(may_fall_back, f"{told} Run `deeplense verify {run}` to see what to do.")
        say(f"{told} It is not used.")
    raise ValueError(f"{run} has no intact checkpoint of its {which} weights yet; train it further.")


def refuse_edited(run: Path, stored: Mapping[str, Any], recorded: Mapping[str, Any], *, step: int) -> None:
    """Raise ValueError, naming the first, if settings in `config.yaml` differ from those of the training."""
    for problem in edited_settings(run, stored, recorded, step=step):
        raise ValueError(f"{problem}.")


def edited_settings(
    run: Path, stored: Mapping[str, Any], recorded: Mapping[str, Any], *, step: int, with_free: bool = False
) -> Iterator[str]:
    """Yield one line for each setting in `config.yaml` that differs from the training, with the correction. Settings
    that do not affect numerical results are included only `with_free`."""
    known = {field.name: field for field in fields(JOBS[job_of(recorded)])}
    free = {"run", *RETIRED, *(name for name, field in known.items() if field.metadata.get("free") and not with_free)}
    for name in sorted({*stored, *recorded} - free, key=str):
        default = known[name].default if name in known else MISSING
        default = NOTHING if default is MISSING else default
        here, right = stored.get(name, default), recorded.get(name, default)
        if here != right or isinstance(here, bool) != isinstance(right, bool):
            remedy = f"the correct line is `{name}: {in_yaml(right)}`" if right != NOTHING else "remove that line"
            yield (
                f"{run / CONFIG} has {name}={here}, but the checkpoint of step {step} has {name}={right}: the file was "
                f"damaged or edited; restore it ({remedy})"
            )


def in_yaml(value: Any) -> str:
    """Return a value as it is written in `config.yaml`."""
    import yaml

    return yaml.safe_dump(value).removesuffix("...\n").strip()


def file_was_changed(run: Path, record: Mapping[str, Any]) -> bool:
    """Whether `config.yaml` differs byte by byte from the file that the training wrote, as far as known."""
    return CONFIG_HASH in record and record[CONFIG_HASH] != checksum(run / CONFIG)


def extent_of(opened: Opened[Any], total: int) -> Extent:
    """Return the progress of a training with this total number of steps."""
    path = opened.run / FINISHED
    if path.exists():
        told = read_json(path)
        return Extent(told.get("step", total) if isinstance(told, Mapping) else total, total, True)
    steps = [step_of(path) for path in newest_first(opened.run, "last")]
    return Extent(max([opened.step, *steps]), total, False)


def train_settings(run: Path) -> TrainSettings:
    """Return the settings of a run of `deeplense train` or `deeplense finetune --mode full`, from `config.yaml`. Raises
    ValueError for other runs, with their purpose."""
    stored = stored_config(run)
    require_job(run, stored, "train")
    return from_plain(TrainSettings, stored)
