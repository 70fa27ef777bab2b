"""A run belongs to the job that has it: nobody trains it by hand meanwhile, nobody submits it again, and a job whose id
was lost is found."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from deeplense.locks import SECONDS_OF_A_LEASE, Lock
from jobs.runs.attempts import EXIT_REFUSED, FOLDER, NUMBER
from jobs.runs.claim import refuse_if_held
from jobs.runs.folder import LAUNCH, LOCK
from launch import slurm, status, submit
from launch.__main__ import main
from launch.cancelling import cancel_all
from launch.clusters import Cluster
from launch.record import keep, launched
from launch.script import FOLDERS
from launch.status import active, named, refuse_if_submitted
from launch.submission import Submission
from tests.launch.made_up import program

Queue = Callable[[str], int]


@pytest.fixture
def queue(here: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Says what is in Slurm's queue, a line for each job: id, state, reason, name and log; notes what is asked."""
    path = here / "queue.txt"
    path.touch()
    script = f"""
echo "$(basename $0) $*" >> {here}/asked
while IFS='|' read -r id state reason name log; do
    case "$*" in
    *Format*STDOUT*) printf '%-40s%-20s%s\\n' "$id" "$state" "$log" ;;
    *) echo "$id|$state|$reason|$name" ;;
    esac
done < {path}
"""
    (here / "programs").mkdir()
    program(here / "programs", "squeue", script)
    program(here / "programs", "scancel", f'echo "scancel $*" >> {here}/asked')
    monkeypatch.setenv("PATH", f"{here / 'programs'}:/usr/bin:/bin")
    for name in (FOLDER, NUMBER, "RANK"):
        monkeypatch.delenv(name, raising=False)
    return lambda text: path.write_text(f"{text}\n")


def asked(here: Path) -> list[str]:
    """What Slurm's commands were asked."""
    return (here / "asked").read_text().splitlines() if (here / "asked").exists() else []


def submitted(run: Path, job_id: str | None, *, logs: Path | None = None) -> Path:
    """A run as a submission leaves it."""
    run.mkdir(parents=True)
    record = {"job_id": job_id, "logs": str(logs or run / "logs"), "cluster": asdict(Cluster(name="any"))}
    keep(run, record | {"attempts_before": 0, "queue": None, "command": ["train"]})
    if logs is None:
        (run / "logs").mkdir()
        (run / "logs" / FOLDERS).write_text(f"{run}\n")
    return run


@pytest.mark.parametrize("state", ["RUNNING|None", "PENDING|Priority", "COMPLETING|None"])
def test_a_run_that_a_job_has_is_not_trained_by_hand(
    state: str, here: Path, queue: Queue, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(here / "run", "17")
    queue(f"17|{state}|train-run|x")
    before = sorted(path.name for path in run.iterdir())
    words = ["train", f"--dataset={dataset}", "--model_name=simple_cnn", "--run=run"]
    assert main(words) == EXIT_REFUSED
    said = capsys.readouterr().err
    assert f"{run} belongs to job 17, which is {state.split('|')[0].lower()}" in said
    assert "`deeplense cancel " in said
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_job_that_goes_on_in_the_place_of_its_own_counts(here: Path, queue: Queue) -> None:
    run = submitted(here / "run", "17")
    queue("18|PENDING|Dependency|deeplense-after-17|x")
    with pytest.raises(ValueError, match=r"which is pending \(job 18 succeeds 17, Dependency\)"):
        refuse_if_submitted(run, take_over=False)


def test_a_run_that_no_job_has_any_more_may_be_trained_and_so_may_one_that_is_taken_over(
    here: Path, queue: Queue
) -> None:
    run = submitted(here / "run", "17")
    refuse_if_submitted(run, take_over=False)
    queue("17|RUNNING|None|train-run|x")
    refuse_if_submitted(run, take_over=True)


def test_the_ranks_of_the_job_itself_are_not_asked(
    here: Path, queue: Queue, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(here / "run", "17")
    queue("17|RUNNING|None|train-run|x")
    monkeypatch.setenv(FOLDER, str(run))
    monkeypatch.setenv(NUMBER, "1")
    # The settings are wrong, so that nothing is trained.
    main(["train", f"--dataset={dataset}", "--model_name=nothing", "--run=run"])
    assert "belongs to job" not in capsys.readouterr().err
    assert asked(here) == []


def test_without_squeue_that_is_said_and_the_lock_alone_counts(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(here / "run", "17")
    monkeypatch.setenv("PATH", str(here))
    refuse_if_submitted(run, take_over=False)
    assert "but squeue is not available on this machine" in capsys.readouterr().err


def test_a_scheduler_that_does_not_answer_is_no_leave_to_take_a_run(here: Path, queue: Queue) -> None:
    run = submitted(here / "run", "17")
    program(here / "programs", "squeue", "echo away >&2; exit 1")
    with pytest.raises(ValueError, match="away"):
        refuse_if_submitted(run, take_over=False)


def test_a_job_whose_id_nobody_was_told_is_found_by_its_logs(here: Path, queue: Queue) -> None:
    run, other = submitted(here / "run", None), submitted(here / "other", None)
    queue(f"21|PENDING|Priority|train-run|{run}/logs/%j_0_log.out\n22|RUNNING|None|x|/elsewhere/logs/22_0_log.out")
    (found,) = named([launched(run)])
    assert found.job_id == "21"
    assert active([run, other]) == {run: ("PENDING", "Priority")}
    with pytest.raises(ValueError, match=r"belongs to job 21, which is pending \(Priority\)"):
        refuse_if_submitted(run, take_over=False)
    cancel_all([launched(run)])
    assert asked(here)[-1] == "scancel 21"


def test_the_elements_of_an_array_are_told_apart_by_their_places(here: Path, queue: Queue) -> None:
    logs = here / "sweep" / "logs"
    runs = [submitted(here / name, None, logs=logs) for name in ("a", "b")]
    logs.mkdir(parents=True)
    (logs / FOLDERS).write_text("".join(f"{run}\n" for run in runs))
    queue(f"30_1|RUNNING|None|x|{logs}/%A_%a_0_log.out")
    assert [run.job_id for run in named([launched(run) for run in runs])] == [None, "30_1"]


def test_what_follows_a_job_is_not_taken_for_it(here: Path, queue: Queue) -> None:
    run = submitted(here / "run", None)
    queue("\n".join(f"{job}|PENDING|x|y|{run}/logs/{job}_0_log.out" for job in (9, 10)))
    assert named([launched(run)])[0].job_id == "9"


def test_many_runs_are_asked_for_and_cancelled_at_once(here: Path, queue: Queue) -> None:
    runs = [submitted(here / str(number), str(number)) for number in range(20)]
    queue("\n".join(f"{number}|RUNNING|None|x|y" for number in range(1, 20)))
    ended = cancel_all([launched(run) for run in runs])
    assert [run.folder for run in ended] == runs[1:]
    assert len(asked(here)) == 2
    assert asked(here)[1].split()[1:] == [str(number) for number in range(19, 0, -1)]
    assert all("cancelled" in json.loads((run / LAUNCH).read_text()) for run in runs[1:])


def test_of_runs_that_are_cancelled_those_that_do_not_run_are_named(
    here: Path, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        submitted(here / str(number), str(number))
    queue("2|RUNNING|None|x|y")
    assert main(["cancel", "1", "2"]) == EXIT_REFUSED
    said = capsys.readouterr()
    assert said.out.startswith("2: cancelled; ")
    assert "1 is neither pending nor running" in said.err


@pytest.mark.parametrize(
    ("answer", "job_id"),
    [
        ("echo 41", "41"),
        ("echo '41;big'", "41"),
        ("echo Submitted batch job 41", "41"),
        ("echo 'Socket timed out on send/recv operation' >&2; exit 1", "21"),
        ("echo 'what?'", "21"),
    ],
)
def test_the_id_of_a_job_is_read_or_found_where_the_answer_is_lost(
    answer: str, job_id: str, here: Path, queue: Queue
) -> None:
    program(here / "programs", "sbatch", answer)
    queue(f"21|PENDING|Priority|x|{here}/logs/%j_0_log.out\n20|COMPLETING|None|x|{here}/logs/20_0_log.out")
    assert slurm.send(None, here / "job.sh", here / "logs") == job_id


def test_a_refusal_of_sbatch_is_told_in_its_words(here: Path, queue: Queue) -> None:
    program(here / "programs", "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(
        ValueError, match=r"invalid partition No job with logs in .*/logs is in the queue; submit again"
    ):
        slurm.send(None, here / "job.sh", here / "logs")


def test_what_a_job_runs_is_there_before_slurm_knows_of_it(
    here: Path, queue: Queue, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(here / "programs", "sbatch", f"ls {here}/run/logs > {here}/there; exit 1")
    words = ("train", f"--dataset={dataset}", "--model_name=simple_cnn", f"--run={here}/run")
    job = submit.prepare(words, Cluster(name="any"))
    with pytest.raises(ValueError, match="sbatch"):
        submit.send(job, keep_code=True)
    names = (here / "there").read_text().split()
    assert job.pickle_of(0).name in names
    assert {FOLDERS, "submission.sh"} <= set(names)
    assert not any(path.is_symlink() for path in (here / "run").rglob("*"))


def held(run: Path, job_id: str | None) -> Lock:
    """A lock on a run by this process, as of a job."""
    run.mkdir(exist_ok=True)
    lock = Lock(run / LOCK)
    lock.take({"attempt": 1, "job_id": job_id})
    return lock


def test_a_job_begins_no_attempt_of_a_run_that_somebody_else_trains(here: Path) -> None:
    lock = held(here / "run", None)
    with pytest.raises(ValueError, match=r"run is being trained by process \d+"):
        refuse_if_held(here / "run", {"17"})
    lock.release()
    refuse_if_held(here / "run", {"17"})


def test_what_is_left_of_the_job_itself_or_of_a_dead_process_does_not_hold_a_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = held(here / "run", "17")
    refuse_if_held(here / "run", {"17"})
    told = json.loads((here / "run" / LOCK).read_text())
    lock.release()
    (here / "run" / LOCK).write_text(json.dumps(told | {"machine": "another"}))
    past = os.stat(here / "run" / LOCK).st_mtime - SECONDS_OF_A_LEASE - 1
    os.utime(here / "run" / LOCK, (past, past))
    refuse_if_held(here / "run", {"18"})


def test_a_submission_asks_slurm_once_for_all_its_runs(here: Path, queue: Queue, dataset: Path) -> None:
    runs = [submitted(here / name, f"5_{place}") for place, name in enumerate("abc")]
    words = [("train", f"--dataset={dataset}", "--model_name=simple_cnn", f"--run={run}") for run in runs]
    queue("5_1|RUNNING|None|x|y")
    job = Submission(Cluster(name="any"), tuple(words), tuple(runs), here / "logs", here / "code")
    with pytest.raises(ValueError, match="/b is already pending or running"):
        submit.set_up(job, keep_code=True)
    assert len(asked(here)) == 1
    assert replace(job, kept=True).counting == job.commands
    assert status.is_active(runs[1])
    assert not status.is_active(runs[0])
