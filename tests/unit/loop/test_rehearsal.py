"""Experiments played before they start: simulated users, and stored traffic dealt anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from plaudit.loop import govern, rehearsal
from plaudit.loop.experiment import Rules
from plaudit.loop.rehearsal import Traffic
from plaudit.store import experiment as stored
from plaudit.store.database import Store, open_store

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
    effects = {"no change": 1.0, "harm": 2.5, "gain": 0.4}
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


def test_days_are_those_of_the_ramp() -> None:
    """One look a twentieth of 400 users; no decision before 200 users an arm: 20 users at 20 % of 100 a day, then all of them."""
    quiet = Traffic(users_per_day=100, feedback_rate=0.1, down_share=0.1)
    found = rehearsal.simulate(
        quiet, Rules(min_stage_users=1), (0.1, 0.5), {"x": 1.0}, 1, 400, np.random.default_rng(2)
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
        lambda: rehearsal.simulate(Traffic(9, 0, 0), Rules(), (0.5,), {"x": 1.0}, 1, 100, np.random.default_rng(0)),
        lambda: rehearsal.simulate(TRAFFIC, Rules(), (0.6,), {"x": 1.0}, 1, 100, np.random.default_rng(0)),
        lambda: rehearsal.simulate(TRAFFIC, Rules(), (0.5,), {"x": 0.0}, 1, 100, np.random.default_rng(0)),
        lambda: rehearsal.simulate(TRAFFIC, Rules(), (0.5,), {"x": 1.0}, 0, 100, np.random.default_rng(0)),
        lambda: rehearsal.simulate(TRAFFIC, Rules(), (0.5,), {"x": 1.0}, 1, 10, np.random.default_rng(0)),
    ],
)
def test_impossible_rehearsals_are_refused(broken) -> None:
    with pytest.raises(BadInput):
        broken()


def test_a_replay_counts_false_alarms_and_the_naive_test_has_more(store: Store) -> None:
    rng = np.random.default_rng(3)
    rows: list[object] = []
    for i in range(500):
        for turn in range(1 + int(rng.random() < 0.5)):
            rows += said(f"u{i}", 10 * i + turn, down=0 if rng.random() < 0.3 else None, ok=rng.random() > 0.05)
    store.add(*rows)
    found = rehearsal.replay(store, P, NOW, Rules(), n_runs=60, n_looks=8, seed=1)
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
        turns = stored.traffic(tx, P, NOW)
    early, late = (rehearsal._seen(turns[:end], ["a", "b"]) for end in (2, 3))
    assert (early.observed.n_down.tolist(), early.down.tolist()) == ([0, 0], [])
    assert (late.observed.n_down.tolist(), late.down.tolist(), late.error.tolist()) == ([1, 0], [0], [1])
    assert early.observed.returned.tolist() == [False, False]
    assert late.observed.returned.tolist() == [True, False]
