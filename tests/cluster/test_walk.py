"""Each command of the batch script fails, dies and hangs once, and the whole script dies once at each: the run goes on
by itself, or `status` says what continues it, and that does."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from launch.ends import begin_line
from launch.script import pieces, submitit_script
from launch.sight.table import table
from tests.cluster.conftest import Clusters
from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import assert_counted_to_the_end, wait_for
from tests.cluster.walk import ANSWER_S, Walk, commands_of

TRANSIENT = {"fail": 2, "kill": 1, "hang": 1}
"""What may happen to a command, and how often."""
COMMANDS = (
    "squeue",
    "sbatch",
    "scancel",
    "scontrol show job",
    "scontrol show hostnames",
    "scontrol show node",
    "scontrol requeue",
    "sacct",
    "cp",
    "mv",
    "python begin",
    "python end",
    "srun",
)
AT_THE_END = "scontrol update"
"""Asked only where a run ends for good."""
AFTER_A_FAILURE = "python copied"
"""Asked only where Python has failed at `begin` or `end`; where it fails, too, both are asked again."""
FIRST_START_ONLY = ("cp", "mv", "sbatch")
OF_THE_END = ("scontrol requeue", "python end", "scancel")
BEFORE_ANYBODY_FOLLOWS = ("cp", "mv", "python begin", "squeue", "sbatch")
"""Where the script dies at one of these in the first attempt, nobody goes on."""
CASES: dict[str, tuple[str, str, int]] = {
    **{f"{command}: {mode}": (command, mode, 0) for command in COMMANDS for mode in TRANSIENT},
    **{
        f"{command}: the script is killed": (command, "script", int(command not in OF_THE_END))
        for command in COMMANDS
        if command not in FIRST_START_ONLY
    },
    **{f"{command}: the script is killed at once": (command, "script", 0) for command in BEFORE_ANYBODY_FOLLOWS},
}
"""Which command, what happens to it, and from which start of the job on."""


@pytest.fixture(scope="module")
def walks(clusters: Clusters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Walk]]:
    """A run for each case, all submitted at once."""
    slurm = clusters()
    found = {name: Walk(slurm, tmp_path_factory.mktemp("walk")) for name in CASES}
    for name, (command, mode, start) in CASES.items():
        found[name].submit(command, mode, start=start, times=TRANSIENT.get(mode, 1))
    yield found
    slurm.clear()


def test_there_is_a_case_for_each_command_of_the_script(tmp_path: Path) -> None:
    submission = Walk(PrivateSlurm(tmp_path), tmp_path).submission()
    asked, others = commands_of("\n".join(pieces(submission, pickles=True)))
    python = str(tmp_path / "bin" / "python")
    named = {re.sub(rf"{python} -m launch\.(requeue )?", "python ", command) for command in asked}
    assert named | {"srun"} == {*COMMANDS, AT_THE_END, AFTER_A_FAILURE}
    assert others == set()
    assert "srun" in commands_of(submitit_script(submission))[1]
    assert commands_of("true\nmodule load a; rm -r b\nfoo || bar") == (set(), {"module", "rm", "foo", "bar"})


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_whatever_happens_to_a_command_of_its_script(name: str, walks: Mapping[str, Walk]) -> None:
    walk = walks[name]
    training = walk.training
    training.wait_until_over(seconds=600)
    assert walk.was_struck, training.describe()
    command, mode, _ = CASES[name]
    # The log of each attempt is kept beside those of the others: why it ended is read there.
    assert all(begin_line(attempt["attempt"]) in walk.log for attempt in training.attempts()), training.describe()
    if "at once" in name:
        (note,) = [line for line in table([walk.run]) if line.startswith("note: ")]
        assert note.startswith(f"note: {walk.run} has stopped: "), training.describe()
        assert f"`deeplense resume {walk.run}` resumes it" in note
        resume(walk)
        training.wait_until_over(seconds=600)
    assert_counted_to_the_end(training) if mode != "script" or command != "scancel" else assert_finished(walk)


def resume(walk: Walk) -> None:
    """What `status` said."""
    walk.training.deeplense("resume", str(walk.run))


def assert_finished(walk: Walk) -> None:
    """The run is finished, though its script was killed before it could say so to Slurm."""
    assert walk.training.ends()[-1] == "finished"
    assert_all_are_gone(walk)


def assert_all_are_gone(walk: Walk) -> None:
    """No process is left: what a killed script has asked ends by its limit of seconds."""
    wait_for(lambda: not walk.training.processes(), lambda: f"left: {walk.training.processes()}", seconds=2 * ANSWER_S)


@pytest.mark.parametrize("mode", ["fail", "kill", "hang", "script"])
def test_a_run_that_has_ended_for_good_stays_so_whatever_happens_when_slurm_is_told(
    mode: str, clusters: Clusters, tmp_path: Path
) -> None:
    walk = Walk(clusters(), tmp_path)
    walk.submit(AT_THE_END, mode, times=TRANSIENT.get(mode, 1), crashes=0)
    walk.training.wait_until_over(seconds=300)
    assert walk.was_struck, walk.training.describe()
    assert [end.split(":")[0] for end in walk.training.ends()][:1] == ["crash"], walk.training.describe()
    assert not (walk.run / "finished.json").exists()
    (note,) = [line for line in table([walk.run]) if line.startswith("note: ")]
    assert f"`deeplense resume {walk.run}` resumes it" in note
    assert_all_are_gone(walk)


def test_a_job_that_waits_for_a_run_starts_though_the_script_dies_once_the_run_is_finished(
    clusters: Clusters, tmp_path: Path
) -> None:
    walk, started = Walk(clusters(), tmp_path), tmp_path / "started"
    walk.submit("scancel", "script")
    first = walk.training.job_id
    words = ["--kill-on-invalid-dep=no", f"--dependency=afterok:{first}", f"--wrap=touch {started}"]
    assert walk.slurm.ask("sbatch", "--partition=normal", "--output=/dev/null", *words)
    wait_for(started.exists, walk.training.describe, seconds=300)
    walk.training.wait_until_over(seconds=300)
    assert walk.was_struck, walk.training.describe()
    assert_finished(walk)
