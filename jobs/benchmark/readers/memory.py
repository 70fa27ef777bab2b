"""`deeplense benchmark data --memory 1`: the memory that our reader needs per image of a data set."""

import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from jobs.benchmark.readers.own import Data, make_data, read_own_steps, write_own
from jobs.benchmark.timing import Row

NUM_IMAGES = (610_352, 6_103_516)
"""Numbers of images that correspond to 10 GB and 100 GB of 64 x 64 pixels in float32."""
IMAGE_SIZE = 2
"""Small images are used because they are quick to write; the memory per image does not depend on its size."""
NUM_BATCHES = 50


@dataclass(frozen=True)
class Memory:
    """Anonymous memory of a process in bytes: before it opens a data set, after opening it, and after reading batches
    as in a training."""

    before: int
    opened: int
    after: int


def memory_rows(folder: Path, *, batch_size: int, num_images: Sequence[int] = NUM_IMAGES) -> list[Row]:
    """Return one row per size, each measured in its own process; the growth is relative to the smallest data set."""
    found = [memory_of(folder / str(number), number, batch_size) for number in num_images]
    smallest = found[0].after - found[0].before
    rows = []
    for number, memory in zip(num_images, found, strict=True):
        taken = memory.after - memory.before
        extra = {"opened": (memory.opened - memory.before) / 1e6}
        if number > num_images[0]:
            extra["bytes_per_image"] = (taken - smallest) / (number - num_images[0])
        rows.append(Row(what=f"memory: {number:,} images", unit="MB", ours=taken / 1e6, extra=extra))
    return rows


def memory_of(folder: Path, num_images: int, batch_size: int) -> Memory:
    """Measure the memory for reading a new data set with this number of images."""
    data = Data(folder=folder, num_images=num_images, image_size=IMAGE_SIZE, dtype="float32", batch_size=batch_size)
    make_data(data)
    write_own(data, folder / "deeplense")
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(memory_of_reading, data, folder / "deeplense").result()


def memory_of_reading(data: Data, folder: Path) -> Memory:
    """Measure the memory of this process before and after opening and reading."""
    before = anonymous_bytes()
    epochs = read_own_steps(data, folder, 0)
    opened = anonymous_bytes()
    for _ in islice(epochs(0), NUM_BATCHES):
        pass
    return Memory(before=before, opened=opened, after=anonymous_bytes())


def anonymous_bytes() -> int:
    """Return the anonymous (not file-backed) memory of this process in bytes (Linux)."""
    told = re.search(r"^Anonymous: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert told
    return int(told[1]) * 1024
