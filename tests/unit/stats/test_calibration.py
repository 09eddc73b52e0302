import numpy as np
import pytest
from scipy import special
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from plaudit.errors import BadInput
from plaudit.stats import calibration


@pytest.fixture
def rng():
    return np.random.default_rng(41)


def test_losses_agree_with_sklearn(rng):
    p = rng.random(200)
    y = (rng.random(200) < p).astype(float)
    assert calibration.log_loss(p, y) == pytest.approx(sklearn_log_loss(y, p))
    assert calibration.brier_score(p, y) == pytest.approx(brier_score_loss(y, p))


def test_log_loss_of_soft_labels_is_smallest_at_the_label():
    assert calibration.log_loss([0.7], [0.7]) < calibration.log_loss([0.69], [0.7])
    assert calibration.log_loss([0.7], [0.7]) < calibration.log_loss([0.71], [0.7])
    assert np.isfinite(calibration.log_loss([0.0], [1.0]))


def test_bins_and_error_by_hand():
    p = [0.05, 0.15, 0.16, 1.0, 0.95]
    y = [0.0, 1.0, 0.0, 1.0, 0.5]
    bins = calibration.reliability_bins(p, y)
    assert [(b.low, b.observed.n) for b in bins] == [(0.0, 1), (0.1, 2), (0.9, 2)]
    assert bins[1].mean_probability == pytest.approx(0.155)
    assert bins[2].observed.mean == pytest.approx(0.75)
    # Bins weigh 1, 2, 2 of 5 with gaps .05, .345, .225.
    assert calibration.expected_calibration_error(p, y) == pytest.approx((0.05 + 2 * 0.345 + 2 * 0.225) / 5)


def test_calibrated_predictions_have_little_error_and_their_bins_cover(rng):
    p = rng.random(20_000)
    y = (rng.random(20_000) < p).astype(float)
    assert calibration.expected_calibration_error(p, y) < 0.015
    assert calibration.expected_calibration_error(np.sqrt(p), y) > 0.1
    covered = [b.observed.low <= b.mean_probability <= b.observed.high for b in calibration.reliability_bins(p, y)]
    assert sum(covered) >= 8


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature, rng):
    logits = rng.normal(size=40_000) * 2
    y = (rng.random(40_000) < special.expit(logits / temperature)).astype(float)
    assert calibration.fit_temperature(logits, y) == pytest.approx(temperature, rel=0.05)
    # Soft labels that are exactly right leave nothing to chance.
    assert calibration.fit_temperature(logits, special.expit(logits / temperature)) == pytest.approx(
        temperature, rel=1e-4
    )


@pytest.mark.parametrize(
    "broken",
    [
        lambda: calibration.log_loss([0.5], [0.5, 1.0]),
        lambda: calibration.log_loss([1.5], [1.0]),
        lambda: calibration.brier_score([0.5], [-1.0]),
        lambda: calibration.reliability_bins([0.5], [1.0], n_bins=0),
        lambda: calibration.fit_temperature([1.0, 2.0], [1.0, 2.0]),
    ],
)
def test_impossible_questions_are_refused(broken):
    with pytest.raises(BadInput):
        broken()
