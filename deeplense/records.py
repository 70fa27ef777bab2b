"""Small records in JSON: a file of names and values, or one per line.

A record carries the hash of its content, so that damage is detected. (Records of earlier versions have none.) Nothing
may depend on a record so much that damage to it prevents a restart: `set_aside` keeps a damaged one under another name.
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
"""The type of each value of a record by name. A value that may be None may be missing."""


@dataclass(frozen=True)
class Lines:
    """The content of a file of lines.

    Args:
        good: readable records by line number, from 1.
        bad: numbers of the other lines.
    """

    good: Mapping[int, dict[str, Any]]
    bad: Sequence[int]

    @property
    def torn(self) -> bool:
        """Whether only the last line is bad, as after a kill."""
        return list(self.bad) == [len(self.good) + 1]


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write names and values with their hash, atomically.

    Args:
        path: file to write or replace.
        values: names and JSON values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_record(Path(folder) / "record.json", {"step": 5})
        ...     read_record(Path(folder) / "record.json", {"step": int})
        {'step': 5}
    """
    write_json(path, hashed(values))


def read_record(path: Path, kinds: Kinds) -> dict[str, Any]:
    """Read the names and values of a record, without its hash.

    Args:
        path: file of the record.
        kinds: type of each required value by name; a value that may be None may be missing.

    Raises:
        ValueError: the record is damaged; the message names the file.
        OSError: the file cannot be read.
    """
    values = read_json(path)
    if problem := problem_of(values, kinds):
        raise ValueError(f"{path} is damaged: {problem}.")
    return without_hash(values)


def line_of(values: Mapping[str, Any]) -> str:
    """Return names and values as a line of JSON with their hash."""
    return json.dumps(hashed(values)) + "\n"


def read_lines(path: Path, kinds: Kinds) -> Lines:
    """Read the records of a file of lines; a missing file has none.

    Args:
        path: file with a JSON record per line.
        kinds: type of each required value by name.

    Raises:
        OSError: the file cannot be read.
    """
    return lines_in(path.read_bytes() if path.exists() else b"", kinds)


def lines_in(content: bytes, kinds: Kinds) -> Lines:
    """Return the records in the content of a file of lines.

    Args:
        content: a JSON record per line.
        kinds: type of each required value by name.
    """
    good, bad = {}, []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), start=1):
        values = parsed(line)
        if problem_of(values, kinds):
            bad.append(number)
        else:
            good[number] = without_hash(values)
    return Lines(good, bad)


def parsed(text: bytes) -> Any:
    """Return the value of a JSON text, None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def problem_of(values: Any, kinds: Kinds) -> str:
    """Return why a value is not a record with values of these types; empty if it is one.

    Args:
        values: value read from JSON.
        kinds: type of each required value by name.

    Example:
        >>> problem_of({"step": 5}, {"step": int})
        ''
        >>> problem_of({}, {"step": int})
        "it has no 'step'"
    """
    if not isinstance(values, dict):
        return "it is not a JSON object"
    for name, kind in kinds.items():
        if name not in values and not isinstance(None, kind):
            return f"it has no {name!r}"
        if not isinstance(values.get(name), kind):
            return f"{name} is {values[name]!r:.40}, which is not {named(kind)}"
    if HASH in values and values[HASH] != hash_of(without_hash(values)):
        return "it does not match its own hash"
    return ""


def named(kind: type | UnionType) -> str:
    """Return the name of a type."""
    return str(kind) if isinstance(kind, UnionType) else kind.__name__


def hashed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return names and values with their hash."""
    plain = without_hash(json.loads(json.dumps(values)))
    return plain | {HASH: hash_of(plain)}


def hash_of(values: Mapping[str, Any]) -> str:
    """Return the hash of names and values, in hexadecimal."""
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode(errors="surrogatepass"))


def without_hash(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return names and values without their hash."""
    return {name: value for name, value in values.items() if name != HASH}


def set_aside(path: Path) -> Path:
    """Move a damaged record aside; returns its new, unused name."""
    return path.rename(name_aside(path))


def keep_copy(path: Path) -> Path:
    """Copy a damaged record to another name, so that its readable part may replace it; returns the new path."""
    return Path(shutil.copyfile(path, name_aside(path)))


def name_aside(path: Path) -> Path:
    """Return the first unused name for a damaged record."""
    names = [f"{DAMAGED}{path.name}", *(f"{DAMAGED}{number}_{path.name}" for number in range(2, 1000))]
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())
