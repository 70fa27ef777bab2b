"""Which images a run has seen, identified by their pixels. This is stored with the run, so it does not depend on what a
path contains later.

RUN/seen.npz is written when the run starts; the record of each checkpoint has its checksum. It also includes the images
that the initial weights have seen: those used to pretrain a backbone, and those of an exported file.
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
from jobs.data.part import Part
from jobs.ranks import on_all
from jobs.settings import require

SEEN_HASH = "seen_hash"
"""Key of the checksum of that file in the record of a checkpoint."""
NONE = np.empty(0, dtype=np.uint64)
KINDS = {
    "trained": "trained on",
    "chose": "used for validation",
    "pretrained": "seen without labels in pretraining",
}


@dataclass(frozen=True)
class Seen:
    """Sorted 64-bit hashes of the pixels of images (n,): those trained on with labels, those used for model selection,
    and those trained on without labels."""

    trained: np.ndarray = field(default_factory=NONE.copy)
    chose: np.ndarray = field(default_factory=NONE.copy)
    pretrained: np.ndarray = field(default_factory=NONE.copy)
    unknown: tuple[str, ...] = ()
    """descriptions of initial weights whose training images are unknown but should be known"""
    foreign: tuple[str, ...] = ()
    """descriptions of initial weights from other sources"""

    def and_all(self, others: Iterable["Seen"]) -> "Seen":
        """Return the union with what others have seen."""
        every = [self, *others]
        return Seen(
            *(np.unique(np.concatenate([getattr(each, name) for each in every])) for name in KINDS),
            unknown=tuple(dict.fromkeys(text for each in every for text in each.unknown)),
            foreign=tuple(dict.fromkeys(text for each in every for text in each.foreign)),
        )


@dataclass(frozen=True)
class LeftOut:
    """Number of images of a split that are excluded from an evaluation, by reason; an image counts once, under the
    first reason. `kept` images were seen without labels, and are evaluated nevertheless."""

    trained: int = 0
    chose: int = 0
    pretrained: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        """Total number of excluded images."""
        return self.trained + self.chose + self.pretrained

    def __add__(self, other: "LeftOut") -> "LeftOut":
        return LeftOut(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        counts = ", ".join(f"{getattr(self, name)} {words}" for name, words in KINDS.items())
        kept = f"; {self.kept} seen without labels in pretraining are evaluated, as requested" if self.kept else ""
        return f"excluded: {counts}{kept}"


def write_seen(path: Path, seen: Seen) -> str:
    """Write what a run has seen to a file. Returns its checksum."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        columns: dict[str, Any] = {each.name: np.asarray(getattr(seen, each.name)) for each in fields(seen)}
        np.savez(file, **columns)
    return checksum(path)


def read_seen(path: Path, expected: str | None) -> Seen | None:
    """Read what a run has seen from a file; None if the file is missing or does not have the expected checksum."""
    if expected is None or not path.is_file() or checksum(path) != expected:
        return None
    with np.load(path, allow_pickle=False) as stored:
        texts = {name: tuple(map(str, stored[name])) for name in ("unknown", "foreign")}
        return Seen(*(stored[name] for name in KINDS), **texts)


def as_text(seen: Seen) -> dict[str, Any]:
    """Return what was seen as JSON values, with hashes as little-endian bytes in base64."""
    hashes = {name: b64encode(getattr(seen, name).astype("<u8").tobytes()).decode() for name in KINDS}
    return hashes | {"unknown": list(seen.unknown), "foreign": list(seen.foreign)}


def from_text(told: Mapping[str, Any]) -> Seen:
    """Return the inverse of `as_text`. Raises ValueError, KeyError or TypeError for other values."""
    hashes = (np.frombuffer(b64decode(told[name], validate=True), dtype="<u8").astype(np.uint64) for name in KINDS)
    return Seen(*hashes, unknown=tuple(map(str, told["unknown"])), foreign=tuple(map(str, told["foreign"])))


def hashes_of(parts: Sequence[Part], accelerator: Accelerator | None = None) -> np.ndarray:
    """Return the sorted hashes of the pixels of all images of some parts. If there are several ranks, each reads its
    share."""
    found = [NONE]
    for part in parts:
        pieces = in_pieces(part.indices)
        if accelerator is not None:
            pieces = pieces[rank_slice(len(pieces), accelerator.process_index, accelerator.num_processes)]
        mine = partial(hash_pieces, part, pieces)
        found += mine() if accelerator is None else gather_lists(accelerator, on_all(accelerator, mine))
    return np.unique(np.concatenate(found))


def hash_pieces(part: Part, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the hashes of the images of a part, piece by piece."""
    return [part.split.hashes(rows) for rows in pieces]


def same_on_all(path: Path, known: str | None, accelerator: Accelerator) -> bool:
    """Whether the file has the known checksum, as seen by the main process."""
    return from_main(accelerator, known is not None and path.is_file() and checksum(path) == known)


def without_seen(held: Part, seen: Seen, *, keep_pretrained: bool = False) -> tuple[Part, LeftOut]:
    """Return the held-out samples without those whose pixels were seen in training, and the numbers of excluded images
    by reason. Raises ValueError if none is left."""
    require(len(held) > 0, f"{held.split.name} has no labelled image to evaluate on.")
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
    remedy = " (--allow_pretrained_overlap 1 keeps those seen without labels)" if found.pretrained else ""
    require(
        not out.all(),
        f"all {len(held)} images of {held.split.name} were seen in training ({found}){remedy}; evaluate on other data.",
    )
    return held.only(~out), found
