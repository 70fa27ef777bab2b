"""Other ways to the same end on a real Slurm: in a container, as an array, by a script without submitit."""

import json
import re
import shlex
import sys
from pathlib import Path

from jobs.runs.attempts import read_attempts
from launch.record import keep, told_in
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import (
    NEVER,
    ROOT,
    Training,
    assert_counted_to_the_end,
    assert_nothing_was_lost,
    kill,
    steps_lost,
    take_all_nodes,
    wait_for,
)
from tests.containers.image import bound_folders, privilege_flags, require_apptainer, small_image


def test_in_a_container_signals_come_twice_and_scontrol_is_missing_but_nothing_is_lost(
    unbroken: Training, training: Training, tmp_path: Path
) -> None:
    require_apptainer()
    profile = {
        "image": str(small_image(tmp_path)),
        "apptainer": " ".join(["apptainer", "--quiet", "exec", *privilege_flags()]),
        "binds": [str(folder) for folder in bound_folders()] + [str(training.home)],
        "python": sys.executable,
    }
    training.hold(6)
    training.submit(profile=profile, num_workers=3)
    training.wait_until_held(attempt=1, step=6)
    take_all_nodes(training.slurm)
    training.wait_for_end(1)
    training.hold(12)
    training.wait_until_held(attempt=2, step=12)
    for _ in range(2):
        training.slurm.ask("scancel", "--signal=TERM", training.job_id)
    training.wait_for_end(2)
    training.hold(18)
    training.wait_until_held(attempt=3, step=18)
    kill(training.ranks()[1])
    training.hold(NEVER)
    training.wait_until_over()
    kinds = [end.split(":")[0] for end in training.ends()]
    assert kinds == ["preempted, with grace", "stopped by SIGTERM", "crash", "finished"], training.describe()
    assert_nothing_was_lost(training, unbroken)
    assert steps_lost(training)[:2] == [0, 0]


def test_a_requeued_element_of_an_array_leaves_the_others_alone(counted: Training) -> None:
    training = counted
    training.hold(10)
    training.submit(
        "--folder",
        str(training.home / "sweep"),
        verb="sweep",
        profile={"nodes": 1, "tasks_per_node": 1},
        run=training.home / "{seed}-{lr}",
        seed="3,4",
        lr="0.001",
    )
    folders = [training.home / f"{seed}-0.001" for seed in (3, 4)]
    wait_for(lambda: all((training.home / f"samples_1_{0}.txt").exists() for _ in folders), training.describe)
    wait_for(lambda: all(has_begun(folder) for folder in folders), training.describe)
    ids = [json.loads((folder / "launch.json").read_text())["job_id"] for folder in folders]
    assert re.fullmatch(r"\d+_0", ids[0])
    assert ids[1] == ids[0].replace("_0", "_1")
    training.slurm.ask("scancel", "--signal=TERM", ids[0])
    training.hold(NEVER)
    queue = ids[0].split("_")[0]
    wait_for(lambda: not (training.slurm.ask("squeue", "-h", "-j", queue) or "").strip(), training.describe)
    ends = [[attempt["ended"] for attempt in read_attempts(folder)] for folder in folders]
    assert ends == [["stopped by SIGTERM", "finished"], ["finished"]]


def has_begun(folder: Path) -> bool:
    """Whether a run works."""
    return any(attempt["first_step"] is not None for attempt in read_attempts(folder))


def test_a_script_without_submitit(counted: Training) -> None:
    counted.hold(5)
    script = counted.home / "job.sh"
    counted.submit("--export", str(script))
    answer = counted.slurm.ask("sbatch", "--parsable", str(script))
    assert answer
    keep(counted.run, told_in(counted.run) | {"job_id": answer.strip()})
    counted.wait_until_held(attempt=1, step=5)
    take_all_nodes(counted.slurm)
    counted.wait_for_end(1)
    counted.hold(NEVER)
    counted.wait_until_over()
    assert_counted_to_the_end(counted)
    assert counted.ends() == ["preempted, with grace", "finished"], counted.describe()


def test_on_this_machine_inside_a_batch_script(each_slurm: PrivateSlurm, tmp_path: Path) -> None:
    submit = [sys.executable, "-m", "launch", "submit", "--on", "local", "--allow_untracked"]
    submit += ["--folder", str(tmp_path / "there")]
    words = ["simulate", "--num_per_class=1", "--num_workers=1", f"--output={tmp_path / 'made'}"]
    made, log = tmp_path / "made" / "train" / "manifest.json", tmp_path / "outer.txt"
    waiting = f"until [ -e {made} ]; do sleep 0.2; done"
    script = f"cd {ROOT} && PYTHONPATH={ROOT} {shlex.join(submit + words)} && {waiting}"
    asked = ("sbatch", "--parsable", "-p", "normal", "-t", "5", "-o", str(log), "--wrap", script)
    assert each_slurm.ask(*asked)

    def describe() -> str:
        return "\n".join(path.read_text() for path in [log, *(tmp_path / "there").rglob("*.out")] if path.exists())

    wait_for(made.exists, describe)
    each_slurm.clear()
