"""Settings of a job as a flat frozen dataclass: metadata, checks, and conversion to and from plain values."""

import dataclasses
import math
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

RETIRED = ("model_source", "drop_path")
"""Settings of older runs that no longer have any effect in jobs that do not have them."""
FREE = {"free": True}
"""Metadata of a setting that does not affect numerical results: a run may be resumed with another value."""
SWITCH = {"switch": True}
"""Metadata of a setting that is 0 or 1, and 1 if its flag has no value."""
OF, BUT = "settings_of", "but"
"""Metadata of a setting that holds given settings of another job: the name of that job, and the settings that are
excluded."""
Result = TypeVar("Result")


def plain(settings: Any) -> dict[str, Any]:
    """Return settings as plain values for YAML and JSON."""
    return plain_values(vars(settings))


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with paths converted to text, also in nested mappings."""
    kinds = {Path: str, dict: plain_values}
    return {
        name: next((make(value) for kind, make in kinds.items() if isinstance(value, kind)), value)
        for name, value in values.items()
    }


def from_plain(kind: type[Result], values: Mapping[str, Any]) -> Result:
    """Return settings from plain values, the inverse of `plain`. Raises ValueError if this version does not have one of
    them."""
    values = {name: value for name, value in values.items() if name not in RETIRED}
    known = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    require(not unknown, f"unknown settings {unknown}; remove them, or use the version of deeplense that wrote them.")
    paths = {name for name, of_type in known.items() if of_type in (Path, Path | None)}
    return kind(**{k: Path(v) if k in paths and v is not None else v for k, v in values.items()})


def changed_settings(settings: Any) -> list[str]:
    """Return the names of the settings that differ from their defaults, or have none."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    return [name for name, value in vars(settings).items() if value != defaults[name]]


def dump(settings: Any) -> str:
    """Return settings as YAML, which can be used as a recipe."""
    return yaml.safe_dump(plain(settings), sort_keys=False)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of characters that end a line, move the cursor, or cannot be encoded."""


def refuse_control(values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the setting, if a text or path among these values contains a control character. Settings
    are written to batch scripts, to lists with one name per line, and to terminals."""
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
                f"{name}={str(value)!r} contains the control character {''.join(found[:1])!a}; use letters, digits "
                "and other visible characters.",
            )


def refuse_outside(settings: object, names: tuple[str, ...], right: Callable[[float], bool], words: str) -> None:
    """Raise ValueError, naming the first, if one of these settings is out of range."""
    for name in names:
        value = getattr(settings, name)
        finite = not isinstance(value, float) or math.isfinite(value)
        require(finite and right(value), f"{name}={value} must be {words}.")
