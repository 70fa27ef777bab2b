"""What the small job that looks at the nodes asks for, and what is told of its answers."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import probe, slurm
from launch.probe import node_findings, probe_script, read_probe, requeue_finding, wait_for_probe
from tests.launch.made_up import MINE

SEEN = {
    "node": "node1",
    "sees": True,
    "python": "3.11.7",
    "packages": {"torch": "2.9.0", "submitit": "1.5.4"},
    "gpus": 2,
    "free": {"DEEPLENSE_SCRATCH": 400.0, "DEEPLENSE_NODE_LOCAL": None},
}


def told_by(*nodes: Mapping[str, Any], log: str = "", **profile: Any) -> list[str]:
    """The findings of a job that looked at nodes, as lines."""
    found = node_findings(MINE.override(nodes=len(nodes), **profile), nodes, log)
    return [f"{finding.level}: {finding.text}" for finding in found]


def test_nodes_that_say_the_same_share_a_line(here: Path) -> None:
    assert told_by(SEEN | {"node": "node2"}, SEEN, gpus_per_node=2, scratch="/s", node_local="/l") == [
        f"right: node1,node2: can access {here}",
        "right: node1,node2: has Python 3.11.7, torch 2.9.0, submitit 1.5.4",
        "right: node1,node2: torch sees 2 of 2 GPUs",
        "right: node1,node2: scratch /s: 400.0 GB free",
        "wrong: node1,node2: node_local /l: the folder does not exist; create it, or correct the path.",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"sees": False}, "wrong: node2: cannot access"),
        (
            {"packages": {"torch": "ImportError: libcudart.so"}},
            "wrong: node2: cannot import torch (ImportError: libcud",
        ),
        ({"gpus": 0}, "wrong: node2: torch sees 0 of 2 GPUs"),
    ],
)
def test_a_node_that_differs_has_a_line_of_its_own(change: dict[str, Any], line: str, here: Path) -> None:
    lines = told_by(SEEN, SEEN | {"node": "node2"} | change, gpus_per_node=2)
    assert [found for found in lines if found.startswith(line)]


def test_nodes_that_say_nothing_are_told_with_what_the_log_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LATE_S", 0.0)
    log = here / "log"
    two = MINE.override(nodes=2)
    (unseen,) = node_findings(two, *read_probe(log, 2))
    assert "reported on 0 of 2 nodes" in unseen.text
    assert f"{here} may not be visible on the nodes" in unseen.text
    log.write_text('module: not found\ndeeplense-node: {"node": "node1"}\nsrun: error: node2: exit 127\n')
    told, rest = read_probe(log, 2)
    assert told == [{"node": "node1"}]
    assert rest == "module: not found srun: error: node2: exit 127"


def test_the_job_that_looks_asks_as_the_real_one_does(here: Path) -> None:
    cluster = MINE.override(
        nodes=2,
        gpus_per_node=2,
        qos="short",
        setup=("module load cuda",),
        environment={"A": "b c"},
        node_local="$TMPDIR",
        python="/opt/python",
    )
    script = probe_script(cluster, here)
    for line in ("#SBATCH --nodes=2", "#SBATCH --qos=short", "#SBATCH --gpus-per-node=2", "#SBATCH --requeue"):
        assert f"{line}\n" in script
    assert script.index("export DEEPLENSE_NODE_LOCAL=\"$TMPDIR\"\nexport A='b c'\nmodule load cuda\nsrun ") > 0
    assert "/opt/python -c" in script
    assert "launch.requeue" not in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_a_site_that_takes_the_restart_away_is_told() -> None:
    assert requeue_finding("JobId=7 Requeue=1 Restarts=0").level == "right"
    assert "deeplense resume" in requeue_finding("JobId=7 Requeue=0 Restarts=0").text


def test_a_small_job_is_waited_for_while_it_runs_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(probe, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    states = iter([{"7": ("PENDING", "None")}, *[{"7": ("RUNNING", "None")}] * 20, {}])
    monkeypatch.setattr(slurm, "queued", lambda _: next(states))
    assert wait_for_probe(None, "7") is None
    monkeypatch.setattr(slurm, "queued", lambda _: {"7": ("PENDING", "Priority")})
    assert wait_for_probe(None, "7") == "pending (Priority) after 60 s"
    monkeypatch.setattr(slurm, "queued", lambda _: {"7": ("RUNNING", "None")})
    assert wait_for_probe(None, "7") == "running (None) after 360 s"
