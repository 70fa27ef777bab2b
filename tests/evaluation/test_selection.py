"""Which weights are kept: few validation images keep the last, many the last of the best, and a tie never the first."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from deeplense.evaluation.selection import (
    RULES,
    Curve,
    Loss,
    few_images,
    is_kept,
    last_not_worse,
    log_loss,
)

OURS = RULES["last whose log loss is not worse"]


def curve(scores: Any, losses: Any, errors: Any = 0.0) -> Curve:
    return Curve(*(np.broadcast_to(np.asarray(each, dtype=float), len(scores)) for each in (scores, losses, errors)))


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("first maximum of the AUC", 1),
        ("last maximum of the AUC", 3),
        ("least log loss", 2),
        ("AUC, log loss where it ties", 3),
        ("running mean of the AUC", 3),
        ("running mean of the log loss", 3),
        ("last whose log loss is not worse", 3),
        ("last weights", 4),
    ],
)
def test_each_rule_keeps_what_its_name_says(rule: str, kept: int) -> None:
    assert RULES[rule](curve([0.5, 0.9, 0.8, 0.9, 0.7], [1.0, 0.9, 0.3, 0.35, 0.9], 0.04)) == kept


def test_a_tie_at_the_top_does_not_keep_early_weights() -> None:
    assert OURS(curve([1.0] * 6, [1.1, 0.9, 0.5, 0.2, 0.1, 0.1])) == 5


def test_a_spike_at_the_end_is_not_kept_where_enough_images_show_it() -> None:
    losses = [1.0, 0.5, 0.4, 0.41, 2.0]
    assert OURS(curve([0.9] * 5, losses, 0.05)) == 3
    assert OURS(curve([0.9] * 5, losses, 1.2)) == 4


def test_what_is_kept_is_never_worse_than_the_least_before_by_more_than_the_error() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        losses, errors = generator.gamma(2, size=20), generator.gamma(1, 0.3, size=20)
        kept, least = OURS(curve(losses, losses, errors)), int(np.argmin(losses))
        assert kept >= least
        assert is_kept(Loss(losses[kept], errors[kept]), Loss(losses[least], errors[least]))
        later = [is_kept(Loss(*each), Loss(losses[least], errors[least])) for each in zip(losses, errors, strict=True)]
        assert not any(later[kept + 1 :])


def test_without_error_it_is_the_last_of_the_least() -> None:
    assert last_not_worse(curve([0.0] * 5, [3.0, 1.0, 2.0, 1.0, 1.5])) == 3


def test_the_log_loss_and_its_error_are_those_of_the_images() -> None:
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(0, 30, size=(40, 3)).astype(np.float32), generator.integers(3, size=40)
    losses = -log_softmax(logits.astype(float), axis=1)[np.arange(40), labels]
    found = log_loss(logits, labels)
    assert found.mean == pytest.approx(losses.mean())
    assert found.error == pytest.approx(losses.std(ddof=1) / math.sqrt(40))
    assert math.isfinite(log_loss(np.array([[1e30, -1e30], [0, 0]], dtype=np.float32), np.array([1, 0])).mean)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"a": 50, "b": 50}, ""),
        ({"a": 49, "b": 50}, "below 100"),
        ({"a": 500, "b": 9}, "9 of b"),
        ({"a": 2, "b": 3}, "2 of a, 3 of b"),
    ],
)
def test_few_images_are_told(counts: dict[str, int], told: str) -> None:
    assert few_images(counts) == told
