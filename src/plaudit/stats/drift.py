"""Has a distribution or a series moved? PSI for categories, KS for numbers, CUSUM with a stated run length for series.

Beside every p-value stands a floor on the effect, or large n alarms on dust. Streaming ADWIN is left to `river`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its parts load with their first use: not where a service or a command starts
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput
from plaudit.stats.intervals import numbers

Floats = NDArray[np.float64]

PSI_FLOOR = 0.1
KS_FLOOR = 0.1


@dataclass(frozen=True)
class Drift:
    """A distance between two samples, the threshold that was fixed before looking, and whether it was passed."""

    value: float
    threshold: float
    drifted: bool
    n_reference: int
    n_current: int
    p_value: float | None = None


def psi(reference_counts: ArrayLike, current_counts: ArrayLike) -> Drift:
    """Population stability index of counts per category, both (B,): sum (a - e) ln(a / e), half a count added to each cell.

    Threshold max(0.1, chi2_{B-1, .95} (1/n + 1/m)): without drift the index is about (1/n + 1/m) chi2_{B-1}, (Yurdakul 2018), so
    the usual rule of 0.1 false-alarms in 32 % of stable windows at n = m = 200 and 10 categories; this one in 4 %.
    """
    expected, actual = numbers(reference_counts, "reference_counts", 2), numbers(current_counts, "current_counts", 2)
    if (
        expected.shape != actual.shape
        or min(expected.min(), actual.min()) < 0
        or min(expected.sum(), actual.sum()) == 0
    ):
        raise BadInput("PSI compares counts >= 0 over the same categories, with at least one row on each side.")
    n, m = expected.sum(), actual.sum()
    e, a = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (expected, actual))
    value = float(((a - e) * np.log(a / e)).sum())
    threshold = max(PSI_FLOOR, float(scipy.stats.chi2.ppf(0.95, len(e) - 1) * (1 / n + 1 / m)))
    return Drift(value, threshold, value > threshold, int(n), int(m))


def ks(reference: ArrayLike, current: ArrayLike, alpha: float = 0.01) -> Drift:
    """Two-sample Kolmogorov-Smirnov for scores and lengths: drifted where p < alpha *and* the distance is at least 0.1."""
    a, b = numbers(reference, "reference", 2), numbers(current, "current", 2)
    result = scipy.stats.ks_2samp(a, b)
    value, p = float(result.statistic), float(result.pvalue)
    return Drift(value, KS_FLOOR, p < alpha and value >= KS_FLOOR, len(a), len(b), p)


@dataclass(frozen=True)
class Cusum:
    """Upper and lower sums (n,), alarms (indices; the sums restart after each), and the mean windows between false alarms."""

    upper: Floats
    lower: Floats
    alarms: tuple[int, ...]
    average_run_length: float


def cusum(z: ArrayLike, k: float = 0.5, h: float = 5.0) -> Cusum:
    """Two-sided tabular CUSUM (Page 1954) of a series (n,) that is standard normal and uncorrelated while nothing is wrong.

    k: half the shift to be found, h: the alarm threshold, both in standard deviations. Standardise with `standardised_difference`.
    """
    series = numbers(z, "z")
    upper, lower = np.zeros(len(series)), np.zeros(len(series))
    alarms: list[int] = []
    up = down = 0.0
    for i, value in enumerate(series):
        up, down = max(0.0, up + value - k), max(0.0, down - value - k)
        upper[i], lower[i] = up, down
        if up > h or down > h:
            alarms.append(i)
            up = down = 0.0
    return Cusum(upper, lower, tuple(alarms), cusum_run_length(k, h))


def cusum_run_length(k: float = 0.5, h: float = 5.0, shift: float = 0.0) -> float:
    """Mean number of windows until the two-sided CUSUM alarms when the series' mean is `shift` standard deviations.

    One side by its integral equation ARL(s) = 1 + ARL(0) Phi(k - s) + int_0^h ARL(x) phi(x + k - s) dx on Gauss-Legendre nodes (Nystrom;
    Knoth 2005); the two sides combine as 1/ARL = 1/ARL+ + 1/ARL-.
    """
    if k < 0 or h <= 0:
        raise BadInput(f"k is {k}, h {h}; a CUSUM needs k >= 0 and h > 0.")
    return 1 / (1 / _one_sided_run_length(k - shift, h) + 1 / _one_sided_run_length(k + shift, h))


def cusum_threshold(average_run_length: float, k: float = 0.5) -> float:
    """The h at which false alarms of the two-sided CUSUM are `average_run_length` windows apart."""
    if not 3 <= average_run_length <= 1e6:
        raise BadInput(f"A run length of {average_run_length} windows is out of reach; choose 3 to 1,000,000.")
    return float(scipy.optimize.brentq(lambda h: math.log(cusum_run_length(k, h) / average_run_length), 1e-3, 40.0))


def _one_sided_run_length(k: float, h: float) -> float:
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x, w = h * (nodes + 1) / 2, h * weights / 2
    points = np.concatenate([[0.0], x])
    density = np.exp(-0.5 * (x[None, :] + k - points[:, None]) ** 2) / math.sqrt(2 * math.pi) * w[None, :]
    kernel = np.column_stack([scipy.special.ndtr(k - points), density])
    run_length = np.linalg.solve(np.eye(len(points)) - kernel, np.ones(len(points)))[0]
    # Rounding makes the system singular where false alarms are more than about 1e12 windows apart.
    return float(run_length) if 0 < run_length < 1e12 else 1e12


@dataclass(frozen=True)
class StandardSeries:
    """z (n - n_baseline,) standard normal while nothing changes; phi is the lag-1 autocorrelation that was taken out."""

    z: Floats
    phi: float
    baseline_mean: float
    baseline_sd: float
    n_baseline: int


def standardised_difference(first: ArrayLike, second: ArrayLike, n_baseline: int) -> StandardSeries:
    """Two series (n,), such as mean score and thumbs rate by window -> one series for a CUSUM, estimated on the first windows.

    Each is standardised on the baseline, then *their difference itself* is: two uncorrelated standardised series differ with sd 1.41, and
    a CUSUM on that alarms falsely in under 100 windows instead of 465. An AR(1) coefficient is taken out of the difference, so a lasting
    shift d of it appears as about d (1 - phi) / sqrt(1 - phi^2). Few baseline windows make false alarms more frequent than stated:
    take at least 50.
    """
    a, b = numbers(first, "first"), numbers(second, "second")
    if a.shape != b.shape or not 10 <= n_baseline < len(a):
        raise BadInput(
            f"Series of {len(a)} and {len(b)} windows, baseline {n_baseline}; give equal lengths and a baseline of 10 or more."
        )
    sds = [float(s[:n_baseline].std(ddof=1)) for s in (a, b)]
    if min(sds) == 0:
        raise BadInput(
            "A series is constant over the baseline, so it cannot be standardised; choose a longer baseline."
        )
    gap = (a - a[:n_baseline].mean()) / sds[0] - (b - b[:n_baseline].mean()) / sds[1]
    base = gap[:n_baseline]
    mean, sd = float(base.mean()), float(base.std(ddof=1))
    if sd < 1e-12:
        raise BadInput(
            "The two series move as one over the baseline, so their difference has no scale; compare other series."
        )
    centred = gap - mean
    phi = float(centred[1:n_baseline] @ centred[: n_baseline - 1] / (centred[:n_baseline] @ centred[:n_baseline]))
    # A white series of n windows has a phi of about 1/sqrt(n) by chance; taking that out would only add noise.
    phi = phi if abs(phi) > 2 / math.sqrt(n_baseline) else 0.0
    innovations = centred[n_baseline:] - phi * centred[n_baseline - 1 : -1]
    scale = float((centred[1:n_baseline] - phi * centred[: n_baseline - 1]).std(ddof=1))
    return StandardSeries(innovations / scale, phi, mean, sd, n_baseline)
