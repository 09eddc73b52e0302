"""How much of a gain is length? Judges and reward models like long answers; a policy that only writes more has learned little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts load with their first use: not where a service or a command starts
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput
from plaudit.stats.intervals import Interval, numbers, percentile_bounds

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LengthShare:
    """gain: mean over items. at_equal_length: the gain where both texts are equally long. fraction: the rest, as a share of the gain;
    None where the gain's interval includes 0, since a share of nothing has no meaning. slope: gain per unit of length."""

    gain: Interval
    at_equal_length: Interval
    fraction: Interval | None
    slope: float


def gain_explained_by_length(
    gains: ArrayLike, length_differences: ArrayLike, rng: np.random.Generator, n_resamples: int = 2000
) -> LengthShare:
    """Least squares gain_i = a + b d_i over items: d the candidate's length minus the base's (n,), gain likewise (n,).

    fraction = b mean(d) / mean(gain) = 1 - a / mean(gain). Above 1: at equal length the candidate is worse; below 0: it gained although
    it is shorter. A straight line only, and extrapolated where few items have d near 0. Percentile bootstrap over items.
    """
    y, d = _paired(gains, length_differences)
    n = len(y)
    index = np.vstack([np.arange(n), rng.integers(0, n, (n_resamples, n))])
    ys, ds = y[index], d[index]  # (1 + B, n)
    mean_y, mean_d = ys.mean(axis=1), ds.mean(axis=1)
    spread = ((ds - mean_d[:, None]) ** 2).sum(axis=1)
    covariance = ((ds - mean_d[:, None]) * (ys - mean_y[:, None])).sum(axis=1)
    slope = np.where(spread > 0, covariance / np.where(spread > 0, spread, 1.0), 0.0)
    equal = mean_y - slope * mean_d

    gain = _interval(mean_y, n)
    fraction = None
    if gain.excludes(0.0):
        fraction = _interval(slope * mean_d / np.where(mean_y == 0, np.nan, mean_y), n)
    return LengthShare(gain, _interval(equal, n), fraction, float(slope[0]))


def length_controlled_win_rate(
    outcomes: ArrayLike,
    length_differences: ArrayLike,
    rng: np.random.Generator,
    n_resamples: int = 1000,
    clusters: ArrayLike | None = None,
) -> Interval:
    """Win rate predicted at equal length (Dubois et al. 2024, AlpacaEval 2 without its item term); outcomes (n,) in 0..1, ties .5.

    Logistic model logit P(win) = theta + phi tanh(d / sd(d)), with a N(0, 3^2) prior on both so that a clean sweep stays finite; the
    figure is sigmoid(theta), with a percentile bootstrap over items, or over whole `clusters` (n,), which `n` then counts.
    """
    y, d = _paired(outcomes, length_differences)
    if y.min() < 0 or y.max() > 1:
        raise BadInput(f"Outcomes span {y.min():g}..{y.max():g}; code a win as 1, a tie as 0.5 and a loss as 0.")
    n = len(y)
    sd = float(d.std())
    x = np.tanh(d / sd) if sd > 0 else np.zeros(n)
    unit = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if unit.shape != y.shape:
        raise BadInput(f"clusters has shape {unit.shape} for {n} values; give one cluster per value.")
    n_units = int(unit.max()) + 1
    drawn = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_resamples)[:, unit]
    return _interval(scipy.special.expit(_logistic_intercepts(x, y, np.vstack([np.ones(n), drawn]))), n_units)


def _logistic_intercepts(x: Floats, y: Floats, weights: Floats, prior_sd: float = 3.0) -> Floats:
    """(B,) intercepts of logistic fits of y on x (n,), one per row of weights (B, n); Newton's method on all of them at once."""
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    ridge = 1 / prior_sd**2
    for _ in range(50):
        p = scipy.special.expit(theta[:, None] + phi[:, None] * x)
        residual, curve = weights * (y - p), weights * p * (1 - p)
        g0, g1 = residual.sum(axis=1) - ridge * theta, residual @ x - ridge * phi
        h00, h01, h11 = curve.sum(axis=1) + ridge, curve @ x, curve @ (x * x) + ridge
        determinant = h00 * h11 - h01**2
        step0, step1 = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # A bounded step keeps Newton from overshooting where nearly every outcome is the same.
        theta, phi = theta + np.clip(step0, -2, 2), phi + np.clip(step1, -2, 2)
        if max(np.abs(step0).max(), np.abs(step1).max()) < 1e-8:
            break
    return theta


def _interval(figures: Floats, n: int) -> Interval:
    """First entry the figure, the others its bootstrap replicates."""
    return Interval(float(figures[0]), *percentile_bounds(figures[1:][np.isfinite(figures[1:])]), n)


def _paired(values: ArrayLike, length_differences: ArrayLike) -> tuple[Floats, Floats]:
    y, d = numbers(values, "values", 3), numbers(length_differences, "length_differences", 3)
    if y.shape != d.shape:
        raise BadInput(f"{len(y)} values and {len(d)} length differences; give one of each per item.")
    return y, d
