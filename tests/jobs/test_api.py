"""What a notebook imports: the same images, networks and numbers as the commands have."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from torch.utils.data import DataLoader

import deeplense
from deeplense.data.scaling import Scaling
from deeplense.training import checkpoint
from jobs.run_job import main


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that was trained and evaluated."""
    folder = tmp_path_factory.mktemp("api") / "run"
    words = [f"--dataset={dataset}", "--model_name=simple_cnn", "--epochs=3", "--batch_size=16", "--device=cpu"]
    assert main(["train", f"--run={folder}", *words]) == 0
    assert main(["evaluate", f"--run={folder}", "--device=cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def regression(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression that was trained and evaluated."""
    folder = tmp_path_factory.mktemp("api") / "regression"
    words = [f"--dataset={dataset}", "--model_name=simple_cnn", "--epochs=2", "--batch_size=16", "--device=cpu"]
    assert main(["train", f"--run={folder}", "--target=column", *words]) == 0
    assert main(["evaluate", f"--run={folder}", "--device=cpu"]) == 0
    return folder


def test_a_data_set_gives_arrays_and_is_a_torch_data_set(dataset: Path) -> None:
    test = deeplense.open_dataset(dataset, split="test")
    right = blobs(range(45), split="test")
    np.testing.assert_array_equal(test.images(), right.images)
    np.testing.assert_array_equal(test.images([7, 2]), right.images[[7, 2]])
    np.testing.assert_array_equal(test.labels, right.labels)
    np.testing.assert_array_equal(test.target("column"), right.targets["column"])
    assert test.names == right.ids
    assert (len(test), test.classes, test.bands) == (45, ("left", "right", "middle"), ("r",))
    images, labels = next(iter(DataLoader(test, batch_size=4)))
    np.testing.assert_array_equal(images, right.images[:4])
    assert labels.tolist() == right.labels[:4].tolist()
    assert torch.equal(test[-1][0], torch.from_numpy(right.images[-1]))
    assert "45 images of 1 x 16 x 16 pixels: 15 left, 15 right, 15 middle" in repr(test)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda folder: deeplense.open_dataset(folder / "nowhere"), "is not a data set"),
        (lambda folder: deeplense.open_dataset(folder / "test"), "is not a data set"),
        (lambda folder: deeplense.open_dataset(folder, split="tset"), "has no split 'tset'; it has test, train"),
        (lambda folder: deeplense.open_dataset(folder).images([96]), "there is no image 96"),
        (lambda folder: deeplense.open_dataset(folder).images([-1]), "there is no image -1"),
        (lambda folder: deeplense.open_dataset(folder)[96], "image 96 of 96"),
        (lambda folder: deeplense.open_dataset(folder).target("mass"), "its targets: column"),
        (lambda folder: deeplense.simulate("Model_IV", num_images=1), "Model_IV"),  # type: ignore[arg-type]
        (lambda folder: deeplense.simulate(num_images=0), "num_images=0"),
        (lambda folder: deeplense.load_run(folder), "is neither a run folder"),
        (lambda folder: deeplense.read_report(folder), "has no report"),
        (lambda folder: deeplense.open_data, "deeplense has no 'open_data'"),  # type: ignore[attr-defined]
    ],
)
def test_what_is_wrong_is_named(wrong: object, told: str, dataset: Path) -> None:
    with pytest.raises((ValueError, IndexError, AttributeError), match=told):
        wrong(dataset)  # type: ignore[operator]


def test_simulated_images_are_those_of_the_command(tmp_path: Path) -> None:
    words = ["--model=Model_III", "--preset=noisy", "--split=val", "--num_per_class=2", "--seed=5", "--num_workers=1"]
    assert main(["simulate", f"--output={tmp_path / 'm3'}", *words]) == 0
    written = deeplense.open_dataset(tmp_path / "m3", split="val")
    made = deeplense.simulate("Model_III", "noisy", num_images=6, seed=5, split="val")
    np.testing.assert_array_equal(made.images, written.images())
    np.testing.assert_array_equal(made.labels, written.labels)
    assert (made.classes, made.unit, made.pixel_scale_arcsec) == (
        written.classes,
        written.unit,
        written.pixel_scale_arcsec,
    )
    np.testing.assert_allclose(made.truth["theta_E"], written.target("theta_E"), rtol=1e-6)


def test_a_loaded_run_predicts_what_the_evaluation_predicted(run: Path, dataset: Path) -> None:
    loaded, test = deeplense.load_run(run), deeplense.open_dataset(dataset, split="test")
    assert (loaded.classes, loaded.image_shape, loaded.target) == (test.classes, (1, 16, 16), None)
    probabilities = loaded.predict_probabilities(test.images(), batch_size=7)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    kept = np.load(run / "report" / "predictions.npz")
    np.testing.assert_allclose(loaded.predict(test.images()), kept["outputs"].reshape(-1, 3), rtol=1e-4, atol=1e-5)
    accuracy = (probabilities.argmax(axis=1) == test.labels).mean()
    assert accuracy == pytest.approx(loaded.report()["metrics"]["accuracy"]["value"])
    assert "simple_cnn, classes left, right, middle" in repr(loaded)


def test_a_loaded_regression_predicts_in_the_unit_of_its_target(regression: Path, dataset: Path) -> None:
    loaded, test = deeplense.load_run(regression, weights="last"), deeplense.open_dataset(dataset, split="test")
    known = np.isfinite(test.target("column"))
    outputs = deeplense.load_run(regression).predict(test.images()[known])
    kept = np.load(regression / "report" / "predictions.npz")
    np.testing.assert_allclose(outputs, kept["outputs"].reshape(-1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="predicts column, not classes"):
        loaded.predict_probabilities(test.images())


def test_preprocessing_is_that_of_the_training(run: Path, dataset: Path) -> None:
    loaded, images = deeplense.load_run(run), deeplense.open_dataset(dataset).images([0, 1])
    path, _ = checkpoint.newest_good(run / "checkpoints", kind="best")
    assert path is not None
    statistics = checkpoint.load(path, only=("progress",))["progress"]["statistics"]
    expected = Scaling(statistics, loaded.settings["stretch"]).scaled(torch.from_numpy(images))
    torch.testing.assert_close(loaded.preprocess(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 1, 16, 17), (1, 16, 16), (2, 3, 16, 16)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...], run: Path) -> None:
    with pytest.raises(ValueError, match=r"was trained on images of shape \(1, 16, 16\)"):
        deeplense.load_run(run).predict(np.zeros(shape, dtype=np.float32))


def test_pixels_that_are_not_finite_are_refused_and_no_images_give_no_rows(run: Path) -> None:
    loaded = deeplense.load_run(run)
    with pytest.raises(ValueError, match="NaN"):
        loaded.predict(np.full((1, 1, 16, 16), np.nan))
    assert loaded.predict_probabilities(np.zeros((0, 1, 16, 16), dtype=np.float32)).shape == (0, 3)


def test_curves_have_a_value_for_each_logged_step(run: Path) -> None:
    steps, losses = deeplense.load_run(run).metrics()["train/loss"]
    assert len(steps) == len(losses) > 0
    assert (np.diff(steps) > 0).all()
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("inner", ["", "report", "report/report.json"])
def test_a_report_is_found_by_its_run_its_folder_or_its_file(inner: str, run: Path) -> None:
    accuracy = deeplense.read_report(run / inner)["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def test_importing_takes_no_library_and_names_are_listed() -> None:
    code = "import sys, deeplense; print('torch' in sys.modules, deeplense.__version__, *dir(deeplense))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, version, *names = done.stdout.split()
    assert (loaded, version) == ("False", deeplense.__version__)
    assert set(names) == set(deeplense.__all__)


def test_a_model_is_built_by_its_name() -> None:
    network = deeplense.build_model("simple_cnn", image_size=16, in_chans=1, num_outputs=3)
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 3)
