"""Intervals are what they are called, and one module computes all of them.

A percentile bootstrap of a mean over n values, n large, is mean -+ 1.96 s / sqrt(n): the normal quantile is written
here, not computed by the code under test. An interval of another level has another width (90%: 1.645, 99%: 2.576).
Student's quantiles are those of printed tables; of three values, and of a share, everything follows by hand.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import trim_mean

from aent import stats
from aent.stats import (
    Estimate,
    bootstrap,
    bootstrap_difference,
    bootstrap_mean,
    holm,
    interquartile_mean,
    percentile_interval,
    resample,
    student_interval,
    student_p_value,
    wilson_interval,
)
from aent_llm.measure import clamp_effect, compare

ROOT = Path(__file__).parent.parent
QUANTILE = 1.959964  # of the standard normal distribution at 97.5%
N = 400
VALUES = 3.0 + 2.0 * np.random.default_rng(11).standard_normal(N)


def _clamp_effect() -> Estimate:
    """The mean entropy of prompts of one token each, as calibrate reports it."""
    sums = np.ones((N, len(clamp_effect._SUMS)))
    sums[:, clamp_effect._SUMS.index("entropy")] = VALUES
    return clamp_effect._estimates(sums, seed=0)["entropy"]


# -------------------------------------------------------------------------------------------------------- bootstraps


@pytest.mark.parametrize("found", [bootstrap_mean(VALUES), bootstrap(VALUES, np.mean), _clamp_effect()])
def test_the_interval_of_a_mean_has_the_normal_width(found: Estimate) -> None:
    reach = QUANTILE * VALUES.std() / math.sqrt(N)
    assert found.mean == pytest.approx(VALUES.mean(), abs=1e-12)
    assert found.count == N
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.06)
    assert found.low == pytest.approx(VALUES.mean() - reach, abs=0.12 * reach)
    assert found.high == pytest.approx(VALUES.mean() + reach, abs=0.12 * reach)


def test_an_interval_takes_the_level_that_is_asked_for() -> None:
    """The 50% interval reaches to the quartiles, 0.6745 standard errors."""
    reach = 0.6745 * VALUES.std() / math.sqrt(N)
    found = bootstrap_mean(VALUES, level=0.5), bootstrap(VALUES, np.mean, level=0.5)
    assert [one.high - one.low for one in found] == pytest.approx([2 * reach] * 2, rel=0.08)


def test_two_values_have_three_resampled_means() -> None:
    """They are 0, 1/2, 1 with chances 1/4, 1/2, 1/4; a constant column is a point."""
    found = bootstrap_mean(np.array([[0.0, 5.0], [1.0, 5.0]]))
    np.testing.assert_array_equal([found.mean, found.low, found.high], [[0.5, 5], [0, 5], [1, 5]])
    inner = bootstrap_mean([0.0, 1.0], level=0.4)  # 30% to 70% lies in the middle half
    assert (inner.low, inner.high) == (0.5, 0.5)


def test_three_values_have_the_percentiles_of_all_27_resamples() -> None:
    values = np.array([1.0, 2.0, 6.0])
    means = sorted(sum(drawn) / 3 for drawn in product(values, repeat=3))  # 27 of equal chance
    found = bootstrap_mean(values, draws=200_000, level=0.5)
    assert (found.low, found.high) == pytest.approx((means[6], means[20]), abs=1e-12)  # places .25 and .75 of 27


def test_resamples_draw_every_value_as_often_as_the_others() -> None:
    """Counts of a draw add up to n; over many draws each count has mean 1 and variance 1 - 1/n."""
    counts = np.concatenate(list(resample(5, np.random.default_rng(3), draws=40_000)))
    assert counts.shape == (40_000, 5)
    assert set(counts.sum(1)) == {5.0}
    np.testing.assert_allclose(counts.mean(0), 1.0, atol=5 * math.sqrt(0.8 / 40_000))
    np.testing.assert_allclose(counts.var(0), 0.8, rtol=0.05)


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed records were made with one call of ``integers`` (or one a draw, which is the same stream)."""
    picks = np.random.default_rng(4).integers(7, size=(50, 7))
    expected = [[Counter(row.tolist())[value] for value in range(7)] for row in picks]
    monkeypatch.setattr(stats, "BLOCK", 7 * 8)  # eight draws at a time, the last block is short
    blocks = list(resample(7, np.random.default_rng(4), draws=50))
    assert [len(block) for block in blocks] == [8] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    assert bootstrap_mean(VALUES, draws=300) == bootstrap_mean(VALUES, draws=300)


def test_a_mean_by_counts_is_the_mean_of_the_resampled_values() -> None:
    by_counts, by_values = bootstrap_mean(VALUES, seed=5), bootstrap(VALUES, np.mean, seed=5)
    assert (by_counts.low, by_counts.high) == pytest.approx((by_values.low, by_values.high), rel=1e-12)


def test_columns_are_estimated_as_if_each_was_alone() -> None:
    table = np.stack([VALUES[:30], VALUES[30:60] ** 2], axis=1)
    both, first, second = bootstrap_mean(table), bootstrap_mean(table[:, 0]), bootstrap_mean(table[:, 1])
    np.testing.assert_allclose(both.low, [first.low, second.low], rtol=1e-12)
    np.testing.assert_allclose(both.high, [first.high, second.high], rtol=1e-12)
    nothing = bootstrap_mean(np.zeros((3, 0)))  # curves without a common step
    assert np.shape(nothing.mean) == np.shape(nothing.low) == np.shape(nothing.high) == (0,)


def test_intervals_of_a_bootstrap_cover() -> None:
    """95% intervals of the mean of 40 normals cover the truth in 88 to 99% of 120 experiments."""
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(120, 40))
    hits = sum(one.low <= 1.0 <= one.high for one in (bootstrap_mean(drawn, draws=300) for drawn in draws))
    assert 0.88 <= hits / 120 <= 0.99


def test_interquartile_mean() -> None:
    assert interquartile_mean([1, 2, 3, 4, 5, 6, 7, 100]) == 4.5  # by hand: mean of 3, 4, 5, 6
    assert interquartile_mean([1, 2, 4]) == pytest.approx(
        (0.25 * 1 + 2 + 0.25 * 4) / 1.5
    )  # quarters cut through 1 and 4
    values = np.random.default_rng(0).normal(size=40)
    assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25))


def test_the_interval_of_the_interquartile_mean_is_the_spread_of_new_samples() -> None:
    """2,000 fresh samples of 200 normals say how far the statistic scatters; five intervals have that width."""
    rng = np.random.default_rng(12)
    fresh = [interquartile_mean(sample) for sample in rng.standard_normal((2000, 200))]
    found = [bootstrap(sample) for sample in rng.standard_normal((5, 200))]
    widths = [one.high - one.low for one in found]
    assert np.mean(widths) == pytest.approx(2 * QUANTILE * np.std(fresh), rel=0.1)
    assert found[0].mean == interquartile_mean(np.random.default_rng(12).standard_normal((2005, 200))[2000])


def test_a_difference_of_two_samples_adds_their_variances() -> None:
    ours, theirs = VALUES[:250], 0.5 * VALUES[250:] + 1.0
    found = bootstrap_difference(ours, theirs)
    reach = QUANTILE * math.sqrt(ours.var() / 250 + theirs.var() / 150)
    assert found.mean == pytest.approx(ours.mean() - theirs.mean(), rel=1e-12)
    assert found.count == 150
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach), abs=0.12 * reach)
    told = [float(number) for number in re.findall(r"[-+][\d.e-]+", compare._difference(ours, theirs))]
    assert told == pytest.approx([found.mean, found.low, found.high], rel=0.01)


@pytest.mark.parametrize(
    "call",
    [
        bootstrap_mean,
        bootstrap,
        lambda none: bootstrap_difference(none, none),
        lambda none: list(resample(0, np.random.default_rng(0))),
    ],
)
def test_an_empty_sample_is_refused(call) -> None:
    with pytest.raises(ValueError, match="one value at least, got none"):
        call([])


def test_percentiles_cut_the_same_off_at_each_end() -> None:
    assert percentile_interval(np.arange(101.0), level=0.9) == pytest.approx((5.0, 95.0))


# ------------------------------------------------------------------------------------------------ Student, Holm, Wilson


@pytest.mark.parametrize(
    ("level", "count", "quantile"),  # a table of Student's distribution, two-sided, count - 1 degrees of freedom
    [(0.95, 2, 12.7062), (0.95, 3, 4.302653), (0.95, 5, 2.776445), (0.99, 11, 3.169273), (0.5, 3, 0.816497)],
)
def test_students_interval_has_the_quantile_of_the_table(level: float, count: int, quantile: float) -> None:
    values = VALUES[:count]
    deviation = math.sqrt(sum((one - values.mean()) ** 2 for one in values) / (count - 1))
    found = student_interval(values, level)
    reach = quantile * deviation / math.sqrt(count)
    assert (found.mean, found.count) == (pytest.approx(values.mean()), count)
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), rel=1e-5)


def test_students_interval_leaves_out_what_is_not_finite_and_knows_nothing_of_one_value() -> None:
    reach = 4.302653 / math.sqrt(3)  # t quantile of two degrees of freedom, standard deviation 1
    found = student_interval([1.0, 2.0, 3.0, float("nan")])
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((2, 2 - reach, 2 + reach, 3))
    assert str(found) == "2 [-0.484, 4.48]"
    one = student_interval([0.25])
    assert (one.mean, one.low, one.high, one.count) == (0.25, -math.inf, math.inf, 1)
    assert str(one) == "0.25 (one seed)"
    assert math.isnan(student_interval([]).mean)


@pytest.mark.parametrize("mean", [0.0, 0.3, -2.0, 5.0])
def test_the_p_value_of_three_values_has_a_closed_form(mean: float) -> None:
    """m - 1, m, m + 1 have t = m sqrt(3), and with two degrees of freedom p = 1 - |t| / sqrt(t^2 + 2)."""
    t = abs(mean) * math.sqrt(3)
    assert student_p_value([mean - 1, mean, mean + 1]) == pytest.approx(1 - t / math.sqrt(t**2 + 2), rel=1e-9)


def test_a_sample_without_scatter_is_no_evidence() -> None:
    assert [student_p_value(sample) for sample in ([0.0] * 3, [2.0] * 3, [1.0], [])] == [1.0] * 4


@pytest.mark.parametrize(
    ("chances", "left"), [((0.03, 0.01, 0.04), "b"), ((0.02, 0.01, 0.04), "bac"), ((0.02, 0.017, 0.04), "")]
)
def test_holms_correction_stops_at_the_first_that_is_not_sure(chances: tuple[float, ...], left: str) -> None:
    """Held against .05 / 3, .05 / 2 and .05 in turn: .0167, .025, .05."""
    assert "".join(holm(dict(zip("abc", chances, strict=True)))) == left
    assert holm({}) == []


def test_wilsons_interval_is_all_shares_that_the_score_test_does_not_reject() -> None:
    """At both ends |k/n - q| is 1.96 standard deviations of a share q; 0 of n reaches to z^2 / (n + z^2)."""
    for successes, trials in ((0, 10), (3, 10), (10, 10), (81, 263)):
        found = wilson_interval(successes, trials)
        assert (found.mean, found.count) == (successes / trials, trials)
        for end in (found.low, found.high):
            if abs(successes / trials - end) > 1e-9:
                distance = abs(successes / trials - end) / math.sqrt(end * (1 - end) / trials)
                assert distance == pytest.approx(QUANTILE, rel=1e-5)
    assert wilson_interval(0, 10).high == pytest.approx(QUANTILE**2 / (10 + QUANTILE**2), rel=1e-5)
    assert (wilson_interval(0, 10).low, wilson_interval(10, 10).high) == pytest.approx((0, 1), abs=1e-12)
    for wrong in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="expected 0 <= successes <= trials"):
            wilson_interval(*wrong)


# ------------------------------------------------------------------------------------------------------ nobody else

TOOLS = {"percentile", "nanpercentile", "nanquantile", "stdtrit", "stdtr", "ttest_1samp", "ppf", "bootstrap_interval"}
ALLOWED = {  # quantiles of a distribution, not ends of an interval of an estimate
    "toymdp/families.py": {"quantile"},  # the best tenth of the leaves
    "paper_figures/f1_one_step.py": {"quantile"},  # spread of the drawn policies
    "paper_figures/f7_controllers.py": {"quantile"},  # quartiles of the trajectories
}


def computed(source: str) -> set[str]:
    """Names in a source that make an interval: quantiles, Student's distribution, draws by counts."""
    called = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(ast.parse(source))}
    names = {
        alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return (called | names) & (TOOLS | {"quantile", "multinomial"})


def test_nobody_else_computes_an_interval() -> None:
    found = {}
    for package in ("aent", "toymdp", "paper_figures", "llm/aent_llm", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            if names := computed(path.read_text(encoding="utf-8")) - ALLOWED.get(file, set()):
                found[file] = names
    assert found.pop("aent/stats.py") == {"quantile", "stdtrit", "stdtr"}
    found.pop("aent/shaping.py", None)  # quantile is the name of a setting
    assert found == {}


def test_an_interval_elsewhere_is_noticed() -> None:
    assert computed("import numpy as np\nlow, high = np.percentile(drawn, [2.5, 97.5])") == {"percentile"}
    assert computed("from scipy.stats import ttest_1samp") == {"ttest_1samp"}
    assert computed("counts = rng.multinomial(n, shares, size=100)") == {"multinomial"}
