"""A job shared among the tasks of an array: what is submitted, and a data set that this machine makes in parts."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import put

from deeplense.data.verifying import verify
from jobs.pack import settings as pack_settings
from jobs.pack import work as pack_work
from jobs.runs.attempts import read_attempts
from jobs.runs.folder import LAUNCH
from launch.clusters import Cluster
from launch.script import submitit_script
from launch.submit import prepare_parts

PLAIN = Cluster(name="plain", python="/opt/python/bin/python")
WORDS = ["simulate", "--output=data", "--num_per_class", "500"]


def type_command(here: Path, *words: str) -> str:
    """Type a command; returns what it said."""
    said = here / "said.txt"
    with said.open("w") as file:
        command = [sys.executable, "-m", "launch", *words]
        done = subprocess.run(command, cwd=here, stdout=file, stderr=file, timeout=120)
    assert done.returncode == 0, said.read_text()
    return said.read_text()


def test_each_task_has_its_part_and_a_folder_of_its_own(here: Path) -> None:
    job = prepare_parts(WORDS, PLAIN, num_parts=12, folder=Path("there"))
    assert [command[:-1] for command in job.commands] == [tuple(WORDS)] * 12
    assert [command[-1] for command in job.commands] == [f"--part={k}/12" for k in range(1, 13)]
    assert [str(folder.relative_to(here)) for folder in job.folders] == [f"there/part-{k:02}" for k in range(1, 13)]
    assert (job.logs, job.code) == (here / "there" / "logs", here / "there" / "code")
    assert list(here.iterdir()) == []


def test_the_parts_are_one_array_below_a_folder_with_the_time(here: Path) -> None:
    job = prepare_parts(WORDS, PLAIN, num_parts=3)
    lines = submitit_script(job).splitlines()
    assert "#SBATCH --array=0-2%3" in lines
    assert "#SBATCH --requeue" in lines
    home = job.folders[0].parent
    assert home.parent == here / "launches"
    assert home.name.startswith("simulate-20")


def test_what_cannot_be_shared_is_refused(here: Path) -> None:
    with pytest.raises(ValueError, match=r"verify cannot be split; --parts is only for simulate and pack"):
        prepare_parts(["verify", "data"], PLAIN, num_parts=2)
    with pytest.raises(ValueError, match="leave --part=1/2 out"):
        prepare_parts([*WORDS, "--part=1/2"], PLAIN, num_parts=2)
    with pytest.raises(SystemExit):
        prepare_parts([*WORDS, "--num_per_class=0"], PLAIN, num_parts=2)


def test_the_words_of_the_job_are_no_abbreviations_of_options(here: Path) -> None:
    said = type_command(here, "submit", "--on", "local", "--dry_run", *WORDS, "--part", "1/2")
    assert "launches/simulate-" in said
    assert "part-1" not in said


def test_this_machine_makes_a_data_set_in_parts_one_after_another(here: Path) -> None:
    for number in range(100):
        put(here / "in" / "no" / f"{number}.npy", np.random.default_rng(number).normal(size=(4, 4)))
    words = ["pack", "--layout=gsoc", "--source=in", "--output=out"]
    shown = type_command(here, "submit", "--on=local", "--parts=3", "--folder=there", "--dry_run", *words)
    assert [line for line in shown.splitlines() if "part" in line] == [f"# there/part-{k}" for k in (1, 2, 3)]
    assert not (here / "there").exists()
    said = type_command(here, "submit", "--on=local", "--allow_untracked", "--parts=3", "--folder=there", *words)
    assert said.count("queued; starts when the runs before it have ended") == 3
    type_command(here, "logs", "there/part-3", "--follow")
    deadline = time.monotonic() + 60
    while any(not read_attempts(here / "there" / f"part-{k}")[-1]["ended"] for k in (1, 2, 3)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len({json.loads((here / "there" / f"part-{k}" / LAUNCH).read_text())["job_id"] for k in (1, 2, 3)}) == 3
    assert [line.split()[-1] for line in type_command(here, "status").splitlines()[1:]] == ["finished"] * 3
    assert "part 1/3 is done; 1 of 2 shards are still missing" in type_command(here, "logs", "there/part-1")
    assert verify(here / "out") == []
    pack_work.run(pack_settings.Settings(layout="gsoc", source=Path("in"), output=Path("whole")))
    for path in (here / "whole").rglob("*.*"):
        assert path.read_bytes() == (here / "out" / path.relative_to(here / "whole")).read_bytes()
