"""Bradley-Terry: against evalica 0.4.2 (bradley_terry, tolerance 1e-12), against the closed form for two, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plaudit.errors import BadInput
from plaudit.stats.leaderboard import fit, leaderboard

SECOND = ["b", "c", "c", "a", "d", "d", "d", "a", "b", "a", "b", "b"]
ROWS = (["a", "a", "b", "c", "a", "b", "c", "d", "d", "b", "a", "c"], SECOND, [1, 1, 1, 0, 1, 0.5, 1, 1, 0, 0, 0.5, 1])
EVALICA = {"a": 1.0033955407293398, "b": -0.14603728669831317, "c": -0.23547047184175404, "d": -0.6218877821892724}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_strengths_are_those_of_evalica(rng) -> None:
    found = leaderboard(*ROWS, rng, prior=1e-9, n_resamples=5)
    assert {one.name: one.strength.mean for one in found} == pytest.approx(EVALICA, abs=1e-7)
    assert [(one.rank, one.name) for one in found] == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    assert {one.name: one.n for one in found} == {"a": 7, "b": 7, "c": 5, "d": 5}


def test_two_policies_by_hand(rng) -> None:
    """7 wins, 2 ties, 1 loss: log(8/2), whatever the order in which they stand."""
    found = leaderboard(list("ab" * 5), list("ba" * 5), [1, 0, 1, 0, 1, 0, 1, 0.5, 0.5, 1], rng, prior=1e-9)
    assert found[0].name == "a"
    assert found[0].strength.mean - found[1].strength.mean == pytest.approx(math.log(8 / 2), abs=1e-6)
    assert found[0].win_rate == pytest.approx(0.8)
    assert found[0].strength.low < found[0].strength.mean < found[0].strength.high


def test_a_clean_sweep_is_finite_with_a_prior_only(rng) -> None:
    swept = leaderboard(["a"] * 9, ["b"] * 9, [1] * 9, rng)
    assert 1 < swept[0].strength.mean < 3
    assert fit(np.array([[[0.0, 9.0], [1.0, 0.0]]]), prior=0)[0] == pytest.approx([math.log(9) / 2, -math.log(9) / 2])
    with pytest.raises(BadInput, match="no finite strength"):
        fit(np.array([[[0.0, 9.0], [0.0, 0.0]]]), prior=0)


def test_intervals_cover_and_clusters_widen_them(rng) -> None:
    """True strengths 1, 0, -1; 90 prompts, 40 runs. Nominal 95 %; with 4 equal copies of each prompt the interval must not shrink by half."""
    hits, true = 0, np.array([1.0, 0.0, -1.0])
    for _ in range(40):
        i, j = np.array([(0, 1), (1, 2), (0, 2)])[rng.integers(0, 3, 90)].T
        y = (rng.random(90) < 1 / (1 + np.exp(true[j] - true[i]))).astype(float)
        found = leaderboard([str(k) for k in i], [str(k) for k in j], y, rng, n_resamples=100)
        best = next(one for one in found if one.name == "0")
        hits += best.strength.low <= 1.0 <= best.strength.high
    assert 33 <= hits <= 40
    four = [[str(k) for k in each] * 4 for each in (i, j)]
    copied = leaderboard(*four, np.tile(y, 4), rng, clusters=[str(k) for k in range(90)] * 4, n_resamples=200)
    alone = leaderboard(*four, np.tile(y, 4), rng, n_resamples=200)
    width = {which: rows[0].strength.high - rows[0].strength.low for which, rows in (("c", copied), ("a", alone))}
    assert copied[0].strength.n == 90
    assert 1.5 < width["c"] / width["a"] < 2.6


def test_equal_policies_share_their_ranks(rng) -> None:
    y = (rng.random(100) < 0.5).astype(float)
    assert {one.ranks for one in leaderboard(["a"] * 100, ["b"] * 100, y, rng)} == {(1, 2)}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((["a", "c"], ["b", "d"], [1, 0]), "connects 'a' and 'c'"),
        ((["a"], ["a"], [1]), "compared with itself"),
        ((["a"], ["b"], [2]), "Outcomes span"),
        ((["a"], ["b", "c"], [1]), "one of each per row"),
    ],
)
def test_what_cannot_be_ranked(rng, rows, said) -> None:
    with pytest.raises(BadInput, match=said):
        leaderboard(*rows, rng)
