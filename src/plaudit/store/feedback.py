"""Queries of feedback chains. A row that no other row supersedes is the head of its chain; a retracted or quarantined head counts for
nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from plaudit.domain import (
    Completion,
    Feedback,
    FeedbackKind,
    IdempotencyKey,
    Interaction,
    Json,
    Quarantine,
    Response,
    ResponseOrigin,
)
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_FEEDBACK = TABLES[Feedback]
_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_RESPONSES = TABLES[Response]
_KEYS = TABLES[IdempotencyKey]
_QUARANTINES = TABLES[Quarantine]


def is_head() -> sa.ColumnElement[bool]:
    later = _FEEDBACK.alias("later")
    return ~sa.exists().where(later.c.supersedes == _FEEDBACK.c.id)


def was_rated(tx: Transaction, project_id: str) -> bool:
    """Whether an end user of the project ever gave a rating, also one taken back since."""
    here = _FEEDBACK.c.project_id == project_id, _FEEDBACK.c.kind == FeedbackKind.RATING
    return bool(tx.rows(sa.select(_FEEDBACK.c.id).where(*here).limit(1)))


# Built once: a statement costs more to build than to run.
_MANY = sa.bindparam("many", expanding=True, type_=sa.Text())
_LOCK = (
    sa.select(
        _INTERACTIONS.c.id,
        _INTERACTIONS.c.actor,
        _INTERACTIONS.c.sampling,
        _INTERACTIONS.c.created_at,
        _INTERACTIONS.c.erasure_id,
        _COMPLETIONS.c.id.is_not(None).label("completed"),
    )
    .outerjoin(_COMPLETIONS, _COMPLETIONS.c.id == _INTERACTIONS.c.id)
    .where(_INTERACTIONS.c.id.in_(_MANY), _INTERACTIONS.c.project_id == sa.bindparam("project", type_=sa.Text()))
    .order_by(_INTERACTIONS.c.id)  # one order for all, so that two batches cannot wait for each other
    .with_for_update(
        of=_INTERACTIONS
    )  # SQLite has no such clause and needs none: the transaction already holds the write lock
)
_INDICES = sa.select(_RESPONSES.c.interaction_id, _RESPONSES.c.idx).where(
    _RESPONSES.c.interaction_id.in_(_MANY), _RESPONSES.c.origin.in_([ResponseOrigin.SERVED, ResponseOrigin.LOGGED])
)
_HEADS = sa.select(_FEEDBACK).where(
    # As pairs: two lists beside each other make a database try every one of both.
    sa.tuple_(_FEEDBACK.c.interaction_id, _FEEDBACK.c.natural_key).in_(sa.bindparam("pairs", expanding=True)),
    is_head(),
)
_USED = sa.select(_KEYS).where(_KEYS.c.id.in_(_MANY))
_COMPLETED = sa.select(_COMPLETIONS.c.id).where(_COMPLETIONS.c.id == sa.bindparam("interaction", type_=sa.Text()))
_SHOWN = (
    sa.select(_RESPONSES)
    .where(
        _RESPONSES.c.interaction_id == sa.bindparam("interaction", type_=sa.Text()),
        _RESPONSES.c.origin.in_([ResponseOrigin.SERVED, ResponseOrigin.LOGGED]),
    )
    .order_by(_RESPONSES.c.idx)
)


@dataclass(frozen=True)
class Spoken:
    """An Interaction as feedback sees it. `indices`: of the responses that were shown; None while the answer is being written."""

    id: str
    actor: str | None
    sampling: Json
    created_at: datetime
    erased: bool
    indices: frozenset[int] | None


def lock_interactions(tx: Transaction, project_id: str, interaction_ids: Collection[str]) -> dict[str, Spoken]:
    """Those that exist, by id, held until the transaction ends, so that writers of one chain come one after another."""
    rows = tx.rows(_LOCK, {"many": sorted(interaction_ids), "project": project_id})
    shown: dict[str, set[int]] = {}
    for row in tx.rows(_INDICES, {"many": [row["id"] for row in rows]}):
        shown.setdefault(row["interaction_id"], set()).add(row["idx"])
    return {
        row["id"]: Spoken(
            row["id"],
            row["actor"],
            row["sampling"],
            row["created_at"],
            row["erasure_id"] is not None,
            frozenset(shown.get(row["id"], ())) if row["completed"] else None,
        )
        for row in rows
    }


def heads(tx: Transaction, chains: Collection[tuple[str, str]]) -> dict[str, Feedback]:
    """The newest row of each chain, given as (interaction id, natural key); by natural key, retracted or not."""
    rows = tx.rows(_HEADS, {"pairs": sorted(chains)}) if chains else ()
    return {row["natural_key"]: Feedback(**row) for row in rows}


def used_keys(tx: Transaction, ids: Collection[str]) -> dict[str, IdempotencyKey]:
    """The idempotency keys among `ids` that have acted, by id."""
    return {row["id"]: IdempotencyKey(**row) for row in tx.rows(_USED, {"many": sorted(ids)})} if ids else {}


def shown_responses(tx: Transaction, interaction_id: str) -> list[Response] | None:
    """What the user was shown, by index; None while the answer is still being written."""
    if not tx.rows(_COMPLETED, {"interaction": interaction_id}):
        return None
    return [Response(**row) for row in tx.rows(_SHOWN, {"interaction": interaction_id})]


def counts() -> tuple[sa.ColumnElement[bool], ...]:
    """What makes a row of feedback count: it is not retracted, and no Quarantine holds it."""
    return _FEEDBACK.c.retracted.is_(False), _FEEDBACK.c.quarantine_id.is_(None)


def quarantine(tx: Transaction, project_id: str, quarantine: Quarantine) -> int:
    """Hold everything that this actor said, or that was said on this Interaction, and that nothing holds yet; how many rows."""
    where = [_FEEDBACK.c.project_id == project_id, _FEEDBACK.c.quarantine_id.is_(None)]
    if quarantine.actor is not None:
        where.append(_FEEDBACK.c.actor == quarantine.actor)
    if quarantine.interaction_id is not None:
        where.append(_FEEDBACK.c.interaction_id == quarantine.interaction_id)
    assert len(where) > 2  # else it would be everything
    return tx.connection.execute(_FEEDBACK.update().where(*where).values(quarantine_id=quarantine.id)).rowcount


def give_back(tx: Transaction, quarantine_id: str) -> int:
    """End the hold of a Quarantine on its rows; how many."""
    held: Any = _FEEDBACK.update().where(_FEEDBACK.c.quarantine_id == quarantine_id).values(quarantine_id=None)
    return tx.connection.execute(held).rowcount


def held(tx: Transaction, project_id: str) -> dict[str, int]:
    """Rows that each Quarantine of the project holds now, those that came after it too."""
    query = (
        sa.select(_QUARANTINES.c.id, sa.func.count().label("n"))
        .join(_FEEDBACK, _FEEDBACK.c.quarantine_id == _QUARANTINES.c.id)
        .where(_QUARANTINES.c.project_id == project_id)
        .group_by(_QUARANTINES.c.id)
    )
    return {row["id"]: row["n"] for row in tx.rows(query)}


def current(
    tx: Transaction,
    project_id: str,
    kinds: Collection[FeedbackKind] = tuple(FeedbackKind),
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Feedback]:
    """What counts now: heads that are not retracted, oldest first; `since <= created_at < until`."""
    query = (
        sa.select(_FEEDBACK)
        .where(
            _FEEDBACK.c.project_id == project_id,
            _FEEDBACK.c.kind.in_(list(kinds)),
            *counts(),
            is_head(),
        )
        .order_by(_FEEDBACK.c.created_at, _FEEDBACK.c.id)
    )
    if since is not None:
        query = query.where(_FEEDBACK.c.created_at >= since)
    if until is not None:
        query = query.where(_FEEDBACK.c.created_at < until)
    return [Feedback(**row) for row in tx.rows(query)]
