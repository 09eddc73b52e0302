"""Queries of feedback chains. A row that no other row supersedes is the head of its chain; a retracted head counts for nothing."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from plaudit.domain import Completion, Feedback, FeedbackKind, Interaction, Response, ResponseOrigin
from plaudit.errors import NotFound
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_FEEDBACK = TABLES[Feedback]
_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_RESPONSES = TABLES[Response]


def _is_head() -> sa.ColumnElement[bool]:
    later = _FEEDBACK.alias("later")
    return ~sa.exists().where(later.c.supersedes == _FEEDBACK.c.id)


# Built once: a statement costs more to build than to run.
_LOCK = (
    sa.select(_INTERACTIONS)
    .where(
        _INTERACTIONS.c.id == sa.bindparam("interaction", type_=sa.Text()),
        _INTERACTIONS.c.project_id == sa.bindparam("project", type_=sa.Text()),
    )
    .with_for_update()  # SQLite has no such clause and needs none: the transaction already holds the write lock
)
_HEAD = sa.select(_FEEDBACK).where(_FEEDBACK.c.natural_key == sa.bindparam("natural_key", type_=sa.Text()), _is_head())
_COMPLETED = sa.select(_COMPLETIONS.c.id).where(_COMPLETIONS.c.id == sa.bindparam("interaction", type_=sa.Text()))
_SHOWN = (
    sa.select(_RESPONSES)
    .where(
        _RESPONSES.c.interaction_id == sa.bindparam("interaction", type_=sa.Text()),
        _RESPONSES.c.origin.in_([ResponseOrigin.SERVED, ResponseOrigin.LOGGED]),
    )
    .order_by(_RESPONSES.c.idx)
)


def lock_interaction(tx: Transaction, project_id: str, interaction_id: str) -> Interaction:
    """The Interaction, held until the transaction ends, so that writers of one chain come one after another. Raises NotFound."""
    found = tx.rows(_LOCK, {"interaction": interaction_id, "project": project_id})
    if not found:
        raise NotFound(f"There is no Interaction {interaction_id!r} in this project.")
    return Interaction(**found[0])


def shown_responses(tx: Transaction, interaction_id: str) -> list[Response] | None:
    """What the user was shown, by index; None while the answer is still being written."""
    if not tx.rows(_COMPLETED, {"interaction": interaction_id}):
        return None
    return [Response(**row) for row in tx.rows(_SHOWN, {"interaction": interaction_id})]


def head(tx: Transaction, natural_key: str) -> Feedback | None:
    """The newest row of a chain, retracted or not."""
    found = tx.rows(_HEAD, {"natural_key": natural_key})
    return Feedback(**found[0]) if found else None


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
            _FEEDBACK.c.retracted.is_(False),
            _is_head(),
        )
        .order_by(_FEEDBACK.c.created_at, _FEEDBACK.c.id)
    )
    if since is not None:
        query = query.where(_FEEDBACK.c.created_at >= since)
    if until is not None:
        query = query.where(_FEEDBACK.c.created_at < until)
    return [Feedback(**row) for row in tx.rows(query)]
