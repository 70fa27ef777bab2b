"""Near copies in a data set, within and across its splits: likely pairs by their fingerprints, then each pair by its
pixels. Images are read some at a time; of each some 350 numbers stay in memory."""

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
"""Of each image so many nearest are looked at by detail, and by outline."""
LEAST_SIDE = 16
ROWS_AT_A_TIME = 256
PAIRS_AT_A_TIME = 512
ALIGNED_AT_A_TIME = 64

Result = TypeVar("Result")
Progress = Callable[[int, int, str], None]
"""Is given how many of how many units are done, and of which unit."""


@dataclass(frozen=True)
class Pair:
    """Two images by their numbers, counted over all splits, and how the second was made from the first."""

    first: int
    second: int
    copy: Copy


class Searched:
    """Splits whose images have one shape, one after the other."""

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
        """The name of the class of each image, empty where it has no label."""
        return [
            split.schema.classes[label] if label >= 0 else ""
            for split in self.splits
            for label in split.labels.tolist()
        ]

    def split(self, number: int) -> Split:
        """The split that an image is in."""
        return self.splits[int(np.searchsorted(self.starts, number, side="right")) - 1]

    def crosses(self, pair: Pair) -> bool:
        """Whether the two images are in different splits."""
        return self.split(pair.first) is not self.split(pair.second)

    def contradicts(self, pair: Pair) -> bool:
        """Whether the two images have labels, and different ones."""
        return bool(self.labels[pair.first] and self.labels[pair.second]) and (
            self.labels[pair.first] != self.labels[pair.second]
        )


def near_copies(searched: Searched, *, num_workers: int = 1, progress: Progress | None = None) -> list[Pair]:
    """All pairs of near copies that are found.

    Args:
        searched: the splits.
        num_workers: processes.
        progress: is told how far the work is.

    Raises:
        ValueError: the images are smaller than 16 pixels.
    """
    shape = searched.images.parts[0].shape
    if min(shape[1:]) < LEAST_SIDE:
        raise ValueError(f"images of {shape[1]} x {shape[2]} pixels: near copies are found from 16 x 16 pixels on.")
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
        tell(min((number + 1) * PAIRS_AT_A_TIME, len(likely)), len(likely), "likely pairs compared")
    return found


def spread(work: Callable[[Any], Result], pieces: Sequence[Any], *, num_workers: int) -> Iterator[Result]:
    """The results of some work for each piece, in order, by several processes."""
    if num_workers == 1 or len(pieces) < 2:
        yield from map(work, pieces)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=begin, initargs=(os.getpid(),)) as pool:
        yield from pool.map(work, pieces)


def begin(main_process: int) -> None:
    """Prepare a process: it works with one thread, and ends with the other process."""
    torch.set_num_threads(1)
    end_with(main_process)


def describe(images: JoinedImages, rows: range) -> Fingerprints:
    """The fingerprints of some images."""
    return fingerprints(images.read(np.arange(rows.start, rows.stop)).numpy())


def copies_among(images: JoinedImages, pairs: np.ndarray) -> list[Pair]:
    """Those of some pairs (k, 2) that are copies."""
    return [
        pair
        for k in range(0, len(pairs), ALIGNED_AT_A_TIME)
        for pair in copies_among_few(images, pairs[k : k + ALIGNED_AT_A_TIME])
    ]


def copies_among_few(images: JoinedImages, pairs: np.ndarray) -> Iterator[Pair]:
    """Those of a few pairs (k, 2) that are copies; each image is read and prepared once."""
    rows, places = np.unique(pairs, return_inverse=True)
    pixels = images.read(rows).numpy()
    phases = phase_images(pixels)
    first, second = places.reshape(pairs.shape).T
    aligned = align(phases[first], phases[second])
    looked_at = np.flatnonzero(worth_a_look(pixels[first], pixels[second], aligned))
    for k in looked_at.tolist():
        shift = (int(aligned.shift[k, 0]), int(aligned.shift[k, 1]))
        if copy := find_copy(pixels[first[k]], pixels[second[k]], int(aligned.turn[k]), shift):
            yield Pair(int(pairs[k, 0]), int(pairs[k, 1]), copy)


def group_numbers(pairs: Sequence[Pair]) -> list[int]:
    """The number of the group, from 1 on, of each pair: images that are copies of one another, directly or not."""
    members, places = np.unique([(pair.first, pair.second) for pair in pairs], return_inverse=True)
    one, two = places.reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (one, two)), shape=(len(members), len(members)))
    numbers = connected_components(graph, directed=False)[1]
    return [int(number) + 1 for number in numbers[one]]
