"""What stopping and restarting costs on a private Slurm: `python -m tests.cluster.measure`, on a quiet machine.

From a requeue to the first new step, less what Slurm itself takes and what importing torch takes in as many processes;
and the agreement on stopping, which is made in each step.
"""

import re
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import NEVER, ROOT, Training, wait_for
from tests.conftest import write_blobs

ROUNDS = 5
IMPORTS = "import torch, timm, accelerate, sklearn.metrics, h5py, submitit"
AGREE = """
import os, time, torch
from launch.task import become_rank
become_rank(os.environ)
from deeplense.training.loop import agree, make_accelerator
accelerator = make_accelerator(device="cpu", precision="fp32")
for _ in range(100): agree(accelerator, 0)
begun = time.perf_counter()
for _ in range(2000): agree(accelerator, 0)
took = (time.perf_counter() - begun) / 2000
told = f"agreement: {1e3 * took:.3f} ms a step, {accelerator.num_processes} ranks"
if accelerator.is_main_process: print(told, flush=True)
accelerator.wait_for_everyone()
os._exit(0)
"""


def measure_restart(slurm: PrivateSlurm, home: Path) -> dict[str, float]:
    """Seconds of each part of one restart."""
    training = Training(slurm, home, home.parent / "data")
    training.hold(4)
    training.submit()
    training.wait_until_held(attempt=1, step=4)
    told = time.time()
    slurm.ask("scancel", "--signal=TERM", training.job_id)
    training.hold(NEVER)
    first = wait_for(lambda: next(iter(home.glob("samples_2_0.txt")), None), training.describe)
    stepped = first.stat().st_ctime
    stepped = min(stepped, time.time())
    saved = seconds(training.attempts()[0]["concluded"])
    begun = start_of(slurm, training.job_id)
    training.wait_until_over()
    imported = measure_imports(slurm, home)
    return {
        "signal to end": saved - told,
        "Slurm": begun - saved,
        "to first step": stepped - begun,
        "imports": imported,
    }


def start_of(slurm: PrivateSlurm, job_id: str) -> float:
    """When Slurm started a job the last time."""
    match = re.search(r"StartTime=(\S+)", slurm.ask("scontrol", "show", "job", job_id) or "")
    assert match
    return seconds(match[1])


def seconds(text: str) -> float:
    """A time as Slurm and the attempts write it, to the second."""
    return datetime.fromisoformat(text).timestamp()


def measure_imports(slurm: PrivateSlurm, home: Path) -> float:
    """Seconds from the start of a job to the end of the imports, in four processes on two nodes."""
    script = home / "imports.sh"
    done = home / "imported"
    script.write_text(f"#!/bin/bash\nsrun {ROOT}/.venv/bin/python -c '{IMPORTS}'\ndate +%s.%N > {done}\n")
    job_id = slurm.ask("sbatch", "--parsable", "-N2", "--ntasks-per-node=2", "-o", "/dev/null", str(script))
    assert job_id
    wait_for(done.exists, lambda: "imports did not end")
    time.sleep(0.2)
    return float(done.read_text()) - start_of(slurm, job_id.strip())


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True) as folder:
        slurm = PrivateSlurm(Path(folder), number=71)
        slurm.start()
        try:
            work = Path(folder) / "work"
            write_blobs(work / "data", "train", 96)
            rows = []
            for k in range(ROUNDS):
                (work / f"r{k}").mkdir()
                rows.append(measure_restart(slurm, work / f"r{k}"))
                print(rows[-1], flush=True)
            for name in rows[0]:
                values = [row[name] for row in rows]
                print(f"{name}: median {statistics.median(values):.1f} s [{min(values):.1f}, {max(values):.1f}]")
            (work / "agree.py").write_text(AGREE)
            meeting = "MASTER_ADDR=node1 MASTER_PORT=23456"
            addresses = f"DEEPLENSE_NODE_ADDRESSES='{slurm.address(1)} {slurm.address(2)}'"
            setup = f"export PYTHONPATH={ROOT} {meeting} {addresses}"
            script = work / "agree.sh"
            script.write_text(f"#!/bin/bash\n{setup}\nsrun {ROOT}/.venv/bin/python {work / 'agree.py'}\n")
            slurm.ask(
                "sbatch",
                "--wait",
                "-N2",
                "--ntasks-per-node=2",
                "-w",
                "node[1-2]",
                "-o",
                str(work / "agree.out"),
                str(script),
            )
            print((work / "agree.out").read_text())
        finally:
            slurm.stop()


if __name__ == "__main__":
    main()
