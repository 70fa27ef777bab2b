"""The site of the documentation is built without a warning; a link that leads nowhere is one."""

from pathlib import Path

import pytest
from conftest import ROOT
from sphinx.cmd.build import build_main

pytestmark = pytest.mark.filterwarnings("ignore::sphinx.deprecation.RemovedInSphinx11Warning")


def build(source: Path, output: Path, *options: str) -> int:
    """Build a site; returns the exit code."""
    return build_main(["-W", "-q", "-b", "html", *options, str(source), str(output)])


def test_the_site_is_built_without_a_dead_link_and_documents_the_functions_of_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(ROOT, tmp_path, "-c", str(ROOT / "docs"), "-d", str(tmp_path / "cache")) == 0, capsys.readouterr().err
    pages = {path.stem for path in (tmp_path / "docs").glob("*.html")}
    assert pages == {path.stem for path in (ROOT / "docs").glob("*.md")}
    python = (tmp_path / "docs" / "python.html").read_text()
    assert 'id="deeplense.load_run"' in python
    assert (tmp_path / "index.html").read_text().count("docs/index.html") == 2


def test_a_dead_link_fails_the_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "index.md").write_text("# A page\n\n[away](nowhere.md)\n")
    assert build(tmp_path, tmp_path / "site", "-C", "-D", "extensions=myst_parser") == 1
    assert "nowhere.md" in capsys.readouterr().err
