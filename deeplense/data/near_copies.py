"""Near duplicates in a data set, within and across its splits: candidate pairs by their fingerprints, then each pair by
its pixels. Images are read in pieces; about 350 numbers per image stay in memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from deeplense.data.alignment import align, phase_images
from deeplense.data.copies import Copy, find_copy, worth_a_look
from deeplense.data.dataset import Split
from deeplense.data.fingerprints import Fingerprints, fingerprints, likely_pairs
from deeplense.data.processes import end_with
from deeplense.data.reading import JoinedImages

NEIGHBOURS = (3, 4)
"""Number of nearest neighbours of each image that are compared, by detail and by outline."""
LEAST_SIDE = 16
ROWS_AT_A_TIME = 256
PAIRS_AT_A_TIME = 512
ALIGNED_AT_A_TIME = 64

AS_NEAR = 1e-3
"""Of an image with noise added, copies that leave at most this fraction more than the nearest count as equally near."""

Result = TypeVar("Result")
Progress = Callable[[int, int, str], None]
"""Called with the number of units done, the number of all units, and their name."""


@dataclass(frozen=True)
class Pair:
    """Two images that are near duplicates.

    Args:
        first: number of the first image, counted over all splits.
        second: number of the second image.
        copy: how the second was made from the first.
    """

    first: int
    second: int
    copy: Copy


class Searched:
    """Splits whose images have the same shape, one after the other.

    Args:
        splits: the splits.
    """

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = splits
        self.starts = np.cumsum([0] + [len(split) for split in splits])
        parts: list[Any] = [split.stored for split in splits]
        self.images = JoinedImages(parts, [(split.scale, split.zero) for split in splits])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def ids(self) -> list[str]:
        """The name of each image."""
        return [name for split in self.splits for name in split.ids]

    @cached_property
    def labels(self) -> list[str]:
        """The name of the class of each image, empty without a label."""
        return [
            split.schema.classes[label] if label >= 0 else ""
            for split in self.splits
            for label in split.labels.tolist()
        ]

    def split(self, number: int) -> Split:
        """Return the split of an image."""
        return self.splits[int(np.searchsorted(self.starts, number, side="right")) - 1]

    def crosses(self, pair: Pair) -> bool:
        """Whether the two images are in different splits."""
        return self.split(pair.first) is not self.split(pair.second)

    def contradicts(self, pair: Pair) -> bool:
        """Whether the two images have different labels."""
        return bool(self.labels[pair.first] and self.labels[pair.second]) and (
            self.labels[pair.first] != self.labels[pair.second]
        )


def near_copies(searched: Searched, *, num_workers: int = 1, progress: Progress | None = None) -> list[Pair]:
    """Return all pairs of near duplicates that are found.

    Args:
        searched: the splits.
        num_workers: number of processes.
        progress: called during the search.

    Raises:
        ValueError: the images have fewer than 16 pixels per side.
    """
    shape = searched.images.parts[0].shape
    if min(shape[1:]) < LEAST_SIDE:
        raise ValueError(
            f"images of {shape[1]} x {shape[2]} pixels are too small; near copies need at least 16 x 16 pixels."
        )
    tell = progress or (lambda done, total, unit: None)
    rows = [range(k, min(k + ROWS_AT_A_TIME, len(searched))) for k in range(0, len(searched), ROWS_AT_A_TIME)]
    parts = []
    for part in spread(partial(describe, searched.images), rows, num_workers=num_workers):
        parts.append(part)
        tell(min(len(parts) * ROWS_AT_A_TIME, len(searched)), len(searched), "images described")
    likely = likely_pairs(Fingerprints(*map(np.concatenate, zip(*parts, strict=True))), neighbours=NEIGHBOURS)
    pieces = [likely[k : k + PAIRS_AT_A_TIME] for k in range(0, len(likely), PAIRS_AT_A_TIME)]
    found: list[Pair] = []
    for number, some in enumerate(spread(partial(copies_among, searched.images), pieces, num_workers=num_workers)):
        found += some
        tell(min((number + 1) * PAIRS_AT_A_TIME, len(likely)), len(likely), "candidate pairs compared")
    return nearest_of_noisy(found)


def nearest_of_noisy(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs without those in which an image with noise added is nearer to another image: under its noise,
    similar lenses cannot be distinguished."""

    def noisy(pair: Pair) -> int:
        return pair.second if pair.copy.noisier else pair.first

    least: dict[int, float] = {}
    for pair in pairs:
        if pair.copy.noisier is not None:
            least[noisy(pair)] = min(least.get(noisy(pair), np.inf), unlike(pair.copy))
    return [
        pair for pair in pairs if pair.copy.noisier is None or unlike(pair.copy) <= least[noisy(pair)] * (1 + AS_NEAR)
    ]


def unlike(copy: Copy) -> float:
    """Return the fraction of the variance that the other image does not explain."""
    return 1 - copy.correlation**2


def spread(work: Callable[[Any], Result], pieces: Sequence[Any], *, num_workers: int) -> Iterator[Result]:
    """Yield the result of some work for each piece, in order, computed by several processes.

    Args:
        work: picklable function of a piece.
        pieces: its arguments.
        num_workers: number of processes; 1 for this one.

    Example:
        >>> list(spread(abs, [-1, 2], num_workers=1))
        [1, 2]
    """
    if num_workers == 1 or len(pieces) < 2:
        yield from map(work, pieces)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=begin, initargs=(os.getpid(),)) as pool:
        yield from pool.map(work, pieces)


def begin(main_process: int) -> None:
    """Initialise a worker process: one thread, and it ends with the main process."""
    torch.set_num_threads(1)
    end_with(main_process)


def describe(images: JoinedImages, rows: range) -> Fingerprints:
    """Return the fingerprints of some images.

    Args:
        images: images of all splits.
        rows: numbers of the images.
    """
    return fingerprints(images.read(np.arange(rows.start, rows.stop)).numpy())


def copies_among(images: JoinedImages, pairs: np.ndarray) -> list[Pair]:
    """Return those of some pairs that are near duplicates.

    Args:
        images: images of all splits.
        pairs: numbers of the images, (k, 2).
    """
    return [
        pair
        for k in range(0, len(pairs), ALIGNED_AT_A_TIME)
        for pair in copies_among_few(images, pairs[k : k + ALIGNED_AT_A_TIME])
    ]


def copies_among_few(images: JoinedImages, pairs: np.ndarray) -> Iterator[Pair]:
    """Yield those of a few pairs that are near duplicates; each image is read and prepared once.

    Args:
        images: images of all splits.
        pairs: numbers of the images, (k, 2).
    """
    rows, places = np.unique(pairs, return_inverse=True)
    pixels = images.read(rows).numpy()
    first, second = places.reshape(pairs.shape).T
    aligned = align(phase_images(pixels), first, second)
    looked_at = np.flatnonzero(worth_a_look(pixels[first], pixels[second], aligned))
    for k in looked_at.tolist():
        shift = (int(aligned.shift[k, 0]), int(aligned.shift[k, 1]))
        if copy := find_copy(pixels[first[k]], pixels[second[k]], int(aligned.turn[k]), shift):
            yield Pair(int(pairs[k, 0]), int(pairs[k, 1]), copy)


def group_numbers(pairs: Sequence[Pair]) -> list[int]:
    """Return the number of the group, from 1, of each pair: images that are copies of one another, directly or not."""
    members, places = np.unique([(pair.first, pair.second) for pair in pairs], return_inverse=True)
    one, two = places.reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (one, two)), shape=(len(members), len(members)))
    numbers = connected_components(graph, directed=False)[1]
    return [int(number) + 1 for number in numbers[one]]
