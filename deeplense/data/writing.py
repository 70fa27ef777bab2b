"""Writing a shard: samples that do not fit the schema, or would lose their content, are refused by name."""

from pathlib import Path

import h5py
import numpy as np

from deeplense.data.shards import FORMAT, Samples, Schema, image_filters, moments_of
from deeplense.files import replacing

ALIGNMENT = 2**20
MOST_LOST, MOST_BLURRED = 1e-3, 0.05
"""Of what an image shows above its background, and of the spread of half of its pixels."""
FLAT = 2.0**-43
"""Rounding errors of calculations in float64, relative to the largest pixel: an image with no larger deviations is
constant."""
LONGEST_ID = 4096


def write_shard(path: Path, schema: Schema, samples: Samples) -> None:
    """Write one shard, completely or not at all.

    Args:
        path: file of the shard.
        schema: content of the split.
        samples: its samples.

    Raises:
        ValueError: a sample does not fit the schema; the message names it.
    """
    check_ids(samples)
    check_whole(samples, "source_index", samples.source_index)
    stored = stored_images(schema, samples)
    check_labels(schema, samples)
    check_targets(schema, samples)
    columns = stored_columns(schema, samples)
    filters = image_filters(schema)
    # Chunks are not aligned: each would fill the interval.
    interval = 1 if filters else ALIGNMENT
    with (
        replacing(path) as temporary,
        # Files of this version open only when their writer closed them: a torn shard names itself. They are not locked,
        # which some file systems cannot do: the temporary name is this writer's alone.
        h5py.File(
            temporary,
            "w",
            libver=("v110", "v110"),
            locking=False,
            alignment_threshold=65536,
            alignment_interval=interval,
        ) as file,
    ):
        file.attrs.update(format=FORMAT, fingerprint=schema.fingerprint, schema=schema.text)
        image = file.create_dataset("image", data=stored, **filters)
        image.attrs.update(axes="N,C,H,W", unit=schema.unit, bands=list(schema.bands))
        image.attrs.update(scale=schema.scale, zero=schema.zero)
        count, total, squares = moments_of(stored, scale=schema.scale, zero=schema.zero)
        image.attrs.update(pixels_per_band=count, sum=total, sum_of_squares=squares)
        if schema.pixel_scale_arcsec:
            image.attrs["pixel_scale_arcsec"] = schema.pixel_scale_arcsec
        file["label"] = samples.labels.astype(np.int64)
        file["source_index"] = samples.source_index.astype(np.int64)
        file["id"] = np.array([name.encode() for name in samples.ids])
        for name, unit in schema.targets.items():
            target = file.create_dataset(f"target/{name}", data=samples.targets[name].astype(np.float64))
            target.attrs["unit"] = unit
        for name, values in columns.items():
            file.create_dataset(f"column/{name}", data=values).attrs["unit"] = schema.columns[name]


LARGEST = 1e18
"""Largest absolute value of a pixel; the squares of larger ones do not fit into float32."""


def stored_images(schema: Schema, samples: Samples) -> np.ndarray:
    """Return images in the type of the split.

    Args:
        schema: content of the split.
        samples: the samples.

    Raises:
        ValueError: the type cannot hold an image; the message names the first.
    """
    given = samples.images
    if given.shape != (len(samples.ids), *schema.shape):
        raise ValueError(f"images have the shape {given.shape[1:]}; the schema has {schema.shape}.")
    if given.dtype.kind not in "biuf":
        raise ValueError(f"images have the type {given.dtype}; convert them to numbers.")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = given.astype(schema.dtype, copy=False)
    told = "has pixels that are not finite (NaN, infinite, or 3.4e38 as a mark of missing ones)"
    remedy = "Correct or exclude the image, or give --fill_nan VALUE to replace them by a value."
    refuse(samples, ~np.isfinite(given), f"{told}. {remedy}")
    # The extremes first: a comparison of all pixels needs as much memory as the images.
    if given.size and max(float(given.max()), -float(given.min())) > LARGEST:
        told = f"has pixels above {LARGEST:g}, too large to compute with; correct them, or use another unit."
        refuse(samples, np.abs(given) > LARGEST, told)
    if stored.dtype.kind == "f":
        beyond, limits = ~np.isfinite(stored), f"up to {np.finfo(stored.dtype).max:.6g}"
    else:
        beyond, limits = stored != given, f"integers from {np.iinfo(stored.dtype).min} to {np.iinfo(stored.dtype).max}"
    refuse(samples, beyond, f"has values that {schema.dtype} cannot hold ({limits}); give another --dtype.")
    refuse_lost(schema, samples, stored)
    return stored


def refuse_lost(schema: Schema, samples: Samples, stored: np.ndarray) -> None:
    """Raise an error if reading an image in float32 gives something else than was written, by more than its own
    contrast allows.

    Args:
        schema: content of the split.
        samples: the samples.
        stored: their stored images, (n, C, H, W).

    Raises:
        ValueError: an image loses its content; the message names the first.
    """
    whole = np.dtype(schema.dtype).kind in "iu"
    scale, zero = (schema.scale, schema.zero) if whole else (1.0, 0.0)
    if (scale, zero) == (1, 0) and np.can_cast(samples.images.dtype, np.float32) and stored.dtype != np.float16:
        return
    remedy = {"float16": "give --dtype float32, or "}.get(schema.dtype, "")
    for name, given, kept in zip(samples.ids, samples.images, stored, strict=True):
        exact = given.astype(np.float64) * scale + zero
        read = kept.astype(np.float32) * np.float32(scale) + np.float32(zero)
        if is_lost(read, exact, noise=FLAT if given.dtype.kind == "f" else 0.0):
            span = f"its values, {exact.min():.9g} to {exact.max():.9g}, are too large or too small for this type"
            raise ValueError(
                f"{name}: the image loses its contrast as {'float32' if whole else schema.dtype}: {span}; "
                f"{remedy}subtract "
                "the background, or give the images in another unit."
            )


def is_lost(read: np.ndarray, exact: np.ndarray, *, noise: float) -> bool:
    """Whether rounding changed an image by more than a thousandth of its largest deviation from the background, or half
    of its pixels by more than a twentieth of their deviation from the median.

    A constant image, up to `noise`, has no content to lose.

    Args:
        read: image as read, (C, H, W).
        exact: image as written, (C, H, W).
        noise: deviations that count as zero, relative to the largest pixel.

    Example:
        >>> exact = np.array([1e8, 1e8 + 1.0])
        >>> is_lost(exact.astype(np.float32), exact, noise=0.0), is_lost(exact, exact, noise=0.0)
        (True, False)
    """
    error, far = np.abs(read - exact), np.abs(exact - np.median(exact))
    nothing = noise * np.abs(exact).max()
    if far.max() <= nothing:
        return False
    typical = float(np.median(far))
    blurred = typical > nothing and float(np.median(error)) > MOST_BLURRED * typical
    return bool(error.max() > MOST_LOST * far.max()) or blurred


def refuse(samples: Samples, bad: np.ndarray, message: str) -> None:
    """Raise ValueError with the name of the first bad sample, if there is one.

    Args:
        samples: the samples.
        bad: what is bad, (n, ...) bool.
        message: what is wrong.
    """
    if bad.any():
        first = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
        raise ValueError(f"{samples.ids[first]}: {message}")


def check_labels(schema: Schema, samples: Samples) -> None:
    """Raise ValueError, naming the first bad sample, unless all labels are classes of the split.

    Args:
        schema: content of the split.
        samples: the samples.
    """
    check_whole(samples, "label", samples.labels)
    unlabelled = 0 if schema.classes else -1
    wrong = (samples.labels < unlabelled) | (samples.labels >= max(len(schema.classes), 0))
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(
            f"{samples.ids[k]}: label {samples.labels[k]} is not a number of the classes {list(schema.classes)}."
        )


def check_whole(samples: Samples, what: str, values: np.ndarray) -> None:
    """Raise ValueError unless there is an integer per sample.

    Args:
        samples: the samples.
        what: name of the values, for messages.
        values: the values, (n,).
    """
    if values.shape != (len(samples.ids),):
        raise ValueError(f"{what}: the shape is {values.shape}; give one value for each of {len(samples.ids)} samples.")
    if values.dtype.kind not in "iu":
        raise ValueError(f"{samples.ids[0]}: {what} {values[0]} has the type {values.dtype}; give integers.")


def check_ids(samples: Samples) -> None:
    """Raise ValueError, naming the first, unless every sample has a printable name."""
    for name in samples.ids:
        right = isinstance(name, str) and name.isprintable() and 0 < len(name.encode(errors="replace")) <= LONGEST_ID
        if not right:
            raise ValueError(f"{str(name)[:100]!r} is not a valid sample name; give printable text.")


def check_targets(schema: Schema, samples: Samples) -> None:
    """Raise ValueError, naming the first bad sample, unless each target has a real number, or NaN for unknown, per
    sample.

    Args:
        schema: content of the split.
        samples: the samples.
    """
    for name in schema.targets:
        values = np.asarray(samples.targets[name]) if name in samples.targets else None
        if values is None or values.shape != (len(samples.ids),):
            raise ValueError(f"target {name}: give one value for each of {len(samples.ids)} samples.")
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{samples.ids[0]}: target {name} has the type {values.dtype}; give real numbers.")
        refuse(samples, np.isinf(values), f"has an infinite {name}; give a finite number, or NaN if it is unknown.")


def stored_columns(schema: Schema, samples: Samples) -> dict[str, np.ndarray]:
    """Return each column as stored, (n,): float64, or bytes of one length in UTF-8.

    Args:
        schema: content of the split.
        samples: the samples.

    Raises:
        ValueError: a value is no finite number, NaN or printable text; the message names the sample.
    """
    stored = {}
    for name in schema.columns:
        values = np.asarray(samples.columns[name]) if name in samples.columns else None
        if values is None or values.shape != (len(samples.ids),):
            raise ValueError(f"column {name}: give one value for each of {len(samples.ids)} samples.")
        if values.dtype.kind in "biuf":
            refuse(samples, np.isinf(values), f"has an infinite {name}; give a finite number, or NaN if it is unknown.")
            stored[name] = values.astype(np.float64)
            continue
        texts = values.tolist()
        bad = [not is_text(value) for value in texts]
        refuse(samples, np.array(bad), f"has a {name} that is not printable text of at most {LONGEST_ID} bytes.")
        stored[name] = np.array([value.encode() for value in texts])
    return stored


def is_text(value: object) -> bool:
    """Whether a value is text that can be a cell of a column."""
    return isinstance(value, str) and value.isprintable() and len(value.encode(errors="replace")) <= LONGEST_ID
