"""A data set that an array of jobs makes on a real Slurm, by simulation or by diffusion, one of them requeued and one
killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.__main__ import main
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import Training, kill, wait_for

SIMULATE = ["simulate", "--num_per_class=150", "--num_workers=1"]
SAMPLE = ["sample", "--num_images=450", "--num_steps=2", "--num_workers=1", "--device=cpu"]
DIFFUSE = ["--model_name=unet_small", "--batch_size=16", "--epochs=1", "--num_times=50", "--num_sampled=0"]
SHARDS = [f"shard-{number:05d}.h5" for number in range(8)]
FIRST, SECOND = SHARDS[:3], SHARDS[3:6]


@pytest.fixture(params=["simulate", "sample"])
def words(request: pytest.FixtureRequest, dataset: Path, tmp_path: Path) -> list[str]:
    """What makes the data set."""
    if request.param == "simulate":
        return SIMULATE
    run = f"--run={tmp_path / 'ddpm'}"
    assert main(["diffuse", f"--dataset={dataset}", run, *DIFFUSE, "--device=cpu"]) == 0
    return [*SAMPLE, run]


@pytest.fixture
def parts(words: list[str], slurm: PrivateSlurm, tmp_path: Path) -> Iterator[list[Training]]:
    """The three parts of an array, submitted; each has made its first shard, and waits before its second."""
    (tmp_path / "hold_shards").write_text(" ".join(SECOND))
    folders = [tmp_path / "there" / f"part-{number}" for number in (1, 2, 3)]
    found = [Training(slurm, tmp_path, tmp_path / "parts", folder) for folder in folders]
    found[0].write_profile({"nodes": 1, "tasks_per_node": 1})
    options = ("--on=test", "--allow_untracked", "--parts=3", f"--folder={tmp_path / 'there'}")
    found[0].deeplense("submit", *options, *words, f"--output={tmp_path / 'parts'}")
    made = [tmp_path / "parts" / "train" / name for name in FIRST]
    wait_for(lambda: all(path.exists() for path in made), lambda: "\n".join(part.describe() for part in found))
    yield found
    slurm.clear()


def test_an_array_whose_tasks_are_requeued_and_killed_makes_the_bytes_of_one_process(
    words: list[str], parts: list[Training], tmp_path: Path
) -> None:
    assert [part.job_id.split("_")[1] for part in parts] == ["0", "1", "2"]
    before = {name: (tmp_path / "parts" / "train" / name).stat() for name in FIRST}
    parts[0].slurm.ask("scontrol", "requeue", parts[0].job_id)
    kill(parts[1].ranks()[0])
    for part in parts[:2]:
        part.wait_for_end(1)
    (tmp_path / "hold_shards").unlink()
    for part in parts:
        part.wait_until_over()
    kinds = [part.kinds() for part in parts]
    assert kinds == [["requeued", "finished"], ["crash", "finished"], ["finished"]], parts[0].describe()
    parts[0].deeplense(*words, f"--output={tmp_path / 'one'}")
    one, found = ({p.name: p for p in (tmp_path / name / "train").iterdir()} for name in ("one", "parts"))
    assert sorted(one) == sorted(found) == ["manifest.json", *SHARDS]
    assert [name for name in one if one[name].read_bytes() != found[name].read_bytes()] == []
    assert {name: found[name].stat().st_ino for name in FIRST} == {name: old.st_ino for name, old in before.items()}
    status = parts[0].deeplense("status", str(tmp_path / "there"))
    assert [line.split()[1:3] for line in status.splitlines()[1:]] == [["finished", n] for n in "221"]
