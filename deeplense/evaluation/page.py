"""A self-contained HTML page of tables and figures."""

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
    """A heading, an optional figure and a table. In a cell, the text after the first line break is set in small
    type."""

    title: str
    lead: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    plot: Plot | None = None


def write_page(path: Path, *, title: str, lead: str, sections: Sequence[Section], notes: Mapping[str, str]) -> None:
    """Write one HTML file.

    Args:
        path: file to write.
        title: title of the page, one line.
        lead: summary of the content, one line.
        sections: tables and figures.
        notes: texts at the end of the page, by heading.
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
    """Return a figure as base64-encoded PNG."""
    file = io.BytesIO()
    figure(file, plot.draw, size=plot.size)
    return base64.b64encode(file.getvalue()).decode()
