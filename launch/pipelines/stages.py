"""Pipelines: a YAML file of stages, each a job, and the order in which they run.

NAME:
  job: simulate --output data/m3 --split train     # or a list of words, or a mapping {simulate: {output: ...}}
  after: [OTHER]                                   # in addition to the stages whose results it names
  hours: 2                                         # options of a cluster, as those of `deeplense submit`
"""

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from jobs import command_line
from jobs.bounds import MOST_PARTS
from jobs.plain_yaml import read_yaml_file
from jobs.settings import require
from jobs.verbs import DIVISIBLE, POSITIONAL, STOPPABLE, verb_of, with_joined_name
from launch.clusters import nearest
from launch.pipelines.results import full, names, provided_by, reads, results_of, unit_of
from launch.widths import checked

NAME = re.compile(r"[A-Za-z0-9][\w-]*")
Kind = Callable[..., Any]
"""Type of an option, or what parses it."""
SHAPE = "write NAME: and, indented below it, job: with the job and its settings"


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Args:
        name: its name in the file.
        command: the job and its settings, as words.
        settings: the parsed settings.
        parents: names of the stages that it follows.
        options: options of the cluster, by the names of those of `deeplense submit`.
        parts: number of tasks that share the job on a cluster; None if it is not shared.
        on: name of the cluster profile, if the stage does not run on that of the command.
    """

    name: str
    command: tuple[str, ...]
    settings: Any
    parents: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: int | None = None
    on: str | None = None

    @property
    def verb(self) -> str:
        """The name of the job."""
        return self.command[0]

    @property
    def results(self) -> list[Path]:
        """What the job writes, as full paths."""
        return results_of(self.verb, self.settings)

    def aside(self, path: Path, name: str) -> Path:
        """Return where a result is moved before it is made again: to a folder of this name, beside what it is part
        of."""
        unit = unit_of(self.verb, self.settings) or path
        return unit.parent / name / path.relative_to(unit.parent)


def read_pipeline(path: Path, options: Mapping[str, Kind]) -> list[Stage]:
    """Return the stages of a pipeline, each after those that it follows. Raises ValueError, naming file and stage, if
    one is invalid.

    Args:
        options: types of the options of a cluster that a stage may set, by name.
    """
    given = read_yaml_file(path)
    try:
        require(isinstance(given, dict) and bool(given), f"the file is not a mapping of stages; {SHAPE}.")
        stages = [read_stage(name, stage, options) for name, stage in given.items()]
        refuse_same_results(stages)
        return in_order(stages, {name: named_after(name, given) for name in given})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_stage(name: Any, given: Any, options: Mapping[str, Kind]) -> Stage:
    """Return a stage, without its parents. Raises ValueError if it is invalid."""
    right = isinstance(name, str) and NAME.fullmatch(name) is not None
    require(right, f"stage {name!r}: the name is invalid; use letters, digits, dash and underscore.")
    try:
        require(isinstance(given, dict), f"{given!r} is not a stage; {SHAPE}.")
        known = ("job", "after", "parts", "on", *options)
        for key in given:
            require(key in known, f"unknown key {key!r}. {nearest(str(key), known)}")
        require("job" in given, f"it has no job; {SHAPE}.")
        command = read_job(given["job"])
        settings = parsed(command)
        check_options(given, options, command[0], settings)
    except ValueError as error:
        raise ValueError(f"stage {name}: {error}") from error
    chosen = {key: value for key, value in given.items() if key in options}
    return Stage(name, tuple(command), settings, options=chosen, parts=given.get("parts"), on=given.get("on"))


def check_options(given: Mapping[str, Any], options: Mapping[str, Kind], verb: str, settings: Any) -> None:
    """Raise ValueError if an option of a stage has another type, or the job cannot be shared."""
    if "nodes" in given:
        checked(given["nodes"])
    for key, kind in options.items():
        if key not in given or not isinstance(kind, type):
            continue
        value = given[key]
        right = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
        require(right, f"{key}: {value!r} is not {'text' if kind is str else 'a number'}; correct it.")
    require(isinstance(given.get("on", ""), str), f"on: {given.get('on')!r} is not the name of a cluster; correct it.")
    parts = given.get("parts", 1)
    whole = isinstance(parts, int) and not isinstance(parts, bool) and 1 <= parts <= MOST_PARTS
    require(whole, f"parts: {parts!r} is not a number of tasks; write one from 1 to {MOST_PARTS}.")
    divisible = "parts" not in given or verb in DIVISIBLE
    require(divisible, f"{verb} cannot be split; parts is only for {', '.join(DIVISIBLE)}.")
    shared = "part" in vars(settings) and settings.part is not None
    require(not shared, "a stage is a whole job; leave out --part, and write parts: N to split it among tasks.")


def read_job(given: Any) -> list[str]:
    """Return the words of a job, which a file gives as text, as a list of words, or as a mapping. Raises ValueError if
    it is none of these."""
    if isinstance(given, str):
        words = split_words(given)
    elif isinstance(given, list):
        words = [command_line.as_text(word) for word in given]
    else:
        single = isinstance(given, dict) and len(given) == 1
        require(single, f"job: {given!r} is not a job; write the words of a command, or JOB: with settings below it.")
        (verb, settings), *_ = given.items()
        words = [*str(verb).split(), *words_of(" ".join(str(verb).split()), settings)]
    require(bool(words), "job is empty; write a job and its settings, such as: evaluate --run runs/first.")
    words = with_joined_name(words)
    verb_of(words[0])
    return words


def split_words(text: str) -> list[str]:
    """Return the words of a text, as a shell would split it. Raises ValueError for an open quotation."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"job: {text!r} has an open quotation; close it.") from error


def words_of(verb: str, settings: Any) -> list[str]:
    """Return the settings of a mapping as words. Raises ValueError if it is not a mapping."""
    verb_of(verb)
    right = settings is None or isinstance(settings, dict)
    require(right, f"{verb}: {settings!r} is not a mapping of settings; write NAME: VALUE, indented below {verb}.")
    words: list[str] = []
    for name, value in (settings or {}).items():
        if str(name) == POSITIONAL.get(verb):
            words = [*map(command_line.as_text, value if isinstance(value, list) else [value]), *words]
        else:
            words.append(f"--{name}={value_of(value)}")
    return words


def value_of(value: Any) -> str:
    """Return a value of a file as it is written on the command line."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ",".join(map(str, value))
    return command_line.as_text(value)


def parsed(command: Sequence[str]) -> Any:
    """Return the settings of a job. Raises ValueError, with the message of the parser, if they are invalid."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return command_line.parse(command[0], command[1:])
    except SystemExit as error:
        message = told.getvalue().strip().removeprefix(f"deeplense {command[0]}: ")
        raise ValueError(f"{command[0]}: {message or 'a stage needs settings, not --help'}") from error


def named_after(name: str, given: Mapping[str, Any]) -> list[str]:
    """Return the stages that a stage names in `after`. Raises ValueError, with the nearest name, for an unknown one."""
    told = given[name].get("after") or []
    names = [told] if isinstance(told, str) else told
    right = isinstance(names, list) and all(isinstance(other, str) for other in names)
    require(right, f"stage {name}: after: {told!r} is not a list of stages; write after: [STAGE, STAGE].")
    for other in names:
        known = other in given
        require(known, f"stage {name}: after names {other!r}, which is no stage. {nearest(other, given)}")
    return names


def refuse_same_results(stages: Sequence[Stage]) -> None:
    """Raise ValueError, naming the first two, if stages write the same file or folder."""
    writers: dict[Path, str] = {}
    for stage in stages:
        for path in stage.results:
            other = writers.setdefault(path, stage.name)
            told = f"stages {other} and {stage.name} both write {path}"
            require(other == stage.name, f"{told}; give each another folder.")


def in_order(stages: Sequence[Stage], named: Mapping[str, Sequence[str]]) -> list[Stage]:
    """Return stages with their parents, each after those; otherwise in the order of the file. Raises ValueError if
    stages follow one another in a circle."""
    parents = {stage.name: parents_of(stage, stages, named[stage.name]) for stage in stages}
    try:
        ranks = ranks_of(parents)
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        told = f"stages wait for one another: {circle}"
        raise ValueError(f"{told}; remove one from after, or from the inputs of a job.") from error
    ordered = sorted(stages, key=lambda stage: ranks[stage.name])
    return [with_parents(stage, parents[stage.name]) for stage in ordered]


def parents_of(stage: Stage, stages: Sequence[Stage], named: Sequence[str]) -> tuple[str, ...]:
    """Return the stages that a stage follows: those that it names, and those whose results its settings name."""
    found = [
        other.name
        for other in stages
        if other.name != stage.name
        and (
            reads(stage.verb, stage.settings, provided_by(other.verb, other.settings)) or tests_on(stage, other, stages)
        )
    ]
    return tuple(dict.fromkeys([*named, *found]))


def tests_on(stage: Stage, other: Stage, stages: Sequence[Stage]) -> bool:
    """Whether a stage evaluates a run of the pipeline on a split, of the data set of that run, that another writes."""
    if stage.verb != "evaluate" or stage.settings.dataset or stage.settings.generated:
        return False
    trainings = [each for each in stages if each.verb in STOPPABLE and full(stage.settings.run) in each.results]
    written = [each for each in provided_by(other.verb, other.settings) if each.split == stage.settings.split]
    return any(names(each.verb, each.settings, written) for each in trainings)


def ranks_of(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return places of stages, each after those of its parents. Of those that may come next, the first in the file
    does. Raises CycleError if there is a circle."""
    sorter: TopologicalSorter[str] = TopologicalSorter(parents)
    sorter.prepare()
    places = {name: place for place, name in enumerate(parents)}
    ready, ranks = list(sorter.get_ready()), {}
    while ready:
        ready.sort(key=lambda name: places[name])
        name = ready.pop(0)
        ranks[name] = len(ranks)
        sorter.done(name)
        ready += sorter.get_ready()
    return ranks


def with_parents(stage: Stage, parents: Sequence[str]) -> Stage:
    """Return a stage with its parents."""
    return Stage(stage.name, stage.command, stage.settings, tuple(parents), stage.options, stage.parts, stage.on)
