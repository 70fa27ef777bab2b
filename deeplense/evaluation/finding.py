"""How well a rare class is found, class by class against the rest. N images, K classes.

- The true positive rate at a false positive rate, for the population of which the images are drawn.
- TPR0 and TPR10: the true positive rate at the lowest threshold with no false positive, or with at most 10 (Metcalf et
  al. 2019, Astronomy and Astrophysics 625, A119, the lens finding challenge). They depend on the number of images of
  other classes: their intervals are of the rate that is expected with as many other images, which is the probability
  that an image of the class ranks above the first, or the eleventh, of so many images of other classes.
- Average precision; purity and completeness at the prevalence of a survey (`purity.py`).

All intervals come from the same draws of the ROC curve (`roc_draws.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deeplense.evaluation.metrics import Array, Estimate
from deeplense.evaluation.purity import (
    Bound,
    area_under_purity,
    average_precision,
    completeness_with_interval,
    lenses_in_top,
    purity_with_interval,
    refuse_prevalence,
    top_with_interval,
)
from deeplense.evaluation.roc_draws import (
    NUM_DRAWS,
    TAIL,
    Curves,
    along,
    draw_curves,
    refuse_nan,
    sample_curve,
    stepped,
    with_ends,
)

RATES = (1e-2, 1e-3, 1e-4)
"""False positive rates of a report."""
LEAST_EXPECTED = 2.0
"""Least number of false positives that are expected at a rate; with fewer, an interval would say little."""
LEAST_FOR_LOW = 3.0
"""Least number for a lower end: with fewer, none are above the threshold in more than exp(-3) = 5 % of all sets of
images, and the rate there is not bounded from below."""
ALLOWED = (0, 10)
"""Numbers of false positives of TPR0 and TPR10."""
HALF = 0.5
"""Completeness at which the purity is given, and purity at which the completeness is."""
NUM_QUANTILES = 32
NO_PREVALENCE = "needs the fraction of the class in the survey (--prevalence)"
Found = Estimate | Bound | str


@dataclass(frozen=True)
class Survey:
    """What is known of a survey: the fraction of the class in it, how many of its best ranked objects are looked at,
    and how many objects it has; None or 0 if not given.

    Args:
        prevalence: above 0 and below 1.
        top: 0 or more.
        size: 0 or more.
    """

    prevalence: float | None = None
    top: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        if self.prevalence is not None:
            refuse_prevalence(self.prevalence)


@dataclass(frozen=True)
class Ranked:
    """Images of one class and of all others, ranked by a score.

    Args:
        scores: score of each image, (N,).
        positive: whether it is of the class, (N,).
        seed: seed of the intervals.
        num_draws: number of draws behind them.
    """

    scores: Array
    positive: NDArray[np.bool_]
    seed: int = 0
    num_draws: int = NUM_DRAWS

    @cached_property
    def draws(self) -> Curves:
        """Draws of the ROC curve of the population."""
        return draw_curves(self.scores, self.positive, num_draws=self.num_draws, seed=self.seed)

    @property
    def pair(self) -> tuple[Array, NDArray[np.bool_]]:
        """The scores, and which images are of the class."""
        return self.scores, self.positive

    @property
    def num_others(self) -> int:
        """The number of images of other classes."""
        return int((~self.positive).sum())

    @property
    def lacking(self) -> str:
        """Which kind of image is missing; empty if none."""
        if not self.positive.any():
            return "no image of the class"
        return "" if self.num_others else "no image of other classes"

    @property
    def prevalence(self) -> float:
        """The fraction of the class among these images."""
        return float(self.positive.mean())


def true_positive_rate(scores: Array, positive: NDArray[np.bool_], rate: float) -> float:
    """Return the fraction of the class above the lowest threshold with at most this false positive rate.

    Args:
        scores: score of each image, (N,).
        positive: whether it is of the class, (N,).
        rate: false positive rate, 0 to 1.

    Example:
        >>> scores, positive = np.array([0.9, 0.8, 0.7, 0.2]), np.array([True, False, True, False])
        >>> true_positive_rate(scores, positive, 0.0), true_positive_rate(scores, positive, 0.5)
        (0.5, 1.0)
    """
    return with_false_positives(scores, positive, int(rate * (~positive).sum() + 1e-9))


def with_false_positives(scores: Array, positive: NDArray[np.bool_], allowed: int) -> float:
    """Return the fraction of the class above the lowest threshold with at most so many false positives. A threshold
    does not separate images with the same score.

    Args:
        scores: score of each image, (N,).
        positive: whether it is of the class, (N,).
        allowed: number of images of other classes, 0 or more.
    """
    negatives = np.sort(scores[~positive])[::-1]
    if allowed >= len(negatives):
        return 1.0
    return float(np.mean(scores[positive] > negatives[allowed]))


def rate_with_interval(ranked: Ranked, rate: float) -> Estimate | str:
    """Return the true positive rate at a false positive rate with its 95 % interval, or why it is not given."""
    num, needed = ranked.num_others, int(np.ceil(LEAST_EXPECTED / rate))
    if ranked.lacking or num < needed:
        return ranked.lacking or f"needs {needed:,} images of other classes, has {num:,}"
    return rate_or_less(ranked, rate)


def rate_or_less(ranked: Ranked, rate: float) -> Estimate:
    """Return the true positive rate at a false positive rate with its 95 % interval. If so few false positives are
    expected that more than one draw in 20 has no image of another class above the threshold, the interval has no lower
    end but 0."""
    value, draws = true_positive_rate(*ranked.pair, rate), rates_at(ranked.draws, rate)
    if rate * ranked.num_others < LEAST_FOR_LOW:
        return Estimate(value, 0.0, max(value, float(np.quantile(draws, 0.95))))
    return with_ends(value, draws)


def rates_at(draws: Curves, rate: float) -> Array:
    """Return the true positive rate at a false positive rate of each curve, (R,)."""
    steps = stepped(draws)
    return along(steps.false, steps.true, rate)


def allowed_with_interval(ranked: Ranked, allowed: int) -> Estimate | str:
    """Return the true positive rate with so many false positives with the 95 % interval of the rate that is expected
    with as many images of other classes, or why it is not given."""
    num = ranked.num_others
    if ranked.lacking or num <= allowed:
        return ranked.lacking or f"needs {allowed + 1:,} images of other classes, has {num:,}"
    value = with_false_positives(ranked.scores, ranked.positive, allowed)
    return with_ends(value, expected_with(ranked.draws, allowed, num), tail=TAIL)


def expected_with(draws: Curves, allowed: int, num: int) -> Array:
    """Return the true positive rate of each curve that is expected above the highest threshold with more than `allowed`
    of `num` new images of other classes, (R,): its mean over the false positive rate of this threshold, which has a
    beta distribution."""
    places, steps = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES, stepped(draws)
    false = stats.beta.ppf(places, allowed + 1, num - allowed)
    # Points beyond the largest rate do not matter.
    count = int(np.argmax(np.r_[steps.false.min(axis=0) > false[-1], True])) + 1
    known, wanted = steps.false[:, :count], steps.true[:, :count]
    return np.mean([along(known, wanted, float(rate)) for rate in false], axis=0)


def precision_with_interval(ranked: Ranked) -> Estimate | str:
    """Return the average precision at the prevalence of the images with its 95 % interval, or why it is not given."""
    if ranked.lacking:
        return ranked.lacking
    value = average_precision(sample_curve(ranked.scores, ranked.positive), ranked.prevalence)
    draws = draw_curves(*ranked.pair, num_draws=ranked.num_draws, seed=ranked.seed, halves=False)
    return with_ends(value, area_under_purity(draws, ranked.prevalence), tail=TAIL)


def images_in_top(ranked: Ranked, top: int) -> Estimate | str:
    """Return the number of images of the class among the best ranked with the 95 % interval of the number that is
    expected among as many new images, or why it is not given."""
    num = len(ranked.scores)
    if ranked.lacking or top > num:
        return ranked.lacking or f"needs {top:,} images, has {num:,}"
    images = {"top": top, "size": num, "prevalence": ranked.prevalence}
    (value,) = lenses_in_top(sample_curve(*ranked.pair), **images)
    return with_ends(float(value), lenses_in_top(ranked.draws, **images))


def numbers_of(ranked: Ranked, survey: Survey) -> dict[str, Found]:
    """Return all numbers of a class by name, or why each is not given."""
    found: dict[str, Found] = {f"tpr_at_fpr_{rate:g}": rate_with_interval(ranked, rate) for rate in RATES}
    found |= {f"tpr{allowed}": allowed_with_interval(ranked, allowed) for allowed in ALLOWED}
    found["average_precision"] = precision_with_interval(ranked)
    if survey.top:
        found[f"in_top_{survey.top}"] = images_in_top(ranked, survey.top)
    return found | numbers_at_prevalence(ranked, survey)


def numbers_at_prevalence(ranked: Ranked, survey: Survey) -> dict[str, Found]:
    """Return the numbers of a class that need its prevalence, by name, or why each is not given."""
    arguments: dict[str, Any] = {"scores": ranked.scores, "positive": ranked.positive, "prevalence": survey.prevalence}
    made: dict[str, Callable[[], Found]] = {
        f"purity_at_completeness_{HALF:g}": lambda: purity_with_interval(
            **arguments, draws=ranked.draws, completeness=HALF
        ),
        f"completeness_at_purity_{HALF:g}": lambda: completeness_with_interval(
            **arguments, draws=ranked.draws, least=HALF
        ),
    }
    if survey.size:
        made[f"in_top_{survey.top}_of_{survey.size}"] = lambda: top_with_interval(
            **arguments, draws=ranked.draws, top=survey.top, size=survey.size
        )
    why = ranked.lacking or (NO_PREVALENCE if survey.prevalence is None else "")
    return {name: why or number() for name, number in made.items()}


def finding_report(
    scores: Array, labels: NDArray[np.integer], classes: Sequence[str], *, survey: Survey = Survey()
) -> dict[str, dict[str, dict[str, float | str]]]:
    """Return how well each class is found, by class and name such as `tpr_at_fpr_0.01`: value, low and high, or why it
    is `undefined`, perhaps with what it is `at_least`.

    Args:
        scores: scores of each class that rank the images, (N, K), such as `log_odds`.
        labels: (N,), from 0 to K - 1.
        classes: names of the classes.
        survey: what is known of the survey; each class is treated as the rare one.
    """
    refuse_nan(scores)
    return {
        name: {number: told(found) for number, found in numbers_of(Ranked(scores[:, k], labels == k), survey).items()}
        for k, name in enumerate(classes)
    }


def told(found: Found) -> dict[str, float | str]:
    """Return a number as an entry of a report."""
    if isinstance(found, str):
        return {"undefined": found}
    if isinstance(found, Bound):
        return {"undefined": found.reason, "at_least": found.at_least}
    return {"value": found.value, "low": found.low, "high": found.high}


def in_words(name: str) -> str:
    """Return what a number of a report is.

    Example:
        >>> in_words("tpr_at_fpr_0.001")
        'true positive rate at a false positive rate of 0.1 %'
    """
    kind, _, end = name.rpartition("_")
    if kind == "tpr_at_fpr":
        return f"true positive rate at a false positive rate of {100 * float(end):g} %"
    if name.startswith("in_top_"):
        top, _, size = name.removeprefix("in_top_").partition("_of_")
        among = f"{int(size):,} objects of the survey" if size else "these images"
        return f"number expected among the best {int(top):,} of {among}"
    return WORDS.get(name, name)


WORDS: Mapping[str, str] = {
    "tpr0": "true positive rate without a false positive (TPR0)",
    "tpr10": "true positive rate with at most 10 false positives (TPR10)",
    "average_precision": "average precision, at the class fraction of these images",
    "purity_at_completeness_0.5": "purity at completeness 0.5 in the survey",
    "completeness_at_purity_0.5": "largest completeness with purity 0.5 in the survey",
}
