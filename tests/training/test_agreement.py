"""All ranks act after the same step on what any of them wants, and no step waits for a GPU or for what is under way."""

import itertools
import os
import random
import signal
import time
from functools import partial
from types import SimpleNamespace

import pytest
from group import on_ranks

from deeplense.training import agreement as agreement_module
from deeplense.training.agreement import Agreement, Request
from deeplense.training.loop import gather_lists, make_accelerator
from deeplense.training.stopping import StopFlag

TRIALS, STEPS = 12, 30


def test_what_one_process_wants_is_known_at_once() -> None:
    agreement = Agreement(make_accelerator(device="cpu", precision="fp32"))
    assert agreement.at_once
    for wanted in (Request(0), Request.STOP, Request.SAVE | Request.FAIL, Request.DIVERGED):
        assert agreement.exchange(wanted) == wanted
    assert agreement.finish() == Request(0)


def wanted_by(rank: int, step: int) -> Request:
    """Something that each rank wants at each step."""
    return Request(random.Random(f"{rank} {step}").choice([0, 0, 0, 1, 2, 4, 8, 3, 12]))


def agree_on_all(rank: int, size: int) -> None:
    """At each step all ranks learn what any wanted at the step before, however late one of them is."""
    agreement = Agreement(make_accelerator(device="cpu", precision="fp32"), seconds=0)
    assert not agreement.at_once
    expected = Request(0)
    for step in range(STEPS):
        time.sleep(random.Random(f"{rank} {step} late").choice([0, 0, 0.003]))
        assert agreement.exchange(wanted_by(rank, step)) == expected, step
        assert agreement.sent == wanted_by(rank, step)
        expected = Request(0)
        for other in range(size):
            expected |= wanted_by(other, step)
    assert agreement.finish() == expected
    assert agreement.finish() == Request(0)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_each_rank_learns_what_any_wanted_one_step_before(num_ranks: int) -> None:
    wanted = {request for rank in range(num_ranks) for step in range(STEPS) for request in wanted_by(rank, step)}
    assert wanted == set(Request), "the negative control: all are wanted by someone"
    on_ranks(num_ranks, agree_on_all)


def steps_until_stopped(rank: int, size: int, trial: int, *, seconds: float) -> tuple[int, int]:
    """After how many steps a rank stops, and at which one of them got the signal, of all ranks it alone."""
    draw, late = random.Random(trial), random.Random(f"{trial} {rank}")
    told, when = draw.randrange(size), draw.randrange(1, STEPS)
    agreement, step = Agreement(make_accelerator(device="cpu", precision="fp32"), seconds=seconds), 0
    with StopFlag() as stop:
        for step in itertools.count(1):
            time.sleep(late.choice([0, 0.001]) if seconds else 0)
            if rank == told and step == when:
                os.kill(os.getpid(), signal.SIGTERM)
            if Request.STOP in agreement.exchange(Request.STOP if stop.signal_name else Request(0)):
                break
    agreement.finish()
    return step, when


def stop_together(rank: int, size: int, *, seconds: float) -> None:
    """In each trial all ranks stop after the same step: where they exchange after each, the one after that in which the
    signal came."""
    accelerator, stops = make_accelerator(device="cpu", precision="fp32"), []
    for trial in range(TRIALS):
        step, when = steps_until_stopped(rank, size, trial, seconds=seconds)
        (stopped,) = set(gather_lists(accelerator, [step]))
        assert stopped == when + 1 if seconds == 0 else stopped > when
        stops.append(stopped)
    assert len(set(stops)) > TRIALS / 2


@pytest.mark.parametrize("seconds", [0, 0.02])
def test_all_of_four_ranks_stop_after_the_same_step_where_one_is_told_at_a_random_one(seconds: float) -> None:
    on_ranks(4, partial(stop_together, seconds=seconds))


def count_exchanges(rank: int, size: int) -> None:
    """The steps at whose ends requests are sent, where a step takes 1 / 64 s on one rank, and on the other twice as
    long, but half as long from step 30 on."""
    now = [0.0]
    agreement_module.time = SimpleNamespace(perf_counter=lambda: now[0])
    agreement = Agreement(make_accelerator(device="cpu", precision="fp32"), seconds=10 / 64)
    sent, learnt = [], []
    for step in range(1, 60):
        now[0] += (1 if rank == 0 else 2 if step < 30 else 0.5) / 64
        if Request.STOP in agreement.exchange(Request.STOP):
            learnt.append(step)
        if agreement.sent:
            sent.append(step)
    agreement.finish()
    # The slower one decides, by what it measured since the last: 5 steps in 10 / 64 s, once 7, then 10.
    assert sent == [1, 6, 11, 16, 21, 26, 31, 38, 48, 58], sent
    assert learnt == [step + 1 for step in sent]


def test_short_steps_are_followed_by_an_exchange_now_and_then() -> None:
    on_ranks(2, count_exchanges)


def stop_alone(rank: int, size: int) -> None:
    """Ranks that look at their own flag alone stop apart."""
    steps, step, when = [], 0, 2
    for told in range(size):
        with StopFlag() as stop:
            for step in range(1, 5):
                if rank == told and step == when:
                    os.kill(os.getpid(), signal.SIGTERM)
                if stop.signal_name:
                    break
        steps.append(step)
    stopped = gather_lists(make_accelerator(device="cpu", precision="fp32"), [steps])
    assert all(len(set(each)) == 2 for each in zip(*stopped, strict=True))


def test_ranks_that_do_not_agree_stop_apart() -> None:
    on_ranks(2, stop_alone)
