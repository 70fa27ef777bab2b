"""What stopping and restarting costs on a private Slurm: `python -m tests.cluster.measure [RANKS]`, on a quiet machine,
with so many ranks on each of two nodes (2 if not given; with 1, on a machine of two cores, each rank has its own).

From a requeue to the first new step, less what Slurm itself takes and what torch takes in as many processes: to be
imported, and to make an optimizer, at which it imports almost as much again; and the agreement on stopping, which is
made in each step.
"""

import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.cluster.private_slurm import PrivateSlurm
from tests.cluster.trainings import HOOKS, NEVER, ROOT, Training, wait_for
from tests.conftest import write_blobs

ROUNDS = 5
READY = {
    "torch imported": "import torch",
    "torch with an optimizer": "import torch; torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())",
    "all imported": "import torch, submitit, timm, accelerate, wandb, jobs.frame.train",
}


def measure_restart(slurm: PrivateSlurm, home: Path, tasks_per_node: int) -> dict[str, float]:
    """Seconds of each part of one restart."""
    training = Training(slurm, home, home.parent / "data", tasks_per_node=tasks_per_node)
    script_begins = home / "script_begins"
    setup = [f'export PYTHONPATH="$PYTHONPATH:{HOOKS}"', f"date +%s.%N > {script_begins}"]
    training.hold(4)
    training.submit(profile={"setup": setup})
    training.wait_until_held(attempt=1, step=4)
    told = time.time()
    slurm.ask("scancel", "--signal=TERM", training.job_id)
    training.hold(NEVER)
    first = wait_for(lambda: next(iter(home.glob("samples_2_0.txt")), None), training.describe)
    stepped = min(first.stat().st_ctime, time.time())
    saved = datetime.fromisoformat(training.attempts()[0]["concluded"]).timestamp()
    begun = float(script_begins.read_text())
    training.wait_until_over()
    others = {name: measure_ready(slurm, home, code, tasks_per_node) for name, code in READY.items()}
    return {
        "signal to end": saved - told,
        "Slurm": begun - saved,
        "to first step": stepped - begun,
        **others,
    }


def measure_ready(slurm: PrivateSlurm, home: Path, code: str, tasks_per_node: int) -> float:
    """Seconds from the first line of a batch script until the last process on two nodes has run this code."""
    script, log = home / "ready.sh", home / "ready.log"
    code = f"{code}; import time; print(time.time(), flush=True)"
    lines = ("date +%s.%N", "export OMP_NUM_THREADS=1", f"cd {ROOT}", f"srun {ROOT}/.venv/bin/python -c '{code}'")
    script.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    log.unlink(missing_ok=True)
    slurm.ask("sbatch", "--wait", "-N2", f"--ntasks-per-node={tasks_per_node}", "-o", str(log), str(script))
    begun, *ready = map(float, log.read_text().split())
    return max(ready) - begun


def measure_agreement(slurm: PrivateSlurm, work: Path, tasks_per_node: int) -> str:
    """What `tests.cluster.agreement` says, on two nodes."""
    script, log = work / "agree.sh", work / "agree.out"
    addresses = f"DEEPLENSE_NODE_ADDRESSES='{slurm.address(1)} {slurm.address(2)}'"
    setup = f"export OMP_NUM_THREADS=1 PYTHONPATH={ROOT} MASTER_ADDR=node1 MASTER_PORT=23456 {addresses}"
    script.write_text(f"#!/bin/bash\n{setup}\nsrun {ROOT}/.venv/bin/python -m tests.cluster.agreement\n")
    nodes = ("-N2", f"--ntasks-per-node={tasks_per_node}", "-w", "node[1-2]")
    slurm.ask("sbatch", "--wait", *nodes, "-o", str(log), str(script))
    return log.read_text()


def main() -> None:
    """Measure and print."""
    tasks_per_node = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True) as folder:
        slurm = PrivateSlurm(Path(folder), number=71)
        slurm.start()
        try:
            work = Path(folder) / "work"
            write_blobs(work / "data", "train", 96)
            rows = []
            for k in range(ROUNDS):
                (work / f"r{k}").mkdir()
                rows.append(measure_restart(slurm, work / f"r{k}", tasks_per_node))
                print(rows[-1], flush=True)
            for name in rows[0]:
                values = [row[name] for row in rows]
                print(f"{name}: median {statistics.median(values):.1f} s [{min(values):.1f}, {max(values):.1f}]")
            print(measure_agreement(slurm, work, tasks_per_node))
        finally:
            slurm.stop()


if __name__ == "__main__":
    main()
