import numpy as np
import pytest

from plaudit.stats import verdict
from plaudit.stats.intervals import Interval
from plaudit.stats.user_metrics import Difference
from plaudit.stats.verdict import Guardrail

FIRED = Guardrail("errors", 50.0, 40.0, True, 30)
QUIET = Guardrail("errors", 5.0, 40.0, False, 30)


@pytest.mark.parametrize(
    ("guardrails", "broken", "waiting", "missed", "expected"),
    [
        ([QUIET, FIRED], ["lost"], ["few"], ["worse"], ("roll_back", "guardrail")),
        ([QUIET], ["lost"], ["few"], ["worse"], ("hold", "assignment")),
        ([QUIET], [], ["few"], ["worse"], ("hold", "sample")),
        ([QUIET], [], [], ["worse"], ("hold", "goal")),
        ([QUIET], [], [], [], ("promote", "approval")),
    ],
)
def test_the_first_step_that_has_something_to_say_decides(guardrails, broken, waiting, missed, expected):
    found = verdict.decide(guardrails, broken, waiting, missed, 500)
    assert (found.verdict, found.decided_by) == expected
    assert len(found.reasons) == 1


def test_assignment_holds_by_chi_square_and_stops_for_good_by_the_e_value():
    fine = verdict.check_assignment([[500, 510]], [0.5, 0.5], 0, 0.01)
    assert (fine.reasons, fine.stopped) == ((), False)
    lost = verdict.check_assignment([[400, 300]], [0.5, 0.5], 0, 0.01)  # p = 1.6e-4, e = 136
    assert "planned numbers" in lost.reasons[0]
    assert not lost.stopped
    stopped = verdict.check_assignment([[500, 300]], [0.5, 0.5], 0, 0.01)
    assert stopped.stopped
    later = verdict.check_assignment([[800, 800]], [0.5, 0.5], 0, 0.01, stopped=True)
    assert later.stopped
    assert "stopped" in later.reasons[0]


def test_stages_have_their_own_planned_shares():
    users = [[950, 50], [500, 500]]
    assert not verdict.check_assignment(users, [[0.95, 0.05], [0.5, 0.5]], 0, 0.01).reasons
    assert verdict.check_assignment(users, [0.5, 0.5], 0, 0.01).stopped


def test_users_in_both_arms_are_an_alarm_above_one_per_cent():
    assert not verdict.check_assignment([[99, 99]], [0.5, 0.5], 2, 0.01).reasons
    assert "3 of 201 users met both arms" in verdict.check_assignment([[99, 99]], [0.5, 0.5], 3, 0.01).reasons[0]


def test_one_user_in_a_small_canary_is_no_broken_assignment():
    """Chi-square says p = 1e-5 of one user out of one in a 5 % arm; it is no approximation there."""
    assert not verdict.check_assignment([[0, 1]], [0.95, 0.05], 0, 0.01).reasons


@pytest.mark.parametrize(
    "difference",
    [
        None,
        Difference(0.1, 0.0, 300, 300),
        Difference(0.1, 0.01, 199, 300),
        Difference(0.1, 0.01, 5700, 300),
    ],
)
def test_no_bounds_where_they_would_not_hold(difference):
    assert verdict.bounded(difference, 800, 0.05, 200) is None
    assert verdict.bounded(Difference(0.1, 0.01, 300, 300), 800, 0.05, 200) is not None


def test_guardrails_fire_on_the_harmful_side_beyond_their_margin():
    up, down = Interval(0.1, 0.02, 0.18, 600), Interval(-0.1, -0.18, -0.02, 600)
    assert verdict.bounded_guardrail("x", up, "down").fired
    assert not verdict.bounded_guardrail("x", up, "up").fired
    assert verdict.bounded_guardrail("x", down, "up").fired
    assert not verdict.bounded_guardrail("x", down, "down").fired
    assert not verdict.bounded_guardrail("x", up, "down", margin=0.03).fired
    assert not verdict.bounded_guardrail("x", down, "up", margin=0.03).fired
    assert not verdict.bounded_guardrail("x", None, "up").fired


def test_a_goal_is_met_by_its_worst_end():
    slightly_worse = Interval(-0.01, -0.03, 0.01, 600)
    assert not verdict.goal_met(slightly_worse, "up", 0.0)
    assert verdict.goal_met(slightly_worse, "up", 0.04)
    assert verdict.goal_met(slightly_worse, "down", 0.02)
    assert not verdict.goal_met(slightly_worse, "down", 0.0)


def test_more_events_at_no_higher_a_rate_are_use_and_not_harm():
    events = np.ones(30, dtype=bool)
    assert verdict.event_guardrail("x", events, np.full(30, 0.5), 0.05).fired
    quiet = verdict.event_guardrail("x", events, np.full(30, 0.5), 0.05, harmful=False)
    assert quiet.value >= quiet.threshold == 20
    assert not quiet.fired
    assert verdict.event_guardrail("x", events[:0], np.zeros(0), 0.05).value == 1.0
