"""The examples in the docstrings of the library run as written."""

import doctest
import importlib
import types
from pathlib import Path

import pytest

import deeplense

ROOT = Path(deeplense.__file__).parent
OPTIONS = doctest.NORMALIZE_WHITESPACE
LEAST_EXAMPLES = 280
"""Lines with `>>>` in the whole library, at least."""


def modules_with_examples() -> list[str]:
    """Names of the modules whose source has `>>>`."""
    paths = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text()]
    return [".".join(("deeplense", *path.relative_to(ROOT).with_suffix("").parts)) for path in paths]


def run(module: types.ModuleType) -> doctest.TestResults:
    """Run the examples of a module; failures are printed."""
    return doctest.testmod(module, optionflags=OPTIONS)


def num_examples(name: str) -> int:
    """Number of lines of a module that begin with `>>>`."""
    path = ROOT.parent.joinpath(*name.split(".")).with_suffix(".py")
    return sum(line.lstrip().startswith(">>> ") for line in path.read_text().splitlines())


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_a_module_are_right(name: str) -> None:
    found = run(importlib.import_module(name))
    assert found.failed == 0, f"{name}: see the output for the wrong examples"
    # Examples that doctest does not find would never run.
    assert found.attempted == num_examples(name)


def test_the_library_has_examples() -> None:
    assert sum(map(num_examples, modules_with_examples())) >= LEAST_EXAMPLES


@pytest.mark.parametrize(("expected", "failed"), [("2", 0), ("3", 1)])
def test_a_wrong_example_fails(expected: str, failed: int, capsys: pytest.CaptureFixture[str]) -> None:
    module = types.ModuleType("example", f"Add.\n\n>>> 1 + 1\n{expected}\n")
    assert run(module) == doctest.TestResults(failed, 1)
    assert ("Expected" in capsys.readouterr().out) == bool(failed)
