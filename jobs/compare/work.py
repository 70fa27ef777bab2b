"""Compare runs by their settings, their reports and their curves, as text and as one page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deeplense.evaluation import plots
from deeplense.evaluation.finding import in_words
from deeplense.evaluation.page import Section, write_page
from deeplense.evaluation.report import Plot, finding_cells, is_defined, metric_in_words
from deeplense.files import read_json
from jobs.compare.paired import Paired, paired_differences
from jobs.compare.settings import Settings
from jobs.console import say
from jobs.plot.work import RUNS, names_of
from jobs.runs.curves import Curves, panels_of, read_curves
from jobs.runs.folder import find_run
from jobs.runs.stored import CONFIG, DOCUMENT, listed_settings
from jobs.settings import require

METHOD = (
    "Differences are paired: each bootstrap resample takes the same images for both runs. The 95 % intervals describe "
    "new images of this kind and these trained models; they do not include the variation between trainings with "
    "different seeds. `deeplense benchmark models` compares models over several seeds."
)
SHOWN = ("auc_macro", "accuracy", "log_loss", "brier", "ece", "mae", "rmse", "bias")
"""Metrics in the table of held-out metrics, if a report has them."""
RATES = ("tpr_at_fpr_0.01", "tpr_at_fpr_0.001")
"""True positive rates that are listed, if a report has them."""


@dataclass(frozen=True)
class Compared:
    """A run to compare: its name, folder, settings, metrics over the steps, and report (empty if it has none)."""

    name: str
    folder: Path
    settings: dict[str, Any]
    curves: Curves
    report: dict[str, Any]
    report_folder: Path


def run(settings: Settings) -> int:
    """Print the comparison and write it as a page."""
    output = settings.output
    require(output.parent.is_dir(), f"the folder {output.parent} of output={output} does not exist; create it.")
    folders = [find_run(given, RUNS) for given in settings.runs]
    require(len({folder.resolve() for folder in folders}) == len(folders), "a run is given twice; give it once.")
    runs = [open_run(name, folder, settings.report) for name, folder in zip(names_of(folders), folders, strict=True)]
    pairs = [paired_differences(runs[0].report_folder, other.report_folder) for other in runs[1:]]
    sections = [settings_section(runs), metrics_section(runs), *finding_section(runs)]
    sections += [differences_section(runs, pairs), *curves_section(runs)]
    for section in sections:
        tell(section)
    title = "Comparison of " + ", ".join(each.name for each in runs)
    notes = {"How the differences are estimated": METHOD}
    write_page(output, title=title, lead=f"Each run is compared with {runs[0].name}.", sections=sections, notes=notes)
    say(f"\npage: {output}")
    return 0


def open_run(name: str, folder: Path, report: str) -> Compared:
    """Read what is compared of a run. Raises ValueError if the folder has no readable settings or report."""
    path = folder / report / DOCUMENT
    found = read_json(path) if path.is_file() else {}
    require(
        isinstance(found, dict), f"{path} is not a report; write it again with `deeplense evaluate --run {folder}`."
    )
    return Compared(name, folder, listed_settings(folder), read_curves(folder), dict(found), folder / report)


def settings_section(runs: Sequence[Compared]) -> Section:
    """Return the section with the settings that are not the same in all runs."""
    names = {name for each in runs for name in each.settings} - {"run"}
    values = {name: [str(each.settings.get(name, "")) for each in runs] for name in sorted(names)}
    rows = [[name, *found] for name, found in values.items() if len(set(found)) > 1]
    lead = f"From {CONFIG}. All other settings are equal." if rows else f"All settings in {CONFIG} are equal."
    return Section("Settings that differ", lead, ["setting", *(each.name for each in runs)], rows)


def metrics_section(runs: Sequence[Compared]) -> Section:
    """Return the section with the held-out metrics of each run."""
    names = [name for name in SHOWN if any(name in each.report.get("metrics", {}) for each in runs)]
    rows = [[each.name, evaluated_on(each), *(metric_of(each, name) for name in names)] for each in runs]
    return Section("Held-out metrics", "With 95 % intervals.", ["run", "evaluated on", *names], rows)


def evaluated_on(compared: Compared) -> str:
    """Return which images the report of a run is on, or how to make it."""
    if not compared.report:
        return f"not evaluated: deeplense evaluate --run {compared.folder}"
    held, data = (str(compared.report.get("facts", {}).get(name, "")) for name in ("held out", "data set"))
    return f"{held.partition(';')[0]}\n{data}"


def metric_of(compared: Compared, name: str) -> str:
    """Return a metric with its interval below it, as text; empty if there is none."""
    found = compared.report.get("metrics", {}).get(name)
    if not found:
        return ""
    value, space, interval = metric_in_words(found).partition(" ")
    return f"{value}\n{interval}" if space and is_defined(found) else value


def finding_section(runs: Sequence[Compared]) -> list[Section]:
    """Return the section with the true positive rates of each run at low false positive rates, if any is given."""
    found = [each.report.get("finding", {}) for each in runs]
    known = [(rate, name) for rate in RATES for each in found for name in each if "value" in each[name].get(rate, {})]
    columns = list(dict.fromkeys(known))
    headings = ["run", *(f"{name}: {in_words(rate)}" for rate, name in columns)]
    rows = [
        [each.name, *(rate_of(numbers.get(name, {}).get(rate)) for rate, name in columns)]
        for each, numbers in zip(runs, found, strict=True)
    ]
    lead = "Of each class against the rest, with 95 % intervals."
    return [Section("Finding a rare class", lead, headings, rows)] if columns else []


def rate_of(number: Mapping[str, Any] | None) -> str:
    """Return a number with its interval, or why there is none, below it."""
    if number is None:
        return ""
    return "\n".join(finding_cells("", number))


def differences_section(runs: Sequence[Compared], pairs: Sequence[Paired | str]) -> Section:
    """Return the section with the paired differences to the first run, or why there are none."""
    rows = []
    for other, pair in zip(runs[1:], pairs, strict=True):
        if isinstance(pair, str):
            rows.append([other.name, "", pair, ""])
            continue
        for name, estimate in pair.differences.items():
            if not math.isfinite(estimate.value):
                rows.append([f"{other.name}\n{pair.num_images} common images", name, "undefined", ""])
                continue
            verdict = "differs from 0" if estimate.low > 0 or estimate.high < 0 else "compatible with 0"
            verdict = "equal" if estimate.low == estimate.high == 0 else verdict
            interval = f"{estimate.value:+.4f}\n[{estimate.low:+.4f}, {estimate.high:+.4f}]"
            rows.append([other.name, name, interval, verdict])
            rows[-1][0] += f"\n{pair.num_images} common images"
    lead = f"Metric of the run minus that of {runs[0].name}, on the images that both were evaluated on."
    return Section(f"Differences to {runs[0].name}", lead, ["run", "metric", "difference", "at 95 %"], rows)


def curves_section(runs: Sequence[Compared]) -> list[Section]:
    """Return the section with the curves of all runs, if there are any."""
    panels = panels_of({each.name: each.curves for each in runs if each.curves})
    if not panels:
        return []
    size = 9.2, 2.7 * -(-len(panels) // 2)
    plot = Plot("curves", "Metrics over the steps", partial(plots.curves, panels=panels, columns=2), size=size)
    return [Section("Curves", "Training: solid; validation: dashed.", [], [], plot)]


def tell(section: Section) -> None:
    """Print a section as a table."""
    say(f"\n{section.title}. {section.lead}")
    if not section.rows:
        return
    cells = [[cell.replace("\n", " ") for cell in row] for row in [section.headings, *section.rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        say("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
