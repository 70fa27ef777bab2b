"""What settings mean: which samples are learnt from, how often each, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, blobs, write_blobs

from deeplense.data.building import build
from deeplense.data.order import ROUND
from deeplense.data.shards import GROUP, GROUP_UNIT, Samples, Schema
from jobs.data.folders import find_datasets
from jobs.data.order import class_fractions, make_order
from jobs.frame.start import unused_fraction
from jobs.train.learner import Supervised
from jobs.train.samples import learning_parts
from jobs.train.settings import Settings


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two data sets, of 96 and 48 samples, with commas between."""
    folders = [tmp_path_factory.mktemp(name) for name in ("large", "small")]
    for folder, num_samples in zip(folders, (96, 48), strict=True):
        write_blobs(folder, "train", num_samples)
        write_blobs(folder, "val", 12)
    return ",".join(map(str, folders))


SCHEMA_OF_LABELS = Schema(
    split="train",
    num_samples=1,
    shape=(1, 16, 16),
    dtype="float32",
    bands=("r",),
    unit="",
    pixel_scale_arcsec=None,
    classes=CLASSES,
    targets={"column": "pixel"},
)


def made(dataset: str, **settings: Any) -> Settings:
    return Settings(run=Path("run"), dataset=dataset, batch_size=16, **settings)


def write_labels(dataset: Path, split: str, labels: np.ndarray) -> None:
    """A split of images with these labels."""
    schema = replace(SCHEMA_OF_LABELS, split=split, num_samples=len(labels))

    def make(rows: range) -> Samples:
        return replace(blobs(rows, split=split), labels=labels[rows.start : rows.stop])

    list(build(dataset / split, schema, make))


def drawn(settings: Settings, num_steps: int = ROUND // 16) -> np.ndarray:
    """The samples of some steps."""
    order = make_order(settings, learning_parts(settings)[0])
    return np.concatenate([order.batch(step)[0] for step in range(num_steps)])


@pytest.mark.parametrize("more", [{}, {"mix": "1,3"}, {"balance": "survey"}, {"balance": "class"}])
def test_the_class_fractions_of_a_training_are_those_of_the_samples_that_it_draws(
    more: dict[str, Any], datasets: str
) -> None:
    settings = made(datasets, **more)
    train, _ = learning_parts(settings)
    samples = train.split.labels[drawn(settings, num_steps=9 * ROUND // 16)]
    expected = np.bincount(samples, minlength=3) / len(samples)
    assert class_fractions(settings, train) == pytest.approx(expected, abs=0.002)


def test_several_data_sets_are_learnt_from_and_choose_together(datasets: str) -> None:
    settings = made(datasets)
    train, val = learning_parts(settings)
    assert (len(train), len(val)) == (144, 24)
    assert np.bincount(train.split.sources).tolist() == [96, 48]
    assert sorted(drawn(settings, num_steps=9)) == list(range(144))


@pytest.mark.parametrize(
    ("settings", "shares"),
    [({"mix": "1,3"}, [1 / 4, 3 / 4]), ({"balance": "survey"}, [1 / 2, 1 / 2]), ({"balance": "class"}, None)],
)
def test_data_sets_are_mixed_by_weight(datasets: str, settings: dict[str, str], shares: list[float] | None) -> None:
    train, _ = learning_parts(made(datasets))
    counts = np.bincount(train.split.sources[drawn(made(datasets, **settings))]) / ROUND
    np.testing.assert_allclose(counts, shares or [2 / 3, 1 / 3], atol=0.01)


def test_classes_come_equally_often_however_many_there_are_of_each(tmp_path: Path) -> None:
    wanted = np.array([0] * 60 + [1] * 9 + [2] * 3)
    write_labels(tmp_path, "train", wanted)
    settings = made(str(tmp_path), balance="class", val_fraction=0.4)
    train, _ = learning_parts(settings)
    assert np.bincount(train.labels).tolist() == [36, 5, 2]
    assert np.bincount(train.split.labels[drawn(settings)]).tolist() == [1366, 1365, 1365]
    assert class_fractions(settings, train) == pytest.approx([1 / 3] * 3)
    assert class_fractions(made(str(tmp_path), val_fraction=0.4), train) == pytest.approx(np.array([36, 5, 2]) / 43)
    unbalanced = np.bincount(train.split.labels[drawn(made(str(tmp_path), val_fraction=0.4))]) / ROUND
    np.testing.assert_allclose(unbalanced, np.array([36, 5, 2]) / 43, atol=0.01)


def test_both_weights_hold_at_once(datasets: str) -> None:
    settings = made(datasets, mix="3,1", balance="class")
    train, _ = learning_parts(settings)
    samples = drawn(settings)
    table = np.zeros((2, 3))
    np.add.at(table, (train.split.sources[samples], train.split.labels[samples]), 1)
    np.testing.assert_allclose(table / ROUND, np.outer([3 / 4, 1 / 4], [1 / 3] * 3), atol=1e-3)


def test_a_part_of_the_labels_has_its_share_of_each_class_and_is_in_a_larger_part(datasets: str) -> None:
    parts = [learning_parts(made(datasets, label_fraction=share))[0] for share in (0.125, 0.25, 1.0)]
    assert [np.bincount(part.labels).tolist() for part in parts] == [[6] * 3, [12] * 3, [48] * 3]
    assert set(parts[0].indices) < set(parts[1].indices) < set(parts[2].indices)
    other = learning_parts(made(datasets, label_fraction=0.25, seed=1))[0]
    assert set(other.indices) != set(parts[1].indices)


def test_what_chooses_does_not_depend_on_the_part_of_the_labels(dataset: Path) -> None:
    vals = [learning_parts(made(str(dataset), label_fraction=share))[1].indices.tolist() for share in (0.2, 1.0)]
    assert vals[0] == vals[1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mix": "1,x"}, "must be a comma-separated list of numbers above 0"),
        ({"mix": "1,0"}, "must be a comma-separated list of numbers above 0"),
        ({"mix": "1,2", "balance": "survey"}, "leave out --mix"),
        ({"label_fraction": 0.0}, "above 0 and at most 1"),
        ({"shuffle_block": 0}, "shuffle_block=0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made("d", **settings)


def test_what_does_not_fit_the_data_is_refused(datasets: str, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3 weights for 2 data sets"):
        drawn(made(datasets, mix="1,2,3"))
    with pytest.raises(ValueError, match=r"some of the data sets .* have a split val, others do not"):
        learning_parts(made(f"{datasets},{dataset}"))
    with pytest.raises(ValueError, match="no such data set 'nowhere'"):
        find_datasets(f"{dataset}, nowhere", tmp_path)
    with pytest.raises(ValueError, match="leaves no training samples"):
        learning_parts(made(datasets, label_fraction=0.001))


@pytest.mark.parametrize("counts", [(40, 40, 4), (40, 40, 2), (3, 2, 2)])
def test_each_class_has_a_validation_image_however_rare_it_is(counts: tuple[int, ...], tmp_path: Path) -> None:
    write_labels(tmp_path, "train", np.repeat(np.arange(3), counts))
    learner = Supervised.of(made(str(tmp_path)))
    held, learnt = np.bincount(learner.val.labels), np.bincount(learner.train.labels)
    assert held.tolist() == [max(round(0.1 * count), 1) for count in counts]
    assert (held + learnt).tolist() == list(counts)


@pytest.mark.parametrize(
    ("train", "val", "settings", "told"),
    [
        ((40, 40, 1), (), {}, "'middle' has 1 and 0"),
        ((40, 40, 0), (), {}, "'middle' has 0 and 0"),
        ((40, 0, 40), (4, 4, 4), {}, "'right' has 0 and 4"),
        ((40, 40, 40), (4, 4, 0), {}, "'middle' has 40 and 0"),
        ((40, 40, 4), (), {"label_fraction": 0.1}, "'middle' has 0 and 1"),
        ((40, 40, 4), (), {"num_labels": 12}, "'middle' has 1 and 0"),
        ((40, 1, 1), (), {}, "'right' has 1 and 0; 'middle' has 1 and 0"),
    ],
)
def test_a_class_without_training_or_validation_images_is_refused_by_name(
    train: tuple[int, ...], val: tuple[int, ...], settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write_labels(tmp_path, "train", np.repeat(np.arange(3), train))
    if val:
        write_labels(tmp_path, "val", np.repeat(np.arange(3), val))
    with pytest.raises(ValueError, match=f"at least one training image and one validation image.*{told}"):
        Supervised.of(made(str(tmp_path), **settings))


def test_a_number_is_learnt_from_classes_of_any_size(tmp_path: Path) -> None:
    write_labels(tmp_path, "train", np.repeat(np.arange(3), (40, 40, 0)))
    assert len(Supervised.of(made(str(tmp_path), target="column")).val) > 0


@pytest.mark.parametrize("fold", [0, 2])
def test_the_fold_that_is_held_out_does_not_depend_on_the_seed_of_the_training(datasets: str, fold: int) -> None:
    def parts(seed: int) -> tuple[set[int], set[int]]:
        """What is trained on or chooses, and what chooses alone."""
        train, val = learning_parts(made(datasets.partition(",")[0], num_folds=3, fold=fold, seed=seed))
        return {*train.indices.tolist(), *val.indices.tolist()}, set(val.indices.tolist())

    first, *others = [parts(seed) for seed in range(4)]
    assert 60 < len(first[0]) < 70
    assert all(seen == first[0] for seen, _ in others)
    assert any(chosen != first[1] for _, chosen in others), "the control: what chooses does depend on it"


def test_the_number_of_a_group_is_no_target(tmp_path: Path) -> None:
    schema = replace(SCHEMA_OF_LABELS, num_samples=40, targets={"column": "pixel", GROUP: GROUP_UNIT})

    def make(rows: range) -> Samples:
        made = blobs(rows, split="train")
        return replace(made, targets={**made.targets, GROUP: np.arange(rows.start, rows.stop) // 2})

    list(build(tmp_path / "train", schema, make))
    with pytest.raises(ValueError, match=r"has no target 'group'; its targets: column"):
        Supervised.of(made(str(tmp_path), target=GROUP))
    assert len(Supervised.of(made(str(tmp_path), target="column")).val) > 0


def test_a_fraction_that_changes_nothing_is_told(datasets: str, tmp_path: Path) -> None:
    own, asked = datasets.split(",")[0], {"val_fraction": 0.2}
    (told,) = unused_fraction(made(own, **asked), Supervised.of(made(own, **asked)).read)
    assert "/val holds the validation images, so val_fraction=0.2 has no effect" in told
    assert not [*unused_fraction(made(own), Supervised.of(made(own)).read)]
    folds = made(own, **asked, num_folds=3)
    assert not [*unused_fraction(folds, Supervised.of(folds).read)]
