"""`deeplense benchmark data --memory 1`: the memory that our reader takes for each image of a data set."""

import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from jobs.measuring.readers import Data, make_data, read_own_steps, write_own
from jobs.measuring.timing import Row

NUM_IMAGES = (610_352, 6_103_516)
"""As many as make 10 GB and 100 GB of 64 x 64 pixels in float32."""
IMAGE_SIZE = 2
"""What is kept of an image in memory does not depend on its pixels, and few of them are soon written."""
NUM_BATCHES = 50


@dataclass(frozen=True)
class Memory:
    """Anonymous bytes of a process before it opens a data set, then, and after it has read batches as a training
    does."""

    before: int
    opened: int
    after: int


def memory_rows(folder: Path, *, batch_size: int, num_images: Sequence[int] = NUM_IMAGES) -> list[Row]:
    """A row for each size, each in a process of its own; the growth is from the smallest data set on."""
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
    """The memory that reading a new data set of so many images takes."""
    data = Data(folder=folder, num_images=num_images, image_size=IMAGE_SIZE, dtype="float32", batch_size=batch_size)
    make_data(data)
    write_own(data, folder / "deeplense")
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(memory_of_reading, data, folder / "deeplense").result()


def memory_of_reading(data: Data, folder: Path) -> Memory:
    """The memory of this process around opening and reading."""
    before = anonymous_bytes()
    epochs = read_own_steps(data, folder, 0)
    opened = anonymous_bytes()
    for _ in islice(epochs(0), NUM_BATCHES):
        pass
    return Memory(before=before, opened=opened, after=anonymous_bytes())


def anonymous_bytes() -> int:
    """Bytes of this process that are no file's (Linux)."""
    told = re.search(r"^Anonymous: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert told
    return int(told[1]) * 1024
