"""The parser of the commands that are not jobs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jobs.command_line import with_nearest

DESCRIBE: Sequence[str] = ("--describe",)
"""Given as its words, a command raises `Described` instead of doing anything."""


class Described(Exception):
    """The parser of a command, to read its options."""

    def __init__(self, parser: "CommandParser") -> None:
        super().__init__(parser.prog)
        self.parser = parser


class CommandParser(argparse.ArgumentParser):
    """Parser that accepts no abbreviated options and reports an error in one line, with the closest valid name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        if args is DESCRIBE:
            raise Described(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        names = [action.dest for action in self._actions if action.option_strings and action.dest != "help"]
        sys.stderr.write(f"{self.prog}: {with_nearest(message, names)}\n")
        sys.exit(2)


def at_least(smallest: int, *, most: int | None = None) -> Callable[[str], int]:
    """Return a parser of integers of at least `smallest` and, if given, at most `most`."""

    def number(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} is below {smallest}")
        if most is not None and int(text) > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most}")
        return int(text)

    return number
