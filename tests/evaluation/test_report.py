"""The report: one page that needs no other file, and figures for any number of classes."""

import json
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from deeplense.evaluation import plots
from deeplense.evaluation.metrics import classification_report
from deeplense.evaluation.report import Plot, finding_cells, finding_rows, write_report

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = "<script>alert('x')</script> & \"so on\" {{ 7 * 7 }}"


def line(axes: Axes) -> None:
    """A small figure."""
    axes.plot([0, 1], [1, 0])


def write(folder: Path, **changes: Any) -> None:
    """A small report, with changes."""
    content = {"metrics": {"accuracy": {"value": 0.75, "low": 0.5, "high": 0.875}}, "confusion": [[3, 1], [0, 4]]}
    arguments = {
        "title": "a title",
        "lead": "a lead",
        "content": content,
        "facts": {"data set": "blobs"},
        "settings": {"lr": 0.1},
        "plots": [Plot("first", "the first", line), Plot("second", "the second", line, size=(6.0, 2.0), wide=True)],
    }
    write_report(folder, **arguments | changes)


class References(HTMLParser):
    """Collects what a page refers to, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    write(tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    references = References(page)
    assert len(references.links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in references.links)
    assert not references.tags & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"https?://|file:|url\(|@import", page)


def test_the_numbers_are_in_the_page_and_in_the_json_file(tmp_path: Path) -> None:
    write(tmp_path / "report")
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document == {
        "title": "a title",
        "metrics": {"accuracy": {"value": 0.75, "low": 0.5, "high": 0.875}},
        "confusion": [[3, 1], [0, 4]],
        "facts": {"data set": "blobs"},
        "settings": {"lr": 0.1},
    }
    text = References((tmp_path / "report" / "index.html").read_text()).text
    for shown in ("a title", "a lead", "accuracy", "0.7500", "0.5000 to 0.8750", "data set", "blobs", "lr", "0.1"):
        assert shown in text
    for name in ("first", "second"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(PNG)


def test_numbers_of_a_rare_class_are_rows_with_a_cell_for_each_class(tmp_path: Path) -> None:
    finding = {
        "other": {"tpr0": {"undefined": "no image of the class"}, "in_top_50": {"value": 27.04, "low": 20, "high": 34}},
        "lens": {
            "tpr0": {"value": 0.25, "low": 0.00061, "high": 0.5},
            "in_top_50": {"undefined": "too few", "at_least": 3.21},
        },
    }
    rows = finding_rows(finding)
    assert list(rows.values()) == [
        [("", "no image of the class"), ("0.2500", "0.00061 to 0.5000")],
        [("27.0", "20.0 to 34.0"), ("at least 3.2", "too few")],
    ]
    assert finding_cells("tpr0", {"undefined": "too few", "at_least": 1e-6}) == ("", "too few")
    accuracy = {"accuracy": {"value": 0.75, "low": 0.5, "high": 0.875}}
    write(tmp_path / "report", content={"metrics": accuracy, "finding": finding, "survey": {"prevalence": 0.0005}})
    text = References((tmp_path / "report" / "index.html").read_text()).text
    for words in ("the fraction of the class is 0.0005", "at least 3.2", "without a false positive (TPR0)"):
        assert words in text


def test_text_is_shown_as_it_is_and_never_becomes_markup(tmp_path: Path) -> None:
    metrics = {HOSTILE: {"value": 0.0, "low": 0.0, "high": 0.0}}
    write(
        tmp_path / "report",
        title=HOSTILE,
        lead=HOSTILE,
        content={"metrics": metrics},
        facts={HOSTILE: HOSTILE},
        settings={HOSTILE: HOSTILE},
        plots=[Plot("only", HOSTILE, line)],
    )
    references = References((tmp_path / "report" / "index.html").read_text())
    assert "script" not in references.tags
    assert references.text.count(HOSTILE) == 9


def test_the_json_file_is_json_to_any_reader_where_a_number_is_not_defined(tmp_path: Path) -> None:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no JSON")

    labels = np.array([0, 0, 1, 1])
    write(tmp_path / "report", content=classification_report(0.8 * np.eye(3)[labels] + 0.1, labels, ("a", "b", "c")))
    json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=refuse)
    text = References((tmp_path / "report" / "index.html").read_text()).text
    assert ("undefined" in text, "nan" in text) == (True, False)


def test_a_new_report_takes_the_place_of_the_old_one_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "report", plots=[Plot("former", "a figure that goes", line)])
    write(tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"index.html", "report.json", "first.png", "second.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_the_old_report_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    def fail(axes: Axes) -> None:
        raise ZeroDivisionError

    write(tmp_path / "report")
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "report", title="another", plots=[Plot("first", "fails", fail)])
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def class_figures(num_classes: int, labels: np.ndarray) -> dict[str, Callable[[Axes], None]]:
    """The figures of a classifier."""
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(num_classes), size=len(labels))
    classes = [f"class {k}" for k in range(num_classes)]
    counts = np.bincount(labels * num_classes + probabilities.argmax(axis=1), minlength=num_classes**2)
    return {
        "roc": partial(plots.roc, probabilities=probabilities, labels=labels, classes=classes),
        "confusion": partial(plots.confusion, counts=counts.reshape(num_classes, -1), classes=classes),
        "reliability": partial(plots.reliability, probabilities=probabilities, labels=labels),
    }


@pytest.mark.parametrize(("num_classes", "present"), [(2, 2), (3, 3), (3, 2), (3, 1), (8, 8)])
def test_figures_are_drawn_for_any_number_of_classes_and_without_samples_of_some(
    num_classes: int, present: int, tmp_path: Path
) -> None:
    for name, draw in class_figures(num_classes, np.arange(60) % present).items():
        plots.figure(tmp_path / f"{name}.png", draw)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_gallery_is_drawn_of_blank_and_of_few_images(level: float, tmp_path: Path) -> None:
    images = np.full((7, 3, 16, 16), level, dtype=np.float32)
    draw = partial(plots.gallery, images=images, titles=[f"image {k}" for k in range(7)])
    plots.figure(tmp_path / "gallery.png", draw, size=(9.0, 3.9))
    assert (tmp_path / "gallery.png").read_bytes().startswith(PNG)


def test_curves_and_regressions_are_drawn(tmp_path: Path) -> None:
    loss = plots.Curve("training loss", np.arange(100), np.linspace(2, 1, 100))
    panels = {"loss": [loss], "AUC": [plots.Curve("one", np.array([50, 100]), np.array([0.7, 0.9]), 1, dashed=True)]}
    plots.figure(tmp_path / "training.png", partial(plots.curves, panels=panels))
    truth = np.linspace(-24, -22, 30)
    plots.figure(
        tmp_path / "scatter.png", partial(plots.scatter, predicted=truth + 0.1, truth=truth, quantity="mass [log10 eV]")
    )
    assert {path.name for path in tmp_path.iterdir()} == {"training.png", "scatter.png"}


def test_the_roc_curve_has_a_line_for_each_class_that_is_there_and_one_for_chance() -> None:
    axes = Figure().add_subplot()
    class_figures(3, np.arange(60) % 2)["roc"](axes)
    assert [str(curve.get_label()) for curve in axes.get_lines()] == ["class 0", "class 1", "chance"]


@pytest.fixture
def axes() -> Axes:
    """An empty figure."""
    return Figure().add_subplot()


def test_marks_are_drawn_on_their_own_image_and_end_at_its_border(axes: Axes) -> None:
    images, maps = np.random.default_rng(0).random((3, 1, 10, 10)), {"a": np.random.default_rng(1).random((3, 10, 10))}
    marks = [None, None, plots.Marks(np.array([[2.0, 3.0, 1.5]]), np.array([[0.0, 0.0, 99.0, 99.0]]))]
    plots.explained(axes, images, maps, titles=["x"] * 3, marks=marks)
    left, right, bottom, top = axes.images[6].get_extent()
    (circle,) = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert circle.get_center() == pytest.approx((left + 2, top + 3))
    assert circle.get_radius() == 1.5
    for patch in axes.patches:
        if not isinstance(patch, Rectangle):
            box = patch.get_clip_box()
            assert box is not None
            within = axes.transData.inverted().transform_bbox(box)
            assert np.sort(within.get_points(), axis=0) == pytest.approx(np.array([[left, top], [right, bottom]]))


def test_a_map_is_drawn_where_it_is_high_and_a_flat_one_hides_nothing(axes: Axes) -> None:
    image, values = np.ones((10, 10)), np.zeros((10, 10))
    values[2, 7] = 5.0
    plots.overlay(axes, image, values, (0, 0))
    plots.overlay(axes, image, np.full((10, 10), 0.1) + 1e-9 * values, (10, 0))
    opacity, flat = (np.asarray(axes.images[k].get_alpha()) for k in (1, 3))
    assert opacity[2, 7] > 0.5
    assert opacity.sum() == opacity[2, 7]
    assert not flat.any()
