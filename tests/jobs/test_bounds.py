"""What starts processes or takes memory has a bound, and more is refused before anything starts."""

from dataclasses import fields
from pathlib import Path

import pytest

from jobs import verbs
from jobs.bounds import MOST, refuse_crowd
from jobs.runs.environment import num_cores
from launch.__main__ import main
from tests.jobs.test_config import LEAST, refusal

WHOLE_NUMBERS = [
    (job, field.name)
    for job in verbs.JOBS
    for field in fields(verbs.settings_of(job))
    if field.type in (int, int | None)
]
UNBOUNDED = {"fold"}
"""It is below num_folds."""


def test_every_whole_number_has_a_bound() -> None:
    assert {name for _, name in WHOLE_NUMBERS} - set(MOST) == UNBOUNDED


@pytest.mark.parametrize("name", sorted({name for _, name in WHOLE_NUMBERS} - UNBOUNDED))
def test_more_than_can_be_meant_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = next(job for job, known in WHOLE_NUMBERS if known == name)
    words = {"benchmark": ["data" if name in ("num_images", "image_size") else "train"], "evaluate": ["--run=a"]}
    line = refusal(job, [*words.get(job, LEAST[job]), f"--{name}={MOST[name] + 1}"], capsys)
    assert line == f"deeplense {job}: {name}={MOST[name] + 1} is too large; use {MOST[name]} or less."


@pytest.mark.parametrize("words", [["--num_processes", "{}", "train"], ["train", "--num_workers", "{}"]])
def test_more_processes_than_this_machine_bears_are_refused_before_one_is_started(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = str(max(4 * num_cores(), 16) + 1)
    line = [word.format(many) for word in words]
    assert main([*line, f"--run={tmp_path / 'run'}", "--dataset=nowhere"]) == 2
    said = capsys.readouterr().err
    assert f"={many} would start {many} processes or threads, but this machine has {num_cores()} cores" in said
    assert list(tmp_path.iterdir()) == []


def test_as_many_processes_as_cores_are_no_crowd() -> None:
    refuse_crowd({"num_workers": num_cores(), "num_processes": 16, "read_ahead": 1})


def test_more_parts_than_can_be_meant_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "more than 10000 parts" in refusal("simulate", ["--output=a", "--part=1/10001"], capsys)
    with pytest.raises(SystemExit):
        main(["submit", "--on=local", "--parts=10001", "simulate", "--output=a"])
    assert "10001 is above 10000" in capsys.readouterr().err
