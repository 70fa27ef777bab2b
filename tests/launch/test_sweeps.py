"""Sweeps: every combination is a run of its own, in order, and what cannot be meant is refused."""

import itertools
import re
from pathlib import PurePosixPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobs import command_line
from launch.sweeps import MOST_RUNS, expand, safe

TRAIN = ["train", "--config", "R", "--run", "runs/{model_name}-{seed}", "--model_name=a,b", "--seed=0:3"]
BOTH_FORMS = pytest.mark.parametrize("joined", [True, False])


def sweep(run: str, *, joined: bool = True, **settings: str) -> list[str]:
    """The command line of a sweep, as `--name=value` or `--name value`."""
    pairs = list(({"run": run} | settings).items())
    flags = [f"--{name}={value}" for name, value in pairs]
    return ["train", *(flags if joined else itertools.chain(*((f"--{name}", value) for name, value in pairs)))]


def settings_of(words: list[str]) -> dict[str, str]:
    """What a command line of either form says."""
    split = list(itertools.chain(*(word.split("=", 1) if word.startswith("--") else [word] for word in words[1:])))
    return {name.removeprefix("--"): value for name, value in zip(split[::2], split[1::2], strict=True)}


def test_every_combination_is_a_run_and_the_last_placeholder_varies_fastest() -> None:
    assert expand(TRAIN) == [
        ["train", "--config", "R", "--run", f"runs/{model}-{seed}", f"--model_name={model}", f"--seed={seed}"]
        for model in "ab"
        for seed in range(3)
    ]


def test_the_order_is_that_of_the_placeholders_and_not_of_the_settings() -> None:
    words = sweep("{seed}/{lr}", lr="1,2", seed="7,5")
    assert [settings_of(line)["run"] for line in expand(words)] == ["7/1", "7/2", "5/1", "5/2"]


@BOTH_FORMS
@pytest.mark.parametrize(
    ("value", "values"),
    [
        ("a,b", ["a", "b"]),
        ("a", ["a"]),
        ("1e-3, 3e-4", ["1e-3", "3e-4"]),
        ("0:3", ["0", "1", "2"]),
        ("0:10:4", ["0", "4", "8"]),
        ("5:0:-2", ["5", "3", "1"]),
        ("-2:1", ["-2", "-1", "0"]),
        ("0:3,7,a", ["0", "1", "2", "7", "a"]),
        ("7:8,0:2", ["7", "0", "1"]),
        ("a:b,1:2:3:4,1.5:2", ["a:b", "1:2:3:4", "1.5:2"]),
    ],
)
def test_values_are_lists_and_ranges(value: str, values: list[str], joined: bool) -> None:
    runs = expand(sweep("r/{x}", joined=joined, x=value, y="1,2"))
    assert [settings_of(line)["x"] for line in runs] == values
    assert {settings_of(line)["y"] for line in runs} == {"1,2"}
    assert len({settings_of(line)["run"] for line in runs}) == len(values)


@BOTH_FORMS
def test_only_the_settings_that_the_folder_names_vary(joined: bool) -> None:
    words = sweep("r/{seed}", joined=joined, seed="0:2", classes="a,b", note="{seed}", crop="0:5")
    for seed, line in enumerate(expand(words)):
        told = settings_of(line)
        assert told == {"run": f"r/{seed}", "seed": str(seed), "classes": "a,b", "note": "{seed}", "crop": "0:5"}


def test_a_placeholder_may_come_twice() -> None:
    assert [settings_of(line)["run"] for line in expand(sweep("{a}/{b}-{a}", a="1,2", b="x"))] == ["1/x-1", "2/x-2"]


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("facebook/dinov2", "facebook-dinov2"),
        ("/data/Model_I", "-data-Model_I"),
        ("..", "--"),
        (".", "-"),
        ("../../etc", "..-..-etc"),
        ("~", "-"),
        ("a b\n$c:%j", "a-b--c--j"),
        ("1e-05", "1e-05"),
        ("-1.5", "-1.5"),
        ("vit_base.patch16", "vit_base.patch16"),
    ],
)
def test_a_value_is_made_safe_for_a_folder_and_kept_as_it_is_in_its_setting(value: str, part: str) -> None:
    (line,) = expand(sweep("runs/{x}/a", x=value))
    assert settings_of(line) == {"run": f"runs/{part}/a", "x": value}


@given(st.text(min_size=1))
def test_a_safe_value_is_one_part_of_a_path(value: str) -> None:
    assert PurePosixPath("runs", safe(value), "a").parts == ("runs", safe(value), "a")
    assert safe(value) not in (".", "..")
    assert "\0" not in safe(value)


NAMES = st.lists(st.sampled_from(["seed", "lr", "model_name", "dropout"]), min_size=1, unique=True)
VALUES = st.lists(st.from_regex(r"[a-z0-9./]{1,5}", fullmatch=True), min_size=1, max_size=4, unique=True)


@given(st.data(), st.booleans())
def test_there_are_as_many_runs_as_combinations_and_all_folders_differ(data: st.DataObject, joined: bool) -> None:
    axes = {name: data.draw(VALUES) for name in data.draw(NAMES)}
    assume(all(len(set(map(safe, values))) == len(values) for values in axes.values()))
    run = "runs/" + "/".join(f"{{{name}}}" for name in axes)
    runs = expand(sweep(run, joined=joined, **{name: ",".join(values) for name, values in axes.items()}, other="x"))
    told = [settings_of(line) for line in runs]
    assert [tuple(line[name] for name in axes) for line in told] == list(itertools.product(*axes.values()))
    assert len({line["run"] for line in told}) == len(runs)
    assert all(line["run"] == "runs/" + "/".join(safe(line[name]) for name in axes) for line in told)
    assert {line["other"] for line in told} == {"x"}


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-7, 7).filter(bool))
def test_a_range_is_that_of_python(first: int, end: int, step: int) -> None:
    words, numbers = sweep("r/{x}", x=f"{first}:{end}:{step}"), range(first, end, step)
    if not numbers:
        with pytest.raises(ValueError, match="is empty"):
            expand(words)
    else:
        assert [int(settings_of(line)["x"]) for line in expand(words)] == list(numbers)


def test_the_runs_are_command_lines_of_the_job() -> None:
    words = sweep("runs/{optimizer}-{seed}", joined=False, dataset="Model_I", optimizer="sgd,adamw", seed="0:2")
    settings = [command_line.parse("train", line[1:]) for line in expand(words)]
    assert [(s.optimizer, s.seed, s.run.name) for s in settings] == [
        (name, seed, f"{name}-{seed}") for name in ("sgd", "adamw") for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "--seed=0:5"],
            "--run is missing; set a folder with the settings to vary in braces, as in --run 'runs/",
        ),
        ([], "--run is missing"),
        (["train", "--run"], "--run has no value"),
        (["train", "--run", "--seed=0:5"], "--run has no value"),
        (["train", "--run="], "--run has no value"),
        (sweep("runs/a", seed="0:5"), "--run=runs/a names no setting to vary; name one or more in braces, as in --run"),
        (sweep("runs/{}", seed="0:5"), "--run contains {}, but -- is not set"),
        (
            sweep("runs/{sed}", seed="0:5"),
            "--run contains {sed}, but --sed is not set; set it to the values to try. Did you mean seed?",
        ),
        (
            sweep("runs/{seed:03}", seed="0:5"),
            "{seed:03}, but --seed:03 is not set; set it to the values to try. Did you mean seed?",
        ),
        (
            sweep("runs/{lr}", seed="0:5", fold="1"),
            "--lr is not set; set it to the values to try. Known names: fold, seed.",
        ),
        (sweep("runs/{lr}"), "--run contains {lr}, but --lr is not set; set it to the values to try."),
        (sweep("runs/{run}"), "--run=runs/{run} contains itself"),
        (sweep("runs/{seed", seed="0:5"), "--run=runs/{seed has unbalanced braces; write each name as {name}."),
        (sweep("runs/seed}-{lr}", lr="1"), "has unbalanced braces"),
        (sweep("runs/{{seed}}", seed="0:5"), "has unbalanced braces"),
        ([*TRAIN, "--seed=9"], "--seed is set 2 times; set it once."),
        ([*TRAIN, "--run=b"], "--run is set 2 times"),
        (["train", "--run=r/{seed}", "--seed"], "--seed has no value"),
        (["train", "--run=r/{seed}", "--seed", "--lr=1"], "--seed has no value"),
        (sweep("r/{seed}", seed="5:5"), "--seed=5:5: the range 5:5 is empty"),
        (sweep("r/{seed}", seed="1,5:0"), "--seed=1,5:0: the range 5:0 is empty"),
        (sweep("r/{seed}", seed="0:5:0"), "the step of 0:5:0 is 0"),
        (sweep("r/{seed}", seed="0,,1"), "--seed=0,,1 has an empty item"),
        (sweep("r/{seed}", seed="0,"), "has an empty item"),
        (sweep("r/{classes}", classes='["a","b"]'), "is a single list or mapping, which cannot be varied"),
        (sweep("r/{seed}", seed="0:3,2"), "two runs have the same folder r/2: --seed=2 occurs twice"),
        (sweep("r/{x}", x="a/b,a-b"), "two runs have the same folder r/a-b: --x=a/b and --x=a-b both map to it"),
        (sweep("r/{a}{b}", a="1,11", b="1,11"), "folder r/111: --a=1 --b=11 and --a=11 --b=1 both map to it"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        expand(words)


def test_so_many_runs_are_made_and_no_more() -> None:
    assert len(expand(sweep("r/{a}-{b}", a="0:100", b="0:100"))) == MOST_RUNS == 10_000
    for a, b in (("0:101", "0:100"), (f"0:{10**30}", "1"), ("0:9999,0:9999", "1")):
        with pytest.raises(ValueError, match=r"more than 10,000 runs"):
            expand(sweep("r/{a}-{b}", a=a, b=b))


def test_the_words_are_left_as_they_were() -> None:
    words = list(TRAIN)
    expand(words)
    assert words == TRAIN
