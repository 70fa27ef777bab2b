"""Convert images of other programs and surveys into shards."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplense.data.building import build
from deeplense.data.records import Layout, Record
from deeplense.data.shards import MANIFEST, Samples, Schema
from deeplense.files import remove, sole_writer
from jobs.console import say, track
from jobs.data.shares import make_part
from jobs.data.source import load, sizes_in
from jobs.data.source_settings import given
from jobs.pack.settings import Settings
from jobs.pack.sources import assign_splits, read_layout, refuse_output, summary
from jobs.settings import plain_values, require

IN_SCHEMA = ("output", "part", "source", "dtype", "scale", "zero", "unit", "pixel_scale", "compression")
"""Settings that are not stored as provenance, because they do not matter or are stored elsewhere in the schema."""
ALWAYS = ("layout", "seed", "val_fraction", "test_fraction", "crop", "fill_nan")


def run(settings: Settings) -> int:
    """Write all splits, or none if a file is bad (the error names the file), and print a summary.

    With `part`, the shards that already exist are kept, so that after a bad file is repaired only its own shard is
    written again; no split of the data set is complete while a shard of any split is missing.
    """
    layout = read_layout(settings)
    records = assign_splits(settings, layout)
    refuse_output(settings.output, records)
    splits = splits_of(settings, layout, records)
    told = [f"summary of {settings.output}:", *(f"  {line}" for line in summary(layout, records, label=settings.label))]
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
    """Return the folder, the schema and the maker of samples of each split."""
    places = {record: k for k, record in enumerate(layout.records)}
    first, _, _ = load(settings, layout, next(iter(splits.values()))[0])
    schemas = {split: schema_of(settings, layout, split, records, first) for split, records in splits.items()}
    return {
        settings.output / split: (schema, Maker(settings, layout, schema, splits[split], places))
        for split, schema in schemas.items()
    }


def make_all(settings: Settings, splits: Mapping[Path, tuple["Schema", "Maker"]]) -> None:
    """Write the splits. Raises ValueError if a file is bad, after removing the splits that this call wrote."""
    finished = []
    try:
        with ExitStack() as held:
            for folder in splits:
                held.enter_context(sole_writer(folder))
            for folder, (schema, make) in splits.items():
                stood = (folder / MANIFEST).exists()
                say(f"packing {schema.num_samples} images of {settings.origin} into {folder}")
                track(build(folder, schema, make), total=schema.num_samples, unit="images")
                finished += [] if stood else [folder]
    except ValueError:
        for folder in finished:
            remove(folder)
        if settings.output.is_dir() and not any(settings.output.iterdir()):
            settings.output.rmdir()
        raise


def schema_of(settings: Settings, layout: "Layout", split: str, records: Sequence["Record"], first: Any) -> "Schema":
    """Return the schema of a split; shape and data type are those of the first image of all."""
    dtype = stored_type(settings.dtype, first.dtype)
    told = f"scale and zero apply only to images stored as integers, but these are stored as {dtype}"
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
        pixel_scale_arcsec=settings.pixel_scale or layout.pixel_scale_arcsec,
        classes=layout.classes,
        targets={**layout.targets, **layout.numbers},
        columns={**layout.headers, **layout.kept},
        provenance={
            "made_by": "deeplense pack",
            "source": str(settings.origin.resolve()),
            **applied(settings),
            "names": fingerprint([identity(record) for record in records]),
        },
    )


def applied(settings: Settings) -> dict[str, Any]:
    """Return the settings that selected and changed the samples, as plain values: those that are always recorded, and
    those that differ from their defaults."""
    names = dict.fromkeys([*ALWAYS, *(name for name in given(settings) if name not in IN_SCHEMA)])
    return plain_values({name: getattr(settings, name) for name in names})


def identity(record: "Record") -> str:
    """Return everything known about a sample except its pixels, as text."""
    more = [*map(repr, record.numbers), str(record.group)] if record.numbers else []
    more += map(repr, record.kept)
    return " ".join([record.name, str(record.label), *more])


def stored_type(asked: str, found: Any) -> str:
    """Return the data type in which images are stored: integers as the smallest type that can represent all values of
    their type, or else as int32, where values out of range are an error."""
    import numpy as np

    if asked != "source":
        return asked
    if found.kind not in "biu":
        return "float32"
    return next((name for name in ("uint8", "int16", "uint16") if np.can_cast(found, name)), "int32")


def fingerprint(names: Sequence[str]) -> str:
    """Return a short hash of the names of the samples and their order."""
    import xxhash

    return xxhash.xxh3_64_hexdigest("\n".join(names).encode())


@dataclass(frozen=True)
class Maker:
    """Function that returns the samples of a range of one split."""

    settings: Settings
    layout: "Layout"
    schema: "Schema"
    records: Sequence["Record"]
    places: Mapping["Record", int]

    def __call__(self, rows: range) -> "Samples":
        import numpy as np

        chosen = [self.records[k] for k in rows]
        images, targets, columns = None, [], []
        for k, record in enumerate(chosen):
            image, target, column = load(self.settings, self.layout, record)
            self.check_shape(record, image.shape)
            images = put(images, len(chosen), k, image)
            targets.append(target)
            columns.append(column)
        return Samples(
            images=np.zeros((0, *self.schema.shape), self.schema.dtype) if images is None else images,
            labels=np.array([record.label for record in chosen]),
            targets={name: np.array([target[name] for target in targets]) for name in self.schema.targets},
            ids=[record.name for record in chosen],
            source_index=np.array([self.places[record] for record in chosen]),
            columns={name: [column[name] for column in columns] for name in self.schema.columns},
        )

    def check_shape(self, record: "Record", shape: tuple[int, ...]) -> None:
        """Raise ValueError if an image does not have the shape of the others."""
        if shape != self.schema.shape:
            told = f"has the shape {shape}, but other images have {self.schema.shape}"
            raise ValueError(
                f"{record.path} ({record.name}): {told}; {sizes_in(self.layout)}. Leave it out, or give --crop to "
                "crop all to one size."
            )


def put(images: Any, number: int, k: int, image: Any) -> Any:
    """Store image k of a number of images; returns all, which are made with the first one. Their type becomes one that
    holds all images so far, as with numpy.stack."""
    import numpy as np

    if images is None:
        images = np.empty((number, *image.shape), image.dtype.newbyteorder("="))
    elif (wider := np.result_type(images, image)) != images.dtype:
        images = images.astype(wider)
    images[k] = image
    return images
