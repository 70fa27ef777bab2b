"""A page of tables: one file that refers to nothing, whatever its texts are."""

from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from test_report import HOSTILE, References

from deeplense.evaluation import plots
from deeplense.evaluation.page import Section, write_page
from deeplense.evaluation.report import Plot


def page(folder: Path, text: str = "0.9") -> str:
    """A page with this text everywhere."""
    draw = partial(plots.intervals, names=["a"], values=[(0.9, 0.8, 0.95)], chance=0.5, label="AUC")
    section = Section(text, text, ["model", text], [["a", f"{text}\nsmall"]], Plot("figure", "caption", draw))
    write_page(folder / "index.html", title=text, lead=text, sections=[section], notes={text: text})
    return (folder / "index.html").read_text()


def test_a_page_refers_to_nothing_and_shows_texts_as_they_are(tmp_path: Path) -> None:
    read = References(page(tmp_path, HOSTILE))
    assert all(link.startswith("data:image/png;base64,") for link in read.links)
    assert len(read.links) == 1
    assert "script" not in read.tags
    assert read.text.count(HOSTILE) >= 6
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_what_stands_after_a_line_break_is_small(tmp_path: Path) -> None:
    assert "<td>0.9<small>small</small></td>" in page(tmp_path)


def test_the_figure_has_a_dot_and_an_interval_for_each_name_the_first_on_top() -> None:
    axes = Figure().add_subplot()
    plots.intervals(axes, ["best", "worst"], [(0.9, 0.8, 0.95), (0.6, 0.5, 0.7)], chance=0.5, label="AUC")
    dots, _, (bars,) = axes.containers[0]
    assert dots.get_xydata().tolist() == [[0.9, 1.0], [0.6, 0.0]]
    assert [bar[:, 0].round(9).tolist() for bar in bars.get_segments()] == [[0.8, 0.95], [0.5, 0.7]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["best", "worst"]
    assert [list(line.get_xdata()) for line in axes.get_lines() if line.get_linestyle() == ":"] == [[0.5, 0.5]]  # type: ignore[arg-type]


def test_chance_is_left_out_where_all_are_far_above_it() -> None:
    axes = Figure().add_subplot()
    plots.intervals(axes, ["best"], [(0.99, 0.98, 1.0)], chance=0.5, label="AUC")
    assert [line for line in axes.get_lines() if line.get_linestyle() == ":"] == []
