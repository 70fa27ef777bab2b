"""Folders of predictions are read as they were written, and what does not fit is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_blobs
from predicted import write_predictions
from pyarrow import parquet

from deeplense.data.dataset import Split
from jobs.data import predictions as module
from jobs.data.predictions import image_reader, read_predictions

NAMES = [f"image-{k}" for k in range(50)]


def probabilities(count: int = 50, seed: int = 0) -> np.ndarray:
    """Random probabilities of two classes, (count, 2)."""
    first = np.random.default_rng(seed).uniform(size=count)
    return np.stack([first, 1 - first], axis=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Predictions for 50 images in three files."""
    more = {"ra": np.arange(50) / 10, "dec": -np.arange(50) / 10}
    embeddings = np.random.default_rng(1).normal(size=(50, 4))
    return write_predictions(
        tmp_path / "predictions", probabilities(), ids=NAMES, embeddings=embeddings, more=more, num_files=3
    )


def test_scores_and_rows_are_those_that_were_written_over_all_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float16)
    for rows in (4, 1000):
        monkeypatch.setattr(module, "ROWS", rows)
        found = read_predictions(folder)
        np.testing.assert_array_equal(found.scores("other"), probabilities()[:, 1].astype(np.float32))
        numbers = np.array([40, 3, 17, 49, 0, 16])
        some = found.rows(numbers, ["index", "id", "ra", "embedding", "spread_lens"])
        assert sorted(some) == ["embedding", "id", "index", "ra"]
        assert some["index"] == numbers.tolist()
        assert some["id"] == [NAMES[k] for k in numbers]
        assert some["ra"] == [k / 10 for k in numbers]
        np.testing.assert_array_equal(np.array(some["embedding"]), embeddings[numbers])


def test_no_rows_are_no_rows(folder: Path) -> None:
    assert read_predictions(folder).rows(np.array([], dtype=int), ["id"]) == {"id": []}


def document_with(**changes: Any) -> Callable[[Path], None]:
    """A change of predictions.json; None removes a key."""

    def change(folder: Path) -> None:
        path = folder / "predictions.json"
        document = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))

    return change


def second_file(act: Callable[[Path], object]) -> Callable[[Path], None]:
    """A change of the second file of predictions."""

    def change(folder: Path) -> None:
        act(folder / "predictions-00001.parquet")

    return change


def without_checksums(folder: Path) -> None:
    """Leave the checksums out, so that the content itself is what is refused."""
    document = json.loads((folder / "predictions.json").read_text())
    lines = [{name: value for name, value in line.items() if name != "xxh3_128"} for line in document["files"]]
    document_with(files=lines)(folder)


def another_content(folder: Path) -> None:
    """A file that is no Parquet, without checksums."""
    without_checksums(folder)
    (folder / "predictions-00001.parquet").write_bytes(b"text")


def swapped(folder: Path) -> None:
    """Another number of rows in a file, without checksums."""
    without_checksums(folder)
    (folder / "predictions-00002.parquet").replace(folder / "predictions-00000.parquet")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "predictions.json").unlink(), "not a finished folder of predictions"),
        (lambda folder: (folder / "predictions.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "predictions.json").write_text("[]"), "has the format None"),
        (document_with(format="deeplense-predictions/9"), "has the format 'deeplense-predictions/9'"),
        (document_with(classes=None), "does not have a list of different classes"),
        (document_with(classes=["lens", "lens"]), "does not have a list of different classes"),
        (document_with(num_images=49), "says 49 images, but its files have 50"),
        (document_with(num_images=None), "does not have the number of images"),
        (document_with(files={}), "does not list its files"),
        (document_with(files=[{"file": 3}]), "does not list its files"),
        (document_with(files=[{"file": "../x.parquet", "num_images": 50}]), "is not a plain file name"),
        (second_file(Path.unlink), "there is no such file"),
        (second_file(lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0")), "is damaged"),
        (another_content, "is not a Parquet file"),
        (swapped, "has 16 images instead of 17"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(spoil: Callable[[Path], None], problem: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match="predictions") as refused:
        read_predictions(folder)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_column_that_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no column probability_quasar; it has id"):
        read_predictions(folder).scores("quasar")


def test_images_are_those_of_the_data_set_by_their_number(tmp_path: Path) -> None:
    write_blobs(tmp_path / "data", "test", 50)
    split = Split(tmp_path / "data" / "test")
    folder = write_predictions(
        tmp_path / "predictions",
        probabilities(),
        ids=split.ids,
        dataset=tmp_path / "data",
        dataset_id=split.dataset_id,
    )
    reader = image_reader(read_predictions(folder))
    np.testing.assert_array_equal(reader.read([7, 3]), split.images(np.array([7, 3])))
    assert (reader.bands, reader.pixel_scale_arcsec, reader.is_stretched) == (("r",), 0.1, False)
    (tmp_path / "data").rename(tmp_path / "moved")
    found = read_predictions(folder)
    with pytest.raises(ValueError, match=r"are not at .*data; give --dataset"):
        image_reader(found)
    assert image_reader(found, tmp_path / "moved").read([49]).shape == (1, 1, 16, 16)
    write_blobs(tmp_path / "other", "test", 51)
    with pytest.raises(ValueError, match="has other images"):
        image_reader(found, tmp_path / "other")


def test_predictions_that_name_no_data_set_ask_for_one(folder: Path) -> None:
    with pytest.raises(ValueError, match="does not say where its images are; give --dataset"):
        image_reader(read_predictions(folder))


def test_images_are_ranked_where_probabilities_are_rounded_to_one(tmp_path: Path) -> None:
    margins = np.array([20.0, 40.0, np.nan, 30.0, -5.0])
    logits = np.stack([margins, np.zeros(5)], axis=1)
    given = np.where(margins > 10, 1.0, 0.01)
    found = write_predictions(tmp_path / "p", np.stack([given, 1 - given], axis=1), ids=list("abcde"))
    path = found / "predictions-00000.parquet"
    table = parquet.read_table(path)
    for k, name in enumerate(("lens", "other")):
        place = table.schema.get_field_index(f"logit_{name}")
        table = table.set_column(place, f"logit_{name}", [logits[:, k].astype(np.float32)])
    parquet.write_table(table, path)
    without_checksums(found)
    ranking = read_predictions(found).ranking("lens")
    assert ranking.tolist()[:2] == [20, 40]
    assert np.isnan(ranking[2])
    assert np.argsort(-ranking).tolist()[:4] == [1, 3, 0, 4]
