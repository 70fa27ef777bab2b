"""Curves with bands: at each point they are the intervals of the report."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from deeplense.evaluation import plots
from deeplense.evaluation.bands import purity_band, roc_band
from deeplense.evaluation.finding import Ranked, Survey, finding_report
from deeplense.evaluation.purity import Bound, purity_with_interval

POSITIVE = np.arange(3300) >= 3000
SCORES = np.random.default_rng(0).normal(size=3300) + 2 * POSITIVE


def test_the_band_of_the_roc_curve_is_the_interval_of_each_rate() -> None:
    band = roc_band(Ranked(SCORES, POSITIVE))
    assert band is not None
    report = finding_report(np.c_[-SCORES, SCORES], POSITIVE.astype(int), ["other", "lens"])["lens"]
    for rate in (0.01, 0.001):
        (k,) = np.flatnonzero(band.at == rate)
        number = report[f"tpr_at_fpr_{rate:g}"]
        assert [band.value[k], band.low[k], band.high[k]] == [number[name] for name in ("value", "low", "high")]
    assert band.at[0] == pytest.approx(2 / 3000)
    assert (band.low <= band.value).all()
    assert (band.value <= band.high).all()
    assert band.value[-1] == band.low[-1] == 1


def test_the_band_of_the_purity_is_the_interval_at_each_completeness() -> None:
    ranked = Ranked(SCORES, POSITIVE)
    band = purity_band(ranked, 0.01)
    assert band is not None
    labels = POSITIVE.astype(int)
    report = finding_report(np.c_[-SCORES, SCORES], labels, ["other", "lens"], survey=Survey(prevalence=0.01))["lens"]
    (k,) = np.flatnonzero(band.at == 0.5)
    number = report["purity_at_completeness_0.5"]
    assert [band.value[k], band.low[k], band.high[k]] == [number[name] for name in ("value", "low", "high")]
    few = purity_with_interval(*ranked.pair, ranked.draws, completeness=float(band.at[0]), prevalence=0.01)
    assert isinstance(few, Bound)
    assert (band.low[0], band.high[0]) == (few.at_least, 1)
    assert np.isnan(band.value[0])


def test_there_is_no_band_without_images() -> None:
    nothing = Ranked(SCORES, np.zeros(3300, dtype=bool))
    assert roc_band(nothing) is None
    assert purity_band(nothing, 0.1) is None
    assert roc_band(Ranked(SCORES[:3], np.array([True, True, False]))) is None


@pytest.mark.parametrize("logarithmic", [True, False])
def test_the_figures_have_a_line_and_a_band_for_each_class(logarithmic: bool) -> None:
    bands = {
        "lens": purity_band(Ranked(SCORES, POSITIVE), 0.001),
        "other": purity_band(Ranked(-SCORES, ~POSITIVE), 0.5),
    }
    axes = Figure().add_subplot()
    plots.purity(axes, {name: band for name, band in bands.items() if band}, logarithmic=logarithmic)
    assert [line.get_label() for line in axes.lines] == ["lens", "other"]
    assert len(axes.collections) == 2
    assert axes.get_yscale() == ("log" if logarithmic else "linear")
    again = Figure().add_subplot()
    band = roc_band(Ranked(SCORES, POSITIVE))
    assert band
    scores, labels = np.c_[-SCORES, SCORES], POSITIVE.astype(int)
    plots.roc(again, scores, labels, ["other", "lens"], {"lens": band})
    assert len(again.collections) == 1
