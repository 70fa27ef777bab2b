"""Labels that a file names: exactly these are learnt from, and those of the test are refused or left out of it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import put
from stamps import pretrain
from test_finetune import held_out, predictions
from test_finetune import words as finetuning

from deeplense.data.foreign import read_pickle
from deeplense.data.layouts import read_names
from jobs import command_line
from jobs.finetune.work import training_of
from jobs.runs.attempts import EXIT_REFUSED
from jobs.train.samples import known_part, learning_parts
from launch.__main__ import main

PUBLISHED = Path("deeplense_ssl_splits")
EVERY = 25
"""Of the published names, so many stand for one."""


@pytest.fixture(scope="module")
def published(public_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise with published names: some of each split, and all that the smallest subset names."""
    source, generator = tmp_path_factory.mktemp("published"), np.random.default_rng(0)
    subset = read_pickle(public_data / PUBLISHED / "train_indices_300.pkl")
    kept = {}
    for split, folders in read_pickle(public_data / PUBLISHED / "indices.pkl").items():
        kept[split] = {
            folder: [str(name) for k, name in enumerate(names) if k % EVERY == 0 or name in set(subset[folder])]
            for folder, names in folders.items()
        }
    for folders in kept.values():
        for folder, names in folders.items():
            for name in names:
                put(source / folder / name, generator.normal(size=(3, 34, 33)).astype(np.float32))
    (source / "indices.pkl").write_bytes(pickle.dumps(kept))
    words = ["--layout=lens-finding", f"--source={source}", f"--output={source / 'packed'}", "--crop=32"]
    assert main(["pack", *words]) == 0
    return source / "packed"


@pytest.fixture(scope="module")
def backbone(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone for them."""
    return pretrain(published, tmp_path_factory.mktemp("pretrained") / "dino")


def words(dataset: Path, run: Path, backbone: Path, *more: str) -> list[str]:
    """The command line of a fine-tuning."""
    return finetuning(dataset, run, backbone, "full", *more)


def test_the_published_subset_overlaps_with_the_test_and_is_refused_by_name(
    published: Path, backbone: Path, public_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = public_data / PUBLISHED / "train_indices_300.pkl"
    assert main(words(published, tmp_path / "run", backbone, f"--label_file={file}")) == EXIT_REFUSED
    said = capsys.readouterr().err
    assert "47 of the split test, lenses/" in said
    assert "26 of the split val, lenses/" in said
    assert "--allow_overlap 1" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["full", "knn"])
def test_where_the_overlap_is_allowed_exactly_the_named_are_learnt_from_and_left_out_of_the_test(
    mode: str, published: Path, backbone: Path, public_data: Path, tmp_path: Path
) -> None:
    file = public_data / PUBLISHED / "train_indices_300.pkl"
    line = words(published, tmp_path / "run", backbone, f"--label_file={file}", "--allow_overlap=1", f"--mode={mode}")
    trained = training_of(command_line.parse(line[0], line[1:]))
    known, named = known_part(trained), read_pickle(file)
    expected = {f"{folder}/{name}".removesuffix(".npy") for folder, names in named.items() for name in names}
    ids = np.array(known.split.ids)
    assert set(ids[known.indices]) == expected
    assert np.bincount(known.labels).tolist() == [150, 150]
    parts = learning_parts(trained)
    assert set(ids[np.concatenate([part.indices for part in parts])]) == expected
    assert main(line) == 0
    manifest = json.loads((published / "test" / "manifest.json").read_text())
    assert len(predictions(tmp_path / "run")["labels"]) == manifest["schema"]["num_samples"] - 47
    told = {
        "full": "excluded: 45 trained on, 2 used for validation",
        "knn": "excluded: 47 trained on, 0 used for validation",
    }
    assert told[mode] in held_out(tmp_path / "run")


def test_names_stand_one_a_line_too(published: Path, backbone: Path, tmp_path: Path) -> None:
    train = known_part(training_of(command_line.parse("finetune", words(published, tmp_path / "run", backbone)[1:])))
    names = [train.split.ids[index] for index in train.indices[:40]]
    (tmp_path / "names.txt").write_text("\n".join([*names, names[0] + ".npy", ""]))
    line = words(published, tmp_path / "run", backbone, f"--label_file={tmp_path / 'names.txt'}", "--mode=knn")
    known = known_part(training_of(command_line.parse("finetune", line[1:])))
    assert known.indices.tolist() == train.indices[:40].tolist()
    assert known.split.dataset_id == train.split.dataset_id


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"lenses/none\nlenses/nobody\n", "2 of the 2 listed samples are not among the labelled samples"),
        (b"\n \n", "contains no names"),
        (b"\xff\xfe", "neither one name per line nor a pickle"),
    ],
)
def test_a_file_that_names_nothing_that_is_there_is_refused(
    content: bytes, said: str, published: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    more = f"--label_file={tmp_path / 'names.txt'}"
    assert main(words(published, tmp_path / "run", backbone, more)) == EXIT_REFUSED
    assert said in capsys.readouterr().err


def test_a_pickle_that_is_no_subset_or_would_run_something_is_refused(tmp_path: Path) -> None:
    for content, said in (([1, 2], "neither one name per line nor a pickle"), (print, "tries to run 'builtins.print'")):
        (tmp_path / "names.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=said):
            read_names(tmp_path / "names.pkl")


def test_two_ways_to_choose_labels_are_one_too_many(
    published: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("lenses/1\n")
    with pytest.raises(SystemExit):
        main(words(published, tmp_path / "run", backbone, f"--label_file={tmp_path / 'names.txt'}", "--num_labels=20"))
    assert "num_labels and label_file cannot be combined; give one of them" in capsys.readouterr().err
