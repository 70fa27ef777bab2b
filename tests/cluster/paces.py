"""Steps per second of a training by 1, 2 and 4 ranks on this machine, by this tree of the project and by another one,
in turns: `python -m tests.cluster.paces OTHER`. Ratios are of one run; a quiet machine makes them narrow."""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TURNS, WARM, STEPS = 10, 2, 25
SECONDS_BETWEEN_LOOKS = 0.005
SETTINGS: dict[str, Any] = {
    "model_name": "simple_cnn",
    "batch_size": 32,
    "epochs": 1e6,
    "evaluate_epochs": 1e6,
    "checkpoint_minutes": 1e6,
    "device": "cpu",
}


def be_rank(folder: Path, name: str) -> None:
    """Train, so many steps whenever it is this side's turn; the first rank tells how long they took."""
    import torch

    from deeplense.training.stopping import StopFlag
    from jobs.frame.staging import Copies
    from jobs.frame.start import begin
    from jobs.frame.updates import advance
    from jobs.frame.watchdog import Watchdog
    from jobs.runs.claim import Claim
    from jobs.train.learner import Supervised
    from jobs.train.settings import Settings

    torch.set_num_threads(1)
    settings = Settings(run=folder / name, dataset=str(folder / "data"), **SETTINGS)
    stop, watchdog = StopFlag(), Watchdog(settings.run, minutes=0)
    training = begin(settings, lambda: Supervised.of(settings), watchdog, Copies(stop, watchdog), Claim(settings))
    assert training is not None
    updates = advance(training, stop)
    for turn in range(TURNS):
        wait_for(folder / f"{name}-{turn}")
        begun = time.perf_counter()
        for _ in range(STEPS):
            next(updates)
        seconds = time.perf_counter() - begun
        if training.weights.accelerator.is_main_process:
            (folder / f"{name}-{turn}.part").write_text(str(seconds))
            (folder / f"{name}-{turn}.part").rename(folder / f"{name}-{turn}.seconds")
    os._exit(0)


def wait_for(path: Path) -> None:
    """Wait until there is a file."""
    while not path.exists():
        time.sleep(SECONDS_BETWEEN_LOOKS)


def start(folder: Path, name: str, tree: Path, num_ranks: int, port: int) -> list[subprocess.Popen[bytes]]:
    """The ranks of one side."""
    shared = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    group |= {"GLOO_SOCKET_IFNAME": "lo"}
    environments = [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]
    command = [sys.executable, __file__, "rank", str(folder), name]
    return [
        subprocess.Popen(command, env=os.environ | shared | each, cwd=tree)
        for each in (environments if num_ranks > 1 else [{}])
    ]


def take_turns(sides: dict[str, Path], num_ranks: int, port: int) -> dict[str, list[float]]:
    """Steps per second of each side in each turn but the first ones; the sides are started in their order."""
    from tests.conftest import write_blobs

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        write_blobs(folder / "data", "train", 960, size=32)
        ranks = [start(folder, name, tree, num_ranks, port + k) for k, (name, tree) in enumerate(sides.items())]
        rates: dict[str, list[float]] = {name: [] for name in sides}
        try:
            for turn in range(TURNS):
                for name in sides if turn % 2 else reversed(sides):
                    (folder / f"{name}-{turn}").touch()
                    wait_for(folder / f"{name}-{turn}.seconds")
                    rates[name].append(STEPS / float((folder / f"{name}-{turn}.seconds").read_text()))
        finally:
            for rank in itertools.chain(*ranks):
                rank.kill()
    return {name: found[WARM:] for name, found in rates.items()}


def compare(other: Path, num_ranks: int, port: int) -> str:
    """Steps per second of both sides, and their ratio in each pair of turns. Each side is started first once: which
    core a process gets may matter more than what it does."""
    sides = {"other": other, "here": ROOT}
    rounds = [take_turns(dict(order), num_ranks, port + 2 * k) for k, order in enumerate(both_ways(sides))]
    rates = {name: [rate for found in rounds for rate in found[name]] for name in sides}
    pairs = sorted(here / there for here, there in zip(rates["here"], rates["other"], strict=True))
    before, after = (statistics.median(rates[name]) for name in ("other", "here"))
    return (
        f"{num_ranks} ranks: {before:.1f} steps/s there, {after:.1f} here; ratio {statistics.median(pairs):.2f} "
        f"[{pairs[0]:.2f}, {pairs[-1]:.2f}] of {len(pairs)} pairs"
    )


def both_ways(sides: dict[str, Path]) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """The two sides in both orders."""
    return list(sides.items()), list(reversed(sides.items()))


def main() -> None:
    """Measure and print, or be one of the ranks."""
    if sys.argv[1] == "rank":
        be_rank(Path(sys.argv[2]), sys.argv[3])
    for k, num_ranks in enumerate((1, 2, 4)):
        print(compare(Path(sys.argv[1]).resolve(), num_ranks, 29300 + 10 * k), flush=True)


if __name__ == "__main__":
    main()
