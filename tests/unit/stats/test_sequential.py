"""Monte-Carlo: 2,000 A/A experiments watched after every user may raise at most 131 alarms at .05 (100 + 3.2 sd), and naive peeking on
the same draws must raise more than 400, or the harness could not see an error."""

import itertools

import numpy as np
import pytest
from scipy import stats

from plaudit.errors import BadInput
from plaudit.stats import sequential, user_metrics
from plaudit.stats.user_metrics import Difference

ALPHA, RUNS, ALLOWED, NAIVE = 0.05, 2000, 131, 400
GRID = list(itertools.product([0.5, 0.02, 0.98], [0.5, 0.05], ["iid", "drift+ramp", "clustered"]))
FAST = [(0.5, 0.5, "clustered"), (0.02, 0.5, "iid"), (0.98, 0.5, "iid"), (0.5, 0.05, "drift+ramp")]


def users_under_null(rng, runs, p, share, scenario, n_users):
    """(in_candidate, has_event, w) per run and user in order of time; both arms have the same event rates throughout."""
    shape = (runs, n_users)
    w = np.full(n_users, share)
    rate = np.full(shape, p)
    if scenario == "drift+ramp":
        w[: n_users // 2] = share / 4
        rate = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + np.linspace(-1.5, 1.5, n_users))))
    if scenario == "clustered":
        rate = 1 - (1 - rng.beta(p * 2, (1 - p) * 2, shape)) ** rng.geometric(0.3, shape)
    return rng.random(shape) < w, rng.random(shape) < rate, np.broadcast_to(w, shape)


def e_process_rejects(in_candidate, has_event, w):
    """(runs,) whether the path over the users with an event ever reaches 1 / alpha."""
    n_events = has_event.sum(axis=1)
    events_first = np.argsort(~has_event, axis=1, kind="stable")[:, : n_events.max()]
    path = sequential.harm_e_path(
        np.take_along_axis(in_candidate, events_first, 1), np.take_along_axis(w, events_first, 1)
    )
    return ((path >= 1 / ALPHA) & (np.arange(path.shape[1]) < n_events[:, None])).any(axis=1)


def peeked_z_rejects(in_candidate, has_event, burn_in=100):
    """(runs,) two-sided pooled z-test read after every user: what a dashboard without sequential statistics does."""
    n = np.arange(1, in_candidate.shape[1] + 1)
    n_b, k_b, k = (np.cumsum(x, axis=1) for x in (in_candidate, in_candidate & has_event, has_event))
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = k_b / n_b - (k - k_b) / (n - n_b)
        z = gap / np.sqrt(k / n * (1 - k / n) * (1 / n_b + 1 / (n - n_b)))
    return (np.abs(z[:, burn_in:]) > 1.96).any(axis=1)


def false_alarms(p, share, scenario, n_users, runs=RUNS):
    rng = np.random.default_rng(1)
    e_process = naive = 0
    for _ in range(runs // 100):
        experiments = users_under_null(rng, 100, p, share, scenario, n_users)
        e_process += int(e_process_rejects(*experiments).sum())
        naive += int(peeked_z_rejects(*experiments[:2]).sum())
    return e_process, naive


@pytest.mark.parametrize(("p", "share", "scenario"), FAST)
def test_guardrail_holds_its_error_rate_however_often_one_looks(p, share, scenario):
    e_process, naive = false_alarms(p, share, scenario, n_users=1500, runs=500)
    assert e_process <= 41  # 25 + 3.3 sd
    assert naive > 100


@pytest.mark.slow
@pytest.mark.parametrize(("p", "share", "scenario"), GRID)
def test_guardrail_holds_its_error_rate_in_every_scenario(p, share, scenario):
    # With a rare outcome 1,500 users hold as few as a dozen of it, too few for any test, naive or not, to be wrong often.
    e_process, naive = false_alarms(p, share, scenario, n_users=1500 if p == 0.5 else 6000)
    assert e_process <= ALLOWED
    assert naive > NAIVE


def test_e_process_has_mean_one_at_every_time():
    """Exactly, by enumeration of all 2^10 outcomes under changing assignment probabilities."""
    w = np.array([0.5, 0.05, 0.25, 0.5, 0.9, 0.01, 0.3, 0.5, 0.6, 0.2])
    outcomes = np.array(list(itertools.product([False, True], repeat=10)))
    probability = np.where(outcomes, w, 1 - w).prod(axis=1)
    for harm in ("more", "fewer"):
        means = probability @ sequential.harm_e_path(outcomes, w, harm)
        np.testing.assert_allclose(means, 1.0, atol=1e-12)


@pytest.mark.parametrize("w", [0.05, 0.5, 0.9])
def test_e_process_has_mean_one_over_fifty_events(w):
    """Exactly, over the binomial counts of every t up to 50. By simulation it cannot be seen there: E_50 is so skewed that the mean of
    20,000 draws lies five of its estimated standard errors below one."""
    for t in range(1, 51):
        k = np.arange(t + 1)
        e = [sequential.harm_e_value(int(i), t, w) for i in k]
        assert stats.binom.pmf(k, t, w) @ e == pytest.approx(1.0, abs=1e-9)
    wrong = stats.binom.pmf(k, 50, w) @ [sequential.harm_e_value(int(i), 50, 0.5 * w) for i in k]
    assert wrong > 2  # a probability that was not in force


def test_simulated_e_process_has_mean_one_where_simulation_can_tell():
    """Under a changing probability, within 3 standard errors at each of the first ten events."""
    rng = np.random.default_rng(13)
    w = np.linspace(0.4, 0.6, 10)
    paths = sequential.harm_e_path(rng.random((100_000, 10)) < w, w)
    off = np.abs(paths.mean(axis=0) - 1) / (paths.std(axis=0) / np.sqrt(len(paths)))
    assert off.max() < 3


def test_e_value_from_counts_is_the_end_of_the_path():
    rng = np.random.default_rng(2)
    w = np.repeat([0.05, 0.25, 0.5], [40, 60, 80])
    chosen = rng.random(180) < w * 1.3
    k = [int(chosen[w == share].sum()) for share in (0.05, 0.25, 0.5)]
    for harm in ("more", "fewer"):
        value = sequential.harm_e_value(k, [40, 60, 80], [0.05, 0.25, 0.5], harm)
        assert value == pytest.approx(sequential.harm_e_path(chosen, w, harm)[-1])
    assert sequential.harm_e_value(0, 0, 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize("harm", ["more", "fewer"])
def test_guardrail_finds_harm_and_only_on_its_side(harm):
    rng = np.random.default_rng(3)
    worse, better = (0.65, 0.35) if harm == "more" else (0.35, 0.65)

    def share_alarmed(in_candidate_share):
        chosen = rng.random((300, 200)) < in_candidate_share
        return (sequential.harm_e_path(chosen, 0.5, harm) >= 1 / ALPHA).any(axis=1).mean()

    assert share_alarmed(worse) > 0.9
    assert share_alarmed(better) < 0.02


def test_first_event_per_user_matters():
    """Heavy users repeat themselves: with all their events the process is wrong far more often than alpha."""
    rng = np.random.default_rng(4)
    all_events = first_only = 0
    for _ in range(RUNS):
        arm = rng.random(60) < 0.5
        user = rng.choice(60, 200, p=rng.dirichlet(np.full(60, 0.5)))
        first = sequential.first_per_user(user)
        all_events += bool((sequential.harm_e_path(arm[user], 0.5) >= 20).any())
        first_only += bool((sequential.harm_e_path(arm[user[first]], 0.5) >= 20).any())
    assert first_only <= ALLOWED
    assert all_events > NAIVE


def test_first_per_user_keeps_the_order_of_time():
    assert sequential.first_per_user(["b", "a", "b", "c", "a"]).tolist() == [0, 1, 3]


def usage_experiment(rng, messages_ratio, rate_ratio, return_ratio, n=3000):
    """(guardrail alarmed, per-message difference, return guardrail alarmed) for one experiment at 50/50."""
    candidate = rng.random(n) < 0.5
    messages = 1 + rng.poisson(4 * np.where(candidate, messages_ratio, 1.0))
    bad = rng.binomial(messages, 0.05 * np.where(candidate, rate_ratio, 1.0))
    back = rng.random(n) < 0.5 * np.where(candidate, return_ratio, 1.0)
    alarm = (sequential.harm_e_path(candidate[bad > 0], 0.5) >= 20).any()
    per_message = user_metrics.ratio_difference(
        bad[~candidate], messages[~candidate], bad[candidate], messages[candidate]
    )
    left = (sequential.harm_e_path(candidate[back], 0.5, "fewer") >= 20).any()
    return alarm, sequential.difference_sequence(per_message, n), left


def test_event_guardrail_alone_mistakes_usage_for_harm_and_its_partner_does_not():
    rng = np.random.default_rng(5)
    runs = [usage_experiment(rng, 1.5, 1.0, 1.0) for _ in range(200)]
    assert np.mean([alarm for alarm, _, _ in runs]) > 0.5
    assert np.mean([rate.low > 0 for _, rate, _ in runs]) < 0.05


def test_event_guardrail_alone_misses_harm_that_drives_users_away_and_its_partners_do_not():
    rng = np.random.default_rng(6)
    runs = [usage_experiment(rng, 0.45, 1.6, 0.75) for _ in range(200)]
    assert np.mean([alarm for alarm, _, _ in runs]) < 0.1
    assert np.mean([rate.low > 0 or left for _, rate, left in runs]) > 0.9


def watched_means(rng, runs, n_per_arm):
    """(differences, standard errors, users per arm) at every look of experiments whose arms are the same skewed distribution."""
    looks = np.arange(1, n_per_arm + 1)

    def arm():
        x = np.minimum(rng.lognormal(0, 1, (runs, n_per_arm)), 8.0)
        mean = np.cumsum(x, axis=1) / looks
        return mean, np.cumsum(x * x, axis=1) / looks - mean**2

    (mean_a, var_a), (mean_b, var_b) = arm(), arm()
    return mean_b - mean_a, np.sqrt((var_a + var_b) / looks), looks


def test_confidence_sequence_of_a_difference_holds_at_every_look():
    gap, se, n = watched_means(np.random.default_rng(7), RUNS, 1500)
    half = sequential.half_width(se, 2 * n, sequential.tuned_rho(2000))
    burnt_in = n >= 200
    assert (np.abs(gap) > half)[:, burnt_in].any(axis=1).sum() <= ALLOWED
    assert (np.abs(gap) > 1.96 * se)[:, burnt_in].any(axis=1).sum() > NAIVE


def test_one_sided_sequence_holds_on_its_side():
    gap, se, n = watched_means(np.random.default_rng(8), RUNS, 1000)
    half = sequential.half_width(se, 2 * n, sequential.tuned_rho(1500, one_sided=True), one_sided=True)
    assert (gap > half)[:, n >= 200].any(axis=1).sum() <= ALLOWED
    assert (gap > 1.645 * se)[:, n >= 200].any(axis=1).sum() > NAIVE * 0.7
    two_sided = sequential.half_width(se, 2 * n, sequential.tuned_rho(1500))
    assert (half < two_sided)[:, n >= 200].all()


def test_sequences_nest_in_alpha_and_over_time():
    # From the second user on: one user has no variance.
    gap, se, n = (x[..., 1:] for x in watched_means(np.random.default_rng(9), 20, 500))
    rho = sequential.tuned_rho(1000)
    assert (sequential.half_width(se, n, rho, 0.01) > sequential.half_width(se, n, rho, 0.05)).all()
    half = sequential.half_width(se, n, rho)
    low, high = sequential.running_intersection(gap - half, gap + half)
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) <= 0).all()
    assert (low >= gap - half).all()
    assert (high <= gap + half).all()


def test_rho_is_tightest_where_it_was_planned():
    planned = sequential.half_width(1.0, 1000, sequential.tuned_rho(1000))
    for other in (100, 700, 1500, 10_000):
        assert planned < sequential.half_width(1.0, 1000, sequential.tuned_rho(other))


def test_difference_sequence_waits_for_users_and_for_even_arms():
    assert sequential.difference_sequence(Difference(0.1, 0.01, 199, 250), 1000) is None
    interval = sequential.difference_sequence(Difference(0.1, 0.01, 300, 280), 1000)
    assert interval.n == 580
    assert interval.high - 0.1 == pytest.approx(0.1 - interval.low)
    assert interval.high - 0.1 > 1.96 * 0.01
    with pytest.raises(BadInput, match="equal size"):
        sequential.difference_sequence(Difference(0.1, 0.01, 9500, 500), 1000)


def test_message_level_variance_under_user_assignment_is_the_trap():
    """Users differ; treating their messages as independent makes every difference look certain."""
    rng = np.random.default_rng(10)
    by_user = by_message = 0
    for _ in range(400):
        n = 600
        messages = rng.geometric(0.15, (2, n))
        bad = rng.binomial(messages, rng.beta(0.5, 2, (2, n)))
        looks = range(200, n + 1, 50)
        rows = [
            (
                bad[0, :t],
                messages[0, :t],
                bad[1, :t],
                messages[1, :t],
                user_metrics.ratio_difference(*_arms(bad, messages, t)),
            )
            for t in looks
        ]
        by_user += any(sequential.difference_sequence(d, 1000).excludes(0.0) for *_, d in rows)
        for x_a, n_a, x_b, n_b, d in rows:
            rates = [(x.sum() / m.sum(), m.sum()) for x, m in ((x_a, n_a), (x_b, n_b))]
            se = np.sqrt(sum(r * (1 - r) / m for r, m in rates))
            half = sequential.half_width(se, rates[0][1] + rates[1][1], sequential.tuned_rho(1000))
            if abs(d.mean) > half:
                by_message += 1
                break
    assert by_user / 400 <= 0.08
    assert by_message / 400 > 0.20


def _arms(bad, messages, t):
    return bad[0, :t], messages[0, :t], bad[1, :t], messages[1, :t]


def test_pooling_ramp_stages_turns_drift_into_an_effect_and_stratifying_does_not():
    rng = np.random.default_rng(11)
    pooled = by_stage = 0
    for _ in range(300):
        stages = []
        for base, share in ((0.6, 0.05), (0.4, 0.5)):
            candidate = rng.random(4000) < share
            y = (rng.random(4000) < base).astype(float)
            stages.append((y[~candidate], y[candidate]))
        together = user_metrics.difference(*(np.concatenate(arm) for arm in zip(*stages, strict=True)))
        apart = user_metrics.stratified([user_metrics.difference(*stage) for stage in stages])
        pooled += abs(together.mean) > 1.96 * together.se
        by_stage += abs(apart.mean) > 1.96 * apart.se
    assert pooled / 300 > 0.95
    assert by_stage / 300 < 0.09


def test_srm_process_holds_at_every_look_and_repeated_chi_square_does_not():
    rng = np.random.default_rng(12)
    in_b = np.cumsum(rng.random((RUNS, 2000)) < 0.5, axis=1)
    n = np.arange(1, 2001)
    e = sequential.srm_e_value(np.stack([n - in_b, in_b], axis=-1), [0.5, 0.5])
    assert (e >= 20).any(axis=1).sum() <= ALLOWED
    chi_square = (2 * in_b - n) ** 2 / n
    assert (chi_square[:, 100:] > 3.84).any(axis=1).sum() > NAIVE


def test_stages_may_have_been_planned_in_different_shares():
    users, planned = [[190, 10], [500, 510]], [[0.95, 0.05], [0.5, 0.5]]
    both = sequential.sample_ratio(users, planned)
    apart = [sequential.sample_ratio(u, s) for u, s in zip(users, planned, strict=True)]
    assert both.e_value == pytest.approx(apart[0].e_value * apart[1].e_value)
    assert both.chi_square == pytest.approx(apart[0].chi_square + apart[1].chi_square)
    assert both.chi_square_p > 0.5
    # One user where .05 were expected: chi-square 19 is no evidence.
    assert sequential.sample_ratio([0, 1], [0.95, 0.05]).chi_square_p == 1.0


def test_evidence_beyond_all_numbers_stays_a_number():
    assert 1e200 < sequential.harm_e_value(20_000, 20_000, 0.5) < np.inf
    assert 1e200 < sequential.harm_e_path(np.ones(20_000, dtype=bool), 0.5)[-1] < np.inf
    assert 1e200 < sequential.sample_ratio([[0, 50_000]] * 3, [0.5, 0.5]).e_value < np.inf


def test_srm_has_mean_one_exactly_and_finds_a_leak():
    # All (n_a, n_b) after six users at 1:3, weighted by their binomial probabilities.
    k = np.arange(7)
    binomial = np.array([1, 6, 15, 20, 15, 6, 1]) * 0.25**k * 0.75 ** (6 - k)
    e = sequential.srm_e_value(np.stack([k, 6 - k], axis=-1), [0.25, 0.75], concentration=4.0)
    assert binomial @ e == pytest.approx(1.0)
    leak = sequential.sample_ratio([5300, 4700], [0.5, 0.5])
    assert leak.mismatch
    assert leak.chi_square_p < sequential.SRM_WARN_P
    assert not sequential.sample_ratio([5050, 4950], [0.5, 0.5]).mismatch
    # Evidence of several stages adds up.
    stages = sequential.sample_ratio([[2650, 2350], [2650, 2350]], [0.5, 0.5])
    assert stages.e_value == pytest.approx(sequential.srm_e_value([2650, 2350], [0.5, 0.5]) ** 2)
    assert stages.n == 10_000


@pytest.mark.parametrize(
    "broken",
    [
        lambda: sequential.harm_e_path([True], 1.0),
        lambda: sequential.harm_e_path([True], 0.5, "worse"),
        lambda: sequential.harm_e_value(3, 2, 0.5),
        lambda: sequential.tuned_rho(0),
        lambda: sequential.tuned_rho(10, alpha=0.9),
        lambda: sequential.srm_e_value([1, 2], [0.5, 0.6]),
        lambda: sequential.srm_e_value([1, 2, 3], [0.5, 0.5]),
        lambda: sequential.sample_ratio([0, 0], [0.5, 0.5]),
    ],
)
def test_impossible_questions_are_refused(broken):
    with pytest.raises(BadInput):
        broken()
