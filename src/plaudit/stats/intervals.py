"""Intervals: no figure is shown without its n and a 95 % interval.

Wilson for rates, bootstrap (percentile or BCa) for statistics without a formula, Student's t on differences where the same items were
judged twice, cluster-robust t where several rows share a prompt or a user. Randomness comes from an explicit `numpy.random.Generator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import scipy  # its parts load with their first use: not where a service or a command starts
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Cells of a resampling block (bootstrap replicates x rows): 4 M doubles are 32 MB.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure with its interval. `n` counts independent units: rows, or clusters where rows are clustered."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)

    def excludes(self, value: float) -> bool:
        """Whether `value` lies strictly outside the interval."""
        return value < self.low or value > self.high


def numbers(values: ArrayLike, name: str, minimum: int = 1) -> Floats:
    """(n,) finite float64 from anything array-like; BadInput where it is not one-dimensional, too short or not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < minimum:
        raise BadInput(f"{name} has shape {array.shape}; give one dimension with at least {minimum} number(s).")
    if not np.isfinite(array).all():
        raise BadInput(
            f"{name} holds {int((~np.isfinite(array)).sum())} value(s) that are not finite; remove them first."
        )
    return array


def normal_quantile(confidence: float) -> float:
    """z with P(|Z| <= z) = confidence."""
    if not 0 < confidence < 1:
        raise BadInput(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95.")
    return float(scipy.special.ndtri(0.5 + confidence / 2))


def t_quantile(confidence: float, df: int) -> float:
    """t with P(|T_df| <= t) = confidence."""
    normal_quantile(confidence)
    return float(scipy.special.stdtrit(df, 0.5 + confidence / 2))


def wilson_bounds(successes: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson (1927) score interval, element by element; n = 0 gives (0, 1). Successes may be fractional (half a tie)."""
    z2 = normal_quantile(confidence) ** 2
    k, size = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if (size < 0).any() or (k < 0).any() or (k > size + 1e-9).any():
        raise BadInput("Successes must lie between 0 and n; check that both count the same rows.")
    total = size + z2
    centre = (k + z2 / 2) / total
    spread = k * (size - k) / np.where(size > 0, size, 1.0) + z2 / 4
    half = np.sqrt(z2 * np.maximum(spread, 0.0)) / total
    # The bounds touch 0 and 1 exactly at k = 0 and k = n; rounding would leave 1e-17 there.
    low = np.where(k <= 0, 0.0, np.maximum(centre - half, 0.0))
    high = np.where(k >= size, 1.0, np.minimum(centre + half, 1.0))
    return low, high


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Rate `successes / n` with the Wilson score interval. Raises BadInput for n < 1 or successes outside 0..n."""
    if n < 1:
        raise BadInput(f"A rate over n = {n} does not exist; wait for at least one observation.")
    low, high = wilson_bounds(successes, n, confidence)
    return Interval(successes / n, float(low), float(high), n)


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean of (n,) independent values, n >= 2."""
    array = numbers(values, "values", minimum=2)
    return float(array.std(ddof=1) / math.sqrt(len(array)))


def mean_interval(values: ArrayLike, clusters: ArrayLike | None = None, confidence: float = 0.95) -> Interval:
    """Mean of (n,) values with a t interval; cluster-robust where `clusters` (n,) names the unit that was sampled.

    With clusters: Var = G/(G-1) sum_g (sum_{i in g} (y_i - mean))^2 / n^2, t with G-1 degrees of freedom (the linearised ratio
    estimator of survey sampling; Cameron & Miller 2015, CR1), and `Interval.n` is G. Identical values give an interval of width 0.
    """
    array = numbers(values, "values", minimum=2)
    mean = float(array.mean())
    sums = _cluster_sums(array - mean, clusters)
    n_units = len(sums)
    if n_units < 2:
        raise BadInput("All rows share one cluster; an interval needs at least two clusters.")
    variance = n_units / (n_units - 1) * float(sums @ sums) / len(array) ** 2
    half = t_quantile(confidence, n_units - 1) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, n_units)


def paired_difference(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike | None = None, confidence: float = 0.95
) -> Interval:
    """Mean of first - second over the same items, both (n,).

    t rather than a bootstrap: the mean of differences is what the t interval is made for, it needs no seed, so that two readers of the
    same rows print the same gate, and at 20 to 50 items the percentile bootstrap covers less than its nominal level.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise BadInput(
            f"Paired values have shapes {left.shape} and {right.shape}; give the same items in the same order."
        )
    return mean_interval(left - right, clusters, confidence)


def win_rate(
    outcomes: ArrayLike,
    weights: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Weighted share of wins; outcomes (n,) in 0..1: 1 a win, 0 a loss, .5 a tie (half a win each way), or a probability.

    Interval: Agresti & Coull (1998) carried over to ties, weights and clusters. Add z^2/2 wins and z^2/2 losses, each of a cluster's
    average weight, then take centre +- z se of those with the cluster-robust variance. Without ties, weights and clusters it is exactly
    Agresti-Coull; it has width where every outcome is the same. `mean` is the plain weighted share; `n` counts the clusters.
    """
    y = numbers(outcomes, "outcomes")
    w = np.ones_like(y) if weights is None else numbers(weights, "weights")
    if y.min() < 0 or y.max() > 1:
        raise BadInput(f"Outcomes span {y.min():g}..{y.max():g}; code a win as 1, a tie as 0.5 and a loss as 0.")
    if w.shape != y.shape or (w < 0).any() or w.sum() <= 0:
        raise BadInput("Weights must be one number >= 0 per outcome, with a positive sum.")
    z = normal_quantile(confidence)
    cluster_weights = _cluster_sums(w, clusters)
    n_units = len(cluster_weights)
    pseudo = float(cluster_weights.mean())
    total = float(w.sum()) + z * z * pseudo
    centre = (float(w @ y) + z * z * pseudo / 2) / total
    residuals = _cluster_sums(w * (y - centre), clusters)
    squares = float(residuals @ residuals) + z * z / 2 * pseudo**2 * ((1 - centre) ** 2 + centre**2)
    half = z * math.sqrt(squares) / total
    return Interval(float(w @ y / w.sum()), max(0.0, centre - half), min(1.0, centre + half), n_units)


def bootstrap_mean(
    values: ArrayLike,
    rng: np.random.Generator,
    *,
    method: Literal["percentile", "bca"] = "percentile",
    n_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of (n,) values with a bootstrap interval (Efron & Tibshirani 1993, ch. 13-14), vectorised in blocks of 32 MB."""
    array = numbers(values, "values", minimum=2)
    n = len(array)
    replicates = np.empty(n_resamples)
    step = max(1, _BLOCK_CELLS // n)
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        replicates[start : start + size] = array[rng.integers(0, n, (size, n))].mean(axis=1)
    mean = float(array.mean())
    jackknife = (array.sum() - array) / (n - 1) if method == "bca" else None
    low, high = _bootstrap_bounds(mean, replicates, jackknife, confidence)
    return Interval(mean, low, high, n)


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], float],
    data: ArrayLike,
    rng: np.random.Generator,
    *,
    method: Literal["percentile", "bca"] = "percentile",
    n_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """`statistic(rows)` with a bootstrap interval over the rows of `data` (n, ...).

    BCa calls the statistic n more times for its jackknife. A statistic that is undefined (not finite) on a resample leaves it out.
    """
    rows = np.asarray(data, dtype=np.float64)
    if rows.ndim < 1 or len(rows) < 2:
        raise BadInput(f"data has shape {rows.shape}; a bootstrap needs at least two rows.")
    n = len(rows)
    value = float(statistic(rows))
    replicates = np.array([statistic(rows[rng.integers(0, n, n)]) for _ in range(n_resamples)])
    replicates = replicates[np.isfinite(replicates)]
    if not math.isfinite(value) or len(replicates) < n_resamples / 2:
        raise BadInput(f"The statistic is {value} and undefined on most resamples of n = {n} rows; collect more rows.")
    jackknife = np.array([statistic(np.delete(rows, i, axis=0)) for i in range(n)]) if method == "bca" else None
    low, high = _bootstrap_bounds(value, replicates, jackknife, confidence)
    return Interval(value, low, high, n)


def percentile_bounds(replicates: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates (B,)."""
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _bootstrap_bounds(
    value: float, replicates: Floats, jackknife: Floats | None, confidence: float
) -> tuple[float, float]:
    """Percentile bounds, or BCa (Efron 1987) where jackknife values are given: bias z0 and acceleration a shift the quantiles."""
    below = (np.mean(replicates < value) + np.mean(replicates <= value)) / 2
    if jackknife is None or not 0 < below < 1:
        return percentile_bounds(replicates, confidence)
    centred = jackknife.mean() - jackknife
    spread = float((centred**2).sum()) ** 1.5
    if spread == 0:
        return percentile_bounds(replicates, confidence)
    z0 = scipy.special.ndtri(below)
    acceleration = float((centred**3).sum()) / (6 * spread)
    z = np.array([-1.0, 1.0]) * normal_quantile(confidence)
    levels = scipy.special.ndtr(z0 + (z0 + z) / (1 - acceleration * (z0 + z)))
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def _cluster_sums(values: Floats, clusters: ArrayLike | None) -> Floats:
    """Sum of values per cluster, or the values themselves where every row is its own cluster."""
    if clusters is None:
        return values
    labels = np.asarray(clusters)
    if labels.shape != values.shape:
        raise BadInput(f"clusters has shape {labels.shape} for {len(values)} values; give one cluster per value.")
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, weights=values).astype(np.float64)
