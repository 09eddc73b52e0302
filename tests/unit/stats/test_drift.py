import numpy as np
import pytest

from plaudit.errors import BadInput
from plaudit.stats import drift


@pytest.fixture
def rng():
    return np.random.default_rng(31)


def test_psi_of_a_hand_computed_shift():
    # 1e6 rows a side make the half counts vanish: (.6 - .5) ln(.6 / .5) + (.4 - .5) ln(.4 / .5)
    result = drift.psi([500_000, 500_000], [600_000, 400_000])
    assert result.value == pytest.approx(0.1 * np.log(1.2) - 0.1 * np.log(0.8), abs=1e-5)
    assert result.threshold == drift.PSI_FLOOR
    assert not result.drifted, "dust at large n is below the floor"
    assert drift.psi([500, 500, 0], [0, 500, 500]).drifted


def test_psi_rule_keeps_false_alarms_low_where_the_usual_one_does_not(rng):
    samples = rng.multinomial(200, np.full(10, 0.1), size=(2000, 2))
    results = [drift.psi(reference, current) for reference, current in samples]
    assert np.mean([r.value > 0.1 for r in results]) > 0.2
    assert np.mean([r.drifted for r in results]) < 0.08


def test_ks_wants_an_effect_beside_its_p_value(rng):
    dust = drift.ks(rng.normal(0, 1, 40_000), rng.normal(0.05, 1, 40_000))
    assert dust.p_value < 0.001
    assert not dust.drifted
    assert drift.ks(rng.normal(0, 1, 500), rng.normal(0.6, 1, 500)).drifted
    assert not drift.ks(rng.normal(0, 1, 20), rng.normal(0, 1, 20)).drifted


def test_cusum_sums_by_hand():
    result = drift.cusum([1.0, 2.0, -3.0, 0.0], k=0.5, h=1.9)
    # Up .5, then 2.0 > 1.9: alarm and restart; down 2.5: alarm and restart.
    assert result.upper.tolist() == [0.5, 2.0, 0.0, 0.0]
    assert result.lower.tolist() == [0.0, 0.0, 2.5, 0.0]
    assert result.alarms == (1, 2)


def test_cusum_run_length_is_what_simulation_gives(rng):
    z = rng.normal(size=200_000)
    result = drift.cusum(z)
    observed = len(z) / len(result.alarms)
    assert observed == pytest.approx(result.average_run_length, rel=0.2)
    shifted = drift.cusum(z[:20_000] + 1.0)
    assert 20_000 / len(shifted.alarms) == pytest.approx(drift.cusum_run_length(shift=1.0), rel=0.1)


def test_threshold_for_a_wanted_run_length():
    assert drift.cusum_threshold(465.44) == pytest.approx(5.0, abs=0.01)
    assert drift.cusum_run_length(0.5, drift.cusum_threshold(10_000)) == pytest.approx(10_000, rel=1e-3)


def false_alarm_every(gap, make_z):
    alarms = n = 0
    for series in gap:
        z = make_z(series)
        alarms += len(drift.cusum(z).alarms)
        n += len(z)
    return n / max(1, alarms)


def test_difference_itself_is_standardised(rng):
    """Two standardised series differ with sd 1.41, and a CUSUM on that alarms every 60 windows or so instead of 465."""
    runs = rng.normal(size=(60, 2, 1400)) * [[3.0], [0.1]] + [[7.0], [0.4]]
    ours = false_alarm_every(runs, lambda r: drift.standardised_difference(r[0], r[1], 400).z)
    naive = false_alarm_every(runs, lambda r: (r[0, 400:] - 7) / 3 - (r[1, 400:] - 0.4) / 0.1)
    assert naive < 100
    assert ours > 250


def test_autocorrelation_is_taken_out(rng):
    noise = rng.normal(size=(60, 2, 1400))
    series = np.zeros_like(noise)
    for t in range(1, 1400):
        series[..., t] = 0.6 * series[..., t - 1] + noise[..., t]
    made = [drift.standardised_difference(a, b, 400) for a, b in series]
    assert np.mean([m.phi for m in made]) == pytest.approx(0.6, abs=0.05)
    assert 60 * 1000 / sum(len(drift.cusum(m.z).alarms) for m in made) > 200
    plain = [(a - b)[400:] / (a - b)[:400].std() for a, b in series]
    assert 60 * 1000 / sum(len(drift.cusum(z).alarms) for z in plain) < 60


def test_reward_that_leaves_satisfaction_is_found(rng):
    """Over 300 series: the score rises by 1.5 sd while the thumbs stay; few alarm in the 50 windows before, nearly all soon after."""
    early = found = 0
    for _ in range(300):
        score, thumbs = rng.normal(1.0, 0.2, 200), rng.normal(0.7, 0.05, 200)
        score[150:] += 0.3
        alarms = np.array(drift.cusum(drift.standardised_difference(score, thumbs, 100).z).alarms)
        early += bool((alarms < 50).any())
        found += bool(((alarms >= 50) & (alarms < 75)).any())
    assert found / 300 > 0.95
    # 50 windows at a run length of 465 would be .10; a baseline of 100 windows, estimated, costs the rest.
    assert early / 300 < 0.25


@pytest.mark.parametrize(
    "broken",
    [
        lambda: drift.psi([1, 2], [1, 2, 3]),
        lambda: drift.psi([0, 0], [1, 2]),
        lambda: drift.psi([-1, 2], [1, 2]),
        lambda: drift.cusum_run_length(0.5, 0.0),
        lambda: drift.cusum_threshold(1.0),
        lambda: drift.standardised_difference(np.zeros(50), np.arange(50.0), 20),
        lambda: drift.standardised_difference(np.arange(50.0), np.arange(50.0), 20),
        lambda: drift.standardised_difference(np.arange(50.0), np.arange(40.0), 20),
        lambda: drift.standardised_difference(np.arange(50.0), np.arange(50.0), 50),
    ],
)
def test_impossible_questions_are_refused(broken):
    with pytest.raises(BadInput):
        broken()
