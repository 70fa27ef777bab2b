"""`deeplense pack` on images in files: any class folders, FITS and pictures, a file for each band, cubes, and files
that a table names. What is not understood is one line that names the file, and nothing is left."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.io import fits as astropy_fits
from astropy.table import MaskedColumn
from astropy.table import Table as AstropyTable
from conftest import put
from PIL import Image

from deeplense.data import verifying
from deeplense.data.dataset import Split
from launch.__main__ import main

fits: Any = astropy_fits
Table: Any = AstropyTable


def pixels(number: int, shape: tuple[int, ...] = (6, 6)) -> np.ndarray:
    return np.random.default_rng(number).normal(size=shape).astype(np.float32)


def save(path: Path, image: np.ndarray, **cards: Any) -> None:
    """Write an image as its ending says; a FITS file with these cards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".fit" in path.name.lower() or ".fts" in path.name.lower():
        header = fits.Header()
        header.update(cards)
        fits.HDUList([fits.PrimaryHDU(image, header)]).writeto(path)
    elif path.suffix.lower() == ".npy":
        put(path, image)
        if path.suffix != ".npy":
            path.with_name(f"{path.name}.npy").rename(path)
    else:
        Image.fromarray(image).save(path)


def sky(number: int, scale: float = 0.2) -> dict[str, Any]:
    """Cards of an image of 6 x 6 pixels whose centre has the position (10 + number, -20)."""
    names = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0 + number, "CRVAL2": -20.0}
    return names | {"CRPIX1": 3.5, "CRPIX2": 3.5, "CDELT1": -scale / 3600, "CDELT2": scale / 3600}


def pack(*words: object) -> int:
    return main(["pack", *map(str, words)])


def packed(output: Path, *words: object) -> dict[str, Split]:
    """Pack, verify, and open every split."""
    assert pack(*words, "--output", output) == 0
    assert verifying.verify(output) == []
    return {folder.name: Split(folder) for folder in sorted(output.iterdir())}


def images(split: Split) -> dict[str, np.ndarray]:
    return dict(zip(split.ids, split.images(np.arange(len(split))), strict=True))


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_class_folders_of_any_names_and_files_of_all_kinds(tmp_path: Path) -> None:
    names = {"Einstein Ring/a.fits": 0, "Einstein Ring/b.FIT": 1, "spiral-2/c.npy": 2, "spiral-2/d.fits.gz": 3}
    for split, offset in (("train", 0), ("Validation", 10)):
        for name, number in names.items():
            save(tmp_path / "in" / split / name, pixels(number + offset))
    (tmp_path / "in" / "train" / "spiral-2" / ".DS_Store").write_text("x")
    (tmp_path / "in" / "train" / "notes.txt").write_text("x")
    (tmp_path / "in" / "train" / "empty").mkdir()
    (tmp_path / "in" / "train" / "empty").rmdir()
    splits = packed(tmp_path / "out", "--layout=folders", f"--source={tmp_path / 'in'}")
    assert splits.keys() == {"train", "val"}
    for split, offset in (("train", 0), ("val", 10)):
        assert splits[split].schema.classes == ("Einstein Ring", "spiral-2")
        found = images(splits[split])
        for name, number in names.items():
            stem = name.split(".")[0]
            np.testing.assert_array_equal(found[stem][0], pixels(number + offset))
            label = splits[split].labels[splits[split].ids.index(stem)]
            assert splits[split].schema.classes[label] == stem.split("/")[0]


def test_splits_may_write_a_class_in_upper_and_lower_case(tmp_path: Path) -> None:
    for k, folder in enumerate(["train/Lens", "train/other", "test/lens", "test/Other"]):
        save(tmp_path / "in" / folder / "0.png", np.full((5, 5), k, np.uint8))
    splits = packed(tmp_path / "out", "--layout=folders", f"--source={tmp_path / 'in'}")
    assert splits["train"].schema.classes == splits["test"].schema.classes == ("Lens", "other")
    assert {name: sorted(split.labels.tolist()) for name, split in splits.items()} == {"train": [0, 1], "test": [0, 1]}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["lens/a.png", "lens/deep/b.png", "other/c.png"], "unexpected deep/"),
        (["lens/a.png", "other/b.xyz"], "unexpected b.xyz"),
        (["lens/a.png", "Lens/b.png"], "upper and lower case only"),
        (["lens/a.png", "b.png"], "b.png is next to the folders of images"),
        (["lens/a.png", "lens/a.npy", "other/c.png"], "2 images have the name 'lens/a'"),
        (["lens/a.png", "other/.hidden"], "other, the folder of the class other, has no image"),
        (["train/lens/a.png", "extra/lens/b.png"], "also extra"),
    ],
)
def test_content_of_folders_that_is_not_understood_is_one_line(
    tmp_path: Path, paths: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in paths:
        if path.endswith((".png", ".npy")):
            save(tmp_path / "in" / path, np.zeros((5, 5), np.uint8))
        else:
            (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / path).write_text("x")
    assert pack("--layout=folders", f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}") == 2
    assert message in told(capsys)
    assert not (tmp_path / "out").exists()


def test_what_headers_say_is_kept(tmp_path: Path) -> None:
    for k in range(5):
        save(tmp_path / "in" / f"{k}.fits", pixels(k), **sky(k), BUNIT="nJy", FILTER="r", MAGZERO=30.0 + k)
    split = packed(tmp_path / "out", "--layout=files", f"--source={tmp_path / 'in'}")["train"]
    assert (split.schema.unit, split.schema.bands) == ("nJy", ("r",))
    assert split.schema.pixel_scale_arcsec == pytest.approx(0.2)
    assert split.schema.columns == {"ra": "deg", "dec": "deg", "zero_point": "mag"}
    numbers = np.array([int(name) for name in split.ids])
    np.testing.assert_allclose(split.column("column/ra"), 10 + numbers)
    np.testing.assert_allclose(split.column("column/dec"), -20)
    np.testing.assert_array_equal(split.column("column/zero_point"), 30 + numbers)
    with pytest.raises(ValueError, match="no column 'mag'; the columns are: dec, ra, zero_point"):
        split.column("column/mag")


@pytest.mark.parametrize(
    ("odd", "message", "remedy"),
    [
        ({"BUNIT": "adu"}, "has the unit nJy, but .*3.fits .* has adu", "--unit=nJy"),
        ({"FILTER": "g"}, "has the bands r, but .*3.fits .* has g", "--bands=r"),
        (sky(3, 0.25), "has pixels of 0.2 arcsec, but .*3.fits .* has 0.25 arcsec", "--pixel_scale=0.2"),
    ],
)
def test_headers_that_differ_are_refused_with_both_files_unless_a_value_is_given(
    tmp_path: Path, odd: dict[str, Any], message: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(5):
        save(
            tmp_path / "in" / f"{k}.fits",
            pixels(k),
            **(sky(k) | {"BUNIT": "nJy", "FILTER": "r"} | (odd if k == 3 else {})),
        )
    words = ["--layout=files", f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    assert pack(*words) == 2
    line = told(capsys)
    assert re.search(message, line), line
    assert "0.fits" in line
    assert not (tmp_path / "out").exists()
    assert pack(*words, remedy) == 0


def test_pixel_scales_equal_within_a_hundredth_are_one(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / "in" / f"{k}.fits", pixels(k), **sky(k, 0.2 * (1 + 0.004 * k)))
    split = packed(tmp_path / "out", "--layout=files", f"--source={tmp_path / 'in'}")["train"]
    assert split.schema.pixel_scale_arcsec == pytest.approx(0.2)


def bands_of(folder: Path, pattern: str, *, without: str = "", first: int = 0) -> None:
    for k, name in enumerate(["J1+2", "lens_7"], first):
        for j, band in enumerate(["g", "r", "i"]):
            path = pattern.replace("{id}", name).replace("{band}", band)
            if path != without:
                save(folder / path, pixels(10 * k + j), FILTER=band, ZP=20.0 + j)


@pytest.mark.parametrize(
    "pattern", ["{id}_{band}.fits", "{id}/{band}.fits", "{band}/{id}.fits", "{id}/PS1/{id}.{band}.FITS"]
)
def test_a_file_for_each_band_is_joined_by_a_pattern(tmp_path: Path, pattern: str) -> None:
    bands_of(tmp_path / "in", pattern)
    words = ["--layout=files", f"--source={tmp_path / 'in'}", f"--pattern={pattern}"]
    split = packed(tmp_path / "out", *words, "--bands=i,g")["train"]
    assert split.schema.bands == ("i", "g")
    found = images(split)
    assert found.keys() == {"J1+2", "lens_7"}
    np.testing.assert_array_equal(found["lens_7"], [pixels(12), pixels(10)])
    np.testing.assert_array_equal(split.column("column/zero_point_i"), [22, 22])
    assert packed(tmp_path / "all", *words)["train"].schema.bands == ("g", "i", "r")


def test_a_band_that_is_missing_is_named_and_a_pattern_must_have_both_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bands_of(tmp_path / "in", "{id}_{band}.fits", without="lens_7_i.fits")
    words = ["--layout=files", f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    assert pack(*words, "--pattern={id}_{band}.fits") == 2
    assert "lens_7 has no file of the band i; it has g, r" in told(capsys)
    assert pack(*words, "--pattern={id}.fits") == 2
    assert "must contain {id} and one {band}" in told(capsys)
    (tmp_path / "in" / "strange.fits").write_text("x")
    assert pack(*words, "--pattern={id}_{band}.fits", "--bands=g,r") == 2
    assert "strange.fits does not fit" in told(capsys)


def test_class_folders_may_have_a_file_for_each_band(tmp_path: Path) -> None:
    bands_of(tmp_path / "in" / "lens", "{id}_{band}.fits")
    bands_of(tmp_path / "in" / "other", "{id}_{band}.fits", first=5)
    words = ["--layout=folders", f"--source={tmp_path / 'in'}", "--pattern={id}_{band}.fits", "--bands=g,r,i"]
    split = packed(tmp_path / "out", *words)["train"]
    assert sorted(split.ids) == ["lens/J1+2", "lens/lens_7", "other/J1+2", "other/lens_7"]
    assert split.schema.shape == (3, 6, 6)


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("ending", ["fits", "npy", "fits.gz"])
def test_cubes_of_many_objects_are_no_images_of_many_bands(tmp_path: Path, count: int, ending: str) -> None:
    cubes = {band: pixels(j, (count, 7, 7)) for j, band in enumerate(["g", "r", "i"])}
    for band, cube in cubes.items():
        save(tmp_path / "in" / f"cube_{band}.{ending}", cube)
    lines = ["sigma name", *(f"{200.5 + k} host{k}" for k in range(count))]
    (tmp_path / "in" / "map.txt").write_text("\n".join(lines) + "\n")
    words = ["--layout=cubes", f"--source={tmp_path / 'in'}", f"--pattern=cube_{{band}}.{ending}", "--bands=r,g,i"]
    more = [f"--catalog={tmp_path / 'in' / 'map.txt'}", "--join=order", "--targets=sigma:km/s", "--keep=name"]
    split = packed(tmp_path / "out", *words, *more)["train"]
    assert split.schema.bands == ("r", "g", "i")
    for name, image, sigma, host in zip(
        split.ids, images(split).values(), split.column("target/sigma"), split.column("column/name"), strict=True
    ):
        k = int(name.rpartition("-")[2])
        np.testing.assert_array_equal(image, [cubes[band][k] for band in "rgi"])
        assert (sigma, host) == (200.5 + k, f"host{k}")


def test_cubes_that_hold_other_images_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "g.fits", pixels(0, (4, 5, 5)))
    save(tmp_path / "in" / "r.fits", pixels(0, (3, 5, 5)))
    words = ["--layout=cubes", f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    assert pack(*words) == 2
    assert "g.fits has the shape (4, 5, 5), but" in told(capsys)
    assert pack(*words, "--bands=g,z") == 2
    assert "no cube of the band z" in told(capsys)


def catalogue(folder: Path, ending: str, **more: Any) -> Path:
    """A table of four files with masked and big-endian values, and units."""
    for k in range(4):
        save(folder / "stamps" / f"{k}.fits", pixels(k))
    table = Table(
        {
            "path": [f"stamps/{k}.fits" for k in range(4)],
            "objid": np.array([2**60 + k for k in range(4)], ">i8"),
            "kind": ["arc", "none", "arc", "none"],
            "theta": MaskedColumn(
                np.array([1.25, 0, 0.5, 0], ">f8"), mask=[False, True, False, True], unit=units.arcsec
            ),
            "ra": np.array([10.5, 11, 12, 13], ">f8"),
            **more,
        }
    )
    path = folder / f"objects.{ending}"
    if ending == "csv":
        table["theta"].unit = None
        table.write(path, format="ascii.csv")
    elif ending == "parquet":
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        columns = {name: table[name].tolist() for name in table.colnames}
        columns["theta"] = [1.25, None, 0.5, None]
        parquet.write_table(arrow.table(columns), path)
    else:
        table.write(path, format={"ecsv": "ascii.ecsv", "fits": "fits"}[ending])
    return path


@pytest.mark.parametrize("ending", ["csv", "ecsv", "fits", "parquet"])
def test_a_table_drives_with_labels_targets_units_and_columns(tmp_path: Path, ending: str) -> None:
    path = catalogue(tmp_path, ending)
    words = ["--layout=catalogue", f"--catalog={path}", "--label_key=kind", "--targets=theta", "--keep=ra,objid,kind"]
    split = packed(tmp_path / "out", *words)["train"]
    assert split.schema.targets == {"theta": "arcsec" if ending in ("ecsv", "fits") else ""}
    assert split.schema.columns == {"ra": "deg", "objid": "", "kind": ""}
    for name, label, theta, ra, objid, kind, image in zip(
        split.ids,
        split.labels,
        split.column("target/theta"),
        split.column("column/ra"),
        split.column("column/objid"),
        split.column("column/kind"),
        images(split).values(),
        strict=True,
    ):
        k = int(name) - 2**60
        np.testing.assert_array_equal(image[0], pixels(k))
        assert split.schema.classes[label] == kind == ("arc", "none")[k % 2]
        assert theta == pytest.approx([1.25, np.nan, 0.5, np.nan][k], nan_ok=True)
        assert (ra, objid) == ([10.5, 11, 12, 13][k], str(2**60 + k)), "a long number keeps all its digits, as text"


def test_the_source_says_where_files_are_and_rows_that_are_not_wanted_need_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = catalogue(tmp_path / "data", "csv")
    moved = tmp_path / "elsewhere" / "objects.csv"
    moved.parent.mkdir()
    moved.write_text(path.read_text())
    (tmp_path / "data" / "stamps" / "3.fits").unlink()
    words = ["--layout=catalogue", f"--catalog={moved}", f"--output={tmp_path / 'out'}"]
    assert pack(*words) == 2
    assert "0.fits, which does not exist; 4 of 4 files are missing; give --source" in told(capsys)
    words.append(f"--source={tmp_path / 'data'}")
    assert pack(*words) == 2
    assert "line 5 names" in told(capsys)
    assert pack(*words, "--where=ra<13") == 0
    assert pack(*words, "--unmatched=leave_out", f"--output={tmp_path / 'other'}") == 0
    assert "ignored: 1 lines whose files do not exist" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("../secret.fits", "leaves"),
        ("stamps/../../secret.fits", "leaves"),
        ("", "names no file"),
        ("objects.csv", "not an image"),
        ("stamps/\x1b.fits", "names no file|does not exist"),
    ],
)
def test_a_path_that_cannot_be_meant_is_named_with_its_line(
    tmp_path: Path, cell: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in" / "stamps" / "0.fits", pixels(0))
    save(tmp_path / "secret.fits", pixels(1))
    (tmp_path / "in" / "objects.csv").write_text(f"file,kind\nstamps/0.fits,a\n{cell},b\n")
    words = ["--layout=catalogue", f"--catalog={tmp_path / 'in' / 'objects.csv'}", f"--output={tmp_path / 'out'}"]
    assert pack(*words) == 2
    line = told(capsys)
    assert "line 3" in line
    assert re.search(message, line), line


def test_absolute_paths_and_the_extensions_of_one_file_are_objects(tmp_path: Path) -> None:
    parts = [fits.PrimaryHDU(), *(fits.ImageHDU(pixels(k), name=f"OBJ{k}") for k in range(3))]
    fits.HDUList(parts).writeto(tmp_path / "all.fits")
    lines = [f"{tmp_path / 'all.fits'},OBJ{k},{'xy'[k % 2]}" for k in range(3)]
    (tmp_path / "c.csv").write_text("\n".join(["file,part,label", *lines]) + "\n")
    words = ["--layout=catalogue", f"--catalog={tmp_path / 'c.csv'}", "--hdu_column=part"]
    split = packed(tmp_path / "out", *words)["train"]
    found = {name.rpartition("-")[2]: image for name, image in images(split).items()}
    assert found.keys() == {"OBJ0", "OBJ1", "OBJ2"}
    for k in range(3):
        np.testing.assert_array_equal(found[f"OBJ{k}"][0], pixels(k))
    assert Counter(split.labels.tolist()) == {0: 2, 1: 1}


def test_parts_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    for k in range(130):
        save(tmp_path / "in" / f"{'ab'[k % 2]}" / f"{k}.fits", pixels(k), **sky(k))
    words = ["--layout=folders", f"--source={tmp_path / 'in'}"]
    whole = packed(tmp_path / "whole", *words)["train"]
    for part in ("2/2", "1/2"):
        assert pack(*words, f"--output={tmp_path / 'parts'}", f"--part={part}") == 0
    assert Split(tmp_path / "parts" / "train").dataset_id == whole.dataset_id


def test_splits_of_images_without_classes_and_a_table_among_them(tmp_path: Path) -> None:
    for split in ("train", "Test"):
        for k in range(3):
            save(tmp_path / "in" / split / f"{split}{k}.fits", pixels(k + 10 * len(split)))
    splits = packed(tmp_path / "out", "--layout=files", f"--source={tmp_path / 'in'}")
    assert {name: len(split) for name, split in splits.items()} == {"test": 3, "train": 3}
    path = catalogue(tmp_path / "flat", "fits", id=["0", "1", "2", "3"])
    moved = path.rename(tmp_path / "flat" / "stamps" / "objects.fits")
    words = ["--layout=files", f"--source={moved.parent}", f"--catalog={moved}", "--label_key=kind", "--name_column=id"]
    split = packed(tmp_path / "named", *words)["train"]
    assert sorted(split.ids) == ["0", "1", "2", "3"]


def test_a_header_that_asks_for_more_memory_than_there_is_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = fits.PrimaryHDU(np.zeros((2, 2), "u1")).header
    text["NAXIS1"] = text["NAXIS2"] = 2_000_000
    (tmp_path / "a.fits").write_bytes(text.tostring().encode())
    with (tmp_path / "a.fits").open("r+b") as file:
        file.truncate(2880 + 2_000_000**2)
    assert pack("--layout=files", f"--source={tmp_path / 'a.fits'}", f"--output={tmp_path / 'out'}") == 2
    assert "needs 32000 GB of memory" in told(capsys)


def test_positions_of_headers_make_groups_of_a_data_set(tmp_path: Path) -> None:
    for k in range(12):
        cards = sky(0) | {"CRVAL1": 10.0 + k // 3 + 1e-4 * (k % 3)}
        save(tmp_path / "in" / f"{k}.fits", pixels(k), **cards)
    packed(tmp_path / "first", "--layout=files", f"--source={tmp_path / 'in'}")
    words = ["--layout=dataset", f"--source={tmp_path / 'first'}", "--sky=ra,dec,5", "--test_fraction=0.5"]
    splits = packed(tmp_path / "second", *words)
    objects = {name: {int(each) // 3 for each in split.ids} for name, split in splits.items()}
    assert not objects["train"] & objects["test"]
    assert len(splits["train"]) == len(splits["test"]) == 6


def test_resampling_of_what_is_one_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "a.fits", pixels(0), **sky(0))
    words = ["--layout=files", f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--resample=g"]
    assert pack(*words) == 2
    assert "--resample has no effect" in told(capsys)
