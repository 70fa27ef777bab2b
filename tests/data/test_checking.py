"""A shard that is something else than its schema says is refused by name, by verify and where it is opened alike."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from deeplense.data.dataset import Split
from deeplense.data.shards import MANIFEST, Manifest, Schema, canonical
from deeplense.data.staging import copy_shard
from deeplense.data.verifying import verify
from deeplense.files import checksum
from tests.data.made_up import SCHEMA, forge, made, samples

SMALL = replace(SCHEMA, num_samples=70, shape=(1, 8, 8), bands=("r",))
SHARD = "shard-00001.h5"


def make_split(folder: Path, schema: Schema = SMALL) -> Path:
    """A split of two shards, of 64 and 6 images."""

    def make(rows: range) -> Any:
        images = np.random.default_rng(rows.start).normal(size=(len(rows), *schema.shape)).astype("f4")
        return replace(samples(rows), images=images)

    made(folder, schema, make)
    return folder


def accept(folder: Path) -> None:
    """Let the manifest say of a shard what it is now: its size, its checksum, and where its images begin."""
    path = folder / SHARD
    told: dict[str, Any] = {"bytes": path.stat().st_size, "xxh3_128": checksum(path)}
    # Where there are no images in the file, the old offset stays.
    with contextlib.suppress(OSError, KeyError, AttributeError), h5py.File(path) as file:
        told["image_offset"] = file["image"].id.get_offset()  # type: ignore[union-attr]
    forge(folder, lambda content: content["shards"][1].update(told))


def put(name: str, **options: Any) -> Callable[[h5py.File], None]:
    """Write an array anew with other options; `data` may be a function of the old one."""

    def change(file: h5py.File) -> None:
        old: Any = file[name]
        attributes, data = dict(old.attrs), options.get("data", lambda array: array)(np.asarray(old))
        del file[name]
        new = file.create_dataset(name, **(options | {"data": data}))
        new.attrs.update(attributes)

    return change


def link(name: str, made_link: Any) -> Callable[[h5py.File], None]:
    """A link in the place of an array."""

    def change(file: h5py.File) -> None:
        file["other"] = file[name]
        del file[name]
        file[name] = made_link

    return change


def virtual(file: h5py.File) -> None:
    """Images that are another array's."""
    file["other"] = file["image"]
    del file["image"]
    layout = h5py.VirtualLayout(shape=(6, 1, 8, 8), dtype="f4")
    layout[:] = h5py.VirtualSource(file["other"])
    file.create_virtual_dataset("image", layout)


def external(file: h5py.File) -> None:
    """Images that are the bytes of another file."""
    del file["image"]
    file.create_dataset("image", (6, 1, 8, 8), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def compact(file: h5py.File) -> None:
    """Images among the metadata."""
    del file["image"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b"image", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((6, 1, 8, 8)), dcpl=properties)


def unwritten(file: h5py.File) -> None:
    """Images that were never written."""
    del file["image"]
    file.create_dataset("image", (6, 1, 8, 8), "f4")


def odd_float(file: h5py.File) -> None:
    """Images whose exponents have another bias."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(100)
    old = np.asarray(file["image"])
    del file["image"]
    new = h5py.h5d.create(file.id, b"image", kind, h5py.h5s.create_simple(old.shape))
    new.write(h5py.h5s.ALL, h5py.h5s.ALL, old)


def attribute(name: str, **values: Any) -> Callable[[h5py.File], None]:
    """Other attributes of an array, or of the file; None takes one away."""

    def change(file: h5py.File) -> None:
        place: Any = file[name] if name else file
        for key, value in values.items():
            del place.attrs[key]
            if value is not None:
                place.attrs[key] = value

    return change


CHANGES: dict[str, Callable[[h5py.File], None]] = {
    "big end first": put("image", dtype=">f4"),
    "wider": put("image", dtype="f8"),
    "narrower": put("image", dtype="f2"),
    "whole numbers": put("image", dtype="i4"),
    "of another exponent": odd_float,
    "fewer pixels": put("image", data=lambda array: array[:, :, :2, :2]),
    "fewer images": put("image", data=lambda array: array[:3]),
    "one axis less": put("image", data=lambda array: array[:, 0]),
    "no axis": put("image", data=lambda array: 3.0),
    "in pieces": put("image", chunks=(1, 1, 8, 8)),
    "compressed": put("image", chunks=(1, 1, 8, 8), compression="gzip"),
    "that may grow": put("image", maxshape=(None, 1, 8, 8)),
    "virtual": virtual,
    "external": external,
    "compact": compact,
    "unwritten": unwritten,
    "a group": lambda file: (file.__delitem__("image"), file.create_group("image"))[0],
    "none": lambda file: file.__delitem__("image"),
    "a soft link": link("image", h5py.SoftLink("/other")),
    "a link to another file": link("image", h5py.ExternalLink("shard-00000.h5", "/image")),
    "labels of floats": put("label", dtype="f8"),
    "labels of another order": put("label", dtype=">i8"),
    "labels in two columns": put("label", data=lambda array: array[:, None]),
    "too few labels": put("label", data=lambda array: array[:-1]),
    "labels linked": link("label", h5py.SoftLink("/other")),
    "labels that are compressed": put("label", compression="gzip"),
    "a label of no class": put("label", data=lambda array: array + 1),
    "a negative label": put("label", data=lambda array: array - 2),
    "names of any length": put("id", data=lambda array: array.astype(object), dtype=h5py.string_dtype()),
    "names that are numbers": put("id", data=lambda array: np.arange(len(array))),
    "names of 5 kB": put("id", dtype="S5000"),
    "sources of 32 bits": put("source_index", dtype="i4"),
    "no sources": lambda file: file.__delitem__("source_index"),
    "an infinite target": put("target/mass", data=lambda array: array * np.inf),
    "a target of whole numbers": put("target/mass", dtype="i8"),
    "no target": lambda file: file.__delitem__("target"),
    "targets linked": link("target", h5py.SoftLink("/other")),
    "another scale": attribute("image", scale=2.0),
    "another zero": attribute("image", zero=1.0),
    "no scale": attribute("image", scale=None),
    "a scale of text": attribute("image", scale="1"),
    "scales": attribute("image", scale=np.ones(3)),
    "no sums": attribute("image", sum=None),
    "sums of text": attribute("image", sum="much"),
    "other sums": attribute("image", sum=np.array([1e3])),
    "more sums": attribute("image", sum=np.ones(2)),
    "no squares": attribute("image", sum_of_squares=np.array([-1.0])),
    "other pixels": attribute("image", pixels_per_band=6),
    "another schema": attribute("", schema=canonical(asdict(replace(SMALL, unit="mag")))),
    "no schema": attribute("", schema=None),
    "a schema of numbers": attribute("", schema=3),
    "no fingerprint": attribute("", fingerprint=None),
    "a fingerprint of numbers": attribute("", fingerprint=np.arange(3)),
    "no format": attribute("", format=None),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with one sound split."""
    return make_split(tmp_path_factory.mktemp("sound") / "train").parent


def refusals(dataset: Path) -> list[str]:
    """Why the split is not opened, and what verify says of it."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        Split(dataset / "train")
    return [str(caught.value), *verify(dataset)]


@pytest.mark.parametrize("kind", CHANGES)
def test_what_is_not_as_the_schema_says_is_refused_by_name(sound: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound, tmp_path / "data")
    with h5py.File(tmp_path / "data" / "train" / SHARD, "r+") as file:
        CHANGES[kind](file)
    accept(tmp_path / "data" / "train")
    if kind == "other sums":  # which only a reader of the images can tell
        forge(tmp_path / "data" / "train", with_right_statistics(tmp_path / "data" / "train"))
        Split(tmp_path / "data" / "train")
        told = verify(tmp_path / "data")
    else:
        told = refusals(tmp_path / "data")
        assert len(told) > 1
    assert all(SHARD in line and line.isprintable() for line in told)


def with_right_statistics(folder: Path) -> Callable[[dict[str, Any]], None]:
    """An edit by which the statistics are those of what the shards say."""
    total, squares, count = np.zeros(1), np.zeros(1), 0
    for path in sorted(folder.glob("shard-*.h5")):
        with h5py.File(path) as file:
            told: Any = file["image"].attrs
            total, squares = total + told["sum"], squares + told["sum_of_squares"]
            count += told["pixels_per_band"]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return lambda content: content.update(statistics={"mean": mean.tolist(), "std": std.tolist()})


def test_what_is_changed_in_no_other_way_is_accepted(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "data")
    with h5py.File(tmp_path / "data" / "train" / SHARD, "r+") as file:
        put("image", dtype="<f4")(file)
        attribute("image", scale=1.0)(file)
        attribute("", format=file.attrs["format"])(file)
    accept(tmp_path / "data" / "train")
    assert len(Split(tmp_path / "data" / "train")) == 70
    assert verify(tmp_path / "data") == []


@pytest.mark.parametrize("size", [512, 2048])
def test_a_shard_after_other_bytes_is_refused(sound: Path, tmp_path: Path, size: int) -> None:
    shutil.copytree(sound, tmp_path / "data")
    path = tmp_path / "data" / "train" / SHARD
    path.write_bytes(b"#!/bin/sh\n".ljust(size, b"\n") + path.read_bytes())
    with h5py.File(path) as file:
        assert file.userblock_size == size
    accept(tmp_path / "data" / "train")
    assert all("does not start with the HDF5 signature" in line for line in refusals(tmp_path / "data"))


@pytest.mark.parametrize("change", ["schema", "shards"])
def test_images_beyond_the_end_of_the_file_are_refused(sound: Path, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "data" / "train"
    shutil.copytree(sound, tmp_path / "data")
    larger = replace(SMALL, shape=(1, 4096, 4096))
    forge(folder, lambda told: told["schema"].update(shape=[1, 4096, 4096]))
    if change == "shards":
        for path in folder.glob("*.h5"):
            with h5py.File(path, "r+") as file:
                attribute("", schema=canonical(asdict(larger)), fingerprint=larger.fingerprint)(file)
        accept(folder)
    assert refusals(tmp_path / "data")


@pytest.mark.parametrize("kind", ["chunks", "gzip", "shuffle", "none", "missing"])
def test_pieces_that_are_not_compressed_as_the_schema_says_are_refused(tmp_path: Path, kind: str) -> None:
    import hdf5plugin

    folder = make_split(tmp_path / "data" / "train", replace(SMALL, compression="lz4"))
    codec, chunks = dict(hdf5plugin.Bitshuffle(cname="lz4")), (1, 1, 8, 8)
    options: dict[str, Any] = {
        "chunks": {"chunks": (2, 1, 8, 8), **codec},
        "gzip": {"chunks": chunks, "compression": "gzip"},
        "shuffle": {"chunks": chunks, "shuffle": True, **codec},
        "none": {"chunks": chunks},
        "missing": {},
    }[kind]
    with h5py.File(folder / SHARD, "r+") as file:
        if kind == "missing":
            del file["image"]
            file.create_dataset("image", (6, 1, 8, 8), "f4", chunks=chunks, **codec)[:3] = 1.0
        else:
            put("image", **options)(file)
    accept(folder)
    assert all(SHARD in line for line in refusals(tmp_path / "data"))


NAMES = ["../../evil.h5", "/etc/passwd", "shard-1.h5", "shard-00000.h5", "a\nb", "shard-00001.h5/", "", None, 3, ["x"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_names_each_shard_by_its_number_and_nothing_else(sound: Path, tmp_path: Path, name: Any) -> None:
    shutil.copytree(sound, tmp_path / "data")
    forge(tmp_path / "data" / "train", lambda told: told["shards"][1].update(file=name))
    with pytest.raises(ValueError, match=rf"{MANIFEST} lists the shard .* instead of {SHARD}"):
        Manifest.read(tmp_path / "data" / "train")
    assert all(MANIFEST in line and line.isprintable() for line in refusals(tmp_path / "data"))


def test_a_shard_that_is_a_link_out_of_its_folder_is_refused(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "data")
    (tmp_path / "data" / "train" / SHARD).rename(tmp_path / "elsewhere.h5")
    (tmp_path / "data" / "train" / SHARD).symlink_to(tmp_path / "elsewhere.h5")
    assert all("is a symbolic link that leads out" in line for line in refusals(tmp_path / "data"))


def test_a_copy_is_written_into_its_own_folder_only(sound: Path, tmp_path: Path) -> None:
    line = Manifest.read(sound / "train").shards[1] | {"file": "../victim"}
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "copy").mkdir()
    shutil.copy(sound / "train" / SHARD, sound / "victim")
    with pytest.raises(ValueError, match="not a plain file name"):
        copy_shard(line, folder=sound / "train", copy=tmp_path / "copy", after_block=lambda count: None)
    assert (tmp_path / "victim").read_text() == "mine"


EDITS: dict[str, dict[str, Any]] = {
    "no schema": {"schema": None},
    "a list as schema": {"schema": []},
    "no statistics": {"statistics": None},
    "statistics of text": {"statistics": {"mean": ["a"], "std": [1.0]}},
    "too few statistics": {"statistics": {"mean": [], "std": []}},
    "other statistics": {"statistics": {"mean": [5.0], "std": [1.0]}},
    "no counts": {"class_counts": None},
    "counts of other classes": {"class_counts": {"a": 70}},
    "counts of text": {"class_counts": {"yes": "35", "no": 35}},
    "counts below 0": {"class_counts": {"yes": -1, "no": 71}},
    "other counts": {"class_counts": {"yes": 70, "no": 0}},
    "no shards": {"shards": []},
    "shards of text": {"shards": ["a", "b"]},
    "shards that are none": {"shards": None},
}
FIELDS: dict[str, Any] = {
    "split": "../train",
    "num_samples": 2**62,
    "shape": [1, 8],
    "dtype": "O",
    "bands": [1],
    "unit": None,
    "pixel_scale_arcsec": "x",
    "classes": ["yes", "yes"],
    "targets": {"../label": "kg"},
    "provenance": [],
    "scale": 0,
    "zero": 1e999,
    "compression": ["lz4"],
    "unheard_of": 1,
}


@pytest.mark.parametrize("kind", [*EDITS, *FIELDS])
def test_a_manifest_that_says_what_cannot_be_is_refused_by_name(sound: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound, tmp_path / "data")

    def edit(told: dict[str, Any]) -> None:
        told.update(EDITS[kind]) if kind in EDITS else told["schema"].update({kind: FIELDS[kind]})

    forge(tmp_path / "data" / "train", edit)
    told = refusals(tmp_path / "data")
    assert len(told) > 1
    assert all(str(tmp_path / "data" / "train") in line and line.isprintable() for line in told)
    other = kind == "unheard_of" or "schema" in kind
    assert all(("has no schema, or a schema of another version" in line) == other for line in told)


@pytest.mark.parametrize("key", ["schema", "statistics", "class_counts", "shards"])
@pytest.mark.parametrize("way", ["without", "inside"])
def test_a_manifest_without_a_key_is_refused_by_name(sound: Path, tmp_path: Path, key: str, way: str) -> None:
    shutil.copytree(sound, tmp_path / "data")

    def edit(told: dict[str, Any]) -> None:
        within = told[key][1] if key == "shards" else told[key]
        del (told if way == "without" else within)[key if way == "without" else next(iter(within))]

    forge(tmp_path / "data" / "train", edit)
    assert all(MANIFEST in line for line in refusals(tmp_path / "data"))
