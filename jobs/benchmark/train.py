"""`deeplense benchmark train`: compare training updates with a bare PyTorch loop."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch.nn import functional

from deeplense.data.building import build
from deeplense.simulation.populations import CLASSES, Population, default_mass_slope
from deeplense.training.stopping import StopFlag
from jobs.benchmark.settings import Settings
from jobs.benchmark.timing import Row, compare
from jobs.simulate.settings import Settings as SimulateSettings
from jobs.simulate.work import make_samples, schema_of
from jobs.train.settings import Settings as TrainSettings


def measure(settings: Settings) -> list[Row]:
    """Compare updates of `deeplense train` (shards, order, normalisation, synchronised stopping) with a bare loop over
    a tensor in memory."""
    from jobs.frame.staging import Copies
    from jobs.frame.start import begin
    from jobs.frame.updates import advance
    from jobs.frame.watchdog import Watchdog
    from jobs.runs.claim import Claim
    from jobs.train.learner import Supervised

    with tempfile.TemporaryDirectory() as folder:
        trained = TrainSettings(
            run=Path(folder) / "run",
            dataset=str(simulate_for(settings, Path(folder) / "data")),
            model_name=settings.model_name,
            batch_size=settings.batch_size,
            epochs=1e6,
            evaluate_epochs=1e6,
            device=settings.device,
            flips=0,
            stage="none",
        )
        stop, watchdog = StopFlag(), Watchdog(trained.run, minutes=0)
        training = begin(trained, lambda: Supervised.of(trained), watchdog, Copies(stop, watchdog), Claim(trained))
        assert training is not None
        device, train = training.weights.accelerator.device, training.learner.train
        ours = advance(training, stop)
        bare = bare_loop(train.split.images(train.indices), train.labels, settings, device)
        count = settings.num_steps * settings.batch_size

        def drive(loop: Iterator[Any]) -> int:
            for _ in range(settings.num_steps):
                next(loop)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return count

        row = compare(
            f"training {settings.model_name} on {device.type}",
            partial(drive, ours),
            partial(drive, bare),
            other_name="bare PyTorch",
            rounds=settings.rounds,
        )
        training.attempt.close()
        return [row]


def simulate_for(settings: Settings, output: Path) -> Path:
    """Simulate a data set with as many images as one round uses."""
    num_per_class = -(-settings.batch_size * settings.num_steps // 3)
    simulated = SimulateSettings(output=output, model=settings.model, num_per_class=num_per_class)
    population = Population(settings.model, simulated.preset, default_mass_slope(simulated.preset))
    make = partial(make_samples, population=population, seed=0, split="train")
    for _ in build(output / "train", schema_of(simulated, population), make):
        pass
    return output


def bare_loop(images: np.ndarray, labels: np.ndarray, settings: Settings, device: torch.device) -> Iterator[None]:
    """Minimal training loop: random batches of a tensor in memory, forward, backward, update."""
    model = timm.create_model(settings.model_name, in_chans=images.shape[1], num_classes=len(CLASSES)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    x = (x - x.mean()) / x.std()
    while True:
        chosen = torch.randint(len(x), (settings.batch_size,))
        loss = functional.cross_entropy(model(x[chosen].to(device)), y[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield
