"""Faults in an order and at times that a seed draws: a few here, as many as one likes by `tests.cluster.schedules`."""

from pathlib import Path

import pytest

from tests.cluster import schedules
from tests.cluster.faults import FAULTS
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.schedules import command, draw, parse, play
from tests.cluster.trainings import Training

SEEDS = range(2)
MANY = range(200)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_goes_on_alone_after_what_a_seed_draws(seed: int, counted: Training, suite: str) -> None:
    schedule = draw(seed)
    try:
        play(schedule, counted)
    except (AssertionError, TimeoutError) as error:
        pytest.fail(f"{command(schedule, suite)}\n{error}")


def test_schedules_are_of_two_to_five_faults_and_together_of_all() -> None:
    drawn = [draw(seed) for seed in MANY]
    assert {len(schedule.faults) for schedule in drawn} == {2, 3, 4, 5}
    assert {name for schedule in drawn for _, name in schedule.faults} == set(FAULTS)
    assert draw(7) == draw(7) != draw(8)


def test_a_schedule_is_read_as_it_is_printed() -> None:
    assert [draw(seed) for seed in MANY] == [parse(str(draw(seed))) for seed in MANY]
    with pytest.raises(ValueError, match="none of: SECONDS told near the limit"):
        parse("1.0 preempted, 2.0 eaten")


def test_one_that_fails_is_printed_as_the_command_that_plays_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = parse("1.5 preempted, 0.2 first rank killed")

    def fail(*words: object) -> None:
        raise AssertionError("it stands still")

    monkeypatch.setattr(schedules, "play", fail)
    monkeypatch.setattr(PrivateSlurm, "clear", lambda slurm: None)
    assert not schedules.attempt_to_play(schedule, PrivateSlurm(tmp_path), "trixie")
    told = capsys.readouterr().out
    assert "python -m tests.cluster.schedules --suite trixie --play '1.5 preempted, 0.2 first rank killed'" in told
    assert "it stands still" in told
