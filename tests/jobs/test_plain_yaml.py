"""YAML that users write means what it says: numbers are decimal, text is text, and nothing grows."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import command_line
from jobs.plain_yaml import read_yaml, read_yaml_file
from jobs.runs.stored import CONFIG, stored_config
from jobs.settings import dump
from tests.jobs.test_config import TRAIN, refusal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("1:30", "24:00:00", "010", "0x10", "0b1", "1_000", "2026-01-01", "1.5.2", "=")),
        *((word, word) for word in ("yes", "no", "on", "off", "Yes", "TRUE", "y", "n", ".inf", ".nan", "nan", "inf")),
        ("8", 8),
        ("-3", -3),
        ("0", 0),
        ("1e3", 1000.0),
        ("1e-3", 1e-3),
        ("1.0e-05", 1e-5),
        (".5", 0.5),
        ("2.", 2.0),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_a_value_is_read_as_it_is_written(text: str, value: Any) -> None:
    assert read_yaml(f"name: {text}") == {"name": value}


def test_yaml_as_it_is_would_misread_it() -> None:
    assert yaml.safe_load("[1:30, 010, on, 1_000]") == [90, 8, True, 1000]


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1\nlr: 2", "the key 'lr' is duplicated"),
        ("a: {lr: 1, lr: 2}", "the key 'lr' is duplicated"),
        (BOMB, "an alias inside an anchored node"),
        ("a: &a [*a]", "an alias inside an anchored node"),
        ("a: &a 1\nb: [" + "*a, " * 101 + "]", "more than 100 aliases"),
        ("a: " + "[" * 30, "more than 20 levels"),
        ("a: " + "{b: " * 100_000, "more than 20 levels"),
        ("a: " + "x" * 1_000_001, "the limit is"),
        ("a: !!python/object/apply:os.system [id]", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !!int 010", "the tag tag:yaml.org,2002:int is not supported"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
        ("a: [1", "line 1"),
        ("a: \x07", "special characters are not allowed"),
        ("a: " + "9" * 5000, "cannot be read as YAML"),
    ],
)
def test_what_settings_never_need_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match="cannot be read as YAML") as refused:
        read_yaml_file(tmp_path / "recipe.yaml")
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "recipe.yaml"))
    assert "\n" not in str(refused.value)


def test_a_plain_alias_is_read() -> None:
    found = read_yaml("a: &a {nodes: 2, hours: 1}\nb: {<<: *a, hours: 3}\n")
    assert found == {"a": {"nodes": 2, "hours": 1}, "b": {"nodes": 2, "hours": 3}}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("epochs: 1:30", "--epochs: '1:30' is not a number; write one such as 1.5 or 1e-3."),
        ("epochs: 010", "--epochs: '010' is not a number"),
        ("batch_size: 0x10", "--batch_size: '0x10' is not a whole number; write one such as 4."),
        ("epochs: .inf", "--epochs: '.inf' is not a number"),
        ("flips: yes", "--flips: 'yes' is not valid; choose from 0, 1."),
        ("flips: true", "--flips: 'true' is not valid; choose from 0, 1."),
        ("[]", ""),
        ("- lr", "contains no settings; write one NAME: VALUE"),
        ("3: 4", "contains no settings; write one NAME: VALUE"),
    ],
)
def test_a_recipe_is_read_as_the_command_line_is(
    recipe: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    if said:
        assert said in refusal("train", [*TRAIN, f"--config={tmp_path / 'recipe.yaml'}"], capsys)
        if recipe[0].isalpha():
            assert said in refusal("train", [*TRAIN, "--{}={}".format(*recipe.split(": "))], capsys)
    else:
        assert command_line.parse("train", [*TRAIN, f"--config={tmp_path / 'recipe.yaml'}"]) == command_line.parse(
            "train", TRAIN
        )


def test_what_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe")
    assert "it is not UTF-8 text" in refusal("train", [*TRAIN, f"--config={tmp_path / 'recipe.yaml'}"], capsys)
    assert "cannot be read: Is a directory" in refusal("train", [*TRAIN, f"--config={tmp_path}"], capsys)
    assert "--config needs a file" in refusal("train", [*TRAIN, "--config"], capsys)


def test_the_settings_of_a_run_are_read_as_they_were_written(tmp_path: Path) -> None:
    words = ["--lr=1e-05", "--target=on", "--wandb_project=010", "--wandb=offline", "--clip_grad=null"]
    (tmp_path / CONFIG).write_text(dump(command_line.parse("train", [*TRAIN, *words])))
    assert stored_config(tmp_path) == read_yaml((tmp_path / CONFIG).read_text())
    assert (stored_config(tmp_path)["target"], stored_config(tmp_path)["wandb_project"]) == ("on", "010")
