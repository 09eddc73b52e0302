import numpy as np
import pytest
from scipy import stats

from plaudit.errors import BadInput
from plaudit.stats import user_metrics
from plaudit.stats.user_metrics import Difference


@pytest.fixture
def rng():
    return np.random.default_rng(21)


def test_difference_has_welchs_standard_error(rng):
    control, candidate = rng.normal(0, 1, 50), rng.normal(1, 3, 80)
    ours = user_metrics.difference(control, candidate)
    theirs = stats.ttest_ind(candidate, control, equal_var=False)
    assert ours.mean / ours.se == pytest.approx(theirs.statistic)
    assert (ours.n_control, ours.n_candidate) == (50, 80)


def test_ratio_difference_has_the_right_standard_error(rng):
    """Against the spread of the estimate itself over 2,000 experiments with correlated messages per user."""
    estimates, ses = [], []
    for _ in range(2000):
        messages = rng.geometric(0.2, (2, 150))
        bad = rng.binomial(messages, rng.beta(1, 4, (2, 150)))
        result = user_metrics.ratio_difference(bad[0], messages[0], bad[1], messages[1])
        estimates.append(result.mean)
        ses.append(result.se)
    assert np.mean(ses) == pytest.approx(np.std(estimates), rel=0.06)
    assert abs(np.mean(estimates)) < 4 * np.std(estimates) / np.sqrt(2000)


def test_one_message_each_is_a_plain_difference(rng):
    control, candidate, ones = rng.normal(size=40), rng.normal(size=40), np.ones(40)
    assert user_metrics.ratio_difference(control, ones, candidate, ones) == user_metrics.difference(control, candidate)


def test_linearised_values_have_the_rate_and_its_error(rng):
    counts = rng.geometric(0.3, 200)
    sums = rng.binomial(counts, 0.2)
    values = user_metrics.linearised(sums, counts)
    assert values.mean() == pytest.approx(sums.sum() / counts.sum())
    # The jackknife over users, which knows no formula.
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    jackknife = np.sqrt(199 / 200 * ((left_out - left_out.mean()) ** 2).sum())
    assert values.std(ddof=1) / np.sqrt(200) == pytest.approx(jackknife, rel=0.02)


def test_one_more_event_matters_only_where_there_are_few():
    none = user_metrics.with_one_more_event(Difference(0.0, 0.0, 200, 200), 200, 200)
    assert none.se == pytest.approx(np.sqrt(2) / 200)
    many = Difference(0.01, 0.014, 1000, 1000)  # rates around .1
    assert user_metrics.with_one_more_event(many, 1000, 1000).se == pytest.approx(many.se, rel=0.01)


def test_stratified_weighs_by_what_each_stage_can_tell():
    stages = [Difference(1.0, 0.1, 100, 100), Difference(0.0, 0.2, 1000, 10)]
    result = user_metrics.stratified(stages)
    first, second = 50.0, 1000 * 10 / 1010
    assert result.mean == pytest.approx(first / (first + second))
    assert result.se == pytest.approx(np.hypot(first * 0.1, second * 0.2) / (first + second))
    assert (result.n_control, result.n_candidate) == (1100, 110)


def test_cuped_keeps_the_effect_and_removes_what_the_past_predicts(rng):
    n = 4000
    before = rng.normal(size=n)
    arm = rng.random(n) < 0.5
    values = 0.3 * arm + 2 * before + rng.normal(size=n)
    adjusted = user_metrics.cuped(values, before)
    plain = user_metrics.difference(values[~arm], values[arm])
    sharper = user_metrics.difference(adjusted[~arm], adjusted[arm])
    assert sharper.se == pytest.approx(plain.se / np.sqrt(5), rel=0.05)  # var 5 -> 1
    assert abs(sharper.mean - 0.3) < 4 * sharper.se
    assert adjusted.mean() == pytest.approx(values.mean())


def test_cuped_leaves_new_users_alone(rng):
    before = np.array([1.0, 2.0, 3.0, np.nan])
    values = np.array([1.0, 2.0, 3.0, 7.0])
    assert user_metrics.cuped(values, before) == pytest.approx([2.0, 2.0, 2.0, 7.0])
    assert user_metrics.cuped(values, np.full(4, np.nan)).tolist() == values.tolist()
    assert user_metrics.cuped(values, np.full(4, 3.0)).tolist() == values.tolist()  # a past that tells nobody apart


def test_winsorise_cuts_both_ends_of_all_arms_together():
    cut = user_metrics.winsorise(np.arange(101.0), 0.05)
    assert (cut.min(), cut.max()) == (5.0, 95.0)
    assert cut[50] == 50.0


@pytest.mark.parametrize(
    "broken",
    [
        lambda: user_metrics.difference([1.0], [1.0, 2.0]),
        lambda: user_metrics.ratio_difference([1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [1.0, 1.0]),
        lambda: user_metrics.ratio_difference([1.0, 2.0], [1.0], [1.0, 2.0], [1.0, 1.0]),
        lambda: user_metrics.stratified([]),
        lambda: user_metrics.cuped([1.0, 2.0], [1.0]),
        lambda: user_metrics.winsorise([1.0], 0.5),
    ],
)
def test_impossible_questions_are_refused(broken):
    with pytest.raises(BadInput):
        broken()
