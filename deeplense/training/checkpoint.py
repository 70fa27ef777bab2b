"""Checkpoints: folders of safetensors and JSON files with checksums, written beside, synced, renamed into place, and
verified when read.

CHECKPOINTS/step_00001200/  NAME.safetensors  NAME.json  ...  manifest.json

NAME is the owner of the state (model, optimizer, ...). There are no pickles. States that are sharded over ranks are
stored in pieces (see `sharded`), from which the whole is read.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash
from torch import Tensor

from deeplense.files import (
    inside,
    read_json,
    remove,
    remove_leftovers,
    replacing,
    sync_tree,
)
from deeplense.training import sharded, tensor_file
from deeplense.training.finite import is_finite
from deeplense.training.tensor_file import Image
from deeplense.training.trees import flatten, unflatten

FORMAT = "deeplense-checkpoint/2"
BEFORE = "deeplense-checkpoint/1"
"""The earlier format, without a time and a hash of the manifest itself; still read."""
MANIFEST = "manifest.json"
NAME = re.compile(r"\w[\w.]*(\.rank-\d{5})?\.(json|safetensors)", re.ASCII)
LARGEST_TREE = 1 << 28
"""Largest number of bytes of the non-tensor part of a state."""
State = Mapping[str, Any]
Buffers = dict[str, Image]
"""Memory for the tensors of each state, kept from one snapshot to the next: to allocate it again takes longer than the
copy."""
Read = TypeVar("Read")


@dataclass(frozen=True)
class Snapshot:
    """Copies of states at one time.

    Args:
        time: time of the snapshot, UTC, ISO 8601.
        trees: non-tensor part of each state.
        images: tensors of each state, as the bytes of their file.
    """

    time: str
    trees: Mapping[str, Any]
    images: Mapping[str, Tensor]


def image_for(tensors: Mapping[str, Tensor], name: str, buffers: Buffers) -> Image:
    """Return the memory in `buffers` for the tensors of a state, allocated if needed.

    Args:
        tensors: tensors of the state by name.
        name: name of the state.
        buffers: memory, extended in place.
    """
    if name not in buffers or not tensor_file.fits(buffers[name], tensors):
        buffers.pop(name, None)
        buffers[name] = tensor_file.make_image(tensors)
    return buffers[name]


def prepare(states: Mapping[str, State], buffers: Buffers) -> None:
    """Allocate the memory for snapshots of such states.

    Args:
        states: states by name.
        buffers: memory, extended in place.
    """
    for name, (_, tensors) in parts_of(states).items():
        image_for(tensors, name, buffers)


def snapshot(states: Mapping[str, State], buffers: Buffers) -> Snapshot:
    """Copy states into `buffers`, which must stay unchanged until the snapshot is written.

    Args:
        states: nested dictionaries and lists of tensors and JSON values, by name.
        buffers: memory from an earlier snapshot, or an empty dictionary.

    Example:
        >>> taken = snapshot({"model": {"weight": torch.ones(2)}}, {})
        >>> sorted(taken.images)
        ['model']
    """
    parts = parts_of(states)
    images = {name: image_for(tensors, name, buffers) for name, (_, tensors) in parts.items()}
    for name, (_, tensors) in parts.items():
        tensor_file.fill(images[name], tensors)
    if any(tensor.device.type != "cpu" for _, tensors in parts.values() for tensor in tensors.values()):
        torch.accelerator.synchronize()
    trees = {name: tree for name, (tree, _) in parts.items()}
    contents = {name: image.content for name, image in images.items()}
    return Snapshot(datetime.now(UTC).isoformat(timespec="milliseconds"), trees, contents)


def parts_of(states: Mapping[str, State]) -> dict[str, tuple[Any, dict[str, Tensor]]]:
    """Return states as a tree and tensors each, by name."""
    parts: dict[str, tuple[Any, dict[str, Tensor]]] = {}
    for name, state in states.items():
        tensors: dict[str, Tensor] = {}
        parts[name] = flatten(state, tensors), tensors
    return parts


def write(path: Path, taken: Snapshot, *, ready: Callable[[Path], None] = lambda folder: None) -> None:
    """Write a checkpoint folder, completely or not at all.

    Args:
        path: folder of the checkpoint.
        taken: the snapshot.
        ready: called with the complete, synced folder just before it is renamed to `path`; an exception prevents that.
    """
    with replacing(path) as temporary:
        temporary.mkdir()
        write_manifest(temporary, write_files(temporary, taken), time=taken.time)
        sync_tree(temporary)
        ready(temporary)


def write_files(folder: Path, taken: Snapshot) -> dict[str, str]:
    """Write the files of a snapshot; returns their checksums by name.

    Args:
        folder: existing folder.
        taken: the snapshot.
    """
    files = {}
    for name, tree in taken.trees.items():
        files[f"{name}.json"] = put(folder / f"{name}.json", json.dumps(tree).encode())
        files[f"{name}.safetensors"] = put(folder / f"{name}.safetensors", taken.images[name].numpy().data)
    return files


def save(path: Path, states: Mapping[str, State]) -> None:
    """Write a checkpoint folder, completely or not at all.

    Args:
        path: folder of the checkpoint.
        states: nested dictionaries and lists of tensors and JSON values, by name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Path(folder) / "step_00000001", {"model": {"weight": torch.ones(2)}})
        ...     load(Path(folder) / "step_00000001")
        {'model': {'weight': tensor([1., 1.])}}
    """
    write(path, snapshot(states, {}))


def put(path: Path, content: bytes | memoryview) -> str:
    """Write a file; returns the checksum of the bytes that were to be written.

    Args:
        path: file to write.
        content: its bytes.
    """
    path.write_bytes(content)
    return xxhash.xxh3_128_hexdigest(content)


def write_manifest(folder: Path, files: Mapping[str, str], *, time: str) -> None:
    """Write the list of files with their checksums.

    Args:
        folder: folder of the checkpoint.
        files: checksums by file name.
        time: time of the snapshot, UTC, ISO 8601.
    """
    content = {"format": FORMAT, "time": time, "files": dict(sorted(files.items()))}
    (folder / MANIFEST).write_text(json.dumps(content | {"hash": hash_of(content)}, indent=2) + "\n")


def hash_of(content: Mapping[str, Any]) -> str:
    """Return the hash of a manifest, without the entry of that hash."""
    rest = {name: value for name, value in content.items() if name != "hash"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises:
        ValueError: it is incomplete, or lists files that no checkpoint has.
        OSError: it cannot be read.
    """
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, BEFORE):
        raise ValueError(f"does not have the format {FORMAT}")
    if manifest["format"] == FORMAT and manifest.get("hash") != hash_of(manifest):
        raise ValueError(f"{MANIFEST} does not match its hash")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{MANIFEST} lists no files")
    for name, expected in files.items():
        if not isinstance(expected, str) or not NAME.fullmatch(name) or partner_of(name) not in files:
            raise ValueError(f"{MANIFEST} lists {name!r:.80}, which is not a checkpoint file")
        inside(path, name, record=path / MANIFEST)
    return manifest


def partner_of(name: str) -> str:
    """Return the name of the other file of a state."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.safetensors" if ending == "json" else f"{stem}.json"


def verified(read: Callable[[Path], tuple[Read, str]], file: Path, expected: str) -> Read:
    """Return the content of a file after verification.

    Args:
        read: returns the content and the checksum of a file.
        file: file to read.
        expected: expected checksum.

    Raises:
        ValueError: the file is missing, cannot be read, or has another checksum.
    """
    try:
        content, found = read(file)
    except FileNotFoundError:
        raise ValueError(f"{file.name} is missing") from None
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read ({error})") from error
    if found != expected:
        raise ValueError(f"{file.name} does not match its checksum")
    return content


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None. All of its bytes are read."""
    try:
        for _ in read_states(path):
            pass
    except (ValueError, OSError, RecursionError) as error:
        return str(error)
    return None


def load(path: Path, *, only: Collection[str] | None = None) -> dict[str, State]:
    """Read a checkpoint; states that were written in pieces are put together.

    Args:
        path: folder of the checkpoint.
        only: names of the states to read; None for all.

    Raises:
        ValueError: the checkpoint is damaged; the message says how.
    """
    try:
        return dict(read_states(path, only=only))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"The checkpoint {path} is damaged: {error}.") from error


def read_states(path: Path, *, only: Collection[str] | None = None) -> Iterator[tuple[str, State]]:
    """Yield name and state of a checkpoint, one after the other.

    Args:
        path: folder of the checkpoint.
        only: names of the states to read; None for all.
    """
    files = read_manifest(path)["files"]
    for file in files:
        name, _, ending = file.rpartition(".")
        if ending == "json" and not sharded.is_piece(name) and (only is None or name in only):
            yield name, load_state(path, name, files)


def load_state(path: Path, name: str, files: Mapping[str, str]) -> State:
    """Return one state of a checkpoint.

    Args:
        path: folder of the checkpoint.
        name: name of the state.
        files: checksums by file name.

    Raises:
        ValueError: a file is damaged, or pieces are missing.
    """
    tree, tensors = load_part(path, name, files)
    parts = [file.removesuffix(".json") for file in files if sharded.is_piece(file, of=name) and file.endswith(".json")]
    if parts:
        tensors |= sharded.put_together(load_part(path, part, files) for part in parts)
    state = unflatten(tree, tensors)
    if not isinstance(state, dict):
        raise ValueError(f"{name}.json contains no state")
    return state


def load_part(path: Path, name: str, files: Mapping[str, str]) -> tuple[Any, dict[str, Tensor]]:
    """Return the tree and the tensors of two files.

    Args:
        path: folder of the checkpoint.
        name: stem of the two files.
        files: checksums by file name.

    Raises:
        ValueError: a file is damaged, or a number is not finite.
    """
    text, image = (
        verified(tensor_file.read, path / file, files[file]) for file in (f"{name}.json", f"{name}.safetensors")
    )
    if len(text) > LARGEST_TREE:
        raise ValueError(f"{name}.json has {len(text)} bytes, too many for a state")
    try:
        tree, tensors = json.loads(bytes(text.numpy())), tensor_file.released(tensor_file.tensors_in(image))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read ({error})") from error
    if not is_finite(tensors.values()):
        raise ValueError(f"{name}.safetensors contains non-finite numbers from a failed training")
    return tree, tensors


def link(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Make a checkpoint from some states of another one, with the same files: by hard links, or copies if the file
    system has no links.

    Args:
        source: folder of the other checkpoint.
        target: folder of the new one.
        names: name of each state in `source`, by its name in `target`.
    """
    manifest = read_manifest(source)
    with replacing(target) as temporary:
        temporary.mkdir()
        files = {}
        for name, original in names.items():
            for file, expected in manifest["files"].items():
                if file in (f"{original}.json", f"{original}.safetensors") or sharded.is_piece(file, of=original):
                    link_or_copy(source / file, temporary / f"{name}{file.removeprefix(original)}")
                    files[f"{name}{file.removeprefix(original)}"] = expected
        write_manifest(temporary, files, time=manifest["time"])


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name.

    Args:
        source: existing file.
        target: new name.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def step_folder(checkpoints: Path, step: int, *, kind: str = "step") -> Path:
    """Return the folder of the checkpoint of a step.

    Args:
        checkpoints: folder of all checkpoints.
        step: number of updates made.
        kind: prefix of the name.

    Example:
        >>> step_folder(Path("run"), 1200).name
        'step_00001200'
    """
    return checkpoints / f"{kind}_{step:08d}"


def newest_good(
    checkpoints: Path,
    *,
    kind: str = "step",
    problem_of: Callable[[Path], str | None] = damage,
    misfit_of: Callable[[Path], str] = lambda path: "",
) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is complete and fits, and a message per newer one, each moved aside as
    `damaged_...`.

    Args:
        checkpoints: folder of all checkpoints.
        kind: prefix of their names.
        problem_of: returns what is wrong with a checkpoint, or None.
        misfit_of: returns why a complete checkpoint does not fit the settings, or "".

    Raises:
        ValueError: a complete checkpoint does not fit, and none before it does: then the checkpoint is not at fault.
    """
    reports, unfit = [], {}
    for path in sorted(checkpoints.glob(f"{kind}_*"), reverse=True):
        problem = problem_of(path)
        if problem is not None:
            reports.append(put_aside(path, problem))
        elif words := misfit_of(path):
            unfit[path] = words
        else:
            return path, [*reports, *(put_aside(path, words) for path, words in unfit.items())]
    for path, words in unfit.items():
        raise ValueError(
            f"The checkpoint {path} does not match the settings or this version: {words}. If it was altered, remove it."
        )
    return None, reports


def put_aside(path: Path, problem: str) -> str:
    """Move a damaged checkpoint aside; returns a message about it.

    Args:
        path: folder of the checkpoint.
        problem: what is wrong with it.
    """
    aside = path.with_name(f"damaged_{path.name}")
    remove(aside)
    path.rename(aside)
    return f"the checkpoint {path.name} is damaged ({problem}); it is kept as {aside.name} and not used"


def to_keep(times: Mapping[Path, float | None], *, count: int, every_hours: float | None = None) -> set[Path]:
    """Return the checkpoints to keep: the last ones, and one every few hours. Those without a time are kept by number
    only.

    Args:
        times: times in seconds, or None, of checkpoints in the order of their steps.
        count: number of last checkpoints to keep, at least 1.
        every_hours: keep the first, and then each next that is at least this many hours later; None for none.

    Example:
        >>> times = {Path(str(hour)): 3600.0 * hour for hour in range(5)}
        >>> sorted(str(path) for path in to_keep(times, count=1, every_hours=2.0))
        ['0', '2', '4']
    """
    kept, last = set(list(times)[-count:]), -math.inf
    for path, time in times.items():
        if every_hours is not None and time is not None and time - last >= 3600 * every_hours:
            kept.add(path)
            last = time
    return kept


def time_of(path: Path) -> float | None:
    """Return the time of the snapshot of a checkpoint in seconds; None if it is unknown."""
    try:
        return datetime.fromisoformat(read_manifest(path)["time"]).timestamp()
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return None


def remove_old(checkpoints: Path, *, count: int, every_hours: float | None = None, kind: str = "step") -> None:
    """Remove all checkpoints except those `to_keep`, and files of killed writers. Call it after the newest is safe.

    Args:
        checkpoints: folder of all checkpoints.
        count: number of last checkpoints to keep, at least 1.
        every_hours: see `to_keep`.
        kind: prefix of their names.
    """
    times = {path: time_of(path) if every_hours else None for path in sorted(checkpoints.glob(f"{kind}_*"))}
    for path in times.keys() - to_keep(times, count=count, every_hours=every_hours):
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a good name.
        doomed = path.with_name(f".writing-removed-{path.name}")
        remove(doomed)
        path.rename(doomed)
    remove_leftovers(checkpoints)
