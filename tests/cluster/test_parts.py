"""What an array of jobs makes on a real Slurm, a simulation, a data set by diffusion or predictions: one of the jobs is
requeued and one killed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.__main__ import main
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import Training, kill, wait_for

SIMULATE = ["simulate", "--num_per_class=150", "--num_workers=1"]
SAMPLE = ["sample", "--num_images=450", "--num_steps=2", "--num_workers=1", "--device=cpu"]
DIFFUSE = ["--model_name=unet_small", "--batch_size=16", "--epochs=1", "--num_times=50", "--num_sampled=0"]
PREDICT = ["predict", "--batch_size=16", "--images_per_file=16", "--num_workers=1", "--device=cpu", "--views=8"]
TRAIN = ["train", "--model_name=simple_cnn", "--batch_size=16", "--epochs=1", "--device=cpu"]
SHARDS = [f"shard-{number:05d}.h5" for number in range(8)]
TABLES = [f"predictions-{number:05d}.parquet" for number in range(9)]


@dataclass(frozen=True)
class Work:
    """What is made: the command, the subfolder of its output, its files that parts make, and those written once."""

    words: list[str]
    folder: str
    files: list[str]
    once: list[str]


@pytest.fixture(params=["simulate", "sample", "predict"])
def work(request: pytest.FixtureRequest, dataset: Path, tmp_path: Path) -> Work:
    """What is made in parts."""
    if request.param == "simulate":
        return Work(SIMULATE, "train", SHARDS, ["manifest.json"])
    run, data = f"--run={tmp_path / 'run'}", f"--dataset={dataset}"
    if request.param == "sample":
        assert main(["diffuse", data, run, *DIFFUSE, "--device=cpu"]) == 0
        return Work([*SAMPLE, run], "train", SHARDS, ["manifest.json"])
    assert main([*TRAIN, data, run]) == 0
    return Work([*PREDICT, data, run], "", TABLES, ["plan.json", "predictions.json"])


@pytest.fixture
def parts(work: Work, slurm: PrivateSlurm, tmp_path: Path) -> Iterator[list[Training]]:
    """The three parts of an array, submitted; each has made its first file, and waits before its second."""
    (tmp_path / "hold_shards").write_text(" ".join(work.files[3:6]))
    folders = [tmp_path / "there" / f"part-{number}" for number in (1, 2, 3)]
    found = [Training(slurm, tmp_path, tmp_path / "parts", folder) for folder in folders]
    found[0].write_profile({"nodes": 1, "tasks_per_node": 1})
    options = ("--on=test", "--allow_untracked", "--parts=3", f"--folder={tmp_path / 'there'}")
    found[0].deeplense("submit", *options, *work.words, f"--output={tmp_path / 'parts'}")
    made = [tmp_path / "parts" / work.folder / name for name in work.files[:3]]
    wait_for(lambda: all(path.exists() for path in made), lambda: "\n".join(part.describe() for part in found))
    yield found
    slurm.clear()


def test_an_array_whose_tasks_are_requeued_and_killed_makes_the_bytes_of_one_process(
    work: Work, parts: list[Training], tmp_path: Path
) -> None:
    assert [part.job_id.split("_")[1] for part in parts] == ["0", "1", "2"]
    before = {name: (tmp_path / "parts" / work.folder / name).stat() for name in work.files[:3]}
    parts[0].slurm.ask("scontrol", "requeue", parts[0].job_id)
    kill(parts[1].ranks()[0])
    for part in parts[:2]:
        part.wait_for_end(1)
    (tmp_path / "hold_shards").unlink()
    for part in parts:
        part.wait_until_over()
    kinds = [part.kinds() for part in parts]
    assert kinds == [["requeued", "finished"], ["crash", "finished"], ["finished"]], parts[0].describe()
    parts[0].deeplense(*work.words, f"--output={tmp_path / 'one'}")
    one, found = ({p.name: p for p in (tmp_path / name / work.folder).iterdir()} for name in ("one", "parts"))
    assert sorted(one) == sorted(found) == sorted([*work.once, *work.files])
    assert [name for name in one if one[name].read_bytes() != found[name].read_bytes()] == []
    assert {name: found[name].stat().st_ino for name in before} == {name: old.st_ino for name, old in before.items()}
    status = parts[0].deeplense("status", str(tmp_path / "there"))
    assert [line.split()[1:3] for line in status.splitlines()[1:]] == [["finished", n] for n in "221"]
