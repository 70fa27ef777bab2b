"""The intervals of a search for a rare class contain the truth about as often as they say: a few cells of the table of
`finding_coverage`, and a negative control."""

from functools import partial

import numpy as np
import pytest

from deeplense.evaluation.finding import Ranked, rates_at
from deeplense.evaluation.roc_draws import with_ends
from tests.evaluation.finding_coverage import KINDS, coverage, estimates, truths

NUM_SETS = 100
LEAST = 0.95 - 4 * np.sqrt(0.05 * 0.95 / NUM_SETS)


@pytest.mark.parametrize(
    ("kind", "num", "num_positive"), [("normal, 2.5 apart", 1000, 100), ("rounded to 0.1", 400, 100)]
)
def test_the_intervals_contain_the_truth_as_often_as_they_say(kind: str, num: int, num_positive: int) -> None:
    made = partial(estimates, num_draws=400)
    found = coverage(KINDS[kind], num, num_positive, NUM_SETS, made=made)
    assert {name: each.covered for name, each in found.items() if each.covered < LEAST} == {}
    # Not because they are too wide: the truth is sometimes outside.
    assert np.mean([each.covered for each in found.values()]) < 0.99


def test_an_interval_of_another_rate_does_not_contain_it() -> None:
    found = coverage(
        KINDS["normal, 1.5 apart"],
        1000,
        300,
        40,
        made=lambda scores, positive, seed: {
            "rate 10": with_ends(0.5, rates_at(Ranked(scores, positive, seed=seed, num_draws=400).draws, 0.05))
        },
    )
    assert found["rate 10"].covered < 0.2


def test_the_true_values_are_those_of_many_images() -> None:
    kind = KINDS["normal, 2.5 apart"]
    scores, positive = kind.draw(400_000, 400_000, np.random.default_rng(0))
    others, own = np.sort(scores[~positive])[::-1], np.sort(scores[positive])[::-1]
    found = truths(kind, 1000, 100)
    assert found["rate 10"] == pytest.approx((own > others[4000]).mean(), abs=0.01)
    assert found["purity 0.01"] == pytest.approx(0.005 / (0.005 + 0.99 * (others > own[200_000]).mean()), abs=0.02)
    highest = others[np.random.default_rng(1).integers(0, 400_000, size=(300, 1000))]
    rates = [(own > row.max()).mean() for row in highest]
    assert found["tpr0"] == pytest.approx(np.mean(rates), abs=4 * np.std(rates) / np.sqrt(300))
