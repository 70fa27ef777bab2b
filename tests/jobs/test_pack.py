"""Packing: what goes in comes out, in every layout; and a bad file stops all, is named, and leaves nothing."""

import contextlib
import csv
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import axion, put

from deeplense.data import building, verifying
from deeplense.data.dataset import Split
from jobs.pack import work as pack_work
from jobs.pack.settings import Settings
from jobs.verify import settings as verify_settings
from jobs.verify import work as verify_work

SYNONYMS = {"no_sub": "no", "cdm": "sphere", "axion": "vort"}


def image_of(number: int, shape: tuple[int, ...] = (6, 8)) -> np.ndarray:
    return np.random.default_rng(number).normal(size=shape).astype(np.float32)


def packed(layout: Any, source: Path, output: Path, **settings: Any) -> dict[str, Split]:
    """Pack, and open every split."""
    assert pack_work.run(Settings(layout=layout, source=source, output=output, **settings)) == 0
    assert verifying.verify(output) == []
    return {folder.name: Split(folder) for folder in sorted(output.iterdir())}


def all_images(split: Split) -> dict[str, np.ndarray]:
    return dict(zip(split.ids, split.images(np.arange(len(split))), strict=True))


def names_of_classes(split: Split) -> list[str]:
    return [split.schema.classes[label] for label in split.labels]


def source_indices(split: Split) -> list[int]:
    return split.column("source_index").tolist()


def simulated(folder: Path, per_class: int = 10) -> dict[str, np.ndarray]:
    """Files as DeepLenseSim writes them; gives the images by their name."""
    images = {}
    for name in ("no_sub", "cdm", "axion"):
        for k in range(per_class):
            image = images[f"{name}/{name}_sim_{k}"] = image_of(len(images))
            put(folder / name / f"{name}_sim_{k}.npy", axion(image, 10 ** (-24 + k / 10)) if name == "axion" else image)
    return images


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.sentinel}",)


def test_the_layout_of_deeplensesim_is_packed_with_its_axion_masses(tmp_path: Path) -> None:
    images = simulated(tmp_path / "in")
    (split,) = packed("deeplense", tmp_path / "in", tmp_path / "out").values()
    found = all_images(split)
    assert found.keys() == images.keys()
    for name, image in images.items():
        np.testing.assert_array_equal(found[name], image[None])
    for name, label, mass in zip(
        split.ids, names_of_classes(split), split.column("target/log10_axion_mass"), strict=True
    ):
        assert name.startswith(f"{label}/")
        expected = -24 + int(name.rsplit("_", 1)[1]) / 10 if label == "axion" else np.nan
        assert mass == pytest.approx(expected, nan_ok=True)


def test_the_layout_of_gsoc_is_packed_split_by_split(tmp_path: Path) -> None:
    for number, (split, name, k) in enumerate(product(("train", "val"), SYNONYMS.values(), range(4))):
        put(tmp_path / "in" / split / name / f"{k}.npy", image_of(number, (1, 6, 6)))
    splits = packed("gsoc", tmp_path / "in", tmp_path / "out")
    assert splits.keys() == {"train", "val"}
    for split, content in splits.items():
        assert content.manifests[0].class_counts == {"no_sub": 4, "cdm": 4, "axion": 4}
        for name, label, image in zip(
            content.ids, names_of_classes(content), all_images(content).values(), strict=True
        ):
            np.testing.assert_array_equal(image, np.load(tmp_path / "in" / split / f"{name}.npy"))
            assert name.startswith(SYNONYMS[label])


def test_samples_know_their_place_in_the_source_even_where_splits_repeat_names(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for k in range(4):
            put(tmp_path / "in" / split / "no" / f"{k}.npy", image_of(k + 10 * len(split)))
    splits = packed("gsoc", tmp_path / "in", tmp_path / "out")
    places = [place for split in splits.values() for place in source_indices(split)]
    assert sorted(places) == list(range(8))


def test_the_lens_finding_layout_is_packed_by_its_index_file(tmp_path: Path) -> None:
    for number, name in enumerate(["lenses/1", "lenses/2", "lenses/3", "nonlenses/1", "nonlenses/4"]):
        put(tmp_path / "in" / f"{name}.npy", image_of(number, (3, 9 + number, 10)))
    index = {
        "train": {"lenses": [np.str_("2.npy"), "3.npy"], "nonlenses": np.array(["1.npy"])},
        "test": {"lenses": np.array(["1.npy"]), "nonlenses": [np.str_("4.npy")]},
    }
    (tmp_path / "in" / "indices.pkl").write_bytes(pickle.dumps(index))
    splits = packed("lens-finding", tmp_path / "in", tmp_path / "out", crop=6)
    assert sorted(splits["train"].ids) == ["lenses/2", "lenses/3", "nonlenses/1"]
    assert sorted(splits["test"].ids) == ["lenses/1", "nonlenses/4"]
    found = all_images(splits["train"])["lenses/3"]
    np.testing.assert_array_equal(found, image_of(2, (3, 11, 10))[:, 2:8, 2:8])


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """An archive, channel last, with a catalogue of classes and grades."""
    images = np.random.default_rng(0).integers(0, 255, size=(40, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "survey.npz", images=images, others=255 - images)
    rows = [(k, ("arc", "ring", "none")[k % 3], ("ring", "arc", "none")[k % 3], k % 2) for k in range(40)]
    with (tmp_path / "catalog.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("row", "kind", "opinion", "good"), *rows])
    return tmp_path / "survey.npz"


def archive_settings(survey: Path, **changes: Any) -> dict[str, Any]:
    choice = {"label_key": "kind", "catalog": survey.with_name("catalog.csv"), "classes": "ring,arc,none"}
    return choice | changes


def test_an_archive_is_packed_with_a_catalogue(tmp_path: Path, survey: Path) -> None:
    choice = archive_settings(survey, where="good=1, kind!=none", classes="ring, arc", bands="g,r,i")
    (split,) = packed("npz", survey, tmp_path / "out", **choice).values()
    rows = [k for k in range(40) if k % 2 == 1 and k % 3 != 2]
    assert sorted(split.ids) == [f"survey-{row:06d}" for row in rows]
    images = np.load(survey)["images"]
    for name, label, image in zip(split.ids, names_of_classes(split), all_images(split).values(), strict=True):
        row = int(name.removeprefix("survey-"))
        assert label == ("arc", "ring", "none")[row % 3]
        np.testing.assert_array_equal(image, np.moveaxis(images[row], -1, 0))
    assert split.schema.dtype == "uint8"
    assert split.schema.bands == ("g", "r", "i")
    assert split.schema.classes == ("ring", "arc")


@pytest.mark.parametrize(
    "change", [{"label_key": "opinion"}, {"image_key": "others"}, {"where": "good=1"}, {"seed": 1}]
)
def test_packing_something_else_into_the_same_folder_is_refused(
    tmp_path: Path, survey: Path, change: dict[str, Any]
) -> None:
    packed("npz", survey, tmp_path / "out", **archive_settings(survey))
    with pytest.raises(ValueError, match="parameters that differ"):
        packed("npz", survey, tmp_path / "out", **archive_settings(survey, **change))


def test_fractions_are_split_off_each_class(tmp_path: Path) -> None:
    images = simulated(tmp_path / "in")
    splits = packed("deeplense", tmp_path / "in", tmp_path / "out", val_fraction=0.2, test_fraction=0.3)
    assert {name: set(Counter(split.labels.tolist()).values()) for name, split in splits.items()} == {
        "train": {5},
        "val": {2},
        "test": {3},
    }
    ids = [name for split in splits.values() for name in split.ids]
    assert sorted(ids) == sorted(images)
    others = packed("deeplense", tmp_path / "in", tmp_path / "other", val_fraction=0.2, test_fraction=0.3, seed=1)
    assert set(others["test"].ids) != set(splits["test"].ids)


def damaged(kind: str, tmp_path: Path) -> bytes:
    """The bytes of a bad file of each kind."""
    arrays: dict[str, Any] = {
        "nan": np.where(np.eye(6, 8) > 0, np.nan, 1.0),
        "infinite": np.full((6, 8), np.inf),
        "wrong shape": np.ones((6, 9)),
        "no image": np.ones((2, 6, 8)),
        "objects": np.array([1, None, "x"], dtype=object),
        "hostile": axion(np.ones((6, 8)), Hostile(tmp_path / "sentinel")),
    }
    put(tmp_path / "one.npy", arrays.get(kind, np.ones((6, 8))))
    content = (tmp_path / "one.npy").read_bytes()
    return {"text": b"hello", "empty": b"", "truncated": content[:-9]}.get(kind, content)


KINDS = ["nan", "infinite", "wrong shape", "no image", "objects", "hostile", "text", "empty", "truncated"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_bad_file_is_named_and_no_half_made_data_set_is_left(tmp_path: Path, kind: str, split: str) -> None:
    simulated(tmp_path / "in" / "train", per_class=2)
    for other in {"val", "test"} - {split}:
        put(tmp_path / "in" / other / "cdm" / "good.npy", image_of(77))
    bad = tmp_path / "in" / split / "axion" / "bad.npy"
    bad.parent.mkdir(parents=True, exist_ok=True)
    bad.write_bytes(damaged(kind, tmp_path))
    with pytest.raises(ValueError, match="has the shape" if kind == "wrong shape" else "axion/bad"):
        pack_work.run(Settings(layout="deeplense", source=tmp_path / "in", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "sentinel").exists()


def test_a_hostile_index_file_is_refused_and_not_obeyed(tmp_path: Path) -> None:
    put(tmp_path / "in" / "lenses" / "1.npy", image_of(0, (3, 6, 6)))
    index = {"train": {"lenses": ["1.npy", Hostile(tmp_path / "sentinel")]}}
    (tmp_path / "in" / "indices.pkl").write_bytes(pickle.dumps(index))
    with pytest.raises(ValueError, match=r"indices\.pkl: holds a pickle that tries to run .*system"):
        pack_work.run(Settings(layout="lens-finding", source=tmp_path / "in", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "sentinel").exists()


def test_a_label_that_is_no_class_is_named_and_nothing_is_left(tmp_path: Path, survey: Path) -> None:
    with pytest.raises(ValueError, match=r"survey\.npz: image 2 has the label 'none'"):
        packed("npz", survey, tmp_path / "out", **archive_settings(survey, classes="ring,arc"))
    assert not (tmp_path / "out").exists()


def test_pixels_that_are_not_finite_are_filled_on_demand(tmp_path: Path) -> None:
    image = image_of(0)
    image[1, 2], image[3, 3], image[4, 4] = np.nan, np.inf, -np.inf
    # Surveys mark missing pixels by the smallest number of the type, too.
    image[5, 5] = np.finfo(image.dtype).min
    put(tmp_path / "in" / "cdm" / "a.npy", image)
    (split,) = packed("deeplense", tmp_path / "in", tmp_path / "out", fill_nan=-5.0).values()
    found = all_images(split)["cdm/a"][0]
    assert [found[1, 2], found[3, 3], found[4, 4], found[5, 5]] == [-5.0] * 4
    finite = np.isfinite(image) & (image > -1e30)
    np.testing.assert_array_equal(found[finite], image[finite])


@pytest.mark.parametrize("seed", [0, 6])
def test_bytes_and_fractions_in_one_folder_are_kept_as_they_are_or_refused(tmp_path: Path, seed: int) -> None:
    images = {"cdm/bytes": np.full((4, 4), 200, dtype=np.uint8), "cdm/halves": np.full((4, 4), -0.5)}
    for name, image in images.items():
        put(tmp_path / "in" / f"{name}.npy", image)
    with contextlib.suppress(ValueError):
        (split,) = packed("deeplense", tmp_path / "in", tmp_path / "out", seed=seed).values()
        for name, image in all_images(split).items():
            np.testing.assert_array_equal(image[0], images[name])


def stored(folder: Path) -> np.ndarray:
    """All images of a split as they are stored, in the order of their ids."""
    split = Split(folder)
    return split.column("image")[np.argsort(split.ids)]


def integers(source: Path, dtype: str, *values: int) -> np.ndarray:
    """Files of whole numbers with these among them."""
    images = np.random.default_rng(0).integers(0, 100, size=(5, 4, 4)).astype(dtype)
    images[2, 1, : len(values)] = values
    for k, image in enumerate(images):
        put(source / "cdm" / f"{k}.npy", image)
    return images[:, None]


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        ("uint8", "uint8"),
        ("int8", "int16"),
        (">i2", "int16"),
        ("uint16", "uint16"),
        ("int32", "int32"),
        ("uint32", "int32"),
        ("int64", "int32"),
        ("float16", "float32"),
        (">f4", "float32"),
        ("float64", "float32"),
    ],
)
def test_integers_stay_integers_and_floats_become_float32(tmp_path: Path, dtype: str, kept: str) -> None:
    images = integers(tmp_path / "in", dtype)
    (split,) = packed("deeplense", tmp_path / "in", tmp_path / "out").values()
    assert split.schema.dtype == kept
    np.testing.assert_array_equal(stored(split.folders[0]), images)


@pytest.mark.parametrize(("dtype", "values"), [("int64", (2**31,)), ("uint32", (2**32 - 1,)), ("int64", (-(2**40),))])
def test_integers_that_no_type_holds_are_refused_by_name_unless_floats_are_asked_for(
    tmp_path: Path, dtype: str, values: tuple[int, ...]
) -> None:
    images = integers(tmp_path / "in", dtype, *values)
    with pytest.raises(
        ValueError, match=r"cdm/2: has values that int32 cannot hold .*to 2147483647\); give another --dtype"
    ):
        packed("deeplense", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    packed("deeplense", tmp_path / "in", tmp_path / "out", dtype="float32")
    np.testing.assert_array_equal(stored(tmp_path / "out" / "train"), images.astype(np.float32))


def test_scale_and_zero_say_what_stored_integers_mean(tmp_path: Path) -> None:
    images = integers(tmp_path / "in", "int16", -32768, 32767)
    choice = {"scale": 0.5, "zero": 100.0}
    (split,) = packed("deeplense", tmp_path / "in", tmp_path / "out", **choice).values()
    np.testing.assert_array_equal(stored(split.folders[0]), images)
    assert (split.schema.scale, split.schema.zero) == (0.5, 100)
    np.testing.assert_allclose(split.manifests[0].statistics["mean"], [images.mean() / 2 + 100], rtol=1e-12)
    for dtype in ("float32", "float16"):
        with pytest.raises(ValueError, match=f"scale and zero apply only to .* these are stored as {dtype}"):
            packed("deeplense", tmp_path / "in", tmp_path / "other", dtype=dtype, **choice)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["source", "float16", "float32"])
def test_what_is_packed_with_compression_is_the_same(tmp_path: Path, dtype: str, compression: str) -> None:
    images = integers(tmp_path / "in", "uint16")
    choice: dict[str, Any] = {"dtype": dtype, "compression": compression}
    settings = Settings(layout="deeplense", source=tmp_path / "in", output=tmp_path / "out", **choice)
    assert pack_work.run(settings) == 0
    assert verifying.verify(tmp_path / "out") == []
    with h5py.File(tmp_path / "out" / "train" / "shard-00000.h5") as file:
        ids = [name.decode() for name in np.asarray(file["id"])]
        found = np.asarray(file["image"])[np.argsort(ids)]
    np.testing.assert_array_equal(found, images)
    assert found.dtype == ("uint16" if dtype == "source" else dtype)


def test_public_counts_of_model_i_are_packed_as_they_are(tmp_path: Path, public_data: Path) -> None:
    for name in ("cdm", "no_sub"):
        (file,) = (public_data / "deeplensesim").glob(f"Model_I_{name}_*.npy")
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.npy").symlink_to(file)
    (split,) = packed("deeplense", tmp_path / "in", tmp_path / "out").values()
    assert split.schema.shape == (1, 150, 150)
    for name, image in all_images(split).items():
        counts = np.load(tmp_path / "in" / f"{name}.npy")
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(image[0], counts)


def test_two_writers_make_the_bytes_of_one_and_leave_nothing_of_a_bad_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(tmp_path / "in", per_class=25)
    one = packed("deeplense", tmp_path / "in", tmp_path / "one")["train"].manifests[0]
    monkeypatch.setattr(building, "build", partial(building.build, num_workers=2))
    two = packed("deeplense", tmp_path / "in", tmp_path / "two")["train"].manifests[0]
    assert one.dataset_id == two.dataset_id
    put(tmp_path / "in" / "axion" / "axion_sim_9.npy", np.full((6, 8), np.nan))
    with pytest.raises(ValueError, match="axion/axion_sim_9"):
        packed("deeplense", tmp_path / "in", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def die_at(number: int, source: str, output: str) -> None:
    """Pack, and end without a word when image `number` is loaded."""
    loaded, load = iter(range(number + 1)), pack_work.load
    pack_work.load = lambda *arguments: load(*arguments) if next(loaded) < number else os._exit(9)
    pack_work.run(Settings(layout="deeplense", source=Path(source), output=Path(output), test_fraction=0.5))


@pytest.mark.parametrize("number", [20, 100])
def test_a_pack_that_was_killed_is_continued(tmp_path: Path, number: int) -> None:
    simulated(tmp_path / "in", per_class=48)
    arguments = (number, str(tmp_path / "in"), str(tmp_path / "torn"))
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = f"import sys; sys.path[:0] = {folders!r}; import test_pack as t"
    command = [sys.executable, "-c", f"{program}; t.die_at(*{arguments!r})"]
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL, timeout=60).returncode == 9
    torn = packed("deeplense", tmp_path / "in", tmp_path / "torn", test_fraction=0.5)
    whole = packed("deeplense", tmp_path / "in", tmp_path / "whole", test_fraction=0.5)
    assert {name: split.manifests[0].dataset_id for name, split in torn.items()} == {
        name: split.manifests[0].dataset_id for name, split in whole.items()
    }


def test_the_job_verify_tells_a_sound_data_set_from_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated(tmp_path / "in")
    packed("deeplense", tmp_path / "in", tmp_path / "out")
    assert verify_work.run(verify_settings.Settings(folder=tmp_path / "out")) == 0
    assert "30 images in 1 shards are sound: 10 no_sub, 10 cdm, 10 axion" in capsys.readouterr().out
    os.truncate(tmp_path / "out" / "train" / "shard-00000.h5", 1000)
    assert verify_work.run(verify_settings.Settings(folder=tmp_path / "out")) == 1
    assert "shard-00000.h5" in capsys.readouterr().out


def test_all_images_of_a_source_can_have_one_class_so_that_sources_are_trained_on_together(tmp_path: Path) -> None:
    for k in range(6):
        put(tmp_path / "lenses" / f"{k}.npy", image_of(k))
        put(tmp_path / "others" / f"{k}.npy", image_of(10 + k))
    both = {}
    for source, label in (("lenses", "lens"), ("others", "other")):
        output = tmp_path / f"packed-{source}"
        (split,) = packed("files", tmp_path / source, output, label=label, classes="other,lens").values()
        assert names_of_classes(split) == [label] * 6
        both[label] = output / "train"
    joined = Split(both["lens"], both["other"])
    assert np.bincount(joined.labels).tolist() == [6, 6]
    with pytest.raises(ValueError, match="label=ring is not one of --classes other,lens; add it"):
        Settings(layout="files", source=tmp_path, output=tmp_path, label="ring", classes="other,lens")
    with pytest.raises(ValueError, match="label gives all images one class; leave out label_key"):
        Settings(layout="files", source=tmp_path, output=tmp_path, label="ring", unlabelled=1)


def test_some_bands_of_an_archive_are_used_in_the_order_that_is_given(tmp_path: Path, survey: Path) -> None:
    choice = archive_settings(survey, where="kind!=none", classes="ring,arc", bands="g,r,i", only_bands="i,g")
    (split,) = packed("npz", survey, tmp_path / "out", **choice).values()
    assert split.schema.bands == ("i", "g")
    images = np.load(survey)["images"]
    for name, image in all_images(split).items():
        row = int(name.removeprefix("survey-"))
        np.testing.assert_array_equal(image, np.moveaxis(images[row], -1, 0)[[2, 0]])
    with pytest.raises(ValueError, match=r"--only_bands: .* has no band z; its bands are g, r, i"):
        packed("npz", survey, tmp_path / "no", **(choice | {"only_bands": "z"}))


def test_bands_are_stored_under_the_names_that_are_given(tmp_path: Path, survey: Path) -> None:
    choice = archive_settings(survey, where="kind!=none", classes="ring,arc", bands="red=g,green=r,i")
    (split,) = packed("npz", survey, tmp_path / "out", **choice).values()
    assert split.schema.bands == ("red", "green", "i")
    with pytest.raises(ValueError, match="give each band a unique name"):
        Settings(layout="npz", source=survey, output=tmp_path, bands="g=a,g=b")
    with pytest.raises(ValueError, match="give each band a unique name"):
        Settings(layout="npz", source=survey, output=tmp_path, bands="g=a,r=a")
