"""A source is read without packing it: settings alone say how, and each image comes with its targets and columns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits as astropy_fits
from conftest import put

from jobs.data.source import load, open_source
from jobs.data.source_settings import SourceSettings, given

fits: Any = astropy_fits


@dataclass(frozen=True, kw_only=True)
class Reader(SourceSettings):
    """Settings of a job that reads a source and has a setting of its own."""

    run: str = ""


def test_a_job_reads_images_with_columns_cropped_and_filled(tmp_path: Path) -> None:
    for k in range(4):
        image = np.full((6, 6), float(k))
        image[2, 2] = np.nan
        header = fits.Header()
        header["MAGZERO"] = 20.0 + k
        (tmp_path / "in").mkdir(exist_ok=True)
        fits.PrimaryHDU(image, header).writeto(tmp_path / "in" / f"{k}.fits")
    (tmp_path / "c.csv").write_text("id,ra,survey\n" + "".join(f"{k},{k / 2},S{k}\n" for k in range(4)))
    settings = Reader(
        layout="files",
        source=tmp_path / "in",
        catalog=tmp_path / "c.csv",
        keep="ra,survey",
        where="ra>0",
        crop=4,
        fill_nan=-1.0,
        run="r",
    )
    assert given(settings) == ["layout", "source", "catalog", "where", "keep", "crop", "fill_nan", "run"]
    layout = open_source(settings)
    assert ({**layout.headers, **layout.kept}, layout.classes) == ({"zero_point": "mag", "ra": "deg", "survey": ""}, ())
    assert [record.name for record in layout.records] == ["1", "2", "3"]
    for k, record in enumerate(layout.records, 1):
        image, targets, columns = load(settings, layout, record)
        assert (image.shape, image[0, 1, 1], image[0, 0, 0], targets) == ((1, 4, 4), -1, k, {})
        assert columns == {"zero_point": 20 + k, "ra": k / 2, "survey": f"S{k}"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layout": "files"}, "give --source"),
        ({"layout": "catalogue", "source": Path("in")}, "give --catalog FILE"),
        ({"layout": "npz", "source": Path("a"), "pattern": "{id}_{band}.npy"}, "pattern has an effect only with"),
        ({"layout": "files", "source": Path("a"), "bands": "g,r,g"}, "unique name"),
        ({"layout": "files", "source": Path("a"), "bands": "g,r", "resample": "z"}, "must be one of --bands g,r"),
        ({"layout": "files", "source": Path("a"), "catalog": Path("c"), "keep": "ra,ra:deg"}, "keep='ra,ra:deg' names"),
        ({"layout": "files", "source": Path("a"), "join": "order", "catalog": Path("c")}, "has an effect only with"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_anything_is_read(choice: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceSettings(**choice)


def test_classes_of_folders_are_known_unless_labels_come_from_elsewhere(tmp_path: Path) -> None:
    for name in ("ring", "arc"):
        put(tmp_path / "in" / name / "0.npy", np.zeros((4, 4)))
    settings = SourceSettings(layout="folders", source=tmp_path / "in")
    assert open_source(settings).classes == ("arc", "ring")
    (tmp_path / "g.csv").write_text("id,grade\nring/0,A\n")
    graded = open_source(settings, grades=tmp_path / "g.csv")
    assert (graded.classes, [record.label for record in graded.records]) == ((), [-1])
    assert graded.columns["grade"].tolist() == ["A"]
