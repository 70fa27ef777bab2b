"""Sweeps: one command line that stands for many runs, each with values and a folder of its own."""

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jobs.config import require
from launch.clusters import nearest

MOST_RUNS = 10_000
RUN = "run"
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"([+-]?\d+):([+-]?\d+)(?::([+-]?\d+))?")
EXAMPLE = "--run 'runs/{model_name}-{seed}' --model_name resnet18,vit --seed 0:5"


def expand(words: Sequence[str]) -> list[list[str]]:
    """The command lines that a job's command line stands for, by the {placeholders} in its --run.

    They name the settings to vary. The value of such a setting is a list of values (`a,b`), of ranges of integers
    (`0:5` is 0 to 4, `0:10:2` has a step), or of both; every combination is a run, the last placeholder varying
    fastest. The placeholders are filled with the values, made safe for the name of a folder. Raises ValueError where
    there is nothing to vary, where a setting or its values are missing, and where two runs would share a folder.
    """
    settings = read_settings(words)
    run = one_setting(settings, RUN)
    names = placeholders(run.value)
    axes = [one_setting(settings, name) for name in names]
    values = [read_values(axis) for axis in axes]
    refuse_many(values)
    combinations = list(itertools.product(*values))
    folders = [fill(run.value, dict(zip(names, chosen, strict=True))) for chosen in combinations]
    refuse_shared(folders, names, combinations)
    return [
        replaced(words, zip([run, *axes], [folder, *chosen], strict=True))
        for folder, chosen in zip(folders, combinations, strict=True)
    ]


def read_settings(words: Sequence[str]) -> list["Setting"]:
    """All settings of a command line, as `--name=value` or `--name value`."""
    found = []
    for place, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            continue
        if equals:
            found.append(Setting(name, value, place, f"--{name}="))
        else:
            following = words[place + 1] if place + 1 < len(words) else "--"
            found.append(Setting(name, "" if following.startswith("--") else following, place + 1, ""))
    return found


def one_setting(settings: Sequence["Setting"], name: str) -> "Setting":
    """The setting of this name. Raises ValueError where it is missing, empty, or given more than once."""
    known = {setting.name: setting for setting in settings}
    if name == RUN and name not in known:
        raise ValueError(f"the folder of a run is missing; name in it what to vary, as in {EXAMPLE}.")
    if name not in known:
        others = sorted(set(known) - {RUN})
        hint = f" {nearest(name, others)}" if others else ""
        raise ValueError(f"--run names {{{name}}}, but --{name} is not given; give it the values to vary.{hint}")
    num_given = sum(setting.name == name for setting in settings)
    require(num_given == 1, f"--{name} is given {num_given} times; give it once.")
    require(known[name].value != "", f"--{name} has no value; give one, as in {EXAMPLE}.")
    return known[name]


def placeholders(template: str) -> list[str]:
    """The names in braces, each once. Raises ValueError where there is none, or a brace has no partner."""
    names = list(dict.fromkeys(PLACEHOLDER.findall(template)))
    require(not re.search(r"[{}]", PLACEHOLDER.sub("", template)), f"--run={template} has a brace without its partner.")
    require(bool(names), f"--run={template} names no setting to vary; name one or more in braces, as in {EXAMPLE}.")
    require(RUN not in names, f"--run={template} cannot hold itself; name another setting in the braces.")
    return names


def read_values(axis: "Setting") -> list[str]:
    """The single values of a setting that varies. Raises ValueError where there is none, or too many."""
    require(axis.value[0] not in "[{", f"--{axis.name}={axis.value} is one value with parts, which cannot be varied.")
    values: list[str] = []
    for item in axis.value.split(","):
        values += read_item(axis, item.strip())
    return values


def read_item(axis: "Setting", item: str) -> list[str]:
    """What stands between two commas: a value or a range."""
    require(item != "", f"--{axis.name}={axis.value} has a comma with nothing beside it; remove it.")
    found = RANGE.fullmatch(item)
    if not found:
        return [item]
    first, end, step = (int(part) for part in found.groups(default="1"))
    require(step != 0, f"--{axis.name}={axis.value}: the step of {item} is 0; give another, as in 0:10:2.")
    # A slice of a range costs nothing, however long it is.
    numbers = range(first, end, step)[: MOST_RUNS + 1]
    require(
        len(numbers) > 0, f"--{axis.name}={axis.value}: the range {item} is empty; its end is not in it, as in 0:5."
    )
    return [str(number) for number in numbers]


def refuse_many(values: Sequence[Sequence[str]]) -> None:
    """Raise ValueError for more runs than anyone means."""
    num_runs = 1
    for axis in values:
        num_runs *= len(axis)
        require(num_runs <= MOST_RUNS, f"these are more than {MOST_RUNS:,} runs; give fewer values.")


def fill(template: str, values: dict[str, str]) -> str:
    """A folder's name from its template."""
    return PLACEHOLDER.sub(lambda found: safe(values[found[1]]), template)


def safe(value: str) -> str:
    """A value as a part of a folder's name: other signs than letters, digits and `_.+=@-` become dashes."""
    text = re.sub(r"[^\w.+=@-]", "-", value)
    return text if text.strip(".") else "-" * len(text)


def refuse_shared(folders: Sequence[str], names: Sequence[str], combinations: Sequence[Sequence[str]]) -> None:
    """Raise ValueError, naming the first two, where combinations have the same folder."""
    first: dict[str, Sequence[str]] = {}
    for folder, chosen in zip(map(os.path.normpath, folders), combinations, strict=True):
        if folder in first:
            pairs = [" ".join(f"--{n}={v}" for n, v in zip(names, c, strict=True)) for c in (first[folder], chosen)]
            told = f"{pairs[0]} comes twice" if pairs[0] == pairs[1] else f"{pairs[0]} and {pairs[1]} have it both"
            raise ValueError(
                f"two runs have the folder {folder}: {told}; give values and a --run that keep them apart."
            )
        first[folder] = chosen


def replaced(words: Sequence[str], values: Iterable[tuple["Setting", str]]) -> list[str]:
    """A command line with other values of some settings."""
    changed = list(words)
    for setting, value in values:
        changed[setting.place] = setting.prefix + value
    return changed


class Setting(NamedTuple):
    """A setting of a command line: the place of the word that holds its value, and what stands before it there."""

    name: str
    value: str
    place: int
    prefix: str
