from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plaudit.domain import Assignment, Interaction, Outcome, Project
from plaudit.errors import BadInput, Conflict
from plaudit.loop import outcomes
from plaudit.store import outcomes as stored
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def bought(user: str = "ada", value: Any = 9.5, at: str = "2026-03-01T10:00:00+02:00", **more: Any) -> dict[str, Any]:
    return {"user": user, "name": "purchase", "value": value, "at": at, **more}


def test_the_same_outcome_is_recorded_once_however_it_is_sent(store: Store, project: Project) -> None:
    batch = [
        bought(),
        bought(at="2026-03-01T08:00:00Z"),
        bought(value=1),
        bought(key="o-1"),
        bought(key="o-1"),
        bought(key="o-1", value=2),
    ]
    results = outcomes.record(store, project.id, batch, NOW)
    assert [getattr(one, "replayed", type(one)) for one in results] == [False, True, False, False, True, Conflict]
    again = outcomes.record(store, project.id, batch[:1], NOW + timedelta(days=1))
    assert [getattr(one, "replayed", None) for one in again] == [True]
    assert sorted(one.value for one in store.find(Outcome)) == [1.0, 9.5, 9.5]
    assert outcomes.record(store, "prj_other", [bought(key="o-1")], NOW)[0].replayed is False  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (bought(value="9"), "value is"),
        (bought(value=True), "value is"),
        (bought(value=1e16), "value is"),
        (bought(user=""), "user"),
        (bought(at="2026-03-01"), "at is"),
        ({"user": "a", "name": "n", "value": 1}, "at is missing"),
        (bought(price=1), "price"),
        (7, "The outcome"),
    ],
)
def test_a_malformed_outcome_is_refused_by_field(store: Store, project: Project, body: Any, said: str) -> None:
    (error,) = outcomes.record(store, project.id, [body], NOW)
    assert isinstance(error, BadInput)
    assert said in error.message
    assert store.count(Outcome) == 0


def test_outcomes_join_their_users_assignment_from_its_first_turn_on(
    store: Store, project: Project, chat: Callable[..., Interaction]
) -> None:
    def turn(actor: str, arm: str, hour: int) -> None:
        chat(actor=actor, assignment=Assignment("rel", "exp_1", arm, 0, 0.5), now=NOW + timedelta(hours=hour))

    turn("ada", "candidate", 2)
    turn("ada", "candidate", 3)
    turn("bob", "control", 0)
    turn("eve", "control", 0)
    chat(actor="out", now=NOW)

    def at(hour: int) -> str:
        return (NOW + timedelta(hours=hour)).isoformat()

    batch = [
        bought("ada", 100, at(1)),  # before the assignment
        bought("ada", 5, at(2)),
        bought("ada", 7, at(9)),
        bought("bob", 2, at(1)),
        bought("out", 50, at(1)),
        {**bought("bob", 1, at(1)), "name": "ticket"},
    ]
    outcomes.record(store, project.id, batch, NOW)
    with store.read() as tx:
        found = stored.per_user(tx, project.id, "exp_1", "purchase")
    assert [(one.actor, one.arm, one.n, one.total) for one in found] == [
        ("ada", "candidate", 2, 12.0),
        ("bob", "control", 1, 2.0),
        ("eve", "control", 0, 0.0),
    ]
