"""Monitors: figures of a window against hand-made traffic, changes against the windows before, and alerts that fire, hold and resolve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from plaudit.domain import (
    Alert,
    AlertState,
    Completion,
    CompletionStatus,
    Feedback,
    FeedbackKind,
    Interaction,
    InteractionSource,
    Measurement,
    Release,
    ReleaseState,
    Response,
    ResponseOrigin,
    new_id,
)
from plaudit.errors import BadInput
from plaudit.loop import monitor
from plaudit.loop.monitor import AlertRule, Direction
from plaudit.store.database import Store
from plaudit.store.monitoring import Act

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
P = "prj_default"
LIVE = Release(
    id="rel_1",
    project_id=P,
    checkpoint_id=None,
    model="base",
    upstream="fake:",
    state=ReleaseState.LIVE,
    created_at=NOW,
    state_at=NOW,
    live_at=NOW,
)


@pytest.fixture
def store(store: Store) -> Store:
    store.add(LIVE)
    return store


def turn(
    at: datetime,
    actor: str,
    text: str = "one two three",
    up: bool | None = None,
    *,
    arm: str | None = None,
    attributes: dict | None = None,
    finish: str = "stop",
    ok: bool = True,
    takes: timedelta = timedelta(),
) -> list[object]:
    """One interaction with its answer, which takes a while, and perhaps a thumb."""
    key = new_id(Interaction)
    interaction = Interaction(
        id=key,
        project_id=P,
        conversation_id=key,
        turn=1,
        actor=actor,
        messages=({"role": "user", "content": "hi"},),
        family="f",
        prompt_sha256="",
        source=InteractionSource.GATEWAY,
        release_id="rel_1",
        served_release_id="rel_1",
        arm=arm,
        attributes=attributes or {},
        created_at=at,
    )
    status = CompletionStatus.OK if ok else CompletionStatus.ERROR
    rows: list[object] = [
        interaction,
        Completion(id=key, project_id=P, status=status, model="base", created_at=at + takes),
    ]
    if ok:
        rows.append(
            Response(
                id=new_id(Response),
                project_id=P,
                interaction_id=key,
                idx=0,
                text=text,
                finish_reason=finish,
                origin=ResponseOrigin.SERVED,
                model="base",
                created_at=at + takes,
            )
        )
    if up is not None:
        rows.append(thumb(key, actor, up, at + takes))
    return rows


def thumb(key: str, actor: str, up: bool, at: datetime, **more: object) -> Feedback:
    return Feedback(
        id=new_id(Feedback),
        project_id=P,
        interaction_id=key,
        response_idx=0,
        kind=FeedbackKind.THUMB,
        value={"up": up},
        actor=actor,
        natural_key=None,
        body_sha256="",
        created_at=at,
        **more,
    )  # type: ignore[arg-type]


def window(
    store: Store, number: int, n: int = 100, up: float = 0.5, text: str = "one two three", spoken: int | None = None
) -> list[Measurement]:
    """n turns in minute `number`, the first `spoken` with a thumb, a share `up` of those up; measured."""
    start = NOW + number * MINUTE
    spoken = n if spoken is None else spoken
    rows: list[object] = []
    for i in range(n):
        said = (i % 10) < up * 10 if i < spoken else None
        rows += turn(start + timedelta(seconds=i / 10), f"u{number}-{i}", text, said)
    store.add(*rows)
    return monitor.measure(store, P, start, start + MINUTE)


def value(rows: list[Measurement], metric: str, **labels: str) -> Measurement:
    return next(row for row in rows if row.metric == metric and row.labels == labels)


def test_a_window_is_measured_with_n_and_interval(store: Store) -> None:
    rows = [
        *turn(NOW, "a", "x y", True, arm="candidate", attributes={"language": "de"}),
        *turn(NOW, "b", "x y z z", False, attributes={"language": "en"}, finish="length"),
        *turn(NOW, "b", "x y", None),
        *turn(NOW, "c", ok=False),
        *turn(NOW + MINUTE, "later", "not in this window", True),
    ]
    store.add(*rows)
    found = monitor.measure(store, P, NOW, NOW + MINUTE)
    assert value(found, "feedback_rate").value == 0.5
    assert value(found, "error_rate").value == 0.25
    up = value(found, "thumbs_up_rate")
    assert (up.value, up.n) == (0.5, 2)
    assert up.low is not None
    assert up.low < 0.5
    assert value(found, "length_mean").value == pytest.approx(8 / 3)
    assert value(found, "eos_fraction").value == pytest.approx(2 / 3)
    assert not [row for row in found if row.labels]  # too few thumbs to show an arm or a group
    assert store.count(Measurement) == len(found)
    assert all((row.window_start, row.window_end) == (NOW, NOW + MINUTE) for row in found)


def test_arms_and_user_groups_are_shown_from_twenty_thumbs_and_identifiers_are_not(store: Store) -> None:
    rows: list[object] = []
    for i in range(60):
        language = "de" if i < 25 else "en" if i < 45 else "fr"
        rows += turn(
            NOW,
            f"u{i}",
            up=i < 25,
            arm="control" if i < 30 else "candidate",
            attributes={"language": language, "ticket": f"t{i}"},
        )
    store.add(*rows)
    found = monitor.measure(store, P, NOW, NOW + MINUTE)
    cells = {next(iter(row.labels.items())): row.value for row in found if row.labels}
    assert cells == {
        ("arm", "control"): pytest.approx(25 / 30),
        ("arm", "candidate"): 0.0,
        ("group:language", "de"): 1.0,
        ("group:language", "en"): 0.0,
    }


def test_answers_are_held_against_one_another_from_forty_on(store: Store) -> None:
    words = [f"w{i} x{i} y{i} z{i} q{i}" for i in range(30)] + ["all the same to me"] * 10
    store.add(*(row for i, text in enumerate(words[1:]) for row in turn(NOW, f"u{i}", text)))
    assert not [row for row in monitor.measure(store, P, NOW, NOW + MINUTE) if row.metric == "self_bleu"]
    store.add(*(row for i, text in enumerate(words) for row in turn(NOW + MINUTE, f"u{i}", text)))
    echo = value(monitor.measure(store, P, NOW + MINUTE, NOW + 2 * MINUTE), "self_bleu")
    assert (echo.value, echo.n) == (pytest.approx(10 / 40), 40)
    assert echo.high - echo.low == pytest.approx(
        2 * 2.02 * math.sqrt(0.25 * 0.75 / 39), rel=0.02
    )  # t of 39, a user each
    store.add(*(row for i, text in enumerate(words * 3) for row in turn(NOW + 2 * MINUTE, f"u{i // 40}", text)))
    more = value(monitor.measure(store, P, NOW + 2 * MINUTE, NOW + 3 * MINUTE), "self_bleu")
    assert more.n == 40  # of forty again: with three times as many it would rise without a change


def test_an_attribute_with_many_values_is_no_group(store: Store) -> None:
    rows: list[object] = []
    for i in range(11 * monitor.MIN_CELL):
        rows += turn(NOW, f"u{i}", up=True, attributes={"shard": i % 11, "half": i % 2})
    store.add(*rows)
    found = monitor.measure(store, P, NOW, NOW + MINUTE)
    assert {name for row in found for name in row.labels} == {"group:half"}


def test_a_thumb_counts_when_it_is_given_and_as_it_stands(store: Store) -> None:
    first = turn(NOW, "a")
    key = first[0].id  # type: ignore[attr-defined]
    store.add(*first, *turn(NOW, "b", up=True))
    monitor.measure(store, P, NOW, NOW + MINUTE)
    down = thumb(key, "a", False, NOW + MINUTE)
    store.add(*turn(NOW + MINUTE, "c", up=True), down, thumb(key, "a", True, NOW + 1.5 * MINUTE, supersedes=down.id))
    up = value(monitor.measure(store, P, NOW + MINUTE, NOW + 2 * MINUTE), "thumbs_up_rate")
    assert (up.value, up.n) == (1.0, 2)
    gone = thumb(key, "a", True, NOW + 2 * MINUTE, retracted=True)
    store.add(*turn(NOW + 2 * MINUTE, "d", up=False), gone)
    assert value(monitor.measure(store, P, NOW + 2 * MINUTE, NOW + 3 * MINUTE), "thumbs_up_rate").n == 1


def test_what_is_being_answered_when_a_window_closes_belongs_to_the_next(store: Store) -> None:
    slow = timedelta(seconds=20)
    store.add(*turn(NOW, "a", "quick"), *turn(NOW + MINUTE - slow / 2, "b", "slow one", takes=slow))
    store.add(*turn(NOW + MINUTE - slow / 2, "c", ok=False, takes=slow))
    first, second = (monitor.measure(store, P, NOW + i * MINUTE, NOW + (i + 1) * MINUTE) for i in range(2))
    assert [value(rows, "error_rate").n for rows in (first, second)] == [1, 2]
    assert [value(rows, "error_rate").value for rows in (first, second)] == [0, 0.5]
    drawn = [monitor.sample_answers(store, P, NOW + i * MINUTE, NOW + (i + 1) * MINUTE, 9) for i in range(2)]
    assert [[answer.text for answer in answers] for answers in drawn] == [["quick"], ["slow one"]]
    assert monitor.sample_answers(store, P, NOW, NOW + 2 * MINUTE, 0) == []
    with pytest.raises(BadInput, match="monitor_sample is -1"):
        monitor.sample_answers(store, P, NOW, NOW + 2 * MINUTE, -1)


def test_windows_follow_each_other(store: Store) -> None:
    assert monitor.window_start(store, P) is None
    assert monitor.n_waiting(store, P, NOW) == 0
    window(store, 0, n=10)
    assert monitor.window_start(store, P) == NOW + MINUTE
    assert monitor.n_waiting(store, P, NOW + 2 * MINUTE) == 0
    store.add(*turn(NOW + MINUTE, "x"))
    assert monitor.n_waiting(store, P, NOW + 2 * MINUTE) == 1
    with pytest.raises(BadInput, match="is empty"):
        monitor.measure(store, P, NOW, NOW)


def test_a_change_is_against_the_windows_since_the_release_became_live(store: Store) -> None:
    window(store, 0, up=0.8)
    window(store, 1, up=0.6)
    found = window(store, 2, up=0.4, text="one two three four five six")
    change = value(found, "thumbs_up_rate_change")
    assert change.value == pytest.approx(0.4 - 0.7)
    now = value(found, "thumbs_up_rate")
    assert change.high is not None
    assert now.high is not None
    assert change.high - change.value > now.high - now.value  # the windows before are estimates too
    assert value(found, "length_mean_change").value == pytest.approx(1.0)  # relative
    assert value(found, "length_drift").value > 1
    store.change(Release, "rel_1", live_at=NOW + 3 * MINUTE)
    fresh = window(store, 3, up=0.9)
    assert not [row.metric for row in fresh if row.metric.endswith("_change") or row.metric == "length_drift"]


def test_scores_meet_thumbs(store: Store) -> None:
    store.add(*(row for i in range(40) for row in turn(NOW, f"u{i}", f"text {i}", up=i % 2 == 0 if i < 30 else None)))
    drawn = monitor.sample_answers(store, P, NOW, NOW + MINUTE, 20)
    assert len({a.response_id for a in drawn}) == 20
    assert drawn == monitor.sample_answers(store, P, NOW, NOW + MINUTE, 20)
    rated = {f.interaction_id for f in store.find(Feedback)}
    assert sum(a.interaction_id in rated for a in drawn) >= 10
    assert monitor.score_rows(drawn)[0] == {
        "id": drawn[0].response_id,
        "messages": [{"role": "user", "content": "hi"}],
        "response": drawn[0].text,
        "finished": True,
    }
    everything = monitor.sample_answers(store, P, NOW, NOW + MINUTE, 1000)
    scores = {a.response_id: {"score": float(a.text.split()[1]), "kl": 2.0} for a in everything}
    found = monitor.measure(store, P, NOW, NOW + MINUTE, scores)
    assert value(found, "score_mean").value == pytest.approx(19.5)
    assert value(found, "score_sd").value == pytest.approx(np.std(range(40), ddof=1))
    assert (value(found, "kl_mean").value, value(found, "kl_mean").n) == (2.0, 40)
    of_many = value(found, "score_thumb_auc")
    assert of_many.n == 30
    assert of_many.value == pytest.approx(roc_auc_score([i % 2 == 0 for i in range(30)], range(30)))

    def by(number: int, user: Callable[[int], int]) -> list[Measurement]:
        """Sixty thumbs in six tens that agree among themselves."""
        start, quality = NOW + number * MINUTE, (2.0, 1.0, 0.0, 0.5, 1.5, 0.2)
        rows = (turn(start, f"u{user(i)}", f"text {i}", up=i // 10 % 2 == 0) for i in range(60))
        store.add(*(row for some in rows for row in some))
        drawn = monitor.sample_answers(store, P, start, start + MINUTE, 1000)
        scores = {a.response_id: {"score": quality[int(a.text[5:]) // 10]} for a in drawn}
        return monitor.measure(store, P, start, start + MINUTE, scores)

    alone, together = (value(by(*each), "score_thumb_auc") for each in ((1, lambda i: i), (2, lambda i: i // 10)))
    assert (together.value, together.n) == (alone.value, alone.n) == (pytest.approx(2 / 3), 60)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    assert not [row for row in by(3, lambda _: 0) if row.metric == "score_thumb_auc"]


def test_the_cusum_rises_when_score_and_satisfaction_part(store: Store) -> None:
    rng = np.random.default_rng(1)

    def series(part_at: int) -> float:
        last = 0.0
        for number in range(40):
            quality = rng.normal()
            score = quality + (3.0 if number >= part_at else 0.0)
            rows = [row for row in store.find(Measurement) if row.window_start >= NOW]
            found: monitor.Found = [
                (m, {}, monitor.Interval(v, v, v, 100))
                for m, v in (
                    ("score_mean", score + rng.normal(0, 0.3)),
                    ("thumbs_up_rate", quality + rng.normal(0, 0.3)),
                )
            ]
            at = NOW + number * MINUTE
            with store.write() as tx:
                cusum = monitor._cusum(tx, P, at, None, found)
                for metric, labels, interval in found:
                    tx.add(
                        Measurement(
                            id=new_id(Measurement),
                            project_id=P,
                            metric=metric,
                            value=interval.mean,
                            n=100,
                            labels=labels,
                            window_start=at,
                            window_end=at + MINUTE,
                            created_at=at,
                        )
                    )
            assert bool(cusum) == (number >= monitor.MIN_BASELINE), len(rows)
            last = cusum[0][2].mean if cusum else 0.0
        return last

    assert series(part_at=32) > 5


# --- alerts ------------------------------------------------------------------------------------------------------------


def measured(
    store: Store,
    number: int,
    at: float,
    metric: str = "m",
    low: float | None = None,
    high: float | None = None,
    n: int = 100,
) -> Measurement:
    end = NOW + number * MINUTE
    row = Measurement(
        id=new_id(Measurement),
        project_id=P,
        metric=metric,
        value=at,
        low=low,
        high=high,
        n=n,
        window_start=end - MINUTE,
        window_end=end,
        created_at=end,
    )
    store.add(row)
    return row


FLOOR = AlertRule("r", "m", Direction.FLOOR, warn=-0.1, critical=-0.2, clear=-0.05, min_samples=50, blocking=True)


def step(store: Store, number: int, at: float, rule: AlertRule = FLOOR, **more: float) -> list[tuple[str, str, bool]]:
    measured(store, number, at, **more)  # type: ignore[arg-type]
    changed = monitor.evaluate_rules(store, P, NOW + number * MINUTE, [rule])
    assert monitor.evaluate_rules(store, P, NOW + number * MINUTE, [rule]) == []  # nothing new: nothing changes
    return [(alert.state, alert.severity, alert.blocking) for alert in changed]


def test_a_floor_fires_on_low_values_holds_in_between_and_resolves(store: Store) -> None:
    assert step(store, 1, 0.5) == []  # the commonest bug: an alert that fires the wrong way
    assert step(store, 2, -0.12) == [("firing", "warning", False)]
    assert step(store, 3, -0.07) == []  # between clear and warn: hysteresis
    assert step(store, 4, -0.25) == [("firing", "critical", True)]
    assert step(store, 5, -0.15) == []  # not lowered while it is open
    assert [a.rule for a in monitor.open_alerts(store, P)] == ["r"]
    assert step(store, 6, -0.04) == [("resolved", "critical", True)]
    assert step(store, 7, -0.5) == [("firing", "critical", True)]
    alerts = store.find(Alert)
    assert len(alerts) == 2
    assert (alerts[0].resolved_at, alerts[1].resolved_at) == (NOW + 6 * MINUTE, None)
    assert alerts[1].message == "critical: m is -0.500 (n = 100), below the floor of -0.2."


def test_a_ceiling_fires_on_high_values(store: Store) -> None:
    rule = replace(FLOOR, direction=Direction.CEILING, warn=1.0, critical=4.0, clear=0.5)
    assert step(store, 1, -9.0, rule) == []
    assert step(store, 2, 2.0, rule) == [("firing", "warning", False)]
    assert step(store, 3, 0.4, rule) == [("resolved", "warning", False)]


def test_an_interval_that_reaches_the_clear_level_does_not_fire(store: Store) -> None:
    assert step(store, 1, -0.3, low=-0.6, high=0.0) == []
    assert step(store, 2, -0.3, low=-0.5, high=-0.1) == [("firing", "critical", True)]


def test_too_few_samples_decide_nothing(store: Store) -> None:
    assert step(store, 1, -0.5, n=49) == []
    assert step(store, 2, -0.5) == [("firing", "critical", True)]
    assert step(store, 3, 0.5, n=49) == []


def test_a_rule_may_wait_for_several_windows(store: Store) -> None:
    rule = replace(FLOOR, for_windows=2)
    assert step(store, 1, -0.3, rule) == [("pending", "critical", True)]
    assert step(store, 2, 0.0, rule) == [("resolved", "critical", True)]
    assert step(store, 3, -0.3, rule) == [("pending", "critical", True)]
    assert step(store, 4, -0.3, rule) == [("firing", "critical", True)]


def test_unhappy_traffic_fires_and_happy_traffic_resolves(store: Store) -> None:
    """The shipped rules on traffic alone: nothing is inserted by hand."""
    states = []
    for number, up in enumerate([0.7, 0.7, 0.7, 0.2, 0.7, 0.8]):
        window(store, number, up=up)
        changed = monitor.evaluate_rules(store, P, NOW + (number + 1) * MINUTE)
        states += [(number, alert.rule, str(alert.state)) for alert in changed]
    assert states == [(3, "satisfaction_fell", "firing"), (4, "satisfaction_fell", "resolved")]
    window(store, 6, up=0.7, spoken=5)
    assert monitor.evaluate_rules(store, P, NOW + 7 * MINUTE) == []


def bursting(store: Store, number: int, acts: list[Feedback], n: int = 100) -> list[tuple[str, str]]:
    """A window of n different users who say one thing each, and these acts: the alerts of the burst rule that change."""
    start = NOW + number * MINUTE
    quiet = [row for i in range(n) for row in turn(start + timedelta(seconds=i / 10), f"u{number}-{i}", up=i % 2 == 0)]
    store.add(*quiet, *acts)
    monitor.measure(store, P, start, start + MINUTE)
    changed = monitor.evaluate_rules(store, P, start + MINUTE)
    return [(a.severity, str(a.state)) for a in changed if a.rule == "feedback_burst"]


def by_one(number: int, n: int, apart_s: float, answers: int = 10_000) -> list[Feedback]:
    """n thumbs of one actor in window `number`, so far apart, on so many answers in turn."""
    start = NOW + number * MINUTE
    return [thumb(f"int_{i % answers}", "eager", True, start + timedelta(seconds=i * apart_s)) for i in range(n)]


def test_many_users_who_speak_at_once_are_no_burst(store: Store) -> None:
    """Little feedback, then eight times as much, of people who say one or two things each: what a ramp or late feedback looks like."""
    rng = np.random.default_rng(3)
    for number, speaking in enumerate([0.1, 0.1, 0.1, 0.8, 0.8]):
        start = NOW + number * MINUTE
        rows: list[object] = []
        for i in range(300):
            at = start + timedelta(seconds=float(rng.uniform(0, 30)))
            said = turn(at, f"u{number}-{i}", up=bool(rng.random() < 0.6) if rng.random() < speaking else None)
            if isinstance(said[-1], Feedback) and rng.random() < 0.3:  # second thoughts, some within the same second
                later = at + timedelta(seconds=float(rng.uniform(0, 5)))
                said.append(thumb(said[-1].interaction_id, f"u{number}-{i}", False, later))
            rows += said
        store.add(*rows)
        found = monitor.measure(store, P, start, start + MINUTE)
        changed = monitor.evaluate_rules(store, P, start + MINUTE)
        assert [alert.rule for alert in changed if alert.blocking] == []
        assert value(found, "feedback_burst_fraction").value == 0.0
    assert value(found, "feedback_rate_change").value > 1.0  # what the rule looked at once


@pytest.mark.parametrize(
    ("apart_s", "answers"),
    [
        pytest.param(0.1, 10_000, id="sub-second clicks"),
        pytest.param(0.05, 1, id="one answer again and again"),
        pytest.param(0.09, 2, id="two in turn"),
    ],
)
def test_one_actors_burst_blocks_and_is_resolved(store: Store, apart_s: float, answers: int) -> None:
    assert bursting(store, 0, []) == []
    assert bursting(store, 1, by_one(1, 150, apart_s, answers)) == [("warning", "firing")]
    assert bursting(store, 2, by_one(2, 600, apart_s, answers)) == [("critical", "firing")]
    assert [alert.blocking for alert in monitor.open_alerts(store, P)] == [True]
    assert bursting(store, 3, []) == [("critical", "resolved")]


def test_the_edges_of_a_burst() -> None:
    def n(acts: list[Feedback]) -> int:
        return sum(monitor.in_bursts([Act(one.actor, one.interaction_id, one.created_at) for one in acts]))

    assert n(by_one(0, 10, 2.0)) == 0  # ten in a minute are still a person
    assert n(by_one(0, 11, 2.0)) == 11
    assert n(by_one(0, 11, 6.0)) == 0  # the eleventh comes when the minute is over
    assert n([*by_one(0, 5, 2.0), *by_one(1, 11, 2.0)]) == 11  # those before the burst are not of it
    assert n(by_one(0, 2, 0.9)) == 1  # the second click, on another answer
    assert n(by_one(0, 2, 1.0)) == 0
    assert n(by_one(0, 5, 0.1, answers=1)) == 0  # a thumb that changes its mind
    nobody = [Act(None, f"int_{i}", NOW) for i in range(50)]
    assert sum(monitor.in_bursts(nobody)) == 0


def test_signals_of_a_page_are_no_burst(store: Store) -> None:
    acts = [replace(act, kind=FeedbackKind.SIGNAL, value={"name": "copy"}) for act in by_one(0, 500, 0.05)]
    assert bursting(store, 0, acts) == []


def test_the_shipped_rules_are_ordered_as_their_direction_says() -> None:
    for rule in monitor.RULES:
        order = [rule.clear, rule.warn, rule.critical]
        assert order == sorted(order, reverse=rule.direction == Direction.FLOOR), rule.name
        assert len(set(order)) == 3, rule.name


def test_answers_that_grow_alike_fire_and_are_resolved(store: Store) -> None:
    """Each answer reads well by itself, none is longer and none repeats itself: a phrase comes back in two thirds of them."""
    rng = np.random.default_rng(7)
    phrase = "thank you for asking and please write to our support team about all of this".split()
    states = []
    for number, alike in enumerate([0.0, 0.0, 0.65, 0.0]):
        start = NOW + number * MINUTE
        rows: list[object] = []
        for i in range(50):
            own = [f"w{w}" for w in rng.integers(3000, size=30)]
            text = [*phrase, *own[len(phrase) :]] if rng.random() < alike else own
            rows += turn(start, f"u{number}-{i}", " ".join(text))
        store.add(*rows)
        found = monitor.measure(store, P, start, start + MINUTE)
        changed = monitor.evaluate_rules(store, P, start + MINUTE)
        states += [(number, alert.rule, alert.severity, str(alert.state)) for alert in changed]
        if number == 2:
            now, before = value(found, "self_bleu").value, np.mean([r.value for r in history(store, "self_bleu")[:-1]])
            assert value(found, "self_bleu_change").value == pytest.approx(1 - (1 - now) / (1 - before))
    assert states == [(2, "answers_echo", "critical", "firing"), (3, "answers_echo", "critical", "resolved")]


def history(store: Store, metric: str) -> list[Measurement]:
    return store.find(Measurement, metric=metric, order="window_end")


def test_stationary_traffic_is_quiet(store: Store) -> None:
    """30 windows of 60 turns with thumbs from one distribution: no shipped rule becomes critical."""
    rng = np.random.default_rng(5)
    for number in range(30):
        start = NOW + number * MINUTE
        rows: list[object] = []
        for i in range(60):
            said = bool(rng.random() < 0.6) if rng.random() < 0.6 else None
            rows += turn(start, f"u{number}-{i}", " ".join(rng.choice(list("abcdefgh"), rng.integers(5, 40))), said)
        store.add(*rows)
        monitor.measure(store, P, start, start + MINUTE)
        monitor.evaluate_rules(store, P, start + MINUTE)
    assert [alert.message for alert in store.find(Alert) if alert.severity == "critical"] == []
    assert store.find(Alert, state=AlertState.FIRING) == []
    assert len(history(store, "self_bleu_change")) == 29  # it was measured, and was quiet
