"""Checkpoints: folders of safetensors and JSON, each file hashed, written beside, synced, renamed into place,
verified when read.

    CHECKPOINTS/step_00001200/  NAME.safetensors  NAME.json  ...  manifest.json

NAME is what has the state (model, optimizer, ...). No pickles.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from deeplense.files import checksum, read_json, remove, remove_leftovers, replacing, write_json

FORMAT = "deeplense-checkpoint/1"
MANIFEST = "manifest.json"
TENSOR = "__tensor__"
State = Mapping[str, Any]


def flatten(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """The nested state with each tensor replaced by a reference, the tensors going into `tensors` by their path."""
    if isinstance(state, Tensor):
        while path in tensors:
            path += "'"
        tensors[path] = state.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: path}
    if isinstance(state, Mapping):
        # Optimizers number their states: keys that are integers must come back as such.
        return {
            "__items__": [
                [name, flatten(value, tensors, f"{path}/{name}" if path else str(name))]
                for name, value in state.items()
            ]
        }
    if isinstance(state, list | tuple):
        return [flatten(value, tensors, f"{path}/{k}" if path else str(k)) for k, value in enumerate(state)]
    return state


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten` (tuples come back as lists)."""
    if isinstance(tree, Mapping):
        if TENSOR in tree:
            return tensors[tree[TENSOR]]
        return {name: unflatten(value, tensors) for name, value in tree["__items__"]}
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    return tree


def save(path: Path, states: Mapping[str, State]) -> None:
    """Write a checkpoint folder, whole or not at all."""
    with replacing(path) as temporary:
        temporary.mkdir()
        for name, state in states.items():
            tensors: dict[str, Tensor] = {}
            write_json(temporary / f"{name}.json", flatten(state, tensors))
            save_file(tensors, temporary / f"{name}.safetensors")
        files = {file.name: checksum(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, {"format": FORMAT, "files": files})


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every byte of it is read."""
    try:
        manifest = read_json(path / MANIFEST)
    except (ValueError, OSError) as error:
        return str(error)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return f"is not of the format {FORMAT}"
    files = manifest.get("files")
    if not isinstance(files, dict):
        return f"{MANIFEST} lists no files"
    for name, expected in files.items():
        try:
            if checksum(path / name) != expected:
                return f"{name} does not match its checksum"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    return None


def load(path: Path) -> dict[str, State]:
    """Read a checkpoint. Raises ValueError, saying what is wrong, where it is damaged."""
    problem = damage(path)
    if problem:
        raise ValueError(f"The checkpoint {path} is damaged: {problem}.")
    names = [file.stem for file in sorted(path.glob("*.safetensors"))]
    return {
        name: unflatten(read_json(path / f"{name}.json"), load_file(path / f"{name}.safetensors")) for name in names
    }


def step_folder(checkpoints: Path, step: int, *, kind: str = "step") -> Path:
    """Where the checkpoint of a step stands."""
    return checkpoints / f"{kind}_{step:08d}"


def newest_good(checkpoints: Path, *, kind: str = "step") -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not; those are renamed to
    `damaged_...`."""
    reports = []
    for path in sorted(checkpoints.glob(f"{kind}_*"), reverse=True):
        problem = damage(path)
        if problem is None:
            return path, reports
        aside = path.with_name(f"damaged_{path.name}")
        remove(aside)
        path.rename(aside)
        reports.append(f"the checkpoint {path.name} is damaged ({problem}); it is kept as {aside.name} and not used")
    return None, reports


def keep_newest(checkpoints: Path, *, count: int, kind: str = "step") -> None:
    """Remove all but the newest `count` checkpoints, and what killed writers left. Call it after the newest is safe."""
    for path in sorted(checkpoints.glob(f"{kind}_*"), reverse=True)[count:]:
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a good name.
        doomed = path.with_name(f".writing-removed-{path.name}")
        remove(doomed)
        path.rename(doomed)
    remove_leftovers(checkpoints)
