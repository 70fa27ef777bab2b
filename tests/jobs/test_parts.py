"""Parts: jobs that each make some shards of a data set, simulated or packed, give the bytes of one that makes all."""

from pathlib import Path

import numpy as np
import pytest
from conftest import put

from deeplense.data.shards import MANIFEST
from jobs import command_line, verbs
from jobs.bounds import read_part
from jobs.pack import settings as pack_settings
from jobs.pack import work as pack_work
from jobs.simulate import settings as simulate_settings
from jobs.simulate import work as simulate_work

SIZE = 6


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def image_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(SIZE, SIZE))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of 150 images of three classes."""
    for number in range(150):
        put(tmp_path / "in" / ("no", "sphere", "vort")[number % 3] / f"{number}.npy", image_of(number))
    return tmp_path / "in"


def packing(source: Path, output: Path, part: str | None = None) -> pack_settings.Settings:
    return pack_settings.Settings(layout="gsoc", source=source, output=output, test_fraction=0.5, part=part)


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (3, 2, 1)])
def test_a_data_set_packed_in_parts_has_the_bytes_of_one_packed_at_once(
    tmp_path: Path, source: Path, order: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    pack_work.run(packing(source, tmp_path / "one"))
    for number in order:
        assert not list((tmp_path / "parts").rglob(MANIFEST))
        assert pack_work.run(packing(source, tmp_path / "parts", f"{number}/{len(order)}")) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "one")
    said = capsys.readouterr().out
    assert "2 of 4 shards are still missing" in said
    assert said.splitlines()[-1] == f"part {order[-1]}/{len(order)} is done; the data set is complete"


def test_a_bad_file_stops_its_part_alone_and_no_split_is_finished_until_it_is_mended(
    tmp_path: Path, source: Path
) -> None:
    pack_work.run(packing(source, tmp_path / "one"))
    good = (source / "vort" / "2.npy").read_bytes()
    put(source / "vort" / "2.npy", np.full((SIZE, SIZE), np.nan))
    told = []
    for number in (1, 2):
        try:
            pack_work.run(packing(source, tmp_path / "parts", f"{number}/2"))
        except ValueError as error:
            told.append(str(error))
    assert len(told) == 1
    assert "vort/2: has pixels that are not finite" in told[0]
    kept = files(tmp_path / "parts")
    assert len(kept) in (2, 3)
    assert kept.items() <= files(tmp_path / "one").items()
    assert not [name for name in kept if name.endswith(MANIFEST)]
    (source / "vort" / "2.npy").write_bytes(good)
    for number in (1, 2):
        pack_work.run(packing(source, tmp_path / "parts", f"{number}/2"))
    assert files(tmp_path / "parts") == files(tmp_path / "one")


def test_a_call_without_part_makes_what_is_missing(tmp_path: Path) -> None:
    def settings(output: str, part: str | None = None) -> simulate_settings.Settings:
        return simulate_settings.Settings(
            output=tmp_path / output, num_per_class=25, num_workers=1, dtype="float16", part=part
        )

    simulate_work.run(settings("parts", "2/2"))
    assert list(files(tmp_path / "parts")) == ["train/shard-00001.h5"]
    simulate_work.run(settings("parts"))
    simulate_work.run(settings("one"))
    assert files(tmp_path / "parts") == files(tmp_path / "one")
    simulate_work.run(settings("parts", "1/2"))
    assert files(tmp_path / "parts") == files(tmp_path / "one")


@pytest.mark.parametrize(("text", "part"), [("1/1", (1, 1)), ("3/8", (3, 8)), ("08/8", (8, 8))])
def test_a_part_is_read(text: str, part: tuple[int, int]) -> None:
    assert read_part(text) == part


@pytest.mark.parametrize(
    "text", ["", "3", "0/3", "4/3", "1/0", "-1/3", "1/3/3", "1.0/3", " 1/3", "1/3\n", "a/b", "²/3"]
)
@pytest.mark.parametrize("job", verbs.DIVISIBLE)
def test_what_is_no_part_is_refused_before_anything_is_made(
    job: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    least = {
        "simulate": [],
        "pack": ["--layout=gsoc", f"--source={tmp_path}"],
        "sample": ["--run=run", "--num_images=9"],
        "predict": ["--run=run", f"--dataset={tmp_path}"],
    }[job]
    with pytest.raises(SystemExit) as refused:
        command_line.parse(job, [*least, f"--output={tmp_path / 'out'}", f"--part={text}"])
    assert refused.value.code == 2
    expected = "contains the control character" if "\n" in text else f"deeplense {job}: part="
    assert expected in capsys.readouterr().err
