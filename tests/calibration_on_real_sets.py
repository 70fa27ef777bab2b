"""Calibration and coverage of `deeplense predict` on held-out images of three real sets.

Run: DEEPLENSE_DATA=DIR python -m tests.calibration_on_real_sets [--splits 5] [--epochs 12]
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

import deeplense
from deeplense.evaluation.calibration import calibration_error
from jobs.console import CONSOLE
from jobs.run_job import main as run_job

DATA = Path(os.environ.get("DEEPLENSE_DATA", "../shared/data"))
COVERAGE = 0.9


def packing(name: str) -> list[str]:
    """Return the words that pack a set."""
    folder = DATA / {"Pan-STARRS1": "ps1_lenses", "Space Warps": "space_warps", "ZTF": "ztf_stamps"}[name]
    (images,) = folder.glob("*.npz")
    words = ["pack", "--layout=npz", f"--source={images}", "--fill_nan=0"]
    return (
        words
        + {
            "Pan-STARRS1": [
                f"--catalog={folder / 'catalog.csv'}",
                "--where=detected_gri=1,type!=lensed_supernovae",
                "--label_key=type",
                "--classes=lensed_galaxies,lensed_quasars",
            ],
            "Space Warps": ["--classes=lens:grade>=2,other:grade<1"],
            "ZTF": ["--label_key=label", "--group=object", "--crop=60"],
        }[name]
    )


def trial(words: list[str], folder: Path, *, seed: int, epochs: int) -> dict[str, np.ndarray]:
    """Pack, train and predict once; returns what is known of each held-out image."""
    data, run = folder / "data", folder / "run"
    assert run_job([*words, f"--output={data}", "--test_fraction=0.4", f"--seed={seed}"]) == 0
    train = ["train", f"--dataset={data}", f"--run={run}", "--model_name=simple_cnn", "--batch_size=16"]
    train += [f"--epochs={epochs}", f"--seed={seed}", "--val_fraction=0.3", "--stretch=standard_asinh", "--device=cpu"]
    assert run_job(train) == 0
    found = {}
    for name, more in (("before", ["--calibrate=0"]), ("after", [f"--coverage={COVERAGE}"])):
        output = folder / name
        words = ["predict", f"--run={run}", f"--dataset={data}", "--split=test", f"--output={output}", "--device=cpu"]
        assert run_job([*words, *more]) == 0
        table = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("*.parquet"))])
        test = deeplense.open_dataset(data, "test")
        given = [table[f"probability_{each}"].to_numpy() for each in test.classes]
        found[name] = np.stack(given, axis=1)
        found["labels"] = test.labels
        if more[0].startswith("--coverage"):
            sets = np.stack([table[f"in_set_{each}"].to_numpy() for each in test.classes], axis=1)
            found["inside"], found["sizes"] = sets[np.arange(len(sets)), test.labels], sets.sum(axis=1)
    return found


def errors(found: dict[str, np.ndarray], name: str) -> tuple[float, float, float, float]:
    """Return the calibration error with its interval, and the log loss."""
    given, labels = found[name], found["labels"]
    confidence, correct = given.max(axis=1), (given.argmax(axis=1) == labels).astype(float)
    loss = -np.log(np.maximum(given[np.arange(len(labels)), labels], 1e-12)).mean()
    return (*calibration_error(confidence, correct), float(loss))


def main() -> int:
    """Print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    CONSOLE.quiet = True
    for name in ("Pan-STARRS1", "Space Warps", "ZTF"):
        every = []
        for seed in range(given.splits):
            with tempfile.TemporaryDirectory() as folder:
                every.append(trial(packing(name), Path(folder), seed=seed, epochs=given.epochs))
        joined = {key: np.concatenate([each[key] for each in every]) for key in every[0]}
        for which in ("before", "after"):
            # Splits share images, so the interval is that of one split.
            value, low, high, _ = errors(every[0], which)
            losses = [errors(each, which)[3] for each in every]
            told = f"error {value:.3f} [{low:.3f}, {high:.3f}] of split 0, mean log loss {np.mean(losses):.3f}"
            print(f"{name}, {which} calibration: {told}", flush=True)
        for k in np.unique(joined["labels"]):
            own = [each["inside"][each["labels"] == k] for each in every]
            low, high = stats.binomtest(int(own[0].sum()), len(own[0])).proportion_ci(method="exact")
            rates = ", ".join(f"{each.mean():.2f}" for each in own)
            print(
                f"{name}, class {k}: {len(own[0])} held-out images a split, in the set: {rates}; mean "
                f"{np.mean([each.mean() for each in own]):.3f} for {COVERAGE} (split 0: {low:.2f} to {high:.2f})"
            )
        print(f"{name}: mean size of the sets {joined['sizes'].mean():.2f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
