"""Pack foreign images into shards."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deeplense.data.conditions import listed, parse_condition, read_sky, read_targets, split_classes
from jobs.config import FREE, plain_values, require
from jobs.counting import GIVEN, conditions_of, counts_with
from jobs.parts import make_part, read_part

if TYPE_CHECKING:
    from deeplense.data.records import Layout, Record
    from deeplense.data.shards import Samples, Schema

OF_ARCHIVES, OF_STAMPS = counts_with(layout="npz"), counts_with(layout=("npz", "files"))
OF_CATALOGUES, OF_COLUMNS = counts_with(catalog=GIVEN), counts_with(catalog=GIVEN, layout="npz")
"""Columns are of a catalogue, or arrays of an archive."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to pack, and how."""

    layout: Literal["deeplense", "gsoc", "lens-finding", "files", "npz"]
    """deeplense: {axion,cdm,no_sub}/*.npy, also below train, val and test; gsoc: {train,val}/{no,sphere,vort}/*.npy;
    lens-finding: {lenses,nonlenses}/*.npy with indices.pkl; files: *.npy in one folder; npz: one file of images and
    columns"""
    source: Path
    """folder or file to read"""
    output: Path
    """folder of the data set; each split becomes a folder in it"""
    val_fraction: float = 0.0
    """part of each class for the split val, where the layout has no splits"""
    test_fraction: float = 0.0
    """part of each class for the split test, where the layout has no splits"""
    seed: int = 0
    """of the order in the shards and of the fractions"""
    crop: int | None = None
    """keep only the central crop x crop pixels"""
    fill_nan: float | None = None
    """value to put in place of pixels that are not finite; by default they are an error"""
    dtype: Literal["source", "float32", "float16"] = "source"
    """type of the stored pixels; source: integers stay integers, floats become float32. float16 rounds to 3 decimal
    digits"""
    scale: float = 1.0
    """of images stored as integers: the value of a pixel is stored x scale + zero, as BSCALE and BZERO in FITS"""
    zero: float = 0.0
    """see scale"""
    unit: str = ""
    """of the pixels' values, such as nJy"""
    pixel_scale: float | None = None
    """side of a pixel, arcsec"""
    compression: Literal["none", "lz4", "zstd"] = "none"
    """of the stored images, each by itself, without loss; needs the package hdf5plugin. Uncompressed reads fastest"""
    part: str | None = field(default=None, metadata=FREE)
    """K/N makes only every N-th shard, from the K-th on; whichever part ends last completes the data set"""
    catalog: Path | None = None
    """CSV file with a line for each image, which is found by the name of the image"""
    join: Literal["name", "order"] = field(default="name", metadata=OF_CATALOGUES)
    """npz: order takes line k of the catalogue for image k"""
    name_column: str = field(default="", metadata=OF_CATALOGUES)
    """column of the catalogue that names the images; by default name, id, file or the like"""
    unmatched: Literal["refuse", "leave_out"] = field(default="refuse", metadata=OF_CATALOGUES)
    """leave_out: leave out images without a line in the catalogue, and lines without an image"""
    where: str = field(default="", metadata=OF_COLUMNS)
    """conditions on the columns, COLUMN=VALUE or with !=, <, <=, >, >=, with commas between; COLUMN!= where there is a
    value"""
    classes: str = ""
    """classes in the order of their numbers, with commas between; by default all, sorted. For npz and files also
    conditions, such as lens:grade>=2,other:grade<1"""
    targets: str = field(default="", metadata=OF_COLUMNS)
    """columns of numbers to keep with the images, with their units: theta_E:arcsec,z_lens"""
    group: str = field(default="", metadata=OF_COLUMNS)
    """column; images with the same value in it are in one split and one fold"""
    sky: str = field(default="", metadata=OF_COLUMNS)
    """RA,DEC,ARCSEC: two columns in degrees; images within ARCSEC of each other, and their neighbours, are in one split
    and one fold"""
    label_key: str = field(default="label", metadata=OF_STAMPS)
    """npz, files: name of the column of the labels"""
    unlabelled: Literal[0, 1] = field(default=0, metadata=OF_STAMPS)
    """npz, files: 1 packs all images without labels"""
    image_key: str = field(default="images", metadata=OF_ARCHIVES)
    """name of the array of images"""
    name_key: str = field(default="", metadata=OF_ARCHIVES)
    """name of the array that names images; by default name, id, file or the like"""
    axes: Literal["auto", "NCHW", "NHWC"] = field(default="auto", metadata=OF_STAMPS)
    """npz, files: whether the bands of an image are its first or its last axis, where the shape does not tell"""
    bands: str = field(default="", metadata=OF_STAMPS)
    """npz, files: names of the bands, with commas between"""

    def __post_init__(self) -> None:
        fractions = (self.val_fraction, self.test_fraction)
        require(
            min(fractions) >= 0 and sum(fractions) < 1,
            f"val_fraction and test_fraction are {fractions}; their sum must be below 1.",
        )
        require(self.crop is None or self.crop > 0, f"crop={self.crop} must be above 0.")
        require(
            self.pixel_scale is None or 0 < self.pixel_scale < inf,
            f"pixel_scale={self.pixel_scale} must be above 0 and finite, in arcsec.",
        )
        for condition in listed(self.where):
            parse_condition(condition)
        split_classes(listed(self.classes))
        read_targets(self.targets)
        read_sky(self.sky)
        if self.part is not None:
            read_part(self.part)
        for name, condition in conditions_of(type(self), {}):
            counts = condition.holds(vars(self)) or name not in given(self)
            require(counts, f"{name} counts {condition.where({})} only; leave it out, or {condition.remedy({})}.")
        require(
            self.layout == "npz" or self.join == "name",
            f"join=order counts for --layout npz only; files have names. Leave it out for {self.layout}.",
        )
        labels = self.layout != "files" or self.catalog or self.label_key == "label"
        require(bool(labels), f"label_key={self.label_key} is a column of a catalogue; give --catalog CSV.")


IN_SCHEMA = ("output", "part", "source", "dtype", "scale", "zero", "unit", "pixel_scale", "compression")
"""Settings that are no provenance, or stand elsewhere in the schema."""
ALWAYS = ("layout", "seed", "val_fraction", "test_fraction", "crop", "fill_nan")


def given(settings: Settings) -> list[str]:
    """The names of the settings that are not as by default."""
    return [each.name for each in fields(settings) if getattr(settings, each.name) != each.default]


def run(settings: Settings) -> int:
    """Write all splits, or, where a file is bad, none; an error names the file. In the end a summary is said.

    A part leaves alone what it and others have made, for a mended file needs only its own shard again; but no split of
    the data set is finished while one shard of any is missing.
    """
    from jobs.packing import assign_splits, read_layout, refuse_output, summary
    from jobs.progress import say

    layout = read_layout(settings)
    records = assign_splits(settings, layout)
    refuse_output(settings.output, records)
    splits = splits_of(settings, layout, records)
    told = [f"summary of {settings.output}:", *(f"  {line}" for line in summary(layout, records))]
    if settings.part:
        say("\n".join(told))
        make_part(splits, settings.part)
        return 0
    make_all(settings, splits)
    say("\n".join([f"{settings.output} is complete", *told]))
    return 0


def splits_of(
    settings: Settings, layout: "Layout", splits: Mapping[str, Sequence["Record"]]
) -> dict[Path, tuple["Schema", "Maker"]]:
    """The folder of each split, what it will hold, and what gives its samples."""
    places = {record: k for k, record in enumerate(layout.records)}
    first, _ = load(settings, layout, next(iter(splits.values()))[0])
    schemas = {split: schema_of(settings, layout, split, records, first) for split, records in splits.items()}
    return {
        settings.output / split: (schema, Maker(settings, layout, schema, splits[split], places))
        for split, schema in schemas.items()
    }


def make_all(settings: Settings, splits: Mapping[Path, tuple["Schema", "Maker"]]) -> None:
    """Write the splits. Raises ValueError where a file is bad; those that this call wrote are then removed."""
    from deeplense.data.building import build
    from deeplense.data.shards import MANIFEST
    from deeplense.files import remove, sole_writer
    from jobs.progress import say, track

    finished = []
    try:
        with ExitStack() as held:
            for folder in splits:
                held.enter_context(sole_writer(folder))
            for folder, (schema, make) in splits.items():
                stood = (folder / MANIFEST).exists()
                say(f"packing {schema.num_samples} images of {settings.source} into {folder}")
                track(build(folder, schema, make), total=schema.num_samples, unit="images")
                finished += [] if stood else [folder]
    except ValueError:
        for folder in finished:
            remove(folder)
        if settings.output.is_dir() and not any(settings.output.iterdir()):
            settings.output.rmdir()
        raise


def schema_of(settings: Settings, layout: "Layout", split: str, records: Sequence["Record"], first: Any) -> "Schema":
    """What the split will hold; its shape and type are those of the first image of all."""
    from deeplense.data.shards import Schema

    dtype = stored_type(settings.dtype, first.dtype)
    told = f"scale and zero are for images stored as integers; these are stored as {dtype}"
    require((settings.scale, settings.zero) == (1, 0) or not dtype.startswith("float"), f"{told}; leave them out.")
    return Schema(
        split=split,
        num_samples=len(records),
        shape=tuple(first.shape),  # type: ignore[arg-type]
        dtype=dtype,
        scale=settings.scale,
        zero=settings.zero,
        compression=settings.compression,
        bands=layout.bands,
        unit=settings.unit or layout.unit,
        pixel_scale_arcsec=settings.pixel_scale,
        classes=layout.classes,
        targets={**layout.targets, **layout.numbers},
        provenance={
            "made_by": "deeplense pack",
            "source": str(settings.source.resolve()),
            **applied(settings),
            "names": fingerprint([identity(record) for record in records]),
        },
    )


def applied(settings: Settings) -> dict[str, Any]:
    """The settings that chose and changed the samples, as plain values: those that are always said, and those that are
    given."""
    names = dict.fromkeys([*ALWAYS, *(name for name in given(settings) if name not in IN_SCHEMA)])
    return plain_values({name: getattr(settings, name) for name in names})


def identity(record: "Record") -> str:
    """All that is known of a sample but its pixels, as text."""
    more = [*map(repr, record.numbers), str(record.group)] if record.numbers else []
    return " ".join([record.name, str(record.label), *more])


def stored_type(asked: str, found: Any) -> str:
    """The type that images of a type are stored in: integers as the smallest that holds all of it, or else as int32,
    where values that it cannot hold are an error."""
    import numpy as np

    if asked != "source":
        return asked
    if found.kind not in "biu":
        return "float32"
    return next((name for name in ("uint8", "int16", "uint16") if np.can_cast(found, name)), "int32")


def fingerprint(names: Sequence[str]) -> str:
    """A short hash of which samples there are, in which order."""
    import xxhash

    return xxhash.xxh3_64_hexdigest("\n".join(names).encode())


def load(settings: Settings, layout: "Layout", record: "Record") -> tuple[Any, Mapping[str, float]]:
    """One image as it will be stored, and its targets."""
    import numpy as np

    image, targets = layout.load(record)
    require(image.dtype.kind in "biuf", f"{record.path}: holds {image.dtype} where real numbers are expected.")
    targets = {**targets, **dict(zip(layout.numbers, record.numbers, strict=True))}
    endless = [name for name, value in targets.items() if np.isinf(value)]
    require(not endless, f"{record.path}: {record.name} has the target {', '.join(endless)} infinite.")
    if settings.crop:
        image = central(record, image, settings.crop)
    if settings.fill_nan is not None and image.dtype.kind == "f":
        image = np.where(np.isfinite(image), image, settings.fill_nan)
    return image, targets


def central(record: "Record", image: Any, size: int) -> Any:
    """The central pixels of an image (C, H, W)."""
    height, width = image.shape[1:]
    require(min(height, width) >= size, f"{record.path}: has {height} x {width} pixels, too few for --crop {size}.")
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]


@dataclass(frozen=True)
class Maker:
    """Gives the samples of a range of one split."""

    settings: Settings
    layout: "Layout"
    schema: "Schema"
    records: Sequence["Record"]
    places: Mapping["Record", int]

    def __call__(self, rows: range) -> "Samples":
        import numpy as np

        from deeplense.data.shards import Samples

        chosen = [self.records[k] for k in rows]
        loaded = [load(self.settings, self.layout, record) for record in chosen]
        for record, (image, _) in zip(chosen, loaded, strict=True):
            require(
                image.shape == self.schema.shape,
                f"{record.path}: has the shape {image.shape} where others have {self.schema.shape}; "
                "leave it out, or give --crop to bring all to one size.",
            )
        return Samples(
            images=np.stack([image for image, _ in loaded]),
            labels=np.array([record.label for record in chosen]),
            targets={name: np.array([targets[name] for _, targets in loaded]) for name in self.schema.targets},
            ids=[record.name for record in chosen],
            source_index=np.array([self.places[record] for record in chosen]),
        )
