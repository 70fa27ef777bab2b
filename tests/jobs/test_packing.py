"""`deeplense pack` as a user meets it: a summary of what went in, one line for what is wrong, groups that stay together
up to the training, and images without labels."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import axion, put

from deeplense.data.dataset import Split
from deeplense.files import sole_writer
from jobs import command_line
from jobs.conditions import conditions_of
from jobs.data.part import image_parts
from jobs.pack import work as pack_work
from jobs.pack.settings import Settings
from jobs.pretrain.settings import Settings as PretrainSettings
from jobs.train.samples import folds, known_part, learning_parts
from jobs.train.settings import Settings as TrainSettings
from launch.__main__ import main

COUNT = 90


def files_below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Named stamps of 30 systems, two to four of each, and a catalogue of them in another order."""
    folder = tmp_path_factory.mktemp("survey")
    generator = np.random.default_rng(0)
    system = np.repeat(np.arange(30), [2, 3, 4] * 10)
    names = np.array([f"stamp {k:02d}" for k in range(COUNT)])
    np.savez(folder / "stamps.npz", images=generator.normal(size=(COUNT, 8, 8)).astype("float32"), name=names)
    lines = [
        f"{names[k]},{'ab'[system[k] % 2]},sys{system[k]},{10 + system[k]},{k * 1e-4},{k / 7}" for k in range(COUNT)
    ]
    mixed = [lines[k] for k in generator.permutation(COUNT)]
    (folder / "catalogue.csv").write_text("\n".join(["name,label,system,ra,dec,theta_E", *mixed]) + "\n")
    np.savez(folder / "bare.npz", images=generator.normal(size=(COUNT, 8, 8)).astype("float32"))
    return folder


def packing(survey: Path, output: Path, **changes: Any) -> Settings:
    given = {"layout": "npz", "source": survey / "stamps.npz", "catalog": survey / "catalogue.csv", "output": output}
    return Settings(**(given | changes))


def test_a_summary_counts_classes_and_splits_and_names_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, kind in enumerate(["train/No", "train/sphere", "train/vort", "Validation/no", "Validation/sphere"]):
        for k in range(number + 1):
            put(tmp_path / "in" / kind / f"{k}.NPY", np.ones((4, 4)))
            (tmp_path / "in" / kind / f"{k}.NPY.npy").rename(tmp_path / "in" / kind / f"{k}.NPY")
    (tmp_path / "in" / "train" / "README.md").write_text("about")
    assert main(["pack", "--layout=gsoc", f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "train: 6 images: 1 no_sub, 2 cdm, 3 axion" in said
    assert "val: 9 images: 4 no_sub, 5 cdm, 0 axion" in said
    assert "val has no image of axion; give --classes to pack without a class" in said
    assert "ignored, not an image: train/README.md" in said


@pytest.mark.parametrize("layout", ["deeplense", "gsoc", "lens-finding", "files", "npz"])
@pytest.mark.parametrize(("name", "condition"), list(conditions_of(Settings, {})))
def test_an_option_of_another_layout_is_refused_by_the_command_line_and_by_the_library(
    tmp_path: Path, name: str, condition: Any, layout: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    value: Any = {"join": "order", "unlabelled": 1, "axes": "NHWC", "where": "a=1", "sky": "a,b,1"}.get(name, "kind")
    value = "leave_out" if name == "unmatched" else value
    with_catalogue = "catalog" in condition.choices and (name != "join" or layout == "npz")
    given = {"layout": layout, "source": tmp_path, "output": tmp_path, name: value}
    given |= {"catalog": Path("x.csv")} if with_catalogue or (name, layout) == ("label_key", "files") else {}
    words = [f"--{key}={text}" for key, text in given.items()]
    if with_catalogue or layout in condition.choices.get("layout", ()):
        assert command_line.parse("pack", words) == Settings(**given)
        return
    with pytest.raises(SystemExit):
        command_line.parse("pack", words)
    assert f"{name} has an effect only with" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"{name} has an effect only with"):
        Settings(**given)


def test_files_are_never_taken_in_order(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has an effect only with --layout npz"):
        Settings(layout="files", source=tmp_path, output=tmp_path, catalog=Path("x.csv"), join="order")


@pytest.mark.parametrize("layout", ["deeplense", "gsoc", "lens-finding", "files"])
@pytest.mark.parametrize("option", ["--where=a=1", "--targets=a", "--group=a", "--sky=a,b,1", "--name_column=a"])
def test_an_option_on_columns_without_a_catalogue_is_refused(
    tmp_path: Path, option: str, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_line.parse("pack", [f"--layout={layout}", f"--source={tmp_path}", f"--output={tmp_path}", option])
    assert "give --catalog" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    ["--sky=ra,dec", "--sky=ra,dec,far", "--sky=ra,dec,0", "--pixel_scale=0", "--pixel_scale=inf", "--targets=a,a:b"],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(tmp_path: Path, option: str) -> None:
    with pytest.raises(SystemExit):
        command_line.parse("pack", ["--layout=npz", f"--source={tmp_path}", f"--output={tmp_path}", option])


def test_the_manifest_holds_what_was_applied_and_nothing_else(tmp_path: Path, survey: Path) -> None:
    for k in range(4):
        put(tmp_path / "in" / "cdm" / f"{k}.npy", np.ones((4, 4)))
    pack_work.run(Settings(layout="deeplense", source=tmp_path / "in", output=tmp_path / "plain"))
    always = {"made_by", "source", "names", "layout", "seed", "val_fraction", "test_fraction", "crop", "fill_nan"}
    assert Split(tmp_path / "plain" / "train").schema.provenance.keys() == always
    pack_work.run(packing(survey, tmp_path / "out", where="theta_E>1", sky="ra,dec,5", pixel_scale=0.2, unit="nJy"))
    schema = Split(tmp_path / "out" / "train").schema
    assert schema.provenance.keys() == always | {"catalog", "where", "sky"}
    assert (schema.pixel_scale_arcsec, schema.unit) == (0.2, "nJy")


def test_names_and_numbers_of_a_catalogue_are_kept_with_their_images(tmp_path: Path, survey: Path) -> None:
    pack_work.run(packing(survey, tmp_path / "out", targets="theta_E:arcsec,ra:deg", test_fraction=0.3))
    images = np.load(survey / "stamps.npz")["images"]
    seen = []
    for name in ("train", "test"):
        split = Split(tmp_path / "out" / name)
        assert split.schema.targets == {"theta_E": "arcsec", "ra": "deg"}
        pixels = split.images(np.arange(len(split)))
        for k, (name_of, theta) in enumerate(zip(split.ids, split.column("target/theta_E"), strict=True)):
            number = int(name_of.removeprefix("stamp "))
            np.testing.assert_array_equal(pixels[k, 0], images[number])
            assert theta == number / 7
            seen.append(number)
    assert sorted(seen) == list(range(COUNT))


def test_a_number_from_a_foreign_set_can_be_learnt(tmp_path: Path, survey: Path) -> None:
    settings = packing(survey, tmp_path / "out", targets="theta_E:arcsec", unlabelled=1)
    pack_work.run(settings)
    trained = TrainSettings(dataset=str(tmp_path / "out"), run=tmp_path / "run", target="theta_E")
    train, val = learning_parts(trained)
    assert (len(train), len(val)) == (81, 9)
    assert train.target is not None
    assert sorted(train.target) == [k / 7 for k in range(COUNT)]


def groups_in(split: Split) -> set[str]:
    """The systems of a split, by what the stamps are called."""
    system = np.repeat(np.arange(30), [2, 3, 4] * 10)
    return {f"{system[int(name.removeprefix('stamp '))]}" for name in split.ids}


@pytest.mark.parametrize("choice", [{"group": "system"}, {"sky": "ra,dec,1"}, {"group": "system", "sky": "ra,dec,1"}])
@pytest.mark.parametrize("seed", range(3))
def test_what_belongs_together_is_in_one_split_one_fold_and_one_part(
    tmp_path: Path, survey: Path, choice: dict[str, str], seed: int
) -> None:
    pack_work.run(packing(survey, tmp_path / "out", val_fraction=0.2, test_fraction=0.2, seed=seed, **choice))
    splits = {name: groups_in(Split(tmp_path / "out" / name)) for name in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 30
    assert all(len(Split(tmp_path / "out" / name)) >= 14 for name in splits)
    pack_work.run(packing(survey, tmp_path / "whole", seed=seed, **choice))
    dataset = str(tmp_path / "whole")
    whole = Split(tmp_path / "whole" / "train")
    names = np.array(whole.ids)
    system = np.array([np.repeat(np.arange(30), [2, 3, 4] * 10)[int(name[-2:])] for name in names])
    settings = TrainSettings(dataset=dataset, run=tmp_path / "run", seed=seed)
    train, val = learning_parts(settings)
    assert not set(system[train.indices]) & set(system[val.indices])
    folded = TrainSettings(dataset=dataset, run=tmp_path / "run", num_folds=3, fold=1)
    part = known_part(folded)
    assert not set(system[part.indices]) & set(np.delete(system, part.indices))
    assert np.bincount(folds(train, folded), minlength=3).min() > 0
    unseen, looked_at = image_parts(PretrainSettings(dataset=dataset, run=tmp_path / "run", seed=seed))
    assert not set(system[unseen.indices]) & set(system[looked_at.indices])


def test_without_groups_what_belongs_together_is_torn_apart(tmp_path: Path, survey: Path) -> None:
    pack_work.run(packing(survey, tmp_path / "out", test_fraction=0.3))
    train, test = (groups_in(Split(tmp_path / "out" / name)) for name in ("train", "test"))
    assert len(train & test) > 10, "the control"
    assert Split(tmp_path / "out" / "train").groups() is None


def test_groups_of_mixed_data_sets_are_not_each_others(tmp_path: Path, survey: Path) -> None:
    pack_work.run(packing(survey, tmp_path / "one", group="system"))
    pack_work.run(packing(survey, tmp_path / "two"))
    groups = Split(tmp_path / "one" / "train", tmp_path / "two" / "train", tmp_path / "one" / "train").groups()
    assert groups is not None
    parts = [set(groups[:90].tolist()), set(groups[90:180].tolist()), set(groups[180:].tolist())]
    assert list(map(len, parts)) == [30, 90, 30]
    assert len(set.union(*parts)) == 150


def test_images_without_labels_are_packed_pretrained_on_and_refused_by_train_in_plain_words(
    tmp_path: Path, survey: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = survey / "bare.npz"
    assert main(["pack", "--layout=npz", f"--source={source}", f"--output={tmp_path / 'out'}"]) == 0
    assert "train: 90 images without labels" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "90 images in 2 shards are sound: no labels" in capsys.readouterr().out
    split = Split(tmp_path / "out" / "train")
    assert (split.schema.classes, set(split.labels.tolist())) == ((), {-1})
    train, val = image_parts(PretrainSettings(dataset=str(tmp_path / "out"), run=tmp_path / "run"))
    assert len(train) + len(val) == COUNT
    with pytest.raises(ValueError, match=r"has no labels, but a classifier needs labels.*deeplense pretrain"):
        learning_parts(TrainSettings(dataset=str(tmp_path / "out"), run=tmp_path / "run"))


def test_a_flat_folder_of_images_is_packed_without_labels_or_with_those_of_a_catalogue(tmp_path: Path) -> None:
    for k in range(6):
        put(tmp_path / "in" / f"s{k}.npy", np.full((4, 4, 3), k, dtype="uint8"))
    pack_work.run(Settings(layout="files", source=tmp_path / "in", output=tmp_path / "bare"))
    split = Split(tmp_path / "bare" / "train")
    assert (split.schema.shape, split.schema.dtype, split.schema.classes) == ((3, 4, 4), "uint8", ())
    (tmp_path / "c.csv").write_text("id,kind\n" + "".join(f"s{k},{'xy'[k % 2]}\n" for k in (3, 1, 5, 0, 2, 4)))
    given = {"catalog": tmp_path / "c.csv", "label_key": "kind", "bands": "g,r,i"}
    pack_work.run(Settings(layout="files", source=tmp_path / "in", output=tmp_path / "out", **given))
    split = Split(tmp_path / "out" / "train")
    for name, label in zip(split.ids, split.labels.tolist(), strict=True):
        assert label == int(name[1:]) % 2


@pytest.mark.parametrize("where", ["file", "file/deeper", "n" * 300, "n" * 300 + "/deeper"])
def test_an_output_that_cannot_be_is_one_line_and_nothing_is_made(
    tmp_path: Path, survey: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    output = tmp_path / where
    assert main(["pack", "--layout=npz", f"--source={survey / 'bare.npz'}", f"--output={output}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert files_below(tmp_path) == [str(tmp_path / "file")]
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("layout", ["deeplense", "gsoc", "lens-finding", "files", "npz"])
def test_a_source_that_cannot_be_opened_is_one_line(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pack", f"--layout={layout}", f"--output={tmp_path / 'out'}"]
    for source in (tmp_path / ("n" * 300), tmp_path / "nowhere"):
        assert main([*words, f"--source={source}"]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    monkeypatch.setattr(Path, "exists", refuse)
    assert main([*words, f"--source={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere cannot be read (Permission denied)" in capsys.readouterr().err


@pytest.mark.parametrize("mass", [10**400, -(10**400), float("inf"), complex(1e-23, 1)])
def test_a_mass_that_is_none_is_one_line_that_names_the_file_and_nothing_is_left(
    tmp_path: Path, mass: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "in" / "axion" / "0.npy", axion(np.ones((4, 4)), mass))
    assert main(["pack", "--layout=deeplense", f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "axion/0.npy" in said
    assert not (tmp_path / "out").exists()


def hold(folder: Path, shared: bool, held: Any, done: Any) -> None:
    """Hold a folder until told."""
    with sole_writer(folder, shared=shared):
        held.set()
        done.wait(60)


@pytest.fixture
def while_held() -> Iterator[Callable[[Path, bool], None]]:
    """Lets another process hold a folder until the test ends."""
    context = multiprocessing.get_context("fork")
    done = context.Event()
    others = []

    def begin(folder: Path, shared: bool) -> None:
        held = context.Event()
        others.append(context.Process(target=hold, args=(folder, shared, held, done)))
        others[-1].start()
        assert held.wait(60)

    yield begin
    done.set()
    for other in others:
        other.join(60)


@pytest.mark.parametrize(
    ("part", "shared", "refused"),
    [([], False, True), (["--part=1/2"], False, True), ([], True, True), (["--part=1/2"], True, False)],
)
def test_a_second_writer_is_refused_while_the_first_writes_unless_both_make_parts(
    tmp_path: Path,
    survey: Path,
    while_held: Callable[[Path, bool], None],
    part: list[str],
    shared: bool,
    refused: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    while_held(tmp_path / "out" / "train", shared)
    packing = ["pack", "--layout=npz", f"--source={survey / 'bare.npz'}", f"--output={tmp_path / 'out'}", *part]
    assert main(packing) == (2 if refused else 0)
    assert ("another process is writing" in capsys.readouterr().err) == refused


def test_simulate_is_refused_while_another_writes(
    tmp_path: Path, while_held: Callable[[Path, bool], None], capsys: pytest.CaptureFixture[str]
) -> None:
    while_held(tmp_path / "train", False)
    assert main(["simulate", f"--output={tmp_path}", "--num_per_class=1", "--num_workers=1"]) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert not list((tmp_path / "train").iterdir())


def test_a_folder_is_free_again_once_its_writer_has_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            sole_writer(tmp_path / "out"),
            pytest.raises(ValueError, match="another process"),
            sole_writer(tmp_path / "out"),
        ):
            raise AssertionError("held twice")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fractions", [{"val_fraction": 0.2}, {"test_fraction": 0.999}])
def test_fractions_that_leave_a_split_without_images_are_refused(tmp_path: Path, fractions: dict[str, Any]) -> None:
    for kind in ("no", "cdm"):
        put(tmp_path / "in" / kind / "0.npy", np.ones((4, 4)))
    with pytest.raises(ValueError, match="leave none for"):
        pack_work.run(Settings(layout="deeplense", source=tmp_path / "in", output=tmp_path / "out", **fractions))
    assert not (tmp_path / "out").exists()


def test_data_sets_of_earlier_versions_have_no_groups_and_are_split_as_before(dataset: Path, tmp_path: Path) -> None:
    split = Split(dataset / "train")
    assert split.groups() is None
    manifest = json.loads((dataset / "train" / "manifest.json").read_text())
    assert "group" not in manifest["schema"]["targets"]
