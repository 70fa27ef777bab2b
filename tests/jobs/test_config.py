"""Settings: what is asked for is what is used, and what is wrong is said in one line."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import command_line, conditions, verbs
from jobs.settings import dump, from_plain, plain
from jobs.train.settings import Settings

TRAIN = ["--run", "runs/a", "--dataset", "Model_III"]
LEAST = {
    "simulate": ["--output", "data"],
    "pretrain": TRAIN,
    "pack": ["--layout", "npz", "--source", "stamps.npz", "--output", "data", "--classes", '["lens", "other"]'],
    "verify": ["data"],
    "train": TRAIN,
    "finetune": ["--backbone", "runs/dino", "--run", "runs/a", "--dataset", "Model_III"],
    "diffuse": TRAIN,
    "sample": ["--run", "runs/ddpm", "--output", "data", "--num_images", "10"],
    "predict": ["--run", "runs/a", "--dataset", "data/survey", "--output", "predictions"],
    "evaluate": ["--run", "runs/a"],
    "export": ["runs/a", "--output", "lens.safetensors"],
    "candidates": ["predictions", "--output", "page"],
    "grades": ["anna.csv", "ben.csv"],
    "show": ["data"],
    "plot": ["runs/a", "runs/b"],
    "compare": ["runs/a", "runs/b"],
    "models": ["resnet18"],
    "benchmark": ["train"],
    "benchmark models": ["--models", "resnet18", "--datasets", "Model_III", "--output", "table"],
    "benchmark selection": ["--datasets", "Model_III", "--output", "table"],
    "benchmark labels": ["--backbones", "runs/dino", "--datasets", "Model_III", "--output", "table"],
}
EARLIER = {
    "dataset": "Model_II",
    "model_name": "simple_cnn",
    "complex": 1,
    "pretrained": 1,
    "tune": 0,
    "batch_size": 32,
    "lr": 2e-4,
    "dropout": 0.25,
    "optimizer": "sgd",
    "decay_lr": 1,
    "epochs": 3,
    "random_zoom": 1.5,
    "random_rotation": 90,
    "log_interval": 7,
    "device": "cpu",
    "seed": 5,
}


def refusal(job: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr with which a command line is refused."""
    with pytest.raises(SystemExit) as exit:
        command_line.parse(job, arguments)
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def flags(values: dict[str, Any]) -> list[str]:
    """The command line of these settings."""
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of two settings."""
    path = tmp_path / "recipe.yaml"
    path.write_text("batch_size: 32\nlr: 1e-2\n")
    return path


def test_flags_go_over_the_recipe_and_the_recipe_over_defaults(recipe: Path) -> None:
    for arguments in (["--config", str(recipe), *TRAIN, "--lr", "0.5"], [*TRAIN, "--config", str(recipe), "--lr=0.5"]):
        settings = command_line.parse("train", arguments)
        assert (settings.lr, settings.batch_size, settings.epochs) == (0.5, 32, Settings(run=Path(), dataset="").epochs)


def test_every_setting_of_the_earlier_training_script_works_under_its_name() -> None:
    settings = command_line.parse("train", ["--run", "a", *flags(EARLIER)])
    assert {name: getattr(settings, name) for name in EARLIER} == EARLIER


def test_the_recipes_that_come_with_the_jobs_are_right() -> None:
    for path in Path(command_line.__file__).parent.glob("recipes/*.yaml"):
        asked = yaml.safe_load(path.read_text())
        job = "pretrain" if "method" in asked else "diffuse" if "noise_schedule" in asked else "train"
        settings = command_line.parse(job, ["--config", str(path), *TRAIN])
        assert {name: getattr(settings, name) for name in asked} == asked


MISSPELT = pytest.mark.parametrize(
    ("job", "wrong", "right"),
    [
        ("train", "batchsize", "batch_size"),
        ("train", "model-name", "model_name"),
        ("train", "optimiser", "optimizer"),
        ("simulate", "num_per_clas_", "num_per_class"),
        ("evaluate", "wieghts", "weights"),
        ("benchmark models", "modles", "models"),
        ("benchmark models", "batchsize", "batch_size"),
    ],
)


@MISSPELT
def test_a_misspelt_flag_is_refused_with_the_nearest_right_one(
    job: str, wrong: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(job, [*LEAST[job], f"--{wrong}", "1"], capsys)
    assert line.startswith(f"deeplense {job}: unknown setting '{wrong}'. Did you mean {right}")


@MISSPELT
def test_a_misspelt_setting_of_a_recipe_is_refused_with_the_nearest_right_one(
    job: str, wrong: str, right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{wrong}: 1\n")
    line = refusal(job, ["--config", str(tmp_path / "recipe.yaml"), *LEAST[job]], capsys)
    assert line.startswith(f"deeplense {job}: unknown setting '{wrong}'. Did you mean {right}")


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", "high"), ("batch_size", "3.5"), ("optimizer", "sdg"), ("tune", "2"), ("epochs", "nan"), ("device", "gpu")],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_setting_and_the_value(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{name}: {value}\n")
    for arguments in ([f"--{name}={value}"], [f"--config={tmp_path / 'recipe.yaml'}"]):
        line = refusal("train", [*TRAIN, *arguments], capsys)
        assert name in line
        assert value in line


@pytest.mark.parametrize(
    ("job", "name", "value"),
    [
        *(("train", name, "0") for name in ("batch_size", "epochs", "lr", "evaluate_epochs", "log_interval")),
        *(("train", name, "1") for name in ("dropout", "label_smoothing", "val_fraction", "num_folds", "fold")),
        ("train", "random_zoom", "0.9"),
        ("train", "gradient_accumulation", "-2"),
        ("train", "num_workers", "-1"),
        ("train", "ema_decay", "1.5"),
        ("train", "lr_min", "-0.1"),
        ("train", "weight_decay", "-1"),
        ("train", "clip_grad", "-1"),
        ("evaluate", "batch_size", "0"),
        *(("evaluate", "prevalence", value) for value in ("0", "1", "-0.1", "nan", "2")),
        ("evaluate", "top", "-1"),
        ("evaluate", "survey_size", "1000"),
        ("benchmark", "rounds", "0"),
        ("simulate", "num_per_class", "0"),
        ("simulate", "split", "../train"),
        ("pack", "val_fraction", "1.0"),
        ("pack", "crop", "-4"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_happens(
    job: str, name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name in refusal(job, [*LEAST[job], f"--{name}={value}"], capsys)


@pytest.mark.parametrize(
    "arguments",
    [["--decay_lr=1", "--schedule=cosine"], ["--pretrained_file=weights.safetensors"], ["--fold=3", "--num_folds=3"]],
)
def test_settings_that_contradict_each_other_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal("train", [*TRAIN, *arguments], capsys)
    assert all(argument.removeprefix("--").split("=")[0] in line for argument in arguments)


def test_a_setting_that_has_no_default_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for job, missing in {"train": "run", "verify": "folder", "simulate": "output"}.items():
        assert missing in refusal(job, [], capsys).lower()


def test_a_recipe_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in refusal("train", ["--config=nowhere.yaml", *TRAIN], capsys)


@pytest.mark.parametrize("job", verbs.JOBS)
def test_what_print_config_prints_is_a_recipe_of_the_same_settings(
    job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"train": ["--ema_decay=0.99", "--wandb=off", "--lr=1e-05"], "pack": ["--where", '["kind=1"]']}
    arguments = LEAST[job] + changed.get(job, [])
    with pytest.raises(SystemExit) as exit:
        command_line.parse(job, [*arguments, "--print_config"])
    assert exit.value.code == 0
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out)
    positional = LEAST[job] if job in verbs.POSITIONAL else []
    assert command_line.parse(job, ["--config", str(tmp_path / "recipe.yaml"), *positional]) == command_line.parse(
        job, arguments
    )


@pytest.mark.parametrize("job", verbs.JOBS)
def test_plain_values_go_through_yaml_and_give_the_same_settings(job: str) -> None:
    settings = command_line.parse(job, LEAST[job])
    read = yaml.safe_load(dump(settings))
    assert read == plain(settings)
    assert from_plain(type(settings), read) == settings


def test_plain_values_of_another_version_are_refused_by_name() -> None:
    values = plain(command_line.parse("train", TRAIN)) | {"warp": 9}
    with pytest.raises(ValueError, match="warp"):
        from_plain(Settings, values)


@pytest.mark.parametrize("job", verbs.JOBS)
def test_help_lists_every_setting_with_its_meaning_and_default(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        command_line.parse(job, ["--help"])
    assert exit.value.code == 0
    entries = [" ".join(entry.split()) for entry in re.split(r"^  (?=\S)", capsys.readouterr().out, flags=re.M)]
    kind = verbs.settings_of(job)
    for field in dataclasses.fields(kind):
        if field.name in conditions.borrowed_settings(kind):
            continue
        if verbs.POSITIONAL.get(job) == field.name:
            assert any(field.metadata["help"] in entry for entry in entries)
            continue
        (entry,) = [entry for entry in entries if entry.startswith(f"--{field.name} ")]
        assert len(entry.partition("(")[0].split()) > 2, entry
        if field.default not in (dataclasses.MISSING, None, ""):
            assert f"default: {field.default})" in entry


def test_settings_are_checked_without_loading_torch() -> None:
    code = f"""
import sys
from jobs import command_line
for job, arguments in {LEAST!r}.items():
    command_line.parse(job, arguments)
import jobs.runs.folder, jobs.console, launch.__main__, launch.local
print(*sorted({{"torch", "timm", "accelerate", "wandb", "h5py", "scipy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_an_unknown_job_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean evaluate"):
        verbs.verb_of("evalute")
    with pytest.raises(ValueError, match="Known jobs: simulate"):
        verbs.verb_of("xyzzy")


def test_a_job_of_two_words_is_known_by_both() -> None:
    for words in (["benchmark", "models", "--at_once", "2"], ["benchmark models", "--at_once", "2"]):
        assert verbs.with_joined_name(words) == ["benchmark models", "--at_once", "2"]
    for words in (["benchmark", "data"], ["train", "models"], ["benchmark"], []):
        assert verbs.with_joined_name(words) == words
    with pytest.raises(ValueError, match=r"unknown job 'benchmark modles'\. Did you mean benchmark models"):
        verbs.with_joined_name(["benchmark", "modles"])


def test_settings_of_another_job_are_those_that_were_given(recipe: Path) -> None:
    settings = command_line.parse("benchmark models", [*LEAST["benchmark models"], "--config", str(recipe), "--lr=0.5"])
    assert settings.training == {"batch_size": 32, "lr": 0.5}
    assert command_line.parse("benchmark models", LEAST["benchmark models"]).training == {}


def test_help_lists_the_settings_of_the_other_job(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.parse("benchmark models", ["--help"])
    shown = capsys.readouterr().out
    of_the_table = {"run", "dataset", "model_name", "seed", "fold", "lengthen"}
    names = {field.name for field in dataclasses.fields(Settings)} - of_the_table
    assert [name for name in names if f"\n  --{name} " not in shown] == []
    assert "\n  --fold " not in shown


@pytest.mark.parametrize("sign", ["\n", "\x1b", "\u2028", "\udc80"], ids=ascii)
@pytest.mark.parametrize("setting", ["--run", "--dataset", "--data_root", "--wandb_project"])
def test_a_text_or_path_with_a_control_character_is_refused(
    setting: str, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_line.parse("train", [*TRAIN, f"{setting}=r/y{sign}touch PWN"])
    told = capsys.readouterr().err
    assert "contains the control character" in told
    assert len(told.splitlines()) == 1
