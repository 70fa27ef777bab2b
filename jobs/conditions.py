"""Conditions of settings: some settings have an effect only with certain values of other settings, and are refused
otherwise."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from jobs.settings import BUT, OF
from jobs.verbs import settings_of

COUNTS, ALWAYS = "counts", "always"
"""Metadata of a setting. `counts` holds its condition; `always` lists, for a setting that holds the settings of another
job, those that are exempt from the condition."""


class Choice(Enum):
    """Special values in a condition."""

    GIVEN = "given"
    """any value except None, 0 and an empty one"""


GIVEN = Choice.GIVEN


@dataclass(frozen=True)
class Condition:
    """A condition that holds if at least one of these settings has one of the listed values."""

    choices: Mapping[str, tuple[object, ...]]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the setting has an effect, given the values of all settings."""
        return any(
            values[name] in right or (GIVEN in right and bool(values[name])) for name, right in self.choices.items()
        )

    def where(self, flags: Mapping[str, str]) -> str:
        """Describe the condition in words. `flags` maps settings that are not written as `--name` to their text."""
        return ", or ".join(where(flags.get(name, f"--{name}"), right) for name, right in self.choices.items())

    def remedy(self, flags: Mapping[str, str]) -> str:
        """Describe what to change so that the setting has an effect."""
        name, right = next(iter(self.choices.items()))
        flag = flags.get(name, f"--{name}")
        if right == (None,):
            return f"also leave out {flag}"
        return f"give {flag}" if GIVEN in right else f"give {flag} {right[0]}"


def where(flag: str, right: tuple[object, ...]) -> str:
    """Describe the values for which a setting meets the condition, such as `with --schedule cosine or restarts`."""
    if right == (None,):
        return f"without {flag}"
    if GIVEN in right:
        return f"with {flag}"
    *others, last = map(str, right)
    return f"with {flag} {', '.join(others)}{' or ' if others else ''}{last}"


def counts_with(**choices: object) -> dict[str, Any]:
    """Return the metadata of a setting that has an effect only if one of these settings has this value, or one of these
    values (a tuple)."""
    return {COUNTS: Condition({name: v if isinstance(v, tuple) else (v,) for name, v in choices.items()})}


def conditions_of(kind: type[Any], borrowed: Mapping[str, Collection[str]]) -> Iterator[tuple[str, Condition]]:
    """Yield the settings that have a condition, with it. `borrowed` maps a setting that holds settings of another job
    to their names."""
    known = {field.name for field in fields(kind)}.union(*borrowed.values())
    for field in fields(kind):
        condition = field.metadata.get(COUNTS)
        if condition is None:
            continue
        # Settings that several jobs share may depend on one that only some of the jobs have.
        condition = Condition({name: right for name, right in condition.choices.items() if name in known})
        names = borrowed.get(field.name, [field.name])
        yield from ((name, condition) for name in names if name not in field.metadata.get(ALWAYS, ()))


def borrowed_settings(kind: type[Any]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the settings that hold settings of another job: the name of that job, and the names that are excluded."""
    fields = [field for field in dataclasses.fields(kind) if OF in field.metadata]
    return {field.name: (field.metadata[OF], field.metadata[BUT]) for field in fields}


def conditions(kind: type[Any]) -> dict[str, Condition]:
    """Return the conditions of all settings that have one, including those borrowed from another job."""
    borrowed = {
        name: {field.name for field in dataclasses.fields(settings_of(job))} - set(but)
        for name, (job, but) in borrowed_settings(kind).items()
    }
    return dict(conditions_of(kind, borrowed))


def counting(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values that have an effect, also within a setting that holds settings of another job."""
    found = {field.name: field.default for field in dataclasses.fields(kind)} | dict(values)
    idle = {name for name, condition in conditions(kind).items() if not condition.holds(found)}
    kept = {name: value for name, value in values.items() if name not in idle}
    held = {name: kept[name] for name in borrowed_settings(kind) if isinstance(kept.get(name), Mapping)}
    return kept | {name: {k: v for k, v in each.items() if k not in idle} for name, each in held.items()}
