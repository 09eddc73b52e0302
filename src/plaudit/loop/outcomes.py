"""Outcomes: the business's own metrics (a purchase, a ticket that stayed solved), per user and time, joined with assignments later.

An Outcome is identified by the sender's own `key`, such as an order's number; without one by user, name, value and time. The same one again
changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from plaudit.artifacts import sha256_of
from plaudit.domain import Outcome, new_id
from plaudit.errors import Conflict, PlauditError
from plaudit.loop import shapes
from plaudit.store import outcomes as stored
from plaudit.store.database import Store

MAX_NAME_CHARS = 200
LARGEST = 1e15
OUTCOME = shapes.shape(
    {
        "user": shapes.text(MAX_NAME_CHARS, "The pseudonym that the turns had."),
        "name": shapes.text(MAX_NAME_CHARS, "Such as `purchase`."),
        "value": shapes.real(-LARGEST, LARGEST),
        "at": shapes.MOMENT,
    },
    {"key": shapes.text(MAX_NAME_CHARS, "Yours, such as an order's number: one key is one outcome.")},
)
COLUMNS = tuple(OUTCOME["properties"])


@dataclass(frozen=True)
class Recorded:
    outcome: Outcome
    replayed: bool


def record(store: Store, project_id: str, bodies: Sequence[Any], now: datetime) -> list[Recorded | PlauditError]:
    """Store each {user, name, value, at, key?}, in one transaction. What is wrong with one is its result: BadInput (malformed), Conflict
    (its key was used for another outcome)."""
    read = [_attempt(project_id, body, now) for body in bodies]
    results: list[Recorded | PlauditError] = []
    with store.write() as tx:
        known = stored.by_key(tx, project_id, {one.key for one in read if isinstance(one, Outcome)})
        new = []
        for one in read:
            if isinstance(one, PlauditError):
                results.append(one)
                continue
            before = known.get(one.key)
            if before is None:
                known[one.key] = one
                new.append(one)
                results.append(Recorded(one, replayed=False))
            elif before.body_sha256 == one.body_sha256:
                results.append(Recorded(before, replayed=True))
            else:
                results.append(
                    Conflict(f"key {one.key!r} was used before for another outcome; use a new key for a new one.")
                )
        tx.add(*new)
    return results


def _attempt(project_id: str, body: Any, now: datetime) -> Outcome | PlauditError:
    try:
        return _read(project_id, body, now)
    except PlauditError as error:
        return error


def _read(project_id: str, body: Any, now: datetime) -> Outcome:
    said = shapes.read(body, "The outcome", OUTCOME)
    actor, name, value, at = said["user"], said["name"], said["value"], said["at"]
    digest = sha256_of([actor, name, value, at.isoformat()])
    return Outcome(
        id=new_id(Outcome),
        project_id=project_id,
        actor=actor,
        name=name,
        value=value,
        at=at,
        key=said["key"] or f"sha256:{digest}",
        body_sha256=digest,
        created_at=now,
    )
