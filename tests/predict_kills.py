"""Predict a million images of 2 x 2 pixels, killed at random moments, and compare with predictions left in peace.

Run: python -m tests.predict_kills [--kills 1000] [--images 1000000] [--folder DIR]
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NETWORK = """
from torch import nn

class Tiny(nn.Module):
    num_features = 4
    def __init__(self, in_chans: int, image_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4 * in_chans, 4), nn.GELU())
    def forward(self, images):
        return self.layers(images)
"""


def write_images(folder: Path, split: str, count: int) -> None:
    """Write a split of noise with two classes of different brightness."""
    from deeplense.data.building import build
    from deeplense.data.shards import Samples, Schema

    def make(rows: range) -> Samples:
        rng = np.random.default_rng((len(split), rows.start))
        labels = np.asarray(rows) % 2
        images = rng.normal(size=(len(rows), 1, 2, 2)) + labels[:, None, None, None]
        names = [f"{split}{k}" for k in rows]
        return Samples(images.astype(np.float32), labels, {}, names, np.asarray(rows))

    schema = Schema(
        split=split,
        num_samples=count,
        shape=(1, 2, 2),
        dtype="float32",
        bands=("r",),
        unit="",
        pixel_scale_arcsec=None,
        classes=("other", "lens"),
    )
    list(build(folder / split, schema, make))


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of each file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def in_child(words: list[str], kill_after: float | None) -> tuple[int, float]:
    """Run a command in a process that has loaded everything; returns its exit code (negative for a signal) and the
    seconds that it ran."""
    from jobs.run_job import main

    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os._exit(main(words))
    began = time.monotonic()
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if kill_after is not None and time.monotonic() - began > kill_after:
            os.kill(child, signal.SIGKILL)
            kill_after = None
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(found[1]), time.monotonic() - began


def main() -> int:
    """Run the trial and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    root = given.folder or Path(tempfile.mkdtemp(prefix="deeplense-kills-"))
    root.mkdir(parents=True, exist_ok=True)
    (root / "tiny_network.py").write_text(NETWORK)
    os.environ["DEEPLENSE_MODULES"] = "tiny_network"
    sys.path.insert(0, str(root))
    write_images(root / "small", "train", 400)
    write_images(root / "many", "train", given.images)
    train = ["train", f"--dataset={root / 'small'}", f"--run={root / 'run'}", "--model_name=tiny_network:Tiny"]
    assert in_child([*train, "--epochs=2", "--batch_size=40", "--device=cpu"], None)[0] == 0
    predict = ["predict", f"--run={root / 'run'}", f"--dataset={root / 'many'}", "--device=cpu", "--num_workers=1"]
    predict += ["--batch_size=4096", "--images_per_file=16384"]
    import jobs.predict.work  # noqa: F401  # Loaded once, for all children.

    code, seconds = in_child([*predict, f"--output={root / 'whole'}"], None)
    assert code == 0
    expected, rng = digests(root / "whole"), random.Random(0)
    print(f"left in peace: {seconds:.1f} s, {len(expected)} files", flush=True)
    kills = ends = runs = 0
    while kills < given.kills:
        # Also in the middle of loading, and near the end: a round is as long as a file or as half of all.
        longest = rng.choice([0.3, 2, seconds / 2])
        code, _ = in_child([*predict, f"--output={root / 'killed'}"], rng.uniform(0, longest))
        runs += 1
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), code
        if code == 0 or rng.random() < 0.01:
            ends += 1
            code, _ = in_child([*predict, f"--output={root / 'killed'}"], None)
            assert code == 0
            assert digests(root / "killed") == expected, "the files differ"
            shutil.rmtree(root / "killed")
    if (root / "killed").exists():
        assert in_child([*predict, f"--output={root / 'killed'}"], None)[0] == 0
        assert digests(root / "killed") == expected, "the files differ"
        ends += 1
    print(f"{kills} kills in {runs} runs; {ends} tables completed, each with the bytes of the one left in peace")
    if given.folder is None:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
