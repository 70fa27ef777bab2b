"""Statistics of what is learnt from: of the stretched pixels too, and a word on data sets in other units."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs, write_blobs

from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.data.scaling import FORMULAS
from deeplense.data.shards import Samples
from deeplense.training.loop import make_accelerator
from jobs.data.part import whole
from jobs.data.statistics import find_statistics, unit_notes


@pytest.mark.parametrize("stretch", sorted(FORMULAS))
def test_what_is_stretched_is_measured_where_it_is_made_standard(stretch: str, dataset: Path) -> None:
    part = whole(Split(dataset / "train")).only(np.arange(10, 70))
    images = part.split.images(part.indices).astype(np.float64)
    found = find_statistics(part, stretch, make_accelerator(device="cpu", precision="fp32"))
    expected = {"mean": images.mean(), "std": images.std()}
    if stretch == "standard_asinh":
        stretched = np.arcsinh(10 * images / images.std()) / 2
        expected |= {"stretched_mean": stretched.mean(), "stretched_std": stretched.std()}
    assert {name: values[0] for name, values in found.items()} == pytest.approx(expected, rel=1e-6)


def test_data_sets_in_other_units_are_told(dataset: Path, tmp_path: Path) -> None:
    write_blobs(tmp_path / "same", "train", 20)
    schema, faint = Split(dataset / "train").schema, tmp_path / "faint" / "train"
    list(build(faint, schema, lambda rows: dim(blobs(rows, split="train"))))
    assert list(unit_notes(Split(dataset / "train"))) == []
    assert list(unit_notes(Split(dataset / "train", tmp_path / "same" / "train"))) == []
    (told,) = unit_notes(Split(faint, dataset / "train"))
    assert told.startswith("note: the pixel standard deviation is ")
    assert f" in {faint} and " in told


def dim(samples: Samples) -> Samples:
    """The same samples in another unit."""
    return replace(samples, images=samples.images / 20)
