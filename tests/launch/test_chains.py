"""Chains of runs: which dependencies are moved, what a run may wait for, and waiting on this machine."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import MINE, program

from deeplense.records import write_record
from jobs.runs.attempts import end_attempt, open_attempt
from jobs.runs.folder import FINISHED, LAUNCH
from launch import chains, parents, waiting
from launch.chains import moved_dependency
from launch.script import TEMPLATES, slurm_parameters
from launch.submission import Submission

IDS = {"7": "70", "8_1": "80_1"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("afterok:7(unfulfilled)", "afterok:70"),
        ("afterok:7(failed)", "afterok:70"),
        ("afterok:8_1(failed),afterok:8_2(unfulfilled)", "afterok:80_1,afterok:8_2"),
        ("afterok:7(failed),afterok:9(fulfilled),afterany:7(unfulfilled)", "afterok:70,afterany:7"),
        ("singleton(unfulfilled),afterok:7(failed)", "singleton,afterok:70"),
        ("afterok:7(unfulfilled),afterok:7(unfulfilled)", "afterok:70"),
        ("afterok:77(unfulfilled)", None),
        ("afterok:8(unfulfilled)", None),
        ("afterok:8_*(unfulfilled)", None),
        ("afternotok:7(unfulfilled)", None),
        ("afterok:7(unfulfilled)?afterok:9(unfulfilled)", None),
        ("(null)", None),
        ("", None),
    ],
)
def test_only_dependencies_on_the_success_of_an_old_job_are_moved(before: str, after: str | None) -> None:
    assert moved_dependency(before, IDS) == after


SHOWN = st.builds(
    "{}:{}({})".format,
    st.sampled_from(["afterok", "afterany", "afternotok"]),
    st.sampled_from(["7", "8_1", "9", "77", "8_10"]),
    st.sampled_from(["unfulfilled", "failed", "fulfilled"]),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(SHOWN, min_size=1, max_size=5, unique=True))
def test_the_batch_script_moves_the_same_as_the_command(
    tmp_path_factory: pytest.TempPathFactory, shown: list[str]
) -> None:
    # An entry for a job that goes on under two ids does not occur: a run has one job at a time.
    entries = [entry for entry in shown if "8_1(" not in entry]
    found = moved_by_script(tmp_path_factory.mktemp("script"), ",".join(entries))
    expected = moved_dependency(",".join(entries), {"7": "70"})
    assert set((found or "").split(",")) == set((expected or "").split(","))


def moved_by_script(folder: Path, dependency: str) -> str | None:
    """What the batch script of job 70, which goes on in the place of 7, makes of a dependency of job 5."""
    text = (TEMPLATES / "setup.sh").read_text()
    function = text[text.index("deeplense_move() {") :]
    function = function[: function.index("\n}\n") + 3]
    program(folder, "squeue", f"echo '5|{dependency}'")
    program(folder, "scontrol", f'echo "$*" >> {folder}/asked')
    ask = 'deeplense_ask() { shift; "$@"; }\ndeeplense_job=70 deeplense_after=7\n'
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", f"{ask}{function}deeplense_move"], env=environment, check=True)
    asked = folder / "asked"
    if not asked.exists():
        return None
    (line,) = asked.read_text().splitlines()
    assert line.startswith("update jobid=5 dependency=")
    return line.removeprefix("update jobid=5 dependency=")


def run_at(folder: Path, *, after: list[Path] | None = None, **values: Any) -> Path:
    """A run that was submitted."""
    folder.mkdir(parents=True)
    told = {
        "job_id": "5",
        "logs": str(folder),
        "cluster": {"executor": "slurm", "slurm_conf": None},
        "after": after and list(map(str, after)),
    }
    write_record(folder / LAUNCH, told | values)
    return folder


def finish(run: Path) -> None:
    """Let its last attempt end well."""
    end_attempt(run, open_attempt(run), reason="finished", concluded=True)


def test_a_run_waits_for_its_parents_until_their_last_submission_has_finished(tmp_path: Path) -> None:
    parent = run_at(tmp_path / "parent")
    child = run_at(tmp_path / "child", after=[parent, tmp_path / "gone"])
    assert parents.waited_for(child) == [parent]
    end_attempt(parent, open_attempt(parent), reason="crash", concluded=True)
    assert parents.waited_for(child) == [parent]
    finish(parent)
    assert parents.waited_for(child) == []
    write_record(parent / LAUNCH, parents.read_launch(parent) | {"job_id": "6", "attempts_before": 2})
    assert parents.waited_for(child) == [parent], "it was submitted again"
    write_record(parent / FINISHED, {"step": 3})
    assert parents.waited_for(child) == []


def submission(folder: Path) -> Submission:
    """A submission that waits for nothing yet."""
    return Submission(MINE, (("train",),), (folder,), folder / "logs", folder / "code")


def test_a_run_that_would_wait_for_itself_is_refused(tmp_path: Path) -> None:
    first = run_at(tmp_path / "first", after=[tmp_path / "second"])
    run_at(tmp_path / "second", after=[tmp_path / "third"])
    run_at(tmp_path / "third")
    with pytest.raises(ValueError, match=r"third would wait for itself through .*first; leave it out of --after"):
        chains.after(submission(tmp_path / "third"), [first])


def test_finished_runs_are_not_waited_for(tmp_path: Path) -> None:
    parent = run_at(tmp_path / "parent")
    finish(parent)
    made = chains.after(submission(tmp_path / "child"), [parent])
    assert made.after == ()
    assert chains.with_dependency(made).dependency == ""
    assert "dependency" not in slurm_parameters(made)["additional_parameters"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cluster": {"executor": "local", "slurm_conf": None}}, "runs on this machine, and a job on mine cannot wait"),
        ({"cluster": {"executor": "slurm", "slurm_conf": "/x"}}, "is a job on another cluster than mine"),
        ({}, "has stopped and nobody continues it, .*; resume it first: `deeplense resume "),
    ],
)
def test_a_run_that_cannot_be_waited_for_is_refused_with_what_to_do(
    values: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "squeue", "true")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("launch.slurm.refuse_dead_munge", lambda slurm_conf: None)
    parent = run_at(tmp_path / "parent", **values)
    with pytest.raises(ValueError, match=message):
        chains.after(submission(tmp_path / "child"), [parent])


def test_a_run_of_somebody_else_is_not_called_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "squeue", "true")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("launch.slurm.refuse_dead_munge", lambda slurm_conf: None)
    monkeypatch.setattr("launch.record.stranger_of", lambda path: "ada")
    parent = run_at(tmp_path / "parent")
    with pytest.raises(ValueError, match=r"parent belongs to ada, .*; wait until it is finished\.$"):
        chains.after(submission(tmp_path / "child"), [parent])


def test_runs_are_named_by_their_folders_or_by_one_above(tmp_path: Path) -> None:
    runs = [run_at(tmp_path / "many" / str(k)) for k in range(3)]
    alone = run_at(tmp_path / "alone")
    assert set(chains.named_parents(f"{tmp_path / 'many'}, {alone}")) == {*runs, alone}
    with pytest.raises(ValueError, match=r"--after .*none: there is no run in or below .*; submit it first"):
        chains.named_parents(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="--after names no run"):
        chains.named_parents(" , ")


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)))
def test_runs_are_resubmitted_after_those_that_they_wait_for(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    root = tmp_path_factory.mktemp("runs")
    runs = [root / str(k) for k in range(5)]
    for number, run in enumerate(runs):
        run_at(run, after=[runs[k] for k in range(number)][-2:])
    assert chains.parents_first([runs[k] for k in order]) == runs


def dead(folders: list[Path]) -> dict[Path, tuple[str, str]]:
    """A scheduler that does not answer."""
    raise ValueError("Slurm does not answer.")


def test_status_names_what_a_run_waits_for_and_what_nobody_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "launch.status.active", lambda runs: {run: ("RUNNING", "None") for run in runs if run.name == "other"}
    )
    first, other = run_at(tmp_path / "first"), run_at(tmp_path / "other")
    child = run_at(tmp_path / "child", after=[first, other])
    state = ("PENDING", "Dependency")
    assert waiting.explained(child, state) == ("PENDING", f"after {first} and 1 more")
    assert waiting.explained(child, ("RUNNING", "None")) == ("RUNNING", "None")
    assert waiting.explained(first, state) == state
    there = {child: state, other: ("RUNNING", "None")}
    assert list(waiting.notes(child, there, looked_for=[other])) == []
    (note,) = waiting.notes(child, there, looked_for=[first, other])
    assert note == f"note: {child} waits for {first}, not running; `deeplense resume {first}` continues both"
    hopeless = {child: ("PENDING", "DependencyNeverSatisfied")}
    (note,) = waiting.notes(child, there | hopeless, looked_for=[])
    assert f"waits for {first}, not running" in note
    # Asked for the child alone: one of its parents is running.
    (note,) = waiting.notes(child, hopeless, looked_for=[child])
    assert f"waits for {first}, not running" in note
    monkeypatch.setattr("launch.status.active", dead)
    assert list(waiting.notes(child, hopeless, looked_for=[child])) == []
    finish(first)
    finish(other)
    assert waiting.explained(child, state) == state


def test_status_has_a_line_for_each_pipeline_with_its_stages_in_order(tmp_path: Path) -> None:
    train = run_at(tmp_path / "train", stage=["lenses", 2, "train", "m"])
    images = run_at(tmp_path / "images", stage=["lenses", 1, "images", "m"])
    parts = [run_at(tmp_path / f"part{k}", stage=["lenses", 3, "table", "m"], after=[train]) for k in range(2)]
    run_at(tmp_path / "alone")
    finish(images)
    states = {train: ("RUNNING", "None"), parts[0]: ("PENDING", "Dependency"), parts[1]: ("PENDING", "Dependency")}
    folders = [train, *parts, images, tmp_path / "alone"]
    (line,) = waiting.pipelines(folders, states)
    assert line == "pipeline lenses: images finished, train running, table pending (after train)"
    del states[parts[1]]
    (line,) = waiting.pipelines(folders, states)
    assert line.endswith("table stopped")


def test_pipelines_of_the_same_name_in_two_folders_have_a_line_each(tmp_path: Path) -> None:
    runs = [
        run_at(tmp_path / home / name, stage=[f"/{home}/launches/lenses", place, name, "m"])
        for home in ("a", "b")
        for place, name in enumerate(("images", "train"))
    ]
    finish(runs[0])
    states = dict.fromkeys(runs[2:], ("RUNNING", "None"))
    assert list(waiting.pipelines(runs, states)) == [
        "pipeline lenses: images finished, train stopped",
        "pipeline lenses: images running, train running",
    ]


def test_of_a_stage_that_was_made_again_the_newest_runs_count(tmp_path: Path) -> None:
    home = "/place/launches/lenses"
    old = run_at(tmp_path / "old-20261201-120000" / "first", stage=[home, 1, "train", "20261201-110000-ffffff"])
    new = [run_at(tmp_path / f"new{k}", stage=[home, 2, "train", "20261201-120000-000000"]) for k in range(2)]
    finish(old)
    for order in ([old, *new], [*new, old]):
        (line,) = waiting.pipelines(order, dict.fromkeys(new, ("RUNNING", "None")))
        assert line == "pipeline lenses: train running"


@pytest.mark.parametrize(
    "stage", [["a", "b", "c", "d"], ["a", 1, None, "d"], ["a", 1, "c", 4], [1, 1, "c", "d"], ["a"]]
)
def test_what_others_wrote_as_a_stage_does_not_end_the_table(stage: list[Any], tmp_path: Path) -> None:
    bad, child = run_at(tmp_path / "bad", stage=stage), tmp_path / "child"
    run_at(child, stage=["/lenses", 1, "train", "m"], after=[bad])
    (line,) = waiting.pipelines([bad, child], {child: ("PENDING", "Dependency")})
    assert line == f"pipeline lenses: train pending (after {bad})"


def test_a_terminal_does_not_obey_the_name_of_a_stage(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", stage=["/len\x1b]0;ses", 1, "tr\nain\x07", "m"])
    (line,) = waiting.pipelines([run], {})
    assert line.isprintable()
    assert line.startswith("pipeline len?]0;ses: tr ain")
