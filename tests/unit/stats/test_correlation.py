from __future__ import annotations

import math

import numpy as np
import pytest

from plaudit.errors import BadInput
from plaudit.stats.correlation import rank_correlation, ranks

X = [1.0, 2.0, 2.0, 4.0, 5.0, 6.0, 7.0, 9.0]
Y = [2.0, 1.0, 3.0, 3.0, 6.0, 5.0, 9.0, 7.0]


def test_rho_with_ties_and_the_interval_of_its_formula() -> None:
    found = rank_correlation(X, Y)
    a, b = ranks(np.array(X)), ranks(np.array(Y))
    assert a.tolist() == [1, 2.5, 2.5, 4, 5, 6, 7, 8]
    # Closed form: Pearson's of the ranks; Bonett and Wright's variance on Fisher's scale.
    rho = float(((a - 4.5) * (b - 4.5)).sum() / math.sqrt(((a - 4.5) ** 2).sum() * ((b - 4.5) ** 2).sum()))
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 5)
    assert found.mean == pytest.approx(rho)
    assert (found.low, found.high) == pytest.approx(
        (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))
    )
    assert found.n == 8
    turned = rank_correlation(X, [-y for y in Y])
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_perfect_order_is_no_certainty() -> None:
    found = rank_correlation([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8])
    assert (found.mean, found.high) == (1.0, 1.0)
    next_below = 1 - 12 / (8**3 - 8)  # of two neighbours swapped: the highest rho but 1 of eight without ties
    half = 1.959964 * math.sqrt((1 + next_below**2 / 2) / 5)
    assert found.low == pytest.approx(math.tanh(math.atanh(next_below) - half))


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_the_interval_covers(rho: float) -> None:
    """Bivariate normal: the population's Spearman is 6 / pi asin(rho / 2). 95 % of 600 samples of ten, less three standard errors."""
    rng = np.random.default_rng(1)
    true = 6 / math.pi * math.asin(rho / 2)
    covered = naive = 0
    for _ in range(600):
        x = rng.normal(size=10)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=10)
        found = rank_correlation(x, y)
        covered += found.low <= true <= found.high
        naive += abs(found.mean - true) <= 1.96 / 10  # negative control: as if each of the ten were a hundred
    assert covered / 600 > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 600)
    assert naive / 600 < 0.7


def test_what_has_no_order_is_refused() -> None:
    for x, y, said in (
        ([1, 1, 1, 1], [1, 2, 3, 4], "no order"),
        ([1, 2, 3], [1, 2, 3], "shape"),
        ([1, 2, 3, 4], [1, 2, 3, 4, 5], "x has 4"),
    ):
        with pytest.raises(BadInput, match=said):
            rank_correlation(x, y)
