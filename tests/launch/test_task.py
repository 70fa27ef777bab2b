"""One task of a submitted job: which rank it is, where the ranks meet, and what happens to signals until it listens."""

import os
import pickletools
import signal
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from jobs.runs.attempts import EXIT_REFUSED
from launch.task import Run, become_rank, in_step, interface_to, local_size, other_node, reachable

MEETING = {
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "20123",
    "DEEPLENSE_NODE_ADDRESSES": "127.0.0.1 127.0.0.2 ",
}


def task(rank: int, *, tasks: int = 4, nodes: int = 2, spread: str = "2(x2)") -> dict[str, str]:
    """Slurm's variables of one task, `tasks // nodes` on each node."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % (tasks // nodes)),
        "SLURM_NODEID": str(rank // (tasks // nodes)),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_TASKS_PER_NODE": spread,
        "SLURM_CPUS_PER_TASK": "3",
    }


@pytest.mark.parametrize(("rank", "local_rank", "address_of_the_other"), [(0, 0, 2), (1, 1, 2), (2, 0, 1), (3, 1, 1)])
def test_each_task_of_two_nodes_becomes_its_rank(rank: int, local_rank: int, address_of_the_other: int) -> None:
    environment = task(rank) | MEETING
    become_rank(environment)
    wanted = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "20123",
        "OMP_NUM_THREADS": "3",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    assert wanted.items() <= environment.items()
    assert other_node(environment) == f"127.0.0.{address_of_the_other}"


def test_a_single_task_is_no_rank() -> None:
    environment = task(0, tasks=1, nodes=1, spread="1")
    before = dict(environment)
    become_rank(environment)
    assert environment.keys() - before.keys() == {"OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL"}


def test_on_one_node_gloo_chooses_its_interface_itself() -> None:
    environment = task(1, tasks=2, nodes=1, spread="2") | MEETING
    become_rank(environment)
    assert (environment["RANK"], environment["LOCAL_WORLD_SIZE"]) == ("1", "2")
    assert "GLOO_SOCKET_IFNAME" not in environment


def test_what_the_user_chose_is_left_alone() -> None:
    chosen = {"OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "ib0", "TORCH_CPP_LOG_LEVEL": "INFO"}
    environment = task(3) | MEETING | chosen
    become_rank(environment)
    assert chosen.items() <= environment.items()


def test_the_cores_are_shared_out_where_slurm_names_none() -> None:
    environment = task(0) | MEETING
    del environment["SLURM_CPUS_PER_TASK"]
    become_rank(environment)
    assert environment["OMP_NUM_THREADS"] == str(max(len(os.sched_getaffinity(0)) // 2, 1))


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("4", 4), ("2(x4)", 2), ("16(x2)", 16)])
def test_tasks_on_each_node_are_read(text: str, number: int) -> None:
    assert local_size({"SLURM_STEP_TASKS_PER_NODE": text}) == number


@pytest.mark.parametrize("text", ["2,1", "2(x2),1", "4(x3),2(x1)"])
def test_tasks_that_are_spread_unevenly_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"distributed unevenly over the nodes \(.*\); use --ntasks-per-node"):
        become_rank(task(0, tasks=3, nodes=1, spread=text) | MEETING)


def test_several_tasks_that_have_nowhere_to_meet_are_refused() -> None:
    with pytest.raises(
        ValueError, match="several tasks, but MASTER_ADDR and MASTER_PORT are not set; use `deeplense submit`"
    ):
        become_rank(task(0))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MASTER_ADDR": "localhost", "DEEPLENSE_NODE_ADDRESSES": "10.0.0.7 10.0.0.8"}, "localhost"),
        ({"MASTER_ADDR": "n1.invalid", "DEEPLENSE_NODE_ADDRESSES": "10.0.0.7 10.0.0.8"}, "10.0.0.7"),
        ({"MASTER_ADDR": "n1.invalid", "DEEPLENSE_NODE_ADDRESSES": " "}, "n1.invalid"),
        ({"MASTER_ADDR": "n1.invalid"}, "n1.invalid"),
    ],
)
def test_a_node_without_a_name_here_is_reached_by_its_address(variables: dict[str, str], expected: str) -> None:
    assert reachable(variables) == expected


def test_the_interface_of_an_address_is_found_and_nonsense_has_none() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.host.invalid") is None


def test_a_run_is_pickled_as_a_name_and_words_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run("train", ("--config", "recipe.yaml", "--run=runs/first"))
    pickled = cloudpickle.dumps(run)
    assert cloudpickle.loads(pickled) == run
    texts = {argument for code, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}
    assert {"train", "--config", "recipe.yaml", "--run=runs/first", "launch.task", "Run"} <= texts
    assert not any(str(tmp_path) in text for text in texts)
    assert len(pickled) < 300


STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    ("variables", "inside"),
    [
        (STEP, True),
        (STEP | {"SUBMITIT_EXECUTOR": "slurm"}, True),
        ({"SLURM_JOB_ID": "4"}, False),
        # A batch script of Slurm 26.05.
        ({"SLURM_JOB_ID": "4", "SLURM_STEP_ID": "-5"}, False),
        # Submitted to this machine from an interactive step.
        (STEP | {"SUBMITIT_EXECUTOR": "local"}, False),
    ],
)
def test_only_srun_makes_a_task_a_rank(
    variables: dict[str, str], inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(known, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert in_step() == inside


SIGNALLED = """
import os, signal, sys
from deeplense.training.stopping import StopFlag
from launch.task import hold_signals

for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
    signal.signal(number, lambda *arguments: print("submitit's handler", flush=True))
hold_signals(sys.argv[1])
os.kill(os.getpid(), signal.SIGCONT)
os.kill(os.getpid(), getattr(signal, sys.argv[2]))
with StopFlag() as flag:
    print(flag.signal_name)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
@pytest.mark.parametrize(("job", "waits"), [("train", True), ("benchmark models", True), ("simulate", False)])
def test_a_signal_that_comes_too_early_waits_or_ends_a_job_that_saves_nothing(job: str, waits: bool, name: str) -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED, job, name], capture_output=True, text=True)
    expected = (f"{name}\n", 0) if waits else ("", -getattr(signal, name))
    assert (done.stdout, done.returncode) == expected, done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (task(0, tasks=1, nodes=1, spread="1"), "unknown job 'trian'. Did you mean train?"),
        (task(0), "several tasks, but MASTER_ADDR and MASTER_PORT are not set"),
        (task(0, spread="3,1") | MEETING, "tasks are distributed unevenly over the nodes (3,1)"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_code_2(variables: dict[str, str], said: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in MEETING}
    words = [sys.executable, "-m", "launch.task", "trian"]
    done = subprocess.run(words, env=inherited | variables, capture_output=True, text=True)
    assert said in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_REFUSED, 1), done.stderr
