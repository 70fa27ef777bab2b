"""Plans of pipelines: exactly the stages that changed, and those that follow them, are made again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.settings import FREE
from launch.pipelines.plans import Known, Step, changed, outermost, plan, table, that_count
from launch.pipelines.stages import Stage


@dataclass(frozen=True)
class Settings:
    """Settings of a job that is made up."""

    value: int = 0
    rate: float = 0.1
    workers: int = field(default=0, metadata=FREE)


@dataclass
class Site:
    """A pipeline that is made up, with the records that its commands would leave behind."""

    stages: list[Stage]
    known: dict[str, Known] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        for stage in self.stages:
            self.known.setdefault(stage.name, Known())

    def plan(self, again: Sequence[str] = ()) -> list[Step]:
        """What is to be done."""
        return plan(self.stages, self.known, again)

    def do(self, steps: Sequence[Step], *, only: int | None = None) -> None:
        """Do it, or only the first that are left to do; the next one then has begun."""
        left = [step for step in steps if step.action in ("make", "resume")]
        for place, step in enumerate(left):
            if only is not None and place > only:
                return
            self.made += step.action == "make"
            before = self.known[step.stage.name]
            marks = {name: self.known[name].mark for name in step.stage.parents}
            mark = f"{self.made}" if step.action == "make" else before.mark
            counted = json.loads(json.dumps(that_count(step.stage)))
            done = only is None or place < only
            self.known[step.stage.name] = Known("done" if done else "stopped", counted, marks, mark)

    def change(self, name: str, **values: Any) -> None:
        """Change the settings of a stage in the file."""
        self.stages = [
            replace(stage, settings=replace(stage.settings, **values)) if stage.name == name else stage
            for stage in self.stages
        ]


def names_of(steps: Sequence[Step]) -> set[str]:
    """The stages that are left to do."""
    return {step.stage.name for step in steps if step.action in ("make", "resume")}


def followers(graph: Mapping[int, Sequence[int]], changed: set[int]) -> set[int]:
    """Stages of a graph and all that follow them; the graph maps each stage to its parents, smaller numbers."""
    found = set(changed)
    for number in sorted(graph):
        if found & set(graph[number]):
            found.add(number)
    return found


@st.composite
def graphs(draw: st.DrawFn) -> dict[int, list[int]]:
    """Up to eight stages, each with some of those before as its parents."""
    count = draw(st.integers(1, 8))
    subsets = {k: st.lists(st.integers(0, k - 1), unique=True, max_size=3) if k else st.just([]) for k in range(count)}
    return {k: draw(strategy) for k, strategy in subsets.items()}


def site_of(graph: Mapping[int, Sequence[int]]) -> Site:
    """A pipeline of this graph, nothing of which was made."""
    return Site([Stage(str(k), ("job",), Settings(), tuple(map(str, graph[k]))) for k in graph])


def finished(graph: Mapping[int, Sequence[int]]) -> Site:
    """The same, all of which was made."""
    site = site_of(graph)
    assert names_of(site.plan()) == set(map(str, graph))
    site.do(site.plan())
    return site


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_exactly_what_changed_and_what_follows_it_is_made_again(
    graph: dict[int, list[int]], data: st.DataObject
) -> None:
    site = finished(graph)
    assert names_of(site.plan()) == set()
    changes = data.draw(st.sets(st.sampled_from(sorted(graph))))
    for number in changes:
        site.change(str(number), value=1)
    assert names_of(site.plan()) == set(map(str, followers(graph, changes)))
    site.do(site.plan())
    assert names_of(site.plan()) == set()


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_the_same_holds_however_often_the_command_is_interrupted(
    graph: dict[int, list[int]], data: st.DataObject
) -> None:
    site = finished(graph)
    marks = {name: known.mark for name, known in site.known.items()}
    changes = data.draw(st.sets(st.sampled_from(sorted(graph)), min_size=1))
    for number in changes:
        site.change(str(number), value=1)
    for _ in range(data.draw(st.integers(0, 4))):
        site.do(site.plan(), only=data.draw(st.integers(0, 3)))
    site.do(site.plan())
    made_again = {name for name, known in site.known.items() if known.mark != marks[name]}
    assert made_again == set(map(str, followers(graph, changes)))
    assert all(known.state == "done" for known in site.known.values())
    assert site.made == len(graph) + len(made_again), "nothing was made twice"


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_what_is_asked_for_or_lost_is_made_again_with_what_follows_it(
    graph: dict[int, list[int]], data: st.DataObject
) -> None:
    site = finished(graph)
    chosen = data.draw(st.sets(st.sampled_from(sorted(graph))))
    assert names_of(site.plan(list(map(str, chosen)))) == set(map(str, followers(graph, chosen)))
    for number in chosen:
        site.known[str(number)] = replace(site.known[str(number)], lost=[Path("gone")])
    assert names_of(site.plan()) == set(map(str, followers(graph, chosen)))


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_settings_that_do_not_affect_results_change_nothing(graph: dict[int, list[int]]) -> None:
    site = finished(graph)
    for number in graph:
        site.change(str(number), workers=7)
    assert names_of(site.plan()) == set()


def test_a_plan_that_ignored_parents_would_be_found_out() -> None:
    site = finished({0: [], 1: [0]})
    site.change("0", value=1)
    site.stages[1] = replace(site.stages[1], parents=())
    assert names_of(site.plan()) == {"0"}


def test_what_is_running_is_left_and_what_has_stopped_is_resumed() -> None:
    site = finished({0: [], 1: [0], 2: [1]})
    site.known["1"] = replace(site.known["1"], state="stopped")
    site.known["2"] = replace(site.known["2"], state="active")
    assert [step.action for step in site.plan()] == ["keep", "resume", "wait"]
    site.change("0", value=1)
    assert [step.action for step in site.plan()] == ["make", "make", "make"]


def test_results_of_other_commands_are_taken_as_they_are_even_if_what_they_follow_is_not_known() -> None:
    site = site_of({0: [], 1: [0]})
    site.known["1"] = Known("found")
    assert [step.action for step in site.plan()] == ["make", "take"]
    assert [step.action for step in site.plan(["1"])] == ["make", "make"]


def test_results_that_no_stage_made_are_moved_unless_their_job_goes_on_with_them() -> None:
    site = site_of({0: [], 1: [0], 2: []})
    site.stages[1] = replace(site.stages[1], command=("train",))
    site.stages[2] = replace(site.stages[2], command=("simulate",))
    assert [step.moves for step in site.plan()] == [True, False, False]
    site.known["1"] = Known("found")
    assert [step.moves for step in site.plan()] == [True, False, False]
    assert [step.moves for step in site.plan(["1"])] == [True, True, False], "to make a finished training again"
    site.known["2"] = Known("done", that_count(site.stages[2]))
    assert [step.moves for step in site.plan(["2"])] == [True, False, True]


def test_each_change_is_named_and_a_setting_of_a_newer_version_had_its_default() -> None:
    now = {"job": "train", "lr": 0.1, "new": 3, "epochs": 2.0}
    before = {"job": "train", "lr": 0.2, "epochs": 2}
    assert changed(before, now, {"new": 3}) == ["lr 0.2 -> 0.1"]
    assert changed(before, now, {"new": 4})[1:] == ["new 4 -> 3"]
    assert changed({"job": "pack", "lr": 1}, now, {}) == ["job pack -> train"]
    assert changed(now, now, {}) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(lambda parts: Path("/", *parts)), max_size=6)
)
def test_what_is_moved_with_its_folder_is_not_moved_twice(paths: list[Path]) -> None:
    kept = outermost(paths)
    assert all(any(other == path or other in path.parents for other in kept) for path in paths)
    assert not any(other in path.parents for path in kept for other in kept)
    assert set(kept) <= set(paths)
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize("again", [(), ("0",)])
def test_the_table_has_a_line_for_each_stage_with_what_is_done_and_why(again: tuple[str, ...]) -> None:
    site = finished({0: [], 1: [0]})
    head, *rows = table(site.plan(again))
    assert head.split() == ["STAGE", "DO", "WHY", "AFTER"]
    assert [row.split()[1] for row in rows] == (["run", "run"] if again else ["-", "-"])
