"""A run is what was submitted, wherever that was done, and belongs to its job; on a real Slurm, with ranks that
count."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from launch.record import keep, told_in
from tests.cluster.trainings import (
    NEVER,
    ROOT,
    Training,
    assert_counted_to_the_end,
    environment_of,
    wait_for,
)

LEFT = {
    "SBATCH_EXPORT": "NONE",
    "SBATCH_ARRAY_INX": "0-3",
    "SLURM_RESTART_COUNT": "4",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_MEM_PER_NODE": "100",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "RANK": "3",
    "WORLD_SIZE": "9",
    "OMPI_COMM_WORLD_RANK": "1",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "CUDA_VISIBLE_DEVICES": "7",
}
"""What a job and the launchers in it leave in a shell."""
SPOILING = set(LEFT) - {"RANK", "WORLD_SIZE"}


def from_an_element(training: Training, line: str) -> str:
    """Run a line of shell in an element of an array, as from a step of it, to its end; returns what it says."""
    script, log = training.home / "outer.sh", training.home / "outer.txt"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in LEFT.items())
    step = "export SLURM_STEP_ID=0 SLURM_STEPID=0 SLURM_STEP_NUM_TASKS=1\n"
    where = f"export DEEPLENSE_CLUSTERS={training.home}/clusters.yaml PYTHONPATH={ROOT}\ncd {ROOT}\n"
    script.write_text(f"#!/bin/bash\n{exports}{step}{where}{line}\necho exit code $?\n")
    words = ("sbatch", "--parsable", "--array=1", f"--output={log}", str(script))
    assert training.slurm.ask(*words), training.describe()
    wait_for(lambda: "exit code" in read(log), lambda: read(log))
    assert log.read_text().endswith("exit code 0\n"), log.read_text()
    return log.read_text()


def read(path: Path) -> str:
    """A file, empty where it is not there."""
    return path.read_text() if path.exists() else ""


def words_of(training: Training, *options: str) -> str:
    """The line that submits a count."""
    training.write_profile({})
    words = ["submit", "--on", "test", "--allow_untracked", *options, *training.job_words()]
    return shlex.join([sys.executable, "-m", "launch", *words])


def assert_is_its_own_job(training: Training) -> None:
    """Ranks know nothing of the job that submitted theirs, and the run is counted to its end in one attempt."""
    training.wait_until_held(attempt=1, step=4)
    for rank, pid in training.ranks().items():
        there = environment_of(pid)
        assert SPOILING & set(there) == set(), there
        assert there.get("SLURM_ARRAY_JOB_ID") is None
        assert there["SLURM_PROCID"] == str(rank)
    training.hold(NEVER)
    training.wait_until_over()
    (attempt,) = training.attempts()
    assert (attempt["job_id"], attempt["restart"]) == (training.job_id, 0)
    assert_counted_to_the_end(training)


def test_a_job_that_is_submitted_in_an_element_of_an_array_is_as_any_other(counted: Training) -> None:
    counted.hold(4)
    told = from_an_element(counted, words_of(counted))
    assert "SBATCH_EXPORT=NONE of this shell is ignored" in told
    assert_is_its_own_job(counted)


def test_a_script_that_is_handed_to_sbatch_there_is_so_too_and_is_found_before_it_begins(counted: Training) -> None:
    counted.hold(4)
    script = counted.home / "job.sh"
    from_an_element(
        counted, f"{words_of(counted, '--export', str(script))} && unset SBATCH_ARRAY_INX && sbatch {script}"
    )
    assert re.search("running|pending", counted.deeplense("status", str(counted.run)))
    wait_for(lambda: counted.attempts(), counted.describe)
    job_id = counted.attempts()[0]["job_id"]
    assert_is_its_own_job(named(counted, job_id))


def named(training: Training, job_id: str) -> Training:
    """The same, of which the test knows the job."""
    keep(training.run, told_in(training.run) | {"job_id": job_id})
    return training


@pytest.mark.parametrize("state", ["pending", "running"])
def test_a_run_is_not_taken_from_its_job(counted: Training, state: str) -> None:
    counted.hold(4)
    counted.submit(profile={"sbatch": {"hold": ""}} if state == "pending" else {})
    if state == "running":
        counted.wait_until_held(attempt=1, step=4)
    before = counted.attempts()
    words = counted.job_words()
    told = counted.deeplense(*words, check=False)
    assert f"belongs to job {counted.job_id}, which is {state}" in told
    assert counted.attempts() == before
    counted.hold(NEVER)
    counted.slurm.ask("scontrol", "release", counted.job_id)
    counted.wait_until_over()
    assert_counted_to_the_end(counted)


def test_a_job_whose_id_was_lost_is_found_and_runs(
    counted: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy = tmp_path / "programs" / "sbatch"
    lossy.parent.mkdir()
    lossy.write_text(
        '#!/bin/bash\nPATH="${PATH#*:}"\ncase " $* " in *--test-only*) exec sbatch "$@" ;; esac\n'
        "sbatch \"$@\" > /dev/null\necho 'sbatch: error: Socket timed out on send/recv operation' >&2\nexit 1\n"
    )
    lossy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{lossy.parent}:{os.environ['PATH']}")
    counted.submit()
    assert counted.job_id.isdecimal()
    counted.wait_until_over()
    assert_counted_to_the_end(counted)


def test_a_run_whose_code_is_taken_away_ends_instead_of_running_another(counted: Training) -> None:
    counted.hold(4)
    counted.submit()
    counted.wait_until_held(attempt=1, step=4)
    (counted.run / "code" / "jobs" / "train" / "work.py").write_text("# another\n")
    counted.slurm.ask("scontrol", "requeue", counted.job_id)
    counted.wait_until_over()
    assert len(counted.attempts()) == 1, counted.describe()
    assert "has changed: files were modified" in (counted.run / "logs" / f"{counted.job_id}_0_log.out").read_text()
    assert "`deeplense resume --update_code" in counted.deeplense("resume", str(counted.run), check=False)
    counted.hold(NEVER)
    counted.deeplense("resume", "--update_code", str(counted.run))
    counted.wait_until_over()
    assert_counted_to_the_end(counted)
