"""Sweeps: expand one command line into many runs, each with its own values and folder."""

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jobs.settings import require
from launch.clusters import nearest

MOST_RUNS = 10_000
RUN = "run"
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"([+-]?\d+):([+-]?\d+)(?::([+-]?\d+))?")
EXAMPLE = "--run 'runs/{model_name}-{seed}' --model_name resnet18,vit --seed 0:5"


def expand(words: Sequence[str]) -> list[list[str]]:
    """Expand a job's command line into those of all runs, using the {placeholders} in its --run.

    Placeholders name the settings to vary. The value of such a setting is a list of values (`a,b`), of ranges of
    integers (`0:5` is 0 to 4, `0:10:2` has a step), or of both. Each combination is a run; the last placeholder varies
    fastest. Placeholders are replaced by the values, with characters that are safe in names of folders. Raises
    ValueError if there is nothing to vary, a setting or its values are missing, or two runs would share a folder.
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
    """Return all settings of a command line, written as `--name=value` or `--name value`."""
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
    """Return the setting of this name. Raises ValueError if it is missing, empty, or set more than once."""
    known = {setting.name: setting for setting in settings}
    if name == RUN and name not in known:
        raise ValueError(f"--run is missing; set a folder with the settings to vary in braces, as in {EXAMPLE}.")
    if name not in known:
        others = sorted(set(known) - {RUN})
        hint = f" {nearest(name, others)}" if others else ""
        raise ValueError(f"--run contains {{{name}}}, but --{name} is not set; set it to the values to try.{hint}")
    num_given = sum(setting.name == name for setting in settings)
    require(num_given == 1, f"--{name} is set {num_given} times; set it once.")
    require(known[name].value != "", f"--{name} has no value; add one, as in {EXAMPLE}.")
    return known[name]


def placeholders(template: str) -> list[str]:
    """Return the distinct names in braces. Raises ValueError if there are none, or braces are unbalanced."""
    names = list(dict.fromkeys(PLACEHOLDER.findall(template)))
    require(
        not re.search(r"[{}]", PLACEHOLDER.sub("", template)),
        f"--run={template} has unbalanced braces; write each name as {{name}}.",
    )
    require(bool(names), f"--run={template} names no setting to vary; name one or more in braces, as in {EXAMPLE}.")
    require(RUN not in names, f"--run={template} contains itself; name another setting in the braces.")
    return names


def read_values(axis: "Setting") -> list[str]:
    """Return the individual values of a setting that varies. Raises ValueError for invalid lists or ranges."""
    told = f"--{axis.name}={axis.value} is a single list or mapping, which cannot be varied"
    require(axis.value[0] not in "[{", f"{told}; write values separated by commas.")
    values: list[str] = []
    for item in axis.value.split(","):
        values += read_item(axis, item.strip())
    return values


def read_item(axis: "Setting", item: str) -> list[str]:
    """Return the values of one item of a list: a value or a range."""
    require(item != "", f"--{axis.name}={axis.value} has an empty item; remove the extra comma.")
    found = RANGE.fullmatch(item)
    if not found:
        return [item]
    first, end, step = (int(part) for part in found.groups(default="1"))
    require(step != 0, f"--{axis.name}={axis.value}: the step of {item} is 0; use another step, as in 0:10:2.")
    # A slice of a range takes no time or memory, even if the range is long.
    numbers = range(first, end, step)[: MOST_RUNS + 1]
    require(
        len(numbers) > 0, f"--{axis.name}={axis.value}: the range {item} is empty; the end is exclusive: 0:5 is 0 to 4."
    )
    return [str(number) for number in numbers]


def refuse_many(values: Sequence[Sequence[str]]) -> None:
    """Raise ValueError if there are more than MOST_RUNS runs."""
    num_runs = 1
    for axis in values:
        num_runs *= len(axis)
        require(num_runs <= MOST_RUNS, f"the sweep has more than {MOST_RUNS:,} runs; use fewer values.")


def fill(template: str, values: dict[str, str]) -> str:
    """Fill the placeholders of a folder's template."""
    return PLACEHOLDER.sub(lambda found: safe(values[found[1]]), template)


def safe(value: str) -> str:
    """Make a value safe for names of folders: replace all except letters, digits and `_.+=@-` by dashes."""
    text = re.sub(r"[^\w.+=@-]", "-", value)
    return text if text.strip(".") else "-" * len(text)


def refuse_shared(folders: Sequence[str], names: Sequence[str], combinations: Sequence[Sequence[str]]) -> None:
    """Raise ValueError, naming the first two, if combinations have the same folder."""
    first: dict[str, Sequence[str]] = {}
    for folder, chosen in zip(map(os.path.normpath, folders), combinations, strict=True):
        if folder in first:
            pairs = [" ".join(f"--{n}={v}" for n, v in zip(names, c, strict=True)) for c in (first[folder], chosen)]
            told = f"{pairs[0]} occurs twice" if pairs[0] == pairs[1] else f"{pairs[0]} and {pairs[1]} both map to it"
            raise ValueError(
                f"two runs have the same folder {folder}: {told}; choose values and a --run that give distinct folders."
            )
        first[folder] = chosen


def replaced(words: Sequence[str], values: Iterable[tuple["Setting", str]]) -> list[str]:
    """Return a command line with the values of some settings replaced."""
    changed = list(words)
    for setting, value in values:
        changed[setting.place] = setting.prefix + value
    return changed


class Setting(NamedTuple):
    """A setting of a command line: `place` is the index of the word with its value, `prefix` the text before it."""

    name: str
    value: str
    place: int
    prefix: str
