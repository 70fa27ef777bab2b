"""Order of the training samples."""

import numpy as np

from deeplense.data.order import Order, Shuffle
from jobs.data.part import Part
from jobs.frame.settings import LearningSettings
from jobs.settings import require


def make_order(settings: "LearningSettings", part: Part) -> Order:
    """Return the order of the training samples: all with equal weight, or classes and data sets by weight."""
    groups, weights = weighted_groups(settings, part)
    return Order(
        groups,
        weights=weights,
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle=Shuffle(settings.shuffle_block, settings.shuffle_window),
    )


def weighted_groups(settings: "LearningSettings", part: Part) -> tuple[list[np.ndarray], list[float]]:
    """Return the indices of the samples of each group, and the weight of each group; no weights for a single group."""
    surveys, classes = part.split.sources[part.indices], part.labels
    mix = [float(weight) for weight in settings.mix.split(",")] if settings.mix else []
    require(
        len(mix) in (0, len(part.split.folders)),
        f"mix={settings.mix} has {len(mix)} weights for {len(part.split.folders)} data sets; give one per data set.",
    )
    by_survey = bool(mix) or settings.balance == "survey"
    by_class = settings.balance == "class"
    members = np.stack([surveys if by_survey else 0 * surveys, classes if by_class else 0 * classes])
    kinds = np.unique(members, axis=1).T
    weights = [
        (mix[survey] if mix else 1.0) / (kinds[:, 0] == survey).sum() if by_survey else 1.0 for survey, _ in kinds
    ]
    groups = [part.indices[(members == kind[:, None]).all(axis=0)] for kind in kinds]
    return groups, weights if len(kinds) > 1 else []


def class_fractions(settings: "LearningSettings", part: Part) -> np.ndarray:
    """Return the fraction of each class among the samples that a training draws, (K,): those of the training images, or
    what `balance` and `mix` make of them."""
    groups, weights = weighted_groups(settings, part)
    count = len(part.split.schema.classes)
    if not weights:
        found = np.bincount(part.labels, minlength=count).astype(float)
        return found / found.sum()
    labels = part.split.labels
    shares = [np.bincount(labels[group], minlength=count) / len(group) for group in groups]
    return np.average(shares, axis=0, weights=weights)
