"""Experiments from rows and totals; whole experiments many times, with a z-test at every look as the negative control."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from plaudit.errors import BadInput
from plaudit.stats import looks, sequential, user_metrics
from plaudit.stats.looks import Metric, Plan, Rows, Totals

DOWN = Metric("down", "guardrail", "down")
RATING = Metric("rating", "goal", "up")
DAY = 86400.0


def rows(arm, values, user=None, at=None, stage=None, probability=0.5, before=None):
    arm = np.asarray(arm, dtype=bool)
    n = len(arm)
    return Rows(
        at=np.arange(n, dtype=float) if at is None else np.asarray(at, dtype=float),
        user=np.arange(n) if user is None else np.asarray(user),
        in_candidate=arm,
        stage=np.zeros(n, dtype=np.int64) if stage is None else np.asarray(stage),
        probability=np.broadcast_to(np.asarray(probability, dtype=float), n).copy(),
        values={name: np.asarray(value, dtype=float) for name, value in values.items()},
        before={name: np.asarray(value, dtype=float) for name, value in (before or {}).items()},
    )


def last(data, *metrics, plan=None):
    return looks.analyse_rows(data, metrics, plan or Plan(), [len(data.at)])[-1]


def test_a_reading_is_the_user_level_ratio_with_always_valid_bounds():
    """Against the parts it is made of: delta method, one more event, half-width; and alpha shared by the two tests of a guardrail."""
    rng = np.random.default_rng(1)
    user = rng.integers(0, 900, 3000)
    arm, down = user % 2 == 1, rng.random(3000) < 0.2
    (reading,) = last(rows(arm, {"down": down}, user), DOWN).readings
    sums, counts = np.bincount(user, weights=down), np.bincount(user)
    a, b = np.arange(900) % 2 == 0, np.arange(900) % 2 == 1
    a, b = a & (counts > 0), b & (counts > 0)
    gap = user_metrics.ratio_difference(sums[a], counts[a], sums[b], counts[b])
    se = np.sqrt(gap.se**2 + 1 / counts[a].sum() ** 2 + 1 / counts[b].sum() ** 2)
    n = a.sum() + b.sum()
    assert (reading.kind, reading.alpha, reading.difference.n) == ("binary", 0.025, n)
    assert reading.difference.mean == pytest.approx(gap.mean)
    half = sequential.half_width(se, n, sequential.tuned_rho(800, 0.025), 0.025)
    assert reading.difference.high - reading.difference.mean == pytest.approx(float(half))
    first = np.array([np.flatnonzero((user == u) & down)[0] for u in np.unique(user[down])])
    assert reading.e_value == pytest.approx(sequential.harm_e_path(arm[np.sort(first)], 0.5)[-1])
    assert reading.e_threshold == 40.0


def test_users_of_both_arms_are_left_out_and_counted():
    arm = np.arange(1000) % 2 == 1
    rating = np.where(arm, 1.0, 0.0) + np.linspace(0, 1, 1000)
    again = rows(
        np.append(arm, [True] * 11), {"rating": np.append(rating, [1e6] * 11)}, [*range(1000), *range(0, 22, 2)]
    )
    look = last(again, RATING)
    assert (look.n_double, look.n_control, look.n_candidate) == (11, 489, 500)
    assert (look.verdict.verdict, look.verdict.decided_by) == ("hold", "assignment")
    assert look.readings[0].control == pytest.approx(rating[~arm][11:].mean())


def test_rollback_needs_no_minimum_and_beats_every_other_step():
    arm = np.arange(60) % 2 == 1
    look = last(rows(arm, {"down": arm, "rating": arm}), DOWN, RATING)
    assert (look.verdict.verdict, look.verdict.decided_by) == ("roll_back", "guardrail")
    assert look.readings[0].difference is None
    assert look.readings[0].state == "fired"


def test_goals_decide_last_and_there_must_be_one():
    rng = np.random.default_rng(2)
    arm = np.arange(1000) % 2 == 1
    better = rng.normal(size=1000) + 0.6 * arm
    data = rows(arm, {"rating": better, "down": np.zeros(1000)})
    assert last(data, RATING, DOWN).verdict.verdict == "promote"
    assert "no goal was declared" in last(data, DOWN).verdict.reasons[0]
    wrong = last(data, replace(RATING, better="down"), DOWN)
    assert (wrong.verdict.decided_by, wrong.readings[0].state) == ("goal", "missed")
    assert last(data, RATING, DOWN, plan=Plan(min_users=501)).verdict.decided_by == "sample"
    monitored = last(data, replace(RATING, role="monitor"), Metric("down", "goal", "down", margin=0.05))
    assert (monitored.verdict.verdict, monitored.readings[0].state) == ("promote", "watched")


def test_a_rate_without_events_is_not_certain_and_a_constant_mean_tells_nothing():
    arm = np.arange(1000) % 2 == 1
    look = last(rows(arm, {"down": np.zeros(1000), "size": np.full(1000, 0.1)}), DOWN, Metric("size", "goal", "up"))
    down, size = look.readings
    assert down.difference.mean == 0.0
    assert 0.002 < down.difference.high < 0.02
    assert (size.difference, size.waits) == (None, "it is one value for everybody")


def test_a_small_canary_has_the_exact_test_and_no_bounds():
    rng = np.random.default_rng(3)
    arm = rng.random(6000) < 0.05
    data = rows(arm, {"down": rng.random(6000) < np.where(arm, 0.3, 0.05)}, probability=0.05)
    look = last(data, DOWN)
    assert look.verdict.verdict == "roll_back"
    assert look.readings[0].waits == "bounds need arms of equal size"


def test_stages_are_compared_within_themselves():
    """A ramp from 20 to 80 % candidate while the base rate falls: pooled, the candidate looks far better."""
    rng = np.random.default_rng(4)
    stage = np.repeat([0, 1], 1500)
    arm = rng.random(3000) < np.where(stage == 0, 0.2, 0.8)
    rating = rng.normal(size=3000) - 2.0 * stage
    look = last(rows(arm, {"rating": rating}, stage=stage, probability=np.where(stage == 0, 0.2, 0.8)), RATING)
    assert look.ratio_p > 0.001
    assert abs(look.readings[0].difference.mean) < 0.15
    assert look.readings[0].candidate - look.readings[0].control < -0.8
    down = rng.random(3000) < 0.3 + 0.4 * stage
    guard = last(rows(arm, {"down": down}, stage=stage, probability=np.where(stage == 0, 0.2, 0.8)), DOWN)
    assert guard.readings[0].state == "quiet"
    pooled = last(rows(arm, {"down": down}), DOWN)
    assert pooled.readings[0].state == "fired"


def test_use_is_told_from_harm_stage_by_stage():
    """In each stage candidate users say more and complain less per message, so more of them complain once; over a ramp into worse times
    the pooled rate is higher all the same."""
    rng = np.random.default_rng(9)
    stage = np.repeat([0, 1], 600)
    arm = rng.random(1200) < np.where(stage == 0, 0.2, 0.8)
    n_messages = np.where(arm, 5, 1)
    user = np.repeat(np.arange(1200), n_messages)
    rate = np.where(stage == 0, 0.1, 0.5) * np.where(arm, 0.8, 1.0)
    probability = np.where(stage == 0, 0.2, 0.8)
    data = rows(arm[user], {"down": rng.random(len(user)) < rate[user]}, user, None, stage[user], probability[user])
    (reading,) = last(data, DOWN).readings
    assert reading.e_value > reading.e_threshold
    assert reading.candidate > reading.control
    assert reading.state != "fired"


def test_cuped_sharpens_and_winsorising_bounds_what_one_user_can_do():
    rng = np.random.default_rng(5)
    arm, before = np.arange(1000) % 2 == 1, rng.normal(size=1000)
    rating = 2 * before + rng.normal(size=1000)
    widths = []
    for given in (None, {"rating": before}):
        bounds = last(rows(arm, {"rating": rating}, before=given), RATING).readings[0].difference
        widths.append(bounds.high - bounds.low)
    assert widths[1] < 0.6 * widths[0]
    wild = rating.copy()
    wild[0] = 1e6
    (tame,) = last(rows(arm, {"rating": wild}), RATING).readings
    (free,) = last(rows(arm, {"rating": wild}), RATING, plan=Plan(winsorise=0.0)).readings
    assert abs(tame.difference.mean) < 1 < abs(free.difference.mean)


def test_the_bad_value_is_the_one_that_is_not_better():
    arm = np.arange(400) % 2 == 1
    solved = np.where(arm, np.arange(400) % 4 == 1, True)
    (up,) = last(rows(arm, {"solved": solved}), Metric("solved", "guardrail", "up")).readings
    (down,) = last(rows(arm, {"solved": ~solved}), Metric("solved", "guardrail", "down")).readings
    assert up.state == down.state == "fired"
    assert up.e_value == pytest.approx(down.e_value)
    assert up.difference is not None
    assert up.difference.mean == pytest.approx(-down.difference.mean)


def test_looks_fall_after_equal_numbers_of_rows_or_at_the_end_of_days():
    at = np.array([0, 1, 2, DAY - 1, DAY, DAY + 1, 5 * DAY, 5 * DAY + 1])
    assert looks.look_ends(at, 4).tolist() == [2, 4, 6, 8]
    assert looks.look_ends(at, "day").tolist() == [4, 6, 8]
    assert looks.look_ends(at, "week").tolist() == [6, 8]  # 1970-01-01 was a Thursday, day 4 a Monday
    assert looks.look_ends(np.zeros(5), 3).tolist() == [5]
    assert looks.look_ends(at, 100)[-1] == 8


def as_totals(data, ends, name, cumulative):
    found = []
    for start, end in itertools.pairwise([0, *ends]):
        for arm in (False, True):
            here = np.arange(0 if cumulative else start, end)
            here = here[data.in_candidate[here] == arm]
            value = data.values[name][here]
            found.append((data.at[end - 1], arm, len(value), value.mean(), value.var(ddof=1)))
    at, arm, n, mean, variance = zip(*found, strict=True)
    size = len(at)
    return Totals(
        np.array(at),
        [name] * size,
        np.array(arm),
        np.zeros(size, dtype=np.int64),
        np.full(size, 0.5),
        np.array(n),
        np.array(mean),
        np.array(variance),
        cumulative,
    )


@pytest.mark.parametrize("cumulative", [True, False])
def test_totals_say_what_the_rows_behind_them_say(cumulative):
    rng = np.random.default_rng(6)
    arm = rng.random(1200) < 0.5
    data = rows(arm, {"down": rng.random(1200) < 0.2 + 0.1 * arm, "rating": rng.normal(size=1200)})
    ends = [400, 700, 1200]
    for metric in (DOWN, RATING):
        by_rows = looks.analyse_rows(data, [metric], Plan(winsorise=0.0), ends)
        by_totals = looks.analyse_totals(as_totals(data, ends, metric.name, cumulative), [metric], Plan())
        for one, other in zip(by_rows, by_totals, strict=True):
            (a,), (b,) = one.readings, other.readings
            assert (one.verdict.verdict, one.n_control, a.kind) == (other.verdict.verdict, other.n_control, b.kind)
            if a.difference:
                assert b.difference.mean == pytest.approx(a.difference.mean)
                assert b.difference.low == pytest.approx(a.difference.low, rel=0.01)
            if a.e_value:
                assert b.e_value == pytest.approx(a.e_value)
            assert b.control == pytest.approx(a.control)


def test_totals_that_fall_are_no_totals():
    data = rows(np.arange(400) % 2 == 1, {"rating": np.arange(400) % 7})
    parts = as_totals(data, [200, 300, 400], "rating", cumulative=False)
    with pytest.raises(BadInput, match="falls from 100 to 50"):
        looks.analyse_totals(replace(parts, cumulative=True), [RATING], Plan())


def test_a_stop_lasts():
    """A leak at first, made up for later: the arms end equal, the experiment stays stopped."""
    arm = np.concatenate([np.arange(1000) % 5 == 0, np.arange(1000) % 5 != 0])
    first, final = looks.analyse_rows(rows(arm, {"rating": np.arange(2000.0)}), [RATING], Plan(), [1000, 2000])
    assert first.stopped
    assert final.ratio_p == 1.0
    assert (final.stopped, final.verdict.decided_by) == (True, "assignment")


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ([], "No metric"),
        ([Metric("speed", "goal", "up")], "no metric 'speed' in the file; it has rating"),
        ([RATING, RATING], "twice"),
        ([Metric("rating", "goal", "up", -1.0)], "margin"),
    ],
)
def test_metrics_that_cannot_be(metrics, said):
    with pytest.raises(BadInput, match=said):
        looks.analyse_rows(rows([0, 0, 1, 1], {"rating": [1, 2, 3, 4]}), metrics, Plan(), [4])


def test_one_user_is_no_experiment():
    with pytest.raises(BadInput, match="1 control and 1 candidate users"):
        last(rows([0, 1, 0, 1], {"rating": [1, 2, 3, 4]}, user=[0, 1, 0, 1]), RATING)


@pytest.mark.parametrize(
    "options",
    [{"alpha": 0.7}, {"min_users": 1}, {"planned_users": 0}, {"winsorise": 0.5}, {"max_double_fraction": 1.0}],
)
def test_plans_that_cannot_be(options):
    with pytest.raises(BadInput):
        Plan(**options)


# --- whole experiments, many times -------------------------------------------------------------------------------------


def experiment(seed, harm=1.0, gain=0.0, n=1000):
    """(verdict that ends it, whether a z-test at any look cried): users with several messages each, unlike each other, under drift."""
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, n, 2 * n))
    chosen = rng.random(n) < 0.5
    arm = chosen[user]
    drift = np.linspace(1.5, 0.5, 2 * n)
    down = rng.random(2 * n) < np.minimum(rng.beta(2, 18, n)[user] * drift * np.where(arm, harm, 1.0), 1.0)
    length = rng.lognormal(0, 1, n)[user] + rng.normal(0, 0.2, 2 * n) + gain * arm
    data = rows(arm, {"down": down, "length": length}, user)
    metrics = [DOWN, Metric("length", "goal", "up")]
    ends = np.linspace(0, 2 * n, 9)[1:].astype(int)
    found = looks.analyse_rows(data, metrics, Plan(planned_users=n), ends)
    ended = next((look.verdict.verdict for look in found if look.verdict.verdict != "hold"), "hold")
    cried = False
    for end in ends:
        a, b = length[:end][~arm[:end]], length[:end][arm[:end]]
        cried |= abs(b.mean() - a.mean()) > 1.96 * np.sqrt(a.var() / len(a) + b.var() / len(b))
    return ended, cried


def a_a(n, most):
    ended = [experiment(seed) for seed in range(n)]
    assert sum(verdict == "roll_back" for verdict, _ in ended) <= most
    assert sum(verdict == "promote" for verdict, _ in ended) <= most
    assert (
        np.mean([cried for _, cried in ended]) > 0.2
    )  # the negative control: messages taken for users, read at every look


def test_equal_arms_are_neither_rolled_back_nor_promoted():
    a_a(40, most=8)  # of 40 at .05, more than 8 happen less than once in a thousand


@pytest.mark.slow
def test_equal_arms_over_many_experiments():
    a_a(300, most=27)  # 15 + 3.2 sd


def test_harm_is_rolled_back_and_gain_promoted():
    assert [experiment(seed, harm=2.5)[0] for seed in range(100, 112)].count("roll_back") >= 11
    gained = [experiment(seed, gain=0.6)[0] for seed in range(200, 212)]
    assert gained.count("promote") >= 10
    assert "roll_back" not in gained
