"""Names that stand for one of a few things: an unknown name is refused, and the nearest known one is suggested."""

import difflib
import importlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

Kind = TypeVar("Kind")


def require_choice(name: str, value: object, known: Collection[str]) -> None:
    """Raise an error, with the nearest known value, unless a value is one of the known ones.

    Args:
        name: name of the setting.
        value: its value.
        known: all allowed values.

    Raises:
        ValueError: unknown value.

    Example:
        >>> require_choice("stretch", "asinh", ["linear", "asinh"])
    """
    if value not in known:
        refuse(name, value, known)


def refuse(name: str, value: object, known: Collection[str]) -> NoReturn:
    """Raise ValueError for an unknown value, with the nearest known one.

    Args:
        name: name of the setting.
        value: its value.
        known: all allowed values.
    """
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.{meant}")


class Choices(dict[str, Kind]):
    """A dictionary from names to what they stand for. Looking up an unknown name raises ValueError.

    Args:
        name: name of the setting that is chosen.
        known: what each name stands for.

    Example:
        >>> Choices("size", {"small": 1, "large": 2})["small"]
        1
    """

    def __init__(self, name: str, known: Mapping[str, Kind]) -> None:
        super().__init__(known)
        self.name = name

    def __missing__(self, value: str) -> NoReturn:
        refuse(self.name, value, self)


class Lazy(Mapping[str, Any]):
    """A mapping from names to objects that are imported when they are looked up; the names are known without the
    import.

    Args:
        name: name of the setting that is chosen.
        places: `module:object` of each name.

    Example:
        >>> Lazy("function", {"root": "math:sqrt"})["root"](9.0)
        3.0
    """

    def __init__(self, name: str, places: Mapping[str, str]) -> None:
        self.name, self.places = name, dict(places)

    def __getitem__(self, value: str) -> Any:
        if value not in self.places:
            refuse(self.name, value, self.places)
        module, _, found = self.places[value].partition(":")
        return getattr(importlib.import_module(module), found)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)
