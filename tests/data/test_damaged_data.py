"""Damage: whatever happens to a byte of a split, it is read as before, or refused in one line that names the file."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplense.data.dataset import Split
from deeplense.data.shards import MANIFEST
from deeplense.data.verifying import verify
from tests.data.made_up import SCHEMA, made

SHARD = "shard-00001.h5"


def flips(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """The content with a bit flipped, at seeded places."""
    generator = np.random.default_rng(seed)
    for place in generator.integers(len(content), size=count):
        bit = 1 << int(generator.integers(8))
        yield content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def cuts(content: bytes, count: int) -> Iterator[bytes]:
    """The first part of the content, of lengths from nothing to all but a byte."""
    for length in np.unique(np.linspace(0, len(content) - 1, count).astype(int)):
        yield content[:length]


def everything(dataset: Path) -> list[Any]:
    """All that training and evaluation take from a split, and what verify says."""
    split = Split(dataset / "train")
    read = [split.images(np.arange(len(split))), split.labels, split.column("target/mass")]
    return [*(array.tobytes() for array in read), split.ids, split.dataset_id, split.manifests[0].statistics]


def outcome(dataset: Path) -> tuple[list[Any], str]:
    """What is read, or the error in place of it."""
    try:
        return everything(dataset), ""
    except ValueError as error:
        return [], str(error)


@pytest.fixture(scope="module", params=["none", "lz4"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one split of two shards."""
    dataset = tmp_path_factory.mktemp("sound")
    made(dataset / "train", replace(SCHEMA, num_samples=70, compression=request.param))
    return dataset


@pytest.mark.parametrize("name", [MANIFEST, SHARD])
@pytest.mark.parametrize("damage", [flips, cuts])
def test_a_damage_changes_nothing_or_is_told_in_one_line(
    sound: Path, tmp_path: Path, name: str, damage: Callable[..., Iterator[bytes]]
) -> None:
    shutil.copytree(sound, tmp_path / "data")
    before, path, told = everything(sound), tmp_path / "data" / "train" / name, 0
    whole = path.read_bytes()
    for damaged in damage(whole, 60, *([7] if damage is flips else [])):
        path.write_bytes(damaged)
        found, problem = outcome(tmp_path / "data")
        if problem:
            told += 1
            assert str(path) in problem or (name == MANIFEST and str(path.parent) in problem)
            assert problem.isprintable()
            assert verify(tmp_path / "data")
        else:
            assert found == before
    assert told >= 59 if name == SHARD else told > 30
    path.write_bytes(whole)
    assert everything(tmp_path / "data") == before


@pytest.mark.parametrize("text", ["[" * 200000, '{"a":' * 200000, '{"format": ' + "9" * 5000 + "}", "\ud800", "null"])
def test_a_manifest_that_no_parser_is_made_for_is_refused_in_one_line(sound: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(sound, tmp_path / "data")
    (tmp_path / "data" / "train" / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    _, problem = outcome(tmp_path / "data")
    assert MANIFEST in problem
    assert problem.isprintable()
    assert len(problem) < 1000
