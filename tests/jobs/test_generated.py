"""Generated images beside real ones: what is right passes, what is broken fails by name, what is missing is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from stamps import pretrain, write_stamps

from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.data.shards import Samples, Schema
from jobs import command_line
from jobs.evaluate import settings as evaluate_settings
from jobs.evaluate import work as evaluate_work
from jobs.train import work as train_work


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 120 images that were learnt from, and 120 that were not."""
    folder = tmp_path_factory.mktemp("real")
    write_stamps(folder, "train", 120, seed=1)
    write_stamps(folder, "test", 120, seed=2)
    return folder


@pytest.fixture(scope="module")
def classifier(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on them."""
    run = tmp_path_factory.mktemp("classifier") / "run"
    words = [f"--dataset={real}", f"--run={run}", "--model_name=test_resnet", "--epochs=1", "--device=cpu"]
    assert train_work.run(command_line.parse("train", [*words, "--batch_size=16"])) == 0
    return run


def write(folder: Path, images: np.ndarray, like: Schema, **changes: Any) -> Path:
    """A data set of generated images."""
    facts = {"bands": like.bands, "unit": like.unit, "pixel_scale_arcsec": like.pixel_scale_arcsec} | changes
    schema = Schema(
        split="train",
        num_samples=len(images),
        shape=images.shape[1:],
        dtype="float32",
        classes=(),
        **{"provenance": {"made_by": "a test"}, **facts},
    )

    def make(rows: range) -> Samples:
        chosen = images[rows.start : rows.stop].astype(np.float32)
        return Samples(chosen, np.full(len(rows), -1), {}, [f"made-{k}" for k in rows], np.asarray(rows))

    list(build(folder / "train", schema, make))
    return folder


def images_of(folder: Path, split: str) -> np.ndarray:
    """All images of a split."""
    opened = Split(folder / split)
    return opened.images(np.arange(len(opened)))


def fresh(tmp_path: Path) -> np.ndarray:
    """Images of the same kind that are in neither split."""
    write_stamps(tmp_path / "fresh", "test", 120, seed=3)
    return images_of(tmp_path / "fresh", "test")


def report(real: Path, generated: Path, **changes: Any) -> dict[str, Any]:
    """What is found of generated images."""
    settings = evaluate_settings.Settings(
        dataset=str(real), generated=generated, device="cpu", num_resamples=8, **changes
    )
    assert evaluate_work.run(settings) == 0
    return json.loads((generated / "report" / "report.json").read_text())


@pytest.mark.usefixtures("drawn_figures")
def test_new_images_of_the_same_kind_pass_all_and_everything_has_its_floor(
    real: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated = write(tmp_path / "made", fresh(tmp_path), Split(real / "test").schema)
    found = report(real, generated, run=str(classifier))
    assert found["physics"]["failed"] == found["physics_of_images_learnt_from"]["failed"] == []
    assert [line["passed"] for line in found["copies"]] == [True, True]
    names = [line["name"] for line in found["distances"]]
    assert names == ["frechet", "kernel", "precision", "recall"]
    for line in found["distances"]:
        assert line["num_generated"] == line["num_real"] == 120
        low, high = line["floor"]["low"], line["floor"]["high"]
        assert line["estimate"]["low"] <= high
        assert low <= line["estimate"]["high"]
    tests = [line["name"] for line in found["physics"]["verdicts"]]
    assert "substructure_class" in tests
    said = capsys.readouterr().out
    assert "FID: not computed, because no weights were given (--fid_weights FILE)." in said
    page = (generated / "report" / "index.html").read_text()
    assert len(re.findall("data:image/png", page)) == 4
    assert "no sign of copies" in page
    assert "6.011" in page


BROKEN: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], set[str]]] = {
    "blurred": (
        lambda new, learnt: ndimage.gaussian_filter(new, (0, 0, 1, 1)),
        {"power_spectrum", "pixel_histogram", "peak_flux"},
    ),
    "brighter": (lambda new, learnt: 1.5 * new, {"pixel_histogram", "peak_flux", "total_flux"}),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_generator_fails_by_name(fault: str, real: Path, tmp_path: Path) -> None:
    spoil, fails = BROKEN[fault]
    images = spoil(fresh(tmp_path), images_of(real, "train"))
    found = report(real, write(tmp_path / "made", images, Split(real / "test").schema))
    assert fails <= set(found["physics"]["failed"])
    assert found["physics_of_images_learnt_from"]["failed"] == []
    assert found["copies"][0]["passed"]
    assert found["distances"] == []


def test_copies_of_what_was_learnt_from_are_found_whatever_else_is_right(real: Path, tmp_path: Path) -> None:
    learnt = images_of(real, "train")
    noise = np.random.default_rng(0).normal(0, 0.05, learnt.shape)
    turned = np.rot90(learnt + noise, axes=(2, 3)).copy()
    found = report(real, write(tmp_path / "made", turned, Split(real / "test").schema))
    assert not found["copies"][0]["passed"]
    assert found["copies"][0]["median"]["value"] < 0.2
    assert found["copies"][0]["nearest"] == list(range(120))


def test_a_pretrained_backbone_gives_features_without_classes(real: Path, tmp_path: Path) -> None:
    run = pretrain(real, tmp_path / "pretraining")
    generated = write(tmp_path / "made", fresh(tmp_path), Split(real / "test").schema)
    found = report(real, generated, run=str(run))
    assert len(found["distances"]) == 4
    assert "test_vit, dino, of pretraining" in found["distances"][0]["features"]
    assert "substructure_class" not in [line["name"] for line in found["physics"]["verdicts"]]


def test_a_file_that_is_not_that_of_fid_is_refused_by_name_and_never_replaced(real: Path, tmp_path: Path) -> None:
    generated = write(tmp_path / "made", fresh(tmp_path), Split(real / "test").schema)
    (tmp_path / "weights.pt").write_bytes(b"other")
    for file, words in (("nothing.pt", "does not exist"), ("weights.pt", "has the wrong sha256")):
        found = report(real, generated, fid_weights=tmp_path / file)
        assert words in found["fid"]
        assert found["distances"] == []


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "bands": ({"bands": ("z",)}, "has bands .'z',., but .* has .'g',.; they must be the same"),
    "unit": ({"unit": "Jy"}, "has unit Jy"),
}


@pytest.mark.parametrize("name", WRONG)
def test_images_of_another_kind_are_refused_and_leave_no_report(name: str, real: Path, tmp_path: Path) -> None:
    changes, words = WRONG[name]
    schema = Split(real / "test").schema
    generated = write(tmp_path / "made", images_of(real, "test")[:16], schema, **changes)
    with pytest.raises(ValueError, match=words):
        report(real, generated)
    assert not (generated / "report").exists()


def test_the_real_images_themselves_are_refused(real: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "train").symlink_to(real / "train")
    with pytest.raises(ValueError, match="contains the real images themselves"):
        report(real, tmp_path / "made")


def test_the_real_ones_may_be_named_below_the_data_root(real: Path, tmp_path: Path) -> None:
    made = write(tmp_path / "made", images_of(real, "test")[:4], Split(real / "test").schema, unit="counts")
    settings = evaluate_settings.Settings(dataset=real.name, data_root=real.parent, generated=made, device="cpu")
    with pytest.raises(ValueError, match="has unit counts"):
        evaluate_work.run(settings)


def test_one_of_run_and_generated_must_be_given() -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_settings.Settings()
    with pytest.raises(ValueError, match="fid_weights needs --generated"):
        evaluate_settings.Settings(run="run", fid_weights=Path("file"))


def test_held_out_images_that_the_generator_was_trained_on_are_left_out(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held, learnt = images_of(real, "test"), images_of(real, "train")
    mixed = tmp_path / "mixed"
    (mixed / "train").parent.mkdir()
    (mixed / "train").symlink_to(real / "train")
    like = Split(real / "test").schema
    write(tmp_path / "both", np.concatenate([held[:100], learnt[:30]]), like)
    (mixed / "test").symlink_to(tmp_path / "both" / "train")
    generated = write(tmp_path / "made", fresh(tmp_path), like)
    found = report(mixed, generated)
    assert found["facts"]["held out"].startswith("100 images of ")
    assert "30 more are left out because they are also training images" in found["facts"]["held out"]
    assert "held out: 100 images of " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"all 120 images of .* are also in .*; give other images\."):
        report(real, generated, split="train")


def test_a_report_says_whether_the_generator_was_trained_on_these_images(real: Path, tmp_path: Path) -> None:
    like, ours = Split(real / "test").schema, Split(real / "train").dataset_id
    told = {
        ours: "the generator was trained on these",
        "another": "the generator was trained on other images (another), perhaps on the held-out ones",
        None: "the training images of the generator are unknown, so it may have been trained on the held-out ones",
    }
    for trained_on, words in told.items():
        origin = {"made_by": "a test"} | ({"trained_on": trained_on} if trained_on else {})
        home = tmp_path / str(trained_on)[:8]
        found = report(real, write(home / "made", fresh(home), like, provenance=origin))
        assert found["facts"]["training images"].endswith(words)
