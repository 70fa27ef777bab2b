"""Each architecture of the zoo trains an epoch on simulated lenses by its recipe, on 6 of 64 pixels and on 300 of 150
pixels, and is evaluated. Those of 150 pixels are slow: `make test-slow`. The figures of the reports are left out: they
do not depend on the architecture."""

import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from deeplense.evaluation import report
from deeplense.models.zoo import ARCHITECTURES
from deeplense.training import checkpoint
from jobs.evaluate import settings as evaluate_settings
from jobs.evaluate import work as evaluate_work
from jobs.runs.folder import FINISHED
from jobs.simulate import settings as simulate_settings
from jobs.simulate import work as simulate_work
from jobs.train import settings as train_settings
from jobs.train import work as train_work

RECIPES = Path(train_work.__file__).parents[1] / "recipes" / "models"
MODELS = {64: ("Model_III", 2, 1, 2), 150: ("Model_I", 100, 20, 30)}
"""For each size in pixels what is simulated, how many images of each class are trained on and evaluated, and the size
of a batch."""


@pytest.fixture(scope="module")
def lenses(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Training, validation and test images of a size."""
    folder = tmp_path_factory.mktemp("lenses")

    @cache
    def simulated(size: int) -> Path:
        model, number, number_held_out, _ = MODELS[size]
        for split, num_per_class in (("train", number), ("val", number_held_out), ("test", number_held_out)):
            settings = {"model": model, "preset": "noisy", "split": split, "num_per_class": num_per_class}
            simulate_work.run(simulate_settings.Settings(output=folder / str(size), num_workers=1, **settings))  # type: ignore[arg-type]
        return folder / str(size)

    return simulated


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """A report whose figures are empty files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "figure", lambda path, *_, **__: path.touch())
        yield


def check_training(name: str, size: int, dataset: Path, run: Path) -> None:
    """Train, and evaluate."""
    _, number, number_held_out, batch_size = MODELS[size]
    steps = 3 * number // batch_size
    recipe = yaml.safe_load((RECIPES / f"{ARCHITECTURES[name].recipe}.yaml").read_text())
    changes = {"epochs": 1, "warmup_epochs": 0.2, "batch_size": batch_size, "log_interval": 1, "device": "cpu"}
    settings = recipe | changes | {"model_name": name, "stage": "none"}
    assert train_work.run(train_settings.Settings(run=run, dataset=str(dataset), **settings)) == 0
    assert json.loads((run / FINISHED).read_text())["step"] == steps
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == steps
    assert all(math.isfinite(loss) for loss in losses)
    path, _ = checkpoint.newest_good(run / "checkpoints")
    assert path is not None
    assert evaluate_work.run(evaluate_settings.Settings(run=str(run), device="cpu")) == 0
    told = json.loads((run / "report" / "report.json").read_text())
    assert sum(map(sum, told["confusion"])) == 3 * number_held_out


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_name_trains_an_epoch_at_64_pixels(name: str, lenses: Callable[[int], Path], tmp_path: Path) -> None:
    check_training(name, 64, lenses(64), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_name_trains_an_epoch_at_150_pixels(name: str, lenses: Callable[[int], Path], tmp_path: Path) -> None:
    check_training(name, 150, lenses(150), tmp_path / "run")
