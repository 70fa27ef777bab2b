"""Files of pipelines: which stages follow which, what a job may be written as, and what is refused."""

import itertools
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.commands import OPTIONS
from launch.pipelines.stages import Stage, ranks_of, read_pipeline

KINDS = {name: kind for name, (kind, _) in OPTIONS.items()}
SIMULATE = "simulate --output data/m3 --split train"
TRAIN = "train --dataset data/m3 --run runs/first"


def stages_of(folder: Path, stages: Any) -> dict[str, Stage]:
    """The stages of a file, in their order."""
    path = folder / "file.yaml"
    path.write_text(yaml.safe_dump(stages, sort_keys=False))
    return {stage.name: stage for stage in read_pipeline(path, KINDS)}


def parents(folder: Path, **jobs: Any) -> dict[str, set[str]]:
    """Which stages each stage follows."""
    stages = {name: job if isinstance(job, dict) and "job" in job else {"job": job} for name, job in jobs.items()}
    return {name: set(stage.parents) for name, stage in stages_of(folder, stages).items()}


def test_stages_follow_those_whose_results_they_name(tmp_path: Path) -> None:
    found = parents(
        tmp_path,
        compared="compare runs/first runs/second --output page.html",
        page="candidates table --output page",
        table="predict --run runs/first,runs/second --dataset data/m3 --split test --output table",
        report="evaluate --run runs/first",
        other="evaluate --run runs/second --output there",
        first=TRAIN,
        second="train --dataset m3 --data_root data --run runs/second --init_from runs/first",
        held_out="simulate --output data/m3 --split test",
        images=SIMULATE,
    )
    assert found == {
        "images": set(),
        "held_out": set(),
        "first": {"images"},
        "second": {"images", "first"},
        "report": {"first", "held_out"},
        "other": {"second", "held_out"},
        "table": {"first", "second", "held_out", "images"},
        "page": {"table"},
        "compared": {"first", "second", "report"},
    }
    assert list(found).index("images") < list(found).index("first") < list(found).index("second")


def test_a_pattern_of_runs_follows_all_runs_that_it_matches(tmp_path: Path) -> None:
    folds = {f"fold{k}": f"train --dataset d --run runs/fold-{k} --num_folds 3 --fold {k}" for k in range(3)}
    found = parents(tmp_path, pooled="evaluate --run 'runs/fold-*'", other=TRAIN, **folds)
    assert found["pooled"] == set(folds)


def test_a_new_test_set_is_no_reason_to_train_again(tmp_path: Path) -> None:
    before = parents(tmp_path, images=SIMULATE, train=TRAIN)
    after = parents(tmp_path, images=SIMULATE, train=TRAIN, held="simulate --output data/m3 --split test")
    assert before["train"] == after["train"] == {"images"}


def test_a_pretrained_backbone_and_generated_images_are_followed(tmp_path: Path) -> None:
    found = parents(
        tmp_path,
        pretrain="pretrain --dataset data/m3 --run runs/dino",
        finetune="finetune --backbone runs/dino --dataset data/m3 --run runs/tuned",
        diffuse="diffuse --dataset data/m3 --run runs/ddpm",
        sample="sample --run runs/ddpm --output made --num_images 8",
        compare="evaluate --generated made --dataset data/m3 --run runs/dino",
        images=SIMULATE,
    )
    assert found["finetune"] == {"pretrain", "images"}
    assert found["sample"] == {"diffuse"}
    assert found["compare"] == {"sample", "pretrain", "images"}


def test_an_old_result_is_moved_out_of_what_is_read_as_a_whole(tmp_path: Path) -> None:
    jobs = {
        "images": SIMULATE,
        "train": TRAIN,
        "report": "evaluate --run runs/first",
        "own": "evaluate --run r --output o",
    }
    stages = stages_of(tmp_path, {name: {"job": job} for name, job in jobs.items()})
    moved = {name: str(stage.aside(stage.results[0], "old").relative_to(Path.cwd())) for name, stage in stages.items()}
    assert moved == {
        "images": "data/old/m3/train",
        "train": "runs/old/first",
        "report": "runs/old/first/report",
        "own": "old/o",
    }


def test_after_adds_to_what_is_found(tmp_path: Path) -> None:
    found = parents(tmp_path, images=SIMULATE, check={"job": "models", "after": "images"}, train=TRAIN)
    assert found == {"images": set(), "check": {"images"}, "train": {"images"}}


WORDS = ["train", "--dataset", "data/m3", "--run=runs/a b", "--epochs", "2"]
MAPPING = {"train": {"dataset": "data/m3", "run": "runs/a b", "epochs": 2}}


@pytest.mark.parametrize("job", [shlex.join(WORDS), WORDS, MAPPING])
def test_a_job_is_the_same_as_text_as_words_and_as_a_mapping(job: Any, tmp_path: Path) -> None:
    (stage,) = stages_of(tmp_path, {"train": {"job": job}}).values()
    assert (stage.settings.epochs, stage.settings.run) == (2.0, Path("runs/a b"))
    assert stage.results == [Path.cwd() / "runs/a b"]


def test_values_of_a_mapping_may_be_lists_switches_and_places(tmp_path: Path) -> None:
    stages = stages_of(
        tmp_path,
        {
            "a": {"job": {"train": {"dataset": ["x", "y"], "run": "r", "clip_grad": None}}},
            "b": {"job": {"plot": {"runs": ["r", "s"], "output": "c.png"}}},
            "c": {"job": {"verify": {"folder": "x", "near": True}}},
            "d": {"job": {"benchmark models": {"output": "t", "datasets": "x", "models": ["resnet18", "vit"]}}},
        },
    )
    assert stages["a"].settings.dataset == "x,y"
    assert stages["b"].settings.runs == ["r", "s"]
    assert (stages["c"].settings.folder, stages["c"].settings.near) == (Path("x"), 1)
    assert stages["d"].verb == "benchmark models"


def test_options_of_a_cluster_are_kept(tmp_path: Path) -> None:
    given = {"job": SIMULATE, "hours": 2, "nodes": 3, "partition": "gpu", "parts": 4, "on": "there"}
    (stage,) = stages_of(tmp_path, {"a": given}).values()
    assert dict(stage.options) == {"hours": 2, "nodes": 3, "partition": "gpu"}
    assert (stage.parts, stage.on) == (4, "there")


WRONG: dict[str, tuple[Any, str]] = {
    "no mapping": (["a"], "not a mapping of stages"),
    "empty": ({}, "not a mapping of stages"),
    "a name": ({"a b": {"job": SIMULATE}}, "stage 'a b': the name is invalid"),
    "no stage": ({"a": "simulate"}, "stage a: 'simulate' is not a stage"),
    "no job": ({"a": {"hours": 2}}, "stage a: it has no job; write NAME:"),
    "unknown key": ({"a": {"job": SIMULATE, "hour": 2}}, "stage a: unknown key 'hour'. Did you mean hours?"),
    "unknown job": ({"a": {"job": "tran --run a"}}, "unknown job 'tran'. Did you mean train?"),
    "unknown setting": ({"a": {"job": f"{TRAIN} --epohs 2"}}, "stage a: train: unknown setting 'epohs'. Did you mean"),
    "bad value": ({"a": {"job": f"{SIMULATE} --num_per_class x"}}, "stage a: simulate: --num_per_class: 'x' is not"),
    "help": ({"a": {"job": "train --help"}}, "stage a: train: a stage needs settings, not --help"),
    "empty job": ({"a": {"job": ""}}, "stage a: job is empty"),
    "number": ({"a": {"job": 3}}, "stage a: job: 3 is not a job"),
    "quotation": ({"a": {"job": "train --run 'a"}}, "open quotation; close it"),
    "two jobs": ({"a": {"job": {"train": {}, "pack": {}}}}, "is not a job; write the words"),
    "list of settings": ({"a": {"job": {"train": [1]}}}, "train: [1] is not a mapping of settings"),
    "hours": ({"a": {"job": SIMULATE, "hours": "two"}}, "stage a: hours: 'two' is not a number"),
    "on": ({"a": {"job": SIMULATE, "on": 3}}, "stage a: on: 3 is not the name of a cluster"),
    "parts of a training": ({"a": {"job": TRAIN, "parts": 2}}, "stage a: train cannot be split"),
    "no parts": ({"a": {"job": SIMULATE, "parts": 0}}, "stage a: parts: 0 is not a number of tasks"),
    "one part": ({"a": {"job": f"{SIMULATE} --part 1/2"}}, "leave out --part, and write parts: N"),
    "after nothing": ({"a": {"job": SIMULATE, "after": ["b"]}}, "stage a: after names 'b', which is no stage"),
    "after a number": ({"a": {"job": SIMULATE, "after": 3}}, "stage a: after: 3 is not a list of stages"),
    "same result": ({"a": {"job": TRAIN}, "b": {"job": TRAIN}}, "stages a and b both write"),
    "circle": (
        {"a": {"job": SIMULATE, "after": ["b"]}, "b": {"job": TRAIN}},
        "stages wait for one another: ",
    ),
    "itself": ({"a": {"job": SIMULATE, "after": ["a"]}}, "stages wait for one another: a -> a"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_by_name_and_with_what_to_do(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, message = WRONG[name]
    with pytest.raises(ValueError, match=r"file\.yaml: ") as refused:
        stages_of(tmp_path, stages)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().err == ""


def test_the_example_of_the_documentation_is_a_pipeline() -> None:
    stages = read_pipeline(Path(__file__).parents[2] / "docs" / "examples" / "model_iii.yaml", KINDS)
    assert {stage.name: set(stage.parents) for stage in stages} == {
        "images": set(),
        "test-images": set(),
        "pretrain": {"images"},
        "finetune": {"images", "test-images", "pretrain"},
        "scratch": {"images"},
        "report": {"scratch", "test-images"},
        "compared": {"scratch", "finetune", "report"},
    }


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(6)), st.data())
def test_each_stage_comes_after_its_parents_and_otherwise_in_the_order_of_the_file(
    order: list[int], data: st.DataObject
) -> None:
    pairs = [pair for pair in itertools.combinations(range(6), 2) if data.draw(st.booleans())]
    graph = {str(k): [str(a) for a, b in pairs if b == k] for k in order}
    ranks = ranks_of(graph)
    assert sorted(ranks.values()) == list(range(6))
    assert all(ranks[parent] < ranks[name] for name, found in graph.items() for parent in found)
    if not pairs:
        assert sorted(ranks, key=ranks.__getitem__) == list(map(str, order))
