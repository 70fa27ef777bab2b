"""Write the page of all settings from the help of each verb: `python -m jobs.api.settings_page > docs/settings.md`."""

import argparse
from collections.abc import Iterator

from jobs.command_line import make_parser
from jobs.verbs import JOBS, basic_of, description_of

HEAD = """# Settings

All settings of each job, made from its help by `python -m jobs.api.settings_page`. Basic settings are in bold.
Settings are given as `--name value`, or as `name: value` in a recipe (`--config FILE.yaml`). `deeplense JOB
--print_config` writes a recipe with all defaults.
"""


def page() -> str:
    """Return the page, in Markdown."""
    return "\n".join([HEAD, *(line for job in JOBS for line in section(job))]) + "\n"


def section(job: str) -> Iterator[str]:
    """Yield the lines about one job."""
    yield from (f"## {job}", "", description_of(job), "", "| setting | default | meaning |", "|---|---|---|")
    basic = basic_of(job)
    actions = [
        each for each in make_parser.__wrapped__(job)._actions if each.dest not in ("help", "config", "print_config")
    ]
    for action in sorted(actions, key=lambda each: list(basic).index(each.dest) if each.dest in basic else len(basic)):
        name = f"**{action.dest}**" if action.dest in basic else action.dest
        yield f"| {name} | {default_of(action)} | {meaning_of(action)} |"
    yield ""


def default_of(action: argparse.Action) -> str:
    """Return the default of a setting, or that it is required."""
    if action.required:
        return "required"
    return "" if action.default in (None, "") else f"`{action.default}`"


def meaning_of(action: argparse.Action) -> str:
    """Return the help of a setting with its choices, in one line."""
    choices = f"{', '.join(f'`{each}`' for each in action.choices)}: " if action.choices else ""
    return choices + " ".join(str(action.help).split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
