"""How many lenses a person finds in a number of looks: a replay on the graded candidates of Space Warps.

    python -m tests.candidates.replay --splits 200

Half of the images train a classifier; the other half is looked at in the order of its score, and the known expert
grades are given as if by a person. Three orders are compared: by chance, by the score, and by a score that is trained
again after each 50 looks with all grades so far. Lenses have an expert grade of 2 or more, others one below 1; images
between are left out, and images of the same object are in the same half. The classifier is a logistic regression on
means, spreads and high quantiles in rings about the centre, in three bands and a difference of bands. It takes no time,
and was as good as a small network that was trained on the same few images.
"""

import argparse
import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

BETWEEN = 50
LOOKS = (50, 100, 150)
EDGES = (0, 3, 6, 9, 12, 15, 18, 22, 27, 33, 40, 50)
"""Radii of the rings, in pixels."""
WEIGHT = 0.1
"""Inverse strength of the regularisation."""
BLUE = 0.7
"""Factor of the reddest band that is subtracted from the bluest: arcs are blue, galaxies in front are red."""


@dataclass(frozen=True)
class Known:
    """Images with a known answer.

    Args:
        features: (N, D).
        lens: whether it is a lens, (N,).
        objects: number of the object, (N,).
    """

    features: np.ndarray
    lens: np.ndarray
    objects: np.ndarray


def ring_features(images: np.ndarray) -> np.ndarray:
    """Mean, spread and 95th percentile in each ring, (N, D), of images (N, H, W, 3) from red to blue."""
    bands = images.astype(np.float32)
    channels = [*np.moveaxis(bands, 3, 0), bands[..., 2] - BLUE * bands[..., 0]]
    rows, columns = np.indices(images.shape[1:3])
    radius = np.hypot(rows - (images.shape[1] - 1) / 2, columns - (images.shape[2] - 1) / 2)
    found = []
    for channel in channels:
        for inner, outer in pairwise(EDGES):
            values = channel[:, (radius >= inner) & (radius < outer)]
            found += [values.mean(axis=1), values.std(axis=1), np.quantile(values, 0.95, axis=1)]
    return np.stack(found, axis=1)


def read_space_warps(folder: Path) -> Known:
    """The lenses and the images that look like them."""
    with np.load(folder / "cfhtls_gri_rgb_107x107.npz") as stored:
        images, grades = stored["images"], stored["grade"]
    with (folder / "catalog.csv").open() as stream:
        names = [row["zooid"] for row in csv.DictReader(stream)]
    clear = (grades >= 2) | (grades < 1)
    objects = np.unique(np.array(names)[clear], return_inverse=True)[1]
    return Known(ring_features(images[clear]), grades[clear] >= 2, objects)


def halves(known: Known, *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to train on, a fraction of the objects, and of those to look at: always half of the
    objects."""
    order = np.random.default_rng(seed).permutation(known.objects.max() + 1)
    middle = len(order) // 2
    train = np.isin(known.objects, order[: round(2 * fraction * middle)])
    return np.flatnonzero(train), np.flatnonzero(np.isin(known.objects, order[middle:]))


def scores(known: Known, train: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Score of the rest by a classifier that is trained on some images."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=WEIGHT, max_iter=3000, class_weight="balanced"))
    model.fit(known.features[train], known.lens[train])
    return model.decision_function(known.features[rest])


def looks(known: Known, train: np.ndarray, pool: np.ndarray, *, feed_back: bool) -> np.ndarray:
    """The images of the pool in the order of the looks."""
    seen, left = np.array([], dtype=int), pool
    while len(left):
        # Without grades that flow back this is the order of the first score.
        given = np.concatenate([train, seen]) if feed_back else train
        order = np.argsort(-scores(known, given, left), kind="stable")
        seen, left = np.append(seen, left[order[:BETWEEN]]), left[order[BETWEEN:]]
    return seen


def found_in(known: Known, seen: np.ndarray) -> np.ndarray:
    """Number of lenses in the first looks, for each of `LOOKS`."""
    return known.lens[seen].cumsum()[[min(count, len(seen)) - 1 for count in LOOKS]]


def replay(known: Known, *, fraction: float, seed: int) -> Mapping[str, np.ndarray]:
    """Lenses that are found in one split, by the order of the looks."""
    train, pool = halves(known, fraction=fraction, seed=seed)
    return {
        "chance": np.array(LOOKS) * known.lens[pool].mean(),
        "score": found_in(known, looks(known, train, pool, feed_back=False)),
        "fed back": found_in(known, looks(known, train, pool, feed_back=True)),
        "auc": np.array(roc_auc_score(known.lens[pool], scores(known, train, pool))),
        "lenses": known.lens[pool].sum(),
        "images": np.array(len(pool)),
        "trained on": np.array(len(train)),
    }


def told(name: str, values: np.ndarray) -> str:
    """Mean and the range of 95 % of the splits, for each number of looks."""
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    each = [f"{m:6.1f} [{a:.1f}, {b:.1f}]" for m, a, b in zip(values.mean(axis=0), low, high, strict=True)]
    return f"{name:24}" + "".join(f"{text:>24}" for text in each)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.5, 0.1])
    given = parser.parse_args()
    known = read_space_warps(Path(os.environ.get("DEEPLENSE_DATA", "../shared/data")) / "space_warps")
    for fraction in given.fractions:
        print_table([replay(known, fraction=fraction, seed=seed) for seed in range(given.splits)])


def print_table(splits: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Print what was found, over all splits."""
    names = ("auc", "lenses", "images", "trained on")
    mean = {name: np.mean([found[name] for found in splits]) for name in names}
    print(f"\ntrained on {mean['trained on']:.0f} images, AUC {mean['auc']:.3f}; {len(splits)} splits, mean and 95 %")
    print(
        f"{mean['images']:.0f} images to look at, {mean['lenses']:.0f} of them lenses; lenses found in so many looks:"
    )
    print(" " * 24 + "".join(f"{count:>24}" for count in LOOKS))
    series = {name: np.array([found[name] for found in splits]) for name in ("chance", "score", "fed back")}
    for name, values in series.items():
        print(told(name, values))
    gain = series["fed back"] - series["score"]
    print(told("fed back minus score", gain))
    print(f"{'more, equal, fewer':24}" + "".join(f"{shares(column):>24}" for column in gain.T))


def shares(gain: np.ndarray) -> str:
    """In which fraction of the splits more, as many and fewer lenses are found."""
    return ", ".join(f"{np.mean(which):.0%}" for which in (gain > 0, gain == 0, gain < 0))


if __name__ == "__main__":
    main()
