"""Shared by the training benchmarks: a data set of noise, a training before its first update, and timed updates."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeplense.data.building import build
from deeplense.data.shards import Samples, Schema
from deeplense.training.stopping import StopFlag
from jobs.frame.learner import Learner
from jobs.frame.settings import LearningSettings
from jobs.frame.staging import Copies
from jobs.frame.start import Training, begin
from jobs.frame.watchdog import Watchdog
from jobs.runs.claim import Claim

NEVER: dict[str, Any] = {"epochs": 1e6, "evaluate_epochs": 1e6, "checkpoint_minutes": 1e6}
"""Settings with which a training never ends, evaluates or saves a checkpoint."""


def make_noise(dataset: Path, number: int, shape: tuple[int, int, int]) -> Path:
    """Write a data set of noise images (C, H, W) without labels."""
    schema = Schema(
        split="train",
        num_samples=number,
        shape=shape,
        dtype="float32",
        bands=tuple(f"band{k}" for k in range(shape[0])),
        unit="",
        pixel_scale_arcsec=None,
        classes=(),
        targets={},
    )

    def make(rows: range) -> Samples:
        images = np.random.default_rng(rows.start).normal(size=(len(rows), *shape)).astype(np.float32)
        return Samples(images, np.full(len(rows), -1), {}, [str(row) for row in rows], np.arange(rows.start, rows.stop))

    list(build(dataset / "train", schema, make))
    return dataset


def begun_learning(settings: LearningSettings, make_learner: Callable[[], Learner]) -> Training:
    """Start a training up to its first update."""
    stop, watchdog = StopFlag(), Watchdog(settings.run, minutes=0)
    training = begin(settings, make_learner, watchdog, Copies(stop, watchdog), Claim(settings))
    assert training is not None
    return training


def update(updates: Iterator[Any], *, device: torch.device, num_images: int) -> Callable[[], int]:
    """Return a function that makes the next update, waits for the device, and returns the number of images."""

    def make() -> int:
        next(updates)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return num_images

    return make
