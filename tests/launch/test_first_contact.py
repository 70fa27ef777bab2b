"""Typical mistakes of a first hour: each is answered in one line that a newcomer can act on, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deeplense.files import write_json
from jobs.command_line import parse
from jobs.runs.attempts import begin_attempt
from jobs.settings import dump
from launch import first_checks
from launch.__main__ import main

ANSWERS = """
import json, sys
from launch.__main__ import main
for name, words in json.loads(sys.argv[1]).items():
    try:
        main(words)
    except SystemExit:
        pass
    assert "torch" not in sys.modules, name
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
    "a decimal comma": ([*TRAIN, "--lr=0,001"], "--lr: '0,001' is not a number; write one such as 1.5 or 1e-3."),
    "a recipe is no YAML": ([*TRAIN, "--config=notes.yaml"], "notes.yaml contains no settings; write one NAME: VALUE"),
    "a cluster is unknown": (["submit", "--on=gpuu", *TRAIN], "unknown cluster 'gpuu'. Known names: local"),
    "no job is submitted": (["submit", "--on=local"], "no job was given; add one at the end of the command"),
    "a batch is too large": ([*TRAIN, "--batch_size=500"], "batch_size=500 exceeds the 42 images of the split train"),
    "a batch is too small": (
        ["--num_processes=2", *TRAIN, "--batch_size=1"],
        "batch_size=1 is too small for 2 ranks, as each part needs at least one sample; use 2 or more, or at most 1 "
        "rank.",
    ),
    "a target is misspelt": ([*TRAIN, "--target=thetaE"], "has no target 'thetaE'; its targets: theta_E. Did you mean"),
    "a number is negative": ([*TRAIN, "--epochs=-1"], "epochs=-1.0 must be above 0."),
    "a file of weights is missing": (
        [*TRAIN, "--pretrained=1", "--pretrained_file=nope.pt"],
        "pretrained_file=nope.pt is not a file; correct the path.",
    ),
    "a list of labels is missing": ([*TRAIN, "--label_file=nope.txt"], "label_file=nope.txt is not a file"),
    "a run to start from is missing": ([*TRAIN, "--init_from=runs/no"], "init_from=runs/no does not exist; give a run"),
    "a run to lengthen is missing": (
        [*TRAIN, "--lengthen=runs/no"],
        "lengthen=runs/no does not exist; give a finished",
    ),
    "a setting has no effect": (
        [*TRAIN, "--gamma=0.1"],
        "--gamma has an effect only with --schedule step; leave it out",
    ),
    "a run has other settings": (
        ["train", "--run=runs/begun", "--dataset=data/m3", "--lr=0.5"],
        "was started with other settings: lr=0.5 (the run has 0.0003). Give the settings of the run to resume it",
    ),
    "a split is missing": (
        ["evaluate", "--run=runs/begun", "--split=val"],
        "data/m3 has no split 'val'; it has train.",
    ),
    "no run is there": (["status", "nowhere"], "no run found in or below nowhere; start one with"),
    "a survey is unknown": (
        ["simulate", "--output=o", "--model=Model_IV"],
        "choose from Model_I, Model_II, Model_III.",
    ),
}


def make_home(folder: Path) -> None:
    """What the commands above name rightly: a data set by its manifest, a run that has begun, and notes."""
    (folder / "data" / "m3" / "train").mkdir(parents=True)
    schema = {"num_samples": 42, "targets": {"theta_E": "arcsec"}}
    write_json(folder / "data" / "m3" / "train" / "manifest.json", {"schema": schema})
    (folder / "notes.yaml").write_text("just words\n")
    run = folder / "runs" / "begun"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump(parse("train", ["--run=runs/begun", "--dataset=data/m3"])))
    (run / "attempts.jsonl").write_text("")
    begin_attempt(run, first_step=0, num_processes=1)


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_in_one_line(
    words: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_home(here)
    before = sorted(here.rglob("*"))
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert told in said.err
    assert said.err.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_torch_is_not_imported_for_an_answer(here: Path) -> None:
    make_home(here)
    # Which settings a run has is also looked up in its checkpoints.
    commands = {name: words for name, (words, _) in MISTAKES.items() if name != "a run has other settings"}
    commands |= {"version": ["--version"], "help": ["train", "--help"]}
    done = subprocess.run([sys.executable, "-c", ANSWERS, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_groups_are_no_target_as_in_the_library(here: Path) -> None:
    from deeplense.data import shards

    assert first_checks.GROUP == shards.GROUP
    make_home(here)
    schema = {"num_samples": 42, "targets": {shards.GROUP: "", "theta_E": "arcsec"}}
    write_json(here / "data" / "m3" / "train" / "manifest.json", {"schema": schema})
    with pytest.raises(ValueError, match=r"no target 'group'; its targets: theta_E\."):
        first_checks.refuse_unfit(here / "data" / "m3", {"target": "group"})


@pytest.mark.parametrize(
    "name", ["classify_model_iii", "classify_model_iii.yaml", "jobs/recipes/classify_model_iii.yaml"]
)
def test_a_recipe_is_found_by_its_name_from_anywhere(name: str, here: Path) -> None:
    from jobs.command_line import find_recipe

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
