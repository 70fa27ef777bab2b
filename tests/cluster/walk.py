"""A batch script whose commands fail, die or hang where a test wants it: what stands before each of them on the PATH.

A command that is walked looks in the folder of its run for `plan`, a line `MODE TIMES START PATTERN`: from the START-th
start of the job on, the first TIMES calls that match the pattern are made to `fail`, are killed (`kill`), `hang`, or
take the whole `script` with them.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from launch.clusters import Cluster
from launch.record import keep, record, told_in
from launch.script import FOLDERS, submitit_script
from launch.submission import Submission
from launch.submit import write_pickles
from tests.cluster.private_slurm import PrivateSlurm, surroundings
from tests.cluster.trainings import COUNTS, HOOKS, ROOT, Training

WALKED = ("scontrol", "sacct", "squeue", "sbatch", "scancel", "srun", "cp", "mv", "python")
MEANS = {"timeout", "bash"}
"""Programs by which others are asked."""
ANSWER_S, START_S = 20, 60
WRAPPER = r"""#!/bin/bash
name="${0##*/}"
case "$*" in
*"launch.requeue begin"*) words="python begin" ;;
*"launch.requeue end"*) words="python end" ;;
*) words="$name $*" ;;
esac
read -r mode times start pattern < "$WALK/plan"
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$start" ] && [[ "$words" == $pattern* ]]; then
    hits=0
    [ ! -e "$WALK/hits" ] || while read -r _; do hits=$((hits + 1)); done < "$WALK/hits"
    if [ "$hits" -lt "$times" ]; then
        echo "$words" >> "$WALK/hits"
        case "$mode" in
        fail) echo "made to fail" >&2; exit 1 ;;
        kill) kill -KILL $$ ;;
        hang) exec sleep 1000 ;;
        script)
            pid=$$ top=$$
            while [ "$pid" -gt 1 ]; do
                [[ "$(tr '\0' ' ' < "/proc/$pid/cmdline")" != *slurm_script* ]] || top=$pid
                pid="$(sed 's/.*) . \([0-9]*\).*/\1/' "/proc/$pid/stat")"
            done
            kill -KILL "$top"
            exit 1
            ;;
        esac
    fi
fi
"""


@dataclass(frozen=True)
class Walk:
    """A run on one node, and what is to happen to a command of its script; its logs and its code lie apart from it."""

    slurm: PrivateSlurm
    home: Path
    run_folder: Path | None = None

    @property
    def run(self) -> Path:
        """Its folder."""
        return self.run_folder or self.home / "run"

    @property
    def log(self) -> str:
        """What its batch scripts and its first rank have said."""
        return "".join(path.read_text(errors="replace") for path in sorted((self.home / "logs").glob("*_0_log.out")))

    @property
    def training(self) -> Training:
        """It, as other tests ask of it."""
        return Training(self.slurm, self.home, Path("none"), run_folder=self.run, tasks_per_node=1, counts=True)

    @property
    def was_struck(self) -> bool:
        """Whether the command was called, and what was to happen to it did."""
        return (self.home / "hits").exists()

    def submit(self, command: str, mode: str, *, start: int = 0, times: int = 1, crashes: int = 3) -> None:
        """Submit it, to crash in its first attempt, and let something happen to a command."""
        (self.home / "die").write_text("1 0 before_step 3\n")
        self.send(f"{mode} {times} {start} {command}", crashes=crashes)

    def send(self, plan: str = "fail 0 0 nothing", *, crashes: int = 3) -> None:
        """Submit it, with a plan for a command."""
        for folder in (self.home / "bin", self.home / "logs", self.run):
            folder.mkdir(parents=True)
        for name in WALKED:
            self.wrap(name)
        (self.home / "plan").write_text(f"{plan}\n")
        submission = self.submission(crashes)
        (submission.code).symlink_to(ROOT)
        (submission.logs / FOLDERS).write_text(f"{self.run}\n")
        record(submission, 0)
        script = self.home / "job.sh"
        write_pickles(submission)
        script.write_text(submitit_script(submission))
        path = self.slurm.environment["PATH"]
        environment = surroundings() | self.slurm.environment | self.variables | {"PATH": f"{self.home / 'bin'}:{path}"}
        words = [shutil.which("sbatch", path=path) or "sbatch", "--parsable", str(script)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        keep(self.run, told_in(self.run) | {"job_id": done.stdout.strip()})

    @property
    def variables(self) -> dict[str, str]:
        """What makes the script quick, and tells what stands before its commands where to look."""
        quick = {"PAUSE_S": 1, "ANSWER_S": ANSWER_S, "START_S": START_S}
        told = {f"DEEPLENSE_{name}": str(seconds) for name, seconds in quick.items()}
        return told | {"OMP_NUM_THREADS": "1", "WALK": str(self.home)}

    def submission(self, crashes: int = 3) -> Submission:
        """What is submitted."""
        cluster = Cluster(
            name="walk",
            slurm_conf=str(self.slurm.folder / "slurm.conf"),
            partition="normal",
            signal_delay_s=10,
            python=str(self.home / "bin" / "python"),
            environment={"DEEPLENSE_TEST": str(self.home), "DEEPLENSE_COUNTS": "1", **self.variables},
            setup=(f'export PYTHONPATH="$PYTHONPATH:{HOOKS}" PATH="{self.home / "bin"}:$PATH"',),
            restarts={"crash": crashes},
        )
        settings = [f"--{name}={value}" for name, value in (COUNTS | {"dataset": "none", "run": self.run}).items()]
        return Submission(cluster, (("train", *settings),), (self.run,), self.home / "logs", self.home / "code")

    def wrap(self, name: str) -> None:
        """Put something before a command."""
        program = sys.executable if name == "python" else f'$(PATH="${{PATH//"${{0%/*}}:"/}}" type -P {name})'
        path = self.home / "bin" / name
        path.write_text(f'{WRAPPER}exec "{program}" "$@"\n')
        path.chmod(0o755)


def commands_of(script: str) -> tuple[set[str], set[str]]:
    """The programs that a batch script runs: those that it asks with a limit of seconds, and all others."""
    text = re.sub(r"^\s*#.*$|^.*deeplense_say.*$", "", script, flags=re.M).replace("\\\n", " ")
    text = re.sub(r"\(\(.*?\)\)", "", text)
    asked = set(
        re.findall(r"deeplense_ask \d+ (\S+(?: (?:-m launch\.(?:requeue \w+|copied)|show \w+|requeue|update))?)", text)
    )
    # A word where a command stands, but for the patterns of a case.
    text = re.sub(r"^\s*[\w* |\"]+\)(?=.*;;)", "", text, flags=re.M)
    before = r"(?:^|[;&|({]|\$\(|\b(?:do|then|else|if|while)\b|!)\s*"
    words = set(re.findall(before + r"([A-Za-z_][\w./-]*)(?=[\s;)]|$)", text, re.M))
    own = set(re.findall(r"^\s*(\w+)\(\)", text, re.M))
    known = subprocess.run(["bash", "-c", "compgen -b -k"], capture_output=True, text=True, check=True).stdout.split()
    return asked, words - own - set(known) - MEANS
