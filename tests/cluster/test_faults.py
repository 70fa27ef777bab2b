"""Faults injected into trainings on two nodes of a real Slurm: none costs a sample, a bit, or the truth."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster.private_slurm import NUM_HOSTS, PrivateSlurm
from tests.cluster.trainings import (
    NEVER,
    Training,
    assert_nothing_was_lost,
    kill,
    steps_lost,
    take_all_nodes,
    wait_for,
)


class OtherWeights(Training):
    """The same, but for the last bit of a weight."""

    def weights(self) -> dict[str, Any]:
        found = super().weights()
        tensor = next(iter(found["model"].values()))
        tensor.view(-1)[0] = torch.nextafter(tensor.view(-1)[0], torch.tensor(torch.inf))
        return found


class OtherOrder(Training):
    """The same, but for two samples of the last step."""

    def samples(self) -> dict[int, list[list[list[int]]]]:
        found = super().samples()
        found[max(found)][0][0].reverse()
        return found


@pytest.mark.parametrize("kind", [OtherWeights, OtherOrder])
def test_the_comparison_sees_a_bit_and_an_order(kind: type[Training], unbroken: Training) -> None:
    assert_nothing_was_lost(unbroken, unbroken)
    with pytest.raises(AssertionError):
        assert_nothing_was_lost(kind(unbroken.slurm, unbroken.home, unbroken.dataset), unbroken)


def test_signals_preemption_requeue_and_killed_ranks_in_one_run(
    unbroken_of_four: Training, training_of_four: Training
) -> None:
    training = training_of_four
    slurm = training.slurm
    training.hold(4)
    training.submit("--restarts", "crash=4", wandb="offline")

    training.wait_until_held(attempt=1, step=4)
    for _ in range(2):
        slurm.ask("scancel", "--signal=USR2", training.job_id)
    training.wait_for_end(1)
    training.hold(9)

    training.wait_until_held(attempt=2, step=9)
    take_all_nodes(slurm)
    training.wait_for_end(2)
    training.hold(13)

    training.wait_until_held(attempt=3, step=13)
    slurm.ask("scontrol", "requeue", training.job_id)
    training.wait_for_end(3)
    training.hold(17)

    for attempt, (rank, step) in enumerate([(0, 17), (3, 21)], start=4):
        training.wait_until_held(attempt=attempt, step=step)
        kill(training.ranks()[rank])
        training.hold(step + 4)
    training.hold(NEVER)
    training.wait_until_over()

    expected = ["time limit", "preempted, with grace", "requeued", "crash", "crash", "finished"]
    assert training.kinds() == expected, training.describe()
    assert_nothing_was_lost(training, unbroken_of_four)
    lost = steps_lost(training)
    assert lost[:3] == [0, 0, 0]
    assert len(training.wandb_ids()) == 1


def test_no_grace_and_a_node_set_down_after_a_preemption(unbroken: Training, training: Training) -> None:
    slurm = training.slurm
    training.hold(6)
    training.submit(profile={"partition": "nograce"}, num_workers=3)

    training.wait_until_held(attempt=1, step=6)
    take_all_nodes(slurm)
    training.wait_for_attempt(2)
    training.hold(12)

    training.wait_until_held(attempt=2, step=12)
    down = training.hosts()[-1]
    slurm.ask("scontrol", "update", f"nodename=node{down}", "state=down", "reason=test")
    training.wait_for_attempt(3)
    training.hold(NEVER)
    training.wait_until_over()
    slurm.bring_back(down)

    assert training.ends() == ["preempted, without grace", "node lost", "finished"], training.describe()
    assert_nothing_was_lost(training, unbroken)
    assert max(steps_lost(training)) <= 1


def test_dead_daemons_and_cut_cables(unbroken: Training, training: Training) -> None:
    slurm = training.slurm
    training.hold(6)
    training.submit()
    # A node of the last ranks, then one of the first rank and the batch script.
    for attempt, (place, fault, mend) in enumerate(
        [
            (-1, slurm.kill_daemon, PrivateSlurm.bring_back),
            (-1, slurm.cut, mend_and_bring_back),
            (0, slurm.cut, mend_and_bring_back),
        ],
        start=1,
    ):
        training.wait_until_held(attempt=attempt, step=6 * attempt)
        host = training.hosts()[place]
        fault(host)
        training.wait_for_attempt(attempt + 1)
        training.hold(6 * (attempt + 1))
        mend(slurm, host)
    training.hold(NEVER)
    training.wait_until_over()
    # A step has the same number in each attempt: when the cable is back, the srun that was cut off may end the new one,
    # by SIGTERM, after which the ranks save, or at once.
    by_other = [end for end in training.ends() if end == "stopped by SIGTERM"]
    killed = by_other + [end for end in training.ends() if end.startswith("crash: ") and "Killed" in end]
    others = [end for end in training.ends() if end not in killed]
    assert others == ["node lost"] * 3 + ["finished"], training.describe()
    assert len(killed) <= 1
    assert_nothing_was_lost(training, unbroken)
    assert max(steps_lost(training)) <= 1


def mend_and_bring_back(slurm: PrivateSlurm, host: int) -> None:
    """Put a cable back and restart the host."""
    slurm.mend(host)
    slurm.bring_back(host)


def test_kills_in_the_middle_of_a_checkpoint_and_damaged_ones(unbroken: Training, training: Training) -> None:
    (training.home / "die").write_text("1 0 before_rename 6\n2 0 after_rename 5\n")
    training.submit("--restarts", "crash=4")
    training.wait_for_end(1)
    (training.run / "checkpoints" / ".writing-step_00000099-0a1b2c3d").mkdir()

    training.hold(16)
    training.wait_for_end(2)
    newest = newest_file(training)
    newest.write_bytes(newest.read_bytes()[:-100])

    training.wait_until_held(attempt=3, step=16)
    kill(training.ranks()[1])
    training.wait_for_end(3)
    flip_a_bit(newest_file(training))
    training.hold(NEVER)
    training.wait_until_over()

    assert [end.split(":")[0] for end in training.ends()] == ["crash", "crash", "crash", "finished"], (
        training.describe()
    )
    assert_nothing_was_lost(training, unbroken)
    assert max(steps_lost(training)) <= 2
    left = {path.name.rpartition("_")[0] for path in (training.run / "checkpoints").iterdir()}
    assert left == {"step", "best", "damaged_step"}


def newest_file(training: Training) -> Path:
    """The weights of the newest checkpoint."""
    return sorted((training.run / "checkpoints").glob("step_*"))[-1] / "model.safetensors"


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_hang_ends_with_the_stacks_of_all_ranks_and_a_taken_port_is_left_alone(
    unbroken_of_four: Training, training_of_four: Training
) -> None:
    training = training_of_four
    training.hold(5)
    training.submit(hang_minutes=0.4)
    training.wait_until_held(attempt=1, step=5)
    os.kill(training.ranks()[2], signal.SIGSTOP)
    training.hold(NEVER)
    training.wait_for_end(1)
    port = 20000 + (int(training.job_id) * 131 + 17) % 10000
    with listening(training.slurm, port):
        training.wait_until_over()
    assert training.ends() == ["hang", "finished"], training.describe()
    for rank in range(training.num_ranks):
        log = (training.run / "logs" / f"{training.job_id}_{rank}_log.out").read_text()
        assert "no step for 0.4 minutes" in log, rank
        assert "most recent call first" in log, rank
    assert_nothing_was_lost(training, unbroken_of_four)


@contextmanager
def listening(slurm: PrivateSlurm, port: int) -> Iterator[None]:
    """Take a port on all hosts."""
    program = f"import socket, time; s = socket.create_server(('', {port})); time.sleep(600)"
    started = [
        subprocess.Popen(["nsenter", f"--net=/run/netns/{slurm.namespace(host)}", sys.executable, "-c", program])
        for host in range(1, NUM_HOSTS + 1)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_full_disk(unbroken: Training, training: Training) -> None:
    slurm = training.slurm
    training = replace(training, run_folder=slurm.small_disk / "run")
    training.hold(5)
    training.submit()
    training.wait_until_held(attempt=1, step=5)
    ballast = slurm.small_disk / "ballast"
    fill(ballast)
    training.hold(NEVER)
    # Why the attempt ended may wait for room.
    wait_for(lambda: not training.ranks(), training.describe)
    ballast.unlink()
    training.wait_until_over()
    assert training.ends() == ["disk full", "finished"], training.describe()
    assert_nothing_was_lost(training, unbroken)
    # The step that could not be saved, and the next one, at which that is told.
    assert max(steps_lost(training)) <= 2


def fill(path: Path) -> None:
    """Write until the disk is full but for a few pages."""
    with path.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 65536)
            file.flush()
    os.truncate(path, path.stat().st_size - 200_000)


def test_a_cancelled_run_stays_cancelled_until_it_is_resumed(unbroken: Training, training: Training) -> None:
    training.hold(6)
    training.submit()
    training.wait_until_held(attempt=1, step=6)
    refused = training.deeplense("resume", str(training.run), check=False)
    assert "is already pending or running" in refused
    training.slurm.ask("scancel", training.job_id)
    training.wait_until_over()
    time.sleep(8)
    assert training.state() == ""
    assert training.ends() == ["cancelled"], training.describe()
    assert len(training.attempts()) == 1
    assert "cancelled" in training.deeplense("status", str(training.run))
    training.hold(NEVER)
    training.deeplense("resume", str(training.run))
    training.wait_until_over()
    assert training.ends() == ["cancelled", "finished"], training.describe()
    assert_nothing_was_lost(training, unbroken)
    assert steps_lost(training) == [0]


def test_without_accounting_and_names_where_preemption_warns_by_another_signal(
    unbroken: Training, bare_training: Training
) -> None:
    training, bare_slurm = bare_training, bare_training.slurm
    training.hold(6)
    training.submit()
    training.wait_until_held(attempt=1, step=6)
    take_all_nodes(bare_slurm)
    training.wait_for_end(1)
    training.hold(12)
    training.wait_until_held(attempt=2, step=12)
    bare_slurm.ask("scontrol", "requeue", training.job_id)
    training.wait_for_end(2)
    training.hold(18)
    training.wait_until_held(attempt=3, step=18)
    down = training.hosts()[-1]
    bare_slurm.ask("scontrol", "update", f"nodename=node{down}", "state=down", "reason=test")
    training.wait_for_attempt(4)
    training.hold(NEVER)
    training.wait_until_over()
    expected = ["preempted, with grace", "requeued", "node lost", "finished"]
    assert training.ends() == expected, training.describe()
    assert_nothing_was_lost(training, unbroken)
    assert steps_lost(training)[0] == 0
    assert max(steps_lost(training)) <= 1
