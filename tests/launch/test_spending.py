"""On what runs spent their time: the parts add up to what the accounting says, and each lost step has a cause."""

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deeplense.files import write_json
from deeplense.records import line_of, write_record
from jobs.runs.attempts import EMPTY, begin_attempt, end_attempt, read_attempts
from jobs.runs.folder import FINISHED, LAUNCH
from jobs.runs.progress import ProgressFile
from launch.judging import conclude
from launch.sight.accounting import Start, parsed
from launch.sight.spending import NO_ATTEMPT, RUNNING, Spell, divided, jobs_of, spells_of
from launch.sight.totals import Hours, losses, totals_of

BEGAN = 1_800_000_000.0


def at(second: float) -> str:
    """A time as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(BEGAN + second))


def attempt(number: int, begun: float, **values: Any) -> dict[str, Any]:
    """The line of an attempt of job 7 on two processes."""
    known = {"attempt": number, "job_id": "7", "restart": number - 1, "begun": at(begun), "num_processes": 2}
    return EMPTY | known | values


def run_of(folder: Path, *attempts: dict[str, Any], finished: int | None = None) -> Path:
    """A run folder with these attempts, submitted with 3 cores for each process and two GPUs for each node."""
    folder.mkdir(exist_ok=True)
    (folder / "attempts.jsonl").write_text("".join(map(line_of, attempts)))
    cluster = {"executor": "slurm", "slurm_conf": None, "nodes": 1, "gpus_per_node": 2, "cpus_per_task": 3}
    write_json(folder / LAUNCH, {"job_id": "7", "logs": "", "cluster": cluster})
    if finished:
        write_record(folder / FINISHED, {"step": finished})
    return folder


def start(begun: float, ended: float | None, *, eligible: float | None = None, state: str = "PREEMPTED") -> Start:
    """A start of job 7 in the accounting, on 8 cores and 4 GPUs."""
    seconds = (ended if ended is not None else time.time() - BEGAN) - begun
    over = None if ended is None else BEGAN + ended
    since = None if eligible is None else BEGAN + eligible
    return Start("7", state, since, BEGAN + begun, over, seconds, 8, 4)


def test_lost_steps_are_those_between_what_was_reached_and_where_the_next_attempt_began(tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "run",
        attempt(1, 5, first_step=0, last_step=60, ended="node lost: n1", reached=100, rate=2.0, concluded=at(70)),
        attempt(2, 205, first_step=60, last_step=200, ended="finished", reached=200, rate=4.0, concluded=at(260)),
        finished=200,
    )
    first, second = spells_of(run, "run", {"7": [start(0, 80, eligible=-20), start(200, 262)]})
    assert (first.kept, first.again, second.kept, second.again) == (60, 40, 140, 0)
    assert (first.kept_s, first.again_s, first.other_s) == (30, 20, 30)
    assert (second.kept_s, second.again_s, second.other_s) == (35, 0, 27)
    assert (first.waited_s, second.waited_s) == (20, 120)
    (loss,) = losses([first, second])
    assert (loss.cause, loss.ends, loss.steps) == ("node lost", 1, 40)
    assert loss.again == Hours(20 * 8 / 3600, 20 * 4 / 3600)
    assert loss.restart == Hours(27 * 8 / 3600, 27 * 4 / 3600)
    assert loss.waited_h == pytest.approx(120 / 3600)


def test_without_accounting_an_attempt_lasts_until_its_last_sign_of_life(tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "run",
        # Its script died with its node: the next attempt recorded its end.
        attempt(1, 0, first_step=0, ended="node lost", reached=10, reached_at=at(40), rate=1.0, concluded=at(1000)),
        attempt(
            2, 1000, first_step=10, ended="crash: exit code 1", ended_at=at(1090), concluded=at(1100), last_step=20
        ),
        finished=20,
    )
    first, second = spells_of(run, "run", {})
    assert (first.seconds, second.seconds, second.waited_s) == (40, 100, 960)
    assert (first.cpus, first.gpus) == (6, 2)
    assert not first.accounted


@pytest.mark.parametrize(
    ("values", "waited_s"),
    [({"waited_s": 0.0}, 0), ({"waited_s": 7.5}, 7.5), ({"waited_s": None}, 345_600), ({"job_id": None}, 0)],
)
def test_without_accounting_the_recorded_wait_counts_and_only_jobs_were_in_a_queue(
    values: dict[str, Any], waited_s: float, tmp_path: Path
) -> None:
    first = attempt(1, 0, ended="crash: exit code 1", concluded=at(100))
    second = attempt(2, 345_700, ended="finished", concluded=at(345_800), **values)
    assert [spell.waited_s for spell in spells_of(run_of(tmp_path / "run", first, second), "run", {})] == [0, waited_s]


def test_a_run_that_still_works_has_lost_nothing_in_its_attempt_and_one_that_stopped_what_it_did_not_save(
    tmp_path: Path,
) -> None:
    (works,) = spells_of(run_of(tmp_path / "a", attempt(1, 0, first_step=0, reached=50)), "a", {})
    assert (works.cause, works.kept, works.again) == (RUNNING, 50, 0)
    ended = {"ended": "diverged: NaN", "saved": 30, "last_step": 50, "concluded": at(9)}
    (stopped,) = spells_of(run_of(tmp_path / "b", attempt(1, 0, first_step=0, **ended)), "b", {})
    assert (stopped.cause, stopped.kept, stopped.again) == ("diverged", 30, 20)


def test_starts_that_made_no_attempt_count_and_no_start_counts_twice(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", attempt(1, 105, first_step=0, ended="finished", concluded=at(140)), finished=9)
    starts = {"7": [start(0, 10, state="NODE_FAIL"), start(100, 150, state="COMPLETED")]}
    lost, made = spells_of(run, "run", starts)
    assert (lost.cause, lost.reason, lost.number, made.number) == (NO_ATTEMPT, "node fail", None, 1)
    assert totals_of([lost, made]).used == Hours(60 * 8 / 3600, 60 * 4 / 3600)
    # A script of the user's that trains two runs in one job.
    other = spells_of(run_of(tmp_path / "other", attempt(1, 130, ended="finished", concluded=at(149))), "other", starts)
    both = divided([made, other[-1]])
    assert [spell.seconds for spell in both] == [pytest.approx(30), pytest.approx(20)]
    assert totals_of([made, other[-1]]).used.cpu == pytest.approx(100 * 8 / 3600), "the negative control"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_parts_add_up_to_what_was_used(seed: int) -> None:
    draw = random.Random(seed)
    causes = ["finished", "crash", "preempted", "time limit", RUNNING, NO_ATTEMPT]
    spells = []
    for k in range(40):
        cause = draw.choice(causes)
        spells.append(
            Spell(
                f"run{k % 5}",
                None if cause == NO_ATTEMPT else k // 5 + 1,
                cause,
                "",
                BEGAN + 100 * k,
                BEGAN + 100 * k + 50,
                waited_s=draw.random() * 50,
                seconds=draw.random() * 100,
                cpus=draw.randrange(1, 9),
                gpus=draw.randrange(3),
                kept=0 if cause == NO_ATTEMPT else draw.choice([0, 0, 30]),
                again=draw.randrange(9) if cause not in ("finished", RUNNING, NO_ATTEMPT) else 0,
                stepping_s=draw.choice([None, 20.0, 500.0]),
            )
        )
    sums, lost = totals_of(spells), losses(spells)
    for kind in ("cpu", "gpu"):
        parts = [getattr(part, kind) for part in (sums.kept, sums.again, sums.first, sums.restart)]
        assert sum(parts) == pytest.approx(getattr(sums.used, kind))
        assert min(parts) >= 0
        used = [spell.seconds * getattr(spell, f"{kind}s") / 3600 for spell in spells]
        assert getattr(sums.used, kind) == pytest.approx(sum(used))
        assert sum(getattr(loss.again, kind) for loss in lost) == pytest.approx(getattr(sums.again, kind))
    assert sum(loss.steps for loss in lost) == sum(spell.again for spell in spells)


SACCT = """\
1|REQUEUED|1796125688|1796125688|1796125715|27|2|billing=2,cpu=2,gres/gpu=4,node=2|
1.batch|FAILED|1796125688|1796125688|1796125692|4|1|cpu=1,gres/gpu=2,mem=0,node=1|3000
1.0|CANCELLED|1796125689|1796125689|1796125691|2|2|cpu=2,gres/gpu=4,mem=0,node=2|5000
1|CANCELLED by 0|1796125721|1796125721|1796125727|6|2|billing=2,cpu=2,gres/gpu:a100=4,node=2|
1.batch|CANCELLED|1796125721|1796125721|1796125728|7|1|cpu=1,gres/gpu:a100=2,mem=0,node=1|18446744073709551614
2_3|PENDING|Unknown|Unknown|Unknown|0|1|||
2_4|RUNNING|1796125721|1796125722|Unknown|9|4|cpu=4|0
"""
"""As Slurm 22.05 says it (but for energies, which the machine of the tests does not measure)."""


def test_the_accounting_is_read_with_duplicates_and_the_energy_of_the_longest_step() -> None:
    found = parsed(SACCT.splitlines())
    assert found.keys() == {"1", "2_4"}
    first, second = found["1"]
    assert (first.seconds, first.cpus, first.gpus, first.energy_j) == (27, 2, 4, 5000)
    assert (second.gpus, second.energy_j, second.state) == (4, None, "CANCELLED")
    (running,) = found["2_4"]
    assert (running.ended, running.gpus, running.energy_j) == (None, 0, None)
    assert parsed(["", "nonsense", "1|2|3"]) == {}


def test_an_attempt_belongs_to_the_start_in_which_it_began_even_if_earlier_ones_are_forgotten(tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "run",
        attempt(1, 0, ended="preempted, with grace", concluded=at(10)),
        attempt(2, 1005, ended="preempted, with grace", concluded=at(1020)),
        attempt(3, 2005, ended="finished", concluded=at(2020)),
    )
    starts = {"7": [start(1000, 1030), start(2000, 2030)]}
    forgotten, second, third = spells_of(run, "run", starts)
    assert [spell.accounted for spell in (forgotten, second, third)] == [False, True, True]
    assert (second.begun, third.begun) == (BEGAN + 1000, BEGAN + 2000)


def test_of_starts_close_together_the_number_tells(tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "run",
        *(attempt(k + 1, 20 * k + 2, ended="crash: exit code 1", concluded=at(20 * k + 9)) for k in range(4)),
    )
    starts = {"7": [start(20 * k, 20 * k + 10) for k in range(4)]}
    assert [spell.begun - BEGAN for spell in spells_of(run, "run", starts)] == [0, 20, 40, 60]


def test_jobs_of_a_run_are_those_of_its_record_and_its_attempts(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", attempt(1, 0), attempt(2, 9, job_id="9"), attempt(3, 19, job_id=None))
    assert jobs_of(run) == ["7", "9"]


def test_energy_is_known_of_a_share(tmp_path: Path) -> None:
    known = Spell("a", 1, "finished", "", BEGAN, BEGAN + 9, seconds=3600, cpus=3, energy_j=7.2e6)
    sums = totals_of([known, replace(known, cpus=1, energy_j=None)])
    assert (sums.energy_kwh, sums.share_with_energy) == (2.0, 0.75)
    assert totals_of([replace(known, energy_j=None)]).energy_kwh is None


def test_how_far_an_attempt_came_is_noted_before_the_next_one_overwrites_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path / "run", attempt(1, 0, first_step=0), attempt(2, 9, first_step=3))
    monkeypatch.setenv("DEEPLENSE_FOLDER", str(run))
    monkeypatch.setenv("DEEPLENSE_ATTEMPT", "2")
    ProgressFile(run, total=100, first=3).update(8)
    conclude(run, 2, "node lost")
    found = read_attempts(run)[1]
    assert (found["reached"], found["ended"], found["concluded"]) == (8, "node lost", found["reached_at"])
    assert found["rate"] > 0
    conclude(run, 1, "crash: exit code 1")
    assert read_attempts(run)[0].get("reached") is None, "the negative control: this is the progress of another attempt"


def test_a_run_that_was_started_directly_has_the_hours_of_its_processes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    number = begin_attempt(run, first_step=0, num_processes=2)
    end_attempt(run, number, reason="finished", last_step=10)
    write_record(run / FINISHED, {"step": 10})
    (spell,) = spells_of(run, "run", {})
    assert (spell.cpus, spell.gpus, spell.kept, spell.accounted) == (2, 0, 10, False)
    assert 0 <= spell.seconds < 60
