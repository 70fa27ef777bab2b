"""One thing that is found of a cluster or of a job, graded, and the words that it is told in."""

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing found: `right`, `note` for what works with a loss, `wrong` for what does not."""

    level: Literal["right", "note", "wrong"]
    text: str


def right(text: str) -> Finding:
    """Something is as it should be."""
    return Finding("right", text)


def note(text: str) -> Finding:
    """Something works with a loss."""
    return Finding("note", text)


def wrong(text: str) -> Finding:
    """Something does not work."""
    return Finding("wrong", text)


def graded(is_right: bool, told: str, loss: str) -> Finding:
    """What is told, with the loss that it means unless it is right."""
    return right(told) if is_right else note(f"{told}; {loss}")


def one_line(text: object) -> str:
    """Several lines as one, without colours."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(text)).split())


def plural(count: int, thing: str) -> str:
    """A count of things."""
    return f"{count} {thing}" + ("" if count == 1 else "s")
