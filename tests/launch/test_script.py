"""The text that Slurm gets: whole scripts compared with what they were, and run by bash with a small Slurm of stubs.

The real Slurm is in tests/cluster; here every end of srun can be had in a second.
"""

import contextlib
import os
import shlex
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from deeplense.files import write_json
from deeplense.records import write_record
from jobs.runs.attempts import open_attempt, read_attempts
from jobs.runs.folder import FINISHED, LAUNCH
from launch.clusters import Cluster
from launch.ends import begin_line
from launch.script import FOLDERS, MOST_FOLLOWED, slurm_parameters, submitit_script, whole_script
from launch.submission import Submission

GOLDEN = Path(__file__).with_name("golden")
ROOT = Path(__file__).parents[2]
RENEW = "DEEPLENSE_RENEW_GOLDEN"
HOME = Path("/scratch/runs/first")
FULL = Cluster(
    name="full",
    partition="low",
    account="ab12",
    qos="long",
    constraint="a100|h100",
    reservation="course",
    nodes=2,
    gpus_per_node=2,
    gpu_type="a100",
    cpus_per_task=8,
    memory_gb_per_task=30.5,
    hours=24,
    signal_delay_s=300,
    setup=("module load cuda", 'export GREETING="it\'s"'),
    scratch="/scratch/me",
    node_local="$SLURM_TMPDIR/me",
    environment={"NCCL_DEBUG": "WARN", "TITLE": "it's two words; $HOME"},
    sbatch={"exclude": "n[1-2]", "exclusive": ""},
    python="/opt/python/bin/python",
)
PLAIN = Cluster(name="plain", tasks_per_node=2, python="/opt/python/bin/python")
IN_IMAGE = Cluster(
    name="image", gpus_per_node=1, image="/images/deeplense.sif", apptainer="apptainer exec --userns", binds=("/data",)
)


def submission(cluster: Cluster, home: Path = HOME, *, runs: int = 1) -> Submission:
    """A training in a folder, or a sweep over some."""
    folders = tuple(home / f"seed{seed}" for seed in range(runs)) if runs > 1 else (home,)
    commands = tuple(
        ("train", "--dataset=Model_I", f"--run={folder}", "--wandb=offline", "--wandb_project=two words")
        for folder in folders
    )
    return Submission(cluster, commands, folders, home / "logs", home / "code")


NOTIFIED = Cluster(name="notified", notify="/bin/tell 'me now'", mail="me@example.org", python="/opt/python/bin/python")


SCRIPTS: dict[str, Callable[[], str]] = {
    "submitit": lambda: submitit_script(submission(PLAIN)),
    "submitit_array": lambda: submitit_script(submission(FULL, Path("/scratch/my sweeps"), runs=3)),
    "whole": lambda: whole_script(submission(FULL)),
    "notified": lambda: submitit_script(submission(NOTIFIED)),
    "container": lambda: submitit_script(submission(IN_IMAGE)),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_whole_script_is_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    path, text = GOLDEN / f"{name}.sh", SCRIPTS[name]()
    if os.environ.get(RENEW):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"where the new text is right: {RENEW}=1 pytest {__file__}, and read the diff"


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_understands_the_script(name: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=SCRIPTS[name](), capture_output=True, text=True)
    assert (checked.stderr, checked.returncode) == ("", 0)


@pytest.mark.parametrize("name", SCRIPTS)
def test_slurm_is_told_what_the_profile_says_before_the_first_command(name: str) -> None:
    lines = SCRIPTS[name]().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH ")]
    first = next(place for place, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(map(lines.index, options)) < first
    assert "#SBATCH --requeue" in options
    assert "#SBATCH --open-mode=append" in options
    assert any(option.startswith("#SBATCH --signal=USR2@") for option in options)
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert {"--kill-on-bad-exit=1", "--open-mode=append"} <= set(shlex.split(srun))
    assert lines[lines.index(srun) + 1 :][-1] == 'exit "$deeplense_code"'


@pytest.mark.parametrize(
    ("cluster", "name", "value"),
    [
        (Cluster(name="a", hours=0.05), "time", 3),
        (Cluster(name="a", hours=0.0501), "time", 4),
        (Cluster(name="a"), "gpus_per_node", None),
        (Cluster(name="a", gpus_per_node=4), "ntasks_per_node", 4),
        (Cluster(name="a", gpus_per_node=4, tasks_per_node=1), "ntasks_per_node", 1),
        (Cluster(name="a", gpus_per_node=4, gpu_type="h100"), "gpus_per_node", "h100:4"),
        (Cluster(name="a"), "wckey", None),
        (Cluster(name="a"), "additional_parameters", {"requeue": True}),
        (
            Cluster(name="a", memory_gb_per_task=1.5, gpus_per_node=2),
            "additional_parameters",
            {"requeue": True, "mem": "3072M"},
        ),
        (Cluster(name="a", memory_gb_per_task=0.0001), "additional_parameters", {"requeue": True, "mem": "1M"}),
    ],
)
def test_a_profile_becomes_submitits_parameters(cluster: Cluster, name: str, value: object) -> None:
    assert slurm_parameters(submission(cluster))[name] == value


STUBS = {
    # The job: says what a rank would say in the ledger and in the log, and ends with its code.
    "srun": """
env > "$STUB/environment.txt"
printf '%s\\n' "$@" > "$STUB/srun.txt"
if [ -n "$SAYS" ]; then echo "$SAYS"; fi
if [ -n "$OWN" ]; then "$PYTHON" -c 'import os, pathlib; from jobs.runs.attempts import *
run = pathlib.Path(os.environ["DEEPLENSE_FOLDER"])
end_attempt(run, begin_attempt(run, first_step=0, num_processes=2), reason=os.environ["OWN"], last_step=5)'; fi
[ -z "$RANK_S" ] || SLURM_STEP_NUM_TASKS=1 sleep "$RANK_S"
[ -z "$HANG_S" ] || exec sleep "$HANG_S"
exit "$CODE"
""",
    # A requeue ends the script that asks for it.
    "scontrol": """
case "$1 $2" in
"show job") echo "JobId=4 $JOB" ;;
"show hostnames") printf 'n1\\nn2\\nn3\\n' ;;
"show node") echo "NodeName=$4 NodeAddr=127.0.0.${4#n} NodeHostName=$4" ;;
*) echo "$@" >> "$STUB/scontrol.txt"; [ "$1" != requeue ] || kill -KILL "$SCRIPT" ;;
esac
""",
    "sacct": 'printf "$HISTORY"',
    "squeue": 'printf "$FOLLOWED"',
    "sbatch": 'echo "after [$DEEPLENSE_AFTER] in array [$SLURM_ARRAY_JOB_ID]: $*" >> "$STUB/sbatch.txt"',
    "scancel": 'echo "$*" >> "$STUB/scancel.txt"',
}


@dataclass
class Slurm:
    """A folder with commands called srun, scontrol and sacct, and what they have been asked."""

    folder: Path
    job: Submission
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, script: str, **variables: str) -> int:
        """Run a batch script as Slurm does, with its log; returns its exit code."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "DEEPLENSE_"))}
        told = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "STUB": str(self.folder),
            "PYTHON": sys.executable,
            "SLURM_JOB_ID": "4",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "JOB": "JobState=RUNNING Restarts=0 PreemptTime=None",
            "CODE": "0",
            "DEEPLENSE_PAUSE_S": "1",
            "DEEPLENSE_PATIENCE_S": "0",
        }
        with self.log.open("a") as log:
            environment = inherited | told | self.variables | variables
            return subprocess.run(
                ["bash", "-c", f"export SCRIPT=$$\n{script}"], env=environment, cwd=self.folder, stdout=log, stderr=log
            ).returncode

    @property
    def log(self) -> Path:
        """The log of the batch script."""
        return self.job.logs / "4_0_log.out"

    def asked(self, what: str = "scontrol") -> list[str]:
        """What a command was asked to do."""
        path = self.folder / f"{what}.txt"
        return path.read_text().splitlines() if path.exists() else []

    def sent(self, count: int) -> list[str]:
        """What sbatch was asked to do, which is asked beside the script, so many times."""
        deadline = time.monotonic() + 60
        while len(self.asked("sbatch")) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.asked("sbatch")

    def environment(self) -> dict[str, str]:
        """What srun was told."""
        lines = (self.folder / "environment.txt").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def ends(self, place: int = 0) -> list[str]:
        """How the attempts of a run ended."""
        return [attempt["ended"] for attempt in read_attempts(self.job.folders[place])]


def make_slurm(folder: Path, cluster: Cluster, *, runs: int = 1) -> Slurm:
    """The stubs, and a submission to them with the code as it is here."""
    (folder / "bin").mkdir()
    for name, text in STUBS.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    job = submission(cluster, folder / "it's a run", runs=runs)
    job.logs.mkdir(parents=True)
    job.code.symlink_to(ROOT)
    (job.logs / FOLDERS).write_text("".join(f"{run}\n" for run in job.folders))
    for place, run in enumerate(job.folders):
        job.pickle_of(place).write_text("what submitit runs")
        run.mkdir(exist_ok=True)
        write_json(run / LAUNCH, {"restarts": {"crash": 1}, "attempts_before": 0})
    return Slurm(folder / "bin", job)


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    """A run that was submitted to the stubs."""
    return make_slurm(tmp_path, Cluster(name="stub", python=sys.executable, tasks_per_node=2))


USR2, TERM, ENDING = "stopped by SIGUSR2", "stopped by SIGTERM", "JobState=COMPLETING Restarts=0"
LINE = "slurmstepd: error: *** JOB 4 ON n1 CANCELLED AT 2026-11-22T05:10:04{} ***"
ENDS = {
    "it finished": ({"OWN": "finished"}, "finished", False),
    "it had no more to do": ({}, "finished", False),
    "it saved near its limit": ({"CODE": "85", "OWN": USR2}, "time limit", True),
    "it saved in the grace time": (
        {"CODE": "85", "OWN": TERM, "JOB": "JobState=RUNNING PreemptTime=2026-11-22T05:10:04"},
        "preempted, with grace",
        True,
    ),
    "it saved and was cancelled": ({"CODE": "85", "OWN": TERM, "JOB": ENDING}, "cancelled", False),
    "it was cancelled": ({"CODE": "143", "SAYS": LINE.format(""), "JOB": ENDING}, "cancelled", False),
    "its script was signalled": ({"CODE": "85", "OWN": TERM, "SAYS": LINE.format("")}, TERM, True),
    "Slurm requeues it": ({"CODE": "143", "SAYS": LINE.format(" DUE TO JOB REQUEUE")}, "requeued", False),
    "it crashed": ({"CODE": "137"}, "crash: exit code 137", True),
    "a rank was killed": (
        {"CODE": "137", "SAYS": "srun: error: n2: task 3: Killed", "OWN": "error: EOFError: gone"},
        "crash: task 3 on n2: Killed; EOFError: gone",
        True,
    ),
    "its settings are wrong": ({"CODE": "2", "OWN": "error: ValueError: less"}, "refused: ValueError: less", False),
    "the disk is full": ({"CODE": "87"}, "disk full", True),
}


def test_srun_that_begins_no_rank_is_ended_as_a_hang(slurm: Slurm) -> None:
    assert slurm.run(submitit_script(slurm.job), HANG_S="1000", DEEPLENSE_START_S="2") == -9
    assert slurm.ends() == ["hang"]
    assert slurm.asked() == ["requeue 4"]
    assert "deeplense: no rank has started for 2 s; ending srun" in slurm.log.read_text()


def test_srun_is_left_alone_once_a_rank_has_begun(slurm: Slurm) -> None:
    assert slurm.run(submitit_script(slurm.job), RANK_S="8", DEEPLENSE_START_S="6") == 0
    assert slurm.ends() == ["finished"]


def test_an_error_of_the_code_itself_does_not_hold_the_nodes_for_hours(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho asked >> "$STUB/python.txt"\nexit 70\n')
    python.chmod(0o755)
    slurm = make_slurm(tmp_path, Cluster(name="stub", python=str(python)))
    assert slurm.run(submitit_script(slurm.job), DEEPLENSE_PAUSE_S="0", DEEPLENSE_PATIENCE_S="1000") == 1
    assert slurm.asked("python") == ["asked"] * 4
    assert slurm.asked() == ["update jobid=4 requeue=0"]


@pytest.mark.parametrize(("variables", "reason", "again"), ENDS.values(), ids=ENDS)
def test_the_script_writes_why_it_ended_and_asks_for_another_attempt_only_where_that_is_right(
    variables: dict[str, str], reason: str, again: bool, slurm: Slurm
) -> None:
    code = slurm.run(submitit_script(slurm.job), **variables)
    assert slurm.ends() == [reason], slurm.log.read_text()
    stays = reason not in ("finished", "requeued")
    assert slurm.asked() == ["requeue 4"] * again + ["update jobid=4 requeue=0"] * (not again and stays)
    # Where the run is over, nothing follows; else the job that follows waits on.
    assert slurm.asked("scancel") == ["--me --name=deeplense-after-4"] * (not again and reason != "requeued")
    assert code == (-9 if again else int(variables.get("CODE", "0")))
    assert begin_line(1) in slurm.log.read_text().splitlines()
    assert f"deeplense: attempt 1 ended: {reason}; " in slurm.log.read_text()


def test_a_script_without_submitit_does_the_same(slurm: Slurm) -> None:
    assert slurm.run(whole_script(slurm.job), CODE="85", OWN=USR2) == -9
    assert slurm.run(whole_script(slurm.job), OWN="finished", SLURM_RESTART_COUNT="1") == 0
    assert slurm.ends() == ["time limit", "finished"]
    words = (slurm.folder / "srun.txt").read_text().splitlines()
    assert words[-5:] == ["train", *slurm.job.commands[0][1:]]
    assert words[words.index("-m") - 2 : words.index("-m") + 2] == [sys.executable, "-u", "-m", "launch.task"]


def test_attempt_follows_attempt_until_the_budget_is_used_up(slurm: Slurm) -> None:
    script = submitit_script(slurm.job)
    codes = [slurm.run(script, CODE="1", SLURM_RESTART_COUNT=str(start)) for start in range(2)]
    assert codes == [-9, 1]
    assert slurm.ends() == ["crash: exit code 1"] * 2
    assert slurm.asked() == ["requeue 4", "update jobid=4 requeue=0"]


def test_no_job_is_started_where_no_attempt_may_begin(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(slurm.job.folders[0] / LAUNCH, {"restarts": {"node lost": 0}})
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    open_attempt(slurm.job.folders[0])
    assert slurm.run(submitit_script(slurm.job), SLURM_RESTART_COUNT="1", HISTORY="NODE_FAIL\\nRUNNING\\n") == 1
    assert slurm.ends() == ["node lost", "out of restarts: node lost"]
    assert not (slurm.folder / "environment.txt").exists()
    assert slurm.asked() == ["update jobid=4 requeue=0"]
    assert slurm.asked("scancel") == ["--me --name=deeplense-after-4"]


def test_a_run_that_is_finished_and_is_started_again_is_completed(slurm: Slurm) -> None:
    write_record(slurm.job.folders[0] / FINISHED, {"step": 7})
    assert slurm.run(submitit_script(slurm.job), SLURM_RESTART_COUNT="1") == 0
    assert not (slurm.folder / "environment.txt").exists()
    assert slurm.asked() == []


WAITING = "8|afterok:7(unfulfilled)\\n9|afterok:4(failed)\\n"
SUCCESSOR = {"SLURM_JOB_ID": "5", "DEEPLENSE_AFTER": "4", "JOB": "JobState=FAILED Restarts=0", "FOLLOWED": WAITING}


def test_a_successor_of_a_job_that_finished_the_run_and_died_lets_start_what_waits_for_it(slurm: Slurm) -> None:
    write_record(slurm.job.folders[0] / FINISHED, {"step": 7})
    assert slurm.run(submitit_script(slurm.job), **SUCCESSOR) == 0
    assert not (slurm.folder / "environment.txt").exists()
    assert slurm.asked() == ["update jobid=9 dependency=afterok:5"]


def test_what_waits_for_a_run_that_was_cancelled_is_left_as_it_is(slurm: Slurm) -> None:
    told = {"restarts": {}, "attempts_before": 0, "cancelled": "2026-11-29T20:00:00", "job_id": "4", "logs": "logs"}
    write_json(slurm.job.folders[0] / LAUNCH, told | {"cluster": {"executor": "slurm", "slurm_conf": None}})
    assert slurm.run(submitit_script(slurm.job), **SUCCESSOR) == 0
    assert slurm.asked() == []
    assert "was cancelled" in slurm.log.read_text() or "was cancelled" in (slurm.job.logs / "5_0_log.out").read_text()


@pytest.mark.parametrize(("variables", "moves"), [({"OWN": "finished"}, 1), ({"CODE": "2", "OWN": "error: E: no"}, 0)])
def test_what_could_not_be_moved_during_the_attempt_is_moved_once_it_has_finished(
    variables: dict[str, str], moves: int, slurm: Slurm
) -> None:
    stub = slurm.folder / "squeue"
    stub.write_text(stub.read_text().replace("\n", '\n[ -e "$STUB/srun.txt" ] || exit 1\n', 1))
    patient = {"DEEPLENSE_PAUSE_S": "1000", "DEEPLENSE_PATIENCE_S": "1000"}
    slurm.run(submitit_script(slurm.job), **SUCCESSOR, **patient, **variables)
    assert slurm.asked().count("update jobid=9 dependency=afterok:5") == moves


def test_a_job_follows_each_job_once_and_knows_after_which(slurm: Slurm) -> None:
    script = whole_script(slurm.job)
    slurm.run(script, CODE="85", OWN=USR2)
    slurm.run(script, CODE="85", OWN=USR2, SLURM_RESTART_COUNT="1", FOLLOWED="5")
    slurm.run(script, CODE="85", OWN=USR2, SLURM_JOB_ID="5", DEEPLENSE_AFTER="4.3", JOB="JobState=FAILED Restarts=0")
    told = "--parsable --export=ALL --dependency=afterany:{} --job-name=deeplense-after-{} bash"
    assert slurm.sent(2) == [
        f"after [4] in array []: {told.format(4, 4)}",
        f"after [5.4.3] in array []: {told.format(5, '5.4.3')}",
    ]
    alone = submission(replace(slurm.job.cluster, successor=False), slurm.job.folders[0])
    assert "sbatch --parsable" not in whole_script(alone)
    many = submission(slurm.job.cluster, runs=MOST_FOLLOWED + 1)
    assert "sbatch --parsable" not in submitit_script(many)


def test_variables_of_an_array_from_which_a_job_was_submitted_do_not_count(slurm: Slurm) -> None:
    slurm.run(submitit_script(slurm.job), SLURM_ARRAY_JOB_ID="9", SLURM_ARRAY_TASK_ID="7")
    assert slurm.ends() == ["finished"]
    assert read_attempts(slurm.job.folders[0])[0]["job_id"] == "4"


@pytest.mark.parametrize("refusal", ["Job has already completed", "Requested operation is presently disabled"])
def test_where_slurm_refuses_another_attempt_the_script_leaves_and_the_job_that_follows_waits(
    refusal: str, slurm: Slurm
) -> None:
    stub = slurm.folder / "scontrol"
    refusing = f'if [ "$1" = requeue ]; then echo {shlex.quote(refusal)} >&2; exit 1; fi\n'
    stub.write_text(stub.read_text().replace("\n", f"\n{refusing}", 1))
    patient = {"DEEPLENSE_PATIENCE_S": "1000"}
    assert slurm.run(submitit_script(slurm.job), CODE="85", OWN=USR2, **patient) == 85
    assert refusal in slurm.log.read_text()
    assert slurm.asked("scancel") == []


def test_each_run_of_an_array_has_its_own_attempts_and_is_requeued_by_its_own_name(tmp_path: Path) -> None:
    slurm = make_slurm(tmp_path, Cluster(name="stub", python=sys.executable), runs=3)
    array = {"SLURM_ARRAY_JOB_ID": "3", "SLURM_ARRAY_TASK_ID": "1"}
    slurm.run(submitit_script(slurm.job), CODE="85", OWN=USR2, **array)
    assert [slurm.ends(place) for place in range(3)] == [[], ["time limit"], []]
    assert read_attempts(slurm.job.folders[1])[0]["job_id"] == "3_1"
    assert slurm.asked() == ["requeue 3_1"]
    told = "--parsable --export=ALL --dependency=afterany:3_1 --job-name=deeplense-after-3_1 --array=1 bash"
    assert slurm.sent(1) == [f"after [3_1] in array []: {told}"]


def test_ranks_are_told_where_they_meet_and_what_the_profile_says(tmp_path: Path) -> None:
    profile = {"environment": {"TITLE": "it's $HOME"}, "node_local": "$HERE/local", "scratch": "/scratch/me"}
    slurm = make_slurm(tmp_path, Cluster(name="stub", python=sys.executable, setup=("MARK=1; export MARK",), **profile))
    with socket.socket() as taken:
        first = 20000 + (4 * 131) % 10000
        # Where somebody else has it already, it is taken just as well.
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", first))
            taken.listen()
        slurm.run(submitit_script(slurm.job), HERE="/here")
    told = slurm.environment()
    assert told["MASTER_ADDR"] == "n1"
    assert told["DEEPLENSE_NODE_ADDRESSES"].split() == ["127.0.0.1", "127.0.0.2"]
    assert first < int(told["MASTER_PORT"]) < 30000
    assert (told["DEEPLENSE_ATTEMPT"], told["DEEPLENSE_FOLDER"]) == ("1", str(slurm.job.folders[0]))
    assert (told["TITLE"], told["MARK"]) == ("it's $HOME", "1")
    assert (told["DEEPLENSE_NODE_LOCAL"], told["DEEPLENSE_SCRATCH"]) == ("/here/local", "/scratch/me")
    assert told["PYTHONPATH"] == str(slurm.job.code)


def test_another_start_of_the_job_meets_at_another_port(slurm: Slurm) -> None:
    ports = []
    for start in range(3):
        slurm.run(submitit_script(slurm.job), CODE="85", OWN=USR2, SLURM_RESTART_COUNT=str(start))
        ports.append(slurm.environment()["MASTER_PORT"])
    assert len(set(ports)) == 3


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2", "CONT"])
def test_a_signal_does_not_keep_the_script_from_writing_why_it_ended(name: str, slurm: Slurm) -> None:
    signalling = submitit_script(slurm.job).replace("\nsrun ", f"\nkill -{name} $$\nsrun ")
    assert slurm.run(signalling, CODE="143", JOB=ENDING) == 143
    assert slurm.ends() == ["cancelled"]


EVIL = ["\n", "\r", "\x0b", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\udc80"]
"""Characters that end a line somewhere, move a cursor, or cannot be written to a file."""


@pytest.mark.parametrize("sign", EVIL, ids=ascii)
@pytest.mark.parametrize("where", ["command", "run", "logs", "code"])
def test_a_control_character_never_reaches_a_script(where: str, sign: str) -> None:
    bad = Path(f"/runs/a{sign}touch PWN")
    good = submission(PLAIN)
    changes = {
        "command": {"commands": (("train", f"--run={bad}"),)},
        "run": {"folders": (bad,)},
        "logs": {"logs": bad},
        "code": {"code": bad},
    }
    with pytest.raises(ValueError, match="control character"):
        replace(good, **changes[where])


@pytest.mark.parametrize("sign", EVIL, ids=ascii)
@pytest.mark.parametrize("key", sorted(field.name for field in fields(Cluster) if field.type == (str | None)))
def test_a_control_character_in_a_profile_is_refused_when_it_is_read(key: str, sign: str) -> None:
    values: dict[str, Any] = {key: f"/x{sign}touch PWN"}
    with pytest.raises(ValueError, match=f"{key}=.* contains the control character"):
        Cluster(name="a", **values)


@pytest.mark.parametrize(
    "values",
    [
        {"environment": {"A": "1\n2"}},
        {"sbatch": {"comment": "1\ntouch PWN"}},
        {"binds": ("/data", "/a\nb")},
        {"apptainer": "apptainer\nexec"},
    ],
)
def test_a_control_character_inside_a_list_or_a_mapping_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="contains the control character"):
        Cluster(name="a", **values)


def test_setup_is_code_and_may_have_lines() -> None:
    assert "if true\nthen" in submitit_script(submission(replace(PLAIN, setup=("if true\nthen module load a\nfi",))))


@pytest.mark.parametrize("sign", ["%", "\\"])
def test_a_log_path_that_slurm_reads_as_a_pattern_is_refused(sign: str) -> None:
    home = Path(f"/runs/u{sign}u x")
    with pytest.raises(ValueError, match="Slurm reads as a pattern in names of logs; use a folder without it"):
        submission(PLAIN, home)
    local = Cluster(name="here", executor="local")
    assert submission(local, home).logs == home / "logs"
    with pytest.raises(ValueError, match="submitit reads as a pattern"):
        submission(local, Path("/runs/50%test"))
