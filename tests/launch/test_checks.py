"""What is told of a job before it is submitted."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import command_line
from launch import slurm
from launch.checks import (
    check_before_submission,
    check_job,
    check_slurm,
    check_sweep,
    folder_notes,
)
from launch.clusters import Cluster
from launch.limits import Site
from launch.submission import Submission
from tests.launch.made_up import HERE, HIGH, LOW, MINE, NODES, SETTINGS, SITE, program


def make_dataset(folder: Path, *splits: str) -> Path:
    """What is seen of a data set without opening it."""
    for split in splits:
        (folder / split).mkdir(parents=True)
        (folder / split / "manifest.json").write_text("{}")
    return folder


def submitting(command: str, cluster: Cluster, home: Path = Path("/scratch/run")) -> Submission:
    """A command, submitted."""
    return Submission(cluster, (tuple(command.split()),), (home,), home / "logs", home / "code")


@pytest.mark.parametrize(
    ("profile", "settings", "problem"),
    [
        ({"nodes": 2, "tasks_per_node": 4}, "train --batch_size 100", ""),
        ({"gpus_per_node": 3}, "train --batch_size 64", ""),
        ({"tasks_per_node": 2}, "train --batch_size 4 --gradient_accumulation 2", ""),
        ({"nodes": "1:4"}, "pretrain --method simsiam --batch_size 8 --model_name resnet18", ""),
        (
            {"nodes": 2, "tasks_per_node": 4},
            "train --batch_size 7",
            "batch_size=7 is too small for 8 ranks, as each part needs at least one sample; use 8 or more, or at most "
            "7 ranks.",
        ),
        (
            {"nodes": "1:4", "tasks_per_node": 4},
            "train --batch_size 15",
            "15 is too small for 16 ranks, as each part needs at least one sample; use 16 or more, or at most 15 "
            "ranks.",
        ),
        (
            {"tasks_per_node": 2},
            "train --batch_size 3 --gradient_accumulation 2",
            "3 is too small for 2 ranks with gradient_accumulation=2, as each part needs at least one sample; use 4 or "
            "more, or at most 1 rank.",
        ),
        (
            {"nodes": "1:4"},
            "pretrain --method simsiam --batch_size 7 --model_name resnet18",
            "7 is too small for 4 ranks, as each part needs at least 2 samples; use 8 or more, or at most 3 ranks.",
        ),
        (
            {"nodes": "1:4"},
            "train --model_name levit_128s --batch_size 7",
            "7 is too small for 4 ranks, as each part needs at least 2 samples; use 8 or more, or at most 3 ranks.",
        ),
        (
            {"nodes": "1:4"},
            "train --complex 1 --batch_size 7",
            "7 is too small for 4 ranks, as each part needs at least 2 samples; use 8 or more, or at most 3 ranks.",
        ),
    ],
)
def test_a_batch_that_is_too_small_is_refused_in_the_words_of_the_job(
    profile: dict[str, Any], settings: str, problem: str, here: Path
) -> None:
    from jobs.frame.start import check_batch

    make_dataset(here / "ds", "train", "test")
    cluster, command = MINE.override(**profile), f"{settings} --run r --dataset ds".split()
    if not problem:
        check_job(command, cluster)
        return
    with pytest.raises(ValueError, match="is too small") as ours:
        check_job(command, cluster)
    with pytest.raises(ValueError, match="is too small") as theirs:
        check_batch(command_line.parse(command[0], command[1:]), [0] * 1000, cluster.tasks)  # type: ignore[arg-type]
    assert str(ours.value) == str(theirs.value)
    assert problem in str(ours.value)


@pytest.mark.parametrize("job", ["train", "pretrain"])
def test_a_model_that_there_is_not_is_refused_before_it_queues(job: str, here: Path) -> None:
    make_dataset(here / "data", "train")
    words = ["--dataset=data", f"--run={here / 'run'}"]
    for known in ("resnet18", "vit_small", "convnext_femto"):
        check_job([job, f"--model_name={known}", *words], MINE)
    with pytest.raises(ValueError, match=r"unknown model 'resnet81'\. Nearest: resnet18"):
        check_job([job, "--model_name=resnet81", *words], MINE)


def test_a_data_set_that_is_missing_is_refused_in_the_words_of_the_job(here: Path) -> None:
    from jobs.data.folders import find_dataset

    with pytest.raises(ValueError, match="no such data set 'ds'") as ours:
        check_job(["train", "--run", "r", "--dataset", "ds"], MINE)
    with pytest.raises(ValueError, match="no such data set") as theirs:
        find_dataset("ds", Path("datasets"))
    assert str(ours.value) == str(theirs.value)


def test_a_data_set_may_be_a_folder_or_a_name_below_the_root_and_needs_a_split_to_learn_from(here: Path) -> None:
    make_dataset(here / "datasets" / "named", "train")
    make_dataset(here / "there", "train")
    make_dataset(here / "tests only", "test")
    for dataset in ("named", "there", str(here / "there")):
        check_job(["train", "--run", "r", "--dataset", dataset], MINE)
    with pytest.raises(ValueError, match=r"has no split 'train', only: test; add one\."):
        check_job(["train", "--run", "r", "--dataset", "tests only"], MINE)
    with pytest.raises(ValueError, match="neither as a folder nor below data_root=elsewhere"):
        check_job(["train", "--run", "r", "--dataset", "named", "--data_root", "elsewhere"], MINE)


def test_what_another_job_will_have_made_need_not_be_there_yet(here: Path) -> None:
    check_job(["train", "--run", "r", "--dataset", "ds"], MINE.override(sbatch={"dependency": "afterok:7"}))


@pytest.mark.parametrize(
    "command", ["pack --layout npz --source there.npz --output o", "verify there", "train --pretrained 1 --run r"]
)
def test_a_file_that_is_missing_is_refused(command: str, here: Path) -> None:
    make_dataset(here / "ds", "train")
    more = ["--dataset", "ds", "--pretrained_file", "there.pth"] if command.startswith("train") else []
    with pytest.raises(ValueError, match=r"=there.* does not exist; correct the path\."):
        check_job([*command.split(), *more], MINE)


def test_what_is_learnt_from_several_data_sets_needs_them_all(here: Path) -> None:
    make_dataset(here / "one", "train")
    with pytest.raises(ValueError, match="no such data set 'two'"):
        check_job(["train", "--run", "r", "--dataset", "one,two"], MINE)
    make_dataset(here / "two", "train")
    check_job(["train", "--run", "r", "--dataset", "one,two"], MINE)


def test_a_finetuning_is_checked_by_the_settings_of_its_training(here: Path) -> None:
    command = ["finetune", "--run", "r", "--dataset", "ds", "--backbone", "b"]
    with pytest.raises(ValueError, match="no such data set 'ds'"):
        check_job(command, MINE)
    make_dataset(here / "ds", "train")
    check_job(command, MINE)
    with pytest.raises(ValueError, match="batch_size=64 is too small for 1 rank with gradient_accumulation=65"):
        check_job([*command, "--gradient_accumulation", "65"], MINE)
    with pytest.raises(ValueError, match="finetune runs as a single process"):
        check_job(command, MINE.override(nodes=2))


@pytest.mark.parametrize("command", ["simulate --output ds", "evaluate --run r", "benchmark train"])
def test_a_job_of_one_process_is_refused_several(command: str, here: Path) -> None:
    check_job(command.split(), MINE.override(gpus_per_node=1, cpus_per_task=8))
    for profile in ({"nodes": 2}, {"tasks_per_node": 2}, {"gpus_per_node": 4}):
        with pytest.raises(ValueError, match=r"runs as a single process .* use --nodes 1 --tasks_per_node 1"):
            check_job(command.split(), MINE.override(**profile))


def test_folders_of_one_machine_are_told() -> None:
    (told,) = folder_notes(submitting("train", MINE, Path("/dev/shm/run")))
    assert "/dev/shm" in told
    assert "deeplense doctor --on mine --run_job" in told


def test_folders_elsewhere_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert list(folder_notes(submitting("train", MINE, Path("/scratch/run")))) == []


def test_a_sweep_may_have_as_many_runs_as_an_array() -> None:
    check_sweep(1001, {"MaxArraySize": "1001"})
    check_sweep(1, {"MaxArraySize": "0"})
    with pytest.raises(ValueError, match=r"1002 runs exceed MaxArraySize=1001"):
        check_sweep(1002, {"MaxArraySize": "1001"})


def test_this_machine_is_asked_for_no_more_gpus_than_it_has(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(here / "ds", "train")
    program(here, "nvidia-smi", 'echo "GPU 0: H200 (UUID: x)"')
    monkeypatch.setenv("PATH", f"{here}:/usr/bin:/bin")
    command = "train --run r --dataset ds"
    assert list(check_before_submission(submitting(command, HERE.override(gpus_per_node=1)))) == []
    with pytest.raises(ValueError, match=r"gpus_per_node: 2, but nvidia-smi lists 1 .* set --gpus_per_node 1\."):
        list(check_before_submission(submitting(command, HERE.override(gpus_per_node=2))))


def test_a_job_whose_image_is_missing_is_refused(here: Path) -> None:
    make_dataset(here / "ds", "train")
    with pytest.raises(ValueError, match=r"image: .*none\.sif does not exist; build it with containers/build.sh"):
        list(check_before_submission(submitting("train --run r --dataset ds", MINE.override(image="/none.sif"))))


def test_checks_need_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, launch.checks, launch.doctor; sys.exit('torch' in sys.modules)"],
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


def test_what_slurm_expects_comes_with_notes_only_on_what_weakens_restarts(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "Job 7 to start at 2026-11-22T05:49:46 using 2 processors on nodes node[1-2] in partition low"
    monkeypatch.setattr(slurm, "expected_start", lambda *_: line)
    start = "Slurm expects the job to start at 2026-11-22T05:49:46, on node[1-2]"
    job = submitting("train", MINE)
    assert list(check_slurm(job, SITE)) == [start]
    weak = {"low": LOW | {"GraceTime": "0"}, "high": HIGH}
    _, preempted, lost = check_slurm(job, Site(SETTINGS | {"SlurmdTimeout": "0 sec"}, weak, NODES))
    assert preempted.startswith("note: preemption (PreemptMode=REQUEUE)")
    assert lost.startswith("note: SlurmdTimeout=0")
    several = replace(job, commands=job.commands * 2)
    assert "Slurm expects the first run to start" in next(check_slurm(several, SITE))


def test_of_several_partitions_one_that_can_start_the_job_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "expected_start", lambda *_: "")
    cluster = MINE.override(partition="low,high", hours=60.0)
    with pytest.raises(ValueError, match="MaxTime=2-00:00:00 of partition low"):
        list(check_slurm(submitting("train", cluster), SITE))
    long = Site(SETTINGS, {"low": LOW, "high": HIGH | {"MaxTime": "UNLIMITED"}}, NODES)
    told = list(check_slurm(submitting("train", cluster), long))
    assert told[1] == "note: hours: 60 exceeds MaxTime=2-00:00:00 of partition low; set --hours 48 or less."


def test_a_refusal_of_slurm_is_told_with_what_the_nodes_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise ValueError("Slurm rejects the job: Requested node configuration is not available")

    monkeypatch.setattr(slurm, "expected_start", refuse)
    with pytest.raises(ValueError, match=r"configuration is not available\. tasks_per_node \* cpus_per_task: 9 cores"):
        list(check_slurm(submitting("train", MINE.override(cpus_per_task=9)), SITE))
