"""Export a checkpoint of a run to a standalone weights file with a description."""

import filecmp
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deeplense.data.scaling import FORMULAS
from deeplense.files import TEMPORARY, replacing, write_json
from deeplense.models.portable import Form, write_portable
from deeplense.models.sizes import InputSize
from deeplense.records import read_record
from jobs.console import say
from jobs.data.seen import as_text
from jobs.export.settings import Settings
from jobs.runs.folder import ENVIRONMENT, KINDS, find_run
from jobs.runs.lineage import seen_of
from jobs.settings import plain, require
from jobs.train.stored import TrainedRun, open_trained, tell_unfinished

FORMAT = "deeplense-export/1"


def run(settings: Settings) -> int:
    """Write the files to a temporary folder beside the output, test them, and move them into place."""
    # No fallback: replacing a damaged checkpoint by another would export other weights under the same name.
    trained = open_trained(find_run(settings.run, settings.runs_root), which=settings.weights, may_fall_back=False)
    tell_unfinished([trained])
    channels, size, _ = trained.train.split.schema.shape
    network = trained.network()
    output = settings.output
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{TEMPORARY}export-", dir=output.parent) as folder:
        path, name = Path(folder) / output.name, trained.settings.model_name
        form, why = write_portable(network, name, path, in_chans=channels, image_size=size)
        told = description(trained, form, why, network.input_size, Path(folder))
        write_json(path.with_name(f"{output.name}.json"), told)
        # The weights are moved last, so if they exist, all files do.
        names = [*list(form.files)[1:], f"{output.name}.json", output.name]
        put_in_place(Path(folder), output.parent, names)
    tell(output, trained, form, why)
    return 0


def description(
    trained: TrainedRun, form: Form, why: str | None, input_size: InputSize, folder: Path
) -> dict[str, Any]:
    """Return the description of how to use the weights and where they come from."""
    settings, schema = trained.settings, trained.train.split.schema
    return {
        "format": FORMAT,
        "python": form.python(),
        "not_one_timm_file_because": why,
        "model_name": form.name,
        "in_chans": schema.shape[0],
        "bands": list(schema.bands),
        "num_outputs": 1 if settings.regression else len(schema.classes),
        "classes": None if settings.regression else list(schema.classes),
        "target": target(trained) if settings.regression else None,
        "images": images(schema.shape[-1], input_size, by_model=not form.of_timm),
        "normalisation": {
            "formula": FORMULAS[settings.stretch],
            "stretch": settings.stretch,
            **trained.opened.progress["statistics"],
        },
        "sha256": {name: sha256(folder / name) for name in form.files},
        "weights": {
            "which": trained.opened.which,
            "step": trained.opened.progress["step"],
            "running_mean": settings.ema_decay is not None and trained.opened.which == "best",
        },
        "training": asdict(trained.extent),
        "settings": plain(settings),
        "dataset_id": trained.opened.progress["dataset_id"],
        "environment": environment_of(trained.run),
        "seen": as_text(seen_of(trained.opened)),
    }


def environment_of(run: Path) -> dict[str, Any] | None:
    """Return the recorded environment in which a run was started; None if it is missing or damaged."""
    try:
        return read_record(run / ENVIRONMENT, KINDS[ENVIRONMENT])
    except (ValueError, FileNotFoundError) as error:
        say(f"note: the environment of the run is not exported: {error}")
        return None


def target(trained: TrainedRun) -> dict[str, Any]:
    """Describe how an output is converted to the value of the regression target."""
    settings = trained.settings
    center, scale = trained.objective().target_scale
    unit = trained.train.split.schema.targets[settings.target]
    return {
        "name": settings.target,
        "unit": unit,
        "formula": "output * scale + center",
        "center": center,
        "scale": scale,
    }


def images(size: int, input_size: InputSize, *, by_model: bool) -> dict[str, Any]:
    """Describe how normalised images of the data set's size are padded or resized for the model."""
    before = (input_size.size - size) // 2
    after = input_size.size - size - before
    python = {
        "native": None,
        "pad": f"torch.nn.functional.pad(images, {(before, after, before, after)}, mode='reflect')",
        "resize": f"torch.nn.functional.interpolate(images, size={input_size.size}, mode='bilinear', antialias=True)",
    }[input_size.way]
    return {"size": size, "way": input_size.way, "model_size": input_size.size, "python": None if by_model else python}


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_in_place(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Move files into a folder. Raises ValueError, before any is moved, if different files of these names exist."""
    there = [name for name in names if (folder / name).exists()]
    others = [name for name in there if not filecmp.cmp(source / name, folder / name, shallow=False)]
    require(not others, f"{folder} has different files {', '.join(others)}; give another --output, or remove them.")
    for name in names:
        if name not in there:
            with replacing(folder / name) as temporary:
                (source / name).rename(temporary)


def tell(output: Path, trained: TrainedRun, form: Form, why: str | None) -> None:
    """Print what was written and how to use it."""
    say(
        f"wrote {', '.join(form.files)} to {output.parent}: the {trained.opened.which} weights of {trained.run} from "
        f"step {trained.opened.progress['step']}. {output.name}.json describes how to use them:"
    )
    if why:
        say(f"not exported as a single timm file, because {why}")
    for line in form.python():
        say(f"  {line}")
