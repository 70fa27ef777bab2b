"""`deeplense benchmark data`: compare reading images from shards with a memory-mapped .npy file and other packages."""

import importlib
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import psutil
import torch
import xxhash
from torch import Tensor

from deeplense.data.order import Shuffle, epoch_order, variance_inflation
from jobs.benchmark.readers.memory import memory_rows
from jobs.benchmark.readers.own import (
    LZ4,
    OWN,
    OWN_AHEAD,
    OWN_BLOCKS,
    OWN_STEPS,
    REFERENCE,
    ZSTD,
    Data,
    Epochs,
    Way,
    make_data,
    with_workers,
)
from jobs.benchmark.readers.peers import FILES, H5PY, H5PY_SORTED, LITDATA, LITDATA_64, MOSAICML, WEBDATASET
from jobs.benchmark.readers.stamps import stamp_rows
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Pair, Row, Timing, row_of, timed
from jobs.console import Reporter
from jobs.settings import require

WARM = [
    *(REFERENCE, OWN, OWN_STEPS, *OWN_AHEAD),
    *with_workers(H5PY, H5PY_SORTED, FILES, WEBDATASET, LITDATA, LITDATA_64, MOSAICML),
]
COLD = [REFERENCE, OWN, *OWN_BLOCKS, FILES]
CODECS = with_workers(LZ4, ZSTD)
DTYPES = ("float32", "float16", "uint8")
COPIES = 12
"""Disk space needed, in multiples of the images, because each reader stores its own copy."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A reader to be measured. Entries with the same title are variants; the fastest one is reported."""

    title: str
    way: Way
    data: Data
    cold: bool = False

    @property
    def folder(self) -> Path:
        """The folder of its images."""
        return self.data.folder / self.way.stored


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The cost of storing images, or why they could not be stored."""

    write_s: float = 0.0
    num_bytes: int = 0
    missing: str = ""


def measure(settings: Settings) -> list[Row]:
    """Measure images per second of all readers in turn, each directly after the reference. Files are removed
    afterwards."""
    require(hasattr(os, "posix_fadvise"), "this benchmark evicts files from the page cache; run it on Linux.")
    # Otherwise litdata asks PyPI for a newer version of itself.
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="deeplense-benchmark-", dir=settings.folder) as folder:
        data = Data(
            folder=Path(folder) / settings.dtype,
            num_images=settings.num_images,
            image_size=settings.image_size,
            dtype=settings.dtype,
            batch_size=settings.batch_size,
        )
        require_room(data, Path(folder))
        entries = list(entries_of(data))
        stored = store(entries)
        able = [entry for entry in entries if not stored[entry.folder].missing]
        for entry in able:
            require_same_images(entry)
        pairs = measure_in_turns(able, entries[0], rounds=settings.rounds)
        rows = [
            row_of_variants(title, list(variants), stored, pairs)
            for title, variants in groupby(entries, key=lambda entry: entry.title)
        ]
        rows += mixing_rows(data)
        rows += stamp_rows(Path(folder) / "stamps", rounds=settings.rounds) if settings.stamps else []
        return rows + (memory_rows(Path(folder), batch_size=data.batch_size) if settings.memory else [])


def mixing_rows(data: Data) -> Iterator[Row]:
    """Yield the variance of the fractions of ten classes between batches, relative to chance, if the store is sorted by
    class, which is the worst case, and if it is mixed, as ours are."""
    is_sorted = np.arange(data.num_images) * 10 // data.num_images
    stores = {"sorted": is_sorted, "mixed": np.random.default_rng(0).permutation(is_sorted)}
    for name, shuffle in {"full shuffle": Shuffle(), "blocks of 64": Shuffle(64), "no window": Shuffle(64, 1)}.items():
        found = {
            store: statistics.mean(
                variance_inflation(labels[epoch_order(len(labels), epoch, shuffle=shuffle)], data.batch_size)
                for epoch in range(6)
            )
            for store, labels in stores.items()
        }
        yield Row(
            what=f"variance: {name}", unit="x chance", ours=found["mixed"], extra={"store_sorted": found["sorted"]}
        )


def require_room(data: Data, folder: Path) -> None:
    """Raise ValueError if there is too little disk space."""
    free, needed = shutil.disk_usage(folder).free, COPIES * data.num_bytes
    require(
        free > needed, f"{folder} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} are needed; give a --folder."
    )


def entries_of(data: Data) -> Iterator[Entry]:
    """Yield all entries to measure."""
    for way in WARM:
        yield Entry(title=f"warm: {way.name}", way=way, data=data)
    for way in COLD:
        yield Entry(title=f"cold: {way.name}", way=way, data=data, cold=True)
    for dtype in DTYPES:
        same = dtype == data.dtype
        other = data if same else replace(data, folder=data.folder.parent / dtype, dtype=dtype)
        yield Entry(title=f"stored as {dtype}", way=OWN, data=other)
    for way in CODECS:
        yield Entry(title=f"stored as {way.name}", way=way, data=data)


def store(entries: Sequence[Entry]) -> dict[Path, Stored]:
    """Write the images to each folder that is read."""
    stored: dict[Path, Stored] = {}
    with Reporter(total=len({entry.folder for entry in entries}), unit="stores") as reporter:
        for entry in entries:
            if not entry.data.folder.exists():
                make_data(entry.data)
            if entry.folder not in stored:
                stored[entry.folder] = write(entry)
                reporter.update(len(stored), f"writing {entry.title}")
    return stored


def write(entry: Entry) -> Stored:
    """Write the images to one folder, unless a package for it is missing."""
    try:
        if entry.way.needs:
            importlib.import_module(entry.way.needs)
    except ImportError as error:
        return Stored(missing=f"not installed ({error}); {entry.way.install}")
    start = time.perf_counter()
    entry.way.write(entry.data, entry.folder)
    num_bytes = sum(path.stat().st_size for path in entry.folder.rglob("*") if path.is_file())
    return Stored(write_s=time.perf_counter() - start, num_bytes=num_bytes)


def require_same_images(entry: Entry) -> None:
    """Raise RuntimeError if a reader does not return each written image exactly once per epoch."""
    delivered = hashes_of(epoch_of(entry, opened(entry), 0))
    if entry.way.endless:
        delivered = delivered[: entry.data.num_images]
    if sorted(delivered) != written_hashes(entry.data):
        raise RuntimeError(f"{entry.title} ({entry.way.variant}) returns different images than were written.")


@lru_cache(maxsize=len(DTYPES))
def written_hashes(data: Data) -> list[int]:
    """Return the sorted hashes of the images as written."""
    return sorted(hashes_of([torch.from_numpy(np.array(data.images)).float()]))


def hashes_of(batches: Iterable[Tensor]) -> list[int]:
    """Return a hash of each image."""
    return [xxhash.xxh3_64_intdigest(image.tobytes()) for batch in batches for image in batch.numpy()]


def opened(entry: Entry) -> Epochs:
    """Open the reader of an entry."""
    return entry.way.read(entry.data, entry.folder, entry.way.num_workers)


def epoch_of(entry: Entry, epochs: Epochs, number: int) -> Iterator[Tensor]:
    """Return the batches of one epoch."""
    batches = epochs(number)
    return islice(batches, entry.data.num_batches) if entry.way.endless else batches


def measure_in_turns(entries: Sequence[Entry], reference: Entry, *, rounds: int) -> dict[Entry, list[Pair]]:
    """Time each entry in each round, and the reference directly before it."""
    pairs: dict[Entry, list[Pair]] = {entry: [] for entry in entries}
    os.sync()
    with Reporter(total=rounds * len(entries), unit="runs") as reporter:
        for k in range(rounds):
            for entry in entries:
                other = time_epoch(replace(reference, cold=entry.cold), k + 1)
                pairs[entry].append((time_epoch(entry, k + 1), other))
                reporter.update(sum(map(len, pairs.values())), f"reading {entry.title}")
    return pairs


def time_epoch(entry: Entry, number: int) -> Timing:
    """Time one epoch, after an untimed warm-up epoch or, if cold, after evicting the files from the page cache."""
    epochs = opened(entry)
    if entry.cold:
        drop(entry.folder)
    else:
        count(epoch_of(entry, epochs, 0))
    before = psutil.Process().io_counters().read_bytes
    timing = timed(lambda: count(epoch_of(entry, epochs, number)))
    return replace(timing, disk_bytes=psutil.Process().io_counters().read_bytes - before)


def count(batches: Iterable[Tensor]) -> int:
    """Return the number of images."""
    return sum(len(batch) for batch in batches)


def drop(folder: Path) -> None:
    """Evict the files of a folder from the page cache, so that they are read from disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def row_of_variants(
    title: str, variants: Sequence[Entry], stored: dict[Path, Stored], pairs: dict[Entry, list[Pair]]
) -> Row:
    """Return the row of the fastest variant, or a row with the missing package."""
    able = [entry for entry in variants if entry in pairs]
    if not able:
        return Row(what=title, note=stored[variants[0].folder].missing)
    best = max(able, key=lambda entry: statistics.median(ours.rate for ours, _ in pairs[entry]))
    row = row_of(title, pairs[best], other_name=REFERENCE.name, unit="images/s")
    return replace(row, extra=extra_of(best, stored[best.folder], pairs[best]), note=best.way.variant)


def extra_of(entry: Entry, stored: Stored, pairs: Sequence[Pair]) -> dict[str, float]:
    """Return further numbers: the stored bytes as a fraction of those in float32, and the seconds to write them; or, if
    cold, the fraction of the bytes that came from disk, to verify that the cache was cold."""
    if entry.cold:
        return {"from_disk": statistics.median(ours.disk_bytes for ours, _ in pairs) / stored.num_bytes}
    in_float32 = math.prod(entry.data.shape) * 4
    return {"stored": stored.num_bytes / in_float32, "write_s": stored.write_s}
