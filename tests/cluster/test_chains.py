"""Chains of runs on a real Slurm, of each version: whatever ends a run, those that wait for it start once it is
finished, and not before."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from launch.chains import waiting_jobs
from tests.cluster.faults import daemon_killed, without_controller
from tests.cluster.private_slurm import NUM_HOSTS, PrivateSlurm
from tests.cluster.trainings import (
    NEVER,
    Training,
    assert_counted_to_the_end,
    assert_every_step_was_made,
    command_of,
    counting,
    environment_of,
    kill,
    take_all_nodes,
    wait_for,
)

NAMES = ("first", "second", "third", "fourth", "fifth")


@dataclass(frozen=True)
class Chain:
    """A pipeline of five jobs that count, each after the one before, each with a profile and hooks of its own."""

    slurm: PrivateSlurm
    home: Path

    @property
    def file(self) -> Path:
        """The file of its stages."""
        return self.home / "five.yaml"

    def stage(self, name: str) -> Training:
        """One of its runs."""
        home = self.home / name
        return Training(self.slurm, home, home / "data", run_folder=self.home / "runs" / name, counts=True)

    def write(self) -> None:
        """Write the file, the profiles and what the jobs read."""
        stages, profiles = {}, {}
        for number, name in enumerate(NAMES):
            training = counting(self.slurm, self.home / name)
            run = replace(training, run_folder=self.stage(name).run)
            run.write_profile({})
            (profiles[name],) = yaml.safe_load((run.home / "clusters.yaml").read_text()).values()
            stages[name] = {"job": run.job_words(), "on": name, "after": list(NAMES[max(number - 1, 0) : number])}
        (self.home / "clusters.yaml").write_text(yaml.safe_dump(profiles))
        self.file.write_text(yaml.safe_dump(stages, sort_keys=False))

    def type(self, *words: str, check: bool = True) -> str:
        """A command of deeplense; returns what it says."""
        return Training(self.slurm, self.home, self.home, counts=True).deeplense(*words, check=check)

    def words(self) -> list[str]:
        """The command that runs the pipeline."""
        folder = f"--folder={self.home / 'launches'}"
        return ["pipeline", str(self.file), "--on=first", folder, "--allow_untracked"]

    def pipeline(self, *words: str) -> str:
        """Run the pipeline."""
        return self.type(*self.words(), *words)

    def waits(self, name: str) -> str:
        """What Slurm says that the job of a stage waits for."""
        return dict(waiting_jobs(str(self.slurm.folder / "slurm.conf")))[self.stage(name).job_id]

    def hold(self, step: int) -> None:
        """Let no run of any stage begin this step."""
        for name in NAMES:
            self.stage(name).hold(step)


@pytest.fixture
def chain(each_slurm: PrivateSlurm, tmp_path: Path) -> Iterator[Chain]:
    """Five stages, not yet submitted."""
    made = Chain(each_slurm, tmp_path)
    made.write()
    yield made
    each_slurm.clear()


def test_five_stages_under_faults_end_as_if_nothing_had_happened(chain: Chain) -> None:
    slurm = chain.slurm
    chain.hold(5)
    said = chain.pipeline()
    assert said.count("submitted as job") == 5, said

    # Preempted, and requeued by an administrator.
    first = chain.stage("first")
    first.wait_until_held(attempt=1, step=5)
    take_all_nodes(slurm)
    first.wait_for_end(1)
    first.wait_until_held(attempt=2, step=5)
    slurm.ask("scontrol", "requeue", first.job_id)
    first.wait_for_end(2)
    assert chain.waits("second") == f"afterok:{first.job_id}(unfulfilled)"
    first.hold(NEVER)

    # Its script is killed, and another job goes on in its place.
    second = chain.stage("second")
    second.wait_until_held(attempt=1, step=5)
    assert_counted_to_the_end(first)
    before = second.job_id
    assert chain.waits("third") == f"afterok:{before}(unfulfilled)"
    for pid in second.programs("script"):
        kill(pid)
    second.wait_for_attempt(2)
    assert second.job_id != before
    wait_for(lambda: chain.waits("third") == f"afterok:{second.job_id}(unfulfilled)", second.describe)
    second.hold(NEVER)

    # Cancelled and resumed.
    third = chain.stage("third")
    third.wait_until_held(attempt=1, step=5)
    before = third.job_id
    third.deeplense("cancel", str(third.run))
    third.wait_until_over()
    wait_for(lambda: chain.waits("fourth") == f"afterok:{before}(failed)", third.describe)
    status = chain.type("status", str(chain.home))
    assert "pipeline launches: first finished, second finished, third stopped, fourth pending (after third)" in status
    assert f"waits for {third.run}, not running; `deeplense resume {third.run}` continues both" in status
    assert not chain.stage("fourth").attempts()
    chain.pipeline()
    assert third.job_id != before
    assert chain.waits("fourth") == f"afterok:{third.job_id}(unfulfilled)"
    third.hold(NEVER)

    # A node is lost.
    fourth = chain.stage("fourth")
    fourth.wait_until_held(attempt=1, step=5)
    assert_counted_to_the_end(third)
    daemon_killed(fourth, fourth.hosts()[-1])
    fourth.wait_for_attempt(2)
    # The controller dies while a job waits.
    with without_controller(slurm):
        fourth.hold(NEVER)
        time.sleep(8)
    fifth = chain.stage("fifth")
    fifth.wait_until_held(attempt=1, step=5)
    fifth.hold(NEVER)
    fifth.wait_until_over()

    for name in NAMES:
        assert_every_step_was_made(chain.stage(name))
    assert_in_order(chain)
    kept = chain.pipeline("--dry_run").splitlines()
    assert [line.split()[1] for line in kept] == ["DO", "-", "-", "-", "-", "-"]


def assert_in_order(chain: Chain) -> None:
    """No run has begun before the one that it waits for was finished."""
    finished = [int((chain.stage(name).run / "finished.json").stat().st_mtime) for name in NAMES]
    begun = [datetime.fromisoformat(chain.stage(name).attempts()[0]["begun"]).timestamp() for name in NAMES]
    assert all(end <= start for end, start in zip(finished, begun[1:], strict=False)), (finished, begun)


@dataclass(frozen=True)
class Pair:
    """Two jobs that count, of which the second waits for the first."""

    parent: Training
    child: Training

    @property
    def slurm(self) -> PrivateSlurm:
        """Their cluster."""
        return self.parent.slurm

    def begin(self, *, verb: str = "submit") -> None:
        """Submit both, and wait until the first waits before a step."""
        self.parent.hold(5)
        self.parent.submit(verb=verb)
        self.child.submit("--after", str(self.parent.run))
        self.parent.wait_until_held(attempt=1, step=5)
        assert self.waits() == f"afterok:{self.parent.job_id}(unfulfilled)"

    def waits(self, job_id: str | None = None) -> str:
        """What Slurm says that the second, or another job, waits for."""
        return dict(waiting_jobs(str(self.slurm.folder / "slurm.conf"))).get(job_id or self.child.job_id, "")

    def finish(self) -> None:
        """Let both go on, to the end."""
        self.parent.hold(NEVER)
        for run in (self.parent, self.child):
            wait_for(lambda run=run: (run.run / "finished.json").exists(), run.describe, seconds=180)
            assert_counted_to_the_end(run)


@pytest.fixture
def pair(each_slurm: PrivateSlurm, tmp_path: Path) -> Iterator[Pair]:
    """Two jobs, not yet submitted."""
    yield Pair(counting(each_slurm, tmp_path / "parent"), counting(each_slurm, tmp_path / "child"))
    each_slurm.clear()


def test_a_job_that_is_let_go_too_early_returns_to_the_queue(pair: Pair) -> None:
    pair.begin()
    pair.slurm.ask("scontrol", "update", f"jobid={pair.child.job_id}", "dependency=")
    wait_for(lambda: pair.child.state() == "RUNNING", pair.child.describe)
    wait_for(lambda: pair.waits() == f"afterok:{pair.parent.job_id}(unfulfilled)", pair.child.describe)
    wait_for(lambda: pair.child.state() == "PENDING", pair.child.describe)
    assert not pair.child.attempts(), "it has not begun"
    (log,) = (pair.child.run / "logs").glob("*_0_log.out")
    assert f"this run waits for {pair.parent.run}, not yet finished" in log.read_text()
    pair.finish()


def test_a_job_that_waits_survives_where_slurm_kills_jobs_that_wait_in_vain(pair: Pair) -> None:
    with killing_in_vain(pair.slurm):
        pair.begin()
        words = ("sbatch", "--parsable", "-o", "/dev/null", f"--dependency=afterok:{pair.parent.job_id}", "--wrap=true")
        other = (pair.slurm.ask(*words) or "").strip()
        assert pair.waits(other) == f"afterok:{pair.parent.job_id}(unfulfilled)"
        pair.slurm.ask("scancel", pair.parent.job_id)
        pair.parent.wait_until_over()
        wait_for(lambda: not pair.waits(other), lambda: pair.waits(other))
        wait_for(lambda: pair.waits() == f"afterok:{pair.parent.job_id}(failed)", pair.child.describe)
        pair.parent.deeplense("resume", str(pair.parent.run))
        pair.finish()


@contextmanager
def killing_in_vain(slurm: PrivateSlurm) -> Iterator[None]:
    """Slurm is configured to remove jobs whose dependencies cannot be satisfied any more."""
    path = slurm.folder / "slurm.conf"
    before = path.read_text()
    path.write_text(f"{before}DependencyParameters=kill_invalid_depend\n")
    slurm.ask("scontrol", "reconfigure")
    try:
        yield
    finally:
        path.write_text(before)
        slurm.ask("scontrol", "reconfigure")


def test_a_job_of_the_users_own_is_moved_too_and_what_it_waits_for_beside_is_kept(pair: Pair) -> None:
    pair.begin()
    before = pair.parent.job_id
    options = ("--parsable", "-o", "/dev/null", "--wrap=true")
    beside = (pair.slurm.ask("sbatch", "--hold", *options) or "").strip()
    words = (f"--dependency=afterok:{before}:{beside},afterany:{before}", *options)
    other = (pair.slurm.ask("sbatch", *words) or "").strip()
    for pid in pair.parent.programs("script"):
        kill(pid)
    pair.parent.wait_for_attempt(2)
    now = pair.parent.job_id
    assert now != before
    wait_for(lambda: pair.waits() == f"afterok:{now}(unfulfilled)", pair.child.describe)
    wait_for(lambda: f"afterok:{now}(" in pair.waits(other), lambda: pair.waits(other))
    assert f"afterok:{beside}(" in pair.waits(other)
    assert f"afterok:{before}(" not in pair.waits(other)
    pair.finish()


def scripts_of(slurm: PrivateSlurm, job: str, task: str) -> list[int]:
    """The processes of the batch script of a task of an array."""
    wanted = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task}
    pids = [pid for host in range(1, NUM_HOSTS + 1) for pid in slurm.processes_of(host)]
    scripts = [pid for pid in pids if "/slurm_script" in command_of(pid)]
    return [pid for pid in scripts if wanted.items() <= environment_of(pid).items()]


def test_a_job_waits_for_all_runs_of_an_array_wherever_they_continue(slurm: PrivateSlurm, tmp_path: Path) -> None:
    child, home = counting(slurm, tmp_path / "child"), tmp_path / "many"
    runs = [replace(counting(slurm, home / str(k)), run_folder=home / "runs" / str(k)) for k in range(3)]
    first = replace(runs[0], home=home)
    first.hold(5)
    first.submit("--folder", str(home / "sweep"), verb="sweep", run=home / "runs" / "{seed}", seed="0:3")
    child.submit("--after", str(home / "runs"))
    wait_for(lambda: all(len(run.attempts()) == 1 for run in runs), first.describe)
    wait_for(lambda: len(list(home.glob("samples_1_*.txt"))) == 2, first.describe)
    ids = [run.job_id for run in runs]

    def waits() -> list[str]:
        return sorted(dict(waiting_jobs(str(slurm.folder / "slurm.conf"))).get(child.job_id, "").split(","))

    assert waits() == sorted(f"afterok:{job_id}(unfulfilled)" for job_id in ids)
    for pid in scripts_of(slurm, *ids[0].split("_")):
        kill(pid)
    runs[1].deeplense("cancel", str(runs[1].run))
    runs[0].wait_for_attempt(2)
    wait_for(lambda: not runs[1].state(), runs[1].describe)
    runs[1].deeplense("resume", str(runs[1].run))
    new = [run.job_id for run in runs]
    assert [old == now for old, now in zip(ids, new, strict=True)] == [False, False, True]
    wait_for(lambda: waits() == sorted(f"afterok:{job_id}(unfulfilled)" for job_id in new), lambda: str(waits()))
    assert not child.attempts()
    first.hold(NEVER)
    child.wait_until_over()
    for run in (*runs, child):
        assert_every_step_was_made(run)
    slurm.clear()


def test_a_change_submits_again_what_waits_and_refuses_what_runs(slurm: PrivateSlurm, tmp_path: Path) -> None:
    chain = Chain(slurm, tmp_path)
    chain.write()
    chain.hold(5)
    chain.pipeline()
    chain.stage("first").wait_until_held(attempt=1, step=5)
    before = {name: chain.stage(name).job_id for name in NAMES}
    assert "submitted" not in chain.pipeline(), "typed again, it leaves all as it is"

    change(chain, "fourth", "--seed=7")
    said = chain.pipeline()
    assert [line.split()[1] for line in said.splitlines()[1:6]] == ["-", "-", "-", "run", "run"]
    now = {name: chain.stage(name).job_id for name in NAMES}
    assert {name for name in NAMES if now[name] != before[name]} == {"fourth", "fifth"}
    assert chain.waits("fourth") == f"afterok:{now['third']}(unfulfilled)"
    assert chain.waits("fifth") == f"afterok:{now['fourth']}(unfulfilled)"
    wait_for(
        lambda: before["fifth"] not in (slurm.ask("squeue", "-h", "-o", "%i") or "").split(), lambda: "still there"
    )

    change(chain, "first", "--seed=7")
    refused = chain.type(*chain.words(), check=False)
    assert "stage first has to be made again, but" in refused
    assert f"`deeplense cancel {chain.stage('first').run}`" in refused
    assert {name: chain.stage(name).job_id for name in NAMES} == now
    assert chain.stage("first").state() == "RUNNING"
    slurm.clear()


def change(chain: Chain, name: str, word: str) -> None:
    """Add a word to the job of a stage."""
    stages = yaml.safe_load(chain.file.read_text())
    stages[name]["job"].append(word)
    chain.file.write_text(yaml.safe_dump(stages, sort_keys=False))
