"""Folders of images: all that lies in them is understood, named as left out, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
from conftest import put

from deeplense.data.folders import SPLITS, SYNONYMS, meaning
from deeplense.data.layouts import deeplense, files, gsoc, lens_finding

IMAGE = np.ones((4, 4))
CLASSES = ("axion", "cdm", "no_sub")


def folder_of(root: Path, *folders: str, count: int = 2, ending: str = ".npy") -> Path:
    """A folder with some images in each of these folders."""
    for folder in folders:
        for k in range(count):
            put(root / folder / "made.npy", IMAGE)
            (root / folder / "made.npy").rename(root / folder / f"{k}{ending}")
    return root


def counts(source: Path) -> dict[tuple[str, str], int]:
    """How many images of each split and class are found."""
    layout = deeplense(source)
    found: dict[tuple[str, str], int] = {}
    for record in layout.records:
        key = (record.split, layout.classes[record.label])
        found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.parametrize(
    "names",
    [
        ("axion", "cdm", "no_substructure"),
        ("Axion", "CDM", "no_sub"),
        ("AXION", "Cdm", "No-Sub"),
        ("vort", "sphere", "no"),
        ("Vortex", "SubHalo", "No Substructure"),
    ],
)
@pytest.mark.parametrize("ending", [".npy", ".NPY", ".Npy"])
def test_no_class_is_lost_by_the_case_of_its_name_or_by_how_it_is_written(
    tmp_path: Path, names: tuple[str, ...], ending: str
) -> None:
    folder_of(tmp_path, *names, ending=ending)
    assert counts(tmp_path) == {("", name): 2 for name in CLASSES}


@pytest.mark.parametrize("split", [name for names in SPLITS.values() for name in names] + ["Train", "VALIDATION"])
def test_splits_are_known_by_all_their_names(tmp_path: Path, split: str) -> None:
    folder_of(tmp_path, *(f"{split}/{name}" for name in CLASSES))
    assert counts(tmp_path) == {(meaning(split, SPLITS), name): 2 for name in CLASSES}


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("galaxies/1.npy", "galaxies"),
        ("no_sub_2/1.npy", "no_sub_2"),
        ("cdm/more/1.npy", "more/"),
        ("cdm/more/deeper/1.npy", "more/"),
        ("cdm/1.fits", "1.fits"),
        ("cdm/1.npy.gz", "1.npy.gz"),
        ("cdm/1.npz", "1.npz"),
        ("cdm/1.png", "1.png"),
        ("cdm/1", "1"),
        ("1.npy", "1.npy"),
        ("train2/cdm/1.npy", "train2"),
        ("train/cdm/1.npy", "axion"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, extra: str, told: str) -> None:
    folder_of(tmp_path, *CLASSES)
    put(tmp_path / "made.npy", IMAGE)
    (tmp_path / extra).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "made.npy").rename(tmp_path / extra)
    with pytest.raises(ValueError, match=told):
        deeplense(tmp_path)
    with pytest.raises(ValueError, match=told):
        gsoc(tmp_path)


@pytest.mark.parametrize(
    "extra", [".DS_Store", "README", "cdm/.hidden.npy", "cdm/notes.txt", "list.csv", "__MACOSX/1.npy"]
)
def test_what_holds_no_images_is_left_out_and_named(tmp_path: Path, extra: str) -> None:
    folder_of(tmp_path, *CLASSES)
    (tmp_path / extra).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / extra).write_text("text")
    layout = deeplense(tmp_path)
    assert len(layout.records) == 6
    assert any(extra.removesuffix("/1.npy") in note and "ignored" in note for note in layout.notes)


def test_an_empty_folder_of_a_class_is_refused_unless_another_split_has_the_class(tmp_path: Path) -> None:
    folder_of(tmp_path, "train/cdm", "train/no", "val/cdm")
    (tmp_path / "train" / "axion").mkdir()
    with pytest.raises(ValueError, match="train/axion, the folder of the class axion, contains no"):
        deeplense(tmp_path)
    folder_of(tmp_path, "val/axion")
    assert any("train/axion" in note for note in deeplense(tmp_path).notes)


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, "val/cdm", "validation/cdm", "train/cdm")
    with pytest.raises(ValueError, match="contains splits"):
        deeplense(tmp_path)


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, "cdm")
    (tmp_path / "cdm" / "gone.npy").symlink_to(tmp_path / "nowhere.npy")
    with pytest.raises(ValueError, match=r"gone\.npy"):
        deeplense(tmp_path)


@pytest.mark.parametrize("names", [("lenses", "nonlens"), ("Lens", "non-lenses"), ("lensed", "NonLensed")])
def test_lenses_and_others_are_known_by_their_names(tmp_path: Path, names: tuple[str, str]) -> None:
    folder_of(tmp_path, *names, count=3)
    assert [record.label for record in lens_finding(tmp_path).records].count(1) == 3
    folder_of(tmp_path, "quasars")
    with pytest.raises(ValueError, match="quasars"):
        lens_finding(tmp_path)


def test_one_folder_of_files_holds_images_of_any_bands(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(3, 6, 6))
    put(tmp_path / "0.npy", image)
    put(tmp_path / "1.npy", np.moveaxis(image, 0, -1))
    layout = files(tmp_path)
    one, other = (layout.load(record)[0] for record in layout.records)
    assert one.shape == other.shape == (3, 6, 6)
    np.testing.assert_array_equal(one, other)
    assert [record.label for record in layout.records] == [-1, -1]
    (tmp_path / "sub").mkdir()
    put(tmp_path / "sub" / "x.npy", IMAGE)
    with pytest.raises(ValueError, match="sub/"):
        files(tmp_path)


def test_every_synonym_means_one_class_only() -> None:
    written = [name for names in SYNONYMS.values() for name in names]
    assert len(set(written)) == len(written)
    assert [meaning(name, SYNONYMS) for name in written] == [key for key, names in SYNONYMS.items() for _ in names]
