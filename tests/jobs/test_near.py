"""`deeplense verify --near`: what is said of near copies, what is written, and with which exit code."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deeplense.data.building import build
from deeplense.data.shards import Samples, Schema
from jobs import command_line
from jobs.verify import settings as verify_settings
from jobs.verify import work as verify_work

Change = Callable[[np.ndarray], np.ndarray]
Told = Callable[..., tuple[int, str]]


def split(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """A split of these images (n, 1, S, S)."""
    schema = Schema(
        split=folder.name,
        num_samples=len(images),
        shape=images.shape[1:],
        dtype="float32",
        bands=("r",),
        unit="",
        pixel_scale_arcsec=None,
        classes=("lens", "other"),
    )

    def make(rows: range) -> Samples:
        some = slice(rows.start, rows.stop)
        ids = [f"{folder.name}{k}" for k in rows]
        return Samples(images[some], labels[some], {}, ids, np.arange(rows.start, rows.stop))

    list(build(folder, schema, make))


def stamps(number: int, *, seed: int, size: int = 32) -> np.ndarray:
    """Blobs in noise, (n, 1, S, S)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    centre, width = generator.normal(0, 2, size=(number, 2, 1, 1)), generator.uniform(2, 5, size=(number, 1, 1))
    blobs = np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / (2 * width**2))
    return (20 * blobs + generator.normal(size=blobs.shape))[:, None].astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """30 images to train on, 20 to test on; none is a copy."""
    split(tmp_path / "data" / "train", stamps(30, seed=1), np.arange(30) % 2)
    split(tmp_path / "data" / "test", stamps(20, seed=2), np.arange(20) % 2)
    return tmp_path / "data"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Exit code and output of verifying with these words of a command line."""

    def tell(*words: str) -> tuple[int, str]:
        code = verify_work.run(command_line.parse("verify", [*words, "--num_workers=1"]))
        return code, capsys.readouterr().out

    return tell


def add(data: Path, name: str, images: np.ndarray, label: int) -> None:
    """A split of some of these images, beside the others."""
    split(data / name, np.concatenate([images, stamps(5, seed=9)]), np.full(len(images) + 5, label))


def test_a_data_set_without_near_copies_is_sound(data: Path, told: Told) -> None:
    code, said = told(str(data), "--near")
    assert code == 0
    assert said.endswith(f"{data}: no near copies among 50 images\n")


def test_copies_across_splits_are_named_and_fail(data: Path, told: Told, tmp_path: Path) -> None:
    add(data, "val", stamps(30, seed=1)[[4, 6]].swapaxes(-2, -1) * 1.1, 0)
    code, said = told("--near", str(data), "--pairs", str(tmp_path / "out" / "pairs.csv"))
    assert code == 1
    assert f"{data / 'val'}: val0 is a near copy of {data / 'train'}: train4 (mirrored along" in said
    assert "times 1.1; correlation 1.00000); a leak between splits" in said
    assert "2 pairs of near copies in 2 groups, 2 across splits, 0 with different labels; all are written to" in said
    rows = list(csv.DictReader((tmp_path / "out" / "pairs.csv").open()))
    assert [(row["id_a"], row["id_b"], row["group"]) for row in rows] == [
        ("train4", "val0", "1"),
        ("train6", "val1", "2"),
    ]
    assert {row["label_a"] for row in rows} == {"lens"}


def test_copies_within_a_split_are_told_and_do_not_fail_but_for_their_labels(data: Path, told: Told) -> None:
    images = stamps(12, seed=7)
    images[8], images[9] = images[2] + 5, images[2, :, ::-1]
    split(data / "val", images, np.arange(12) % 2)
    code, said = told(str(data), "--near")
    assert code == 1
    assert "val9 is a near copy of" in said
    assert "different labels: lens, other" in said
    assert "in 1 groups, 0 across splits" in said
    for file in (data / "val").iterdir():
        file.unlink()
    split(data / "val", images, np.zeros(12, int))
    code, said = told(str(data), "--near")
    assert code == 0
    assert "val8 is a near copy of" in said


def test_an_image_that_is_equal_in_two_splits_is_named_once(data: Path, told: Told) -> None:
    add(data, "val", stamps(30, seed=1)[[4]], 0)
    code, said = told(str(data), "--near")
    assert code == 1
    assert said.count("train4") == 1
    assert "1 pairs of near copies in 1 groups, 1 across splits" in said


def test_splits_of_different_shapes_are_searched_each_by_itself(data: Path, told: Told) -> None:
    images = stamps(6, seed=7, size=24)
    images[5] = images[1] * 2
    split(data / "other", images, np.zeros(6, int))
    code, said = told(str(data), "--near")
    assert code == 0
    assert "other5 is a near copy of" in said


def test_the_switch_stands_alone_or_takes_0_and_1_and_pairs_need_it(capsys: pytest.CaptureFixture[str]) -> None:
    for words, value in ((["--near"], 1), (["--near", "0"], 0), (["--near=1"], 1), ([], 0)):
        assert command_line.parse("verify", ["data", *words]).near == value
    assert command_line.parse("verify", ["--near", "data"]).folder == Path("data")
    for words, said in (
        (["--pairs", "pairs.csv"], "--pairs has an effect only with --near"),
        (["--near", "--num_workers", "-1"], "num_workers"),
        (["--near=2"], "choose from 0, 1"),
    ):
        with pytest.raises(SystemExit):
            command_line.parse("verify", ["data", *words])
        assert said in capsys.readouterr().err


def test_a_run_is_not_searched_for_near_copies(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match="is a run; --near works on data sets only"):
        verify_work.run(verify_settings.Settings(folder=tmp_path, near=1))


def test_a_damaged_data_set_is_told_and_not_searched(data: Path, told: Told) -> None:
    (data / "train" / "manifest.json").write_text("{")
    code, said = told(str(data), "--near")
    assert code == 1
    assert "not searched for near copies, because the data set has errors" in said
