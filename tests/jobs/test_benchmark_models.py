"""Many models in one table: made from what is finished, continued after every stop, and the same each time."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_blobs
from forked import Forked, StopAtStepTwo

from deeplense.data.dataset import Split
from jobs import command_line, processes
from jobs.benchmark_models import page as models_page
from jobs.benchmark_models import plan as models_plan
from jobs.benchmark_models.page import further_columns
from jobs.processes import Command
from jobs.runs.attempts import EXIT_REFUSED, EXIT_STOPPED, FOLDER, NUMBER, open_attempt, read_attempts
from jobs.trials import queue
from launch.__main__ import main

MODELS = ("simple_cnn", "test_resnet")
LEARNING = ("--batch_size=16", "--epochs=1", "--device=cpu", "--log_interval=1")


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands come from the fork server; the list of what was started."""
    monkeypatch.setattr(processes, "start", Forked)
    monkeypatch.setattr(Forked, "started", [])
    return Forked.started


def words(
    output: Path, *datasets: Path, models: str = ",".join(MODELS), seeds: str = "0:2", more: tuple[str, ...] = ()
) -> list[str]:
    """The command line of a table."""
    given = [
        f"--models={models}",
        f"--datasets={','.join(map(str, datasets))}",
        f"--seeds={seeds}",
        f"--output={output}",
    ]
    return ["benchmark", "models", *given, *LEARNING, *more]


@pytest.fixture(scope="module")
def made(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of two models with two seeds."""
    output = tmp_path_factory.mktemp("table") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "start", Forked)
        assert main(words(output, dataset)) == 0
    return output


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def table(output: Path) -> list[dict[str, Any]]:
    """The rows, without how long the trainings took."""
    rows = json.loads((output / "table.json").read_text())["rows"]
    return [row | {"train_seconds": row["train_seconds"] is not None} for row in rows]


def report(output: Path, name: str) -> dict[str, float]:
    """What the evaluation of a run says."""
    metrics = json.loads((output / "runs" / name / "report" / "report.json").read_text())["metrics"]
    return {key: value["value"] for key, value in metrics.items()}


def test_each_number_is_the_mean_of_the_evaluations_of_all_seeds(made: Path, dataset: Path) -> None:
    rows = table(made)
    assert {row["model"] for row in rows} == set(MODELS)
    for row in rows:
        evaluated = [report(made, f"{row['model']}-{dataset.name}-{seed}") for seed in (0, 1)]
        for name in ("auc_left", "auc_right", "auc_middle", "auc_macro", "accuracy"):
            found = row["metrics"][name]
            assert found["value"] == pytest.approx(np.mean([each[name] for each in evaluated]))
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
        assert row["seeds"] == [0, 1]
        assert row["num_images"] == 45
        assert row["above_chance"] == (row["metrics"]["auc_macro"]["low"] > 0.5)
        assert row["problem"] == ""
        assert row["train_seconds"]


def test_the_best_comes_first_and_the_others_tell_how_far_they_are_from_it(made: Path) -> None:
    best, other = table(made)
    assert (best["best"], other["best"]) == (True, False)
    assert best["difference"] is None
    first, second = (row["metrics"]["auc_macro"]["value"] for row in (best, other))
    assert other["difference"]["value"] == pytest.approx(second - first)
    assert other["difference"]["value"] <= 0


def test_what_a_model_costs_is_in_its_row(made: Path) -> None:
    import timm

    (row,) = [row for row in table(made) if row["model"] == "test_resnet"]
    bare = timm.create_model("test_resnet", in_chans=1, num_classes=3)
    assert row["costs"]["parameters"] == sum(parameter.numel() for parameter in bare.parameters())
    assert row["costs"]["images_per_s"] > 0
    assert row["costs"]["peak_memory_mb"] > 100
    assert row["costs"]["device"].endswith("1 threads")
    assert {path.name for path in (made / "costs").iterdir()} == {
        f"{row['model']}-{row['dataset']}.json" for row in table(made)
    }


@pytest.mark.usefixtures("drawn_figures")
def test_the_table_is_the_same_in_all_its_forms(copy: Path, capsys: pytest.CaptureFixture[str], dataset: Path) -> None:
    lines = list(csv.DictReader((copy / "table.csv").read_text().splitlines()))
    assert main(words(copy, dataset)) == 0
    page = (copy / "index.html").read_text()
    said = capsys.readouterr().out
    for line, row in zip(lines, table(copy), strict=True):
        assert line["model"] == row["model"]
        for name, found in row["metrics"].items():
            ends = [found[key] for key in ("value", "low", "high")]
            assert [float(line[f"{name}{end}"]) for end in ("", "_low", "_high")] == pytest.approx(ends)
            assert f"{found['value']:.4f}" in page
        assert f"{row['model']}" in said
        assert f"{row['metrics']['auc_macro']['value']:.4f} [" in said
    assert page.count("data:image/png;base64,") == 1
    assert "http" not in page


def test_a_second_time_nothing_is_done_and_the_table_is_the_same(copy: Path, dataset: Path, forked: list[str]) -> None:
    before = (copy / "table.json").read_bytes(), (copy / "table.csv").read_bytes(), (copy / "index.html").read_bytes()
    for name in ("table.json", "table.csv", "index.html"):
        (copy / name).unlink()
    assert main(words(copy, dataset)) == 0
    assert forked == []
    assert before == (
        (copy / "table.json").read_bytes(),
        (copy / "table.csv").read_bytes(),
        (copy / "index.html").read_bytes(),
    )


def test_only_what_is_missing_is_done(copy: Path, dataset: Path, forked: list[str]) -> None:
    before = table(copy)
    shutil.rmtree(copy / "runs" / f"simple_cnn-{dataset.name}-1")
    shutil.rmtree(copy / "runs" / f"test_resnet-{dataset.name}-0" / "report")
    assert main(words(copy, dataset)) == 0
    assert forked == ["jobs train", "jobs evaluate", "jobs evaluate"]
    assert table(copy) == before


def test_a_signal_saves_the_training_and_the_same_command_continues_to_the_same_table(
    copy: Path, dataset: Path, forked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run = table(copy), copy / "runs" / f"simple_cnn-{dataset.name}-0"
    shutil.rmtree(run)
    shutil.rmtree(copy / "runs" / f"test_resnet-{dataset.name}-0")
    hook = StopAtStepTwo(os.getpid())
    with monkeypatch.context() as patch:
        patch.setattr(processes, "start", lambda command, environment: Forked(command, environment, hook))
        assert main(words(copy, dataset)) == EXIT_STOPPED
    assert forked == ["jobs train"]
    (attempt,) = read_attempts(run)
    assert (attempt["ended"], attempt["last_step"]) == ("stopped by SIGTERM", 2)
    assert {row["problem"] for row in table(copy)} == {"seed 0: stopped by SIGTERM", "seed 0: not started"}
    assert main(words(copy, dataset)) == 0
    assert forked[1:] == ["jobs train", "jobs evaluate"] * 2
    assert [(each["first_step"], each["ended"]) for each in read_attempts(run)] == [
        (0, "stopped by SIGTERM"),
        (2, "finished"),
    ]
    assert table(copy) == before


def test_a_training_that_fails_is_a_row_with_its_reason_and_the_others_go_on(
    copy: Path, dataset: Path, tmp_path: Path, forked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, recipe = table(copy), tmp_path / "recipe.yaml"
    recipe.write_text("lr: 1.0e+30\n")
    shutil.rmtree(copy / "runs" / f"test_resnet-{dataset.name}-1")
    with monkeypatch.context() as patch:
        own, of_others = {"test_efficientnet": recipe}, models_plan.recipe_of
        patch.setattr(models_plan, "recipe_of", lambda model: own.get(model) or of_others(model))
        given = words(copy, dataset, models="test_efficientnet,simple_cnn,test_resnet")
        assert main(given) == 1
        assert table(copy)[:2] == before
        failed = table(copy)[2]
        assert failed["metrics"] == {}
        assert failed["problem"].startswith("seed 0: diverged: the loss is nan at step")
        assert "seed 1: diverged: the loss is" in failed["problem"]
        assert "the loss is nan" in (copy / "index.html").read_text()
        assert main(given) == 1
    assert forked.count("jobs train") == 2 + 1 + 2


def test_a_training_that_is_refused_tells_what_it_said(copy: Path, dataset: Path, forked: list[str]) -> None:
    shutil.rmtree(copy / "runs")
    assert main(words(copy, dataset, models="simple_cnn", seeds="0", more=("--batch_size=512",))) == 1
    (row,) = table(copy)
    assert row["problem"].startswith("seed 0: error: exit code 2: batch_size=512 exceeds the")
    assert row["metrics"] == {}


def test_an_evaluation_that_fails_is_told_and_made_again(
    copy: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run = table(copy), copy / "runs" / f"simple_cnn-{dataset.name}-1"
    shutil.rmtree(run / "report")
    (best,) = (run / "checkpoints").glob("best_*")
    shutil.move(best, copy / "aside")
    assert main(words(copy, dataset)) == 1
    (row,) = [row for row in table(copy) if row["model"] == "simple_cnn"]
    assert row["problem"].startswith("seed 1: error: evaluate: exit code 2:")
    assert "has no intact checkpoint of its best weights yet" in row["problem"]
    assert row["seeds"] == [0]
    shutil.move(copy / "aside", best)
    assert main(words(copy, dataset)) == 0
    assert table(copy) == before


def test_predictions_of_other_images_are_not_taken_for_those_of_the_test_set(
    copy: Path, dataset: Path, forked: list[str]
) -> None:
    before, path = table(copy), copy / "runs" / f"simple_cnn-{dataset.name}-0" / "report" / "predictions.npz"
    stored: dict[str, Any] = dict(np.load(path)) | {"dataset_id": np.array("another")}
    np.savez(path, **stored)
    assert main(words(copy, dataset)) == 0
    assert forked == ["jobs evaluate"]
    assert table(copy) == before


def test_the_folds_of_a_seed_are_evaluated_together(dataset: Path, tmp_path: Path, forked: list[str]) -> None:
    more = ("--num_folds=2",)
    assert main(words(tmp_path / "out", dataset, models="simple_cnn", seeds="3", more=more)) == 0
    assert forked == ["measure", "jobs train", "jobs train", "jobs evaluate"]
    (row,) = table(tmp_path / "out")
    assert (row["seeds"], row["num_images"]) == ([3], len(Split(dataset / "train")))
    with np.load(
        tmp_path / "out" / "runs" / f"simple_cnn-{dataset.name}-3-fold0" / "report" / "predictions.npz"
    ) as stored:
        assert sorted(stored["indices"]) == list(range(96))
    assert "covers the test images only" in (tmp_path / "out" / "index.html").read_text()


def test_a_data_set_without_a_test_split_is_cross_validated(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset / "train", tmp_path / "data" / "train")
    plan = make_plan(words(tmp_path / "out", tmp_path / "data", models="simple_cnn", seeds="0"))
    assert [one.settings.fold for trial in plan for one in trial.trainings] == [0, 1, 2, 3, 4]
    assert {one.settings.num_folds for trial in plan for one in trial.trainings} == {5}


def test_what_is_added_is_learnt_from_in_as_many_updates_and_its_change_told(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_blobs(tmp_path / "more", "train", 48)
    both, output = f"{dataset}+{tmp_path / 'more'}", tmp_path / "out"
    asked = words(output, dataset, Path(both), models="simple_cnn", more=("--warmup_epochs=0.6",))
    assert main(asked) == 0
    alone, added = table(output)
    assert (alone["dataset"], added["dataset"]) == (dataset.name, f"{dataset.name}+more")
    assert alone["change"] is None
    assert alone["num_images"] == added["num_images"] == 45
    change = added["metrics"]["auc_macro"]["value"] - alone["metrics"]["auc_macro"]["value"]
    assert added["change"]["value"] == pytest.approx(change)
    assert added["change"]["low"] <= change <= added["change"]["high"]
    assert "change by added data: " in capsys.readouterr().out
    for seed in (0, 1):
        steps = {
            read_attempts(output / "runs" / f"simple_cnn-{row['dataset']}-{seed}")[-1]["last_step"]
            for row in table(output)
        }
        assert len(steps) == 1
    settings = command_line.parse(
        "train", [f"--config={output / 'runs' / f'simple_cnn-{dataset.name}+more-0' / 'config.yaml'}"]
    )
    assert settings.epochs == pytest.approx(2 / 3)
    assert settings.warmup_epochs == pytest.approx(0.4)


def test_nothing_is_added_to_what_is_cross_validated(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_blobs(tmp_path / "more", "train", 48)
    assert main(words(tmp_path / "out", Path(f"{tmp_path / 'more'}+{dataset}"))) == EXIT_REFUSED
    assert "data cannot be added to a data set that is tested by folds" in capsys.readouterr().err


def test_a_number_is_learnt_and_held_against_guessing(dataset: Path, tmp_path: Path) -> None:
    more = ("--target=column",)
    assert main(words(tmp_path / "out", dataset, models="simple_cnn", seeds="0", more=more)) == 0
    (row,) = table(tmp_path / "out")
    told = {name: row["metrics"][name]["value"] for name in ("mae", "mae_chance", "gain")}
    assert told["mae"] == pytest.approx(report(tmp_path / "out", f"simple_cnn-{dataset.name}-0")["mae"])
    assert told["gain"] == pytest.approx(told["mae_chance"] - told["mae"])
    assert row["above_chance"] == (row["metrics"]["gain"]["low"] > 0)
    assert row["num_images"] == 30, "those of which the number is known"


def make_plan(line: list[str]) -> list[models_plan.Trial]:
    """The plan of a command line."""
    return models_plan.make_plan(command_line.parse("benchmark models", line[2:]))


def test_the_recipe_of_a_model_is_used_and_what_is_given_goes_over_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: 0.5\nepochs: 77\n")
    monkeypatch.setattr(models_plan, "recipe_of", lambda model: recipe if model == "simple_cnn" else None)
    plan = make_plan(words(tmp_path, dataset, seeds="0"))
    found = {trial.model: trial.trainings[0].settings for trial in plan}
    assert (found["simple_cnn"].lr, found["test_resnet"].lr) == (0.5, 3e-4)
    assert {settings.epochs for settings in found.values()} == {1}
    assert {settings.batch_size for settings in found.values()} == {16}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"models": "resnet81"}, "unknown model 'resnet81'. Nearest: resnet18"),
        ({"models": "simple_cn"}, "unknown model 'simple_cn'. Nearest: simple_cnn"),
        ({"models": ","}, "models is empty"),
        ({"models": "resnet18,resnet18"}, "has resnet18 twice"),
        ({"seeds": ""}, "seeds='' contains none"),
        ({"seeds": "3:3"}, "seeds='3:3' contains none"),
        ({"seeds": "a"}, "'a' must be a number"),
        ({"datasets": "nowhere"}, "no such data set 'nowhere'"),
        ({"at_once": "0"}, "at_once=0 must be above 0"),
        ({"only": "simple_cnn-blobs-7"}, "is not one of 2 runs. Did you mean simple_cnn-"),
        ({"target": "mass"}, "has no target 'mass'; its targets: column."),
        ({"lr": "-1"}, "lr=-1.0 must be above 0"),
        ({"epohs": "1"}, "unknown setting 'epohs'. Did you mean epochs"),
        ({"fold": "1"}, "unknown setting 'fold'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_trained(
    given: dict[str, str],
    said: str,
    dataset: Path,
    tmp_path: Path,
    forked: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"models": "simple_cnn", "datasets": str(dataset), "output": str(tmp_path / "out"), "seeds": "0:2"} | given
    try:
        code = main(["benchmark", "models", *(f"--{name}={value}" for name, value in values.items())])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert said in capsys.readouterr().err
    assert forked == []
    assert not (tmp_path / "out").exists()


def test_two_data_sets_of_the_same_name_are_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dataset, tmp_path / "there" / dataset.name)
    assert main(words(tmp_path / "out", dataset, tmp_path / "there" / dataset.name)) == 2
    assert "have the same name; rename a folder" in capsys.readouterr().err


def test_other_settings_than_those_of_runs_that_were_begun_are_refused(
    copy: Path, dataset: Path, forked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(copy, dataset, more=("--lr=0.1",))) == 2
    assert "was started with other settings: lr=0.1" in capsys.readouterr().err
    assert forked == []


def test_the_seeds_are_numbers_and_ranges_each_once() -> None:
    line = ["--models=a", "--datasets=b", "--output=c", "--seeds"]
    assert command_line.parse("benchmark models", [*line, "0:3"]).all_seeds == [0, 1, 2]
    assert command_line.parse("benchmark models", [*line, "7, 1:3,2"]).all_seeds == [7, 1, 2]


def test_an_element_of_an_array_does_its_run_as_its_own_attempt(
    copy: Path, dataset: Path, forked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run = table(copy), copy / "runs" / f"simple_cnn-{dataset.name}-1"
    shutil.rmtree(run)
    monkeypatch.setenv(FOLDER, str(run))
    monkeypatch.setenv(NUMBER, str(open_attempt(run)))
    assert main(words(copy, dataset, more=(f"--only={run.name}",))) == 0
    assert forked == ["jobs train", "jobs evaluate"]
    (attempt,) = read_attempts(run)
    assert (attempt["attempt"], attempt["ended"], attempt["first_step"]) == (1, "finished", 0)
    assert table(copy) == before


def test_an_element_that_was_killed_in_its_evaluation_is_not_at_an_end(
    copy: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy / "runs" / f"simple_cnn-{dataset.name}-1"
    shutil.rmtree(run)
    seen = []

    def start(command: Command, environment: dict[str, str]) -> Forked:
        if "evaluate" in command.words:
            seen.append(read_attempts(run)[-1]["ended"])
        return Forked(command, environment)

    monkeypatch.setattr(processes, "start", start)
    assert main(words(copy, dataset, more=(f"--only={run.name}",))) == 0
    assert seen == [None]


def test_the_exit_code_of_an_element_is_that_of_its_training(copy: Path, dataset: Path) -> None:
    name = f"simple_cnn-{dataset.name}-1"
    shutil.rmtree(copy / "runs" / name)
    assert main(words(copy, dataset, more=(f"--only={name}", "--batch_size=16"))) == 0
    shutil.rmtree(copy / "runs")
    assert main(words(copy, dataset, more=(f"--only={name}", "--batch_size=512"))) == 2
    (failed,) = [row for row in table(copy) if row["model"] == "simple_cnn"]
    assert failed["problem"] == "seed 0: not started; seed 1: error: exit code 2"


def test_a_run_that_another_element_finishes_meanwhile_is_in_the_table_of_the_last_to_write(
    copy: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, report = make_plan(words(copy, dataset)), copy / "runs" / f"simple_cnn-{dataset.name}-1" / "report"
    before, aside = table(copy), copy / "aside"
    shutil.move(report, aside)
    make_rows = models_page.make_rows

    def rows_before_the_other_ends(output: Path, trials: list[models_plan.Trial]) -> list[Any]:
        rows = make_rows(output, trials)
        if aside.exists():
            shutil.move(aside, report)
        return rows

    monkeypatch.setattr(models_page, "make_rows", rows_before_the_other_ends)
    models_page.update_table(copy, plan)
    assert table(copy) == before


@pytest.mark.parametrize(
    ("visible", "found", "expected"),
    [("2,5", 8, ["2", "5", "2"]), ("", 2, ["0", "1", "0"]), ("", 0, [None] * 3), ("7", 8, ["7"] * 3)],
)
def test_trainings_side_by_side_share_the_cores_and_take_the_gpus_in_turn(
    visible: str, found: int, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(queue.torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(queue, "num_cores", lambda: 16)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in queue.slots(3)] == expected
    assert {slot["OMP_NUM_THREADS"] for slot in queue.slots(3)} == {"5"}
    assert queue.slots(1) == [{}]


def test_trainings_side_by_side_give_the_same_table(copy: Path, dataset: Path) -> None:
    before = table(copy)
    shutil.rmtree(copy / "runs")
    assert main(words(copy, dataset, more=("--at_once=2",))) == 0
    for row, other in zip(before, table(copy), strict=True):
        assert row["metrics"] == other["metrics"]


def test_a_table_of_many_classes_lists_the_rates_at_one_per_cent_alone() -> None:
    two = ["auc_macro", "auc_lens", "tpr_at_fpr_0.01_lens", "tpr_at_fpr_0.01_other", "tpr_at_fpr_0.001_lens"]
    assert further_columns(dict.fromkeys(two), "auc_macro") == two[1:]
    three = [*two, "tpr_at_fpr_0.01_ring"]
    assert further_columns(dict.fromkeys(three), "auc_macro") == [*two[1:4], "tpr_at_fpr_0.01_ring"]
    assert further_columns(dict.fromkeys(["mae", "mae_chance", "gain"]), "mae") == ["mae_chance"]
