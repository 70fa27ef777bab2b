"""Published numbers: facts with a source, under the names that models and data sets have here."""

import csv
from collections.abc import Iterator
from importlib import resources

import pytest

NUMBERS = ("auc_no_sub", "auc_cdm", "auc_axion", "auc_macro", "accuracy")
ROWS = list(csv.DictReader(resources.files("jobs.comparing").joinpath("published.csv").read_text().splitlines()))


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
            assert "on the test set" in row["caveat"]
            assert ("raw logits" in row["caveat"]) == bool(row["auc_macro"])


def test_some_numbers_are_those_that_were_published() -> None:
    assert find("cvt_13", "Model_I", "CvT")["auc_axion"] == "0.9714"
    assert find("cvt_13", "Model_I", "CvT")["accuracy"] == "0.9154"
    assert find("equivariant_d8", "other", "D8")["auc_cdm"] == "0.9964"
    assert find("lensvit_pinn", "gsoc", "LensViT-PINN")["auc_macro"] == "0.9879"
    assert (
        find("efficientnet_b2_attention", "gsoc", "EfficientNet-B2 with attention, pretrained")["accuracy"] == "0.9425"
    )
