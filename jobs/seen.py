"""Which images a run has seen, by their pixels: a fact of the run, in its folder, whatever lies at a path later.

RUN/seen.npz, written when the run starts; each checkpoint has its checksum in its record. With what was trained on goes
what the weights that it starts from have seen: the images of a backbone's pretraining, and of that of an exported file.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from deeplense.data.dataset import in_pieces
from deeplense.data.order import rank_slice
from deeplense.files import checksum, replacing
from deeplense.training.loop import from_main, gather_lists
from jobs.config import require
from jobs.experiment import Part
from jobs.ranks import on_all

SEEN_HASH = "seen_hash"
"""In the record of a checkpoint, the checksum of that file."""
NONE = np.empty(0, dtype=np.uint64)
KINDS = {
    "trained": "trained on",
    "chose": "used for validation",
    "pretrained": "seen without label, by the pretraining",
}


@dataclass(frozen=True)
class Seen:
    """64-bit hashes of the pixels of images (n,), sorted: those that were trained on with their labels, those that
    chose the weights, and those that were trained on without labels."""

    trained: np.ndarray = field(default_factory=NONE.copy)
    chose: np.ndarray = field(default_factory=NONE.copy)
    pretrained: np.ndarray = field(default_factory=NONE.copy)
    unknown: tuple[str, ...] = ()
    """what the weights that it starts from have seen and nobody can tell, in words"""
    foreign: tuple[str, ...] = ()
    """weights of others that it starts from, in words"""

    def and_all(self, others: Iterable["Seen"]) -> "Seen":
        """All that any of them has seen."""
        every = [self, *others]
        return Seen(
            *(np.unique(np.concatenate([getattr(each, name) for each in every])) for name in KINDS),
            unknown=tuple(dict.fromkeys(text for each in every for text in each.unknown)),
            foreign=tuple(dict.fromkeys(text for each in every for text in each.foreign)),
        )


@dataclass(frozen=True)
class LeftOut:
    """How many images of a split are not evaluated, by why; an image counts once, under the first reason. `kept` were
    seen without label, and are evaluated nevertheless."""

    trained: int = 0
    chose: int = 0
    pretrained: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        """All that are left out."""
        return self.trained + self.chose + self.pretrained

    def __add__(self, other: "LeftOut") -> "LeftOut":
        return LeftOut(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        counts = ", ".join(f"{getattr(self, name)} {words}" for name, words in KINDS.items())
        kept = f"; {self.kept} seen without label, by the pretraining, are evaluated as asked" if self.kept else ""
        return f"left out: {counts}{kept}"


def write_seen(path: Path, seen: Seen) -> str:
    """Keep what a run has seen in a file; returns its checksum."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        columns: dict[str, Any] = {each.name: np.asarray(getattr(seen, each.name)) for each in fields(seen)}
        np.savez(file, **columns)
    return checksum(path)


def read_seen(path: Path, expected: str | None) -> Seen | None:
    """What a file says; None where it is not there, or has not the checksum that is expected."""
    if expected is None or not path.is_file() or checksum(path) != expected:
        return None
    with np.load(path, allow_pickle=False) as stored:
        texts = {name: tuple(map(str, stored[name])) for name in ("unknown", "foreign")}
        return Seen(*(stored[name] for name in KINDS), **texts)


def as_text(seen: Seen) -> dict[str, Any]:
    """What was seen as values for JSON: hashes as little-endian bytes in base64."""
    hashes = {name: b64encode(getattr(seen, name).astype("<u8").tobytes()).decode() for name in KINDS}
    return hashes | {"unknown": list(seen.unknown), "foreign": list(seen.foreign)}


def from_text(told: Mapping[str, Any]) -> Seen:
    """The inverse of `as_text`. Raises ValueError, KeyError or TypeError for other values."""
    hashes = (np.frombuffer(b64decode(told[name], validate=True), dtype="<u8").astype(np.uint64) for name in KINDS)
    return Seen(*hashes, unknown=tuple(map(str, told["unknown"])), foreign=tuple(map(str, told["foreign"])))


def hashes_of(parts: Sequence[Part], accelerator: Accelerator | None = None) -> np.ndarray:
    """The hashes of the pixels of all images of some parts, sorted; each rank reads its share, where there are
    several."""
    found = [NONE]
    for part in parts:
        pieces = in_pieces(part.indices)
        if accelerator is not None:
            pieces = pieces[rank_slice(len(pieces), accelerator.process_index, accelerator.num_processes)]
        mine = partial(hash_pieces, part, pieces)
        found += mine() if accelerator is None else gather_lists(accelerator, on_all(accelerator, mine))
    return np.unique(np.concatenate(found))


def hash_pieces(part: Part, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The hashes of the images of a part, piece by piece."""
    return [part.split.hashes(rows) for rows in pieces]


def same_on_all(path: Path, known: str | None, accelerator: Accelerator) -> bool:
    """Whether a file has the checksum that is known of it, as the main process sees it."""
    return from_main(accelerator, known is not None and path.is_file() and checksum(path) == known)


def without_seen(held: Part, seen: Seen, *, keep_pretrained: bool = False) -> tuple[Part, LeftOut]:
    """The held-out samples less those whose very pixels were seen, and how many those are, by why. Raises ValueError
    where none is left."""
    require(len(held) > 0, f"{held.split.name} has no image with a label to evaluate on.")
    hashes = held.split.hashes(held.indices)
    trained = np.isin(hashes, seen.trained)
    chose = np.isin(hashes, seen.chose) & ~trained
    pretrained = np.isin(hashes, seen.pretrained) & ~trained & ~chose
    out = trained | chose | (pretrained & (not keep_pretrained))
    only_pretrained = int(pretrained.sum())
    found = LeftOut(
        trained=int(trained.sum()),
        chose=int(chose.sum()),
        pretrained=0 if keep_pretrained else only_pretrained,
        kept=only_pretrained if keep_pretrained else 0,
    )
    remedy = " (--allow_pretrained_overlap 1 keeps those seen without label)" if found.pretrained else ""
    require(
        not out.all(),
        f"all {len(held)} images of {held.split.name} were seen in training ({found}){remedy}; evaluate on others.",
    )
    return held.only(~out), found
