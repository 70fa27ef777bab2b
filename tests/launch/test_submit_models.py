"""A table of models as one job array: an element for each training, and the table from any of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hooked
import pytest
from conftest import ROOT

from deeplense.files import write_json
from jobs.runs.attempts import EXIT_REFUSED, FOLDER, read_attempts
from jobs.runs.folder import FINISHED
from launch.__main__ import main
from launch.clusters import Cluster
from launch.script import submitit_script
from launch.submit import prepare_spread

PLAIN = Cluster(name="plain", python="/opt/python/bin/python")


def words(dataset: Path, *more: str) -> list[str]:
    """The command line of a table, as the user types it, without the job's name."""
    given = [
        "--models=simple_cnn",
        f"--datasets={dataset}",
        "--seeds=0:3",
        "--output=out",
        "--batch_size=16",
        "--epochs=1",
    ]
    return [*given, "--device=cpu", *more]


def test_each_run_that_is_left_is_an_element_and_its_folder_is_the_runs_own(here: Path, dataset: Path) -> None:
    command = ["benchmark models", *words(dataset)]
    names = [f"simple_cnn-{dataset.name}-{seed}" for seed in range(3)]
    job = prepare_spread(command, PLAIN)
    assert list(here.iterdir()) == []
    assert [list(each) for each in job.commands] == [[*command, f"--only={name}"] for name in names]
    assert [folder.relative_to(here / "out" / "runs") for folder in job.folders] == [Path(name) for name in names]
    assert job.logs.parent.parent == here / "launches"
    assert job.logs.parent.name.startswith("benchmark-models-20")
    lines = submitit_script(job).splitlines()
    assert "#SBATCH --array=0-2%3" in lines
    assert f"#SBATCH --job-name=benchmark-models-{names[0]}" in lines
    write_json(here / "out" / "runs" / names[1] / FINISHED, {})
    assert [folder.name for folder in prepare_spread(command, PLAIN).folders] == [names[0], names[2]]


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        (
            ["--export", "job.sh"],
            [],
            "benchmark models submits a job array, but --export writes the script of a single run",
        ),
        (["--parts", "2"], [], "benchmark models cannot be split; --parts is only for simulate and pack"),
        ([], ["--models=resnet81"], "unknown model 'resnet81'"),
        (["--tasks_per_node", "2"], [], "benchmark models runs as a single process"),
    ],
)
def test_what_cannot_be_submitted_is_told_before_anything_is_written(
    options: list[str], more: list[str], said: str, here: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--on", "local", *options, "benchmark", "models", *words(dataset, *more)]) == EXIT_REFUSED
    assert said in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_where_all_is_trained_nothing_is_submitted(
    here: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        write_json(here / "out" / "runs" / f"simple_cnn-{dataset.name}-{seed}" / FINISHED, {})
    assert main(["submit", "--on", "local", "benchmark", "models", *words(dataset)]) == EXIT_REFUSED
    assert "all runs in out are finished; run the command without `submit` to make the table" in capsys.readouterr().err


def type_command(here: Path, *line: str, python: Path = Path(sys.executable)) -> tuple[int, str]:
    """Type a command; returns its exit code and what it said."""
    told = hooked.variables(here, counts=False) | {"DEEPLENSE_FORKS": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    given: dict[str, Any] = {"cwd": here, "env": os.environ | told, "timeout": 300}
    with (here / "said.txt").open("w") as file:
        done = subprocess.run([str(python), "-m", "launch", *line], stdout=file, stderr=file, **given)
    return done.returncode, (here / "said.txt").read_text()


def processes(here: Path) -> list[int]:
    """All processes of the runs below a folder that have not ended."""
    mark, found = f"{FOLDER}={here}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if any(line.startswith(mark) for line in path.read_bytes().split(b"\0")):
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def place(here: Path) -> Iterator[Path]:
    """An empty current folder; what still runs below it in the end is killed."""
    yield here
    for pid in processes(here):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_an_element_that_is_stopped_goes_on_by_itself_and_makes_the_table(
    place: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its processes are started as for a user, but for the runs, which the table forks (tests/cluster/hooks)."""
    python = hooked.make_python(tmp_path_factory.mktemp("python"))
    line = ["benchmark", "models", *words(dataset, "--seeds=4", "--epochs=2", "--evaluate_epochs=99")]
    # After the four steps of the measurement of its cost.
    hooked.hold(place, 5)
    code, said = type_command(place, "submit", "--on", "local", "--allow_untracked", *line, python=python)
    assert code == 0, said
    run, deadline = place / "out" / "runs" / f"simple_cnn-{dataset.name}-4", time.monotonic() + 400
    while not (told := read_attempts(run)) or told[-1]["first_step"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(told[-1]["pid"], signal.SIGUSR1)
    hooked.hold(place, 10**9)
    while processes(place):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [attempt["ended"] for attempt in read_attempts(run)] == ["stopped by SIGUSR1", "finished"]
    assert all("concluded" in attempt for attempt in read_attempts(run))
    (row,) = json.loads((place / "out" / "table.json").read_text())["rows"]
    assert (row["seeds"], row["problem"]) == ([4], "")
    assert "finished" in type_command(place, "status")[1]
    assert "evaluating simple_cnn" in type_command(place, "logs", str(run))[1]
