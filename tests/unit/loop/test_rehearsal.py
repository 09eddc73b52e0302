"""Experiments played before they start: simulated users, and stored traffic dealt anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from plaudit.domain import (
    Completion,
    CompletionStatus,
    Feedback,
    FeedbackKind,
    Interaction,
    InteractionSource,
    new_id,
)
from plaudit.errors import BadInput, NotFound
from plaudit.loop import govern, outcomes, rehearsal
from plaudit.loop.experiment import Rules
from plaudit.loop.metrics import PerUser
from plaudit.loop.rehearsal import Crowd, Effect, Traffic
from plaudit.stats.looks import Metric
from plaudit.store import experiment as stored
from plaudit.store.database import Store, open_store
from plaudit.store.experiment import Window

NOW = datetime(2026, 1, 1, tzinfo=UTC)
P = "prj_default"
TRAFFIC = Traffic(users_per_day=200, feedback_rate=0.3, down_share=0.4)


@pytest.fixture
def store(tmp_path: Path, with_schema: Callable[[Path], str]) -> Iterator[Store]:
    opened = open_store(with_schema(tmp_path / "store.sqlite"))
    govern.ensure_project(opened, NOW)
    yield opened
    opened.close()


def said(
    actor: str | None,
    minutes: int,
    conversation: str = "c",
    *,
    down: int | None = None,
    up: bool = False,
    ok: bool = True,
) -> list[object]:
    """A message with its completion, a thumbs-down after so many minutes more, a thumbs-up at once."""
    at = NOW + timedelta(minutes=minutes)
    interaction = Interaction(
        id=new_id(Interaction),
        project_id=P,
        conversation_id=conversation,
        turn=1,
        actor=actor,
        messages=(),
        family="f",
        prompt_sha256="",
        source=InteractionSource.GATEWAY,
        release_id=None,
        served_release_id=None,
        experiment_id=None,
        arm=None,
        stage=None,
        assignment_probability=None,
        created_at=at,
    )
    status = CompletionStatus.OK if ok else CompletionStatus.ERROR
    rows: list[object] = [
        interaction,
        Completion(id=interaction.id, project_id=P, status=status, model="m", created_at=at + timedelta(seconds=1)),
    ]
    for is_up, later in [(True, 0)] * up + [(False, down)] * (down is not None):
        rows.append(
            Feedback(
                id=new_id(Feedback),
                project_id=P,
                interaction_id=interaction.id,
                response_idx=0,
                kind=FeedbackKind.THUMB,
                value={"up": is_up},
                actor=actor,
                natural_key=None,
                body_sha256="",
                created_at=at + timedelta(minutes=later or 0),
            )
        )
    return rows


def test_traffic_is_every_message_of_a_named_user_once(store: Store) -> None:
    store.add(
        *said("a", 0, down=5, up=True),
        *said("b", 1, ok=False),
        *said(None, 2, down=1),
        *said("a", -10),
        *said("a", 3, "d"),
    )
    with store.read() as tx:
        turns = stored.traffic(tx, P, NOW)
        assert stored.traffic(tx, "prj_other", NOW) == []
    assert [(turn.actor, turn.conversation_id, turn.has_thumb) for turn in turns] == [
        ("a", "c", True),
        ("b", "c", False),
        ("a", "d", False),
    ]
    assert turns[0].down_at == NOW + timedelta(minutes=5)
    assert turns[1].error_at == NOW + timedelta(minutes=1, seconds=1)
    assert [turn.down_at for turn in turns[1:]] == [None, None]


def test_what_is_measured_is_what_happened(store: Store) -> None:
    for i in range(10):
        store.add(*said(f"u{i}", i * 288, down=0 if i < 2 else None, up=2 <= i < 5))  # one each 0.2 days
    store.add(*said("u0", 2592 + 288, "again"))
    found = rehearsal.measure(store, P, NOW)
    assert found == Traffic(
        users_per_day=10 / 2.0,
        feedback_rate=5 / 11,
        down_share=2 / 5,
        messages_per_user=1.1,
        return_fraction=0.1,
        n_users=10,
    )
    assert found.down_per_message == pytest.approx(2 / 11)
    with pytest.raises(NotFound, match="0 named users since 2027-01-01; give --feedback-rate"):
        rehearsal.measure(store, P, NOW + timedelta(days=365))


def test_simulated_experiments_end_as_their_effect_asks() -> None:
    effects = rehearsal.effects(2.5, 0.4, (), {})
    found = rehearsal.simulate(
        TRAFFIC, Rules(), (0.1, 0.5), effects, n_runs=12, max_users=1200, rng=np.random.default_rng(1)
    )["effects"]
    assert found["harm"]["verdicts"]["roll_back"]["mean"] >= 0.9
    assert found["gain"]["verdicts"]["promote"]["mean"] >= 0.9
    assert found["no change"]["verdicts"]["roll_back"]["mean"] <= 0.25
    harm = found["harm"]
    assert harm["n_candidate"]["p95"] < harm["n_users"]["p95"] <= 1200
    assert harm["n_users"]["median"] < found["no change"]["n_users"]["median"]
    assert found["no change"]["read_once_users"] is None
    assert found["gain"]["read_once_users"] > harm["read_once_users"] > 0


BOUGHT, LIKED = Metric("outcome:bought", "goal", "up"), Metric("thumbs_up", "guardrail", "up")


def crowd(rng: np.random.Generator, alike: bool = True, n: int = 400) -> Crowd:
    """Five messages a user; whether one likes all of them or none, or each alone; what they buy goes with what they bought before."""
    counts = np.full(n, 5)
    liked = counts * (rng.random(n) < 0.5) if alike else rng.binomial(counts, 0.5)
    before = rng.normal(10, 2, n)
    bought = PerUser(before + rng.normal(0, 1, n), np.ones(n), before)
    nobody = np.zeros(n, dtype=bool)
    declared = {"thumbs_up": PerUser(liked.astype(float), counts.astype(float)), "outcome:bought": bought}
    return Crowd(counts, rng.binomial(counts, 0.05), liked, counts, rng.random(n) < 0.4, nobody, declared)


def test_declared_metrics_are_rehearsed_on_whole_stored_users() -> None:
    rng = np.random.default_rng(4)
    declared, users = (BOUGHT, LIKED), crowd(rng)
    asked = rehearsal.effects(1.0, 1.0, declared, {"outcome:bought": 0.4, "thumbs_up": 0.3})
    assert asked["harm"] == Effect(1.0, {"outcome:bought": -0.4, "thumbs_up": -0.3})
    found = rehearsal.simulate(TRAFFIC, Rules(), (0.5,), asked, 6, 1000, rng, declared, users)["effects"]
    same, harm, gain = ({one["name"]: one for one in found[name]["metrics"]} for name in ("no change", "harm", "gain"))
    assert same["outcome:bought"]["met"]["mean"] <= 0.25
    assert same["thumbs_up"]["fired"]["mean"] <= 0.25
    assert harm["thumbs_up"]["fired"]["mean"] >= 0.9
    assert found["harm"]["verdicts"]["roll_back"]["mean"] >= 0.9
    assert gain["outcome:bought"]["met"]["mean"] >= 0.9
    assert found["gain"]["verdicts"]["promote"]["mean"] >= 0.9
    assert (gain["outcome:bought"]["moved"], harm["outcome:bought"]["moved"]) == (0.4, -0.4)
    # Of a correlation of 2/sqrt(5) CUPED leaves a fifth: variance 1 of 5. Thumbs have no past.
    assert gain["outcome:bought"]["variance_fraction"] == pytest.approx(0.2, abs=0.06)
    assert gain["thumbs_up"]["variance_fraction"] is None
    # 4 (1.96 + .84)^2 sd^2 / d^2, a user's sd of whole agreement being .5, and .5 / sqrt(5) where messages are alone.
    assert gain["outcome:bought"]["read_once_users"] == pytest.approx(31.4 / 0.16, rel=0.15)
    assert harm["thumbs_up"]["read_once_users"] == pytest.approx(31.4 * 0.25 / 0.09, rel=0.02)
    assert gain["thumbs_up"]["read_once_users"] is same["outcome:bought"]["read_once_users"] is None
    alone = rehearsal._read_once_of(LIKED, crowd(rng, alike=False).declared["thumbs_up"], -0.3)
    assert alone == pytest.approx(harm["thumbs_up"]["read_once_users"] / 5, rel=0.25)
    # A margin brings a goal nearer, and puts a guardrail's harm further off.
    values = users.declared["outcome:bought"]
    plain, near = (
        rehearsal._read_once_of(Metric("outcome:bought", "goal", "up", margin), values, 0.4) for margin in (0, 0.4)
    )
    assert plain == pytest.approx(4 * near, abs=4)
    half = replace(values, counts=np.arange(400) % 2.0)  # every second user has a value: twice as many are needed
    assert rehearsal._read_once_of(BOUGHT, half, 0.4) == pytest.approx(2 * plain, rel=0.2)
    assert rehearsal._read_once_of(Metric("outcome:bought", "guardrail", "up", 0.5), values, -0.4) is None


def test_a_candidate_changes_its_own_users_alone() -> None:
    rng = np.random.default_rng(5)
    users, chosen = crowd(rng), np.arange(400) < 200
    effect = Effect(2.0, {"thumbs_up": 0.2, "outcome:bought": -3.0})
    changed = rehearsal._changed(users, users, effect, chosen, rng)
    assert changed.taken(np.arange(200, 400)).n_down.tolist() == users.n_down[200:].tolist()
    bought = changed.declared["outcome:bought"].sums - users.declared["outcome:bought"].sums
    assert bought == pytest.approx(np.where(chosen, -3.0, 0.0))
    liked = changed.declared["thumbs_up"].sums - users.declared["thumbs_up"].sums
    assert not liked[200:].any()
    assert liked[:200].sum() / 1000 == pytest.approx(0.2, abs=0.05)
    assert (changed.declared["thumbs_up"].sums <= 5).all()
    assert changed.n_down[:200].sum() / users.n_down[:200].sum() == pytest.approx(2, abs=0.5)
    # What every experiment judges is moved with the declared metric of the same thing.
    down = PerUser(users.n_down.astype(float), users.n_messages.astype(float))
    again = replace(users, declared={"thumbs_down": down})
    worse = rehearsal._changed(again, again, Effect(moved={"thumbs_down": 0.3}), chosen, rng)
    assert worse.n_down.tolist() == worse.declared["thumbs_down"].sums.tolist()
    assert worse.n_down[:200].sum() > 3 * users.n_down[:200].sum()


def test_days_are_those_of_the_ramp() -> None:
    """One look a twentieth of 400 users; no decision before 200 users an arm: 20 users at 20 % of 100 a day, then all of them."""
    quiet = Traffic(users_per_day=100, feedback_rate=0.1, down_share=0.1)
    found = rehearsal.simulate(
        quiet, Rules(min_stage_users=1), (0.1, 0.5), {"x": Effect()}, 1, 400, np.random.default_rng(2)
    )
    (run,) = found["effects"].values()
    assert run["n_users"]["median"] == 400
    assert run["days"]["median"] == pytest.approx(20 / 20 + 380 / 100)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: Traffic(0, 0.1, 0.1),
        lambda: Traffic(10, 1.1, 0.1),
        lambda: Traffic(10, 0.1, 0.1, messages_per_user=0.5),
        lambda: rehearsal.simulate(
            Traffic(9, 0, 0), Rules(), (0.5,), {"x": Effect()}, 1, 100, np.random.default_rng(0)
        ),
        lambda: rehearsal.simulate(TRAFFIC, Rules(), (0.6,), {"x": Effect()}, 1, 100, np.random.default_rng(0)),
        lambda: rehearsal.simulate(TRAFFIC, Rules(), (0.5,), {"x": Effect(0.0)}, 1, 100, np.random.default_rng(0)),
        lambda: rehearsal.simulate(TRAFFIC, Rules(), (0.5,), {"x": Effect()}, 0, 100, np.random.default_rng(0)),
        lambda: rehearsal.simulate(TRAFFIC, Rules(), (0.5,), {"x": Effect()}, 1, 10, np.random.default_rng(0)),
    ],
)
def test_impossible_rehearsals_are_refused(broken) -> None:
    with pytest.raises(BadInput):
        broken()


@pytest.mark.parametrize(
    ("declared", "amounts", "said"),
    [
        ((BOUGHT,), {}, "Say it with --effect outcome:bought=0.05"),
        ((BOUGHT,), {"outcome:bought": 0.0}, "above 0"),
        ((LIKED,), {"rating": 1.0}, "'rating', which is no metric"),
    ],
)
def test_effects_that_cannot_be_rehearsed(declared, amounts, said) -> None:
    with pytest.raises(BadInput, match=said):
        rehearsal.effects(1.0, 1.0, declared, amounts)


def test_no_share_leaves_0_to_1() -> None:
    asked, rng = {"x": Effect(moved={"thumbs_up": -0.9})}, np.random.default_rng(6)
    with pytest.raises(BadInput, match=r"thumbs_up is 0\.\d+ today; a difference of 0\.9 either way leaves 0 to 1"):
        rehearsal.simulate(TRAFFIC, Rules(), (0.5,), asked, 1, 100, rng, (LIKED,), crowd(rng))


def test_a_replay_counts_false_alarms_and_the_naive_test_has_more(store: Store) -> None:
    rng = np.random.default_rng(3)
    rows: list[object] = []
    sold, later = [], NOW + timedelta(days=3)
    for i in range(500):
        sold.append({"user": f"u{i}", "name": "bought", "value": float(rng.lognormal()), "at": later.isoformat()})
        for turn in range(1 + int(rng.random() < 0.5)):
            rows += said(f"u{i}", 10 * i + turn, down=0 if rng.random() < 0.3 else None, ok=rng.random() > 0.05)
    store.add(*rows, *said("u0", 60 * 24 * 4))
    outcomes.record(store, P, sold, later)
    declared = (
        BOUGHT,
        replace(LIKED, role="goal", margin=1.0),
    )
    found = rehearsal.replay(store, P, NOW, Rules(), n_runs=60, n_looks=8, seed=1, declared=declared)
    assert found["false_goals"].keys() == {"outcome:bought"}  # to be met within a margin is no false alarm
    assert found["false_goals"]["outcome:bought"]["mean"] <= 0.15
    users = rehearsal.population(store, Window(P, NOW, NOW + timedelta(days=9)), declared)
    told = [row for row in rows if isinstance(row, Interaction)]
    failed = {row.id for row in rows if isinstance(row, Completion) and row.status == CompletionStatus.ERROR}
    assert (len(users.n_messages), int(users.n_messages.sum())) == (500, len(told) + 1)
    assert int(users.failed.sum()) == len({row.actor for row in told if row.id in failed}) > 20
    assert users.declared["outcome:bought"].sums.sum() == pytest.approx(
        sum(one["value"] for one in sold[:433])  # the others came after it
    )
    with pytest.raises(NotFound, match="0 users since 2026-01-01 have a value of rating; at least 20"):
        rehearsal.population(store, Window(P, NOW, NOW + timedelta(days=9)), (Metric("rating", "monitor", "up"),))
    assert (found["n_users"], found["n_looks"], found["enough_users"]) == (500, 8, True)
    assert found["false_rollbacks"]["mean"] <= 0.15  # alpha .05: more than 9 of 60 happen less than once in a thousand
    assert found["naive"]["mean"] > found["false_rollbacks"]["mean"]
    assert found["naive"]["mean"] > 0.08
    assert sum(found["first_fired"].values()) == round(found["false_rollbacks"]["mean"] * 60)
    again = [rehearsal.replay(store, P, NOW, Rules(), 5, 2, seed) for seed in (1, 1)]
    assert again[0] == again[1]
    with pytest.raises(NotFound, match="0 named users"):
        rehearsal.replay(store, P, NOW + timedelta(days=365), Rules(), 10, 8, seed=1)
    with pytest.raises(BadInput, match="looks 0"):
        rehearsal.replay(store, P, NOW, Rules(), 10, 0, seed=1)


def test_a_look_of_a_replay_knows_nothing_of_later(store: Store) -> None:
    store.add(*said("a", 0, down=15), *said("b", 10, ok=False), *said("a", 20, "d"))
    with store.read() as tx:
        early, late = (
            rehearsal._seen(tx, Window(P, NOW, NOW + timedelta(minutes=end)), ["a", "b"], ()) for end in (11, 20)
        )
    assert (early.observed.n_down.tolist(), early.down.tolist()) == ([0, 0], [])
    assert (late.observed.n_down.tolist(), late.down.tolist(), late.error.tolist()) == ([1, 0], [0], [1])
    assert early.observed.returned.tolist() == [False, False]
    assert late.observed.returned.tolist() == [True, False]
