"""Each architecture of the zoo trains an epoch on 300 simulated lenses by its recipe, at 64 and at 150 pixels, and is
evaluated. Those of 150 pixels are slow: `make test-slow`."""

import json
import math
from pathlib import Path

import pytest
import yaml

from deeplense.models.zoo import ARCHITECTURES
from deeplense.training import checkpoint
from jobs import evaluate, simulate, train
from jobs.runs import FINISHED

RECIPES = Path(train.__file__).parent / "recipes" / "models"
MODELS = {64: "Model_III", 150: "Model_I"}


@pytest.fixture(scope="module")
def lenses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images to learn from and 60 to be tested on, of each size."""
    folder = tmp_path_factory.mktemp("lenses")
    for size, model in MODELS.items():
        for split, num_per_class in (("train", 100), ("val", 20), ("test", 20)):
            settings = {"model": model, "preset": "noisy", "split": split, "num_per_class": num_per_class}
            simulate.run(simulate.Settings(output=folder / str(size), num_workers=1, **settings))  # type: ignore[arg-type]
    return folder


def check_training(name: str, dataset: Path, run: Path) -> None:
    """Train, and evaluate."""
    recipe = yaml.safe_load((RECIPES / f"{ARCHITECTURES[name].recipe}.yaml").read_text())
    changes = {"epochs": 1, "warmup_epochs": 0.2, "batch_size": 30, "log_interval": 1, "device": "cpu"}
    settings = recipe | changes | {"model_name": name, "stage": "none"}
    assert train.run(train.Settings(run=run, dataset=str(dataset), **settings)) == 0
    assert json.loads((run / FINISHED).read_text())["step"] == 10
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 10
    assert all(math.isfinite(loss) for loss in losses)
    path, _ = checkpoint.newest_good(run / "checkpoints")
    assert path is not None
    assert evaluate.run(evaluate.Settings(run=str(run), device="cpu")) == 0
    report = json.loads((run / "report" / "report.json").read_text())
    assert sum(map(sum, report["confusion"])) == 60


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_name_trains_an_epoch_at_64_pixels(name: str, lenses: Path, tmp_path: Path) -> None:
    check_training(name, lenses / "64", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_name_trains_an_epoch_at_150_pixels(name: str, lenses: Path, tmp_path: Path) -> None:
    check_training(name, lenses / "150", tmp_path / "run")
