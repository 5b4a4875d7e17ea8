"""Is a mean difference more than chance? A paired t-test, a bootstrap interval, Holm's correction.

The first two know clusters: values that belong together (one question in twelve languages) are one observation,
not twelve. Where every value is its own cluster they are the textbook's. Both rest on the clusters' sizes and sums
alone; beyond BOOTSTRAP_CLUSTERS on the sums of their powers, which can be added up wherever the clusters are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]

BOOTSTRAPS = 10_000
# Above this many clusters the interval is what bootstraps converge to: they would take minutes and say the same.
BOOTSTRAP_CLUSTERS = 20_000
_CELLS_AT_ONCE = 4_000_000  # 8 bytes each, a few arrays of them
_NORMAL_975 = 1.959963984540054


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
    return bootstrap_of_sums(cluster_sums(differences, clusters), seed=seed, bootstraps=bootstraps)


def mean_interval(differences: Floats, clusters: Ints, *, seed: int) -> tuple[Floats, Floats]:
    """The bootstrap interval; its expansion where there are more than BOOTSTRAP_CLUSTERS clusters."""
    sums = cluster_sums(differences, clusters)
    if len(sums) <= BOOTSTRAP_CLUSTERS:
        return bootstrap_of_sums(sums, seed=seed)
    found = [Moments.of(sums[:, i], sums[:, -1]).interval() for i in range(differences.shape[1])]
    return np.asarray([low for low, _ in found]), np.asarray([high for _, high in found])


def cluster_sums(differences: Floats, clusters: Ints) -> Floats:
    """float64 (clusters, k + 1): the sums of each cluster's differences, and its size last; clusters in order."""
    codes, _ = _codes(clusters)
    columns = (*differences.T, np.ones(len(codes)))
    return np.stack([np.bincount(codes, weights=column) for column in columns], axis=1)


def bootstrap_of_sums(sums: Floats, *, seed: int, bootstraps: int = BOOTSTRAPS) -> tuple[Floats, Floats]:
    """`bootstrap_interval` of clusters that are summed up already, as `cluster_sums` does it."""
    count, columns = len(sums), sums.shape[1] - 1
    if count < 2:
        return np.full(columns, np.nan), np.full(columns, np.nan)
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


# The powers of a cluster's sum and of its size whose products `Moments` adds up.
POWERS = tuple((s, m) for s in range(4) for m in range(4) if s + m <= 3)


@dataclass(frozen=True)
class Moments:
    """Of one difference: Σ sumˢ · sizeᵐ over clusters, for each (s, m) of POWERS. Those of parts add up."""

    sums: dict[tuple[int, int], float]

    @staticmethod
    def of(sums: Floats, sizes: Floats) -> Moments:
        """From each cluster's sum of differences and its size."""
        return Moments({(s, m): float((sums**s * sizes**m).sum()) for s, m in POWERS})

    def p(self) -> float:
        """As `paired_t_test`."""
        count, size = self.sums[0, 0], self.sums[0, 1]
        if count < 2:
            return float("nan")
        mean, squares, _, _ = self._residuals()
        error = math.sqrt(count / (count - 1) * squares) / size
        if error == 0.0:
            return 1.0 if mean == 0.0 else 0.0
        return float(2.0 * stdtr(count - 1, -abs(mean) / error))

    def interval(self) -> tuple[float, float]:
        """What the bootstrap interval converges to as bootstraps grow, but for terms of 1 / clusters.

        The Cornish-Fisher expansion of a resampled mean's quantiles, Σ sum / Σ size, to its second order: bias,
        variance and skewness (Hall, The Bootstrap and Edgeworth Expansion, 1992, sections 2.5 and 3.5).
        """
        if self.sums[0, 0] < 2:
            return float("nan"), float("nan")
        mean, squares, cubes, with_size = self._residuals()
        size = self.sums[0, 1]
        variance, covariance = squares / size**2, with_size / size**2
        if variance == 0.0:
            return mean, mean
        skewness = (cubes / size**3 - 6.0 * variance * covariance) / variance**1.5
        shift = mean - covariance + math.sqrt(variance) * skewness / 6.0 * (_NORMAL_975**2 - 1.0)
        half = math.sqrt(variance) * _NORMAL_975
        return shift - half, shift + half

    def _residuals(self) -> tuple[float, float, float, float]:
        """Mean, and of the residuals r = sum − mean · size: Σ r², Σ r³, Σ r · size."""
        at = self.sums
        mean = at[1, 0] / at[0, 1]
        squares = at[2, 0] - 2.0 * mean * at[1, 1] + mean**2 * at[0, 2]
        cubes = at[3, 0] - 3.0 * mean * at[2, 1] + 3.0 * mean**2 * at[1, 2] - mean**3 * at[0, 3]
        return mean, max(0.0, squares), cubes, at[1, 1] - mean * at[0, 2]


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
