"""Names that stand for one of a few things: another name is refused, with the nearest right one."""

import difflib
from collections.abc import Collection, Mapping
from typing import NoReturn, TypeVar

Kind = TypeVar("Kind")


def require_choice(name: str, value: object, known: Collection[str]) -> None:
    """Raise ValueError, with the nearest right one, where a value is none of those that are known."""
    if value not in known:
        refuse(name, value, known)


def refuse(name: str, value: object, known: Collection[str]) -> NoReturn:
    """Raise ValueError for a value that is not known."""
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name}={value!r} is none of {', '.join(known)}.{meant}")


class Choices(dict[str, Kind]):
    """What each name stands for. Looking up another name raises ValueError; `name` is what is chosen."""

    def __init__(self, name: str, known: Mapping[str, Kind]) -> None:
        super().__init__(known)
        self.name = name

    def __missing__(self, value: str) -> NoReturn:
        refuse(self.name, value, self)
