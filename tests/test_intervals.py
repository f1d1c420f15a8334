"""Every interval that is called a 95% interval has the width of one.

A percentile bootstrap of a mean over n values, n large, is mean -+ 1.96 s / sqrt(n): the normal quantile is written
here, not computed by the code under test. An interval of another level has another width (90%: 1.645, 99%: 2.576).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aent_llm.measure import clamp_effect, compare, evaluate
from paper_figures import f2_synthetic_mdp, records
from toymdp.compare import bootstrap_interval, interquartile_mean

QUANTILE = 1.959964  # of the standard normal distribution at 97.5%
N = 400
VALUES = 3.0 + 2.0 * np.random.default_rng(11).standard_normal(N)
Interval = Callable[[np.ndarray], tuple[Any, Any]]


def _clamp_effect(values: np.ndarray) -> tuple[float, float]:
    """The mean entropy of prompts of one token each."""
    sums = np.ones((len(values), len(clamp_effect._SUMS)))
    sums[:, clamp_effect._SUMS.index("entropy")] = values
    found = clamp_effect._estimates(sums, seed=0)["entropy"]
    return found.low, found.high


INTERVALS: dict[str, Interval] = {
    "toymdp.compare": lambda values: bootstrap_interval(values, np.mean),
    "f2": lambda values: tuple(f2_synthetic_mdp._mean_interval(values[None], draws=2000)[:, 0]),
    "records.spread": lambda values: tuple(records.spread(values[:, None])[1:, 0]),
    "aent_llm.measure.compare": lambda values: compare.interval(values),
    "aent_llm.measure.evaluate": lambda values: evaluate.interval(values[None], resamples=2000, seed=0)[0][1:],
    "aent_llm.measure.clamp_effect": _clamp_effect,
}


@pytest.mark.parametrize("name", INTERVALS)
def test_the_interval_of_a_mean_has_the_normal_width(name: str) -> None:
    low, high = INTERVALS[name](VALUES)
    reach = QUANTILE * VALUES.std() / math.sqrt(N)
    assert high - low == pytest.approx(2 * reach, rel=0.06)
    assert low == pytest.approx(VALUES.mean() - reach, abs=0.12 * reach)
    assert high == pytest.approx(VALUES.mean() + reach, abs=0.12 * reach)


def test_the_interval_of_the_interquartile_mean_is_the_spread_of_new_samples() -> None:
    """2,000 fresh samples of 200 normals say how far the statistic scatters; five intervals have that width."""
    rng = np.random.default_rng(12)
    fresh = [interquartile_mean(sample) for sample in rng.standard_normal((2000, 200))]
    widths = [np.subtract(*bootstrap_interval(sample)[::-1]) for sample in rng.standard_normal((5, 200))]
    assert np.mean(widths) == pytest.approx(2 * QUANTILE * np.std(fresh), rel=0.1)


def test_an_interval_takes_the_level_that_is_asked_for() -> None:
    """The 50% interval reaches to the quartiles, 0.6745 standard errors."""
    reach = 0.6745 * VALUES.std() / math.sqrt(N)
    (low, high), (_, a, b) = (
        bootstrap_interval(VALUES, np.mean, level=0.5),
        evaluate.interval(VALUES[None], resamples=2000, seed=0, level=0.5)[0],
    )
    assert [high - low, b - a] == pytest.approx([2 * reach] * 2, rel=0.08)


def test_a_difference_of_two_arms_adds_their_variances() -> None:
    ours, theirs = VALUES[:250], 0.5 * VALUES[250:] + 1.0
    change, low, high = (float(number) for number in re.findall(r"[-+][\d.e-]+", compare._difference(ours, theirs)))
    reach = QUANTILE * math.sqrt(ours.var() / 250 + theirs.var() / 150)
    assert change == pytest.approx(ours.mean() - theirs.mean(), rel=0.01)
    assert (low, high) == pytest.approx((change - reach, change + reach), abs=0.12 * reach)
