"""Small images for vision transformers: 32 pixels a side, a bright column in one of two places."""

from pathlib import Path

import numpy as np

from deeplense.data.building import build
from deeplense.data.shards import Samples, Schema

SIZE = 32
CLASSES = ("left", "right")


def stamps(rows: range, *, seed: int, num_bands: int = 1) -> Samples:
    """Noise with a bright column, each sample a function of its number."""
    labels = np.array([k % len(CLASSES) for k in rows])
    images = np.stack([np.random.default_rng((seed, k)).normal(size=(num_bands, SIZE, SIZE)) for k in rows])
    for image, label in zip(images, labels, strict=True):
        image[:, :, 8 + 14 * label : 12 + 14 * label] += 0.4
    return Samples(images.astype(np.float32), labels, {}, [f"{seed}-{k}" for k in rows], np.array(rows))


def write_stamps(dataset: Path, split: str, num_samples: int, *, seed: int, num_bands: int = 1) -> None:
    """One split of them."""
    schema = Schema(
        split=split,
        num_samples=num_samples,
        shape=(num_bands, SIZE, SIZE),
        dtype="float32",
        bands=("g", "r", "i")[:num_bands],
        unit="",
        pixel_scale_arcsec=0.1,
        classes=CLASSES,
    )
    list(build(dataset / split, schema, lambda rows: stamps(rows, seed=seed, num_bands=num_bands)))


def make_stamps(folder: Path, *, num_train: int) -> Path:
    """A data set of them, with 40 to test on."""
    write_stamps(folder, "train", num_train, seed=1)
    write_stamps(folder, "test", 40, seed=2)
    return folder


def pretrain(dataset: Path, run: Path, *more: str) -> Path:
    """A short pretraining of a small vision transformer, in this process."""
    from launch.__main__ import main

    words = [f"--dataset={dataset}", f"--run={run}", "--model_name=test_vit", "--num_local=0", "--batch_size=16"]
    assert main(["pretrain", *words, "--epochs=1", "--warmup_epochs=0", "--device=cpu", *more]) == 0
    return run
