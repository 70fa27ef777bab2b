"""`deeplense benchmark data --stamps 1` measures reading of FITS stamps that are what astropy reads, and leaves out
astropy if it is not there."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits as astropy_fits

from deeplense.data.image_files import Reading, load_image
from deeplense.data.records import Record
from jobs.benchmark.readers import stamps

fits: Any = astropy_fits


def test_the_stamps_are_those_of_astropy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "NUM_STAMPS", 3)
    for path in stamps.write_stamps(tmp_path / "stamps"):
        found = load_image(Record(path, "a", -1, ""), Reading())
        with fits.open(path) as file:
            file.verify("exception")
            np.testing.assert_array_equal(found.image[0], file[0].data)
        assert found.facts.columns["zero_point"] == 31.4


@pytest.mark.parametrize("there", [True, False])
def test_a_row_tells_how_fast_stamps_are_read(tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "NUM_STAMPS", 20)
    if not there:
        monkeypatch.setitem(sys.modules, "astropy.io.fits", None)
    bytes_row, astropy_row = stamps.stamp_rows(tmp_path / "stamps", rounds=1)
    assert bytes_row.ours
    assert (astropy_row.ours is not None) == there
    assert there or "pip install astropy" in astropy_row.note
