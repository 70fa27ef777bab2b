"""Ranks that count in the place of trainings, on a real Slurm: what the other tests of the launch layer rest on."""

from dataclasses import replace

import pytest

from tests.cluster.trainings import (
    NEVER,
    Training,
    assert_accounted,
    assert_counted_to_the_end,
    assert_no_process_is_left,
    kill,
    steps_lost,
    take_all_nodes,
)


def test_ranks_that_count_survive_what_trainings_survive(counted: Training) -> None:
    counted = replace(counted, tasks_per_node=2)
    slurm = counted.slurm
    counted.hold(4)
    counted.submit("--restarts", "crash=4")
    counted.wait_until_held(attempt=1, step=4)
    slurm.ask("scancel", "--signal=USR2", counted.job_id)
    counted.wait_for_end(1)
    counted.hold(8)
    counted.wait_until_held(attempt=2, step=8)
    take_all_nodes(slurm)
    counted.wait_for_end(2)
    counted.hold(12)
    counted.wait_until_held(attempt=3, step=12)
    slurm.ask("scontrol", "requeue", counted.job_id)
    counted.wait_for_end(3)
    counted.hold(16)
    counted.wait_until_held(attempt=4, step=16)
    kill(counted.ranks()[3])
    counted.wait_for_end(4)
    (counted.home / "die").write_text("5 1 before_step 3 raise\n6 0 before_rename 2\n")
    counted.hold(NEVER)
    counted.wait_until_over()
    expected = ["time limit", "preempted, with grace", "requeued", "crash", "crash", "crash", "finished"]
    assert counted.kinds() == expected, counted.describe()
    assert_counted_to_the_end(counted)
    assert steps_lost(counted)[:3] == [0, 0, 0]
    assert max(steps_lost(counted)) <= 1


def test_a_count_that_is_cancelled_stays_so_until_it_is_resumed(counted: Training) -> None:
    counted.hold(4)
    counted.submit()
    counted.wait_until_held(attempt=1, step=4)
    counted.slurm.ask("scancel", counted.job_id)
    counted.wait_until_over()
    assert counted.kinds() == ["cancelled"], counted.describe()
    assert_accounted(counted, "CANCELLED")
    assert_no_process_is_left(counted)
    with pytest.raises(AssertionError):
        assert_counted_to_the_end(counted)
    counted.hold(NEVER)
    counted.deeplense("resume", str(counted.run))
    counted.wait_until_over()
    assert_counted_to_the_end(counted)
