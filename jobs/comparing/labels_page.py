"""The table over numbers of labels as files: table.csv, table.json and index.html; and as text."""

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
from jobs.comparing.forms import aligned, images_in_words, shown, with_ends, write_csv
from jobs.comparing.labels_table import (
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
from jobs.comparing.table import until_settled

METHOD = (
    "A seed draws which labels of the split train are known, with the shares of its classes; fewer labels are among "
    "more, and all rows of a seed have the same. From scratch and full are the same training but for its start: the "
    "same updates, settings and augmentation, and the weights of its end count, for a choice among them by a few "
    "dozen labels is worse; a tenth of the labels is only looked at. linear is a logistic regression on the features, "
    "whose penalty is chosen by cross-validation among the known labels; knn the votes of the 20 nearest. The test "
    "images choose nothing, and all rows of a data set are tested on the same: those that a pretraining saw, without "
    "labels, are left out from scratch too, unless allow_pretrained_overlap is 1. "
    "A number is the mean over the seeds. Its 95 % interval covers the spread between the "
    "seeds (Student's t) and the test images (1000 bootstrap resamples, the same for all), put together as by Zou and "
    "Donner (2008). A difference is to the same network from scratch with as many labels, seed by seed on the same "
    "images. Better and worse say that its interval is above or below 0; nothing is corrected for the many "
    "comparisons. It is of this one pretraining: the spread between pretrainings is in no interval. What suits a "
    "training from scratch best may be other settings than what suits a pretrained backbone; both get those of the "
    "recipe, or those that were given."
)
PUBLISHED_COLUMNS = ("accuracy", "auc", "source", "caveat")
WORDS = {
    BETTER: "is better than from scratch",
    WORSE: "is worse than from scratch",
    UNKNOWN: "cannot be told apart from scratch",
    ONE_SEED: "cannot be told apart from scratch by one seed",
}


def update_table(output: Path, cells: Sequence[Cell]) -> list[Row]:
    """Write the table anew."""
    return until_settled([cell.trial for cell in cells], lambda: write_table(output, make_rows(cells)))


def write_table(output: Path, rows: list[Row]) -> list[Row]:
    """Write all files; returns the rows."""
    told = [asdict(row) | {"verdict": row.verdict("auc_macro")} for row in rows]
    write_json(output / "table.json", finite({"rows": told, "method": METHOD}))
    write_csv(output / "table.csv", [flat(row) for row in rows])
    write_html(output / "index.html", rows)
    return rows


def flat(row: Row) -> dict[str, Any]:
    """A row as plain columns."""
    values: dict[str, Any] = {name: getattr(row, name) for name in ("dataset", "kind", "mode", "num_labels")}
    values |= {name: getattr(row.backbone, name) for name in ("name", "method", "model_name", "baseline")}
    values |= {"seeds": " ".join(map(str, row.seeds)), "num_seeds": row.num_seeds, "num_images": row.num_images}
    values |= with_ends(row.metrics | {f"difference_{name}": found for name, found in row.differences.items()})
    values |= {f"verdict_{name}": row.verdict(name) for name in COMPARED} | {"problem": row.problem}
    return values | {f"published_{name}": "; ".join(one[name] for one in row.published) for name in PUBLISHED_COLUMNS}


def write_html(path: Path, rows: Sequence[Row]) -> None:
    """The page: for each data set and each way of using a backbone a figure and a table; the published numbers."""
    by_use = [list(some) for _, some in groupby(rows, key=lambda row: (row.dataset, row.mode))]
    sections = [section_of(some, baselines(rows, some[0].dataset)) for some in by_use]
    sections += published_section() if any(row.kind == LENS_FINDING for row in rows) else []
    seeds = sum(len(row.seeds) for row in rows), sum(row.num_seeds for row in rows)
    lead = f"{seeds[0]} of {seeds[1]} runs are done and evaluated"
    notes = {"How the numbers are made": METHOD}
    write_page(path, title="Pretrained backbones with few labels", lead=lead, sections=sections, notes=notes)


def baselines(rows: Sequence[Row], dataset: str) -> list[Row]:
    """The rows from scratch of a data set."""
    return [row for row in rows if row.dataset == dataset and row.is_baseline]


def section_of(rows: Sequence[Row], from_scratch: Sequence[Row]) -> Section:
    """One way of using backbones on one data set."""
    first = rows[0]
    images = images_in_words(max(row.num_images for row in rows), first.kind)
    left_out = max(row.num_left_out for row in rows)
    images += f"; {left_out:,} others are left out, for a run or a pretraining has seen them" if left_out else ""
    headings = ["labels", "backbone", "mean AUC, 95 % interval", "accuracy"]
    headings += ["AUC less that from scratch", "accuracy less that from scratch", "by AUC, it is", "seeds"]
    return Section(
        title=f"{first.dataset}: {first.mode}",
        lead=". ".join([images, *conclusions(rows)]) + ".",
        headings=[*headings, "published", "what is wrong with it"],
        rows=[cells_of(row) for row in rows],
        plot=plot_of([*from_scratch, *(row for row in rows if not row.is_baseline)]),
    )


def conclusions(rows: Sequence[Row]) -> Iterator[str]:
    """What the table says of each backbone, in a sentence."""
    for name in dict.fromkeys(row.backbone.name for row in rows if not row.is_baseline):
        said = [(row.verdict("auc_macro"), f"{row.num_labels:,}") for row in rows if row.backbone.name == name]
        parts = [
            f"{WORDS[verdict]} with {' and '.join(count for other, count in said if other == verdict)} labels"
            for verdict in dict.fromkeys(verdict for verdict, _ in said if verdict)
        ]
        yield f"By its AUC, {name} {'; '.join(parts)}" if parts else f"{name} is not done yet"


def cells_of(row: Row) -> list[str]:
    """The texts of one row; what stands after a line break is small."""
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
    """The AUC of each backbone over the number of labels."""
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in rows:
        if found := row.metrics.get("auc_macro"):
            series.setdefault(row.backbone.name, []).append((row.num_labels, found.value, found.low, found.high))
    if not series:
        return None
    last = rows[-1]
    caption = f"mean AUC on the test images of {last.dataset} over the number of labels, with 95 % intervals"
    draw = partial(plots.over_counts, series=series, xlabel="labels", ylabel="mean AUC")
    return Plot(f"labels-{last.dataset}-{last.mode}", caption, draw, size=(7.0, 4.2), wide=True)


def published_number(one: dict[str, str]) -> str:
    """Accuracy, and AUC if it is known."""
    return f"{float(one['accuracy']):.4f}" + (f" (AUC {one['auc']})" if one["auc"] else "")


def published_section() -> list[Section]:
    """All that was published of lens finding with few labels."""
    names = ("method", "network", "num_labels", "accuracy", "auc", "source")
    rows = [[*(one[name] for name in names), one["caveat"]] for one in all_published()]
    lead = "As published. No interval is known for any of them; the last column says what else is known."
    return [Section("Published numbers", lead, [*names, "what is wrong with it"], rows)]


def lines_of(rows: Sequence[Row]) -> list[str]:
    """The table as text."""
    head = ("data set", "mode", "labels", "backbone", "seeds", "AUC", "less from scratch", "it is", "")
    return [*aligned([head, *map(words_of, rows)])]


def words_of(row: Row) -> tuple[str, ...]:
    """One line of it."""
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
