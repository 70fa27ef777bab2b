"""On each version of Slurm: what needs a run of its own kind, a moment of its own, or is to end otherwise than well."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster.faults import without_controller
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import (
    NEVER,
    Training,
    assert_accounted,
    assert_counted_to_the_end,
    assert_every_step_was_made,
    assert_no_process_is_left,
    steps_lost,
    take_all_nodes,
    wait_for,
)


def write(run: Training, name: str, text: str) -> None:
    """Tell the ranks something."""
    (run.home / name).write_text(text)


def begin_and_hold(run: Training, *options: str, step: int = 5, **given: Any) -> None:
    """Submit a run, and wait until its ranks wait before a step."""
    run.hold(step)
    run.submit(*options, **given)
    run.wait_until_held(attempt=1, step=step)


def finish(run: Training) -> None:
    """Let it go on, to the end."""
    run.hold(NEVER)
    run.wait_until_over()
    assert_counted_to_the_end(run)


def assert_stays_cancelled(run: Training) -> None:
    """It is over, says that it was cancelled, and goes on once a user resumes it."""
    run.wait_until_over()
    # The script may not have had the time to write it down; then whoever looks finds out.
    assert "ended: cancelled" in run.deeplense("status", str(run.run)), run.describe()
    assert_no_process_is_left(run)
    assert run.state() == ""
    for name in ("stubborn", "save_seconds"):
        (run.home / name).unlink(missing_ok=True)
    run.hold(NEVER)
    run.deeplense("resume", str(run.run))
    run.wait_until_over()
    assert_counted_to_the_end(run)


def test_a_cancelled_run(counted: Training) -> None:
    begin_and_hold(counted)
    counted.slurm.ask("scancel", counted.job_id)
    counted.wait_until_over()
    assert_accounted(counted, "CANCELLED")
    assert_stays_cancelled(counted)


def test_a_cancelled_run_whose_ranks_do_not_listen(counted: Training) -> None:
    begin_and_hold(counted)
    write(counted, "stubborn", "yes")
    counted.slurm.ask("scancel", counted.job_id)
    assert_stays_cancelled(counted)


def test_a_run_cancelled_in_a_save_that_takes_longer_than_it_is_left(counted: Training) -> None:
    begin_and_hold(counted)
    write(counted, "save_seconds", "20")
    counted.slurm.ask("scancel", counted.job_id)
    assert_stays_cancelled(counted)


def test_a_run_cancelled_while_it_is_told_to_stop(counted: Training) -> None:
    begin_and_hold(counted)
    write(counted, "save_seconds", "2")
    counted.slurm.ask("scancel", "--signal=USR2", counted.job_id)
    time.sleep(1)
    counted.slurm.ask("scancel", counted.job_id)
    assert_stays_cancelled(counted)


def test_a_controller_that_dies_right_after_a_cancellation(counted: Training, suite: str) -> None:
    if suite != "here":
        pytest.skip("newer versions may forget the cancellation with their controller, and the run goes on")
    begin_and_hold(counted)
    counted.slurm.ask("scancel", counted.job_id)
    with without_controller(counted.slurm):
        time.sleep(8)
    assert_stays_cancelled(counted)


def test_preempted_three_times_while_it_is_imported(counted: Training) -> None:
    write(counted, "begin_seconds", "4")
    counted.submit()
    for attempt in (1, 2, 3):
        wait_for(lambda number=attempt: len(counted.attempts()) >= number, counted.describe)
        wait_for(lambda: len(counted.ranks()) == 2, counted.describe)
        take_all_nodes(counted.slurm)
        counted.wait_for_end(attempt)
    write(counted, "begin_seconds", "0")
    finish(counted)
    assert counted.kinds() == ["preempted, with grace"] * 3 + ["finished"], counted.describe()


def test_preempted_without_grace(counted: Training) -> None:
    begin_and_hold(counted, profile={"partition": "nograce"})
    take_all_nodes(counted.slurm)
    counted.wait_for_attempt(2)
    finish(counted)
    assert counted.kinds() == ["preempted, without grace", "finished"], counted.describe()
    assert max(steps_lost(counted)) <= 1


@contextmanager
def cancelling(slurm: PrivateSlurm) -> Iterator[None]:
    """Preemption in the partition nograce ends jobs for good, for a while."""
    slurm.ask("scontrol", "update", "partition=nograce", "preemptmode=cancel")
    try:
        yield
    finally:
        slurm.ask("scontrol", "update", "partition=nograce", "preemptmode=requeue")


def test_preempted_where_that_cancels(counted: Training) -> None:
    with cancelling(counted.slurm):
        begin_and_hold(counted, profile={"partition": "nograce"})
        take_all_nodes(counted.slurm)
        counted.wait_for_attempt(2)
        finish(counted)
    assert counted.kinds() == ["preempted, without grace", "finished"], counted.describe()


def test_preempted_at_its_last_step_it_is_completed_and_what_depends_on_it_starts(counted: Training) -> None:
    slurm = counted.slurm
    begin_and_hold(counted, step=29)
    told = counted.home / "told"
    words = ("sbatch", "--parsable", f"--dependency=afterok:{counted.job_id}", "-o", "/dev/null")
    assert slurm.ask(*words, "-p", "normal", "--wrap", f"touch {told}")
    take_all_nodes(slurm)
    counted.wait_until_over()
    assert_counted_to_the_end(counted)
    wait_for(told.exists, counted.describe, seconds=120)
    assert "finished" in counted.deeplense("status", str(counted.run))


def test_once_preempted_it_is_completed_and_what_depends_on_it_starts(counted: Training) -> None:
    slurm = counted.slurm
    begin_and_hold(counted)
    told = counted.home / "told"
    words = ("sbatch", "--parsable", f"--dependency=afterok:{counted.job_id}", "-o", "/dev/null")
    assert slurm.ask(*words, "-p", "normal", "--wrap", f"touch {told}")
    take_all_nodes(slurm)
    counted.wait_for_end(1)
    finish(counted)
    wait_for(told.exists, counted.describe, seconds=120)


def test_near_the_time_limit(counted: Training) -> None:
    begin_and_hold(counted, profile={"hours": 2 / 60, "signal_delay_s": 70})
    counted.wait_for_end(1)
    finish(counted)
    assert counted.kinds() == ["time limit", "finished"], counted.describe()
    assert steps_lost(counted) == [0]


def test_the_budget_of_crashes_ends_a_run(counted: Training) -> None:
    write(counted, "die", "".join(f"{attempt} 1 before_step 1\n" for attempt in range(1, 9)))
    counted.submit("--restarts", "crash=1")
    counted.wait_until_over()
    assert counted.kinds() == ["crash", "crash"], counted.describe()
    assert_accounted(counted, "FAILED")
    assert_no_process_is_left(counted)
    assert "ended: crash" in counted.deeplense("status", str(counted.run))


def test_without_accounting_and_names_where_preemption_warns_by_another_signal(bare_counted: Training) -> None:
    begin_and_hold(bare_counted)
    take_all_nodes(bare_counted.slurm)
    bare_counted.wait_for_end(1)
    bare_counted.hold(12)
    bare_counted.wait_until_held(attempt=2, step=12)
    down = bare_counted.hosts()[-1]
    bare_counted.slurm.ask("scontrol", "update", f"nodename=node{down}", "state=down", "reason=test")
    bare_counted.wait_for_attempt(3)
    bare_counted.hold(NEVER)
    bare_counted.wait_until_over()
    bare_counted.slurm.bring_back(down)
    assert bare_counted.kinds() == ["preempted, with grace", "node lost", "finished"], bare_counted.describe()
    assert_every_step_was_made(bare_counted)
