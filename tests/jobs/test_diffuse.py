"""Diffusion: it learns from images, tells of copies, and says what it is not told."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, rank_variables
from left import last, logged

from jobs.diffuse import work as diffuse_work
from jobs.diffuse.images import conditions_of
from jobs.diffuse.learner import Diffusion
from jobs.diffuse.settings import Settings
from jobs.evaluate import settings as evaluate_settings
from jobs.evaluate import work as evaluate_work

SMALL = {
    "model_name": "unet_small",
    "batch_size": 16,
    "epochs": 1,
    "num_times": 50,
    "log_interval": 1,
    "num_sampled": 8,
    "ema_decay": 0.5,
    "device": "cpu",
}


def settings_of(dataset: Path, run: Path, **changes: Any) -> Settings:
    """A small training."""
    return Settings(run=run, dataset=str(dataset), **(SMALL | changes))


def test_it_learns_shows_what_it_makes_and_looks_for_copies(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert diffuse_work.run(settings_of(dataset, run, epochs=8, lr=2e-3, evaluate_epochs=4)) == 0
    losses = logged(run, "val/loss")
    assert losses[-1] < losses[0] < logged(run, "train/loss")[0]
    assert [path.name for path in sorted((run / "samples").iterdir())] == ["step_00000022.png", "step_00000043.png"]
    assert all(0 < value < 2 for value in logged(run, "val/copies/median"))
    assert last(run)["progress"]["best"] == pytest.approx(-min(losses))


@pytest.mark.parametrize("changes", [{}, {"conditions": "column,class", "predict": "eps", "flips": 1}])
def test_two_processes_learn_what_one_learns(changes: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    smooth = SMALL | {"optimizer": "sgd", "lr": 0.02, "clip_grad": 1e9} | changes
    assert diffuse_work.run(settings_of(dataset, tmp_path / "one", **smooth)) == 0
    words = ["diffuse", f"--dataset={dataset}", f"--run={tmp_path / 'two'}", *(f"--{k}={v}" for k, v in smooth.items())]
    ranks = [Command(words, tmp_path / "two.log", variables) for variables in rank_variables(2)]
    assert {rank.wait() for rank in ranks} == {0}, ranks[0].log.read_text()
    one, two = (last(tmp_path / name)["ema"] for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    assert logged(tmp_path / "two", "val/loss") == pytest.approx(logged(tmp_path / "one", "val/loss"), abs=1e-5)
    assert logged(tmp_path / "two", "val/copies/median") == pytest.approx(
        logged(tmp_path / "one", "val/copies/median"), abs=1e-3
    )


def test_what_it_is_told_is_the_class_first_and_what_is_unknown_is_not_said(dataset: Path, tmp_path: Path) -> None:
    settings = settings_of(dataset, tmp_path / "run", conditions="column, class")
    assert settings.condition_names == ["class", "column"]
    learner = Diffusion.of(settings)
    said = conditions_of(settings, learner.train)
    assert said is not None
    labels, columns = learner.train.split.labels, learner.train.split.column("target/column")
    assert torch.equal(said[:, 0], torch.from_numpy(labels).float())
    assert np.array_equal(said[:, 1].isnan(), labels == 1)
    np.testing.assert_allclose(said[labels != 1, 1], columns[labels != 1], rtol=1e-6)
    network = learner.make_network(load_pretrained=True)
    assert network.conditions.num_conditions == 2  # type: ignore[union-attr]


def test_one_image_may_be_made_of_what_it_is_told(dataset: Path, tmp_path: Path) -> None:
    assert diffuse_work.run(settings_of(dataset, tmp_path / "run", epochs=0.4, num_sampled=1, conditions="class")) == 0
    assert len(logged(tmp_path / "run", "val/copies/median")) == 1


def test_an_image_has_one_loss_whatever_batch_it_is_looked_at_in(dataset: Path, tmp_path: Path) -> None:
    learner = Diffusion.of(settings_of(dataset, tmp_path / "run"))
    network = learner.make_network(load_pretrained=True).eval()
    torch.nn.init.normal_(network.network.last.weight, std=0.1)  # type: ignore[union-attr]
    trainee = learner.make_trainee(network, {"mean": [0.1], "std": [1.2]})
    rows = learner.val.indices[:4]
    whole, reversed_ = (
        trainee.losses(network, learner.val.split.batch(chosen, target=None, random=np.zeros((4, 1)))).detach()
        for chosen in (rows, rows[::-1].copy())
    )
    torch.testing.assert_close(whole, reversed_.flip(0))
    assert whole.std(dim=1).min() > 1e-3


def test_a_classifier_is_not_looked_for_in_it(dataset: Path, tmp_path: Path) -> None:
    assert diffuse_work.run(settings_of(dataset, tmp_path / "run", epochs=0.4, num_sampled=0)) == 0
    with pytest.raises(ValueError, match="has no classifier; `deeplense sample --run"):
        evaluate_work.run(evaluate_settings.Settings(run=str(tmp_path / "run")))


WRONG = {
    "num_times": (1, "num_times=1 must be 2 or more"),
    "drop_share": (1.0, "drop_share=1.0 must be at least 0 and below 1"),
    "min_snr_gamma": (0.0, "min_snr_gamma=0.0 must be above 0"),
    "conditions": ("class,class", "contains a duplicate"),
    "fsdp": (1, "fsdp=1 does not support the moving average"),
    "num_sampled": (-1, "num_sampled=-1 must be 0 or more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_make_no_sense_are_refused(name: str, dataset: Path, tmp_path: Path) -> None:
    value, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        settings_of(dataset, tmp_path / "run", **{name: value})


def test_a_condition_that_the_data_set_does_not_know_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no condition 'mass'; choose from \['class', 'colu"):
        diffuse_work.run(settings_of(dataset, tmp_path / "run", conditions="mass"))


def test_told_to_it_ends_where_it_makes_copies(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.diffuse import learner

    def copies(self: learner.DiffusionTrainee, *_: Any) -> np.ndarray:
        train = self.learner.train
        return train.split.images(train.indices[:8])

    monkeypatch.setattr(learner.DiffusionTrainee, "samples", copies)
    settings = settings_of(dataset, tmp_path / "run", stop_on_copies=1)
    with pytest.raises(ValueError, match="closer to training images than new images"):
        diffuse_work.run(settings)
    assert diffuse_work.run(replace(settings, stop_on_copies=0)) == 0
    assert all(math.isfinite(value) for value in logged(tmp_path / "run", "val/copies/median"))
    assert logged(tmp_path / "run", "val/copies/median")[-1] < 0.1
