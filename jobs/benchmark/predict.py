"""`deeplense benchmark predict`: compare predictions with a bare forward loop over the same images in memory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch

from deeplense.data.building import build
from deeplense.data.shards import Samples, Schema
from deeplense.training.loop import make_accelerator
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Row, compare
from jobs.predict import work as predict_work
from jobs.predict.members import Member
from jobs.predict.scoring import one_process, scorer_of
from jobs.predict.settings import Settings as PredictSettings
from jobs.train import work as train_work
from jobs.train.settings import Settings as TrainSettings

NUM_TRAINED = 64


def measure(settings: Settings) -> list[Row]:
    """Predict a data set of noise with a network after one update. On a CPU, each side uses one core."""
    with tempfile.TemporaryDirectory(prefix="deeplense-predict-") as name, quiet():
        folder = Path(name)
        write_noise(folder / "data", "train", NUM_TRAINED, size=settings.image_size)
        write_noise(folder / "many", "train", settings.num_images, size=settings.image_size)
        train_work.run(
            TrainSettings(
                run=folder / "run",
                dataset=str(folder / "data"),
                model_name=settings.model_name,
                epochs=1,
                batch_size=NUM_TRAINED // 2,
                device=settings.device,
            )
        )
        asked = PredictSettings(
            run=str(folder / "run"),
            dataset=str(folder / "many"),
            output=folder / "out",
            batch_size=settings.batch_size,
            device=settings.device,
            num_workers=1,
        )
        scorer = scorer_of(one_process(asked))
        images = scorer.images.read(range(settings.num_images)).images
        ours = partial(predicted, asked, count())
        theirs = partial(forwarded, scorer.members[0], images, batch_size=settings.batch_size)
        device = make_accelerator(device=settings.device, precision="fp32").device.type
        what = f"{settings.model_name}, {settings.num_images} images of {settings.image_size} pixels, on {device}"
        return [compare(what, ours, theirs, other_name="bare forward loop", rounds=settings.rounds)]


def predicted(asked: PredictSettings, numbers: Iterator[int]) -> float:
    """Write a table of predictions; returns the number of images."""
    output = asked.output.with_name(f"out{next(numbers)}")
    predict_work.run(replace(asked, output=output))
    return float(len(scorer_of(one_process(asked)).images))


@torch.no_grad()
def forwarded(member: Member, images: np.ndarray, *, batch_size: int) -> float:
    """Return the number of images after the network has seen all of them, scaled, in batches."""
    device = next(member.network.parameters()).device
    for block in torch.from_numpy(images).split(batch_size):
        outputs = member.network(member.objective.scaling.scaled(block.to(device)))
        assert isinstance(outputs, torch.Tensor)
        outputs.softmax(dim=1).cpu()
    return float(len(images))


def write_noise(folder: Path, split: str, number: int, *, size: int) -> None:
    """Write a split of random images of two classes."""

    def make(rows: range) -> Samples:
        rng = np.random.default_rng(rows.start)
        images = rng.normal(size=(len(rows), 1, size, size)).astype(np.float32)
        return Samples(images, np.asarray(rows) % 2, {}, [f"image{k}" for k in rows], np.asarray(rows))

    schema = Schema(
        split=split,
        num_samples=number,
        shape=(1, size, size),
        dtype="float32",
        bands=("r",),
        unit="",
        pixel_scale_arcsec=None,
        classes=("other", "lens"),
    )
    list(build(folder / split, schema, make))


@contextmanager
def quiet() -> Iterator[None]:
    """Print nothing of the jobs that are measured."""
    from jobs.console import CONSOLE

    before, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        yield
    finally:
        CONSOLE.quiet = before
