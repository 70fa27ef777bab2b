"""Small records in JSON: a file of names and values, or a line for each.

A record carries the hash of what it says, so that a damaged one is told from a whole one. (Those of earlier versions
carry none.) Nothing may depend on a damaged record so much that it cannot go on: `set_aside` keeps it under another
name.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import xxhash

from deeplense.files import read_json, write_json

HASH = "hash"
DAMAGED = "damaged_"
Kinds = Mapping[str, type | UnionType]
"""The types of the values of a record, by their names. What may be None may be missing."""


@dataclass(frozen=True)
class Lines:
    """What a file of lines says: the lines that can be read, by their numbers from 1, and the numbers of the others."""

    good: Mapping[int, dict[str, Any]]
    bad: Sequence[int]

    @property
    def torn(self) -> bool:
        """Whether only the last line is bad, as a kill leaves it."""
        return list(self.bad) == [len(self.good) + 1]


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write names and values with their hash, atomically."""
    write_json(path, hashed(values))


def read_record(path: Path, kinds: Kinds) -> dict[str, Any]:
    """The names and values of a record, without its hash. Raises ValueError, naming the file, where it is damaged, and
    OSError where it cannot be read."""
    values = read_json(path)
    if problem := problem_of(values, kinds):
        raise ValueError(f"{path} is damaged: {problem}.")
    return without_hash(values)


def line_of(values: Mapping[str, Any]) -> str:
    """Names and values as a line with their hash."""
    return json.dumps(hashed(values)) + "\n"


def read_lines(path: Path, kinds: Kinds) -> Lines:
    """The lines of a file; one that is not there has none. Raises OSError where it cannot be read."""
    content = path.read_bytes() if path.exists() else b""
    good, bad = {}, []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), start=1):
        values = parsed(line)
        if problem_of(values, kinds):
            bad.append(number)
        else:
            good[number] = without_hash(values)
    return Lines(good, bad)


def parsed(text: bytes) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def problem_of(values: Any, kinds: Kinds) -> str:
    """Why a value is no record with values of these types; empty where it is one."""
    if not isinstance(values, dict):
        return "it holds no names and values"
    for name, kind in kinds.items():
        if name not in values and not isinstance(None, kind):
            return f"it has no {name!r}"
        if not isinstance(values.get(name), kind):
            return f"{name} is {values[name]!r:.40}, which is no {named(kind)}"
    if HASH in values and values[HASH] != hash_of(without_hash(values)):
        return "it does not match its own hash"
    return ""


def named(kind: type | UnionType) -> str:
    """A type, in words."""
    return str(kind) if isinstance(kind, UnionType) else kind.__name__


def hashed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names and values with their hash."""
    plain = without_hash(json.loads(json.dumps(values)))
    return plain | {HASH: hash_of(plain)}


def hash_of(values: Mapping[str, Any]) -> str:
    """The hash of names and values, in hexadecimal."""
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode(errors="surrogatepass"))


def without_hash(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names and values without their hash."""
    return {name: value for name, value in values.items() if name != HASH}


def set_aside(path: Path) -> Path:
    """Rename a damaged record, whatever it is; returns its new name, which no other has."""
    return path.rename(name_aside(path))


def keep_copy(path: Path) -> Path:
    """Copy a damaged record under another name, so that what is readable may replace it; returns the new path."""
    return Path(shutil.copyfile(path, name_aside(path)))


def name_aside(path: Path) -> Path:
    """The first free name for a damaged record."""
    names = [f"{DAMAGED}{path.name}", *(f"{DAMAGED}{number}_{path.name}" for number in range(2, 1000))]
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())
