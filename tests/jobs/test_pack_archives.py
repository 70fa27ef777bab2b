"""`deeplense pack` on HDF5 and Parquet files of other programs, on data sets of its own, and with grades as labels."""

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from deeplense.data import verifying
from deeplense.data.dataset import Split
from launch.__main__ import main

IMAGES = np.random.default_rng(0).normal(size=(12, 2, 6, 6)).astype(np.float32)


def pack(*words: object) -> int:
    return main(["pack", *map(str, words)])


def packed(output: Path, *words: object) -> dict[str, Split]:
    """Pack, verify, and open every split."""
    assert pack(*words, "--output", output) == 0
    assert verifying.verify(output) == []
    return {folder.name: Split(folder) for folder in sorted(output.iterdir())}


def by_name(split: Split) -> dict[str, np.ndarray]:
    return dict(zip(split.ids, split.images(np.arange(len(split))), strict=True))


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        ("images", IMAGES),
        ("data/images", IMAGES.astype(">f4")),
        ("x", np.moveaxis(IMAGES, 1, -1)),
        ("group/deep/cutouts", IMAGES[:, 0]),
    ],
)
def test_an_hdf5_file_of_any_groups_is_packed_with_its_columns(tmp_path: Path, key: str, stored: np.ndarray) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(key, data=stored, chunks=(1, *stored.shape[1:]), compression="gzip")
        file["meta/name"] = np.array([f"obj {k}".encode() for k in range(12)])
        file["meta/kind"] = np.array(["arc", "none"] * 6, dtype=h5py.string_dtype())
        file["meta/theta"] = np.arange(12, dtype=">f8") / 4
        file["weights"] = np.zeros((3, 3))
    words = ["--layout=hdf5", f"--source={tmp_path / 'a.h5'}", "--label_key=meta/kind", "--name_key=meta/name"]
    words += ["--keep=kind", "--targets=theta:arcsec"]
    split = packed(tmp_path / "out", *words, "--where=meta/theta<2.5", *(["--axes=NHWC"] if key == "x" else []))[
        "train"
    ]
    assert split.schema.classes == ("arc", "none")
    found = by_name(split)
    assert len(found) == 10
    for name, label in zip(split.ids, split.labels, strict=True):
        k = int(name.removeprefix("obj "))
        np.testing.assert_array_equal(found[name], IMAGES[k, :1] if stored.ndim == 3 else IMAGES[k])
        assert label == k % 2
        assert split.column("target/theta")[split.ids.index(name)] == k / 4


def two(file: h5py.File, folder: Path) -> None:
    file["train/images"], file["test/images"] = IMAGES, IMAGES


def link(file: h5py.File, folder: Path) -> None:
    file["images"] = h5py.ExternalLink(str(folder / "other.h5"), "images")


def soft(file: h5py.File, folder: Path) -> None:
    file["data"] = IMAGES
    file["images"] = h5py.SoftLink("/data")


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout(shape=IMAGES.shape, dtype="f4")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "images", shape=IMAGES.shape)
    file.create_virtual_dataset("images", layout)


def outside(file: h5py.File, folder: Path) -> None:
    (folder / "raw").write_bytes(IMAGES.tobytes())
    file.create_dataset("images", IMAGES.shape, "f4", external=[(str(folder / "raw"), 0, IMAGES.nbytes)])


def table(file: h5py.File, folder: Path) -> None:
    file["images"] = np.zeros(3, dtype=[("a", "f4")])


def none(file: h5py.File, folder: Path) -> None:
    file["others"] = np.zeros((3, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (link, "images is a link"),
        (soft, "images is a link"),
        (virtual, "stores images in another file"),
        (outside, "stores images in another file"),
        (table, "holds"),
        (two, "several arrays may be the images: test/images, train/images. Give --image_key"),
        (none, "no array 'images'; the arrays are: others (3, 4). Give --image_key"),
    ],
)
def test_an_hdf5_file_that_takes_its_images_from_elsewhere_is_refused(
    tmp_path: Path, make: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["images"] = IMAGES
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, tmp_path)
    assert pack("--layout=hdf5", f"--source={tmp_path / 'a.h5'}", f"--output={tmp_path / 'out'}") == 2
    assert message in told(capsys)
    assert not (tmp_path / "out").exists()


def test_a_group_that_contains_itself_ends(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["label"] = IMAGES, np.arange(12) % 2
        file["group/self"] = file["/"]
    split = packed(tmp_path / "out", "--layout=hdf5", f"--source={tmp_path / 'a.h5'}")["train"]
    assert split.schema.classes == ("0", "1")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(40)])
@pytest.mark.parametrize("layout", ["hdf5", "parquet"])
def test_a_torn_archive_is_one_line(
    tmp_path: Path, content: bytes, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    assert pack(f"--layout={layout}", f"--source={tmp_path / 'a.bin'}", f"--output={tmp_path / 'out'}") == 2
    assert "a.bin" in told(capsys)


def universe(*, as_structs: bool = False, bands: tuple[str, ...] = ("g", "r"), scale: float = 0.262) -> arrow.Table:
    """A table as Multimodal Universe stores images: lists of bands within a struct, or a list of structs."""
    rows: list[Any] = []
    for image in IMAGES:
        flux = image.tolist()
        lists = {"band": list(bands), "flux": flux, "psf_fwhm": [1.1, 1.2], "scale": [scale] * 2}
        each = [{name: values[k] for name, values in lists.items()} for k in range(2)]
        rows.append(each if as_structs else lists)
    names, ra = [f"id{k}" for k in range(12)], [10.0 + k for k in range(11)] + [None]
    return arrow.table({"image": rows, "object_id": names, "ra": ra})


@pytest.mark.parametrize("as_structs", [False, True])
def test_a_table_of_multimodal_universe_is_packed_with_bands_scale_and_columns(
    tmp_path: Path, as_structs: bool
) -> None:
    parquet.write_table(universe(as_structs=as_structs), tmp_path / "a.parquet", row_group_size=5)
    words = ["--layout=parquet", f"--source={tmp_path / 'a.parquet'}", "--keep=ra"]
    split = packed(tmp_path / "out", *words)["train"]
    assert (split.schema.bands, split.schema.pixel_scale_arcsec, split.schema.classes) == (("g", "r"), 0.262, ())
    for name, image in by_name(split).items():
        np.testing.assert_array_equal(image, IMAGES[int(name[2:])])
    ra = dict(zip(split.ids, split.column("column/ra"), strict=True))
    assert ra["id3"] == 13
    assert np.isnan(ra["id11"])
    red = packed(tmp_path / "red", *words, "--bands=r")["train"]
    np.testing.assert_array_equal(by_name(red)["id4"], IMAGES[4, 1:])


def test_files_of_hugging_face_are_splits_of_pictures_with_names_of_labels(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, size=(6, 5, 5, 3)).astype(np.uint8)
    info = {"info": {"features": {"label": {"names": ["cat", "lens"], "_type": "ClassLabel"}}}}

    def encoded(image: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        return stream.getvalue()

    for split, rows in (("train", range(4)), ("test", range(4, 6))):
        cells = [{"bytes": encoded(colours[k]), "path": f"{k}.png"} for k in rows]
        written = arrow.table({"image": cells, "label": [k % 2 for k in rows], "id": [f"p{k}" for k in rows]})
        written = written.replace_schema_metadata({"huggingface": json.dumps(info)})
        (tmp_path / "in" / "data").mkdir(parents=True, exist_ok=True)
        parquet.write_table(written, tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "in" / "README.md").write_text("x")
    splits = packed(tmp_path / "out", "--layout=parquet", f"--source={tmp_path / 'in'}")
    assert {name: len(split) for name, split in splits.items()} == {"test": 2, "train": 4}
    for split in splits.values():
        assert (split.schema.classes, split.schema.bands) == (("cat", "lens"), ("R", "G", "B"))
        for name, label, image in zip(split.ids, split.labels, by_name(split).values(), strict=True):
            np.testing.assert_array_equal(image, np.moveaxis(colours[int(name[1:])], -1, 0))
            assert label == int(name[1:]) % 2


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[[1.0, 2.0], [3.0]], [[1.0, 2.0], [3.0, 4.0]]], "row 0: the rows of its image differ in length"),
        ([[[1.0, 2.0], [3.0, 4.0]], None], "row 1: it has no image"),
        ([{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}], "row 0: it names a file"),
        ([{"bytes": b"hello", "path": "a.png"}] * 2, "row 0: not a readable PNG"),
        ([{"flux": [[[1.0]]], "band": ["g", "r"]}] * 2, "row 0: it has 1 bands, but names 2"),
        ([{"flux": [[[1.0]]] * 2, "band": ["g", "r"], "scale": [0.1, 0.2]}] * 2, "pixels of 0.1, 0.2 arcsec"),
        ([{"mask": [1]}] * 2, "has the parts mask"),
        ([1.0, 2.0], "the column 'image' does not hold images"),
    ],
)
def test_a_cell_that_is_no_image_is_named_with_its_row(
    tmp_path: Path, cells: list[Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet.write_table(arrow.table({"image": cells}), tmp_path / "a.parquet")
    assert pack("--layout=parquet", f"--source={tmp_path / 'a.parquet'}", f"--output={tmp_path / 'out'}") == 2
    line = told(capsys)
    assert message in line
    assert "a.parquet" in line
    assert not (tmp_path / "out").exists()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A data set with classes, targets, columns and two splits."""
    names = np.array([f"n{k}" for k in range(12)])
    np.savez(tmp_path / "a.npz", images=IMAGES, name=names, label=np.array(["a", "b", "c"] * 4), size=np.arange(12) / 2)
    words = ["--layout=npz", f"--source={tmp_path / 'a.npz'}", "--targets=size:arcsec", "--keep=name,size"]
    packed(tmp_path / "own", *words, "--bands=g,r", "--unit=nJy", "--pixel_scale=0.2", "--test_fraction=0.3")
    return tmp_path / "own"


def test_a_data_set_is_packed_again_with_everything_it_has(tmp_path: Path, own: Path) -> None:
    again = packed(tmp_path / "again", "--layout=dataset", f"--source={own}", "--crop=4")
    for name, split in again.items():
        before = Split(own / name)
        assert sorted(split.ids) == sorted(before.ids)
        assert (split.schema.classes, split.schema.bands, split.schema.unit) == (("a", "b", "c"), ("g", "r"), "nJy")
        assert (split.schema.targets, split.schema.columns) == ({"size": "arcsec"}, {"name": "", "size": ""})
        for k, name_of in enumerate(split.ids):
            old = before.ids.index(name_of)
            assert split.labels[k] == before.labels[old]
            for column in ("target/size", "column/name", "column/size"):
                assert split.column(column)[k] == before.column(column)[old]
            np.testing.assert_array_equal(by_name(split)[name_of], by_name(before)[name_of][:, 1:5, 1:5])


def test_columns_of_a_data_set_give_it_other_classes(tmp_path: Path, own: Path) -> None:
    words = ["--layout=dataset", f"--source={own}", "--classes=small:size<2,large:size>=4"]
    split = packed(tmp_path / "again", *words)["train"]
    for name, label in zip(split.ids, split.labels, strict=True):
        assert split.schema.classes[label] == ("small" if int(name[1:]) / 2 < 2 else "large")


def test_data_sets_in_one_folder_are_classes_if_their_pixels_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size, scale in (("host", 6, 0.26), ("lens", 8, 0.25)):
        images = np.random.default_rng(size).normal(size=(5, size, size)).astype("f4")
        np.savez(tmp_path / f"{name}.npz", images=images)
        words = ["--layout=npz", f"--source={tmp_path / f'{name}.npz'}", f"--pixel_scale={scale}"]
        packed(tmp_path / "both" / name, *words)
    words = ["--layout=dataset", f"--source={tmp_path / 'both'}", "--crop=6"]
    assert pack(*words, f"--output={tmp_path / 'out'}") == 2
    assert "has pixels of 0.26 arcsec, but" in told(capsys)
    split = packed(tmp_path / "out", *words, "--pixel_scale=0.25")["train"]
    assert split.schema.classes == ("host", "lens")
    assert all(name.startswith(split.schema.classes[k]) for name, k in zip(split.ids, split.labels, strict=True))


def write_grades(folder: Path) -> Path:
    lines = ["n1,A,3,0.9", "n2,B,2,0.7", "n4,A,3,1.0", "n7,,0,", "n8,B,1,0.5", "elsewhere,A,1,1"]
    (folder / "grades.csv").write_text("\n".join(["id,grade,num_graders,agreement", *lines]) + "\n")
    return folder / "grades.csv"


@pytest.mark.parametrize("layout", ["dataset", "npz", "files", "folders"])
def test_grades_become_labels_and_images_without_a_grade_are_left_out(
    tmp_path: Path, own: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(12):
        for folder in ("files", "folders/x"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / folder / f"n{k}.npy", IMAGES[k])
    source = {"dataset": own, "npz": tmp_path / "a.npz"}.get(layout, tmp_path / layout)
    words = [f"--layout={layout}", f"--source={source}", f"--grades={write_grades(tmp_path)}", "--keep=agreement"]
    splits = packed(tmp_path / "out", *words)
    names = {
        name.rpartition("/")[2]: split.schema.classes[k]
        for split in splits.values()
        for name, k in zip(split.ids, split.labels, strict=True)
    }
    assert names == {"n1": "A", "n2": "B", "n4": "A", "n8": "B"}
    assert "lines have no image: line 7 (elsewhere)" in capsys.readouterr().out
    few = packed(tmp_path / "few", *words, "--where=agreement>0.6", "--classes=lens:grade=A,other:grade=B")
    assert sum(len(split) for split in few.values()) == 3
    assert next(iter(few.values())).schema.classes == ("lens", "other")


def test_grades_that_cannot_be_labels_are_one_line(
    tmp_path: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grades.csv").write_text("id,score\nn1,A\n")
    words = [
        "--layout=dataset",
        f"--source={own}",
        f"--grades={tmp_path / 'grades.csv'}",
        f"--output={tmp_path / 'out'}",
    ]
    assert pack(*words) == 2
    assert "grades.csv: no column 'grade'" in told(capsys)
    (tmp_path / "grades.csv").write_text("id,grade\nnobody,A\n")
    assert pack(*words) == 2
    assert "12 images have no line" in told(capsys)
    with pytest.raises(SystemExit):
        pack(*words, "--label_key=kind")
    assert "the labels are those of --grades" in told(capsys)


def test_groups_of_a_data_set_are_not_cut_when_it_is_packed_again(tmp_path: Path) -> None:
    names = np.array([f"n{k}" for k in range(12)])
    objects = np.array([f"object{k // 3}" for k in range(12)])
    np.savez(tmp_path / "a.npz", images=IMAGES, name=names, label=np.array(["a"] * 6 + ["b"] * 6), object=objects)
    packed(tmp_path / "own", "--layout=npz", f"--source={tmp_path / 'a.npz'}", "--group=object")
    words = ["--layout=dataset", f"--source={tmp_path / 'own'}", "--test_fraction=0.5", "--seed=3"]
    splits = packed(tmp_path / "again", *words)
    assert sorted(splits) == ["test", "train"]
    of = {name: {objects[int(each[1:])] for each in split.ids} for name, split in splits.items()}
    assert of["train"].isdisjoint(of["test"])


def test_bands_that_do_not_fit_an_archive_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
    assert pack("--layout=hdf5", f"--source={tmp_path / 'a.h5'}", f"--output={tmp_path / 'out'}", "--bands=g,r,i") == 2
    assert "the images have 2 bands, but --bands names ['g', 'r', 'i']" in told(capsys)
    parquet.write_table(universe(bands=("des-g", "des-r")), tmp_path / "a.parquet")
    words = ["--layout=parquet", f"--source={tmp_path / 'a.parquet'}"]
    assert pack(*words, f"--output={tmp_path / 'out'}", "--bands=r,g") == 2
    assert "it has no band r, g; its bands are des-g, des-r" in told(capsys)
    renamed = packed(tmp_path / "named", *words, "--bands=r=des-r,g=des-g")["train"]
    assert renamed.schema.bands == ("r", "g")
    np.testing.assert_array_equal(by_name(renamed)["id4"], IMAGES[4, ::-1])


def test_an_array_that_was_never_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", shape=(10**9, 8, 8), dtype="f4", chunks=(1, 8, 8))
    assert pack("--layout=hdf5", f"--source={tmp_path / 'a.h5'}", f"--output={tmp_path / 'out'}") == 2
    assert "hardly any of it is stored" in told(capsys)


def test_a_catalogue_that_counts_from_one_does_not_shift_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES)
    lines = ["index,label", *(f"{k + 1},{'ab'[k % 2]}" for k in range(12))]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    words = ["--layout=npz", f"--source={tmp_path / 'a.npz'}", f"--catalog={tmp_path / 'a.csv'}"]
    shifted = [*words, "--name_column=index", "--unmatched=leave_out", f"--output={tmp_path / 'out'}"]
    assert pack(*shifted) == 2
    assert "counts from 1, but images without names are numbered from 0" in told(capsys)
    split = packed(tmp_path / "out", *words, "--join=order")["train"]
    for image, label in zip(by_name(split).values(), split.labels, strict=True):
        assert label == np.flatnonzero((image == IMAGES).all(axis=(1, 2, 3)))[0] % 2
