"""Pack foreign images into shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deeplense.data.conditions import parse_condition, split_classes
from jobs.config import FREE, require
from jobs.parts import make_part, read_part

if TYPE_CHECKING:
    from deeplense.data.layouts import Layout, Record
    from deeplense.data.shards import Samples, Schema


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to pack, and how."""

    layout: Literal["deeplense", "gsoc", "lens-finding", "npz"]
    """deeplense: {axion,cdm,no_sub}/*.npy, also below train, val and test; gsoc: {train,val}/{no,sphere,vort}/*.npy;
    lens-finding: {lenses,nonlenses}/*.npy with indices.pkl; npz: one file of images and labels"""
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
    compression: Literal["none", "lz4", "zstd"] = "none"
    """of the stored images, each by itself, without loss; needs the package hdf5plugin. Uncompressed reads fastest"""
    part: str | None = field(default=None, metadata=FREE)
    """K/N makes only every N-th shard, from the K-th on; whichever part ends last completes the data set"""
    image_key: str = "images"
    """npz: name of the array of images"""
    label_key: str = "label"
    """npz: name of the labels: an array of the file, or a column of the catalogue"""
    catalog: Path | None = None
    """npz: CSV file with a line for each image"""
    classes: str = ""
    """npz: labels in the order of their numbers, with commas between; by default all, sorted. Or by conditions on the
    catalogue, such as lens:grade>=2,other:grade<1"""
    where: str = ""
    """npz: conditions on the catalogue, COLUMN=VALUE or with !=, <, <=, >, >=, with commas between"""
    bands: str = ""
    """npz: names of the bands, with commas between"""

    def __post_init__(self) -> None:
        fractions = (self.val_fraction, self.test_fraction)
        require(
            min(fractions) >= 0 and sum(fractions) < 1,
            f"val_fraction and test_fraction are {fractions}; their sum must be below 1.",
        )
        require(self.crop is None or self.crop > 0, f"crop={self.crop} must be above 0.")
        for condition in listed(self.where):
            parse_condition(condition)
        split_classes(listed(self.classes))
        if self.part is not None:
            read_part(self.part)


def listed(text: str) -> list[str]:
    """The items of a list with commas."""
    return [item.strip() for item in text.split(",") if item.strip()]


def run(settings: Settings) -> int:
    """Write all splits, or, where a file is bad, none; an error names the file.

    A part leaves alone what it and others have made, for a mended file needs only its own shard again; but no split of
    the data set is finished while one shard of any is missing.
    """
    from jobs.progress import say

    splits = splits_of(settings)
    if settings.part:
        make_part(splits, settings.part)
        return 0
    make_all(settings, splits)
    say(f"{settings.output} is complete")
    return 0


def splits_of(settings: Settings) -> dict[Path, tuple["Schema", "Maker"]]:
    """The folder of each split, what it will hold, and what gives its samples."""
    layout = read_layout(settings)
    splits = assign_splits(settings, layout)
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
    from deeplense.files import remove
    from jobs.progress import say, track

    finished = []
    for folder, (schema, make) in splits.items():
        stood = (folder / MANIFEST).exists()
        say(f"packing {schema.num_samples} images of {settings.source} into {folder}")
        try:
            track(build(folder, schema, make), total=schema.num_samples, unit="images")
        except ValueError:
            for other in finished:
                remove(other)
            if settings.output.is_dir() and not any(settings.output.iterdir()):
                settings.output.rmdir()
            raise
        finished += [] if stood else [folder]


def read_layout(settings: Settings) -> "Layout":
    """List what is to be packed."""
    from deeplense.data import layouts

    require(settings.source.exists(), f"{settings.source} is not there; give the folder or file to pack as --source.")
    if settings.layout == "npz":
        return layouts.npz(
            settings.source,
            image_key=settings.image_key,
            label_key=settings.label_key,
            catalog=settings.catalog,
            classes=listed(settings.classes),
            where=listed(settings.where),
            bands=listed(settings.bands),
        )
    readers = {"deeplense": layouts.deeplense, "gsoc": layouts.gsoc, "lens-finding": layouts.lens_finding}
    return readers[settings.layout](settings.source)


def assign_splits(settings: Settings, layout: "Layout") -> dict[str, list["Record"]]:
    """The records of each split, mixed: by the layout's own splits, else by the fractions, else all in train."""
    import numpy as np

    from deeplense.data.order import permutation, split_off

    records = layout.records
    names = np.array([record.split or "train" for record in records])
    if settings.val_fraction or settings.test_fraction:
        require(
            not any(record.split for record in records),
            f"{settings.source} has splits of its own; leave out the fractions.",
        )
        labels = np.array([record.label for record in records])
        rest, test = split_off(labels, settings.test_fraction, seed=settings.seed)
        names[test] = "test"
        of_rest = settings.val_fraction / (1 - settings.test_fraction)
        names[rest[split_off(labels[rest], of_rest, seed=settings.seed + 1)[1]]] = "val"
    mixed = permutation(len(records), settings.seed, 0)
    return {str(name): [records[i] for i in mixed if names[i] == name] for name in sorted(set(names))}


def schema_of(settings: Settings, layout: "Layout", split: str, records: Sequence["Record"], first: Any) -> "Schema":
    """What the split will hold; its shape and type are those of the first image of all."""
    from deeplense.data.shards import Schema

    dtype = stored_type(settings.dtype, first.dtype)
    told = f"scale and zero are for images stored as integers; these are stored as {dtype}"
    require((settings.scale, settings.zero) == (1, 0) or not dtype.startswith("float"), f"{told}; leave them out.")
    made_of = ("layout", "seed", "val_fraction", "test_fraction", "crop", "fill_nan")
    made_of += ("where", "classes", "image_key", "label_key")
    return Schema(
        split=split,
        num_samples=len(records),
        shape=tuple(first.shape),  # type: ignore[arg-type]
        dtype=dtype,
        scale=settings.scale,
        zero=settings.zero,
        compression=settings.compression,
        bands=layout.bands,
        unit=layout.unit,
        pixel_scale_arcsec=None,
        classes=layout.classes,
        targets=layout.targets,
        provenance={
            "made_by": "deeplense pack",
            "source": str(settings.source.resolve()),
            **{name: getattr(settings, name) for name in made_of},
            "names": fingerprint([f"{record.name} {record.label}" for record in records]),
        },
    )


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
