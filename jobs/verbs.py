"""The verbs: the words that can follow `deeplense`.

A verb is a folder with `settings.py` (fast to import: a frozen dataclass `Settings`; the module docstring is the help
text) and `work.py` (a function `run`), plus a line in the table here. Both modules are imported by name when they are
needed, so they do not depend on this table.
"""

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.imports import import_without
from jobs.settings import require


@dataclass(frozen=True)
class Verb:
    """A verb: its name, and what a launcher may do with it."""

    name: str
    resumes: bool = False
    """it has a run folder, saves a checkpoint on a signal, and the same command resumes it"""
    shares: bool = False
    """it only trains: several processes may share the work, and the settings are stored in the run folder at submission
    """
    in_parts: bool = False
    """several tasks may share the work, each with its own --part"""
    of_runs: bool = False
    """it consists of many runs: sequential here, or one job array element per run (--only RUN); `runs_left` of its work
    lists them"""
    networks: bool = False
    """its `work.py` imports the code of networks at once (a training does so later, in `jobs.frame.train`)"""
    positional: str = ""
    """the setting that is given without a flag"""

    @property
    def folder(self) -> str:
        """The package that contains its modules."""
        return f"jobs.{self.name.replace(' ', '_')}"


VERBS = (
    Verb("simulate", in_parts=True),
    Verb("pack", in_parts=True),
    Verb("verify", positional="folder"),
    Verb("train", resumes=True, shares=True),
    Verb("pretrain", resumes=True, shares=True),
    Verb("finetune", resumes=True, networks=True),
    Verb("diffuse", resumes=True, shares=True),
    Verb("sample", in_parts=True, networks=True),
    Verb("evaluate", networks=True),
    Verb("predict", in_parts=True, networks=True),
    Verb("candidates", positional="predictions"),
    Verb("grades", positional="files"),
    Verb("show", positional="dataset"),
    Verb("plot", positional="runs"),
    Verb("compare", positional="runs"),
    Verb("export", networks=True, positional="run"),
    Verb("models", positional="name"),
    Verb("benchmark", positional="what"),
    Verb("benchmark models", of_runs=True),
    Verb("benchmark labels", of_runs=True, networks=True),
    Verb("benchmark selection", networks=True),
)
JOBS = tuple(verb.name for verb in VERBS)
STOPPABLE = tuple(verb.name for verb in VERBS if verb.resumes)
TRAININGS = tuple(verb.name for verb in VERBS if verb.shares)
DIVISIBLE = tuple(verb.name for verb in VERBS if verb.in_parts)
SPREAD = tuple(verb.name for verb in VERBS if verb.of_runs)
POSITIONAL = {verb.name: verb.positional for verb in VERBS if verb.positional}


class Work(Protocol):
    """Interface of the module `work.py` of a verb."""

    def run(self, settings: Any) -> int:
        """Run the verb with these settings and return the exit code."""
        ...


def verb_of(name: str) -> Verb:
    """Return a verb by its name. Raises ValueError, with the closest name, for an unknown one."""
    found = next((verb for verb in VERBS if verb.name == name), None)
    if found is None:
        near = difflib.get_close_matches(name, JOBS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}?" if near else f"Known jobs: {', '.join(JOBS)}."
        raise ValueError(f"unknown job {name!r}. {hint}")
    return found


def settings_of(name: str) -> type[Any]:
    """Return the settings class of a verb. Raises ValueError, with the closest name, for an unknown verb."""
    return importlib.import_module(f"{verb_of(name).folder}.settings").Settings


def description_of(name: str) -> str:
    """Return the description of a verb: the docstring of its settings module."""
    return (importlib.import_module(f"{verb_of(name).folder}.settings").__doc__ or "").strip()


def basic_of(name: str) -> Sequence[str]:
    """Return the settings of a verb that its help lists first. Raises ValueError, with the closest name, for an unknown
    verb."""
    return getattr(importlib.import_module(f"{verb_of(name).folder}.settings"), "BASIC", ())


def work_of(name: str) -> Work:
    """Return the module that runs a verb. Raises ValueError, with the closest name, for an unknown verb."""
    verb = verb_of(name)
    if verb.networks:
        import_without("timm", "wandb")
    return importlib.import_module(f"{verb.folder}.work")  # type: ignore[return-value]


def with_joined_name(command: Sequence[str]) -> list[str]:
    """Return a command line in which a verb of two words is one element. Raises ValueError if the second word is
    misspelt."""
    if len(command) < 2:
        return list(command)
    two, second = " ".join(command[:2]), [job.partition(" ")[2] for job in JOBS if job.startswith(f"{command[0]} ")]
    if two in JOBS:
        return [two, *command[2:]]
    near = difflib.get_close_matches(command[1], second, n=1)
    require(not near, f"unknown job {two!r}. Did you mean {command[0]} {''.join(near)}?")
    return list(command)
