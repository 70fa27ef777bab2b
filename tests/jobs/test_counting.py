"""A setting that counts with certain choices of others only is refused elsewhere; none is accepted and does nothing."""

import itertools
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import pytest

from jobs import command_line, conditions, verbs
from jobs.conditions import GIVEN, Condition, counts_with
from jobs.settings import dump, from_plain, plain
from tests.jobs.test_config import LEAST, TRAIN, refusal

SAMPLES = {"run": "runs/a", "conditions": "class", "label_file": "names.txt", "num_folds": "3"}
"""Values of settings that have no list of them, by which they are given."""
NUMBERS = {"num_sampled": ["0", "8"], "num_workers": ["0", "1"]}
NEEDS = {"generated": ["--dataset=real"]}
"""What else the command line must say where these are given."""


def all_fields(job: str) -> dict[str, Any]:
    """The fields of a job's settings, those of a borrowed job too."""
    kind = verbs.settings_of(job)
    others = [all_fields(other) for other, _ in conditions.borrowed_settings(kind).values()]
    return {name: field for each in others for name, field in each.items()} | {f.name: f for f in fields(kind)}


def values_of(field: Any) -> list[str]:
    """Values that a setting may have, as they are written; an empty one stands for leaving it out."""
    chosen = [str(value) for value in get_args(field.type) if isinstance(value, str | int)]
    return chosen or NUMBERS.get(field.name) or ["", SAMPLES.get(field.name, "given")]


def cases() -> Iterator[tuple[str, str, dict[str, str], bool]]:
    """Each setting that does not always count, with each combination of values of what it depends on, and whether it
    counts there."""
    for job in verbs.JOBS:
        known = all_fields(job)
        for name, condition in conditions.conditions(verbs.settings_of(job)).items():
            for values in itertools.product(*(values_of(known[each]) for each in condition.choices)):
                chosen = dict(zip(condition.choices, values, strict=True))
                meant = {n: (int(v) if v.isdigit() else v) if v else known[n].default for n, v in chosen.items()}
                yield job, name, chosen, condition.holds(meant)


def words_of(job: str, name: str, chosen: dict[str, str]) -> list[str]:
    """A command line that makes choices, and gives a setting its default or the like."""
    positional, default = verbs.POSITIONAL.get(job), all_fields(job)[name].default
    words = [v if n == positional else f"--{n}={v}" for n, v in chosen.items() if v]
    words += [word for n, v in chosen.items() if v for word in NEEDS.get(n, [])]
    least = [] if job == "evaluate" or positional in chosen else LEAST[job]
    return [*least, *words, f"--{name}={'1' if default in (None, MISSING, '') else default}"]


def is_refused(job: str, words: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether a command line is refused because a setting does not count."""
    try:
        command_line.parse(job, words)
    except SystemExit:
        (line,) = capsys.readouterr().err.splitlines()
        return line.startswith(f"deeplense {job}: --{name} has an effect only with") and "; leave it out, or " in line
    return False


FIRST = {(job, name, holds): chosen for job, name, chosen, holds in reversed([*cases()])}
"""The first combination in which each setting counts, and in which it does not."""


@pytest.mark.parametrize("job", sorted({job for job, _, _ in FIRST}))
def test_a_setting_is_refused_exactly_where_it_does_not_count(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = {field.name for field in fields(verbs.settings_of(job))}
    found = {
        (name, holds): is_refused(job, words_of(job, name, chosen), name, capsys)
        for (of, name, holds), chosen in FIRST.items()
        if of == job and name in own
    }
    assert found == {(name, holds): not holds for name, holds in found}
    assert {name for name, holds in found if holds} == {name for name, holds in found if not holds}


def test_each_combination_of_choices_decides_alike() -> None:
    for job, name, chosen, holds in cases():
        known, kind = all_fields(job), verbs.settings_of(job)
        values = {each.name: each.default for each in known.values()}
        values |= {n: (int(v) if v.isdigit() else v) for n, v in chosen.items() if v}
        given = command_line.Given({name, *(n for n, v in chosen.items() if v)}, set())
        if holds:
            assert command_line.counted(job, kind, values, given) == values
        else:
            with pytest.raises(ValueError, match=f"--{name} has an effect only with"):
                command_line.counted(job, kind, values, given)


def test_the_refusal_names_where_a_setting_counts(capsys: pytest.CaptureFixture[str]) -> None:
    told = "deeplense train: --gamma has an effect only with --schedule step; leave it out, or give --schedule step."
    assert refusal("train", [*TRAIN, "--gamma", ".3"], capsys) == told
    told = "deeplense benchmark: --memory has an effect only with benchmark data; leave it out, or give benchmark data."
    assert refusal("benchmark", ["views", "--memory=1"], capsys) == told


def test_a_setting_of_a_recipe_that_does_not_count_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("schedule: cosine\ngamma: 0.3\n")
    line = refusal("train", [*TRAIN, f"--config={tmp_path / 'recipe.yaml'}", "--optimizer=sgd"], capsys)
    assert line.startswith("deeplense train: gamma in the recipe has an effect only with --schedule step")


def test_what_belongs_to_a_choice_of_a_recipe_goes_with_it_where_a_flag_makes_another(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("schedule: step\ngamma: 0.3\nperiod_epochs: 2\n")
    settings = command_line.parse("train", [*TRAIN, f"--config={tmp_path / 'recipe.yaml'}", "--schedule=restarts"])
    assert (settings.gamma, settings.period_epochs) == (0.5, 2.0)


def test_a_recipe_may_say_what_holds_anyway(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(dump(command_line.parse("train", TRAIN)))
    assert command_line.parse("train", [f"--config={tmp_path / 'recipe.yaml'}"]) == command_line.parse("train", TRAIN)


def test_settings_of_an_older_run_load_with_what_does_not_count() -> None:
    kind, values = verbs.settings_of("train"), plain(command_line.parse("train", TRAIN)) | {"gamma": 0.3}
    assert from_plain(kind, values).gamma == 0.3
    assert "gamma" not in conditions.counting(kind, values)
    assert conditions.counting(kind, values | {"schedule": "step"})["gamma"] == 0.3


def test_settings_of_another_job_are_refused_where_they_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal("finetune", [*LEAST["finetune"], "--mode=knn", "--lr=1"], capsys)
    assert "--lr has an effect only with --mode full" in line
    assert (
        command_line.parse("finetune", [*LEAST["finetune"], "--mode=knn", "--stretch=asinh"]).training["stretch"]
        == "asinh"
    )


@pytest.mark.parametrize(
    ("condition", "values", "holds"),
    [
        ({"schedule": "step"}, {"schedule": "step"}, True),
        ({"schedule": ("step", "restarts")}, {"schedule": "cosine"}, False),
        ({"schedule": "step", "decay_lr": 1}, {"schedule": "cosine", "decay_lr": 1}, True),
        ({"generated": None}, {"generated": Path("a")}, False),
        ({"run": GIVEN}, {"run": ""}, False),
        ({"num_folds": GIVEN}, {"num_folds": 0}, False),
        ({"num_folds": GIVEN}, {"num_folds": 2}, True),
    ],
)
def test_a_condition_holds_where_one_of_its_choices_is_made(
    condition: dict[str, Any], values: dict[str, Any], holds: bool
) -> None:
    (found,) = counts_with(**condition).values()
    assert isinstance(found, Condition)
    assert found.holds(values) == holds
