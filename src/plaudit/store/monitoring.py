"""What production did in a window: answers, thumbs, counts; and the measurements and alerts kept about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from plaudit.domain import (
    Completion,
    CompletionStatus,
    Feedback,
    FeedbackKind,
    Interaction,
    Json,
    Measurement,
    Message,
    Preference,
    Response,
    ResponseOrigin,
)
from plaudit.stats.abuse import Spoken
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES, moment

_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_RESPONSES = TABLES[Response]
_FEEDBACK = TABLES[Feedback]
_MEASUREMENTS = TABLES[Measurement]
_PREFERENCES = TABLES[Preference]


@dataclass(frozen=True)
class Answer:
    """The first response of an interaction, as users met it."""

    response_id: str
    interaction_id: str
    actor: str | None
    messages: tuple[Message, ...]
    text: str
    finish_reason: str | None
    n_tokens: int | None
    checkpoint_id: str | None


@dataclass(frozen=True)
class Thumb:
    """What a user said last about an answer; retracted ones are gone."""

    interaction_id: str
    actor: str | None
    arm: str | None
    attributes: Json
    up: bool


@dataclass(frozen=True)
class Act:
    """One piece of feedback as an event: who spoke about which answer, and when."""

    actor: str | None
    interaction_id: str
    at: datetime


@dataclass(frozen=True)
class Traffic:
    """Of interactions that ended in a window, with an answer or without."""

    n_interactions: int
    n_errors: int
    n_with_feedback: int


def traffic(tx: Transaction, project_id: str, start: datetime, end: datetime) -> Traffic:
    """Counts of the interactions that ended in [start, end), and of those, whenever they ended, that got feedback in it."""
    failed = sa.func.count().filter(_COMPLETIONS.c.status == CompletionStatus.ERROR)
    counts: tuple[sa.ColumnElement[Any], ...] = (sa.func.count().label("n"), failed.label("n_errors"))
    ended = sa.select(*counts).select_from(_COMPLETIONS).where(*_ended_within(project_id, start, end))
    spoken = (
        sa.select(sa.func.count(sa.distinct(_INTERACTIONS.c.id)).label("n"))
        .select_from(_INTERACTIONS.join(_FEEDBACK, _FEEDBACK.c.interaction_id == _INTERACTIONS.c.id))
        .where(*_said_within(project_id, start, end))
    )
    (found,) = tx.rows(ended)
    return Traffic(int(found["n"]), int(found["n_errors"]), int(tx.rows(spoken)[0]["n"]))


def answers(tx: Transaction, project_id: str, start: datetime, end: datetime, limit: int) -> list[Answer]:
    """The newest `limit` answers of the window, oldest first."""
    query = (
        sa.select(
            _RESPONSES.c.id,
            _RESPONSES.c.interaction_id,
            _INTERACTIONS.c.actor,
            _INTERACTIONS.c.messages,
            _RESPONSES.c.text,
            _RESPONSES.c.finish_reason,
            _RESPONSES.c.n_tokens,
            _RESPONSES.c.checkpoint_id,
        )
        .join(_INTERACTIONS, _INTERACTIONS.c.id == _RESPONSES.c.interaction_id)
        .join(_COMPLETIONS, _COMPLETIONS.c.id == _RESPONSES.c.interaction_id)
        .where(
            *_ended_within(project_id, start, end),
            _RESPONSES.c.idx == 0,
            _RESPONSES.c.origin.in_([ResponseOrigin.SERVED, ResponseOrigin.LOGGED]),
        )
        .order_by(_COMPLETIONS.c.created_at.desc(), _COMPLETIONS.c.id.desc())
        .limit(limit)
    )
    return [Answer(*row.values()) for row in reversed(tx.rows(query))]


def thumbs(tx: Transaction, project_id: str, start: datetime, end: datetime) -> list[Thumb]:
    """Thumbs given in [start, end), on answers of whenever: the last one of each user on each answer, unless retracted."""
    query = (
        sa.select(
            _FEEDBACK.c.interaction_id,
            _FEEDBACK.c.actor,
            _FEEDBACK.c.response_idx,
            _FEEDBACK.c.value,
            _FEEDBACK.c.retracted,
            _INTERACTIONS.c.arm,
            _INTERACTIONS.c.actor.label("unit"),
            _INTERACTIONS.c.attributes,
        )
        .join(_INTERACTIONS, _INTERACTIONS.c.id == _FEEDBACK.c.interaction_id)
        .where(*_said_within(project_id, start, end), _FEEDBACK.c.kind == FeedbackKind.THUMB)
        .order_by(_FEEDBACK.c.created_at, _FEEDBACK.c.id)
    )
    last = {(row["interaction_id"], row["actor"], row["response_idx"]): row for row in tx.rows(query)}
    return [
        Thumb(row["interaction_id"], row["unit"], row["arm"], row["attributes"], bool(row["value"]["up"]))
        for row in last.values()
        if not row["retracted"]
    ]


def acts(tx: Transaction, project_id: str, start: datetime, end: datetime) -> list[Act]:
    """`spoken`, each with its moment."""
    return [act(*one) for one in spoken(tx, project_id, start, end)]


def act(actor: str | None, interaction_id: str, at_us: int) -> Act:
    return Act(actor, interaction_id, moment(at_us))


def spoken(tx: Transaction, project_id: str, start: datetime, end: datetime) -> list[Spoken]:
    """What people said in [start, end) in order of time, changes and retractions too; signals are left out: a page sends them by itself.
    Read from the index `feedback_by_time` alone."""
    query = (
        sa.select(_FEEDBACK.c.actor, _FEEDBACK.c.interaction_id, _FEEDBACK.c.created_at)
        .where(*_said_within(project_id, start, end), _FEEDBACK.c.kind != FeedbackKind.SIGNAL)
        .order_by(_FEEDBACK.c.created_at, _FEEDBACK.c.id)
    )
    return tx.tuples(query)


def history(
    tx: Transaction, project_id: str, metric: str, labels: Json, since: datetime | None, until: datetime, limit: int
) -> list[Measurement]:
    """The newest `limit` measurements of windows within [since, until], oldest first."""
    found = _MEASUREMENTS.c
    where = [found.project_id == project_id, found.metric == metric, found.labels == labels, found.window_end <= until]
    if since is not None:
        where.append(found.window_start >= since)
    query = sa.select(_MEASUREMENTS).where(*where).order_by(found.window_end.desc(), found.id.desc()).limit(limit)
    return [Measurement(**row) for row in reversed(tx.rows(query))]


def first_interaction_at(tx: Transaction, project_id: str) -> datetime | None:
    query = sa.select(sa.func.min(_INTERACTIONS.c.created_at).label("at")).where(
        _INTERACTIONS.c.project_id == project_id
    )
    at: datetime | None = tx.rows(query)[0]["at"]
    return at


def new_preferences(tx: Transaction, project_id: str, since: datetime | None) -> int:
    """Preferences concluded after `since`."""
    query = sa.select(sa.func.count().label("n")).where(_PREFERENCES.c.project_id == project_id)
    if since is not None:
        query = query.where(_PREFERENCES.c.created_at > since)
    return int(tx.rows(query)[0]["n"])


def _ended_within(project_id: str, start: datetime, end: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """By their end, not their beginning: a window that closes while they are being answered would never see their answers."""
    at = _COMPLETIONS.c.created_at
    return _COMPLETIONS.c.project_id == project_id, at >= start, at < end


def _said_within(project_id: str, start: datetime, end: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    at = _FEEDBACK.c.created_at
    return _FEEDBACK.c.project_id == project_id, at >= start, at < end, _FEEDBACK.c.quarantine_id.is_(None)
