"""A range of nodes on a real Slurm: each attempt takes what is free, and the samples and losses are those of one
process."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deeplense.data.order import share_of
from tests.cluster.conftest import Clusters
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import (
    NEVER,
    STEPS,
    Training,
    assert_counted_to_the_end,
    assert_no_process_is_left,
    counting,
    last_step,
    read_samples,
    steps_lost,
    wait_for,
)

ELASTIC = {"nodes": "1:4"}
EXACT = {"model_name": "test_vit", "dropout": 0.0, "gradient_accumulation": 1, "batch_size": 17, "epochs": 6.0}
"""Without dropout and batch norms; four and three ranks cannot divide its batch evenly."""


def ranks_of(training: Training, attempt: int) -> int:
    """The ranks of an attempt, by what they wrote."""
    return len(list(training.home.glob(f"samples_{attempt}_*.txt")))


def wait_until_held(training: Training, *, attempt: int, step: int, ranks: int) -> None:
    """Wait until so many ranks of an attempt wait before this step."""
    files = [training.home / f"samples_{attempt}_{rank}.txt" for rank in range(ranks)]

    def there() -> bool:
        return all(f.exists() and f.read_text().endswith("\n") and last_step(f) >= step - 1 for f in files)

    wait_for(there, training.describe)


def take(slurm: PrivateSlurm, *where: str) -> str:
    """An urgent job that keeps some nodes; returns its id."""
    job = slurm.ask(
        "sbatch", "--parsable", "-p", "urgent", "--exclusive", *where, "-o", "/dev/null", "--wrap", "sleep 900"
    )
    assert job
    return job.strip()


def preempt_to_widths(training: Training) -> None:
    """Let a run have four nodes, then one, then three, by urgent jobs that take the others, and wait for its end."""
    slurm, each = training.slurm, training.tasks_per_node
    wait_until_held(training, attempt=1, step=6, ranks=4 * each)
    three = take(slurm, "-N3")
    training.wait_for_end(1)
    training.hold(14)
    wait_until_held(training, attempt=2, step=14, ranks=each)
    (host,) = training.hosts()
    take(slurm, "-N1", "-w", slurm.node(host))
    slurm.ask("scancel", three)
    training.wait_for_end(2)
    training.hold(NEVER)
    training.wait_until_over()


def assert_widths(training: Training) -> None:
    """Three attempts, on four, one and three nodes, of which the ledger has width and wait, and `status` tells."""
    attempts = training.attempts()
    each = training.tasks_per_node
    assert training.kinds() == ["preempted, with grace"] * 2 + ["finished"], training.describe()
    assert [attempt["num_nodes"] for attempt in attempts] == [4, 1, 3], training.describe()
    assert [attempt["num_processes"] for attempt in attempts] == [4 * each, each, 3 * each]
    assert [ranks_of(training, number) for number in (1, 2, 3)] == [4 * each, each, 3 * each]
    assert steps_lost(training) == [0, 0]
    assert all(0 <= attempt["waited_s"] < 60 for attempt in attempts), attempts
    # A requeued job may not start for some seconds.
    assert attempts[0]["held_s"] < 3 <= min(attempt["held_s"] for attempt in attempts[1:]), attempts
    told = training.deeplense("status", "--attempts", str(training.run)).splitlines()
    rows = [line.split() for line in told if line.startswith("  ") and training.job_id in line.split()]
    assert [row[4:6] for row in rows] == [["4", str(4 * each)], ["1", str(each)], ["3", str(3 * each)]], told


@pytest.mark.parametrize("tasks_per_node", [2])
def test_ranks_that_count_have_the_widths_that_are_free(counted: Training, tasks_per_node: int) -> None:
    counted = replace(counted, tasks_per_node=tasks_per_node)
    counted.hold(6)
    counted.submit(profile=ELASTIC | {"cpus_per_task": 2})
    preempt_to_widths(counted)
    assert_widths(counted)
    assert_counted_to_the_end(counted)


def test_a_run_waits_for_no_more_nodes_than_the_least_and_is_resumed_with_another_range(counted: Training) -> None:
    slurm = counted.slurm
    take(slurm, "-N3")
    wait_for(lambda: (slurm.ask("squeue", "-h", "-t", "R", "-o", "%D") or "").split() == ["3"], counted.describe)
    counted.hold(4)
    counted.submit(profile={"nodes": "1:4"})
    wait_until_held(counted, attempt=1, step=4, ranks=1)
    counted.deeplense("cancel", str(counted.run))
    counted.wait_until_over()
    slurm.ask("scancel", "--partition=urgent", "--user=root")
    counted.hold(NEVER)
    counted.deeplense("resume", "--nodes", "2:3", str(counted.run))
    counted.wait_until_over()
    assert [attempt["num_nodes"] for attempt in counted.attempts()] == [1, 3], counted.describe()
    assert counted.kinds() == ["cancelled", "finished"]
    assert_counted_to_the_end(counted)


def test_what_cannot_be_is_refused_before_it_queues(slurm: PrivateSlurm, tmp_path: Path) -> None:
    counted = counting(slurm, tmp_path)
    for option, told in (
        ("4:1", "begins with 4, which is more than 1"),
        ("1:5", "exceeds TotalNodes=4 of partition normal; request 1:4."),
        ("1-4", "write 1:4"),
    ):
        counted.write_profile({})
        said = counted.deeplense(
            "submit", "--on", "test", "--allow_untracked", "--nodes", option, *counted.job_words(), check=False
        )
        assert told in said
        assert "Traceback" not in said
    said = counted.deeplense(
        "submit", "--on", "test", "--allow_untracked", "--nodes=1:4", *counted.job_words(batch_size=3), check=False
    )
    assert "batch_size=3 is too small for 4 ranks" in said
    assert not counted.run.exists()
    assert not counted.slurm.ask("squeue", "-h")


def test_doctor_tries_a_range_of_nodes(counted: Training) -> None:
    counted.write_profile(ELASTIC | {"tasks_per_node": 2})
    told = counted.deeplense("doctor", "--on", "test", "--run_job", check=False)
    assert "the profile requests 1 to 4 nodes" in told
    assert "wrong" not in [line.split(" ")[0] for line in told.splitlines()], told


@pytest.fixture(scope="module")
def of_one_process(clusters: Clusters, stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training of one process, that nothing happens to."""
    training = Training(clusters(), tmp_path_factory.mktemp("alone"), stamps)
    training.submit(profile={"nodes": 1}, **EXACT)
    training.wait_until_over()
    assert training.ends() == ["finished"], training.describe()
    return training


@pytest.fixture
def elastic(slurm: PrivateSlurm, stamps: Path, tmp_path: Path) -> Iterator[Training]:
    """A training not yet submitted."""
    yield Training(slurm, tmp_path, stamps)
    slurm.clear()


def batches(training: Training) -> dict[int, list[list[int]]]:
    """For each step its batch, put together from the shares of the ranks, once for each time that it was made."""
    found: dict[int, list[list[int]]] = {}
    for attempt in range(1, len(training.attempts()) + 1):
        size = ranks_of(training, attempt)
        ranks = [read_samples(training.home / f"samples_{attempt}_{rank}.txt") for rank in range(size)]
        for step in set.intersection(*(set(rank) for rank in ranks)):
            batch = [0] * sum(len(rank[step]) for rank in ranks)
            for number, rank in enumerate(ranks):
                batch[share_of(number, size)] = rank[step]
            found.setdefault(step, []).append(batch)
    return found


def losses(training: Training, name: str) -> list[float]:
    """A metric of each line that has it."""
    lines = map(json.loads, (training.run / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_widths_of_4_1_and_3_have_the_samples_of_one_process_and_its_losses_to_rounding(
    elastic: Training, of_one_process: Training
) -> None:
    elastic.hold(6)
    elastic.submit(profile=ELASTIC, **EXACT)
    preempt_to_widths(elastic)
    assert_widths(elastic)
    assert_no_process_is_left(elastic)
    ours, theirs = batches(elastic), batches(of_one_process)
    assert sorted(ours) == sorted(theirs) == list(STEPS), elastic.describe()
    assert [step for step in STEPS if any(made != theirs[step][0] for made in ours[step])] == []
    for name in ("train/loss", "train/accuracy", "val/log_loss"):
        assert losses(elastic, name) == pytest.approx(losses(of_one_process, name), rel=1e-4), name
    assert len(losses(elastic, "train/loss")) == len(STEPS)
