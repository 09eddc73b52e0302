"""Verdicts on pairs: by hand, and by simulation with a judge that only looks at the position as the negative control."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit.errors import BadInput
from plaudit.stats.intervals import Interval
from plaudit.stats.judgements import judged, minimum_detectable


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def test_by_hand(rng) -> None:
    found = judged([1, 1, 0.5, 0], [0, 3, -1, 2], list("abcd"), rng, swapped=[1, 0, 0.5, 0])
    assert found.win_rate.mean == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert (found.n_pairs, found.n_ties) == (4, 2)
    assert found.consistent is not None
    assert found.consistent.mean == 0.75
    assert found.first_shown is not None
    assert found.first_shown.mean == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)


def test_one_order_says_nothing_about_position(rng) -> None:
    found = judged([1, 0, 1], [1, 1, 1], list("abc"), rng)
    assert (found.first_shown, found.consistent) == (None, None)


def test_a_judge_who_always_says_the_first_is_neutral_and_found_out(rng) -> None:
    """Negative control: in one order alone the same judge gives the candidate 100 %."""
    n, ids = 50, [str(i) for i in range(50)]
    assert judged(np.ones(n), rng.normal(size=n), ids, rng).win_rate.mean == 1.0
    found = judged(np.ones(n), rng.normal(size=n), ids, rng, swapped=np.zeros(n))
    assert found.win_rate.mean == 0.5
    assert found.first_shown is not None
    assert found.first_shown.low > 0.5
    assert found.consistent is not None
    assert found.consistent.mean == 0.0


def test_a_judge_who_counts_words_is_undone_at_equal_length(rng) -> None:
    longer = rng.normal(30, 20, 300)
    won = (rng.random(300) < 1 / (1 + np.exp(-3 * np.tanh(longer / longer.std())))).astype(float)
    found = judged(won, longer, [str(i) for i in range(300)], rng)
    assert found.win_rate.low > 0.7
    assert found.at_equal_length is not None
    assert not found.at_equal_length.excludes(0.5)


def test_prompts_are_the_unit(rng) -> None:
    y, d = rng.integers(0, 2, 40).astype(float), rng.normal(size=40)
    alone = judged(y, d, [str(i) for i in range(40)], rng)
    copied = judged(np.tile(y, 4), np.tile(d, 4), [str(i) for i in range(40)] * 4, rng)
    assert copied.win_rate.n == 40
    assert copied.at_equal_length is not None
    assert copied.at_equal_length.n == 40
    assert copied.detectable == pytest.approx(alone.detectable, rel=0.02)


def test_what_is_detectable_is_detected_four_times_in_five(rng) -> None:
    """100 prompts: se .05, so .5 + (1.96 + .84) .05 = .64 by the textbook; there about 80 % of runs exclude one half."""
    fair = np.resize([0.0, 1.0], 100)
    edge = judged(fair, np.zeros(100), [str(i) for i in range(100)], rng).detectable
    assert edge == pytest.approx(0.64, abs=0.005)
    seen = 0
    for _ in range(400):
        wins = (rng.random(100) < edge).astype(float)
        seen += wins.mean() - 1.96 * np.sqrt(0.25 / 100) > 0.5
    assert 0.74 < seen / 400 < 0.86
    assert minimum_detectable(Interval(0.5, 0.402, 0.598, 100), power=0.5) == pytest.approx(0.098, abs=1e-3)


def test_shapes(rng) -> None:
    with pytest.raises(BadInput, match="one of each"):
        judged([1, 0], [1, 2, 3], ["a", "b"], rng)
    with pytest.raises(BadInput, match="in the other order"):
        judged([1, 0], [1, 1], ["a", "b"], rng, swapped=[1, 0, 1])
    with pytest.raises(BadInput, match="power"):
        minimum_detectable(Interval(0.5, 0.4, 0.6, 10), power=1.0)
