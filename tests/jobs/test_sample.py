"""Images of a diffusion model: each a function of weights, seed and number alone, whoever makes it and when."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command

from deeplense.data.dataset import Split
from deeplense.data.scaling import Scaling
from jobs import command_line
from jobs.diffuse import work as diffuse_work
from jobs.diffuse.settings import Settings as DiffuseSettings
from jobs.runs.stored import CONFIG
from jobs.sample import generator
from jobs.sample import settings as sample_settings
from jobs.sample import work as sample_work
from jobs.sample.generator import make_generator
from jobs.settings import dump
from jobs.train import work as train_work

SETTINGS = {"num_images": 150, "num_steps": 3, "batch_size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training that is told the class."""
    folder = tmp_path_factory.mktemp("diffusion") / "run"
    words = [f"--dataset={dataset}", f"--run={folder}", "--model_name=unet_small", "--batch_size=16", "--epochs=2"]
    words += ["--num_times=50", "--num_sampled=0", "--conditions=class,column", "--device=cpu", "--lr=2e-3"]
    assert diffuse_work.run(command_line.parse("diffuse", words)) == 0
    return folder


def settings_of(run: Path, output: Path, **changes: Any) -> sample_settings.Settings:
    """A small sampling."""
    return sample_settings.Settings(run=str(run), output=output, **(SETTINGS | changes))


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 images in three shards, made at once."""
    folder = tmp_path_factory.mktemp("made")
    assert sample_work.run(settings_of(run, folder)) == 0
    return folder


def images(folder: Path, split: str = "train") -> np.ndarray:
    """All images of a split."""
    opened = Split(folder / split, labelled=False)
    return opened.images(np.arange(len(opened)))


def test_parts_made_by_processes_of_their_own_have_the_bytes_of_one(run: Path, made: Path, tmp_path: Path) -> None:
    words = ["sample", f"--run={run}", f"--output={tmp_path / 'parts'}", *(f"--{k}={v}" for k, v in SETTINGS.items())]
    parts = [Command([*words, f"--part={k}/4"], tmp_path / f"{k}.log") for k in (1, 2, 3, 4)]
    assert {part.wait() for part in parts} == {0}, parts[0].log.read_text()
    assert files(tmp_path / "parts") == files(made)


def test_killed_and_started_again_it_has_the_bytes_of_one_left_in_peace(
    run: Path, made: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    import signal

    words = ["sample", f"--run={run}", f"--output={tmp_path / 'out'}", *(f"--{k}={v}" for k, v in SETTINGS.items())]
    first = start(*words)
    while first.process.is_alive() and not list((tmp_path / "out").glob("train/shard-*.h5")):
        first.process.join(0.02)
    first.send(signal.SIGKILL)
    first.wait()
    assert 0 < len(list((tmp_path / "out").glob("train/shard-*.h5"))) < 3
    assert start(*words).wait() == 0
    assert files(tmp_path / "out") == files(made)


def test_an_image_is_what_it_is_however_many_are_made(run: Path, made: Path, tmp_path: Path) -> None:
    sample_work.run(settings_of(run, tmp_path / "fewer", num_images=40))
    assert np.array_equal(images(tmp_path / "fewer")[:32], images(made)[:32])
    sample_work.run(settings_of(run, tmp_path / "other", num_images=40, seed=1))
    assert np.abs(images(tmp_path / "other") - images(made)[:40]).mean() > 0.1


def test_what_they_were_told_is_kept_and_a_classifier_can_learn_from_them(
    run: Path, made: Path, dataset: Path, tmp_path: Path
) -> None:
    split, real = Split(made / "train"), Split(dataset / "train")
    assert split.schema.classes == real.schema.classes
    assert set(np.unique(split.labels)) == {0, 1, 2}
    known = np.isfinite(split.column("target/column"))
    assert np.array_equal(known, split.labels != 1)
    provenance = split.schema.provenance
    assert provenance["trained_on"] == real.dataset_id
    assert (provenance["made_by"], provenance["step"], provenance["run"]) == ("deeplense sample", 10, "run")
    words = [f"--dataset={made},{dataset}", f"--run={tmp_path / 'run'}", "--model_name=simple_cnn", "--epochs=1"]
    assert train_work.run(command_line.parse("train", [*words, "--device=cpu"])) == 0


def test_all_may_be_told_the_same(run: Path, tmp_path: Path) -> None:
    told = {"conditions": "class=middle, column=7.5", "guidance": 2.0, "num_images": 5}
    sample_work.run(settings_of(run, tmp_path / "told", **told))
    split = Split(tmp_path / "told" / "train")
    assert split.labels.tolist() == [2] * 5
    np.testing.assert_allclose(split.column("target/column"), 7.5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_sampler_makes_images_in_the_unit_of_the_data(
    sampler: str, precision: str, run: Path, dataset: Path, tmp_path: Path
) -> None:
    sample_work.run(
        settings_of(run, tmp_path / "out", sampler=sampler, precision=precision, num_images=16, num_steps=6)
    )
    real = images(dataset)
    assert 0.3 * real.std() < images(tmp_path / "out").std() < 3 * real.std()


def test_one_image_at_a_time_is_an_image_too(run: Path, made: Path, tmp_path: Path) -> None:
    sample_work.run(settings_of(run, tmp_path / "out", num_images=3, batch_size=1))
    np.testing.assert_allclose(images(tmp_path / "out"), images(made)[:3], atol=1e-4)


@pytest.mark.slow
def test_a_compiled_network_makes_the_same_images(run: Path, made: Path, tmp_path: Path) -> None:
    sample_work.run(settings_of(run, tmp_path / "out", num_images=4, batch_size=4, num_workers=1, compile=1))
    np.testing.assert_allclose(images(tmp_path / "out"), images(made)[:4], atol=1e-3)


def test_the_best_weights_may_be_taken(run: Path, tmp_path: Path) -> None:
    last, best = (make_generator(settings_of(run, tmp_path, weights=which)) for which in ("last", "best"))
    assert set(last.facts) == set(best.facts) == {"run", "step", "weights", "trained_on"}
    assert isinstance(best.scaling, Scaling)
    assert torch.isfinite(next(best.denoiser.parameters())).all()


WRONG = {
    "class=up": "no such class 'up'; choose from left, right, middle",
    "mass=1": r"unknown condition 'mass'; the model was trained with \['class', 'column'\]",
    "column=x": "column='x' must be a number",
}


@pytest.mark.parametrize("conditions", WRONG)
def test_what_the_model_was_never_told_is_refused_and_leaves_nothing(
    conditions: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=WRONG[conditions]):
        sample_work.run(settings_of(run, tmp_path / "out", conditions=conditions))
    assert not (tmp_path / "out").exists()


def test_guidance_is_refused_where_the_model_was_told_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    unconditional = DiffuseSettings(run=tmp_path / "run", dataset=str(dataset))
    opened = SimpleNamespace(settings=unconditional, files={})
    monkeypatch.setattr(generator, "open_run_for", lambda *given, **more: opened)
    (tmp_path / "run" / CONFIG).write_text(dump(unconditional))
    with pytest.raises(ValueError, match=r"--guidance needs a model trained with --conditions, but .*leave it out"):
        sample_work.run(settings_of(tmp_path / "run", tmp_path / "out", guidance=2.0))
    assert not (tmp_path / "out").exists()


def test_runs_that_make_no_images_are_refused(dataset: Path, tmp_path: Path) -> None:
    words = [f"--dataset={dataset}", f"--run={tmp_path / 'run'}", "--model_name=simple_cnn", "--epochs=0.2"]
    assert train_work.run(command_line.parse("train", [*words, "--device=cpu"])) == 0
    with pytest.raises(ValueError, match="not of `deeplense diffuse`"):
        sample_work.run(settings_of(tmp_path / "run", tmp_path / "out"))
