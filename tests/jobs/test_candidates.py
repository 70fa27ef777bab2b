"""The page of candidates as files: which images are on it, in which order, and what is refused."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predicted import write_predictions
from sklearn.metrics.pairwise import cosine_similarity

from deeplense.data.building import build
from deeplense.data.dataset import Split
from deeplense.data.shards import Samples, Schema
from launch.__main__ import main

COUNT, SIZE = 40, 12


def write_images(dataset: Path, *, bands: tuple[str, ...] = ("g", "r", "i"), dtype: str = "float32") -> Split:
    """A split `test` of images that say their number in the pixel in the middle of each band."""
    names = [f"image-{k:02d}" for k in range(COUNT)]
    images = np.random.default_rng(0).normal(size=(COUNT, len(bands), SIZE, SIZE))
    images[:, :, SIZE // 2, SIZE // 2] = 50 + np.arange(COUNT)[:, None]
    if dtype == "uint8":
        images = np.clip(images + 20, 0, 255)
    schema = Schema(
        split="test",
        num_samples=COUNT,
        shape=(len(bands), SIZE, SIZE),
        dtype=dtype,
        bands=bands,
        unit="",
        pixel_scale_arcsec=0.25,
        classes=(),
    )

    def make(rows: range) -> Samples:
        chosen = slice(rows.start, rows.stop)
        none = np.full(len(rows), -1)
        return Samples(images[chosen].astype(dtype), none, {}, names[chosen], np.array(rows))

    list(build(dataset / "test", schema, make))
    return Split(dataset / "test", labelled=False)


def scores() -> np.ndarray:
    """A score of each image; some are equal."""
    return np.round(np.random.default_rng(1).uniform(size=COUNT), 1)


def predict(folder: Path, split: Split, **more: Any) -> Path:
    """Predictions for these images."""
    found = more.pop("probabilities", np.stack([scores(), 1 - scores()], axis=1))
    values = {"ids": split.ids, "dataset": split.folders[0].parent, "dataset_id": split.dataset_id, **more}
    return write_predictions(folder, found, **values)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Images of three bands."""
    return write_images(tmp_path_factory.mktemp("candidates") / "data")


def content_of(page: Path) -> dict[str, Any]:
    """What the page says, as the browser reads it."""
    text = (page / "index.html").read_text()
    (found,) = re.findall(r'<script id="content" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found)


def codes_of(page: Path) -> np.ndarray:
    """The bytes of the pixels of all images, (N, B, H, W)."""
    stamps = content_of(page)["stamps"]
    parts = [
        base64.b64decode(re.findall(r'"([^"]+)"', path.read_text())[0]) for path in sorted(page.glob("stamps-*.js"))
    ]
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, stamps["bands"], stamps["height"], stamps["width"])


def refusal(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command is refused."""
    assert main(["candidates", *words]) == 2
    told = capfd.readouterr().err
    assert len(told.splitlines()) == 1, told
    return told


def test_the_page_has_the_highest_scores_in_order_with_their_own_pixels(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplense.candidates.page.CHUNK_BYTES", 5 * 3 * SIZE * SIZE)
    folder = predict(tmp_path / "predictions", split, num_files=3)
    assert main(["candidates", str(folder), f"--output={tmp_path / 'page'}", "--top=17"]) == 0
    content = content_of(tmp_path / "page")
    right = sorted(range(COUNT), key=lambda k: (-scores()[k], k))[:17]
    assert content["candidates"]["id"] == [split.ids[k] for k in right]
    np.testing.assert_allclose(content["candidates"]["score"], scores()[right])
    assert (content["bands"], content["pixel_scale_arcsec"]) == (["i", "r", "g"], 0.25)
    stamps, codes = content["stamps"], codes_of(tmp_path / "page")
    assert (stamps["chunk"], len(list((tmp_path / "page").glob("stamps-*.js"))), len(codes)) == (5, 4, 17)
    for place, number in enumerate(right):
        low, high = stamps["low"][place][0], stamps["high"][place][0]
        value = low + (codes[place, 0, SIZE // 2, SIZE // 2] - 1) * (high - low) / 254
        value = stamps["sky"][place][0] + stamps["noise"][place][0] * np.sinh(value)
        assert value == pytest.approx(50 + number, rel=0.02)


def test_the_same_command_gives_the_same_bytes_and_the_key_stays_with_other_scores(
    split: Split, tmp_path: Path
) -> None:
    one = predict(tmp_path / "one", split)
    other = predict(tmp_path / "other", split, probabilities=np.stack([1 - scores(), scores()], axis=1))
    for name, folder in (("a", one), ("b", one), ("c", other)):
        assert main(["candidates", str(folder), f"--output={tmp_path / name}"]) == 0
    first, again = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == again
    assert content_of(tmp_path / "a")["key"] == content_of(tmp_path / "c")["key"]
    assert main(["candidates", str(one), f"--output={tmp_path / 'd'}", "--class_name=other"]) == 0
    assert content_of(tmp_path / "a")["key"] != content_of(tmp_path / "d")["key"]


def test_similar_images_are_those_of_scikit_learn_by_their_place_on_the_page(split: Split, tmp_path: Path) -> None:
    embeddings = np.random.default_rng(2).normal(size=(COUNT, 6))
    folder = predict(tmp_path / "predictions", split, embeddings=embeddings)
    assert main(["candidates", str(folder), f"--output={tmp_path / 'page'}", "--top=20", "--similar=3"]) == 0
    content = content_of(tmp_path / "page")
    shown = [split.ids.index(name) for name in content["candidates"]["id"]]
    cosines = cosine_similarity(embeddings.astype(np.float16).astype(np.float64)[shown])
    np.fill_diagonal(cosines, -2)
    for place, found in enumerate(content["similar"]):
        assert [number for number, _ in found] == np.argsort(-cosines[place])[:3].tolist()


def test_without_embeddings_there_are_no_similar_images_and_the_user_is_told(
    split: Split, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = predict(tmp_path / "predictions", split)
    assert main(["candidates", str(folder), f"--output={tmp_path / 'page'}"]) == 0
    assert "no embeddings" in capfd.readouterr().out
    assert content_of(tmp_path / "page")["similar"] == []


def test_images_without_a_score_are_left_out(split: Split, tmp_path: Path) -> None:
    found = np.stack([scores(), 1 - scores()], axis=1)
    found[5:] = np.nan
    folder = predict(tmp_path / "predictions", split, probabilities=found)
    assert main(["candidates", str(folder), f"--output={tmp_path / 'page'}"]) == 0
    assert sorted(content_of(tmp_path / "page")["candidates"]["id"]) == split.ids[:5]


def test_of_images_of_one_name_the_best_is_kept_and_the_user_is_told(
    split: Split, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [*split.ids]
    ids[7] = ids[3]
    monkeypatch.setattr(Split, "ids", property(lambda self: ids))
    folder = predict(tmp_path / "predictions", split, ids=ids)
    assert main(["candidates", str(folder), f"--output={tmp_path / 'page'}"]) == 0
    told = capfd.readouterr().out
    assert f"left out, because an image with a higher score has the same name: 1 ({ids[3]})" in told
    found = content_of(tmp_path / "page")["candidates"]
    assert found["score"][found["id"].index(ids[3])] == pytest.approx(max(scores()[3], scores()[7]))
    assert len(set(found["id"])) == len(found["id"]) == COUNT - 1


@pytest.mark.parametrize(
    ("bands", "dtype", "words", "shown", "is_linear"),
    [
        (("r",), "float32", [], ["r", "r", "r"], False),
        (("g", "r", "i", "z"), "float32", ["--rgb=z,i,g"], ["z", "i", "g"], False),
        (("g", "r", "i"), "uint8", [], ["i", "r", "g"], True),
        (("g", "r", "i"), "float32", ["--rgb=r", "--crop=8"], ["r", "r", "r"], False),
    ],
)
def test_bands_types_and_the_part_that_is_shown(
    bands: tuple[str, ...], dtype: str, words: list[str], shown: list[str], is_linear: bool, tmp_path: Path
) -> None:
    folder = predict(tmp_path / "predictions", write_images(tmp_path / "data", bands=bands, dtype=dtype))
    assert main(["candidates", str(folder), f"--output={tmp_path / 'page'}", "--top=3", *words]) == 0
    content = content_of(tmp_path / "page")
    side = 8 if "--crop=8" in words else SIZE
    assert content["bands"] == shown
    assert content["stamps"]["linear"] == is_linear
    assert codes_of(tmp_path / "page").shape == (3, len(set(shown)), side, side)


@pytest.mark.parametrize(
    ("classes", "chosen"),
    [(("Lenses", "other"), "Lenses"), (("no_lens", "lens"), "lens"), (("ring", "lensed", "arc"), "lensed")],
)
def test_the_class_of_lenses_is_found_by_its_name(
    classes: tuple[str, ...], chosen: str, split: Split, tmp_path: Path
) -> None:
    found = np.random.default_rng(3).dirichlet(np.ones(len(classes)), size=COUNT)
    folder = predict(tmp_path / "predictions", split, probabilities=found, classes=classes)
    assert main(["candidates", str(folder), f"--output={tmp_path / 'page'}"]) == 0
    right = np.sort(found[:, classes.index(chosen)])[::-1]
    np.testing.assert_allclose(content_of(tmp_path / "page")["candidates"]["score"], right, rtol=1e-5)


@pytest.mark.parametrize(
    ("classes", "words", "problem"),
    [
        (
            ("galaxy", "quasar"),
            [],
            "it is unclear which class the score is about; give --class_name, one of galaxy, quasar",
        ),
        (
            ("lens", "other"),
            ["--class_name=lense"],
            "there is no class 'lense'; --class_name must be one of lens, other",
        ),
        (("lens", "other"), ["--rgb=y,r,g"], "there is no band 'y'; choose from g, r, i"),
        (("lens", "other"), ["--dataset=nowhere"], "are not at nowhere; give --dataset"),
    ],
)
def test_what_is_unclear_is_asked_for_and_leaves_nothing(
    classes: tuple[str, ...],
    words: list[str],
    problem: str,
    split: Split,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = predict(tmp_path / "predictions", split, classes=classes)
    assert problem in refusal(capfd, str(folder), f"--output={tmp_path / 'page'}", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions"]


def test_predictions_that_call_the_images_otherwise_are_refused(
    split: Split, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = predict(tmp_path / "predictions", split, ids=[*split.ids[1:], split.ids[0]])
    assert "but the predictions call it image-" in refusal(capfd, str(folder), f"--output={tmp_path / 'page'}")


def test_what_is_no_page_is_never_replaced_and_a_page_is(
    split: Split, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = predict(tmp_path / "predictions", split)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("years of work")
    (tmp_path / "file").write_text("text")
    for name, problem in (("mine", "is not empty and not a page of candidates"), ("file", "is a file")):
        assert problem in refusal(capfd, str(folder), f"--output={tmp_path / name}")
    assert (tmp_path / "mine" / "index.html").read_text() == "years of work"
    for top in (40, 5):
        assert main(["candidates", str(folder), f"--output={tmp_path / 'page'}", f"--top={top}"]) == 0
        assert len(content_of(tmp_path / "page")["candidates"]["id"]) == top


@pytest.mark.parametrize("words", [["--top=0"], ["--top=-3"], ["--crop=4"], ["--similar=-1"], ["--rgb=r,g"]])
def test_a_setting_out_of_range_is_refused_by_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["candidates", "predictions", "--output=page", *words])
    assert words[0].partition("=")[0].removeprefix("--") in capsys.readouterr().err
