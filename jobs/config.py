"""Settings from the command line: flags over a recipe over defaults. Every job's settings are one flat frozen
dataclass."""

import dataclasses
import difflib
import functools
import importlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar, get_args

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from jobs.bounds import refuse_excess
from jobs.counting import Condition, conditions_of
from jobs.plain_yaml import FLOAT, INT, read_yaml_file

set_parsing_settings(docstring_parse_attribute_docstrings=True)

JOBS = (
    "simulate",
    "pack",
    "verify",
    "train",
    "pretrain",
    "finetune",
    "diffuse",
    "sample",
    "evaluate",
    "export",
    "models",
    "benchmark",
    "benchmark models",
    "benchmark labels",
    "benchmark selection",
)
"""By the words that they are called by; `benchmark models` is the module jobs/benchmark_models.py."""
STOPPABLE = ("train", "pretrain", "finetune", "diffuse")
"""Jobs that have a run folder, save on a signal, and continue."""
TRAININGS = ("train", "pretrain", "diffuse")
"""Those of them that do nothing else: several processes may share the work, and the run folder holds the settings from
the moment when the job is submitted."""
DIVISIBLE = ("simulate", "pack", "sample")
"""Jobs that several tasks may do together, each with a --part of its own."""
SPREAD = ("benchmark models", "benchmark labels")
"""Jobs that are many runs: one after another here, an element for each (--only RUN) in an array elsewhere. Their
modules tell by `runs_left` which."""
POSITIONAL = {"models": "name", "verify": "folder", "export": "run", "benchmark": "what"}
RETIRED = ("model_source", "drop_path")
"""Settings of older runs that say nothing any more, where a job does not have them."""
FREE = {"free": True}
"""Metadata of a setting that changes no number: a run may be continued with another value."""
SWITCH = {"switch": True}
"""Metadata of a setting that is 0 or 1, and 1 where its flag stands alone."""
OF, BUT = "settings_of", "but"
"""Metadata of a setting that holds settings of another job, those that are given, and of which it has not."""

Result = TypeVar("Result")


class Job(Protocol):
    """A module of this package: its settings, and what they make it do."""

    Settings: type[Any]

    def run(self, settings: Any) -> int: ...


class SettingsParser(ArgumentParser):
    """Says what is wrong in one line, with the nearest right name of a misspelt setting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        text = " ".join((message if ex is None else str(ex)).split())
        sys.stderr.write(f"{self.prog}: {with_nearest(text, setting_names(self))}\n")
        sys.exit(2)


def setting_names(parser: ArgumentParser) -> list[str]:
    """Names of all settings of a parser."""
    return [action.dest for action in parser._actions if action.dest not in ("help", "print_config")]


def with_nearest(message: str, names: Sequence[str]) -> str:
    """An error of the parser, with the nearest right names to a wrong one that it mentions."""
    unknown = re.search(r"(?:[Uu]nrecognized arguments?: '?-*|Key '|Option ')([^\s=']+)", message)
    if not unknown:
        return message
    wrong = unknown[1]
    near = difflib.get_close_matches(wrong, names, n=2, cutoff=0.5)
    every = f"There are: {', '.join(sorted(names))}." if names else "There are none."
    hint = f"Did you mean {' or '.join(near)}?" if near else every
    return f"there is no setting {wrong!r}. {hint}"


def named(command: Sequence[str]) -> list[str]:
    """A command line with the name of its job as one word, where that is two. Raises ValueError where the second of two
    is misspelt."""
    if len(command) < 2:
        return list(command)
    two, second = " ".join(command[:2]), [job.partition(" ")[2] for job in JOBS if job.startswith(f"{command[0]} ")]
    if two in JOBS:
        return [two, *command[2:]]
    near = difflib.get_close_matches(command[1], second, n=1)
    require(not near, f"there is no job {two!r}. Did you mean {command[0]} {''.join(near)}?")
    return list(command)


def load_job(name: str) -> Job:
    """The module of a job. Raises ValueError, naming the nearest, for an unknown one."""
    if name not in JOBS:
        near = difflib.get_close_matches(name, JOBS, n=1, cutoff=0.4)
        raise ValueError(
            f"there is no job {name!r}. " + (f"Did you mean {near[0]}?" if near else f"There are: {', '.join(JOBS)}.")
        )
    return importlib.import_module(f"jobs.{name.replace(' ', '_')}")  # type: ignore[return-value]


@functools.cache
def make_parser(name: str) -> SettingsParser:
    """The parser of a job's settings."""
    job = load_job(name)
    parser = SettingsParser(
        prog=f"deeplense {name}",
        description=(job.__doc__ or "").strip(),
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a recipe: YAML of settings; flags go over it")
    positional = POSITIONAL.get(name)
    if positional:
        (field,) = [field for field in dataclasses.fields(job.Settings) if field.name == positional]
        left_out = {} if field.default is dataclasses.MISSING else {"nargs": "?", "default": field.default}
        parser.add_argument(positional, type=field.type, help=field.metadata["help"], **left_out)
    borrowed = borrowed_settings(job.Settings)
    parser.add_class_arguments(job.Settings, skip={*borrowed, *filter(None, [positional])}, as_group=not borrowed)
    for other, without in borrowed.values():
        names = parser.add_class_arguments(load_job(other).Settings, skip=set(without))
        parser.set_defaults(dict.fromkeys(names))
    return parser


def borrowed_settings(kind: type[Any]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The settings that hold those of another job: which job's, and without which of them."""
    fields = [field for field in dataclasses.fields(kind) if OF in field.metadata]
    return {field.name: (field.metadata[OF], field.metadata[BUT]) for field in fields}


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The settings that a command line gives. Exits with a line on stderr where they are wrong."""
    parser, kind = make_parser(name), load_job(name).Settings
    try:
        refuse_control({"the command line": tuple(arguments)})
        recipe, flags = read_recipes(with_switches(kind, arguments))
        words = [*as_flags(recipe, parser, POSITIONAL.get(name)), *flags]
        refuse_odd_numbers(kind, words)
        values = parser.parse_args(words).as_dict()
        values.pop("config", None)
        refuse_control(values)
        refuse_excess(values)
        values = with_positional(values, recipe, POSITIONAL.get(name))
        given = Given({name for name, _ in pairs_of(flags)} | {*filter(None, [POSITIONAL.get(name)])}, set(recipe))
        return kind(**with_borrowed(kind, counted(name, kind, values, given)))
    except ValueError as error:
        parser.error(str(error))


def with_switches(kind: type[Any], words: Sequence[str]) -> list[str]:
    """A command line in which a switch that stands alone is 1."""
    switches = {f"--{field.name}" for field in dataclasses.fields(kind) if "switch" in field.metadata}
    pairs = zip_longest(words, words[1:], fillvalue="")
    return [f"{word}=1" if word in switches and after not in ("0", "1") else word for word, after in pairs]


def read_recipes(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What the recipes of a command line say, the later over the earlier, and all other words. Raises ValueError,
    naming the file, where one cannot be read."""
    recipe: dict[str, Any] = {}
    others, words = [], iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config":
            others.append(word)
            continue
        path = value if equals else next(words, "")
        require(bool(path), "--config names no file; give a recipe, YAML of settings.")
        recipe |= read_recipe(Path(path))
    return recipe, others


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a recipe by name. Raises ValueError, naming the file."""
    values = read_yaml_file(path) or {}
    right = isinstance(values, dict) and all(isinstance(name, str) for name in values)
    require(right, f"{path} holds no settings; write NAME: VALUE, a line for each.")
    return values


def as_flags(recipe: Mapping[str, Any], parser: ArgumentParser, positional: str | None) -> list[str]:
    """The command line that gives the settings of a recipe, without those that say nothing."""
    return [
        f"--{name}={as_text(value)}"
        for name, value in recipe.items()
        if name != positional
        and not (value is None and name in setting_names(parser) and parser.get_default(name) is None)
    ]


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def with_positional(values: dict[str, Any], recipe: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Values with what a recipe says of the setting that has no flag, where the command line leaves it out."""
    return values | {name: recipe[name]} if name in recipe and values[name] == "" else values  # type: ignore[index]


def pairs_of(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The settings that a command line gives by name, with their values; empty where there is none."""
    for place, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            following = "" if equals else next(iter(words[place + 1 :]), "")
            yield name, value if equals else "" if following.startswith("--") else following


def refuse_odd_numbers(kind: type[Any], words: Sequence[str]) -> None:
    """Raise ValueError for a number that is not written as a decimal: 1:30, 0x10 and 010 may mean anything."""
    kinds = all_kinds(kind)
    for name, value in pairs_of(words):
        require_number(name, value, kinds.get(name))


def require_number(name: str, value: str, kind: Any) -> None:
    """Raise ValueError where a setting is a number, of a kind, and its value none."""
    parts = get_args(kind) or (kind,)
    if any(isinstance(part, int) for part in parts):
        right = value in map(str, parts)
        require(right, f"--{name}: {value!r} is none of {', '.join(map(str, parts))}.")
    elif float in parts or int in parts:
        right = INT.match(value) or (float in parts and FLOAT.match(value)) or (value == "null" and type(None) in parts)
        what = "number; write one such as 1.5 or 1e-3" if float in parts else "whole number; write one such as 4"
        require(bool(right), f"--{name}: {value!r} is no {what}.")


def all_kinds(kind: type[Any]) -> dict[str, Any]:
    """The types of all settings by name, those that are another job's too."""
    others = [all_kinds(load_job(job).Settings) for job, _ in borrowed_settings(kind).values()]
    return {name: of_type for each in others for name, of_type in each.items()} | {
        field.name: field.type for field in dataclasses.fields(kind)
    }


class Given(NamedTuple):
    """Names of the settings that the command line gives, and of those that a recipe does."""

    flags: set[str]
    recipe: set[str]


def conditions(kind: type[Any]) -> dict[str, Condition]:
    """The settings that count with certain choices of others only, those that are another job's too."""
    borrowed = {
        name: {field.name for field in dataclasses.fields(load_job(job).Settings)} - set(but)
        for name, (job, but) in borrowed_settings(kind).items()
    }
    return dict(conditions_of(kind, borrowed))


def counted(job: str, kind: type[Any], values: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """Values of which all that are given count.

    A setting that does not count, and is given, is refused. So is one of a recipe, unless it says what holds anyway, or
    the command line makes another choice than the recipe: then what belonged to the recipe's choice goes with it.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    found = dict(values)
    for name, condition in conditions(kind).items():
        default = defaults.get(name)
        if condition.holds(values) or (
            name not in given.flags and (name not in given.recipe or values[name] == default)
        ):
            continue
        if name not in given.flags and given.flags & set(condition.choices):
            found[name] = default
            continue
        flag, calls = f"--{name}" if name in given.flags else f"{name} of the recipe", {POSITIONAL.get(job, ""): job}
        raise ValueError(f"{flag} counts {condition.where(calls)} only; leave it out, or {condition.remedy(calls)}.")
    return found


def counting(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of plain values that count, in what holds settings of another job too."""
    found = {field.name: field.default for field in dataclasses.fields(kind)} | dict(values)
    idle = {name for name, condition in conditions(kind).items() if not condition.holds(found)}
    kept = {name: value for name, value in values.items() if name not in idle}
    held = {name: kept[name] for name in borrowed_settings(kind) if isinstance(kept.get(name), Mapping)}
    return kept | {name: {k: v for k, v in each.items() if k not in idle} for name, each in held.items()}


def with_borrowed(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values from the parser with those that are another job's, as far as they are given, under one name."""
    borrowed = borrowed_settings(kind)
    if not borrowed:
        return dict(values)
    (name,) = borrowed
    own = {field.name for field in dataclasses.fields(kind)}
    others = {key: value for key, value in values.items() if key not in own and value is not None}
    return {key: value for key, value in values.items() if key in own} | {name: others}


def plain(settings: Any) -> dict[str, Any]:
    """Settings as plain values, for YAML and JSON."""
    return plain_values(vars(settings))


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with paths as text, those within them too."""
    kinds = {Path: str, dict: plain_values}
    return {
        name: next((make(value) for kind, make in kinds.items() if isinstance(value, kind)), value)
        for name, value in values.items()
    }


def from_plain(kind: type[Result], values: Mapping[str, Any]) -> Result:
    """Settings from plain values, the inverse of `plain`. Raises ValueError where this version does not know one."""
    values = {name: value for name, value in values.items() if name not in RETIRED}
    known = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    require(set(values) <= set(known), f"this version does not know the settings {sorted(set(values) - set(known))}.")
    paths = {name for name, of_type in known.items() if of_type in (Path, Path | None)}
    return kind(**{k: Path(v) if k in paths and v is not None else v for k, v in values.items()})


def dump(settings: Any) -> str:
    """Settings as YAML, a recipe again."""
    return yaml.safe_dump(plain(settings), sort_keys=False)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters that end a line, move a cursor, or are not encodable at all."""


def refuse_control(values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming it, where a text or path among these values has a control character. They end up in
    batch scripts, in lists with a name on each line, and in terminals."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            refuse_control({f"a name in {name}": tuple(value)})
            refuse_control({f"{name}.{key}": item for key, item in value.items()})
        elif isinstance(value, tuple | list):
            refuse_control({f"{name}, item {place}": item for place, item in enumerate(value, 1)})
        elif isinstance(value, str | Path):
            found = [sign for sign in str(value) if unicodedata.category(sign) in CONTROL]
            require(
                not found,
                f"{name}={str(value)!r} has the control character {''.join(found[:1])!a}; use letters, digits and "
                "signs that can be seen.",
            )
