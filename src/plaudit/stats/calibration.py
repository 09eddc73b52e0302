"""Do predicted probabilities come true? Reliability bins, expected calibration error, log loss, Brier score, temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from plaudit.errors import BadInput
from plaudit.stats.intervals import Interval, numbers, wilson

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions in [low, high): their mean and the observed rate with its interval."""

    low: float
    high: float
    mean_probability: float
    observed: Interval


def reliability_bins(probabilities: ArrayLike, outcomes: ArrayLike, n_bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Equal-width bins of predictions (n,) against outcomes (n,) in 0..1 (soft labels allowed); empty bins are left out.

    The last bin includes 1.
    """
    p, y = _checked(probabilities, outcomes)
    index = _bin_index(p, n_bins)
    bins = []
    for b in np.unique(index):
        inside = index == b
        n = int(inside.sum())
        observed = wilson(min(float(y[inside].sum()), n), n)
        bins.append(ReliabilityBin(float(b / n_bins), float((b + 1) / n_bins), float(p[inside].mean()), observed))
    return tuple(bins)


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, n_bins: int = 10) -> float:
    """Mean over predictions of |observed rate - mean prediction| of their bin (Naeini et al. 2015). Biased upwards at small n."""
    p, y = _checked(probabilities, outcomes)
    gaps = np.bincount(_bin_index(p, n_bins), weights=y - p, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(p))


def log_loss(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean of -y ln p - (1 - y) ln(1 - p) in nats, p kept 1e-12 away from 0 and 1."""
    p, y = _checked(probabilities, outcomes)
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).mean())


def brier_score(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared distance of prediction and outcome (Brier 1950)."""
    p, y = _checked(probabilities, outcomes)
    return float(((p - y) ** 2).mean())


def fit_temperature(logits: ArrayLike, outcomes: ArrayLike) -> float:
    """T > 0 that minimises the log loss of sigmoid(logits / T) on outcomes in 0..1 (Guo et al. 2017), between 0.01 and 100.

    Fit it on other rows than those it is reported on. T > 1 means the logits were too sure.
    """
    s, y = numbers(logits, "logits", 2), numbers(outcomes, "outcomes", 2)
    _checked(special.expit(s), y)

    def loss(log_t: float) -> float:
        z = s * np.exp(-log_t)
        return float((np.logaddexp(0.0, z) - y * z).mean())

    best = optimize.minimize_scalar(
        loss, bounds=(np.log(0.01), np.log(100.0)), method="bounded", options={"xatol": 1e-8}
    )
    return float(np.exp(best.x))


def _checked(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    p, y = numbers(probabilities, "probabilities"), numbers(outcomes, "outcomes")
    if p.shape != y.shape or min(p.min(), y.min()) < 0 or max(p.max(), y.max()) > 1:
        raise BadInput(f"{len(p)} probabilities and {len(y)} outcomes; give equally many, all between 0 and 1.")
    return p, y


def _bin_index(p: Floats, n_bins: int) -> NDArray[np.int64]:
    if n_bins < 1:
        raise BadInput(f"n_bins is {n_bins}; give at least one bin.")
    return np.minimum((p * n_bins).astype(np.int64), n_bins - 1)
