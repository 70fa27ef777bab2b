"""Samples of one split by number, in batches."""

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
    """Some samples on their way to the model: images (b, C, H, W), labels (b,), index within the split (b,), random
    numbers in [0, 1[ (b, R).

    `target` (b,) is the number to be learnt in regression, and the label as a float elsewhere. Images are as they are
    stored, and become float32 values, stored * scale + zero, on the device that they are sent to.
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
        """The same batch on a device, with the values of its images."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in TENSORS}
        moved["images"] = values(moved["images"], scale=self.scale, zero=self.zero)
        return Batch(**moved)

    def split(self, parts: int) -> list["Batch"]:
        """The batch in `parts` pieces of nearly equal size."""
        pieces = [rank_slice(len(self), part, parts) for part in range(parts)]
        return [replace(self, **{name: getattr(self, name)[piece] for name in TENSORS}) for piece in pieces]


class Split:
    """One split of a data set, or of several that are alike, one after the other.

    Labels (N,) and the number of its data set (N,) for each sample are in memory; all else stays in the shards. Where
    labels are not needed the classes may differ, and are then known of no sample.
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
        """Read the images from here, the folders themselves or copies of them; messages go on to name the folders."""
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
        """Read images into memory that a GPU can copy from by itself, or not."""
        if isinstance(self.stored, MappedImages):
            self.stored.buffers.pinned = pinned

    @property
    def name(self) -> str:
        """The folders, as a user knows them."""
        return " + ".join(map(str, self.folders))

    @property
    def dataset_id(self) -> str:
        """What tells these very samples from any others."""
        ids = [manifest.dataset_id for manifest in self.manifests]
        return ids[0] if len(ids) == 1 else hashlib.sha256(" ".join(ids).encode()).hexdigest()

    @property
    def ids(self) -> list[str]:
        """The name of each sample, read when asked for; what is no text in one is replaced."""
        return [name.decode(errors="replace") for name in self.column("id")]

    def column(self, name: str) -> np.ndarray:
        """An array of the shards beside the images, (N,): `label`, `id`, `source_index`, `target/NAME`."""
        return np.concatenate([column_of(manifest, name) for manifest in self.manifests])

    def groups(self) -> np.ndarray | None:
        """The number of the group of each sample (N,), None where none of the data sets has groups. No two data sets
        share a group, and samples of one without groups have one each."""
        if not any(manifest.schema.grouped for manifest in self.manifests):
            return None
        parts = [group_numbers(manifest) for manifest in self.manifests]
        starts = np.cumsum([0, *(int(part.max(initial=-1)) + 1 for part in parts)])
        return np.concatenate([part + start for part, start in zip(parts, starts, strict=False)])

    def images(self, indices: np.ndarray) -> np.ndarray:
        """The images with these numbers, (n, C, H, W) float32, in the order asked for."""
        stored = self.stored.read(indices)
        return values(stored, scale=self.scale, zero=self.zero).cpu().numpy()

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        """A 64-bit hash of the pixels of each of these images, (n,)."""
        parts = [self.images(rows) for rows in in_pieces(indices)]
        return np.array(
            [xxhash.xxh3_64_intdigest(image.tobytes()) for part in parts for image in part], dtype=np.uint64
        )

    def moments(self, indices: np.ndarray, through: Callable[[Tensor], Tensor] | None = None) -> Moments:
        """Number of pixels a band, their sum and their sum of squares over these images, or over what a function makes
        of them."""
        images = self.images(indices)
        return moments_of(images if through is None else through(torch.from_numpy(images)).numpy())

    def keep_on(self, device: torch.device, indices: np.ndarray) -> None:
        """Hold these images on a device from now on, and no others. Raises ValueError where they do not fit."""
        try:
            self.stored = HeldImages(self.stored, indices, num_images=len(self), device=device)
        except torch.OutOfMemoryError as error:
            raise ValueError(f"the {len(indices)} images of {self.name} do not fit on {device}: {error}") from error

    def batch(self, indices: np.ndarray, *, target: np.ndarray | None, random: np.ndarray) -> Batch:
        """The samples with these numbers.

        Args:
            indices: (n,).
            target: the number to be learnt, of all samples (N,); None for the label.
            random: random numbers that go with the samples (n, R).
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


def column_of(manifest: Manifest, name: str) -> np.ndarray:
    """An array of the shards of one data set beside the images, (n,)."""
    parts = []
    for line in manifest.shards:
        with h5py.File(manifest.folder / line["file"], locking=False) as shard:
            parts.append(column(shard, name))
    return np.concatenate(parts)


def group_numbers(manifest: Manifest) -> np.ndarray:
    """The number of the group of each sample of a data set, (n,); one each where it has no groups."""
    if not manifest.schema.grouped:
        return np.arange(manifest.schema.num_samples)
    return column_of(manifest, f"target/{GROUP}").astype(np.int64)


def checked_labels(manifest: Manifest) -> np.ndarray:
    """The labels of a split (N,), all of which is sound: each shard is compared with its checksum, and what it says
    with the manifest. Raises ValueError, naming the shard or the split, where one is not, or a codec is missing."""
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
    """The shards of a data set, in its folder or a copy."""
    return [
        ShardFile(folder / line["file"], line["num_samples"], line["bytes"], line["image_offset"])
        for line in manifest.shards
    ]


def how_stored(schema: Schema) -> tuple[str, float, float, bool]:
    """What must be the same for the shards of data sets to be read as one."""
    return schema.dtype, schema.scale, schema.zero, schema.compression == "none"


def in_pieces(indices: np.ndarray) -> list[np.ndarray]:
    """Indices as many at a time as are read at once."""
    return [indices[k : k + READ_ROWS] for k in range(0, len(indices), READ_ROWS)]


def refuse_unlike(manifests: Sequence[Manifest], *names: str) -> None:
    """Raise ValueError where data sets that are to be mixed are not alike in what these names are of."""
    first = manifests[0]
    for other in manifests[1:]:
        for name in names:
            here, there = getattr(first.schema, name), getattr(other.schema, name)
            if here != there:
                raise ValueError(
                    f"{first.folder} has {name} {here}, and {other.folder} {there}; only data sets that are alike can "
                    "be mixed. Pack one of them again with the other's."
                )


def evaluation_batches(
    split: Split, indices: np.ndarray, *, batch_size: int, target: np.ndarray | None
) -> Iterator[Batch]:
    """These samples once each, in their order, unaugmented."""
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        yield split.batch(chosen, target=target, random=np.zeros((len(chosen), NUM_UNIFORMS)))


def splits_of(dataset: Path) -> Sequence[str]:
    """Names of the finished splits of a data set."""
    return sorted(path.parent.name for path in dataset.glob("*/manifest.json"))
