"""A run that is submitted once more: by its kept command, which an earlier version may have written, with the code that
was copied for it or none, and on as many nodes as are asked for."""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs import command_line
from jobs.runs.attempts import EXIT_REFUSED
from launch import copied, submit, task
from launch.__main__ import main
from launch.clusters import Cluster
from launch.copied import WHERE, refuse_changed, refuse_other_code
from launch.record import again, keep
from launch.snapshot import take_snapshot

ROOT = Path(__file__).parents[2]
IDLE = ("--momentum=0.8", "--optimizer", "adamw")


@pytest.mark.parametrize(
    "words",
    [["--momentum=0.8", "--lr=0.1"], ["--momentum", "0.8", "--lr=0.1"], ["--lr=0.1", "--momentum", "0.8"]],
)
def test_what_does_not_count_is_left_out_of_a_kept_command_with_its_value(words: list[str]) -> None:
    command = ["--run=r", "--dataset=d", "--optimizer=adamw", *words]
    settled, told = command_line.settle("train", *command)
    assert settled == ("train", "--run=r", "--dataset=d", "--optimizer=adamw", "--lr=0.1")
    assert told == ["--momentum has an effect only with --optimizer sgd"]
    assert command_line.parse("train", settled[1:]) == command_line.parse(
        "train", ["--run=r", "--dataset=d", "--lr=0.1"]
    )


def test_a_command_in_which_all_counts_stays_as_it_is() -> None:
    command = ("train", "--run", "r", "--dataset=d", "--optimizer", "sgd", "--momentum", "0.8")
    assert command_line.settle(*command) == (command, [])


def test_what_does_not_count_in_a_recipe_is_left_out_with_the_rest_of_it_kept(here: Path) -> None:
    (here / "r.yaml").write_text("optimizer: adamw\nmomentum: 0.8\nlr: 0.1\n")
    settled, told = command_line.settle("train", "--config=r.yaml", "--run=r", "--dataset=d")
    assert settled == ("train", "--optimizer=adamw", "--lr=0.1", "--run=r", "--dataset=d")
    assert told == ["momentum in the recipe has an effect only with --optimizer sgd"]


def test_a_setting_that_is_gone_is_left_out_of_a_kept_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("train", "--run=r", "--dataset=d", "--model_source", "ours")
    assert command_line.settle(*command) == (command[:3], ["--model_source no longer has any effect"])
    for words in (command[1:], ["--run=r", "--dataset=d", *IDLE]):
        with pytest.raises(SystemExit):
            command_line.parse("train", words)
    assert "--momentum has an effect only with --optimizer sgd; leave it out" in capsys.readouterr().err


def kept(run: Path, *words: str, code: Path = ROOT, cluster: Cluster | None = None) -> Path:
    """A run as a submission left it, of these words."""
    run.mkdir()
    (run / "code").symlink_to(code)
    command = ["train", "--dataset=d", f"--run={run}", *words]
    told = {"job_id": "1", "logs": str(run / "logs"), "cluster": asdict(cluster or Cluster(name="any"))}
    keep(run, told | {"command": command, "working_folder": str(Path.cwd()), "code": str(run / "code")})
    return run


def test_a_run_of_an_older_command_is_resumed_without_what_does_not_count_and_that_is_said(here: Path) -> None:
    submission = again(kept(here / "run", *IDLE))
    assert submission.commands == (("train", "--dataset=d", f"--run={here}/run", "--optimizer", "adamw"),)
    assert submission.left_out == ("--momentum has an effect only with --optimizer sgd; it is ignored",)
    assert submission.settings[0].momentum == 0.9


def test_code_of_the_older_version_gets_the_command_as_it_was(here: Path) -> None:
    old = here / "old"
    for package in ("deeplense", "jobs", "launch"):
        (old / package).mkdir(parents=True)
        (old / package / "__init__.py").touch()
    (old / "jobs" / "config.py").write_text("def parse(name, words):\n    assert '--momentum=0.8' in words\n")
    run = kept(here / "run", *IDLE, code=old)
    submission = again(run)
    assert submission.commands[0][-3:] == IDLE
    assert submission.left_out == ()
    # This version's checks pass it all the same.
    assert submission.settings[0].momentum == 0.9
    assert again(run, update_code=True).commands[0][-2:] == IDLE[-2:]


def test_a_kept_command_that_is_wrong_otherwise_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"run was submitted with a command that this version rejects"):
        again(kept(here / "run", "--lr=fast"))
    assert "--lr" in capsys.readouterr().err


def test_resume_says_what_it_leaves_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(here / "run", *IDLE)
    monkeypatch.setattr(submit, "send", lambda *_, **__: ["5"])
    assert main(["resume", "run"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"note: {here}/run: --momentum has an effect only with --optimizer sgd; it is ignored"
    assert second == "run: submitted as job 5"


def test_a_run_is_resumed_on_other_nodes_if_its_batch_is_large_enough(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = kept(here / "run", "--batch_size=64", cluster=Cluster(name="any", tasks_per_node=2))
    submission = again(run, nodes=4)
    assert (submission.cluster.nodes, submission.cluster.tasks) == (4, 8)
    assert again(run).cluster.nodes == 1
    elastic = again(run, nodes="1:4").cluster
    assert (elastic.nodes, elastic.least_nodes, elastic.tasks) == ("1:4", 1, 8)
    assert main(["resume", "--nodes", "2:33", "run"]) == EXIT_REFUSED
    assert "batch_size=64 is too small for 66 ranks" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["resume", "--help"])
    assert "so the weights differ" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", [["--batch_size=64"], ["--batch_size=64", "--gradient_accumulation=2"]])
def test_code_that_knows_no_uneven_shares_gets_no_range_of_nodes_and_no_number_that_does_not_divide_the_batch(
    words: list[str], here: Path
) -> None:
    old = here / "old"
    for package in ("deeplense", "jobs", "launch"):
        (old / package).mkdir(parents=True)
        (old / package / "__init__.py").touch()
    run = kept(here / "run", *words, code=old)
    for nodes in ("1:4", 3):
        with pytest.raises(ValueError, match="with the current code: --update_code"):
            again(run, nodes=nodes)
        assert again(run, nodes=nodes, update_code=True).cluster.nodes == nodes
        assert again(kept(here / f"new{nodes}", *words), nodes=nodes).cluster.nodes == nodes
    assert again(run, nodes=4).cluster.nodes == 4


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of a small code."""
    root = tmp_path / "root"
    for package in ("deeplense", "jobs", "launch"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text(f"# {package}\n")
    take_snapshot(tmp_path / "run" / "code", root=root)
    return tmp_path / "run" / "code"


def test_a_copy_of_the_code_is_what_it_was_or_refused(code: Path) -> None:
    refuse_changed(code)
    (code / "jobs" / "__pycache__").mkdir()
    (code / "jobs" / "__pycache__" / "x.pyc").touch()
    (code / "jobs" / ".nfs0000001").touch()
    refuse_changed(code)
    (code / "jobs" / "__init__.py").write_text("# later\n")
    with pytest.raises(ValueError, match=r"has changed: .*; `deeplense resume --update_code RUN` resumes it"):
        refuse_changed(code)


@pytest.mark.parametrize("gone", ["", "launch", "deeplense"])
def test_a_run_whose_code_is_gone_is_not_resumed_with_another(gone: str, here: Path, code: Path) -> None:
    run = kept(here / "again", code=code)
    again(run)
    path = code / gone
    path.rename(path.with_name("aside"))
    with pytest.raises(ValueError, match=r"the copy of the code of this run, .*, is gone"):
        again(run)
    again(run, update_code=True)


def test_a_process_of_other_code_than_the_copy_is_told_from_one_whose_copy_is_away(code: Path) -> None:
    refuse_other_code(ROOT)
    with pytest.raises(OSError, match="exists, but Python imports"):
        refuse_other_code(code)
    with pytest.raises(FileNotFoundError):
        refuse_other_code(code.parent.parent / "away" / "code")
    code.rename(code.with_name("aside"))
    with pytest.raises(ValueError, match="is gone"):
        refuse_other_code(code)


def test_a_part_of_the_code_from_elsewhere_is_other_code(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied, "origin_of", lambda name: (code if name == "launch" else ROOT) / name)
    with pytest.raises(OSError, match="Python imports jobs from"):
        refuse_other_code(code)


RANK = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0"}


def test_a_rank_whose_code_is_gone_runs_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(run: Callable[[], int]) -> None:
        sys.exit(run())

    monkeypatch.setattr("jobs.run_job.leave", leave)
    monkeypatch.setattr(task, "hold_signals", lambda job: None)
    for name, value in (RANK | {WHERE: str(here / "code"), "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"))
    with pytest.raises(SystemExit) as left:
        task.run_rank(["models", "resnet18"])
    assert left.value.code == EXIT_REFUSED
    assert f"the copy of the code of this run, {here}/code, is gone" in capsys.readouterr().err
