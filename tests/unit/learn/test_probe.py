"""The head's start: does it find a direction that is there, and none where there is none?"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from plaudit.learn.probe import fit_probe

Floats = NDArray[np.float64]


def _pairs(n: int, width: int, signal: float, seed: int) -> tuple[Floats, Floats, Floats, list[str], Floats]:
    """States of n pairs where the first coordinate decides (with `signal` times its difference as log-odds), in very unequal units."""
    rng = np.random.default_rng(seed)
    units = np.geomspace(1e-3, 1e3, width)
    states = rng.normal(size=(2, n, width))
    wins = rng.random(n) < 1 / (1 + np.exp(-signal * (states[0, :, 0] - states[1, :, 0])))
    probability = np.where(wins, 0.9, 0.1)
    return states[0] * units, states[1] * units, probability, [f"family {at % 40}" for at in range(n)], units


def test_a_direction_that_decides_is_found_whatever_its_unit() -> None:
    chosen, rejected, probability, families, units = _pairs(400, 30, signal=3.0, seed=1)
    weight, *_ = fit_probe(chosen, rejected, probability, np.ones(400), families)
    per_spread = np.abs(weight * units)
    assert per_spread[0] > 3 * per_spread[1:].max()
    fresh_chosen, fresh_rejected, fresh, _, _ = _pairs(1000, 30, signal=3.0, seed=2)
    agrees = ((fresh_chosen - fresh_rejected) @ weight > 0) == (fresh > 0.5)
    assert agrees.mean() > 0.75


def test_without_a_signal_the_ridge_is_strong_and_the_scores_are_small() -> None:
    chosen, rejected, probability, families, _ = _pairs(200, 300, signal=0.0, seed=3)
    weight, _, strength = fit_probe(chosen, rejected, probability, np.ones(200), families)
    assert strength == min(fit_probe.__globals__["STRENGTHS"])
    assert np.abs((chosen - rejected) @ weight).mean() < 0.5


def test_swapping_the_sides_turns_the_sign_of_nothing() -> None:
    chosen, rejected, probability, families, _ = _pairs(150, 10, signal=2.0, seed=4)
    one, *_ = fit_probe(chosen, rejected, probability, np.ones(150), families)
    other, *_ = fit_probe(rejected, chosen, 1 - probability, np.ones(150), families)
    assert one == pytest.approx(other, rel=1e-3, abs=1e-9)


def test_votes_weigh() -> None:
    """Two camps that contradict each other: the one with more votes wins."""
    rng = np.random.default_rng(5)
    difference = rng.normal(size=(200, 1))
    camp = np.arange(200) % 2 == 0
    probability = np.where((difference[:, 0] > 0) == camp, 0.9, 0.1)
    families = [f"family {at // 2 % 20}" for at in range(200)]
    for heavy, sign in ((camp, 1), (~camp, -1)):
        weight, *_ = fit_probe(difference, np.zeros((200, 1)), probability, np.where(heavy, 3.0, 1.0), families)
        assert np.sign(weight[0]) == sign


def test_thumbs_bend_the_direction_by_their_weight_and_leave_a_bias() -> None:
    """Pairs know the first coordinate only, users also the second; most users are pleased whatever they read."""
    rng = np.random.default_rng(6)
    chosen, rejected = rng.normal(size=(2, 300, 3))
    probability = np.where(chosen[:, 0] > rejected[:, 0], 0.9, 0.1)
    liked = rng.normal(size=(300, 3)) + 5.0
    up = rng.random(300) < 1 / (1 + np.exp(-(1.5 + 2 * (liked[:, 1] - 5.0))))
    families = [f"family {at % 30}" for at in range(300)]
    plain, no_bias, _ = fit_probe(chosen, rejected, probability, np.ones(300), families, liked, up, 0.0)
    assert no_bias == 0.0
    assert abs(plain[1]) < 0.2 * abs(plain[0])
    weight, bias, _ = fit_probe(chosen, rejected, probability, np.ones(300), families, liked, up, 1.0)
    assert weight[1] > 0.3 * weight[0] > 0
    assert abs(weight[2]) < 0.3 * weight[1]
    pleased = 1 / (1 + np.exp(-(liked @ weight + bias)))
    assert pleased.mean() == pytest.approx(up.mean(), abs=0.03)
