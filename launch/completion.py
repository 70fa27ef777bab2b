"""The script for tab completion, made from the parsers of all jobs and commands by shtab."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import shtab

from jobs.command_line import RECIPES, all_kinds, make_parser
from jobs.verbs import JOBS, description_of, settings_of
from launch.parsing import DESCRIBE, Described

Command = Callable[[Sequence[str]], int]
INSTALL = {
    "bash": "mkdir -p ~/.local/share/bash-completion/completions\n"
    "#   deeplense completion bash > ~/.local/share/bash-completion/completions/deeplense",
    "zsh": "deeplense completion zsh > ~/.zfunc/_deeplense, with fpath+=~/.zfunc before compinit in ~/.zshrc",
    "tcsh": "deeplense completion tcsh > ~/.deeplense.tcsh, with `source ~/.deeplense.tcsh` in ~/.tcshrc",
}
"""How to install the script, by shell."""
RECIPE_NAMES = [str(path.relative_to(RECIPES).with_suffix("")) for path in sorted(RECIPES.rglob("*.yaml"))]


def script(shell: str, commands: Mapping[str, Command]) -> str:
    """Return the completion script for a shell.

    Args:
        shell: `bash`, `zsh` or `tcsh`.
        commands: the commands that are not jobs, by name.
    """
    text = shtab.complete(make_tree(commands), shell=shell)
    first, newline, rest = text.partition("\n")
    return f"{first}\n# To install: {INSTALL[shell]}{newline}{rest}\n"


def make_tree(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return one parser with all jobs and commands as subcommands. It is only used for completion."""
    tree = argparse.ArgumentParser(prog="deeplense")
    tree.add_argument("--version", action="store_true", help="print the version")
    tree.add_argument("--num_processes", help="number of processes on this machine")
    parts = tree.add_subparsers()
    add_jobs(parts)
    for name, command in commands.items():
        part = parts.add_parser(name, help=first_line(command.__doc__))
        for action in options_of(command):
            add(part, action, [*map(str, action.choices or ())])
        if name in ("submit", "sweep"):
            add_jobs(part.add_subparsers())
    return tree


def add_jobs(parts: Any) -> None:
    """Add a subcommand for each job. The second word of a job is a choice, and its settings are those of the first."""
    made: dict[str, argparse.ArgumentParser] = {}
    for name in JOBS:
        first, _, second = name.partition(" ")
        if not second:
            made[first] = parts.add_parser(name, help=first_line(description_of(name)))
        kinds, below = (
            all_kinds(settings_of(name)),
            [job.partition(" ")[2] for job in JOBS if job.startswith(f"{name} ")],
        )
        for action in make_parser(name)._actions:
            choices = [*map(str, get_args(kinds[action.dest]))] if get_origin(kinds.get(action.dest)) is Literal else []
            add(made[first], action, choices + ([] if action.option_strings else below))


def options_of(command: Command) -> list[argparse.Action]:
    """Return the options of a command that is not a job."""
    try:
        command(DESCRIBE)
    except Described as described:
        return described.parser._actions
    raise AssertionError("the command does not parse its words")


def add(part: argparse.ArgumentParser, action: argparse.Action, choices: Sequence[str]) -> None:
    """Add an argument of another parser to a subcommand that does not have it yet.

    Args:
        part: parser of the subcommand.
        action: the argument.
        choices: its completions; files, if there are none.
    """
    words = [word for word in action.option_strings if word not in part._option_string_actions]
    if action.dest in ("help", "command") or (action.option_strings and not words):
        return
    if action.nargs == 0:
        part.add_argument(*words, action="store_true", help=first_line(action.help))
        return
    known = RECIPE_NAMES if action.dest == "config" else choices
    if not action.option_strings and part._get_positional_actions():
        return
    added: Any = part.add_argument(*(words or [action.dest]), help=first_line(action.help), choices=known or None)
    if not known:
        added.complete = shtab.FILE


def first_line(text: str | None) -> str:
    """Return the first line of a text, without characters that shells interpret."""
    lines = (text or "").splitlines() or [""]
    return "".join(sign for sign in lines[0] if sign not in "`'\"$:[]%()")
