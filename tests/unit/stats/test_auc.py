"""The AUC against pairs counted one by one, its interval against DeLong's by hand and against simulations with and without clusters."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from plaudit.errors import BadInput
from plaudit.stats.auc import auc


def test_pairs_are_counted_and_ties_are_half():
    found = auc([3.0, 1.0, 2.0, 1.0, 0.0], [True, True, False, False, False])
    # 3 beats 2, 1, 0; 1 loses to 2, ties with 1, beats 0.
    assert found.mean == pytest.approx((3 + 0 + 0.5 + 1) / 6)
    assert found.n == 5


def test_alone_each_value_gives_delongs_interval():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 1, 30).round(1), rng.normal(0, 1, 45).round(1)
    wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    se = np.sqrt(wins.mean(axis=1).var(ddof=1) / 30 + wins.mean(axis=0).var(ddof=1) / 45)
    values, good = np.concatenate([a, b]), np.arange(75) < 30
    found = auc(values, good)
    # Obuchowski's covariance of single values is that of a sum of deviations with nothing in common: 0.
    assert (found.mean, found.low) == pytest.approx((wins.mean(), wins.mean() - 1.959964 * se), abs=1e-9)
    turned = auc(-values, good)
    assert (turned.mean, turned.high) == pytest.approx((1 - found.mean, 1 - found.low))


def test_clusters_are_covered_and_single_values_would_not_be():
    """Families of six answers that share a mean and mostly a thumb; the truth, by a million families, is .5: scores know nothing."""
    rng = np.random.default_rng(5)
    covered = {"clusters": 0, "single": 0}
    for _ in range(400):
        family = np.repeat(np.arange(40), 6)
        value = rng.normal(0, 1, 40)[family] + rng.normal(0, 0.3, 240)
        good = rng.random(240) < np.where(rng.random(40) < 0.5, 0.9, 0.1)[family]
        covered["clusters"] += not auc(value, good, family).excludes(0.5)
        covered["single"] += not auc(value, good).excludes(0.5)
    assert 0.91 <= covered["clusters"] / 400 <= 0.975
    assert covered["single"] / 400 < 0.7


def test_where_nothing_overlaps_the_interval_still_has_a_width():
    z2 = NormalDist().inv_cdf(0.975) ** 2
    found = auc(range(11), [False] * 5 + [True] * 6)
    assert (found.mean, found.low, found.high, found.n) == (1.0, pytest.approx(5 / (5 + z2)), 1.0, 11)
    assert auc(range(11), [False] * 7 + [True] * 4).low == pytest.approx(
        4 / (4 + z2)
    )  # the fewer of both, whichever they are
    turned = auc(range(11), [True] * 6 + [False] * 5)
    assert (turned.mean, turned.low, turned.high) == (0.0, 0.0, pytest.approx(z2 / (5 + z2)))
    rng, truth = np.random.default_rng(3), NormalDist().cdf(2.5 / math.sqrt(2))
    draws = [auc([*rng.normal(2.5, 1, 6), *rng.normal(0, 1, 5)], [True] * 6 + [False] * 5) for _ in range(300)]
    assert sum(not one.excludes(truth) for one in draws) / 300 >= 0.93
    assert sum(one.mean == 1.0 for one in draws) / 300 > 0.4  # each of which missed it when it had no width


def test_few_clusters_give_obuchowskis_variance():
    """By the formula, pair by pair; with four clusters its corrections for few of them are far from one."""
    values = [3.0, 1.0, 2.0, 2.0, 5.0, 0.0, 4.0, 2.5]
    good = [True, False, True, False, True, False, True, False]
    cluster = [0, 0, 0, 1, 1, 2, 2, 3]
    above = {
        (i, j): (values[i] > values[j]) + (values[i] == values[j]) / 2
        for i in range(8)
        for j in range(8)
        if good[i] and not good[j]
    }
    mean = sum(above.values()) / 16
    ups, downs = [0.0] * 4, [0.0] * 4  # each cluster's sums of V10 - mean and V01 - mean
    for i in range(8):
        share = sum(v for pair, v in above.items() if i in pair) / 4 - mean
        (ups if good[i] else downs)[cluster[i]] += share
    # Three clusters hold a good one, all four a bad one.
    variance = 3 / 2 * sum(u * u for u in ups) / 16 + 4 / 3 * sum(d * d for d in downs) / 16
    variance += 2 * 4 / 3 * sum(u * d for u, d in zip(ups, downs, strict=True)) / 16
    found = auc(values, good, cluster, confidence=0.2)  # so narrow that nothing is cut at 0 or 1
    assert found.mean == pytest.approx(mean)
    assert found.high - found.mean == pytest.approx(NormalDist().inv_cdf(0.6) * math.sqrt(variance))


def test_one_cluster_of_a_kind_is_no_spread():
    with pytest.raises(BadInput, match="Only 1 clusters hold a bad value"):
        auc([1.0, 2.0, 3.0], [True, True, False])
    with pytest.raises(BadInput, match="Only 1 clusters hold a good value"):
        auc([1.0, 2.0, 3.0, 4.0], [True, True, False, False], ["a", "a", "b", "c"])
