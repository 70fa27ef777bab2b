"""How many different lenses `verify --near` takes for copies, and how many planted copies of each kind it finds.

    deeplense simulate --output lenses --num_per_class 3334
    python -m tests.data.near_copy_rates lenses/train --copies 100

No two images of the data set may be copies: each pair found among them counts as false. Each kind of copy is made of
other images, and stands in a split of its own.
"""

import argparse
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from deeplense.data.dataset import Split
from deeplense.data.near_copies import Searched, near_copies
from tests.data.test_near_copies import CHANGES, made


def plant(split: Split, folder: Path, copies: int) -> tuple[list[str], np.ndarray]:
    """Write a split of so many copies of each kind; returns the kind of each, and the number of the image that it was
    made of."""
    kinds = [kind for kind in CHANGES for _ in range(copies)]
    originals = np.sort(np.random.default_rng(0).permutation(len(split))[: len(kinds)])
    images = split.images(originals)
    changed = [CHANGES[kind][0](image) for kind, image in zip(kinds, images, strict=True)]
    made(folder, np.stack(changed).astype(np.float32), labels=np.arange(len(kinds)) % 3)
    return kinds, originals


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path, help="folder of a split of different lenses")
    parser.add_argument("--copies", type=int, default=100, help="planted copies of each kind")
    parser.add_argument("--num_workers", type=int, default=2)
    asked = parser.parse_args()
    lenses = Split(asked.split, labelled=False)
    with tempfile.TemporaryDirectory() as folder:
        kinds, originals = plant(lenses, Path(folder) / "copies", asked.copies)
        searched = Searched([lenses, Split(Path(folder) / "copies", labelled=False)])
        start = time.monotonic()
        found = near_copies(searched, num_workers=asked.num_workers)
        seconds = time.monotonic() - start
    names = [*lenses.ids, *(f"{kind} of {lenses.ids[k]}" for kind, k in zip(kinds, originals, strict=True))]
    planted = {
        (int(original), len(lenses) + k): kind for k, (kind, original) in enumerate(zip(kinds, originals, strict=True))
    }
    told = {(pair.first, pair.second): str(pair.copy) for pair in found}
    hits = Counter(kind for pair, kind in planted.items() if pair in told)
    false = [pair for pair in told if pair not in planted]
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{len(lenses)} images, {len(kinds)} copies: {seconds:.0f} s, a process has up to {memory / 2**20:.1f} GiB")
    print(f"false pairs: {len(false)}, {1e4 * len(false) / len(lenses):.2f} for each 10,000 images")
    for pair in false[:20]:
        print(f"  {names[pair[0]]}, {names[pair[1]]}: {told[pair]}")
    for kind in CHANGES:
        print(f"{kind:<16} {hits[kind] / asked.copies:7.1%}")


if __name__ == "__main__":
    main()
