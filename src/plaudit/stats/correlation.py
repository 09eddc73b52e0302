"""Correlation by ranks: whether two figures of the same things rise together, with an interval that holds for a dozen of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from plaudit.errors import BadInput
from plaudit.stats.intervals import Floats, Interval, normal_quantile, numbers

FEWEST = 4  # below, the interval's variance has no finite value


def rank_correlation(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Interval:
    """Spearman's rho of (n,) and (n,), ties at their mean rank; interval on Fisher's scale with the variance (1 + rho^2 / 2) / (n - 3)
    (Bonett & Wright 2000, Psychometrika 65). Raises BadInput: shapes, fewer than FEWEST, or one value everywhere, which has no order."""
    a, b = numbers(x, "x", FEWEST), numbers(y, "y", FEWEST)
    if len(a) != len(b):
        raise BadInput(f"x has {len(a)} values and y has {len(b)}; give one of each per row.")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise BadInput("All values of x or of y are equal, so they have no order to correlate.")
    rho = float(np.clip(np.corrcoef(ranks(a), ranks(b))[0, 1], -1, 1))
    # Fisher's scale has no place for 1: its bounds are those of the next value that ranks without ties can have.
    least = 12 / (len(a) ** 3 - len(a))
    inner = float(np.clip(rho, least - 1, 1 - least))
    half = normal_quantile(confidence) * math.sqrt((1 + inner**2 / 2) / (len(a) - 3))
    low, high = math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)
    return Interval(rho, min(low, rho), max(high, rho), len(a))


def ranks(values: Floats) -> Floats:
    """(n,) 1 for the least; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: Floats = (last - (counts - 1) / 2)[place]
    return found
