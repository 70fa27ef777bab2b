"""Order of the training samples."""

import numpy as np

from deeplense.data.order import Order, Shuffle
from jobs.data.part import Part
from jobs.frame.settings import LearningSettings
from jobs.settings import require


def make_order(settings: "LearningSettings", part: Part) -> Order:
    """Return the order of the training samples: all with equal weight, or classes and data sets by weight."""
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
    return Order(
        [part.indices[(members == kind[:, None]).all(axis=0)] for kind in kinds],
        weights=weights if len(kinds) > 1 else (),
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle=Shuffle(settings.shuffle_block, settings.shuffle_window),
    )
