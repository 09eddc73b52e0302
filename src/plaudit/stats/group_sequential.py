"""Group-sequential tests, what most platforms use in place of always-valid ones: fewer users, for a number of looks fixed beforehand.

Here to be compared with (benchmarks/experiments.py, `plaudit experiment simulate`); nothing decides by it. Looks are equally spaced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

from plaudit.errors import BadInput

_GRID = 241  # points of the continuation region, odd; the constants of the literature come out to three digits


def crossing(bounds: Sequence[float], drift: float = 0.0, two_sided: bool = True) -> float:
    """Probability that Z_k >= bounds[k] (or |Z_k|) at any of K looks; drift is the mean of Z_K.

    Armitage, McPherson & Rowe (1969): the density of S_k = sqrt(k) Z_k inside the bounds is that of look k - 1 convolved with a normal.
    """
    if not bounds:
        raise BadInput("A group-sequential test needs at least one look.")
    step = drift / math.sqrt(len(bounds))  # mean of each increment, whose variance is 1
    inside = np.array([0.0])
    weight = np.array([1.0])
    crossed = 0.0
    for k, bound in enumerate(bounds, start=1):
        edge = bound * math.sqrt(k)
        crossed += float(weight @ special.ndtr(-(edge - inside - step)))
        if two_sided:
            crossed += float(weight @ special.ndtr(-edge - inside - step))
        low = -edge if two_sided else min(0.0, step * k) - 8.0 * math.sqrt(k)
        points = np.linspace(low, edge, _GRID)
        density = np.exp(-0.5 * (points[:, None] - inside - step) ** 2) / math.sqrt(2 * math.pi) @ weight
        simpson = np.ones(_GRID)
        simpson[1:-1:2], simpson[2:-1:2] = 4.0, 2.0
        inside, weight = points, density * simpson * (points[1] - points[0]) / 3
    return crossed


def obrien_fleming(n_looks: int, alpha: float = 0.05, two_sided: bool = True) -> list[float]:
    """Bounds c sqrt(K / k) of O'Brien & Fleming (1979), K = n_looks, with overall error alpha."""
    if n_looks < 1 or not 0 < alpha < 0.5:
        raise BadInput(f"n_looks is {n_looks}, alpha {alpha}; look at least once, with an alpha between 0 and 0.5.")
    shape = [math.sqrt(n_looks / k) for k in range(1, n_looks + 1)]
    constant = optimize.brentq(
        lambda c: crossing([c * s for s in shape], two_sided=two_sided) - alpha, 1.0, 6.0, xtol=1e-6
    )
    return [float(constant) * s for s in shape]


def inflation(bounds: Sequence[float], alpha: float = 0.05, power: float = 0.8) -> float:
    """Largest number of users over that of a two-sided test read once, at equal power."""
    fixed = float(special.ndtri(1 - alpha / 2) + special.ndtri(power))
    drift = optimize.brentq(lambda d: crossing(bounds, d) - power, 0.1, 3 * fixed, xtol=1e-6)
    return float((drift / fixed) ** 2)
