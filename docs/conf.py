"""Settings of Sphinx, which makes a site of the documentation: `make docs`."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import deeplense  # noqa: E402

project = "deeplense"
author = "the authors of deeplense"
release = deeplense.__version__
root_doc = "docs/index"
include_patterns = ["docs/*.md", "RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENCES.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"deeplense {release}"
html_show_copyright = False
html_extra_path = ["site/index.html"]
html_static_path = ["site"]
html_css_files = ["wide.css"]
html_copy_source = False
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"

PARTS = {
    "Start": ["quickstart", "data", "training", "evaluation", "predicting", "candidates", "survey"],
    "Models": ["models", "pretraining", "diffusion", "python"],
    "Clusters": ["slurm", "pipelines", "watching", "administrators"],
    "Reference": ["settings", "formats", "physics", "troubleshooting", "glossary"],
    "Project": ["../RESULTS", "../CHANGELOG", "../CONTRIBUTING", "../LICENCES"],
}


def contents() -> str:
    """Return the table of contents of the site as Markdown."""
    blocks = (
        f"```{{toctree}}\n:hidden:\n:caption: {name}\n\n" + "\n".join(pages) + "\n```\n"
        for name, pages in PARTS.items()
    )
    return "\n" + "\n".join(blocks)


def reference() -> str:
    """Return the documentation of the functions and classes of `import deeplense` as Markdown."""
    lines = ["", "## Reference", "", "```{eval-rst}"]
    for name in deeplense.__all__:
        if not name.startswith("_"):
            is_class = name[0].isupper()
            kind = "autoclass" if is_class else "autofunction"
            lines += [f".. {kind}:: deeplense.{name}", *(["   :members:"] if is_class else []), ""]
    return "\n".join([*lines, "```", ""])


def add(app: Sphinx, page: str, text: list[str]) -> None:
    """Add to a page what only the site has."""
    text[0] += {"docs/index": contents, "docs/python": reference}.get(page, str)()


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add)
