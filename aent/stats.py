"""Means over seeds, prompts or problems, with intervals: what every table, verdict and band of this project rests on.

    bootstrap_mean(values)      mean and percentile bootstrap interval over the first axis: what is drawn
    bootstrap(values)           the same for the interquartile mean, or for any statistic
    student_interval(values)    mean and Student interval: what a verdict says (bootstraps of five are narrow)
    student_p_value, holm       is a mean different from zero, and which of many are after Holm's correction
    wilson_interval             of a share of successes

Bootstraps have a fixed seed, so the same values give the same interval every time. All of them draw with
``Generator.integers``, as the committed records were made; a bootstrap of N values is narrow by about sqrt((N-1)/N),
and that of one value is a point. Intervals are 95% unless ``level`` says otherwise.

Left out: effect sizes and power. Only Student's distribution needs scipy, which comes with the extras that use it.

Shapes: N values, D resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "Estimate",
    "bootstrap",
    "bootstrap_difference",
    "bootstrap_mean",
    "holm",
    "interquartile_mean",
    "percentile_interval",
    "resample",
    "student_interval",
    "student_p_value",
    "wilson_interval",
]

DRAWS = 2000  # resamples behind an interval
BLOCK = 2**22  # numbers of the resamples that are held at a time
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean (or another statistic) with the ends of its interval: numbers, or arrays of one shape.

    Attributes:
        mean: the statistic of all values.
        low: lower end of the interval.
        high: upper end; both are infinite where one value says nothing about the scatter (Student's interval).
        count: how many values are behind it.

    Examples:
        >>> print(Estimate(0.5, 0.25, 0.75, count=9))
        0.5 [0.25, 0.75]
    """

    mean: Any
    low: Any
    high: Any
    count: int

    def __str__(self) -> str:
        if not np.isfinite(self.high - self.low):
            return f"{self.mean:.3g} (one seed)"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


# ------------------------------------------------------------------------------------------------------- bootstrap


def bootstrap_mean(values: Any, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Estimate:
    """Estimate the mean over the first axis with its percentile bootstrap interval.

    All columns see the same resamples. Resampled means are counts @ values / N, without a copy of the values per draw.

    Args:
        values: (N, ...).
        draws: D, the number of resamples.
        seed: of the resamples.
        level: of the interval.

    Returns:
        Floats for (N,), else arrays of the shape (...).

    Raises:
        ValueError: there is no value.
    """
    values = np.asarray(values, dtype=float)
    means = _resampled_means(values, np.random.default_rng(seed), draws)
    return Estimate(_plain(values.mean(0)), *percentile_interval(means, level), count=len(values))


def bootstrap_difference(ours: Any, theirs: Any, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Estimate:
    """Estimate mean(ours) - mean(theirs) of two samples that are not paired, (N,) and (M,); see ``bootstrap_mean``.

    ``count`` is that of the smaller sample.

    Raises:
        ValueError: one of them has no value.
    """
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    rng = np.random.default_rng(seed)
    means = _resampled_means(ours, rng, draws) - _resampled_means(theirs, rng, draws)
    low, high = percentile_interval(means, level)
    return Estimate(float(ours.mean() - theirs.mean()), low, high, count=min(len(ours), len(theirs)))


def interquartile_mean(values: Any, axis: int = -1) -> Any:
    """Mean of the middle half along ``axis`` (25% trimmed at each end): robust like the median, less coarse.

    Examples:
        >>> float(interquartile_mean([0, 1, 2, 3, 4, 5, 6, 100]))  # of 2, 3, 4, 5
        3.5

    Reference: Agarwal et al. 2021, arXiv 2108.13264.
    """
    ordered = np.sort(np.moveaxis(np.asarray(values, dtype=float), axis, -1))
    size = ordered.shape[-1]
    weights = np.clip(np.minimum(np.arange(1, size + 1) - size / 4, 0.75 * size - np.arange(size)), 0, 1)
    return ordered @ weights / weights.sum()


def bootstrap(
    values: Any,
    statistic: Callable[..., Any] = interquartile_mean,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate any statistic of (N,) values with its percentile bootstrap interval.

    Args:
        values: (N,).
        statistic: ``statistic(samples, axis=-1)`` is asked for all resamples (D, N) at once, as ``np.median`` can be.
        draws: D, the number of resamples.
        seed: of the resamples.
        level: of the interval.

    Raises:
        ValueError: there is no value.
    """
    values = np.asarray(values, dtype=float)
    _check_some(len(values))
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = percentile_interval(statistic(values[picks], axis=-1), level)
    return Estimate(float(statistic(values, axis=-1)), low, high, count=len(values))


def resample(count: int, rng: np.random.Generator, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """Draw ``count`` values with return ``draws`` times; yields blocks (b, N) of how often each value was drawn.

    The stream is that of ``rng.integers(count, size=(draws, count))``.

    Raises:
        ValueError: there is no value to draw from.
    """
    _check_some(count)
    rows = max(1, BLOCK // count)
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        picks = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(picks.ravel(), minlength=size * count).reshape(size, count).astype(float)


def percentile_interval(drawn: Any, level: float = 0.95) -> tuple[Any, Any]:
    """Cut (1 - level) / 2 of the resampled statistics (D, ...) off at each end; floats for (D,), else arrays."""
    low, high = np.quantile(np.asarray(drawn, dtype=float), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return _plain(low), _plain(high)


# ----------------------------------------------------------------------------------------------- closed distributions


def student_interval(values: Any, level: float = 0.95) -> Estimate:
    """Estimate the mean of (N,) values with Student's interval, mean -+ t s / sqrt(N).

    t is the quantile of N - 1 degrees of freedom, s the standard deviation with N - 1 in the denominator. Values that
    are not finite are left out. The interval of fewer than two values is infinite.
    """
    values = _finite(values)
    count = len(values)
    mean = float(values.mean()) if count else math.nan
    if count < 2:
        return Estimate(mean, -math.inf, math.inf, count)
    from scipy.special import stdtrit  # noqa: PLC0415  (aent needs numpy alone)

    reach = float(stdtrit(count - 1, (1 + level) / 2) * values.std(ddof=1) / math.sqrt(count))
    return Estimate(mean, mean - reach, mean + reach, count)


def student_p_value(values: Any) -> float:
    """Give the two-sided p-value of Student's test that the mean of (N,) values is zero.

    Values that are not finite are left out. A sample without scatter, or of one value, is no evidence: 1.
    """
    values = _finite(values)
    if len(values) < 2 or np.ptp(values) == 0:
        return 1.0
    from scipy.special import stdtr  # noqa: PLC0415  (aent needs numpy alone)

    t = values.mean() / (values.std(ddof=1) / math.sqrt(len(values)))
    return float(2 * stdtr(len(values) - 1, -abs(t)))


def holm(chances: Mapping[Key, float], level: float = 0.05) -> list[Key]:
    """List the keys whose p-value stays significant after Holm's correction over all of them, smallest first.

    The smallest p-value is held against level / n, the next against level / (n - 1), up to the first that is above.

    Examples:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})  # .01 < .05 / 3, but .03 > .05 / 2
        ['a']

    Reference: Holm 1979, Scand. J. Statist. 6, 65-70.
    """
    ranked = sorted(chances, key=lambda key: chances[key])
    ends = [place for place, key in enumerate(ranked) if chances[key] > level / (len(ranked) - place)]
    return ranked[: ends[0]] if ends else ranked


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Estimate:
    """Estimate a share of successes in independent trials with Wilson's score interval.

    With z the normal quantile and p = successes / trials, the ends are
    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n): all shares that the trials do not contradict.

    Raises:
        ValueError: no trials, or more successes than trials.

    Reference: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"expected 0 <= successes <= trials and one trial at least, got {successes} of {trials}")
    z, share = NormalDist().inv_cdf((1 + level) / 2), successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2) / (1 + z**2 / trials)
    return Estimate(share, max(0.0, centre - reach), min(1.0, centre + reach), trials)


# -------------------------------------------------------------------------------------------------------- internals


def _resampled_means(values: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    """(N, ...) -> (D, ...)"""
    count, flat = len(values), values.reshape(len(values), math.prod(values.shape[1:]))
    means = np.concatenate([counts @ flat / count for counts in resample(count, rng, draws)])
    return means.reshape(draws, *values.shape[1:])


def _finite(values: Any) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]


def _check_some(count: int) -> None:
    if count < 1:
        raise ValueError("expected one value at least, got none: nothing can be drawn from an empty sample")


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value
