"""The number of nodes of a job: a number, or a range `MIN:MAX` of which Slurm gives each attempt what is free."""

import argparse
import re
from typing import Any

from jobs.settings import require

Nodes = int | str
"""A number of nodes, or a range such as `1:4`."""
SHAPE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")


def checked(nodes: Any) -> Nodes:
    """Return a number of nodes, or a range. Raises ValueError, with how to write it, for anything else."""
    if isinstance(nodes, int) and not isinstance(nodes, bool):
        require(nodes >= 1, f"nodes: {nodes} is too small; set 1 or more.")
        return nodes
    text = nodes.strip() if isinstance(nodes, str) else ""
    hint = "write a number such as 4, or a range such as 1:4"
    if text.replace("-", ":").replace(":", "").isdecimal():
        hint = f"write {text.replace('-', ':')}" + (", without quotes" if text.isdecimal() else "")
    found = SHAPE.fullmatch(text)
    require(found is not None, f"nodes: {nodes!r} is neither an integer nor a range MIN:MAX; {hint}.")
    assert found
    least, most = int(found[1]), int(found[2])
    require(least >= 1, f"nodes: {text} begins at {least}, but a job has at least one node; write 1:{max(most, 1)}.")
    told = f"nodes: {text} begins with {least}, which is more than {most}"
    require(least <= most, f"{told}; write the smaller number first: {most}:{least}.")
    return f"{least}:{most}" if least < most else least


def bounds(nodes: Nodes) -> tuple[int, int]:
    """Return the smallest and the largest number of nodes.

    Example:
        >>> bounds("1:4"), bounds(2)
        ((1, 4), (2, 2))
    """
    least, _, most = str(nodes).partition(":")
    return int(least), int(most or least)


def is_range(nodes: Nodes) -> bool:
    """Whether attempts may have different numbers of nodes."""
    return isinstance(nodes, str)


def for_slurm(nodes: Nodes) -> Nodes:
    """Return the value of sbatch's `--nodes`: `1-4` for the range 1:4."""
    return nodes if isinstance(nodes, int) else nodes.replace(":", "-")


def in_words(nodes: Nodes) -> str:
    """Return a number of nodes as text.

    Example:
        >>> in_words("1:4"), in_words(1)
        ('1 to 4 nodes', '1 node')
    """
    least, most = bounds(nodes)
    return f"{least} to {most} nodes" if least < most else f"{most} node" + ("" if most == 1 else "s")


def parse_nodes(text: str) -> Nodes:
    """Parse the option --nodes."""
    try:
        return checked(int(text) if text.strip().isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("nodes: ")) from error
