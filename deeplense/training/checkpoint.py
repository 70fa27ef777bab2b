"""Checkpoints: folders of safetensors and JSON, each file hashed, written beside, synced, renamed into place,
verified when read.

    CHECKPOINTS/step_00001200/  NAME.safetensors  NAME.json  ...  manifest.json

NAME is what has the state (model, optimizer, ...). No pickles. Of states that are sharded over ranks, there are the
pieces of each (see `sharded`), from which the whole is read.
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
"""The same without a time and a hash of the manifest itself; still read."""
MANIFEST = "manifest.json"
NAME = re.compile(r"\w[\w.]*(\.rank-\d{5})?\.(json|safetensors)", re.ASCII)
LARGEST_TREE = 1 << 28
"""Bytes of what is no tensor in a state."""
State = Mapping[str, Any]
Buffers = dict[str, Image]
"""Memory for the tensors of each state, kept from one snapshot to the next: to get it anew takes longer than the
copy."""
Read = TypeVar("Read")


@dataclass(frozen=True)
class Snapshot:
    """Copies of states at one time (UTC): what is no tensor as a tree, the tensors as the bytes of their file."""

    time: str
    trees: Mapping[str, Any]
    images: Mapping[str, Tensor]


def image_for(tensors: Mapping[str, Tensor], name: str, buffers: Buffers) -> Image:
    """The memory in `buffers` for the tensors of a state, made unless it is there."""
    if name not in buffers or not tensor_file.fits(buffers[name], tensors):
        buffers.pop(name, None)
        buffers[name] = tensor_file.make_image(tensors)
    return buffers[name]


def prepare(states: Mapping[str, State], buffers: Buffers) -> None:
    """Get the memory for snapshots of such states."""
    for name, (_, tensors) in parts_of(states).items():
        image_for(tensors, name, buffers)


def snapshot(states: Mapping[str, State], buffers: Buffers) -> Snapshot:
    """Copy states into `buffers`, which must stay as they are until the snapshot is written."""
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
    """States as a tree and tensors each, by the name of their files."""
    parts: dict[str, tuple[Any, dict[str, Tensor]]] = {}
    for name, state in states.items():
        tensors: dict[str, Tensor] = {}
        parts[name] = flatten(state, tensors), tensors
    return parts


def write(path: Path, taken: Snapshot, *, ready: Callable[[Path], None] = lambda folder: None) -> None:
    """Write a checkpoint folder, whole or not at all.

    `ready` is called with the folder once it is whole and on the disk, just before it takes its place; what it raises
    prevents that.
    """
    with replacing(path) as temporary:
        temporary.mkdir()
        write_manifest(temporary, write_files(temporary, taken), time=taken.time)
        sync_tree(temporary)
        ready(temporary)


def write_files(folder: Path, taken: Snapshot) -> dict[str, str]:
    """Write the files of a snapshot; returns their checksums."""
    files = {}
    for name, tree in taken.trees.items():
        files[f"{name}.json"] = put(folder / f"{name}.json", json.dumps(tree).encode())
        files[f"{name}.safetensors"] = put(folder / f"{name}.safetensors", taken.images[name].numpy().data)
    return files


def save(path: Path, states: Mapping[str, State]) -> None:
    """Write a checkpoint folder, whole or not at all."""
    write(path, snapshot(states, {}))


def put(path: Path, content: bytes | memoryview) -> str:
    """Write a file; returns the checksum of what was to be written."""
    path.write_bytes(content)
    return xxhash.xxh3_128_hexdigest(content)


def write_manifest(folder: Path, files: Mapping[str, str], *, time: str) -> None:
    """Write the list of files with their checksums."""
    content = {"format": FORMAT, "time": time, "files": dict(sorted(files.items()))}
    (folder / MANIFEST).write_text(json.dumps(content | {"hash": hash_of(content)}, indent=2) + "\n")


def hash_of(content: Mapping[str, Any]) -> str:
    """The hash of a manifest, without that hash."""
    rest = {name: value for name, value in content.items() if name != "hash"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises ValueError where it is not whole, or lists what no checkpoint has, OSError
    where it cannot be read."""
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, BEFORE):
        raise ValueError(f"is not of the format {FORMAT}")
    if manifest["format"] == FORMAT and manifest.get("hash") != hash_of(manifest):
        raise ValueError(f"{MANIFEST} does not match its hash")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{MANIFEST} lists no files")
    for name, expected in files.items():
        if not isinstance(expected, str) or not NAME.fullmatch(name) or partner_of(name) not in files:
            raise ValueError(f"{MANIFEST} lists {name!r:.80}, which is no file of a checkpoint")
        inside(path, name, record=path / MANIFEST)
    return manifest


def partner_of(name: str) -> str:
    """The other of the two files of a state."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.safetensors" if ending == "json" else f"{stem}.json"


def verified(read: Callable[[Path], tuple[Read, str]], file: Path, expected: str) -> Read:
    """What `read` gives beside the checksum. Raises ValueError where that is not the expected one."""
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
    """What is wrong with a checkpoint, or None: every byte of it is read."""
    try:
        for _ in read_states(path):
            pass
    except (ValueError, OSError, RecursionError) as error:
        return str(error)
    return None


def load(path: Path, *, only: Collection[str] | None = None) -> dict[str, State]:
    """Read a checkpoint, or `only` the states of these names, each file once; what was written in pieces is put
    together. Raises ValueError, saying what is wrong, where it is damaged."""
    try:
        return dict(read_states(path, only=only))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"The checkpoint {path} is damaged: {error}.") from error


def read_states(path: Path, *, only: Collection[str] | None = None) -> Iterator[tuple[str, State]]:
    """The states of a checkpoint, or `only` those of these names, one after the other."""
    files = read_manifest(path)["files"]
    for file in files:
        name, _, ending = file.rpartition(".")
        if ending == "json" and not sharded.is_piece(name) and (only is None or name in only):
            yield name, load_state(path, name, files)


def load_state(path: Path, name: str, files: Mapping[str, str]) -> State:
    """One state of a checkpoint whose files have these checksums."""
    tree, tensors = load_part(path, name, files)
    parts = [file.removesuffix(".json") for file in files if sharded.is_piece(file, of=name) and file.endswith(".json")]
    if parts:
        tensors |= sharded.put_together(load_part(path, part, files) for part in parts)
    state = unflatten(tree, tensors)
    if not isinstance(state, dict):
        raise ValueError(f"{name}.json holds no state")
    return state


def load_part(path: Path, name: str, files: Mapping[str, str]) -> tuple[Any, dict[str, Tensor]]:
    """The tree and the tensors in two files."""
    text, image = (
        verified(tensor_file.read, path / file, files[file]) for file in (f"{name}.json", f"{name}.safetensors")
    )
    if len(text) > LARGEST_TREE:
        raise ValueError(f"{name}.json has {len(text)} bytes, more than any state")
    try:
        tree, tensors = json.loads(bytes(text.numpy())), tensor_file.released(tensor_file.tensors_in(image))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read ({error})") from error
    if not is_finite(tensors.values()):
        raise ValueError(f"{name}.safetensors holds numbers that are not finite, of a training that failed")
    return tree, tensors


def link(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Make a checkpoint of some states of another one, `names` telling what each is called there, from the same files:
    by hard links, or as copies where the file system has none."""
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
    """Give a file a second name."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def step_folder(checkpoints: Path, step: int, *, kind: str = "step") -> Path:
    """Where the checkpoint of a step stands."""
    return checkpoints / f"{kind}_{step:08d}"


def newest_good(
    checkpoints: Path,
    *,
    kind: str = "step",
    problem_of: Callable[[Path], str | None] = damage,
    misfit_of: Callable[[Path], str] = lambda path: "",
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole and fits, and a line for each newer one; those are renamed to `damaged_...`.

    Raises ValueError where one that is whole does not fit and none before it is better: then it is not the checkpoint
    that is wrong.
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
            f"The checkpoint {path} does not fit the settings and this version: {words}. If it was altered, remove it."
        )
    return None, reports


def put_aside(path: Path, problem: str) -> str:
    """Rename a checkpoint that is not to be used; returns a line that tells so."""
    aside = path.with_name(f"damaged_{path.name}")
    remove(aside)
    path.rename(aside)
    return f"the checkpoint {path.name} is damaged ({problem}); it is kept as {aside.name} and not used"


def to_keep(times: Mapping[Path, float | None], *, count: int, every_hours: float | None = None) -> set[Path]:
    """Of checkpoints in the order of their steps, with their times in seconds, the last `count`, and if `every_hours`
    is given the first and then always the next that is so much later. Those without a time are kept by number only."""
    kept, last = set(list(times)[-count:]), -math.inf
    for path, time in times.items():
        if every_hours is not None and time is not None and time - last >= 3600 * every_hours:
            kept.add(path)
            last = time
    return kept


def time_of(path: Path) -> float | None:
    """When the states of a checkpoint were taken, in seconds; None where it does not say."""
    try:
        return datetime.fromisoformat(read_manifest(path)["time"]).timestamp()
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return None


def remove_old(checkpoints: Path, *, count: int, every_hours: float | None = None, kind: str = "step") -> None:
    """Remove all checkpoints but those `to_keep`, and what killed writers left. Call it after the newest is safe."""
    times = {path: time_of(path) if every_hours else None for path in sorted(checkpoints.glob(f"{kind}_*"))}
    for path in times.keys() - to_keep(times, count=count, every_hours=every_hours):
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a good name.
        doomed = path.with_name(f".writing-removed-{path.name}")
        remove(doomed)
        path.rename(doomed)
    remove_leftovers(checkpoints)
