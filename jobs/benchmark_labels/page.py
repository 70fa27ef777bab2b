"""Write the table over numbers of labels as table.csv, table.json and index.html, and format it as text."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from deeplense.evaluation import plots
from deeplense.evaluation.page import Section, write_page
from deeplense.evaluation.report import Plot
from deeplense.files import finite, write_json
from jobs.benchmark_labels.table import (
    BETTER,
    COMPARED,
    LENS_FINDING,
    ONE_SEED,
    UNKNOWN,
    WORSE,
    Cell,
    Row,
    all_published,
    make_rows,
)
from jobs.trials.forms import aligned, images_in_words, shown, with_ends, write_csv
from jobs.trials.scores import until_settled

METHOD = (
    "For each seed, a random subset of the labels of the split train is used, stratified by class; smaller subsets are "
    "nested in larger ones, and all rows with the same seed use the same labels. Training from scratch and mode full "
    "differ only in their initial weights: updates, settings and augmentation are the same. A tenth of the labels is "
    "for validation: the last weights whose log loss on it is not above the least, within its error, are evaluated. "
    "Mode linear is a logistic regression on frozen features, with its regularisation selected by cross-validation on "
    "the training labels; mode knn is a classifier by the 20 nearest neighbours. The test images are never used for "
    "selection, and all rows of a data set are tested on the same images: those that a backbone was pretrained on, "
    "without labels, are also excluded for training from scratch, unless allow_pretrained_overlap is 1. "
    "Each number is the mean over the seeds. Its 95 % interval covers the variation between seeds (Student's t) and "
    "between test images (1000 bootstrap resamples, the same for all), combined as by Zou and Donner (2008). "
    "Differences are to the same network trained from scratch with the same number of labels, paired by seed on the "
    "same images. Better and worse mean that the interval of the difference is above or below 0; there is no "
    "correction for multiple comparisons. Results are for one pretraining: the variation between pretrainings is not "
    "included in any interval. The best settings for training from scratch may differ from those for a pretrained "
    "backbone; both use the settings of the recipe, or the given ones."
)
PUBLISHED_COLUMNS = ("accuracy", "auc", "source", "caveat")
WORDS = {
    BETTER: "is better than from scratch",
    WORSE: "is worse than from scratch",
    UNKNOWN: "does not differ significantly from scratch",
    ONE_SEED: "cannot be compared with scratch with one seed",
}


def update_table(output: Path, cells: Sequence[Cell]) -> list[Row]:
    """Rewrite the table."""
    return until_settled([cell.trial for cell in cells], lambda: write_table(output, make_rows(cells)))


def write_table(output: Path, rows: list[Row]) -> list[Row]:
    """Write all files and return the rows."""
    told = [asdict(row) | {"verdict": row.verdict("auc_macro")} for row in rows]
    write_json(output / "table.json", finite({"rows": told, "method": METHOD}))
    write_csv(output / "table.csv", [flat(row) for row in rows])
    write_html(output / "index.html", rows)
    return rows


def flat(row: Row) -> dict[str, Any]:
    """Return a row as plain columns."""
    values: dict[str, Any] = {name: getattr(row, name) for name in ("dataset", "kind", "mode", "num_labels")}
    values |= {name: getattr(row.backbone, name) for name in ("name", "method", "model_name", "baseline")}
    values |= {"seeds": " ".join(map(str, row.seeds)), "num_seeds": row.num_seeds, "num_images": row.num_images}
    values |= with_ends(row.metrics | {f"difference_{name}": found for name, found in row.differences.items()})
    values |= {f"verdict_{name}": row.verdict(name) for name in COMPARED} | {"problem": row.problem}
    return values | {f"published_{name}": "; ".join(one[name] for one in row.published) for name in PUBLISHED_COLUMNS}


def write_html(path: Path, rows: Sequence[Row]) -> None:
    """Write the page: a figure and a table per data set and mode, and the published numbers."""
    by_use = [list(some) for _, some in groupby(rows, key=lambda row: (row.dataset, row.mode))]
    sections = [section_of(some, baselines(rows, some[0].dataset)) for some in by_use]
    sections += published_section() if any(row.kind == LENS_FINDING for row in rows) else []
    seeds = sum(len(row.seeds) for row in rows), sum(row.num_seeds for row in rows)
    lead = f"{seeds[0]} of {seeds[1]} runs are done and evaluated"
    notes = {"How the numbers are computed": METHOD}
    write_page(path, title="Pretrained backbones with few labels", lead=lead, sections=sections, notes=notes)


def baselines(rows: Sequence[Row], dataset: str) -> list[Row]:
    """Return the rows of a data set for training from scratch."""
    return [row for row in rows if row.dataset == dataset and row.is_baseline]


def section_of(rows: Sequence[Row], from_scratch: Sequence[Row]) -> Section:
    """Return the section of one mode on one data set."""
    first = rows[0]
    images = images_in_words(max(row.num_images for row in rows), first.kind)
    left_out = max(row.num_left_out for row in rows)
    images += f"; {left_out:,} others are excluded, because a run or a pretraining has seen them" if left_out else ""
    headings = ["labels", "backbone", "mean AUC, 95 % interval", "accuracy"]
    headings += ["AUC minus that from scratch", "accuracy minus that from scratch", "verdict by AUC", "seeds"]
    return Section(
        title=f"{first.dataset}: {first.mode}",
        lead=". ".join([images, *conclusions(rows)]) + ".",
        headings=[*headings, "published", "caveats of published"],
        rows=[cells_of(row) for row in rows],
        plot=plot_of([*from_scratch, *(row for row in rows if not row.is_baseline)]),
    )


def conclusions(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one sentence per backbone that summarises the table."""
    for name in dict.fromkeys(row.backbone.name for row in rows if not row.is_baseline):
        said = [(row.verdict("auc_macro"), f"{row.num_labels:,}") for row in rows if row.backbone.name == name]
        parts = [
            f"{WORDS[verdict]} with {' and '.join(count for other, count in said if other == verdict)} labels"
            for verdict in dict.fromkeys(verdict for verdict, _ in said if verdict)
        ]
        yield f"By AUC, {name} {'; '.join(parts)}" if parts else f"{name} has no results yet"


def cells_of(row: Row) -> list[str]:
    """Return the cells of one row; text after a line break is set in small type."""
    network = f"\n{row.backbone.model_name}" + (f" by {row.backbone.method}" if not row.is_baseline else "")
    return [
        f"{row.num_labels:,}",
        row.backbone.name + network + (f"; {row.problem}" if row.problem else ""),
        *(shown(row.metrics.get(name)) for name in COMPARED),
        *(shown(row.differences.get(name), signed=True) for name in COMPARED),
        row.verdict("auc_macro"),
        f"{len(row.seeds)} of {row.num_seeds}",
        ", ".join(map(published_number, row.published)),
        "\n".join(["", *(one["caveat"] for one in row.published)]),
    ]


def plot_of(rows: Sequence[Row]) -> Plot | None:
    """Return the figure of the AUC of each backbone against the number of labels."""
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in rows:
        if found := row.metrics.get("auc_macro"):
            series.setdefault(row.backbone.name, []).append((row.num_labels, found.value, found.low, found.high))
    if not series:
        return None
    last = rows[-1]
    caption = f"Mean AUC on the test images of {last.dataset} against the number of labels, with 95 % intervals"
    draw = partial(plots.over_counts, series=series, xlabel="labels", ylabel="mean AUC")
    return Plot(f"labels-{last.dataset}-{last.mode}", caption, draw, size=(7.0, 4.2), wide=True)


def published_number(one: dict[str, str]) -> str:
    """Format the published accuracy, and the AUC if it is known."""
    return f"{float(one['accuracy']):.4f}" + (f" (AUC {one['auc']})" if one["auc"] else "")


def published_section() -> list[Section]:
    """Return the section of all published numbers on lens finding with few labels."""
    names = ("method", "network", "num_labels", "accuracy", "auc", "source")
    rows = [[*(one[name] for name in names), one["caveat"]] for one in all_published()]
    lead = "As published, without intervals, because none were published; the last column lists caveats."
    return [Section("Published numbers", lead, [*names, "caveats"], rows)]


def lines_of(rows: Sequence[Row]) -> list[str]:
    """Return the table as lines of text."""
    head = ("data set", "mode", "labels", "backbone", "seeds", "AUC", "minus from scratch", "verdict", "")
    return [*aligned([head, *map(words_of, rows)])]


def words_of(row: Row) -> tuple[str, ...]:
    """Return the cells of one line of the text table."""
    found, paired = row.metrics.get("auc_macro"), row.differences.get("auc_macro")
    return (
        row.dataset,
        row.mode,
        str(row.num_labels),
        row.backbone.name,
        f"{len(row.seeds)}/{row.num_seeds}",
        str(found or "-"),
        str(paired or "-"),
        row.verdict("auc_macro"),
        row.problem,
    )
