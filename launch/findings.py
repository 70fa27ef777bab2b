"""Findings about a cluster or a job, with a level, and helpers to format them."""

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """A finding: `right` if something works, `note` if it works with a drawback, `wrong` if it does not work."""

    level: Literal["right", "note", "wrong"]
    text: str


def right(text: str) -> Finding:
    """Return a finding about something that works."""
    return Finding("right", text)


def note(text: str) -> Finding:
    """Return a finding about something that works with a drawback."""
    return Finding("note", text)


def wrong(text: str) -> Finding:
    """Return a finding about something that does not work."""
    return Finding("wrong", text)


def graded(is_right: bool, told: str, loss: str) -> Finding:
    """Return a `right` finding, or else a note with the drawback appended."""
    return right(told) if is_right else note(f"{told}; {loss}")


def one_line(text: object) -> str:
    """Join lines into one and remove colour codes."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(text)).split())


def printable(text: object) -> str:
    """Return a text in one line without control characters, which a terminal would obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in one_line(text))


def plural(count: int, thing: str) -> str:
    """Return a number with a noun, in the plural unless the number is 1."""
    return f"{count} {thing}" + ("" if count == 1 else "s")
