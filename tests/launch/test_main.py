"""The command line as a whole: which code it ends with, and what it says then."""

import errno
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import verbs
from jobs.runs.attempts import EXIT_DISK_FULL, EXIT_REFUSED, EXIT_STOPPED, NUMBER
from launch.__main__ import main
from launch.commands import COMMANDS, budgets


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the small job is told."""

    code: int = 0
    """which to end with"""


Calls = list[tuple[str, object]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is called where `small` is the one job: itself, or several processes of it."""
    calls: Calls = []

    def run(settings: Settings) -> int:
        calls.append(("run", settings))
        if settings.code == 99:
            raise ValueError("code=99 is one too many; give less.")
        if settings.code > 100:
            raise OSError(settings.code - 100, os.strerror(settings.code - 100), "/scratch/run")
        return settings.code

    def run_processes(command: list[str], num_processes: int) -> int:
        calls.append(("processes", (command, num_processes)))
        return 7

    monkeypatch.setitem(sys.modules, "jobs.small.settings", SimpleNamespace(Settings=Settings, __doc__="A small job."))
    monkeypatch.setitem(sys.modules, "jobs.small.work", SimpleNamespace(run=run))
    for name in ("RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(verbs, "VERBS", (*verbs.VERBS, verbs.Verb("small")))
    monkeypatch.setattr("launch.local.run_processes", run_processes)
    return calls


@pytest.mark.parametrize("code", [0, 1, EXIT_STOPPED])
def test_the_exit_code_is_that_of_the_job(code: int, calls: Calls) -> None:
    assert main(["small", "--code", str(code)]) == code
    assert calls == [("run", Settings(code=code))]


def test_what_the_user_can_mend_is_one_line_and_code_2(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["small", "--code", "99"]) == EXIT_REFUSED == 2
    assert capsys.readouterr().err == "deeplense: code=99 is one too many; give less.\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_a_code_of_its_own_and_one_line(
    number: int, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["small", "--code", str(100 + number)]) == EXIT_DISK_FULL == 87
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"deeplense: .*: '/scratch/run'; the last checkpoint is kept\. Free some space, then .*\n", said
    )


@pytest.mark.parametrize(("launched", "code"), [(False, EXIT_REFUSED), (True, 1)])
def test_another_error_of_the_disk_is_one_line_and_a_crash_to_a_launcher_who_may_try_again(
    launched: bool, code: int, calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NUMBER, raising=False)
    if launched:
        monkeypatch.setenv(NUMBER, "2")
    assert main(["small", "--code", str(100 + errno.EIO)]) == code
    assert re.fullmatch(r"deeplense: /scratch/run: Input/output error\. Try again; .*\.\n", capsys.readouterr().err)


@pytest.mark.parametrize(("rank", "code"), [(None, EXIT_REFUSED), ("3", 0)])
def test_tasks_that_know_nothing_of_each_other_are_refused(
    rank: str | None, code: int, calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert main(["small"]) == code
    assert len(calls) == (code == 0)
    refused = "deeplense: srun started 4 tasks, and each would run the whole job; use `deeplense submit`"
    assert capsys.readouterr().err.startswith(refused) == (code != 0)


def test_of_several_ranks_only_the_first_says_what_is_wrong(
    calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["small", "--code", "99"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("options", [["--num_processes", "3"], ["--num_processes=3"]])
def test_several_processes_get_the_command_as_it_was_given(options: list[str], calls: Calls) -> None:
    assert main([*options, "small", "--code=4"]) == 7
    assert calls == [("processes", (["small", "--code=4"], 3))]


def test_settings_are_checked_before_any_process_is_started(calls: Calls) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--num_processes", "3", "small", "--code=many"])
    assert exit.value.code == 2
    assert calls == []


@pytest.mark.parametrize(
    "options",
    [["--num_processes", "0"], ["--num_processes", "-1"], ["--num_processes"], ["--restarts", "1"], ["--nodes", "2"]],
)
def test_wrong_options_before_the_job_end_with_code_2(options: list[str], calls: Calls) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*options, "small"] if options[-1] != "--num_processes" else options)
    assert exit.value.code == 2
    assert calls == []


def test_an_unknown_job_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "--lr", "1"]) == 2
    assert capsys.readouterr().err == "deeplense: unknown job 'trian'. Did you mean train?\n"


def test_help_lists_all_jobs_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in (*verbs.JOBS, *COMMANDS))
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    assert f"usage: deeplense {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "--on", "locl", "train"], "unknown cluster 'locl'. Did you mean local?"),
        (["submit", "--on", "local"], "no job was given; add one at the end of the command"),
        (
            ["submit", "--on", "local", "--restarts", "crahs=1", "train"],
            "unknown reason 'crahs'. Did you mean crash?",
        ),
        (["submit", "--on", "local", "--hours", "0", "train"], "hours: 0.0 is too small"),
        (["submit", "--on", "local", "trian"], "unknown job 'trian'. Did you mean train?"),
        (["submit", "--on", "local", "--parts", "2", "verify", "a"], "verify cannot be split; --parts is only for"),
        (
            ["submit", "--on", "local", "--parts", "2", "--export", "f", "simulate", "--output=a"],
            "--parts submits a job array",
        ),
        (["sweep", "--on", "local", "train", "--run", "a"], "names no setting to vary"),
        (["status"], "no run found in or below .; start one with `deeplense train` or `submit`"),
        (["logs", "here"], "was not submitted: it has no launch.json"),
        (["cancel", "here"], "was not submitted: it has no launch.json"),
        (["resume", "here"], "was not submitted: it has no launch.json"),
    ],
)
def test_a_command_that_cannot_be_meant_is_one_line_and_code_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == EXIT_REFUSED
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("deeplense: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_budgets_are_read_from_the_command_line() -> None:
    assert budgets("crash=3,hang=1") == {"crash": 3, "hang": 1}
    assert budgets("time_limit=30, node lost=2") == {"time limit": 30, "node lost": 2}


@pytest.mark.parametrize("text", ["3", "crash", "crash=", "crash=-1", "crash=a", "crash=1=2", "", "crash=1,"])
def test_what_is_no_budget_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["submit", "--on", "local", "--restarts", text, "train"])
    assert f"{text!r} is not of the form REASON=NUMBER,...; for example: crash=3,hang=1" in capsys.readouterr().err


def test_the_installed_program_and_the_module_are_the_same(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("deeplense")
    for command in ([str(program)], [sys.executable, "-m", "launch"]):
        done = subprocess.run([*command, "verify", "nowhere"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode != 0
        assert "nowhere" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_this_machine_has_no_batch_script_to_show_or_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    job = ["train", "--run", str(run), "--dataset", "d"]
    assert main(["submit", "--on", "local", "--dry_run", *job]) == 0
    assert capsys.readouterr().out == f"# jobs on this machine use no batch script\n# {run}\n"
    assert main(["submit", "--on", "local", "--export", str(tmp_path / "job.sh"), *job]) == 2
    assert "jobs on this machine use no batch script" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_image_may_be_given_by_a_path_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "submit",
        "--on",
        "rehearsal",
        "--image",
        "image.sif",
        "--dry_run",
        "train",
        "--run",
        "run",
        "--dataset",
        "d",
    ]
    assert main(words) == 0
    assert f" {tmp_path / 'image.sif'} python -u -m submitit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--num_proc 2 train", "num_processes"),
        ("train --run a --dataset b --epoch 3", "epochs"),
        ("evaluate --run a --batch 3", "batch_size"),
        ("submit --on local --node 2 train --run a --dataset b", "nodes"),
        ("submit --on local train --run a --dataset b --epoch=3", "epochs"),
        ("sweep --on local --part x train --run a{seed} --dataset b --seed 0:2", "partition"),
        ("sweep --on local train --run a{seed} --dataset b --seed 0:2 --epoch 3", "epochs"),
        ("logs a --follo", "follow"),
        ("resume a --hour 3", "hours"),
        ("doctor --on local --run", "run_job"),
        ("demo --out a", "output"),
    ],
)
def test_no_flag_may_be_abbreviated(words: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert "unknown setting" in line
    assert f"Did you mean {meant}" in line or f" or {meant}?" in line
