"""A page of tables and figures that needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment

from deeplense.evaluation.plots import figure
from deeplense.evaluation.report import Plot
from deeplense.files import replacing


@dataclass(frozen=True)
class Section:
    """A table under a heading, and perhaps a figure above it. Of the text of a cell, what stands after the first line
    break is set small."""

    title: str
    lead: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    plot: Plot | None = None


def write_page(path: Path, *, title: str, lead: str, sections: Sequence[Section], notes: Mapping[str, str]) -> None:
    """Write one HTML file.

    Args:
        path: where to.
        title: what it is about, in a line.
        lead: what it holds, in a line.
        sections: its tables and figures.
        notes: texts at its end, by their headings.
    """
    template = resources.files("deeplense.evaluation").joinpath("page.html").read_text()
    embedded = [(section, embed(section.plot) if section.plot else "") for section in sections]
    page = (
        Environment(autoescape=True)
        .from_string(template)
        .render(title=title, lead=lead, sections=embedded, notes=notes)
    )
    with replacing(path) as temporary:
        temporary.write_text(page)


def embed(plot: Plot) -> str:
    """A figure as PNG, in base64."""
    file = io.BytesIO()
    figure(file, plot.draw, size=plot.size)
    return base64.b64encode(file.getvalue()).decode()
