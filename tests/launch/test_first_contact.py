"""Typical mistakes of a first hour: each is answered in one line that a newcomer can act on, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from deeplense.files import write_json
from launch.__main__ import main

ANSWER = """
import sys
from launch.__main__ import main
try:
    main(sys.argv[1:])
finally:
    print("torch" in sys.modules)
"""
TRAIN = ["train", "--run=runs/x", "--dataset=data/m3"]
MISTAKES = {
    "nothing is given": (["train"], "give --run and --dataset; --help explains them."),
    "the data set is misspelt": (["train", "--run=r", "--dataset=data/m4"], "Did you mean data/m3?"),
    "a split is given": (
        ["train", "--run=r", "--dataset=data/m3/train"],
        "is one split of a data set; give the data set",
    ),
    "a job is misspelt": (["trian", "--run=r"], "unknown job 'trian'. Did you mean train?"),
    "a setting is misspelt": ([*TRAIN, "--epohs=3"], "unknown setting 'epohs'. Did you mean epochs"),
    "a choice is misspelt": ([*TRAIN, "--optimizer=adma"], "choose from adamw, sgd, adam, lamb. Did you mean adam?"),
    "a choice is unknown": ([*TRAIN, "--precision=fp8"], "choose from fp32, bf16, fp16."),
    "a number is a word": ([*TRAIN, "--lr=abc"], "--lr: 'abc' is not a number; write one such as 1.5 or 1e-3."),
    "a switch is a word": ([*TRAIN, "--flips=yes"], "--flips: 'yes' is not valid; choose from 0, 1."),
    "processes are asked for behind the job": ([*TRAIN, "--num_processes", "2"], "stands before the job"),
    "a recipe is misspelt": ([*TRAIN, "--config=clasify_model_iii"], "Did you mean classify_model_iii?"),
    "a recipe is unknown": ([*TRAIN, "--config=xyz.yaml"], "is neither a file nor a recipe of deeplense. Recipes of"),
    "a run is missing": (["evaluate", "--run=runs/nope"], "runs/nope is neither a run folder nor"),
    "a run stands alone": (["evaluate", "data/m3"], "Did you mean --run data/m3?"),
    "a backbone is missing": (
        ["finetune", "--backbone=runs/d", "--dataset=data/m3", "--run=r"],
        "does not exist; give a run",
    ),
    "a cluster is not named": (["submit", *TRAIN], "deeplense submit: give --on; --help explains it."),
    "a survey is unknown": (
        ["simulate", "--output=o", "--model=Model_IV"],
        "choose from Model_I, Model_II, Model_III.",
    ),
}


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_in_one_line(
    words: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "data" / "m3" / "train").mkdir(parents=True)
    write_json(here / "data" / "m3" / "train" / "manifest.json", {})
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert told in said.err
    assert said.err.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == ["data"]


@pytest.mark.parametrize(
    "words",
    [["train", "--run=r", "--dataset=nowhere"], ["evaluate", "--run=nowhere"], ["--version"], ["train", "--help"]],
)
def test_torch_is_not_imported_for_an_answer(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ANSWER, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize(
    "name", ["classify_model_iii", "classify_model_iii.yaml", "jobs/recipes/classify_model_iii.yaml"]
)
def test_a_recipe_is_found_by_its_name_from_anywhere(name: str, here: Path) -> None:
    from jobs.command_line import find_recipe, parse

    assert find_recipe(name).name == "classify_model_iii.yaml"
    assert parse("train", [f"--config={name}", "--run=r", "--dataset=d"]).model_name == "resnet18"
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    (here / name).write_text("model_name: vit_tiny\n")
    assert parse("train", [f"--config={name}", "--run=r", "--dataset=d"]).model_name == "vit_tiny", "a file comes first"


def test_help_lists_basic_settings_first_and_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out
    assert said.startswith(
        "usage: deeplense train [--config RECIPE] --run RUN --dataset DATASET [--setting value ...]\n"
    )
    basic, others = said.partition("basic settings:")[2].split("all other settings:")
    assert all(f"  --{name} " in basic for name in ("run", "dataset", "model_name", "epochs", "lr"))
    assert all(f"  --{name} " in others for name in ("shuffle_window", "keep_checkpoints", "fsdp"))
    assert "Literal" not in said
    assert "null" not in said
