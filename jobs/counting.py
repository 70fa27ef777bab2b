"""Settings that count with certain choices of other settings only; where one is given elsewhere, it is refused."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

COUNTS, ALWAYS = "counts", "always"
"""Metadata of a setting: with which choices it counts; and, of one that holds settings of another job, which of these
always do."""


class Choice(Enum):
    """What a setting may be told to be, beside its values."""

    GIVEN = "given"
    """any value but None, 0 and an empty one"""


GIVEN = Choice.GIVEN


@dataclass(frozen=True)
class Condition:
    """One of these choices must be made for a setting to count: values of other settings."""

    choices: Mapping[str, tuple[object, ...]]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the setting counts with these values of all."""
        return any(
            values[name] in right or (GIVEN in right and bool(values[name])) for name, right in self.choices.items()
        )

    def where(self, flags: Mapping[str, str]) -> str:
        """With which choices the setting counts, in words; `flags` are names that are not written as `--name`."""
        return ", or ".join(where(flags.get(name, f"--{name}"), right) for name, right in self.choices.items())

    def remedy(self, flags: Mapping[str, str]) -> str:
        """What to do for the setting to count."""
        name, right = next(iter(self.choices.items()))
        flag = flags.get(name, f"--{name}")
        if right == (None,):
            return f"leave {flag} out, too"
        return f"give {flag}" if GIVEN in right else f"give {flag} {right[0]}"


def where(flag: str, right: tuple[object, ...]) -> str:
    """With which of its values a setting makes the choice: `with --schedule cosine or restarts`."""
    if right == (None,):
        return f"without {flag}"
    if GIVEN in right:
        return f"with {flag}"
    *others, last = map(str, right)
    return f"with {flag} {', '.join(others)}{' or ' if others else ''}{last}"


def counts_with(**choices: object) -> dict[str, Any]:
    """Metadata of a setting that counts only where one of these settings has this value, or one of these (a tuple)."""
    return {COUNTS: Condition({name: v if isinstance(v, tuple) else (v,) for name, v in choices.items()})}


def conditions_of(kind: type[Any], borrowed: Mapping[str, Collection[str]]) -> Iterator[tuple[str, Condition]]:
    """The settings that do not always count, with their conditions; `borrowed` are the names of the settings that a
    setting holds."""
    for field in fields(kind):
        condition = field.metadata.get(COUNTS)
        if condition is None:
            continue
        names = borrowed.get(field.name, [field.name])
        yield from ((name, condition) for name in names if name not in field.metadata.get(ALWAYS, ()))
