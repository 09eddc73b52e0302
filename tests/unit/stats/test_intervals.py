import math

import numpy as np
import pytest
from scipy import stats

from plaudit.errors import BadInput
from plaudit.stats import intervals
from plaudit.stats.intervals import Interval


@pytest.fixture
def rng():
    return np.random.default_rng(20240501)


def coverage(draw, truth, runs):
    """Share of runs whose interval holds the truth."""
    return np.mean([(i := draw()).low <= truth <= i.high for _ in range(runs)])


def test_interval_is_json_ready_and_knows_what_it_excludes():
    interval = intervals.wilson(5, 10)
    assert set(interval.to_dict()) == {"mean", "low", "high", "n"}
    assert not interval.excludes(0.5)
    assert interval.excludes(0.95)
    assert Interval(1.0, 0.0, 2.0, 3).excludes(-0.1)


def test_wilson_at_the_edges_stays_inside_and_has_width():
    assert intervals.wilson(0, 7).low == 0.0
    assert intervals.wilson(0, 7).high > 0.3
    assert intervals.wilson(7, 7).high == 1.0
    low, high = intervals.wilson_bounds([0, 3], [0, 6])
    assert (low[0], high[0]) == (0.0, 1.0)
    assert low[1] + high[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(BadInput):
        intervals.wilson(successes, n)


def test_mean_interval_is_the_t_interval_of_scipy(rng):
    values = rng.normal(size=23)
    ours = intervals.mean_interval(values)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (ours.low, ours.high, ours.n) == (pytest.approx(theirs.low), pytest.approx(theirs.high), 23)
    assert intervals.standard_error(values) == pytest.approx(stats.sem(values))


def test_paired_difference_uses_the_pairing(rng):
    base = rng.normal(size=60) * 10
    better = base + 1 + rng.normal(size=60) * 0.1
    theirs = stats.ttest_rel(better, base).confidence_interval(0.95)
    ours = intervals.paired_difference(better, base)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    with pytest.raises(BadInput):
        intervals.paired_difference(base, base[:-1])


def test_clustered_intervals_cover_and_unclustered_ones_do_not(rng):
    clusters = np.repeat(np.arange(40), 5)

    def data():
        return np.repeat(rng.normal(size=40), 5) + rng.normal(size=200) * 0.5

    assert coverage(lambda: intervals.mean_interval(data(), clusters), 0.0, 600) > 0.92
    assert coverage(lambda: intervals.mean_interval(data()), 0.0, 600) < 0.75


def test_one_row_per_cluster_changes_nothing(rng):
    values = rng.normal(size=30)
    assert intervals.mean_interval(values, np.arange(30)) == intervals.mean_interval(values)
    with pytest.raises(BadInput, match="one cluster"):
        intervals.mean_interval(values, np.zeros(30))


def test_win_rate_without_ties_is_agresti_coull():
    # statsmodels.stats.proportion.proportion_confint(30, 50, method="agresti_coull"): x~ = (30 + z2/2) / (50 + z2)
    z2 = stats.norm.ppf(0.975) ** 2
    centre = (30 + z2 / 2) / (50 + z2)
    half = math.sqrt(z2 * centre * (1 - centre) / (50 + z2))
    ours = intervals.win_rate(np.repeat([1.0, 0.0], [30, 20]))
    assert (ours.mean, ours.low, ours.high) == pytest.approx((0.6, centre - half, centre + half))


@pytest.mark.parametrize(
    ("outcomes", "truth"),
    [([1.0, 0.5, 0.0], 0.45), ([1.0, 0.0], 0.03), ([0.5, 1.0], 0.52)],
    ids=["many-ties", "few-wins", "nearly-all-ties"],
)
def test_win_rate_covers_with_ties_and_near_the_edges(outcomes, truth, rng):
    p = {3: [0.3, 0.3, 0.4], 2: [truth, 1 - truth] if outcomes[1] == 0 else [0.96, 0.04]}[len(outcomes)]
    assert coverage(lambda: intervals.win_rate(rng.choice(outcomes, 80, p=p)), truth, 800) > 0.93


def test_win_rate_with_clusters_and_weights_covers(rng):
    clusters = np.repeat(np.arange(50), 4)
    weights = np.tile([0.5, 1.0, 1.5, 1.0], 50)

    def data():
        prompt = rng.beta(1, 1, 50)  # prompts differ, so answers of one prompt go together
        return (rng.random(200) < np.repeat(prompt, 4)).astype(float)

    assert coverage(lambda: intervals.win_rate(data(), weights, clusters), 0.5, 600) > 0.925
    assert coverage(lambda: intervals.win_rate(data(), weights), 0.5, 600) < 0.88


def test_win_rate_of_a_clean_sweep_is_not_certain():
    sweep = intervals.win_rate(np.ones(20))
    assert sweep.mean == 1.0
    assert sweep.high == 1.0
    assert 0.7 < sweep.low < 0.95


@pytest.mark.parametrize(
    "bad", [{"outcomes": [2.0, 0.0]}, {"outcomes": [1.0, 0.0], "weights": [0.0, 0.0]}, {"outcomes": []}]
)
def test_win_rate_refuses_what_is_no_outcome(bad):
    with pytest.raises(BadInput):
        intervals.win_rate(**bad)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_agrees_with_scipy(method, rng):
    values = rng.exponential(size=40)
    theirs = stats.bootstrap(
        (values,), np.mean, method=method.replace("bca", "BCa"), n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    for ours in (
        intervals.bootstrap_mean(values, rng, method=method, n_resamples=20_000),
        intervals.bootstrap(lambda rows: float(rows.mean()), values, rng, method=method, n_resamples=10_000),
    ):
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_bca_leans_the_way_the_data_are_skewed(rng):
    values = rng.exponential(size=40)
    plain = intervals.bootstrap_mean(values, np.random.default_rng(2), n_resamples=4000)
    corrected = intervals.bootstrap_mean(values, np.random.default_rng(2), method="bca", n_resamples=4000)
    assert corrected.low > plain.low
    assert corrected.high > plain.high


def test_bootstrap_is_reproducible_and_resamples_whole_rows(rng):
    rows = np.column_stack([np.arange(30.0), 2 * np.arange(30.0)])

    def slope(sample):
        return float(np.polyfit(sample[:, 0], sample[:, 1], 1)[0])

    first = intervals.bootstrap(slope, rows, np.random.default_rng(3), n_resamples=100)
    assert first == intervals.bootstrap(slope, rows, np.random.default_rng(3), n_resamples=100)
    assert (first.low, first.high) == pytest.approx((2.0, 2.0))


def test_bootstrap_refuses_a_statistic_that_is_mostly_undefined(rng):
    with pytest.raises(BadInput, match="undefined"):
        intervals.bootstrap(lambda rows: math.nan, [1.0, 2.0], rng, n_resamples=10)


def test_values_that_are_not_finite_are_refused_with_their_number():
    with pytest.raises(BadInput, match="2 value"):
        intervals.mean_interval([1.0, math.nan, math.inf])
