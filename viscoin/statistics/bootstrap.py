"""Intervals: how far a measured value may move when other images of the same kind are taken."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 1000
GROUPS = 20  # of the jackknife


@dataclass(frozen=True)
class Estimate:
    """A value measured on n images (or other `unit`) and the ends of its 95 % interval; NaN ends if n < 2."""

    value: float
    low: float
    high: float
    n: int
    unit: str = "images"

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    unit: str = "images",
) -> Estimate:
    """A statistic of N images with its 95 % percentile interval (Efron & Tibshirani 1993, Ch. 13).

    Hits that are all right or all wrong show no spread to resample; the interval of their mean is the exact binomial
    one (Clopper & Pearson 1934) instead.

    Args:
        values: (N, ...), a row for each image; rows are resampled whole, so what belongs to one image stays together.
        statistic: rows (M, ...) -> one number; resamples for which it is NaN are left out of the interval.
        unit: what the rows are.

    Raises:
        ValueError: no rows.
    """
    n = len(values)
    if not n:
        raise ValueError("there is no value to take a statistic of")
    value = float(statistic(values))
    if n < 2:
        return Estimate(value, np.nan, np.nan, n, unit)
    if values.dtype == bool and values.ndim == 1 and statistic is np.mean and value in (0, 1):
        exact = stats.binomtest(int(values.sum()), n).proportion_ci(LEVEL)
        return Estimate(value, float(exact.low), float(exact.high), n, unit)
    rng = np.random.default_rng(seed)
    found = np.array([float(statistic(values[rng.integers(n, size=n)])) for _ in range(resamples)])
    if np.isnan(found).all():
        return Estimate(value, np.nan, np.nan, n, unit)
    low, high = np.nanquantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(value, float(low), float(high), n, unit)


def jackknife(
    n: int, statistic: Callable[[np.ndarray], float], *, seed: int = 0, groups: int = GROUPS, unit: str = "images"
) -> Estimate:
    """A statistic of n images with its 95 % interval from leaving out one random group of images after the other.

    For statistics that take long, or that the bootstrap would bias: repeated images lower the rank of a covariance,
    and so push a Frechet distance up by about as much as its own bias at n images, often beyond its interval. Without
    one group in twenty the bias hardly changes, and it cancels in the spread. Value +- t se, where
    se^2 = (g - 1) / g sum_j (s_j - mean s)^2 (delete-a-group jackknife, Shao & Tu 1995, Ch. 2.3), never below 0 if the
    values are not.

    Args:
        statistic: rows (M,) of the images that are kept -> one number.
        groups: how many at most, each of two images or more; the ends are NaN where that makes fewer than two groups.
    """
    value = float(statistic(np.arange(n)))
    groups = min(groups, n // 2)
    if groups < 2:
        return Estimate(value, np.nan, np.nan, n, unit)
    order = np.random.default_rng(seed).permutation(n)
    found = np.array([statistic(np.setdiff1d(order, part)) for part in np.array_split(order, groups)])
    error = np.sqrt((groups - 1) / groups * np.square(found - found.mean()).sum())
    margin = stats.t.ppf((1 + LEVEL) / 2, groups - 1) * error
    low = max(value - margin, 0.0) if found.min() >= 0 <= value else value - margin
    return Estimate(value, float(low), float(value + margin), n, unit)
