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
IMPORTS = {"import of torch": "torch", "import of all": "torch, submitit, jobs.training_run"}


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
    imports = {name: measure_imports(slurm, home, modules) for name, modules in IMPORTS.items()}
    return {
        "signal to end": saved - told,
        "Slurm": begun - saved,
        "to first step": stepped - begun,
        **imports,
    }


def start_of(slurm: PrivateSlurm, job_id: str) -> float:
    """When Slurm started a job the last time."""
    match = re.search(r"StartTime=(\S+)", slurm.ask("scontrol", "show", "job", job_id) or "")
    assert match
    return seconds(match[1])


def seconds(text: str) -> float:
    """A time as Slurm and the attempts write it, to the second."""
    return datetime.fromisoformat(text).timestamp()


def measure_imports(slurm: PrivateSlurm, home: Path, modules: str) -> float:
    """Seconds from the start of a job to the end of imports in the last of four processes on two nodes."""
    script = home / "imports.sh"
    log = home / "imports.log"
    code = f"import time, {modules}; print(time.time(), flush=True)"
    script.write_text(f"#!/bin/bash\nexport OMP_NUM_THREADS=1\ncd {ROOT}\nsrun {ROOT}/.venv/bin/python -c '{code}'\n")
    log.unlink(missing_ok=True)
    words = ("sbatch", "--parsable", "--wait", "-N2", "--ntasks-per-node=2", "-o", str(log), str(script))
    job_id = slurm.ask(*words)
    assert job_id
    return max(map(float, log.read_text().split())) - start_of(slurm, job_id.split()[0])


def measure_agreement(slurm: PrivateSlurm, work: Path) -> str:
    """What `tests.cluster.agreement` says, on two nodes with two ranks each."""
    script, log = work / "agree.sh", work / "agree.out"
    addresses = f"DEEPLENSE_NODE_ADDRESSES='{slurm.address(1)} {slurm.address(2)}'"
    setup = f"export OMP_NUM_THREADS=1 PYTHONPATH={ROOT} MASTER_ADDR=node1 MASTER_PORT=23456 {addresses}"
    script.write_text(f"#!/bin/bash\n{setup}\nsrun {ROOT}/.venv/bin/python -m tests.cluster.agreement\n")
    nodes = ("-N2", "--ntasks-per-node=2", "-w", "node[1-2]")
    slurm.ask("sbatch", "--wait", *nodes, "-o", str(log), str(script))
    return log.read_text()


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
            print(measure_agreement(slurm, work))
        finally:
            slurm.stop()


if __name__ == "__main__":
    main()
