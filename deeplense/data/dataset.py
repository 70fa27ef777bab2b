"""One split of a data set: access to samples by number, in batches."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
import xxhash
from torch import Tensor

from deeplense.data.checking import check_shard, miscounts, refuse_other_size
from deeplense.data.order import rank_slice
from deeplense.data.reading import (
    HeldImages,
    Images,
    JoinedImages,
    MappedImages,
    ShardFile,
    open_images,
    values,
)
from deeplense.data.remembered import require_sound
from deeplense.data.shards import GROUP, Manifest, Moments, Schema, column, image_filters, moments_of
from deeplense.data.transforms import NUM_UNIFORMS

READ_ROWS = 256
TENSORS = ("images", "labels", "target", "indices", "uniforms")


@dataclass(frozen=True)
class Batch:
    """Some samples on their way to the model.

    Images are stored values, and become float32 values, stored * scale + zero, on the device that they are moved to.

    Args:
        images: (b, C, H, W), as stored.
        labels: number of the class, (b,); -1 for no label.
        target: value to predict in regression, (b,); otherwise the label as a float.
        indices: number of each sample within the split, (b,).
        uniforms: random numbers in [0, 1[, (b, R).
        scale: factor of stored values.
        zero: summand of stored values.
    """

    images: Tensor
    labels: Tensor
    target: Tensor
    indices: Tensor
    uniforms: Tensor
    scale: float = 1.0
    zero: float = 0.0

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device, with the float32 values of its images."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in TENSORS}
        moved["images"] = values(moved["images"], scale=self.scale, zero=self.zero)
        return Batch(**moved)

    def pinned(self) -> "Batch":
        """Return the batch in pinned memory, from which a GPU copies asynchronously."""
        return replace(self, **{name: pin(getattr(self, name)) for name in TENSORS})

    def split(self, parts: int) -> list["Batch"]:
        """Return the batch in `parts` pieces of nearly equal size.

        Example:
            >>> numbers = torch.arange(5)
            >>> batch = Batch(torch.zeros(5, 1, 4, 4), numbers, numbers.float(), numbers, torch.zeros(5, 3))
            >>> [len(piece) for piece in batch.split(2)]
            [2, 3]
        """
        pieces = [rank_slice(len(self), part, parts) for part in range(parts)]
        return [replace(self, **{name: getattr(self, name)[piece] for name in TENSORS}) for piece in pieces]


def pin(tensor: Tensor) -> Tensor:
    """Return a tensor in pinned memory, or unchanged if it is on a GPU."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


class Split:
    """One split of a data set, or of several similar data sets, one after the other.

    Labels (N,) and the number of the data set of each sample (N,) are in memory; everything else stays in the shards.

    Args:
        *folders: folder of the split in each data set, each with a `manifest.json`; all have the same image shape.
        labelled: whether labels are needed. If not, the classes of the data sets may differ, and all labels are then
            -1.

    Raises:
        ValueError: a shard is damaged, or the data sets differ in shape or classes.
    """

    def __init__(self, *folders: Path, labelled: bool = True) -> None:
        self.folders = folders
        self.manifests = [Manifest.read(folder) for folder in folders]
        refuse_unlike(self.manifests, "shape", *(["classes"] if labelled else []))
        self.schema = self.manifests[0].schema
        self.labels = np.concatenate([checked_labels(manifest) for manifest in self.manifests])
        if len({manifest.schema.classes for manifest in self.manifests}) > 1:
            self.labels = np.full_like(self.labels, -1)
        sizes = [manifest.schema.num_samples for manifest in self.manifests]
        self.sources = np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)
        self.read_from(folders)

    def __len__(self) -> int:
        return len(self.labels)

    def read_from(self, folders: Sequence[Path]) -> None:
        """Read the images from these folders, the originals or copies of them; messages still name the originals."""
        files = [files_of(manifest, folder) for manifest, folder in zip(self.manifests, folders, strict=True)]
        schemas = [manifest.schema for manifest in self.manifests]
        self.scale, self.zero = self.schema.scale, self.schema.zero
        if len(set(map(how_stored, schemas))) == 1:
            all_files = [file for some in files for file in some]
            self.stored: Images = open_images(all_files, dtype=self.schema.dtype, shape=self.schema.shape)
            return
        parts = [
            open_images(some, dtype=each.dtype, shape=each.shape) for some, each in zip(files, schemas, strict=True)
        ]
        self.stored, self.scale, self.zero = (
            JoinedImages(parts, [(each.scale, each.zero) for each in schemas]),
            1.0,
            0.0,
        )

    def pin(self, pinned: bool) -> None:
        """Set whether images are read into pinned memory."""
        if isinstance(self.stored, MappedImages):
            self.stored.buffers.pinned = pinned

    @property
    def name(self) -> str:
        """The folders, for messages."""
        return " + ".join(map(str, self.folders))

    @property
    def dataset_id(self) -> str:
        """A hash that identifies exactly these samples."""
        ids = [manifest.dataset_id for manifest in self.manifests]
        return ids[0] if len(ids) == 1 else hashlib.sha256(" ".join(ids).encode()).hexdigest()

    @property
    def ids(self) -> list[str]:
        """The name of each sample, read on demand; invalid characters are replaced."""
        return [name.decode(errors="replace") for name in self.column("id")]

    def column(self, name: str) -> np.ndarray:
        """Return an array of the shards beside the images, (N,): `label`, `id` (bytes), `source_index`,
        `target/NAME`, or `column/NAME`: numbers, NaN for unknown, or texts.

        Raises:
            ValueError: there is no such column; the message lists those that exist.
        """
        return np.concatenate([column_of(manifest, name) for manifest in self.manifests])

    def groups(self) -> np.ndarray | None:
        """Return the number of the group of each sample, (N,), or None if no data set has groups.

        Two data sets share no group; samples of a data set without groups have one group each.
        """
        if not any(manifest.schema.grouped for manifest in self.manifests):
            return None
        parts = [group_numbers(manifest) for manifest in self.manifests]
        starts = np.cumsum([0, *(int(part.max(initial=-1)) + 1 for part in parts)])
        return np.concatenate([part + start for part, start in zip(parts, starts, strict=False)])

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return the images with these numbers, (n, C, H, W) float32, in the order of `indices`."""
        stored = self.stored.read(indices)
        return values(stored, scale=self.scale, zero=self.zero).cpu().numpy()

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        """Return a 64-bit hash of the pixels of each of these images, (n,)."""
        parts = [self.images(rows) for rows in in_pieces(indices)]
        return np.array(
            [xxhash.xxh3_64_intdigest(image.tobytes()) for part in parts for image in part], dtype=np.uint64
        )

    def moments(self, indices: np.ndarray, through: Callable[[Tensor], Tensor] | None = None) -> Moments:
        """Return the number of pixels, their sum and their sum of squares over some images, per band.

        Args:
            indices: numbers of the images, (n,).
            through: transformation of the images (n, C, H, W) before; None for none.
        """
        images = self.images(indices)
        return moments_of(images if through is None else through(torch.from_numpy(images)).numpy())

    def keep_on(self, device: torch.device, indices: np.ndarray) -> None:
        """Hold these images, and no others, on a device from now on.

        Args:
            device: device with enough free memory.
            indices: numbers of the images, (n,).

        Raises:
            ValueError: they do not fit.
        """
        try:
            self.stored = HeldImages(self.stored, indices, num_images=len(self), device=device)
        except torch.OutOfMemoryError as error:
            raise ValueError(f"the {len(indices)} images of {self.name} do not fit on {device}: {error}") from error

    def batch(self, indices: np.ndarray, *, target: np.ndarray | None, random: np.ndarray) -> Batch:
        """Return the samples with these numbers.

        Args:
            indices: (n,).
            target: values to predict, of all samples of the split (N,); None for the labels.
            random: random numbers of the samples, (n, R) in [0, 1[.
        """
        labels = torch.from_numpy(self.labels[indices])
        return Batch(
            images=self.stored.read(indices),
            labels=labels,
            target=labels.float() if target is None else torch.from_numpy(target[indices]).float(),
            indices=torch.from_numpy(indices),
            # Some devices know float32 alone, and the cast must not round up to 1.
            uniforms=torch.from_numpy(np.minimum(random, 1 - 2.0**-24).astype(np.float32)),
            scale=self.scale,
            zero=self.zero,
        )


def column_of(manifest: Manifest, name: str, rows: range | None = None) -> np.ndarray:
    """Return an array of the shards of one data set beside the images, (n,).

    Args:
        manifest: manifest of the split.
        name: `label`, `id`, `source_index`, `target/NAME` or `column/NAME`.
        rows: numbers of the samples, without gaps; None for all. Shards without them are not opened.

    Raises:
        ValueError: there is no such column; the message lists those that exist.
    """
    kind, _, own = name.partition("/")
    if kind == "column" and own not in manifest.schema.columns:
        told = ", ".join(manifest.schema.columns) or "none"
        raise ValueError(f"{manifest.folder} has no column {own!r}; the columns are: {told}.")
    wanted = rows if rows is not None else range(manifest.schema.num_samples)
    parts, start = [], 0
    for line in manifest.shards:
        place = slice(max(wanted.start - start, 0), min(wanted.stop - start, line["num_samples"]))
        start += line["num_samples"]
        if place.start < place.stop:
            with h5py.File(manifest.folder / line["file"], locking=False) as shard:
                parts.append(column(shard, name, place))
    found = np.concatenate(parts)
    return np.char.decode(found, "utf-8", "replace") if kind == "column" and found.dtype.kind == "S" else found


def group_numbers(manifest: Manifest) -> np.ndarray:
    """Return the number of the group of each sample, (n,); one group per sample if there are no groups."""
    if not manifest.schema.grouped:
        return np.arange(manifest.schema.num_samples)
    return column_of(manifest, f"target/{GROUP}").astype(np.int64)


def checked_labels(manifest: Manifest) -> np.ndarray:
    """Return the labels of a split, (N,), after verification: each shard is compared with its checksum and the
    manifest.

    Raises:
        ValueError: a shard is damaged (the message names it), or a codec is missing.
    """
    image_filters(manifest.schema)
    pairs = [(manifest.folder / line["file"], line) for line in manifest.shards]
    for path, line in pairs:
        refuse_other_size(path, line)
    require_sound(manifest)
    found = [check_shard(path, line, manifest.schema) for path, line in pairs]
    for problem in miscounts(manifest, found):
        raise ValueError(problem)
    return np.concatenate([each.labels for each in found])


def files_of(manifest: Manifest, folder: Path) -> list[ShardFile]:
    """Return the shards of a data set, in its folder or a copy.

    Args:
        manifest: manifest of the split.
        folder: folder to read from.
    """
    return [
        ShardFile(folder / line["file"], line["num_samples"], line["bytes"], line["image_offset"])
        for line in manifest.shards
    ]


def how_stored(schema: Schema) -> tuple[str, float, float, bool]:
    """Return the properties that must agree for the shards of data sets to be read as one."""
    return schema.dtype, schema.scale, schema.zero, schema.compression == "none"


def in_pieces(indices: np.ndarray) -> list[np.ndarray]:
    """Return the indices in pieces of `READ_ROWS`."""
    return [indices[k : k + READ_ROWS] for k in range(0, len(indices), READ_ROWS)]


def refuse_unlike(manifests: Sequence[Manifest], *names: str) -> None:
    """Raise an error if data sets that are to be mixed differ.

    Args:
        manifests: manifests of the splits.
        *names: attributes of the schema that must agree, such as `shape` and `classes`.

    Raises:
        ValueError: two data sets differ.
    """
    first = manifests[0]
    for other in manifests[1:]:
        for name in names:
            here, there = getattr(first.schema, name), getattr(other.schema, name)
            if here != there:
                raise ValueError(
                    f"{first.folder} has {name} {here}, but {other.folder} has {there}; data sets can be "
                    "combined only if these "
                    "are equal. Pack one of them again to match the other."
                )


def evaluation_batches(
    split: Split, indices: np.ndarray, *, batch_size: int, target: np.ndarray | None
) -> Iterator[Batch]:
    """Yield these samples once each, in order, without augmentation.

    Args:
        split: split with the samples.
        indices: numbers of the samples, (n,).
        batch_size: samples per batch; the last one may be smaller.
        target: values to predict, of all samples of the split (N,); None for the labels.
    """
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        yield split.batch(chosen, target=target, random=np.zeros((len(chosen), NUM_UNIFORMS)))
