"""Stopping: a signal is noted, never acted on, and only by the process that asked to hear it."""

import os
import signal
import subprocess
import sys

import pytest

from deeplense.training import stopping
from deeplense.training.stopping import ANSWER, STOP_SIGNALS, StopFlag

FORKED = """
import os, signal, sys
from deeplense.training.stopping import StopFlag

with StopFlag() as stop:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(3 if stop.signal_name is None else 4)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), stop.signal_name)
    os.kill(os.getpid(), signal.SIGUSR2)
    print(stop.signal_name)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag_and_nothing_else_happens(number: signal.Signals) -> None:
    with StopFlag() as stop:
        assert stop.signal_name is None
        os.kill(os.getpid(), number)
        assert stop.signal_name == number.name


def test_of_several_signals_the_first_is_kept() -> None:
    with StopFlag() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.signal_name == "SIGUSR1"


def fail_while_listening(before: list[object]) -> None:
    """Fail where signals are noted."""
    with StopFlag():
        assert all(signal.getsignal(number) not in before for number in STOP_SIGNALS)
        raise ZeroDivisionError


def test_the_handlers_before_it_are_restored_also_after_an_error() -> None:
    before: list[object] = [signal.getsignal(number) for number in STOP_SIGNALS]
    with pytest.raises(ZeroDivisionError):
        fail_while_listening(before)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_forked_child_notes_nothing_and_its_parent_goes_on_listening() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "None", "SIGUSR2"]


def test_the_first_ctrl_c_is_answered_at_once_by_one_rank_and_a_second_one_leaves(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.signal_name, capfd.readouterr().err) == ("SIGINT", ANSWER)
        # A terminal signals each rank, and so does the launcher: that is the same Ctrl-C.
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(stopping, "SECOND_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setenv("RANK", "1")
    with StopFlag():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", sorted(set(STOP_SIGNALS) - {signal.SIGINT}))
def test_no_number_of_signals_of_a_scheduler_leaves_at_once(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stopping, "SECOND_S", 0.0)
    with StopFlag() as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
    assert (stop.signal_name, capfd.readouterr().err) == (number.name, "")
