"""Is a mean difference more than chance? A paired t-test, a bootstrap interval, Holm's correction.

The first two know clusters: values that belong together (one question in twelve languages) are one observation,
not twelve. Where every value is its own cluster they are the textbook's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]

BOOTSTRAPS = 10_000
_CELLS_AT_ONCE = 4_000_000  # 8 bytes each, a few arrays of them


def paired_t_test(differences: Floats, clusters: Ints) -> float:
    """Two-sided p of "the mean difference is 0"; NaN for fewer than two clusters.

    differences: float64 (n,); clusters: int (n,). The standard error is cluster-robust with the C/(C−1)
    correction, on C−1 degrees of freedom (Liang & Zeger, Biometrika 73, 1986).
    """
    codes, count = _codes(clusters)
    if count < 2:
        return float("nan")
    mean = float(differences.mean())
    residuals = np.bincount(codes, weights=differences - mean)
    error = float(np.sqrt(count / (count - 1) * np.square(residuals).sum())) / len(differences)
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2.0 * stdtr(count - 1, -abs(mean) / error))


def bootstrap_interval(
    differences: Floats, clusters: Ints, *, seed: int, bootstraps: int = BOOTSTRAPS
) -> tuple[Floats, Floats]:
    """95 % percentile interval of the means: low and high, float64 (k,); NaN for fewer than two clusters.

    differences: float64 (n, k), whose columns are resampled together; clusters: int (n,). Clusters are drawn
    with replacement, and a resample's mean is over the values drawn (Efron & Tibshirani 1993, chapter 13).
    """
    codes, count = _codes(clusters)
    columns = differences.shape[1]
    if count < 2:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    sums = np.stack([np.bincount(codes, weights=c) for c in (*differences.T, np.ones(len(codes)))], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((bootstraps, columns))
    step = max(1, _CELLS_AT_ONCE // count)
    for start in range(0, bootstraps, step):
        rows = min(step, bootstraps - start)
        # Drawn row by row from one stream, so the result does not depend on `step`.
        draws = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times_drawn = np.bincount(draws.ravel(), minlength=rows * count).reshape(rows, count)
        totals = times_drawn.astype(np.float64) @ sums
        means[start : start + rows] = totals[:, :-1] / totals[:, -1:]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Scand. J. Statist. 6, 1979).

    A NaN is no test: it stays NaN and does not count.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return [float(a) for a in adjusted]


def _codes(clusters: Ints) -> tuple[Ints, int]:
    """Clusters numbered from 0 in sorted order, and how many there are."""
    names, codes = np.unique(clusters, return_inverse=True)
    return codes, len(names)
