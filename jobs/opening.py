"""The one door for a run that is used: to evaluate it, to start from it, to make images with it, to take it away.

What a run is, its checkpoint says: the record there holds the settings, and `config.yaml` is compared with it. Nothing
in the folder of the run is changed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from deeplense.data.dataset import Split
from deeplense.files import checksum, read_json
from deeplense.training import checkpoint
from jobs.config import RETIRED, from_plain, require
from jobs.diffuse import Settings as DiffuseSettings
from jobs.learning import LearningSettings
from jobs.pretrain import Settings as PretrainSettings
from jobs.progress import say
from jobs.resuming import problem_of
from jobs.runs import CONFIG, CONFIG_HASH, FINISHED, job_of, require_job, stored_config
from jobs.train import Settings as TrainSettings

Which = Literal["best", "last"]
AnySettings = TypeVar("AnySettings", bound=LearningSettings)
CHECKPOINTS = "checkpoints"
KINDS = {"best": "best", "last": "step"}
JOBS: Mapping[str, type[LearningSettings]] = {
    "train": TrainSettings,
    "pretrain": PretrainSettings,
    "diffuse": DiffuseSettings,
}
NOTHING = "nothing"


@dataclass(frozen=True)
class Opened(Generic[AnySettings]):
    """A run, one of its checkpoints, and the settings that the run was trained with. `record` is empty where the run is
    of a version that kept none."""

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
        """One state of the checkpoint, such as `model`. Raises ValueError where it is damaged or not there."""
        found = checkpoint.load(self.checkpoint, only=(name,))
        require(name in found, f"{self.checkpoint} holds no {name}; it is of another program.")
        return found[name]

    def require_data(self, split: Split) -> None:
        """Raise ValueError where this is not the split that the run was trained on."""
        require(
            self.progress["dataset_id"] == split.dataset_id,
            f"{split.name} is not the data set that {self.run} was trained on: its images or labels are others now. "
            "Bring that one back, or train again under another --run.",
        )


@dataclass(frozen=True)
class Extent:
    """How much of a training is done."""

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
    """Open a run of a job, with its best or last weights. Raises ValueError where it is a run of another job, has no
    good checkpoint, or `config.yaml` does not say what the run was trained with.

    `may_fall_back`: where the newest checkpoint is damaged, say so and take the one before.
    """
    settings, record = checked_settings(run, job, kind)
    path = good_checkpoint(run, which, may_fall_back=may_fall_back)
    found = checkpoint.load(path, only=("progress", "record"))
    return Opened(run, settings, which, path, found["progress"], found.get("record") or record)


def checked_settings(run: Path, job: str, kind: type[AnySettings]) -> tuple[AnySettings, Mapping[str, Any]]:
    """The settings that a run was trained with, and the record that says so, empty where there is none. Raises
    ValueError where it is a run of another job, or `config.yaml` says otherwise."""
    step, record = newest_record(run)
    recorded = record.get("settings")
    stored = stored_config(run)
    require_job(run, recorded or stored, job)
    if recorded:
        refuse_edited(run, stored, recorded, step=step)
        # Of what changes no number only the place of the data is needed, and that may have moved.
        recorded = dict(recorded) | {"data_root": stored.get("data_root", recorded["data_root"])}
    values = dict(recorded or stored) | {"run": str(run)}
    try:
        return from_plain(kind, values), record
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{run / CONFIG} holds no settings of `deeplense {job}`: {error}") from error


def newest_record(run: Path) -> tuple[int, Mapping[str, Any]]:
    """The step and the record of the newest checkpoint that has a whole one; 0 and nothing where there is none."""
    for path in newest_first(run, "last") + newest_first(run, "best"):
        try:
            record = checkpoint.load(path, only=("record",)).get("record")
        except ValueError:
            continue
        if record:
            return step_of(path), record
    return 0, {}


def newest_first(run: Path, which: Which) -> list[Path]:
    """The checkpoints of a kind, the newest first."""
    return sorted((run / CHECKPOINTS).glob(f"{KINDS[which]}_*"), reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    number = path.name.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0


def good_checkpoint(run: Path, which: Which, *, may_fall_back: bool) -> Path:
    """The newest whole checkpoint with the best or last weights. Raises ValueError where there is none."""
    for path in newest_first(run, which):
        problem = problem_of(path)
        if problem is None:
            return path
        told = f"The checkpoint {path} is damaged: {problem}."
        require(may_fall_back, f"{told} `deeplense verify {run}` says what to do.")
        say(f"{told} It is not used.")
    raise ValueError(f"{run} has no checkpoint of its {which} weights yet that is whole; train it further.")


def refuse_edited(run: Path, stored: Mapping[str, Any], recorded: Mapping[str, Any], *, step: int) -> None:
    """Raise ValueError, naming the first, where `config.yaml` says other settings than the run was trained with."""
    for problem in edited_settings(run, stored, recorded, step=step):
        raise ValueError(f"{problem}.")


def edited_settings(
    run: Path, stored: Mapping[str, Any], recorded: Mapping[str, Any], *, step: int, with_free: bool = False
) -> Iterator[str]:
    """A line for each setting of `config.yaml` that is not what the run was trained with, and what to do; settings that
    change no number only `with_free`."""
    known = {field.name: field for field in fields(JOBS[job_of(recorded)])}
    free = {"run", *RETIRED, *(name for name, field in known.items() if field.metadata.get("free") and not with_free)}
    for name in sorted({*stored, *recorded} - free, key=str):
        default = known[name].default if name in known else MISSING
        default = NOTHING if default is MISSING else default
        here, right = stored.get(name, default), recorded.get(name, default)
        if here != right or isinstance(here, bool) != isinstance(right, bool):
            remedy = f"the right line is `{name}: {in_yaml(right)}`" if right != NOTHING else "remove that line"
            yield (
                f"{run / CONFIG} says {name}={here}, the checkpoint of step {step} says {name}={right}: the file was "
                f"damaged or edited; restore it ({remedy})"
            )


def in_yaml(value: Any) -> str:
    """A setting as it stands in `config.yaml`."""
    import yaml

    return yaml.safe_dump(value).removesuffix("...\n").strip()


def file_was_changed(run: Path, record: Mapping[str, Any]) -> bool:
    """Whether `config.yaml` is not the file that the training wrote, byte by byte, as far as that is known."""
    return CONFIG_HASH in record and record[CONFIG_HASH] != checksum(run / CONFIG)


def extent_of(opened: Opened[Any], total: int) -> Extent:
    """How much of a training of so many steps is done."""
    path = opened.run / FINISHED
    if path.exists():
        told = read_json(path)
        return Extent(told.get("step", total) if isinstance(told, Mapping) else total, total, True)
    steps = [step_of(path) for path in newest_first(opened.run, "last")]
    return Extent(max([opened.step, *steps]), total, False)
