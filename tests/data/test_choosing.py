"""What is packed of foreign images: labels, numbers, groups; nothing is taken for something else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import put

from deeplense.data.archives import band_axis
from deeplense.data.choosing import Choice, choose
from deeplense.data.layouts import deeplense, npz
from deeplense.data.records import Layout, Loaded, Record

COUNT = 12


def stamps(folder: Path, **arrays: Any) -> Layout:
    """An archive of images with these arrays beside them."""
    np.savez(folder / "stamps.npz", images=np.ones((COUNT, 6, 6), dtype="float32"), **arrays)
    return npz(folder / "stamps.npz")


def labels_of(layout: Layout, **choice: Any) -> list[str]:
    chosen = choose(layout, Choice(**choice))
    return [chosen.classes[record.label] for record in chosen.records]


NUMBERS = np.arange(COUNT) % 3


@pytest.mark.parametrize(
    "label",
    [
        NUMBERS,
        NUMBERS[:, None],
        NUMBERS.astype(float),
        NUMBERS.astype(float)[:, None],
        np.eye(3)[NUMBERS],
        np.eye(3, dtype=bool)[NUMBERS],
        np.array([str(k) for k in NUMBERS]),
        np.array([f"{k}.0" for k in NUMBERS]),
        np.array([f" {k} " for k in NUMBERS]),
        np.array([str(k).encode() for k in NUMBERS]),
    ],
)
def test_labels_are_the_same_however_they_are_written(tmp_path: Path, label: np.ndarray) -> None:
    assert labels_of(stamps(tmp_path, label=label)) == [str(k) for k in NUMBERS]
    assert labels_of(stamps(tmp_path, label=label), classes=("2", "0.0", "1")) == [str(k) for k in NUMBERS]


def test_numbers_as_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    label = np.array([10, 9, 2, 0, 11, 1] * 2)
    assert choose(stamps(tmp_path, label=label), Choice()).classes == ("0", "1", "2", "9", "10", "11")


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "None", "null", "NA", "<NA>", "  "])
def test_a_missing_label_is_refused_by_its_image_unless_it_is_left_out_or_named_as_a_class(
    tmp_path: Path, missing: str
) -> None:
    label = np.array([missing if k in (4, 7) else "ab"[k % 2] for k in range(COUNT)])
    layout = stamps(tmp_path, label=label)
    with pytest.raises(ValueError, match=r"image 4 has no label .* 2 of 12 images have none.*--where 'label!='"):
        choose(layout, Choice())
    assert len(labels_of(layout, where=("label!=",))) == COUNT - 2
    if missing.strip():
        assert labels_of(layout, classes=("a", "b", missing)).count(missing) == 2
    assert {record.label for record in choose(layout, Choice(unlabelled=True)).records} == {-1}


def test_missing_numbers_are_missing_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image 2 has no label"):
        choose(stamps(tmp_path, label=np.where(NUMBERS == 2, np.nan, NUMBERS)), Choice())


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (np.linspace(0, 1, COUNT), "is not an integer. Give --targets label"),
        (NUMBERS + 0.5, "is not an integer"),
        (np.where(NUMBERS == 2, np.inf, NUMBERS), "is not an integer"),
        (NUMBERS - 1, "has the label -1 .*--where 'label>=0'"),
        (np.arange(COUNT) * 3, "a different label"),
        (np.array([f"object {k}" for k in range(COUNT)]), "a different label"),
        (np.stack([NUMBERS, NUMBERS], axis=1), r"'label' has the shape \(12, 2\)"),
        (np.full((COUNT, 3), 1 / 3), r"'label' has the shape \(12, 3\)"),
        (NUMBERS[:-1], r"'label' has the shape \(11,\)"),
    ],
)
def test_what_is_no_class_is_refused_with_the_truth_and_what_to_do(
    tmp_path: Path, label: np.ndarray, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        choose(stamps(tmp_path, label=label), Choice())


def test_labels_below_0_are_classes_where_they_are_given(tmp_path: Path) -> None:
    assert labels_of(stamps(tmp_path, label=NUMBERS - 1), classes=("-1", "0", "1")) == [str(k - 1) for k in NUMBERS]


def test_images_without_anything_beside_them_get_no_label_and_others_only_on_demand(tmp_path: Path) -> None:
    alone = choose(stamps(tmp_path), Choice())
    assert (alone.classes, {record.label for record in alone.records}) == ((), {-1})
    assert any("contains only images" in note for note in alone.notes)
    beside = stamps(tmp_path, kind=NUMBERS)
    with pytest.raises(ValueError, match=r"no column 'label'; the columns are \['kind'\].*--unlabelled 1"):
        choose(beside, Choice())
    assert choose(beside, Choice(unlabelled=True)).classes == ()


@pytest.mark.parametrize("classes", [("0", "1", "2", "3"), ("a:label=0", "b:label=7")])
def test_a_class_without_images_is_refused(tmp_path: Path, classes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no image has the class"):
        choose(stamps(tmp_path, label=NUMBERS), Choice(classes=classes))


def test_some_classes_of_folders_are_taken_and_the_others_named(tmp_path: Path) -> None:
    for kind in ("no", "cdm", "axion"):
        for k in range(2):
            put(tmp_path / kind / f"{k}.npy", np.ones((4, 4)))
    chosen = choose(deeplense(tmp_path), Choice(classes=("cdm", "no_sub")))
    assert [(r.name, chosen.classes[r.label]) for r in chosen.records] == [
        ("cdm/0", "cdm"), ("cdm/1", "cdm"), ("no/0", "no_sub"), ("no/1", "no_sub"),
    ]  # fmt: skip
    assert "ignored, not in --classes: 2 axion" in chosen.notes
    with pytest.raises(ValueError, match="choose from no_sub, cdm, axion"):
        choose(deeplense(tmp_path), Choice(classes=("lens:grade>=2",)))


def test_numbers_of_columns_become_targets_with_their_units(tmp_path: Path) -> None:
    theta = np.linspace(0.1, 2, COUNT)
    theta[3] = np.nan
    layout = stamps(tmp_path, label=NUMBERS, theta=theta, mass=np.array([f"{k}e11" for k in range(COUNT)]))
    chosen = choose(layout, Choice(targets={"theta": "arcsec", "mass": ""}))
    assert chosen.numbers == {"theta": "arcsec", "mass": ""}
    np.testing.assert_array_equal(
        [r.numbers for r in chosen.records], np.stack([theta, np.arange(COUNT) * 1e11], axis=1)
    )
    assert "1 of 12 images have no value of theta" in chosen.notes


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("1.5 arcsec", "image 5 has '1.5 arcsec' in 'theta'"),
        ("inf", "image 5 has 'inf'"),
        ("1e400", "image 5 has '1e400'"),
        ("1" + "0" * 400, "not a float64 number"),
        ("12345678901234567891", "not a float64 number"),
        ("1e-400", "not a float64 number"),
        ("1+2j", "image 5"),
    ],
)
def test_a_number_that_cannot_be_kept_is_refused_by_its_image(tmp_path: Path, cell: str, told: str) -> None:
    theta = np.array([cell if k == 5 else "0.25" for k in range(COUNT)])
    with pytest.raises(ValueError, match=told):
        choose(stamps(tmp_path, label=NUMBERS, theta=theta), Choice(targets={"theta": ""}))


@pytest.mark.parametrize("name", ["group", "a/b", "../x", ""])
def test_a_target_has_a_plain_name_of_its_own(tmp_path: Path, name: str) -> None:
    layout = stamps(tmp_path, label=NUMBERS)
    with pytest.raises(ValueError, match="cannot be the name of a target"):
        choose(layout, Choice(targets={name: ""}))


@pytest.mark.parametrize("missing", ["", "nan", "None"])
def test_a_missing_group_is_refused_by_its_image(tmp_path: Path, missing: str) -> None:
    layout = stamps(
        tmp_path, label=NUMBERS, system=np.array([missing if k == 9 else f"s{k % 4}" for k in range(COUNT)])
    )
    with pytest.raises(ValueError, match="image 9 has no value in 'system'"):
        choose(layout, Choice(group="system"))
    kept = choose(layout, Choice(group="system", where=("system!=",)))
    assert len({record.group for record in kept.records}) == 4


def test_groups_of_equal_numbers_are_one_however_they_are_written(tmp_path: Path) -> None:
    system = np.array(["1", "1.0", "01", "2", "0", "0.0", "-0", "2.00", "b", "B", "b", "1e0"])
    chosen = choose(stamps(tmp_path, label=NUMBERS, system=system), Choice(group="system"))
    assert [record.group for record in chosen.records] == [0, 0, 0, 1, 2, 2, 2, 1, 3, 4, 3, 0]
    assert [record.numbers[-1] for record in chosen.records] == [float(record.group) for record in chosen.records]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ra": ""}, "image 5 has no angle from -180 to 360 degrees in 'ra'"),
        ({"ra": "361"}, "image 5 has no angle"),
        ({"dec": "-91"}, "image 5 has no angle from -90 to 90 degrees in 'dec'"),
        ({"dec": "nan"}, "image 5 has no angle"),
        ({"ra": "12:30:00"}, "image 5 has '12:30:00' in 'ra'"),
    ],
)
def test_a_position_that_is_none_is_refused_by_its_image(tmp_path: Path, change: dict[str, str], told: str) -> None:
    columns = {"ra": np.array(["10.5"] * COUNT, dtype="<U9"), "dec": np.array(["-3.5"] * COUNT, dtype="<U9")}
    for name, cell in change.items():
        columns[name][5] = cell
    with pytest.raises(ValueError, match=told):
        choose(stamps(tmp_path, label=NUMBERS, **columns), Choice(sky=("ra", "dec", 5.0)))


def test_positions_that_make_groups_are_kept_as_targets(tmp_path: Path) -> None:
    ra, dec = np.array([10.0, 10.0004] * 6) + np.repeat(np.arange(6), 2), np.zeros(COUNT)
    chosen = choose(stamps(tmp_path, label=NUMBERS, ra=ra, dec=dec), Choice(sky=("ra", "dec", 2.0)))
    assert list(chosen.numbers) == ["ra", "dec", "group"]
    assert [record.numbers[0] for record in chosen.records] == ra.tolist()
    assert [record.group for record in chosen.records] == np.repeat(np.arange(6), 2).tolist()


def test_splits_that_cut_a_group_are_refused_with_an_example() -> None:
    records = [Record(Path("x"), f"im{k}", 0, "train" if k < 6 else "test", k) for k in range(COUNT)]
    system = np.array([str(k % 6) for k in range(COUNT)], dtype=object)
    layout = Layout(
        Path("x"), records, lambda record: Loaded(np.ones((1, 4, 4)), {}), ("a",), ("r",), columns={"s": system}
    )
    with pytest.raises(ValueError, match="im0 in the split train and im6 in test belong to the same group"):
        choose(layout, Choice(group="s"))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((6, 64, 64), 0),
        ((64, 64, 6), 2),
        ((64, 64, 12), 2),
        ((3, 64, 64), 0),
        ((64, 64, 3), 2),
        ((64, 64, 1), 2),
        ((1, 64, 64), 0),
        ((3, 60, 64), 0),
        ((60, 64, 3), 2),
        ((3, 4, 5), 0),
        ((5, 4, 3), 2),
    ],
)
def test_the_axis_of_the_bands_is_told_by_the_shape(shape: tuple[int, ...], axis: int) -> None:
    assert band_axis(Path("x"), shape) == axis


@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 64, 3), (6, 60, 64), (60, 64, 6), (8, 9, 10)])
def test_where_the_shape_does_not_tell_the_bands_the_answer_is_asked_for(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"--axes NCHW .*--axes NHWC"):
        band_axis(Path("x"), shape)
    assert (band_axis(Path("x"), shape, "NCHW"), band_axis(Path("x"), shape, "NHWC")) == (0, 2)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.ones((5, 6, 6), complex), "complex128; convert them to real numbers"),
        (np.full((5, 6, 6), "x"), "convert them to real numbers"),
        (np.ones((5, 0, 6)), "no pixels"),
        (np.ones((5, 3, 0, 0)), "no pixels"),
        (np.ones((0, 6, 6)), "no pixels"),
        (np.ones((6, 6)), "have the shape"),
    ],
)
def test_what_are_no_images_is_refused_at_the_door(tmp_path: Path, images: np.ndarray, told: str) -> None:
    np.savez(tmp_path / "bad.npz", images=images)
    with pytest.raises(ValueError, match=rf"bad\.npz.*{told}"):
        npz(tmp_path / "bad.npz")


@pytest.mark.parametrize("name", ["line\nbreak", "bell\a", "\udcff", ""])
def test_a_name_that_cannot_be_written_is_refused(name: str) -> None:
    records = [Record(Path("x"), name if k else "good", 0, "", k) for k in range(2)]
    layout = Layout(Path("x"), records, lambda record: Loaded(np.ones((1, 4, 4)), {}), ("a",), ("r",))
    with pytest.raises(ValueError, match="unprintable characters"):
        choose(layout, Choice())
