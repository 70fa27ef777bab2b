"""Published numbers: facts with a source, under the names that models and data sets have here."""

import csv
from collections.abc import Iterator
from importlib import resources

import published_sources
import pytest

from jobs.benchmark_labels import table

NUMBERS = ("auc_no_sub", "auc_cdm", "auc_axion", "auc_macro", "accuracy")
AREAS = NUMBERS[:3]
ROWS = list(csv.DictReader(resources.files("jobs.benchmark_models").joinpath("published.csv").read_text().splitlines()))


def find(model: str, kind: str, variant: str) -> dict[str, str]:
    """The one row of this kind."""
    (row,) = [row for row in ROWS if (row["model"], row["dataset"], row["variant"]) == (model, kind, variant)]
    return row


def values(row: dict[str, str]) -> Iterator[float]:
    """The shares among the numbers of a row."""
    return (float(row[name]) for name in NUMBERS if row[name])


def test_each_row_has_a_source_a_known_kind_of_images_and_a_number() -> None:
    for row in ROWS:
        assert row["source"]
        assert row["dataset"] in ("Model_I", "Model_II", "Model_III", "gsoc", "other")
        assert list(values(row)) or float(row["mae"]) > 0
        assert all(0.3 < value <= 1 for value in values(row))
        assert not any(char.isupper() for char in row["model"])


def test_the_mean_of_the_classes_is_their_mean() -> None:
    for row in ROWS:
        if all(row[name] for name in NUMBERS[:4]):
            mean = sum(float(row[name]) for name in NUMBERS[:3]) / 3
            assert float(row["auc_macro"]) == pytest.approx(mean, abs=1e-4)


def test_what_is_wrong_is_said_where_it_is_known() -> None:
    for row in ROWS:
        assert ("without noise" in row["caveat"]) == (row["dataset"] in ("Model_II", "Model_III"))
        if "Sachdev" in row["source"]:
            assert ("on the test set" in row["caveat"]) == bool(row["accuracy"])
            assert ("raw logits" in row["caveat"]) == bool(row["auc_macro"])


def whose(row: dict[str, str]) -> str:
    """By whom a row is."""
    return row["source"].partition(", ML4SCI/DeepLense")[0]


def told(row: dict[str, str]) -> dict[str, float]:
    """All numbers of a row, but the mean that follows from those of the classes."""
    return {
        name: float(row[name])
        for name in (*NUMBERS, "mae")
        if row[name] and not (name == "auc_macro" and row["auc_axion"])
    }


def test_every_number_is_that_of_its_source_and_none_is_left_out() -> None:
    ours = {(whose(row), row["variant"], row["dataset"], row["target"]): told(row) for row in ROWS}
    assert len(ours) == len(ROWS)
    sources = {
        key: {name: value for name, value in numbers.items() if not (name == "auc_macro" and "auc_axion" in numbers)}
        for key, numbers in published_sources.published().items()
    }
    assert ours.keys() == sources.keys()
    for key, numbers in sources.items():
        assert ours[key] == pytest.approx(numbers, abs=1e-9), key


def test_every_number_about_few_labels_is_that_of_its_source_and_none_is_left_out() -> None:
    rows = table.all_published()
    ours = {}
    for row in rows:
        older = row["source"].startswith("S. Iyer, DeepLense_SSL")
        numbers = {name: float(row[name]) for name in ("accuracy", "auc") if row[name]}
        ours[row["method"], row["network"], int(row["num_labels"]), older] = numbers
    assert len(ours) == len(rows)
    sources = published_sources.published_labels()
    assert ours.keys() == sources.keys()
    for key, numbers in sources.items():
        assert ours[key] == pytest.approx(numbers, abs=1e-9), key


def test_a_number_stands_beside_the_network_that_it_is_of() -> None:
    for row in ROWS:
        for written in ("EfficientNet-B1", "EfficientNet-B2", "ResNet-18", "ResNet-50", "ResNet-34"):
            if row["variant"].startswith(written):
                assert row["model"].startswith(written.lower().replace("-b", "_b").replace("-", "")), row


def test_what_was_published_of_generated_images_is_that_of_its_sources() -> None:
    text = resources.files("jobs.evaluate").joinpath("published_images.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert {row["measure"]: float(row["value"]) for row in rows} == {
        "FID": pytest.approx(6.011121595851975, abs=5e-4),
        "Frechet distance in features of a ResNet-18 of its own": 17.18,
    }
    assert "3,040" in rows[0]["images"]
    assert "10,000" in rows[0]["images"]
    assert rows[1]["images"].endswith("real against real 1.07")
