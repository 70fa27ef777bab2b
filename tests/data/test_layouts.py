"""The doors: which samples a foreign folder or file holds, and what each is."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import axion, put
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data.archives import channels_first
from deeplense.data.catalogues import attach, read_catalogue
from deeplense.data.choosing import Choice, choose
from deeplense.data.folders import SYNONYMS
from deeplense.data.layouts import SUBSTRUCTURE, deeplense, gsoc, lens_finding, npz
from deeplense.data.records import Layout

IMAGE = np.arange(20.0).reshape(4, 5)


def read_npz_layout(
    source: Path,
    *,
    label_key: str = "label",
    catalog: Path | None = None,
    classes: Sequence[str] = (),
    where: Sequence[str] = (),
    bands: Sequence[str] = (),
) -> Layout:
    layout = npz(source, bands=bands)
    if catalog:
        layout = attach(layout, read_catalogue(catalog))
    return choose(layout, Choice(label_key=label_key, classes=classes, where=where))


def classes_of(layout: Layout) -> dict[str, str]:
    return {record.name: layout.classes[record.label] for record in layout.records}


def test_synonyms_of_the_classes_are_mapped_at_the_door(tmp_path: Path) -> None:
    for name in (name for names in SYNONYMS.values() for name in names):
        put(tmp_path / name / "0.npy", IMAGE)
    layout = deeplense(tmp_path)
    assert layout.classes == ("no_sub", "cdm", "axion")
    assert classes_of(layout) == {f"{name}/0": truth for truth, names in SYNONYMS.items() for name in names}


@pytest.mark.parametrize(
    "bad",
    [
        axion(IMAGE, 0.0),
        axion(IMAGE, -1e-23),
        axion(IMAGE, np.nan),
        axion(IMAGE, np.inf),
        axion(IMAGE, 10**400),
        axion(IMAGE, 1e-23j),
        axion(IMAGE + 1j, 1e-23),
        axion((IMAGE + 1j).astype(object), 1e-23),
        axion(IMAGE[:0], 1e-23),
        axion(IMAGE.astype(str), 1e-23),
        IMAGE[:0],
        axion(IMAGE, "heavy"),
        axion([[1, 2], [3]], 1e-23),
        axion(IMAGE[0], 1e-23),
        axion(np.stack([IMAGE] * 3), 1e-23),
        np.array([IMAGE, 1e-23, 2, 3], dtype=object),
        np.stack([IMAGE] * 3),
        IMAGE[0],
        IMAGE.astype(complex),
        IMAGE.astype(str),
    ],
)
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path: Path, bad: np.ndarray) -> None:
    put(tmp_path / "axion" / "bad.npy", bad)
    layout = deeplense(tmp_path)
    with pytest.raises(ValueError, match=r"bad\.npy"):
        layout.load(layout.records[0])


@pytest.mark.parametrize("reader", [deeplense, gsoc, lens_finding])
def test_an_empty_or_absent_folder_is_refused(tmp_path: Path, reader: Any) -> None:
    with pytest.raises(ValueError, match=r"contains no \.npy files"):
        reader(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        reader(tmp_path / "absent")


def lenses(folder: Path, index: Any = None) -> Path:
    for name in ("lenses/1", "lenses/2", "nonlenses/1", "nonlenses/3"):
        put(folder / f"{name}.npy", np.zeros((3, 4, 4)))
    if index is not None:
        (folder / "indices.pkl").write_bytes(pickle.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"train": {"lenses": ["9.npy"]}}, "lenses/9.npy, which does not exist"),
        ({"train": {"lenses": ["1.npy"]}, "test": {"lenses": ["1.npy"]}}, "in two splits"),
        ({"../out": {"lenses": ["1.npy"]}}, "unknown split '../out'; known splits are train"),
        ({"train": ["1.npy"]}, ": not {split"),
        (["1.npy"], ": not {split"),
        ({"train": {"lenses": 3}}, ": not {split"),
        ({"train": {"..": ["1.npy"]}}, "which does not exist"),
    ],
)
def test_an_index_file_that_does_not_fit_is_refused(tmp_path: Path, index: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        lens_finding(lenses(tmp_path, index))
    assert "indices.pkl" in str(raised.value)


def test_what_an_index_file_does_not_name_is_left_out_and_told(tmp_path: Path) -> None:
    index = {"Training": {"lenses": ["1.npy", "1.npy"]}, "validation": {"nonlenses": ["3.npy"]}}
    layout = lens_finding(lenses(tmp_path, index))
    assert [(record.name, record.split) for record in layout.records] == [("lenses/1", "train"), ("nonlenses/3", "val")]
    assert layout.notes == ["ignored, not listed in indices.pkl: lenses/2.npy, nonlenses/1.npy"]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(num=st.integers(1, 4), bands=st.integers(1, 5), height=st.integers(6, 9), width=st.integers(6, 9))
def test_bands_are_found_wherever_they_are(num: int, bands: int, height: int, width: int) -> None:
    images = np.random.default_rng(0).uniform(size=(num, bands, height, width))
    np.testing.assert_array_equal(channels_first(Path("x"), images)[0], images)
    np.testing.assert_array_equal(channels_first(Path("x"), np.moveaxis(images, 1, -1))[0], images)
    np.testing.assert_array_equal(channels_first(Path("x"), images[:, 0])[0], images[:, :1])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Six images of three bands, channel last, with labels inside and a catalogue beside."""
    images = np.random.default_rng(0).uniform(size=(6, 8, 8, 3))
    np.savez(tmp_path / "survey.npz", images=images, label=np.array(["ring", "arc", "arc", "ring", "none", "arc"]))
    lines = ["name,kind,grade", "a,ring,3", "b,arc,1", "c,arc,3", "d,ring,1", "e,none,3", "f,arc,3"]
    (tmp_path / "catalog.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "survey.npz"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"label_key": "kind"}, r"no column 'kind'; the columns are \['label'\]"),
        ({"where": ["grade=3"]}, "no column 'grade'"),
        ({"classes": ["ring", "arc"]}, "image 4 has the label 'none'"),
        ({"where": ["label=spiral"]}, "none of 6 images satisfies"),
        ({"bands": ["g", "r"]}, "have 3 bands"),
    ],
)
def test_a_choice_that_does_not_fit_the_archive_is_refused(archive: Path, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_npz_layout(archive, **choice)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no lines"),
        ("kind\n", "has no lines"),
        ("kind\narc\n", "1 lines for 6 images"),
        ("kind\n\xff\n", "not a readable CSV"),
    ],
)
def test_a_catalogue_that_does_not_fit_is_refused_by_name(archive: Path, text: str, message: str) -> None:
    catalog = archive.with_name("other.csv")
    catalog.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as raised:
        read_npz_layout(archive, label_key="kind", catalog=catalog)
    assert "other.csv" in str(raised.value)


def test_the_classes_of_substructure_are_those_of_the_simulation() -> None:
    from deeplense.simulation.populations import CLASSES

    assert SUBSTRUCTURE == CLASSES
