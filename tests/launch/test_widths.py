"""A range of nodes, from what a user types to what Slurm is asked for, and what is written down of each attempt."""

import subprocess
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.runs.attempts import begin_attempt, end_attempt, open_attempt, read_attempts
from launch.__main__ import main
from launch.clusters import Cluster
from launch.judging import Job
from launch.script import slurm_parameters, submitit_script, whole_script
from launch.sight.attempts import attempt_lines
from launch.submission import Submission
from launch.widths import bounds, checked, for_slurm, in_words, is_range, parse_nodes


@given(least=st.integers(1, 10**6), more=st.integers(0, 10**6))
def test_a_range_is_kept_as_it_is_and_one_of_a_single_number_is_that_number(least: int, more: int) -> None:
    nodes = parse_nodes(f" {least}:{least + more} ")
    assert bounds(nodes) == (least, least + more)
    assert is_range(nodes) == (more > 0)
    assert checked(nodes) == nodes
    assert for_slurm(nodes) == (f"{least}-{least + more}" if more else least)
    assert parse_nodes(str(least)) == least


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1:", ":4", "4:1", "1:4:2", "1.5", "1-4", "1,4", "1:4x", "0:0"])
def test_what_is_no_number_of_nodes_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        parse_nodes(text)


def test_a_width_is_told_in_words() -> None:
    assert [in_words(nodes) for nodes in (1, 2, "1:4")] == ["1 node", "2 nodes", "1 to 4 nodes"]


def elastic(**profile: Any) -> Submission:
    """A training on as many nodes as are free."""
    cluster = Cluster(name="any", nodes="1:4", tasks_per_node=3, cpus_per_task=2, memory_gb_per_task=1.5, **profile)
    run = Path("/scratch/run")
    command = ("train", "--dataset=data", f"--run={run}")
    return Submission(cluster, (command,), (run,), run / "logs", run / "code")


@pytest.mark.parametrize("make", [submitit_script, whole_script])
def test_slurm_is_asked_for_the_range_and_for_what_the_ranks_of_a_node_need_together(make: Any) -> None:
    lines = make(elastic()).splitlines()
    for line in ("#SBATCH --nodes=1-4", "#SBATCH --cpus-per-task=6", "#SBATCH --mem=4608M"):
        assert line in lines
    assert not any(line.startswith("#SBATCH --ntasks") for line in lines)
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--cpus-per-task=2" in srun


def test_a_number_of_nodes_is_asked_for_with_its_ranks() -> None:
    submission = elastic()
    fixed = replace(submission, cluster=submission.cluster.override(nodes=2))
    asked = slurm_parameters(fixed)
    assert (asked["nodes"], asked["ntasks_per_node"], asked["cpus_per_task"]) == (2, 3, 2)
    assert "SLURM_NTASKS=" not in submitit_script(fixed)


@pytest.mark.parametrize(("num_nodes", "ranks"), [(1, 3), (3, 9), (4, 12)])
def test_the_script_tells_srun_the_ranks_of_the_nodes_that_the_attempt_has(num_nodes: int, ranks: int) -> None:
    script = submitit_script(elastic())
    start = script.index("unset SLURM_CPUS_PER_TASK")
    lines = script[start : script.index("# A free port")]
    answer = subprocess.run(
        ["bash", "-c", f'{lines}\necho "$SLURM_NTASKS $SLURM_NPROCS $SLURM_NTASKS_PER_NODE [$SLURM_CPUS_PER_TASK]"'],
        env={"SLURM_JOB_NUM_NODES": str(num_nodes), "SLURM_CPUS_PER_TASK": "6"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [str(ranks), str(ranks), "3", "[]"]


SAYS = (
    "JobId=1 SubmitTime=2026-12-01T11:36:26 EligibleTime={} AccrueTime=2026-12-01T11:36:32 StartTime={} EndTime=Unknown"
)


@pytest.mark.parametrize(
    ("eligible", "start", "held_s", "waited_s"),
    [
        ("2026-12-01T11:36:32", "2026-12-01T13:36:33", 6.0, 7201.0),
        ("2026-12-01T11:36:26", "2026-12-01T11:36:26", 0.0, 0.0),
        ("2026-12-01T11:36:20", "2026-12-01T11:36:26", 0.0, 6.0),
        ("Unknown", "2026-12-01T11:36:26", None, None),
        ("2026-12-01T11:36:27", "Unknown", 1.0, None),
    ],
)
def test_the_wait_of_an_attempt_is_read_from_what_slurm_says_of_its_job(
    eligible: str, start: str, held_s: float | None, waited_s: float | None
) -> None:
    assert Job(SAYS.format(eligible, start)).waits == {"held_s": held_s, "waited_s": waited_s}


def test_without_an_answer_of_slurm_the_wait_is_unknown() -> None:
    assert Job().waits == {"held_s": None, "waited_s": None}


def test_width_and_wait_are_in_the_ledger_and_in_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    open_attempt(run, waits={"held_s": 6.0, "waited_s": 3725.0})
    end_attempt(run, 1, reason="preempted, with grace", last_step=40)
    monkeypatch.delenv("SLURM_JOB_NUM_NODES")
    begin_attempt(run, first_step=40, num_processes=2)
    first, second = read_attempts(run)
    assert (first["num_nodes"], first["held_s"], first["waited_s"]) == (3, 6.0, 3725.0)
    assert (second["num_nodes"], second["num_processes"], second["waited_s"]) == (None, 2, None)
    monkeypatch.chdir(tmp_path)
    assert main(["status", "--attempts", "run"]) == 0
    told = capsys.readouterr().out
    assert "run: 2 attempts, waited 1:02:05 in the queue" in told
    (row,) = [line.split() for line in told.splitlines() if "preempted, with grace" in line and "1:02:05" in line]
    assert row[4:8] == ["3", "-", "0:00:06", "1:02:05"]


def test_a_run_without_an_attempt_and_one_of_an_earlier_version_are_no_error(tmp_path: Path) -> None:
    assert attempt_lines(tmp_path) == []
    (tmp_path / "attempts.jsonl").write_text('{"attempt": 1, "job_id": "7", "restart": 0, "ended": "finished"}\n')
    told = attempt_lines(tmp_path)
    assert told[0].endswith("1 attempt, the time in the queue is unknown")
    assert told[2].split() == ["1", "7", "-", "-", "-", "-", "-", "-", "finished"]
