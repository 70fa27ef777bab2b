"""RESULTS and README: each table says by which command and at which commit it was made."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMIT = re.compile(r"\bcommit [0-9a-f]{7}\b")
COMMAND = re.compile(r"`(deeplense|make|python -m|jobs/|benchmark|containers/)[^`]*`|`(simulate|train|evaluate)`")


def tables(text: str) -> Iterator[tuple[str, str]]:
    """Each table's first line, and what stands between it and the heading or table before."""
    before: list[str] = []
    within = False
    for line in text.splitlines():
        if line.startswith("|") and not within:
            yield line, "\n".join(before)
        if line.startswith(("#", "|")):
            before = []
        else:
            before.append(line)
        within = line.startswith("|")


def measured(name: str) -> str:
    """What a document says of measurements."""
    text = (ROOT / name).read_text()
    return text if name == "RESULTS.md" else text.partition("## Measured")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", ["RESULTS.md", "README.md"])
def test_each_table_names_the_command_and_the_commit_that_made_it(name: str) -> None:
    found = list(tables(measured(name)))
    assert found
    for head, before in found:
        if head.startswith("| fault |"):
            assert "held by `make test-cluster`" in before
        else:
            assert COMMIT.search(before), head
            assert COMMAND.search(before), head


def test_a_table_without_them_is_found() -> None:
    ((head, before),) = tables(
        "# One\nMade by `deeplense train` at commit 0123abc.\n# Two\nIt is so.\n\n|a|b|\n|-|-|\n"
    )
    assert head == "|a|b|"
    assert not COMMIT.search(before)
