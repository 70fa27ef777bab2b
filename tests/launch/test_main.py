"""The command line as a whole: which code it ends with, and what it says then."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import config
from jobs.attempts import EXIT_STOPPED
from launch.__main__ import main


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
        return settings.code

    def run_processes(command: list[str], num_processes: int, *, restarts: int) -> int:
        calls.append(("processes", (command, num_processes, restarts)))
        return 7

    job = SimpleNamespace(Settings=Settings, run=run, __doc__="A small job.")
    monkeypatch.setattr(config, "JOBS", ("small",))
    monkeypatch.setattr(config, "load_job", pick(job, config.load_job))
    monkeypatch.setattr("launch.local.run_processes", run_processes)
    return calls


def pick(job: SimpleNamespace, otherwise: Callable[[str], object]) -> Callable[[str], object]:
    """Gives the small job by its name."""
    return lambda name: job if name == "small" else otherwise(name)


@pytest.mark.parametrize("code", [0, 1, EXIT_STOPPED])
def test_the_exit_code_is_that_of_the_job(code: int, calls: Calls) -> None:
    assert main(["small", "--code", str(code)]) == code
    assert calls == [("run", Settings(code=code))]


def test_what_the_user_can_mend_is_one_line_and_code_2(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["small", "--code", "99"]) == 2
    assert capsys.readouterr().err == "deeplense: code=99 is one too many; give less.\n"


def test_of_several_ranks_only_the_first_says_what_is_wrong(
    calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["small", "--code", "99"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options", [["--num_processes", "3", "--restarts", "2"], ["--restarts=2", "--num_processes=3"]]
)
def test_several_processes_get_the_command_as_it_was_given(options: list[str], calls: Calls) -> None:
    assert main([*options, "small", "--code=4"]) == 7
    assert calls == [("processes", (["small", "--code=4"], 3, 2))]


def test_settings_are_checked_before_any_process_is_started(calls: Calls) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--num_processes", "3", "small", "--code=many"])
    assert exit.value.code == 2
    assert calls == []


@pytest.mark.parametrize(
    "options",
    [["--num_processes", "0"], ["--num_processes", "-1"], ["--num_processes"], ["--restarts", "-1"], ["--nodes", "2"]],
)
def test_wrong_options_before_the_job_end_with_code_2(options: list[str], calls: Calls) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*options, "small"] if options[-1] != "--num_processes" else options)
    assert exit.value.code == 2
    assert calls == []


def test_restarts_are_refused_or_made_where_there_is_one_process(calls: Calls) -> None:
    code = main(["--restarts", "1", "small", "--code", str(EXIT_STOPPED)])
    assert code == 2 or len(calls) == 2 or calls[0][0] == "processes"


def test_an_unknown_job_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "--lr", "1"]) == 2
    assert capsys.readouterr().err == "deeplense: there is no job 'trian'. Did you mean train?\n"


def test_help_lists_all_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in (*config.JOBS, "demo"))
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == shown


def test_the_installed_program_and_the_module_are_the_same(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("deeplense")
    for command in ([str(program)], [sys.executable, "-m", "launch"]):
        done = subprocess.run([*command, "verify", "nowhere"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode != 0
        assert "nowhere" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
