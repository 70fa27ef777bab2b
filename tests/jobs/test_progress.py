"""What a job says: plain lines in a log, a bar on a terminal, and one voice."""

import io

import pytest
from rich.console import Console

from jobs import console
from jobs.console import Reporter, say, track


class Clock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        """The time now."""
        return self.seconds

    def strftime(self, form: str) -> str:
        """The time of day."""
        return {"%H:%M:%S": "05:10:04"}[form]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that jobs look at."""
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


@pytest.mark.parametrize("message", ["[red]plain[/red] [1, 2]", "a" * 300, "data:key:1 :warning:", "50% {x} \\n"])
def test_a_message_comes_out_as_it_is_on_one_line(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(message)
    assert capsys.readouterr().out == f"{message}\n"


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter(total=100, unit="steps") as reporter:
        for done in range(1, 101):
            clock.seconds += 0.25
            reporter.update(done, "loss 0.5")
    assert capsys.readouterr().out.splitlines() == [
        "05:10:04 40/100 steps (4.0 steps/s, 0:00:15 left) loss 0.5",
        "05:10:04 80/100 steps (4.0 steps/s, 0:00:05 left) loss 0.5",
        "05:10:04 100/100 steps loss 0.5",
    ]


def test_the_rate_of_a_resumed_job_counts_only_what_this_attempt_did(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter(total=1000, unit="steps", done=900) as reporter:
        clock.seconds = 20.0
        reporter.update(940)
    assert capsys.readouterr().out == "05:10:04 940/1000 steps (2.0 steps/s, 0:00:30 left)\n"


def test_a_process_that_is_not_the_main_one_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(total=2, unit="steps", enabled=False) as reporter:
        clock.seconds = 100.0
        reporter.update(1, "loss 0.5")
        reporter.update(2, "loss 0.5")
    assert capsys.readouterr().out == ""


def test_work_is_done_and_its_end_is_told(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []
    track((done.append(k) or k for k in (2, 4, 6)), total=6, unit="images")
    assert done == [2, 4, 6]
    assert capsys.readouterr().out == "05:10:04 6/6 images\n"


def test_a_terminal_gets_a_bar_with_counts_and_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "CONSOLE", Console(file=screen, force_terminal=True, width=120))
    with Reporter(total=8, unit="steps") as reporter:
        reporter.update(8, "loss 0.5")
    assert "8/8" in screen.getvalue()
    assert "loss 0.5" in screen.getvalue()
    assert "\x1b[" in screen.getvalue()


def test_a_slow_job_says_how_long_one_step_takes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(total=1000, unit="steps") as reporter:
        clock.seconds = 40.0
        reporter.update(10)
    assert capsys.readouterr().out == "05:10:04 10/1000 steps (4.0 s per step, 1:06:00 left)\n"
