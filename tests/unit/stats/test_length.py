import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from plaudit.errors import BadInput
from plaudit.stats import length


@pytest.fixture
def rng():
    return np.random.default_rng(51)


def test_share_by_hand(rng):
    # Points on the line gain = 1 + 0.5 d with mean d = 2: half of the gain of 2 is length.
    d = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    share = length.gain_explained_by_length(1 + 0.5 * d, d, rng)
    assert share.gain.mean == pytest.approx(2.0)
    assert share.at_equal_length.mean == pytest.approx(1.0)
    assert share.fraction.mean == pytest.approx(0.5)
    assert share.slope == pytest.approx(0.5)


def test_share_covers_and_tells_padding_from_substance(rng):
    hits = 0
    for _ in range(150):
        d = rng.normal(20, 15, 120)
        share = length.gain_explained_by_length(0.4 + 0.02 * d + rng.normal(size=120), d, rng, n_resamples=400)
        hits += share.fraction is not None and share.fraction.low <= 0.5 <= share.fraction.high
    assert hits / 150 > 0.9
    padded = length.gain_explained_by_length(0.05 * d + rng.normal(0, 0.1, 120), d, rng)
    assert padded.fraction.mean == pytest.approx(1.0, abs=0.1)
    assert not padded.at_equal_length.excludes(0.0)
    better = length.gain_explained_by_length(1 + rng.normal(0, 0.1, 120), d, rng)
    assert abs(better.fraction.mean) < 0.1


def test_no_gain_has_no_share_and_equal_lengths_explain_nothing(rng):
    assert length.gain_explained_by_length(rng.normal(size=50), rng.normal(size=50), rng).fraction is None
    share = length.gain_explained_by_length(np.linspace(1, 2, 20), np.full(20, 5.0), rng)
    assert share.fraction.mean == 0.0
    assert share.at_equal_length.mean == pytest.approx(1.5)


def test_intercepts_agree_with_sklearn(rng):
    x = np.tanh(rng.normal(size=200))
    y = (rng.random(200) < special.expit(0.5 + x)).astype(float)
    ours = length._logistic_intercepts(x, y, np.ones((1, 200)))[0]
    # The prior on the intercept too: a column of ones, no intercept of its own. C is the prior's variance.
    model = LogisticRegression(C=9.0, fit_intercept=False, tol=1e-10).fit(np.column_stack([np.ones(200), x]), y)
    assert ours == pytest.approx(model.coef_[0, 0], abs=1e-5)


def test_length_control_undoes_a_judge_that_counts_words(rng):
    d = rng.normal(30, 20, 400)
    won = (rng.random(400) < special.expit(3 * np.tanh(d / d.std()))).astype(float)
    assert won.mean() > 0.8
    controlled = length.length_controlled_win_rate(won, d, rng)
    assert not controlled.excludes(0.5)
    fair = (rng.random(400) < 0.7).astype(float)
    assert length.length_controlled_win_rate(fair, rng.normal(0, 20, 400), rng).mean == pytest.approx(
        fair.mean(), abs=0.02
    )


def test_clean_sweep_stays_finite_and_equal_lengths_give_the_win_rate(rng):
    sweep = length.length_controlled_win_rate(np.ones(30), rng.normal(size=30), rng)
    assert 0.9 < sweep.mean < 1.0
    even = length.length_controlled_win_rate(np.repeat([1.0, 0.5, 0.0], 20), np.zeros(60), rng)
    assert even.mean == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    "broken",
    [
        lambda r: length.gain_explained_by_length([1.0, 2.0], [1.0, 2.0], r),
        lambda r: length.gain_explained_by_length([1.0, 2.0, 3.0], [1.0, 2.0], r),
        lambda r: length.length_controlled_win_rate([1.0, 2.0, 0.0], [1.0, 2.0, 3.0], r),
    ],
)
def test_impossible_questions_are_refused(broken, rng):
    with pytest.raises(BadInput):
        broken(rng)
