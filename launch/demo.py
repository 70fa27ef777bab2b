"""The whole workflow on one machine, with the commands that a user would type: simulate, train, interrupt, resume,
evaluate."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from jobs.imports import PYTHON
from jobs.runs.attempts import read_attempts
from jobs.runs.folder import FINISHED
from launch.status import is_active

RECIPE = Path(__file__).parent.parent / "jobs" / "recipes" / "classify_model_iii.yaml"
EXPECTED_AUC = 0.97
STOP_AFTER_STEP = 90


def demo(output: Path) -> int:
    """Run the workflow in a folder and print each command. Return 0 if the mean AUC is as expected, else 1."""
    started = time.monotonic()
    data, run = output / "data", output / "run"
    simulate = ["simulate", "--output", str(data), "--model", "Model_III", "--preset", "noisy", "--seed", "0"]
    call([*simulate, "--num_per_class", "560", "--split", "train"])
    call([*simulate, "--num_per_class", "500", "--split", "test"])
    if not (run / FINISHED).exists():
        train_with_a_stop(run, ["train", "--config", str(RECIPE), "--dataset", str(data), "--run", str(run)])
    call(["evaluate", "--run", str(run)])
    mean = json.loads((run / "report" / "report.json").read_text())["metrics"]["auc_macro"]["value"]
    print(f"\nmean AUC {mean:.4f} on held-out images (expected: {EXPECTED_AUC} or more)")
    print(f"{time.monotonic() - started:.0f} s in total; {len(read_attempts(run))} attempts: {run / 'attempts.jsonl'}")
    print(f"report: {(run / 'report' / 'index.html').resolve()}")
    return 0 if mean >= EXPECTED_AUC else 1


def command_line(words: list[str]) -> list[str]:
    """Print a deeplense command and return the process arguments that run it."""
    print(f"\n$ deeplense {shlex.join(words)}", flush=True)
    return [*PYTHON, "-m", "launch", *words]


def call(words: list[str]) -> None:
    """Run one command and wait for its end."""
    subprocess.run(command_line(words), check=True)


def train_with_a_stop(run: Path, words: list[str]) -> None:
    """Submit a training on this machine, send SIGTERM to one rank after some steps, as a scheduler does on preemption,
    and follow the run to its end."""
    call(["submit", "--on", "local", "--tasks_per_node", "2", "--allow_untracked", *words])
    try:
        stop_on_the_way(run)
        call(["logs", str(run), "--follow"])
    except KeyboardInterrupt:
        call(["cancel", str(run)])
        raise
    call(["status", str(run)])


def stop_on_the_way(run: Path) -> None:
    """Send SIGTERM to one rank after some steps."""
    while is_active(run.absolute()) and last_step(run) < STOP_AFTER_STEP:
        time.sleep(0.2)
    if is_active(run.absolute()) and len(read_attempts(run)) == 1:
        print(f"\nthe demo now sends SIGTERM to one of the two processes (step {last_step(run)})", flush=True)
        os.kill(read_attempts(run)[-1]["pid"], signal.SIGTERM)


def last_step(run: Path) -> int:
    """Return the last step in the metrics of a run, or 0."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0
