"""Catalogues: each line goes to its own image, by name; what is not clear is refused by line and name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import put

from deeplense.data.catalogues import attach, read_catalogue
from deeplense.data.choosing import Choice, choose
from deeplense.data.layouts import deeplense, files, npz
from deeplense.data.records import Layout

COUNT = 12


def archive(folder: Path, **arrays: Any) -> Path:
    """Images whose pixels are their number."""
    images = np.arange(COUNT, dtype="float32")[:, None, None] * np.ones((4, 4), "float32")
    np.savez(folder / "stamps.npz", images=images, **arrays)
    return folder / "stamps.npz"


def table(folder: Path, header: str, rows: Sequence[str]) -> Path:
    """A CSV file."""
    (folder / "catalogue.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "catalogue.csv"


def shuffled(rows: list[str], seed: int = 0) -> list[str]:
    return [rows[k] for k in np.random.default_rng(seed).permutation(len(rows))]


NAMES = [f"object {k}" for k in range(COUNT)]
ROWS = [f"{name},{'abc'[k % 3]}" for k, name in enumerate(NAMES)]


def truth(layout: Layout) -> dict[float, str]:
    """The class of each image, by its pixels."""
    chosen = choose(layout, Choice())
    return {float(chosen.load(one)[0].mean()): chosen.classes[one.label] for one in chosen.records}


RIGHT = {float(k): "abc"[k % 3] for k in range(COUNT)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("column", ["name", "ID", "Object ID", "filename", "id"])
def test_lines_in_any_order_go_to_the_images_of_their_names(tmp_path: Path, column: str, seed: int) -> None:
    layout = npz(archive(tmp_path, name=np.array(NAMES)))
    found = attach(layout, read_catalogue(table(tmp_path, f"{column},label", shuffled(ROWS, seed))))
    assert truth(found) == RIGHT
    assert [record.name for record in found.records] == NAMES


def test_of_several_columns_of_names_the_one_is_taken_that_names_the_images(tmp_path: Path) -> None:
    rows = [f"other {k},{row}" for k, row in enumerate(ROWS)]
    for header in ("name,id,label", "id,name,label", "name,file,label"):
        layout = npz(archive(tmp_path, id=np.array(NAMES)))
        assert truth(attach(layout, read_catalogue(table(tmp_path, header, shuffled(rows))))) == RIGHT


def test_by_order_lines_in_another_order_are_wrong_which_is_why_it_must_be_asked_for(tmp_path: Path) -> None:
    catalogue = read_catalogue(table(tmp_path, "name,label", shuffled(ROWS)))
    named = npz(archive(tmp_path, name=np.array(NAMES)))
    assert truth(attach(named, catalogue, join="order")) != RIGHT, "the control"
    unnamed = npz(archive(tmp_path))
    with pytest.raises(ValueError, match=r"has image names \(name\).*--join order"):
        attach(unnamed, catalogue)
    assert any("as --join requests" in note for note in attach(unnamed, catalogue, join="order").notes)


@pytest.mark.parametrize("column", ["index", "id", "row"])
def test_images_without_names_are_found_by_their_place_or_refused(tmp_path: Path, column: str) -> None:
    rows = [f"{k},{'abc'[k % 3]}" for k in range(COUNT)]
    layout = npz(archive(tmp_path))
    assert truth(attach(layout, read_catalogue(table(tmp_path, f"{column},label", rows)))) == RIGHT
    other = read_catalogue(table(tmp_path, f"{column},label", shuffled(rows)))
    with pytest.raises(ValueError, match="--name_column COLUMN"):
        attach(layout, other)
    assert truth(attach(layout, other, name_column=column)) == RIGHT


def test_a_catalogue_without_names_is_taken_in_order_and_must_have_as_many_lines(tmp_path: Path) -> None:
    layout = npz(archive(tmp_path))
    rows = [f"x,{'abc'[k % 3]}" for k in range(COUNT)]
    found = attach(layout, read_catalogue(table(tmp_path, "note,label", rows)))
    assert truth(found) == RIGHT
    assert any("line k of" in note for note in found.notes)
    for wrong in (rows[1:], [*rows, rows[0]]):
        with pytest.raises(ValueError, match=f"{len(wrong)} lines for {COUNT} images"):
            attach(layout, read_catalogue(table(tmp_path, "note,label", wrong)))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (ROWS[1:], "1 images have no line: image 0 .object 0"),
        ([*ROWS, "object 99,a"], "1 lines have no image: line 14 .object 99"),
        ([*ROWS[2:], "object 98,a"], "2 images have no line.*; 1 lines have no image"),
        ([*ROWS, "object 3,a"], "lines 5 and 14 have the same name 'object 3'"),
        ([*ROWS[:4], ",a", *ROWS[4:]], "line 6 has no name"),
        (["x,a", "y,b"], "--join order"),
    ],
)
def test_images_and_lines_without_a_counterpart_are_counted_and_named(
    tmp_path: Path, rows: list[str], told: str
) -> None:
    layout = npz(archive(tmp_path, name=np.array(NAMES)))
    with pytest.raises(ValueError, match=told):
        attach(layout, read_catalogue(table(tmp_path, "name,label", rows)))


def test_what_has_no_counterpart_is_left_out_on_demand_and_told(tmp_path: Path) -> None:
    layout = npz(archive(tmp_path, name=np.array(NAMES)))
    catalogue = read_catalogue(table(tmp_path, "name,label", shuffled([*ROWS[2:], "object 98,a"])))
    found = attach(layout, catalogue, leave_out=True)
    assert truth(found) == {k: label for k, label in RIGHT.items() if k > 1}
    assert [note for note in found.notes if note.startswith("ignored: 2 images")]
    assert [note for note in found.notes if note.startswith("ignored: 1 lines")]


@pytest.mark.parametrize("written", ["{kind}/{k}", "{k}", "{k}.npy", "{kind}/{k}.npy", "./{kind}/{k}.NPY"])
def test_files_are_found_by_what_they_are_called(tmp_path: Path, written: str) -> None:
    for k in range(9):
        put(tmp_path / "in" / ("no", "cdm", "axion")[k % 3] / f"{k}.npy", np.full((4, 4), k))
    rows = [f"{written.format(kind=('no', 'cdm', 'axion')[k % 3], k=k)},{k * 1.5}" for k in range(9)]
    layout = attach(deeplense(tmp_path / "in"), read_catalogue(table(tmp_path, "name,theta", shuffled(rows))))
    chosen = choose(layout, Choice(targets={"theta": "arcsec"}))
    for record in chosen.records:
        assert record.numbers == (float(chosen.load(record)[0].mean()) * 1.5,)


def test_a_stem_that_two_files_have_is_refused(tmp_path: Path) -> None:
    for kind in ("no", "cdm"):
        for k in range(2):
            put(tmp_path / "in" / kind / f"{k}.npy", np.ones((4, 4)))
    with pytest.raises(ValueError, match="several images have the name"):
        attach(deeplense(tmp_path / "in"), read_catalogue(table(tmp_path, "name,theta", ["0,1", "1,2"])))


def test_a_flat_folder_gets_its_labels_from_a_catalogue(tmp_path: Path) -> None:
    for k in range(COUNT):
        put(tmp_path / "in" / f"object {k}.npy", np.full((4, 4), float(k)))
    found = attach(files(tmp_path / "in"), read_catalogue(table(tmp_path, "file,label", shuffled(ROWS))))
    assert truth(found) == RIGHT


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name,label\na,x\nb\nc,x\n", "line 3 has 1 cells, but the header has 2"),
        (b"name,label\na,x\nb,x,y\n", "line 3 has 3 cells"),
        (b'name,label\na,x\n"b\n', "CSV cannot be read after line 2"),
        (b"name,name\na,x\n", "several columns have the name name"),
        (b"name,label,label \na,x,y\n", "several columns have the name label"),
        (b"name;label\na;x\n", "not separated by commas"),
        (b"name\tlabel\na\tx\n", "not separated by commas"),
        (b"name,label\na,\xff\n", "UTF-8"),
        (b"name,label\na," + b"x" * 200_000 + b"\n", "CSV cannot be read after line 1"),
        (b"", "has no lines"),
        (b"name,label\n", "has no lines"),
        (b"\n\n", "has no lines"),
    ],
)
def test_a_table_that_is_not_clear_is_refused_by_file_and_line(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(ValueError, match=told) as refused:
        read_catalogue(tmp_path / "bad.csv")
    assert "bad.csv" in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfname,label\r\na,x\r\nb,y\r\n",
        b"name, label \n\na , x\nb,y \n\n",
        b'"name","label"\n"a","x"\n"b","y"\n',
    ],
)
def test_a_mark_at_the_start_blanks_and_empty_lines_change_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "good.csv").write_bytes(content)
    columns = read_catalogue(tmp_path / "good.csv").columns
    assert {name: cells.tolist() for name, cells in columns.items()} == {"name": ["a", "b"], "label": ["x", "y"]}


@pytest.mark.parametrize("names", [["a"] * COUNT, ["", *NAMES[1:]]])
def test_names_that_are_none_are_not_taken_unless_asked_for(tmp_path: Path, names: list[str]) -> None:
    source = archive(tmp_path, name=np.array(names))
    layout = npz(source)
    assert [record.name for record in layout.records] == [f"stamps-{k:06d}" for k in range(COUNT)]
    assert any("named by their index" in note for note in layout.notes)
    with pytest.raises(ValueError, match="does not have one name per image"):
        npz(source, name_key="name")
