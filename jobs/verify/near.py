"""`deeplense verify --near`: report which images of a data set are near copies of others."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from deeplense.data.dataset import Split
from deeplense.data.near_copies import Pair, Searched, group_numbers, near_copies
from deeplense.data.shards import Manifest
from deeplense.data.verifying import find_splits, shortened
from deeplense.files import replacing
from jobs.console import Reporter, say
from jobs.runs.environment import num_cores

COLUMNS = ("group", "split_a", "id_a", "label_a", "split_b", "id_b", "label_b", "how", "correlation")


def search(dataset: Path, *, pairs: Path | None, num_workers: int) -> int:
    """Print the near copies of a data set and, if `pairs` is given, write all of them to that CSV file. Returns exit
    code 1 if any are across splits or have different labels."""
    try:
        searched = [Searched([Split(folder, labelled=False) for folder in some]) for some in alike(dataset)]
    except ValueError as error:
        say(f"{dataset}: not searched for near copies, because the data set has errors: {error}")
        return 1
    found = [(some, near_copies(some, num_workers=num_workers or num_cores(), progress=Shown())) for some in searched]
    if pairs:
        write_pairs(pairs, found)
    problems = 0
    for some, copies in found:
        for line in told(some, copies):
            say(line)
        problems += sum(some.crosses(pair) or some.contradicts(pair) for pair in copies)
    for line in summary(dataset, found, pairs):
        say(line)
    return 1 if problems else 0


def alike(dataset: Path) -> list[list[Path]]:
    """Group the splits of a data set by the shape of their images."""
    shapes: dict[tuple[int, ...], list[Path]] = {}
    for folder in find_splits(dataset):
        shapes.setdefault(Manifest.read(folder).schema.shape, []).append(folder)
    return list(shapes.values())


class Shown:
    """Show the progress of a search, one stage after another."""

    def __init__(self) -> None:
        self.reporters: dict[str, Reporter] = {}

    def __call__(self, done: int, total: int, unit: str) -> None:
        if unit not in self.reporters:
            self.reporters[unit] = Reporter(total=total, unit=unit).__enter__()
        self.reporters[unit].update(done)
        if done == total:
            self.reporters[unit].__exit__()


def told(searched: Searched, pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield the lines to print for the pairs, the worst first: different labels, different splits, others. Identical
    images across splits are omitted, because `verify` reports them without --near."""
    new = [pair for pair in pairs if not (pair.copy.equal and searched.crosses(pair))]
    kinds: dict[str, list[Pair]] = {"contradiction": [], "leak": [], "repeat": []}
    for pair in new:
        kinds[kind_of(searched, pair)].append(pair)
    for some in kinds.values():
        yield from shortened((line_of(searched, pair) for pair in some), len(some))


def kind_of(searched: Searched, pair: Pair) -> str:
    """Return the kind of problem of a pair."""
    if searched.contradicts(pair):
        return "contradiction"
    return "leak" if searched.crosses(pair) else "repeat"


def line_of(searched: Searched, pair: Pair) -> str:
    """Describe one pair."""
    one, two = (f"{searched.split(k).name}: {searched.ids[k]}" for k in (pair.first, pair.second))
    labels = f"; different labels: {searched.labels[pair.first]}, {searched.labels[pair.second]}"
    ends = labels if searched.contradicts(pair) else ""
    ends += "; a leak between splits" if searched.crosses(pair) else ""
    return f"{two} is a near copy of {one} ({pair.copy}; correlation {pair.copy.correlation:.5f}){ends}"


def summary(dataset: Path, found: Sequence[tuple[Searched, list[Pair]]], file: Path | None) -> Iterator[str]:
    """Yield the line that summarises the numbers of near copies."""
    pairs = [(some, pair) for some, copies in found for pair in copies]
    if not pairs:
        yield f"{dataset}: no near copies among {sum(len(some) for some, _ in found)} images"
        return
    groups = sum(max(group_numbers(copies)) for _, copies in found if copies)
    across = sum(some.crosses(pair) for some, pair in pairs)
    differ = sum(some.contradicts(pair) for some, pair in pairs)
    where = f"all are written to {file}" if file else "--pairs FILE writes all of them"
    counts = f"{across} across splits, {differ} with different labels"
    yield f"{dataset}: {len(pairs)} pairs of near copies in {groups} groups, {counts}; {where}"


def write_pairs(path: Path, found: Sequence[tuple[Searched, list[Pair]]]) -> None:
    """Write a CSV file with one row per pair."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        before = 0
        for searched, pairs in found:
            groups = group_numbers(pairs) if pairs else []
            for group, pair in zip(groups, pairs, strict=True):
                writer.writerow([group + before, *row_of(searched, pair)])
            before += max(groups, default=0)


def row_of(searched: Searched, pair: Pair) -> Iterator[str]:
    """Return the columns of one pair, without its group."""
    for number in (pair.first, pair.second):
        yield from (searched.split(number).name, searched.ids[number], searched.labels[number])
    yield from (str(pair.copy), f"{pair.copy.correlation:.6f}")
