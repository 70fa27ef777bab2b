"""Trainings on a real Slurm that a test stops, breaks and compares."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from deeplense.training import checkpoint
from jobs.runs.attempts import read_attempts
from launch.record import launched
from launch.slurm import jobs_before
from tests.cluster.hooks.counted_state import last_state, newest
from tests.cluster.private_slurm import NUM_HOSTS, PrivateSlurm, surroundings

HOOKS = Path(__file__).parent / "hooks"
ROOT = Path(__file__).parents[2]
STEPS = range(30)
NEVER = 10**9
COMMON = {
    "batch_size": 16,
    "epochs": 5.6,
    "evaluate_epochs": 2,
    "log_interval": 1,
    "checkpoint_minutes": 0.0001,
    "device": "cpu",
}
SETTINGS = {
    "train": COMMON | {"model_name": "simple_cnn", "random_rotation": 20, "dropout": 0.1},
    "pretrain": COMMON | {"model_name": "test_vit", "num_local": 2, "hidden_dim": 16, "out_dim": 32, "drop_path": 0.1},
    "diffuse": COMMON | {"model_name": "unet_small", "conditions": "class", "num_times": 50, "num_sampled": 4},
}
COUNTS = {"epochs": len(STEPS), "device": "cpu"}
"""Settings of a job that counts its epochs as steps."""


PATIENCE_SECONDS = 400.0
"""How long a machine that is busy may take for something that takes seconds on a quiet one."""


def wait_for(condition: Callable[[], Any], what: Callable[[], str], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until something holds, and return it. Raises TimeoutError with what there is instead."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what())
        time.sleep(0.1)
    return value


@dataclass(frozen=True)
class Training:
    """One submitted training on 2 nodes, in a folder of the test with hooks for its ranks; with `counts`, ranks that
    count, without torch, in its place."""

    slurm: PrivateSlurm
    home: Path
    dataset: Path
    run_folder: Path | None = None
    job: Literal["train", "pretrain", "diffuse"] = "train"
    tasks_per_node: int = 1
    counts: bool = False

    @property
    def num_ranks(self) -> int:
        """On both nodes."""
        return 2 * self.tasks_per_node

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.run_folder or self.home / "run"

    @property
    def job_id(self) -> str:
        """Slurm's name for it, or for the job that goes on in its place."""
        return launched(self.run).job_id or ""

    def deeplense(self, *words: str, check: bool = True) -> str:
        """A `deeplense` command as a user types it; returns what it says."""
        path = self.slurm.environment["PATH"]
        environment = surroundings() | {"DEEPLENSE_CLUSTERS": str(self.home / "clusters.yaml"), "PATH": path}
        # Jobs have the priority of what submits them; ranks that count mostly wait, and are to come first.
        command = [*([] if self.counts else ["nice", "-n", "5"]), sys.executable, "-m", "launch", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(
        self, *options: str, verb: str = "submit", profile: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        """Submit it, with these options and settings, and changes of the profile."""
        self.write_profile(profile or {})
        self.deeplense(verb, "--on", "test", "--allow_untracked", *options, *self.job_words(**settings))

    def job_words(self, **settings: Any) -> list[str]:
        """The job as it stands on the command line."""
        values = (COUNTS if self.counts else SETTINGS[self.job]) | {"dataset": self.dataset, "run": self.run} | settings
        return [self.job, *(f"--{name}={value}" for name, value in values.items())]

    def write_profile(self, profile: Mapping[str, Any]) -> None:
        """The cluster as the command line knows it."""
        basic = {
            "slurm_conf": str(self.slurm.folder / "slurm.conf"),
            "partition": "normal",
            "nodes": 2,
            "tasks_per_node": self.tasks_per_node,
            "hours": 0.5,
            "environment": {"DEEPLENSE_TEST": str(self.home), "OMP_NUM_THREADS": "1"}
            | ({"DEEPLENSE_COUNTS": "1"} if self.counts else {}),
            "setup": [f'export PYTHONPATH="$PYTHONPATH:{HOOKS}"'],
        }
        (self.home / "clusters.yaml").write_text(yaml.safe_dump({"test": basic | dict(profile)}))

    def hold(self, step: int) -> None:
        """Let no rank begin this step."""
        temporary = self.home / ".hold"
        temporary.write_text(str(step))
        temporary.replace(self.home / "hold")

    def attempts(self) -> list[dict[str, Any]]:
        """All attempts so far."""
        return read_attempts(self.run)

    def ends(self) -> list[str]:
        """Why they ended, those that did."""
        return [attempt["ended"] for attempt in self.attempts() if attempt["ended"]]

    def kinds(self) -> list[str]:
        """The same without details."""
        return [re.split(r"[:(]", end)[0] for end in self.ends()]

    def num_concluded(self) -> int:
        """The attempts whose end the launcher has judged."""
        return sum("concluded" in attempt for attempt in self.attempts())

    def describe(self) -> str:
        """All that helps to see what went wrong."""
        paths = sorted(launched(self.run).logs.glob("*_log.out"))
        logs = "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)
        queue = self.slurm.ask("squeue", "--long") or ""
        return f"{self.attempts()}\n{queue}\n{logs}"

    def wait_until_held(self, *, attempt: int, step: int) -> None:
        """Wait until all ranks of an attempt wait before this step, the steps before being done."""
        files = [self.home / f"samples_{attempt}_{rank}.txt" for rank in range(self.num_ranks)]

        def there() -> bool:
            begun = len(self.attempts()) >= attempt and self.attempts()[attempt - 1]["first_step"] is not None
            if not begun:
                return False
            if self.attempts()[attempt - 1]["first_step"] >= step:
                return True
            return all(f.exists() and f.read_text().endswith("\n") and last_step(f) >= step - 1 for f in files)

        wait_for(there, self.describe)
        time.sleep(0.3)

    def wait_for_attempt(self, number: int, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until an attempt works."""
        wait_for(
            lambda: len(self.attempts()) >= number and self.attempts()[number - 1]["first_step"] is not None,
            self.describe,
            seconds=seconds,
        )

    def wait_for_end(self, attempt: int) -> None:
        """Wait until an attempt has ended and the launcher has said why."""
        wait_for(lambda: len(self.attempts()) >= attempt and "concluded" in self.attempts()[attempt - 1], self.describe)

    def wait_until_over(self, *, seconds: float = 2 * PATIENCE_SECONDS) -> None:
        """Wait until Slurm knows nothing of it any more."""
        wait_for(lambda: not self.state(), self.describe, seconds=seconds)

    def state(self) -> str:
        """Its state in the queue, of its own job or of one that goes on in its place; empty when it is over."""
        ours = self.job_id
        rows = [line.split("|") for line in (self.slurm.ask("squeue", "-h", "-r", "-o", "%i|%T|%j") or "").splitlines()]
        states = [row[1] for row in rows if row[0] == ours] + [row[1] for row in rows if ours in jobs_before(row[2])]
        return next(iter(states), "")

    def accounted(self) -> str:
        """The state of its last start in the accounting."""
        words = ("--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={self.job_id}")
        return (self.slurm.ask("sacct", *words) or "").split("\n")[0].split(" ")[0]

    def ranks(self) -> dict[int, int]:
        """Process ids of its ranks on all hosts, by rank."""
        found = {}
        for host in range(1, NUM_HOSTS + 1):
            for pid in self.slurm.processes_of(host):
                variables, command = environment_of(pid), command_of(pid)
                is_rank = "python" in command.split(" ")[0] and "submitit.core._submit" in command
                if (
                    is_rank
                    and variables.get("DEEPLENSE_FOLDER") == str(self.run)
                    and "SLURM_STEP_NUM_TASKS" in variables
                ):
                    found.setdefault(int(variables["SLURM_PROCID"]), pid)
        return found

    def programs(self, name: str) -> list[int]:
        """Process ids of `srun`, `slurmstepd` or the batch `script` of this job, on the node of the first rank."""
        found, hosts = [], self.hosts()
        for pid in self.slurm.processes_of(hosts[0]) if hosts else ():
            command = command_of(pid)
            if name == "slurmstepd":
                is_it = command.startswith(f"slurmstepd: [{self.job_id}.") and "batch" not in command
            elif environment_of(pid).get("SLURM_JOB_ID") != self.job_id:
                is_it = False
            elif name == "script":
                is_it = "/slurm_script" in command
            else:
                is_it = command.split(" ")[0].endswith("srun")
            found += [pid] if is_it else []
        return found

    def wait_until_lost(self) -> None:
        """Wait until Slurm has noticed that a node of the job is gone, or a minute."""
        restarts = self.restarts()
        deadline = time.monotonic() + 60
        while self.restarts() == restarts and self.state() and time.monotonic() < deadline:
            time.sleep(0.2)

    def restarts(self) -> int:
        """How often Slurm has started the job again."""
        fields = self.slurm.ask("scontrol", "show", "job", self.job_id) or ""
        match = re.search(r"\bRestarts=(\d+)", fields)
        return int(match[1]) if match else 0

    def hosts(self) -> list[int]:
        """The hosts that it runs on, the first rank's first."""
        fields = self.slurm.ask("scontrol", "show", "job", self.job_id) or ""
        match = re.search(r"\bNodeList=node(\[[-\d,]+\]|\d)", fields.replace("ReqNodeList", ""))
        names = self.slurm.ask("scontrol", "show", "hostnames", f"node{match[1]}") if match else ""
        return [int(name.removeprefix("node")) for name in (names or "").split()]

    def processes(self) -> list[str]:
        """Command lines of processes of this run, on any host, that still live."""
        wanted = str(self.run)
        found = [(pid, environment_of(pid).get("DEEPLENSE_FOLDER")) for pid in all_pids()]
        return [command_of(pid) for pid, folder in found if folder == wanted]

    def weights(self) -> dict[str, Any]:
        """All tensors of the last checkpoint."""
        path, _ = checkpoint.newest_good(self.run / "checkpoints")
        assert path is not None, self.describe()
        return checkpoint.load(path)

    def samples(self) -> dict[int, list[list[list[int]]]]:
        """For each step the samples of each rank, once for each time that it was made."""
        found: dict[int, list[list[list[int]]]] = {}
        for attempt in range(1, len(self.attempts()) + 1):
            ranks = [read_samples(self.home / f"samples_{attempt}_{rank}.txt") for rank in range(self.num_ranks)]
            # A step that only some ranks came to was not made.
            for step in set.intersection(*(set(rank) for rank in ranks)):
                found.setdefault(step, []).append([rank[step] for rank in ranks])
        return found

    def wandb_ids(self) -> set[str]:
        """Ids under which attempts were logged."""
        return {path.name.rpartition("-")[2] for path in (self.run / "wandb").glob("offline-run-*")}


def counting(slurm: PrivateSlurm, home: Path) -> Training:
    """A job that counts, not yet submitted; of its data only the name is asked for."""
    dataset = home / "data"
    (dataset / "train").mkdir(parents=True)
    (dataset / "train" / "manifest.json").write_text("{}")
    return Training(slurm, home, dataset, counts=True)


def last_step(path: Path) -> int:
    """The last step in a file of samples."""
    return int(path.read_text().splitlines()[-1].split()[0])


def read_samples(path: Path) -> dict[int, list[int]]:
    """The samples of each step of a rank."""
    lines = [list(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []
    return {line[0]: line[1:] for line in lines}


def all_pids() -> list[int]:
    """All processes of this machine."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process began with; empty where it is gone."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def command_of(pid: int) -> str:
    """The command line of a process; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)


def take_all_nodes(slurm: PrivateSlurm) -> str:
    """Submit an urgent job that wants all nodes for a moment; returns its id."""
    words = (
        "sbatch",
        "--parsable",
        "-p",
        "urgent",
        f"-N{NUM_HOSTS}",
        "--exclusive",
        "-t",
        "1",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 1",
    )
    answer = slurm.ask(*words)
    assert answer
    return answer.strip()


def assert_nothing_was_lost(training: Training, unbroken: Training) -> None:
    """Every step had the samples that it has in an unbroken run, on each rank; the weights have the same bits; no
    process is left."""
    ours, theirs = training.samples(), unbroken.samples()
    assert set(ours) == set(theirs) == set(STEPS), training.describe()
    assert [step for step in STEPS if any(made != theirs[step][0] for made in ours[step])] == []
    first, second = training.weights(), unbroken.weights()
    assert first.keys() == second.keys()
    states = [name for name in first if name not in ("record", "progress")]
    differing = [name for name in states if not same(first[name], second[name])]
    assert differing == [], training.describe()
    assert_no_process_is_left(training)


def assert_counted_to_the_end(training: Training) -> None:
    """Every step was made, and the accounting says that the job is completed."""
    assert_every_step_was_made(training)
    assert_accounted(training, "COMPLETED")


def assert_every_step_was_made(training: Training) -> None:
    """Every step was made once, none with another left out before it; the run says that it is finished; no process is
    left."""
    step, state = newest(training.run / "checkpoints")
    assert (step, state) == (len(STEPS), last_state(len(STEPS))), training.describe()
    # Ranks may finish a run after the script that started them has given them up.
    assert (training.run / "finished.json").exists(), training.describe()
    assert_no_process_is_left(training)


def assert_accounted(training: Training, state: str) -> None:
    """The last start of the job has this state in the accounting, which learns of it a moment later."""
    wait_for(
        lambda: training.accounted() == state, lambda: f"{training.accounted()}\n{training.describe()}", seconds=60
    )


def assert_no_process_is_left(training: Training) -> None:
    """Slurm tells that a job is over a moment before the last of its processes is."""
    wait_for(lambda: not training.processes(), lambda: f"left: {training.processes()}", seconds=30)


def same(first: object, second: object) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        assert isinstance(second, dict)
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))  # type: ignore[arg-type]
    return first == second


def steps_lost(training: Training) -> list[int]:
    """For each attempt but the last how many of its steps were made again."""
    attempts = training.attempts()
    return [first["last_step"] - second["first_step"] for first, second in itertools.pairwise(attempts)]
