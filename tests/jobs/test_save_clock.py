"""When a checkpoint is asked for: as often as the settings say, of several ranks a step ahead, for they save a step
after they were asked."""

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deeplense.training.agreement import Agreement, Request
from jobs.frame import saving
from jobs.frame.saving import SaveClock


def saves(
    *, minutes: float, num_steps: int, ranks: int, step: float = 1.0, better: frozenset[int] = frozenset()
) -> list[int]:
    """After which steps a training saves whose writes take no time; `better` are those after which its best weights are
    saved."""
    now, saved, sent = 0.0, [], Request(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: now))
        clock = SaveClock(60 * minutes, last_save=now, last_look=now)
        for number in range(1, num_steps + 1):
            now += step
            agreement = cast(Agreement, SimpleNamespace(at_once=ranks == 1, sent=sent))
            due = clock.is_due(agreement, better=number in better, writing=False)
            if due if ranks == 1 else sent:
                saved.append(number)
                clock.last_save = now
            sent = Request.SAVE if due and ranks > 1 else Request(0)
    return saved


@pytest.mark.parametrize("ranks", [1, 4])
def test_checkpoints_are_as_far_apart_as_asked(ranks: int) -> None:
    found = saves(minutes=0.5, num_steps=200, ranks=ranks)
    assert len(found) in (6, 7)
    assert {later - sooner for sooner, later in itertools.pairwise(found)} <= {30, 31}


def test_where_each_step_is_to_be_saved_each_is_but_the_first_of_several_ranks() -> None:
    assert saves(minutes=1e-9, num_steps=6, ranks=1) == [1, 2, 3, 4, 5, 6]
    assert saves(minutes=1e-9, num_steps=6, ranks=4) == [2, 3, 4, 5, 6]


def test_several_ranks_ask_for_none_while_the_best_weights_are_written() -> None:
    assert saves(minutes=0.1, num_steps=12, ranks=4) == [7]
    assert saves(minutes=0.1, num_steps=12, ranks=4, better=frozenset({6})) == [8]
    assert saves(minutes=0.1, num_steps=12, ranks=1, better=frozenset({7})) == [7]


def test_one_that_falls_due_while_another_is_written_is_put_off() -> None:
    agreement: Any = SimpleNamespace(at_once=True, sent=Request(0))
    clock = SaveClock(1e-9, last_save=0.0)
    assert clock.is_due(agreement, better=False, writing=False)
    assert not clock.is_due(agreement, better=False, writing=True)
    assert clock.is_due(agreement, better=True, writing=True)
