"""Settings from the command line. Flags override a recipe, which overrides the defaults."""

import argparse
import dataclasses
import difflib
import functools
import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from jobs.bounds import refuse_excess
from jobs.conditions import borrowed_settings, conditions
from jobs.plain_yaml import FLOAT, INT, read_yaml_file
from jobs.settings import RETIRED, refuse_control, require
from jobs.verbs import POSITIONAL, basic_of, description_of, settings_of

RECIPES = Path(__file__).parent / "recipes"
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class PlainHelp(DefaultHelpFormatter):
    """Help that names types in plain words, and only where the value does not show them."""

    def _get_type_str(self, action: argparse.Action) -> str | None:
        kinds = {"int": "whole number", "float": "number"}
        found = {kinds.get(word) for word in re.findall(r"\w+", super()._get_type_str(action) or "")}
        return next(iter(sorted(filter(None, found))), None)

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action).replace("(type: ", "(").replace(", type: ", ", ")
        return re.sub(r" \(default: (null)?\)|, default: (null)?(?=\))", "", text)


class SettingsParser(ArgumentParser):
    """Argument parser that prints each error as one line and suggests the closest name for a misspelt setting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        text = " ".join((message if ex is None else str(ex)).split())
        sys.stderr.write(f"{self.prog}: {with_nearest(text, setting_names(self), positional_names(self))}\n")
        sys.exit(2)


def setting_names(parser: ArgumentParser) -> list[str]:
    """Return the names of all settings of a parser."""
    return [action.dest for action in parser._actions if action.dest not in ("help", "print_config")]


def positional_names(parser: ArgumentParser) -> list[str]:
    """Return the names of the settings that are given without a flag."""
    return [action.dest for action in parser._actions if not action.option_strings]


def with_nearest(message: str, names: Sequence[str], positional: Sequence[str] = ()) -> str:
    """Return an error message of the parser, extended by the closest valid names if it is about an unknown setting.

    Args:
        message: message of the parser.
        names: names of all settings.
        positional: those that are given without a flag.
    """
    lacking = re.search(r"the following arguments are required: (.+)", message)
    if lacking:
        given = lacking[1].split(", ")
        plain = {word: word.upper() for word in given if word in positional} | {w: w for w in given if w.isupper()}
        words = [plain.get(word, f"--{word.removeprefix('--')}") for word in given]
        return f"give {' and '.join(words)}; --help explains {'it' if len(words) == 1 else 'them'}."
    unknown = re.search(r"(?:[Uu]nrecognized arguments?: '?-*|Key '|Option ')([^\s=']+)", message)
    if not unknown:
        return message
    wrong = unknown[1]
    if wrong == "num_processes":
        return "--num_processes stands before the job: deeplense --num_processes 2 JOB ..."
    if "run" in names and Path(wrong).is_dir():
        return f"{wrong} stands without a setting. Did you mean --run {wrong}?"
    near = difflib.get_close_matches(wrong, names, n=2, cutoff=0.5)
    every = f"Known settings: {', '.join(sorted(names))}." if names else "This command has no settings."
    hint = f"Did you mean {' or '.join(near)}?" if near else every
    return f"unknown setting {wrong!r}. {hint}"


@functools.cache
def make_parser(name: str) -> SettingsParser:
    """Return the parser for the settings of a job."""
    kind = settings_of(name)
    parser = SettingsParser(
        prog=f"deeplense {name}",
        description=description_of(name),
        allow_abbrev=False,
        formatter_class=PlainHelp,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="recipe: YAML file with settings, or the name of a recipe of deeplense; flags override it",
    )
    positional = POSITIONAL.get(name)
    if positional:
        (field,) = [field for field in dataclasses.fields(kind) if field.name == positional]
        several = get_origin(field.type) is list
        options: dict[str, Any] = {"nargs": "+"} if several else {}
        if field.default is not dataclasses.MISSING:
            options = {"nargs": "?", "default": field.default}
        of_type = get_args(field.type)[0] if several else field.type
        parser.add_argument(positional, type=of_type, help=field.metadata["help"], **options)
    borrowed = borrowed_settings(kind)
    parser.add_class_arguments(kind, skip={*borrowed, *filter(None, [positional])}, as_group=not borrowed)
    for other, without in borrowed.values():
        names = parser.add_class_arguments(settings_of(other), skip=set(without))
        parser.set_defaults(dict.fromkeys(names))
    list_first(parser, basic_of(name))
    parser.usage = usage_of(parser)
    return parser


def usage_of(parser: SettingsParser) -> str:
    """Return the usage line: what must be given, and that there are settings."""
    required = [action for action in parser._actions if action.required or not action.option_strings]
    words = [f"--{each.dest} {each.dest.upper()}" if each.option_strings else each.dest.upper() for each in required]
    return " ".join([parser.prog, "[--config RECIPE]", *words, "[--setting value ...]"])


def list_first(parser: SettingsParser, basic: Sequence[str]) -> None:
    """List basic settings in a group of their own, before all others."""
    if not basic:
        return
    groups: list[Any] = parser._action_groups  # type: ignore[assignment]
    actions = {action.dest: (group, action) for group in groups for action in group._group_actions}
    first = parser.add_argument_group("basic settings")
    for name in basic:
        group, action = actions[name]
        group._group_actions.remove(action)
        first._group_actions.append(action)
    groups.remove(first)
    for group in groups[2:]:
        group.title, group.description = "all other settings", None
    groups.insert(2, first)


def parse(name: str, arguments: Sequence[str], *, idle: dict[str, str] | None = None) -> Any:
    """Return the settings given by a command line. If they are invalid, print one line to stderr and exit. A setting
    that has no effect is invalid too, unless `idle` is given: then it is removed, and `idle` maps its name to an
    explanation."""
    parser, kind = make_parser(name), settings_of(name)
    try:
        refuse_control({"the command line": tuple(arguments)})
        recipe, flags = read_recipes(with_switches(kind, arguments))
        words = [*as_flags(recipe, parser, POSITIONAL.get(name)), *flags]
        refuse_odd_values(kind, words)
        values = parser.parse_args(words).as_dict()
        values.pop("config", None)
        refuse_control(values)
        refuse_excess(values)
        values = with_positional(values, recipe, POSITIONAL.get(name))
        given = Given({name for name, _ in pairs_of(flags)} | {*filter(None, [POSITIONAL.get(name)])}, set(recipe))
        return kind(**with_borrowed(kind, counted(name, kind, values, given, idle)))
    except ValueError as error:
        parser.error(str(error))


def settle(name: str, *arguments: str) -> tuple[tuple[str, ...], list[str]]:
    """Return a command of an earlier version without settings that have no effect or no longer exist, and one line per
    removed setting. If anything else is invalid, print one line to stderr and exit."""
    known = setting_names(make_parser(name))
    idle = {gone: f"--{gone} no longer has any effect" for gone in RETIRED if gone not in known}
    words = leave_out(arguments, idle)
    idle = {gone: told for gone, told in idle.items() if gone in dict(pairs_of(arguments))}
    parse(name, words, idle=idle)
    recipe, flags = read_recipes(words)
    if recipe.keys() & idle.keys():
        kept = {setting: value for setting, value in recipe.items() if setting not in idle}
        words = [*as_flags(kept, make_parser(name), POSITIONAL.get(name)), *flags]
    return (name, *leave_out(words, idle)), list(idle.values())


def leave_out(words: Sequence[str], names: Collection[str]) -> list[str]:
    """Return a command line without the settings of these names and their values."""
    kept, is_value = [], False
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        is_left = word.startswith("--") and name in names
        if not (is_left or (is_value and not word.startswith("--"))):
            kept.append(word)
        is_value = is_left and not equals
    return kept


def with_switches(kind: type[Any], words: Sequence[str]) -> list[str]:
    """Return a command line in which a switch without a value is 1."""
    switches = {f"--{field.name}" for field in dataclasses.fields(kind) if "switch" in field.metadata}
    pairs = zip_longest(words, words[1:], fillvalue="")
    return [f"{word}=1" if word in switches and after not in ("0", "1") else word for word, after in pairs]


def read_recipes(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of all recipes of a command line, later ones overriding earlier ones, and all other words.
    Raises ValueError, naming the file, if a recipe cannot be read."""
    recipe: dict[str, Any] = {}
    others, words = [], iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config":
            others.append(word)
            continue
        path = value if equals else next(words, "")
        require(bool(path), "--config needs a file; give a recipe, a YAML file with settings.")
        recipe |= read_recipe(find_recipe(path))
    return recipe, others


def find_recipe(name: str) -> Path:
    """Return the file of a recipe, given as a path or as the name of a recipe that comes with deeplense, such as
    `classify_model_iii` or `models/transformer`. Raises ValueError, with the nearest name, if there is none."""
    path = Path(name)
    if path.exists():
        return path
    known = {str(each.relative_to(RECIPES).with_suffix("")): each for each in sorted(RECIPES.rglob("*.yaml"))}
    wanted = name.removesuffix(".yaml").rpartition(f"{RECIPES.parent.name}/{RECIPES.name}/")[2]
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Recipes of deeplense: {', '.join(known)}."
    require(wanted in known, f"{name} is neither a file nor a recipe of deeplense. {hint}")
    return known[wanted]


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the settings of a recipe by name. Raises ValueError, naming the file, if it is not valid."""
    values = read_yaml_file(path) or {}
    right = isinstance(values, dict) and all(isinstance(name, str) for name in values)
    require(right, f"{path} contains no settings; write one NAME: VALUE per line.")
    return values


def as_flags(recipe: Mapping[str, Any], parser: ArgumentParser, positional: str | None) -> list[str]:
    """Return command-line flags for the settings of a recipe, without those that are null both there and by default."""
    return [
        f"--{name}={as_text(value)}"
        for name, value in recipe.items()
        if name != positional
        and not (value is None and name in setting_names(parser) and parser.get_default(name) is None)
    ]


def as_text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def with_positional(values: dict[str, Any], recipe: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Return the values, with the positional setting taken from the recipe if the command line does not give it."""
    return values | {name: recipe[name]} if name in recipe and values[name] == "" else values  # type: ignore[index]


def pairs_of(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the settings on a command line; the value is empty if there is none."""
    for place, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            following = "" if equals else next(iter(words[place + 1 :]), "")
            yield name, value if equals else "" if following.startswith("--") else following


def refuse_odd_values(kind: type[Any], words: Sequence[str]) -> None:
    """Raise ValueError for a value that is not one of the choices, and for a number that is not a plain decimal: 1:30,
    0x10 and 010 are ambiguous."""
    kinds = all_kinds(kind)
    for name, value in pairs_of(words):
        require_value(name, value, kinds.get(name))


def require_value(name: str, value: str, kind: Any) -> None:
    """Raise ValueError if a setting has choices or a numeric type and its value is not one of them."""
    parts = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        known = list(map(str, parts))
        near = difflib.get_close_matches(value, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        require(value in known, f"--{name}: {value!r} is not valid; choose from {', '.join(known)}.{hint}")
    elif float in parts or int in parts:
        right = INT.match(value) or (float in parts and FLOAT.match(value)) or (value == "null" and type(None) in parts)
        what = "number; write one such as 1.5 or 1e-3" if float in parts else "whole number; write one such as 4"
        require(bool(right), f"--{name}: {value!r} is not a {what}.")


def all_kinds(kind: type[Any]) -> dict[str, Any]:
    """Return the types of all settings by name, including those borrowed from another job."""
    others = [all_kinds(settings_of(job)) for job, _ in borrowed_settings(kind).values()]
    return {name: of_type for each in others for name, of_type in each.items()} | {
        field.name: field.type for field in dataclasses.fields(kind)
    }


class Given(NamedTuple):
    """Names of the settings that the command line gives, and of those that a recipe gives."""

    flags: set[str]
    recipe: set[str]


def counted(
    job: str, kind: type[Any], values: Mapping[str, Any], given: Given, idle: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return the values after checking that every given setting has an effect.

    A setting that is given but has no effect is refused. One in a recipe is accepted if it has its default value. It is
    reset to its default if the command line overrides the choice that it belongs to. With `idle`, nothing is refused:
    the settings without effect are collected there.
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
        flag, calls = f"--{name}" if name in given.flags else f"{name} in the recipe", {POSITIONAL.get(job, ""): job}
        told = f"{flag} has an effect only {condition.where(calls)}"
        require(idle is not None, f"{told}; leave it out, or {condition.remedy(calls)}.")
        assert idle is not None
        idle[name], found[name] = told, default
    return found


def with_borrowed(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the parser, with the given settings of another job collected under one name."""
    borrowed = borrowed_settings(kind)
    if not borrowed:
        return dict(values)
    (name,) = borrowed
    own = {field.name for field in dataclasses.fields(kind)}
    others = {key: value for key, value in values.items() if key not in own and value is not None}
    return {key: value for key, value in values.items() if key in own} | {name: others}
