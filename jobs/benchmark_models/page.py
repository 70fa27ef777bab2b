"""Write the table of models as table.csv, table.json and index.html, and format it as text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from deeplense.evaluation import plots
from deeplense.evaluation.page import Section, write_page
from deeplense.evaluation.report import Plot
from deeplense.files import finite, write_json
from jobs.benchmark_models.table import Row, make_rows
from jobs.trials.forms import aligned, images_in_words, shown, with_ends, write_csv
from jobs.trials.scores import until_settled
from jobs.trials.trials import Trial

METHOD = (
    "Each model is trained with its recipe once per seed. The weights are selected on validation images; the test "
    "images are never used for selection. Each number is the mean over the seeds. Its 95 % interval covers the "
    "variation between seeds (Student's t) and between test images (1000 bootstrap resamples, the same for all), "
    "combined as by Zou and Donner (2008); with one seed it covers the test images only, which is noted. Differences "
    "are to the model with the best number on the data set, on the same images and over the common seeds. The best "
    "model was selected by these same numbers, and there is no correction for multiple comparisons. If data were added "
    "(A+B), the number of updates is the same as on A alone, a part of both data sets is used for validation, the test "
    "images are those of A, and the change is the difference to the same model trained on A alone. A model is clearly "
    "above chance if the lower end of the interval of its mean AUC is above 0.5, or if the interval of its gain over a "
    "constant guess (in mean absolute error) is above 0."
)
COSTS = (
    "Parameters and operations per image are counted (a multiply-add counts as 2; convolutions, matrix products and "
    "attention). Speed and memory are measured for updates on one batch in memory, without reading, evaluation and "
    "checkpoints, in a separate process before the training, while nothing else of this command runs. The training "
    "time is that of the whole training, possibly in parallel with others; blank if an attempt was killed."
)
COSTS_COLUMNS = ("parameters", "flops", "images_per_s", "peak_memory_mb", "memory", "device", "precision")
COSTS_COLUMNS += ("batch_size", "load_average")
PUBLISHED_COLUMNS = ("auc_macro", "accuracy", "mae", "source", "caveat")
LABELS = {"auc_macro": "mean AUC", "mae": "MAE"}


def update_table(output: Path, trials: Sequence[Trial]) -> list[Row]:
    """Rewrite the table."""
    return until_settled(trials, lambda: write_table(output, make_rows(output, trials)))


def write_table(output: Path, rows: list[Row]) -> list[Row]:
    """Write all files and return the rows."""
    write_json(output / "table.json", finite({"rows": [asdict(row) for row in rows], "method": METHOD, "costs": COSTS}))
    write_csv(output / "table.csv", [flat(row) for row in rows])
    write_html(output / "index.html", rows)
    return rows


def flat(row: Row) -> dict[str, Any]:
    """Return a row as plain columns."""
    values: dict[str, Any] = {name: getattr(row, name) for name in ("dataset", "model", "kind", "target", "problem")}
    values |= {"seeds": " ".join(map(str, row.seeds)), "num_seeds": row.num_seeds, "num_images": row.num_images}
    compared = {"difference": row.difference, "change": row.change}
    values |= with_ends(row.metrics | {name: each for name, each in compared.items() if each})
    values |= {"best": row.best, "above_chance": row.above_chance, "train_seconds": row.train_seconds}
    values |= {name: row.costs.get(name) for name in COSTS_COLUMNS}
    return values | {
        f"published_{name}": "; ".join(one[name] for one in row.published_here) for name in PUBLISHED_COLUMNS
    }


def write_html(path: Path, rows: Sequence[Row]) -> None:
    """Write the page: a figure and a table per data set, the published numbers, and the method."""
    sections = [section_of(list(found)) for _, found in groupby(rows, key=lambda row: row.dataset)]
    known = {str(one): one for row in rows for one in row.published}.values()
    notes = {"How the numbers are computed": METHOD, "How the costs are measured": COSTS}
    seeds = sum(len(row.seeds) for row in rows), sum(row.num_seeds for row in rows)
    lead = f"{len({row.model for row in rows})} models; {seeds[0]} of {seeds[1]} trainings are done and evaluated"
    write_page(
        path, title="Model comparison", lead=lead, sections=[*sections, *published_section(list(known))], notes=notes
    )


def section_of(rows: Sequence[Row]) -> Section:
    """Return the section of one data set."""
    first = rows[0]
    done = [row for row in rows if row.metrics]
    classes = further_columns(done[0].metrics, first.main) if done else []
    headings = ["model", f"{LABELS[first.main]}, 95 % interval", "difference to the best", "change by added data"]
    headings += classes
    headings += ["clearly above chance", "seeds", "parameters", "operations", "speed", "peak memory", "training time"]
    images = images_in_words(max(row.num_images for row in rows), first.kind)
    places = sorted({measured_on(row) for row in rows if row.costs})
    where = f". Speed and memory were measured on {'; '.join(places)}." if len(places) == 1 else ""
    return Section(
        title=f"{first.dataset}: {first.target}",
        lead=images + where,
        headings=[*headings, "published", "caveats of published"],
        rows=[cells_of(row, classes, say_where=len(places) > 1) for row in rows],
        plot=plot_of(done),
    )


def further_columns(metrics: Mapping[str, Any], main: str) -> list[str]:
    """Return the metrics that have a column beside the main one. With more than two classes, of the true positive rates
    only those at 1 % have; table.csv has all."""
    rates = [name for name in metrics if name.startswith("tpr_at_fpr_")]
    shown_rates = [name for name in rates if name.startswith("tpr_at_fpr_0.01_")]
    left_out = set(rates) - set(shown_rates) if len(shown_rates) > 2 else set()
    return [name for name in metrics if name not in {main, "gain"} | left_out]


def measured_on(row: Row) -> str:
    """Say on which device speed and memory were measured, and which kind of memory."""
    return f"{row.costs['device']}, {row.costs['precision']} (memory: {row.costs['memory']})"


def plot_of(rows: Sequence[Row]) -> Plot | None:
    """Return the figure of one data set: a dot and an interval per model, the best on top."""
    if not rows:
        return None
    main = rows[0].main
    values = [(found.value, found.low, found.high) for found in (row.metrics[main] for row in rows)]
    chance = 0.5 if main == "auc_macro" else rows[0].metrics["mae_chance"].value
    draw = partial(plots.intervals, names=[row.model for row in rows], values=values, chance=chance, label=LABELS[main])
    caption = f"{LABELS[main]} on the test images of {rows[0].dataset}, with 95 % intervals"
    return Plot(f"models-{rows[0].dataset}", caption, draw, size=(7.0, 0.9 + 0.26 * len(rows)), wide=True)


def cells_of(row: Row, classes: Sequence[str], *, say_where: bool) -> list[str]:
    """Return the cells of one row; text after a line break is set in small type."""
    alone = "\nthe interval covers the test images only" if len(row.seeds) == 1 else ""
    return [
        row.model + (f"\n{row.problem}" if row.problem else ""),
        shown(row.metrics.get(row.main)),
        "best" if row.best else shown(row.difference, signed=True),
        shown(row.change, signed=True),
        *(shown(row.metrics.get(name)) for name in classes),
        {None: "", True: "yes", False: "no"}[row.above_chance],
        f"{len(row.seeds)} of {row.num_seeds}{alone}",
        *(costs_of(row, say_where=say_where) if row.costs else [""] * 4),
        f"{row.train_seconds:,.0f}\u00a0s" if row.train_seconds is not None else "",
        ", ".join(filter(None, map(published_number, row.published_here))),
        "\n".join(["", *(f"{one['variant']}: {one['caveat']}" for one in row.published_here if one["caveat"])]),
    ]


def costs_of(row: Row, *, say_where: bool) -> list[str]:
    """Format parameters, operations, speed and memory."""
    costs = row.costs
    where = f"\n{measured_on(row)}" if say_where else ""
    return [
        f"{costs['parameters'] / 1e6:.2f}\u00a0M",
        f"{costs['flops'] / 1e9:.3g}\u00a0GFLOP",
        f"{costs['images_per_s']:,.0f}\u00a0images/s\nbatch {costs['batch_size']}{where}",
        f"{costs['peak_memory_mb']:,.0f}\u00a0MB",
    ]


def published_number(one: Mapping[str, str]) -> str:
    """Return the published number to compare with ours."""
    return one["auc_macro"] or one["mae"] or f"accuracy {one['accuracy']}"


def published_section(known: Sequence[Mapping[str, str]]) -> list[Section]:
    """Return the section of all published numbers of these models, including those on other images."""
    names = (
        "model",
        "dataset",
        "variant",
        "auc_no_sub",
        "auc_cdm",
        "auc_axion",
        "auc_macro",
        "accuracy",
        "mae",
        "source",
    )
    rows = [[*(one[name] for name in names), one["caveat"]] for one in known]
    lead = "As published, without intervals, because none were published; the last column lists caveats."
    return [Section("Published numbers", lead, [*names, "caveats"], rows)] if rows else []


def lines_of(rows: Sequence[Row]) -> Iterator[str]:
    """Return the table as lines of text."""
    head = ("data set", "model", "seeds", "AUC or MAE", "difference to the best", "accuracy", "")
    return aligned([head, *map(words_of, rows)])


def words_of(row: Row) -> tuple[str, ...]:
    """Return the cells of one line of the text table."""
    found, accuracy = row.metrics.get(row.main), row.metrics.get("accuracy")
    notes = [] if row.above_chance is None else ["above chance" if row.above_chance else "not clearly above chance"]
    notes += ["one seed: the interval covers the test images only"] if len(row.seeds) == 1 else []
    notes += [f"change by added data: {row.change}"] if row.change else []
    return (
        row.dataset,
        row.model,
        f"{len(row.seeds)}/{row.num_seeds}",
        str(found or "-"),
        "best" if row.best else str(row.difference or "-"),
        f"{accuracy.value:.3f}" if accuracy else "-",
        "; ".join([*notes, *filter(None, [row.problem])]),
    )
