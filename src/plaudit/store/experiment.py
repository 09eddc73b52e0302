"""What an Experiment has observed, aggregated per user by the database: one pass over its interactions, nothing per message comes back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from plaudit.domain import (
    AuditEntry,
    Completion,
    CompletionStatus,
    Feedback,
    FeedbackKind,
    Interaction,
)
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_FEEDBACK = TABLES[Feedback]


@dataclass(frozen=True)
class Exposure:
    """One user in one arm; a user seen in both arms has two rows. `stage` is the one that enrolled them."""

    actor: str
    arm: str
    stage: int
    n_messages: int
    n_conversations: int
    n_with_feedback: int
    n_up: int
    n_down: int


@dataclass(frozen=True)
class FirstEvent:
    """A user's first event of a kind, with the candidate's assignment probability in force when it happened."""

    actor: str
    arm: str
    probability: float
    at: datetime


@dataclass(frozen=True)
class Turn:
    """One message of a user, of whatever release: when, in which conversation, when it first got a thumbs-down, when it failed."""

    actor: str
    at: datetime
    conversation_id: str
    has_thumb: bool
    down_at: datetime | None
    error_at: datetime | None


def traffic(tx: Transaction, project_id: str, since: datetime) -> list[Turn]:
    """Every message of named users since then, in order of time, in an experiment or not."""
    thumb = sa.and_(_FEEDBACK.c.interaction_id == _INTERACTIONS.c.id, _FEEDBACK.c.kind == FeedbackKind.THUMB)
    failed = sa.and_(_COMPLETIONS.c.id == _INTERACTIONS.c.id, _COMPLETIONS.c.status == CompletionStatus.ERROR)
    query = (
        sa.select(
            _INTERACTIONS.c.actor,
            _INTERACTIONS.c.created_at,
            _INTERACTIONS.c.conversation_id,
            sa.func.count(_FEEDBACK.c.id).label("n_thumbs"),
            sa.func.min(sa.case((_up(False), _FEEDBACK.c.created_at))).label("down_at"),
            sa.func.min(_COMPLETIONS.c.created_at).label("error_at"),
        )
        .join(_FEEDBACK, thumb, isouter=True)
        .join(_COMPLETIONS, failed, isouter=True)
        .where(
            _INTERACTIONS.c.project_id == project_id,
            _INTERACTIONS.c.actor.is_not(None),
            _INTERACTIONS.c.created_at >= since,
        )
        .group_by(
            _INTERACTIONS.c.id, _INTERACTIONS.c.actor, _INTERACTIONS.c.created_at, _INTERACTIONS.c.conversation_id
        )
        .order_by(_INTERACTIONS.c.created_at, _INTERACTIONS.c.id)
    )
    return [
        Turn(
            row["actor"],
            row["created_at"],
            row["conversation_id"],
            row["n_thumbs"] > 0,
            row["down_at"],
            row["error_at"],
        )
        for row in tx.rows(query)
    ]


def exposures(tx: Transaction, experiment_id: str) -> list[Exposure]:
    """Users of an experiment with their messages and thumbs, by the assigned arm. A thumb that was changed or retracted later has still
    happened: it counts for both of its values, so that no figure of a past look can be revised."""
    of = _of(experiment_id)
    seen = (
        sa.select(
            _INTERACTIONS.c.actor,
            _INTERACTIONS.c.arm,
            sa.func.min(_INTERACTIONS.c.stage).label("stage"),
            sa.func.count().label("n_messages"),
            sa.func.count(sa.distinct(_INTERACTIONS.c.conversation_id)).label("n_conversations"),
        )
        .where(*of)
        .group_by(_INTERACTIONS.c.actor, _INTERACTIONS.c.arm)
    )
    thumbs = (
        sa.select(
            _INTERACTIONS.c.actor,
            _INTERACTIONS.c.arm,
            sa.func.count(sa.distinct(_INTERACTIONS.c.id)).label("n_with_feedback"),
            sa.func.count(sa.distinct(sa.case((_up(True), _INTERACTIONS.c.id)))).label("n_up"),
            sa.func.count(sa.distinct(sa.case((_up(False), _INTERACTIONS.c.id)))).label("n_down"),
        )
        .join(_FEEDBACK, _FEEDBACK.c.interaction_id == _INTERACTIONS.c.id)
        .where(*of, _FEEDBACK.c.kind == FeedbackKind.THUMB, _FEEDBACK.c.quarantine_id.is_(None))
        .group_by(_INTERACTIONS.c.actor, _INTERACTIONS.c.arm)
    )
    counted = {(row["actor"], row["arm"]): row for row in tx.rows(thumbs)}
    found = []
    for row in tx.rows(seen):
        thumb = counted.get((row["actor"], row["arm"]))
        counts = (thumb["n_with_feedback"], thumb["n_up"], thumb["n_down"]) if thumb else (0, 0, 0)
        found.append(Exposure(*row.values(), *counts))
    return sorted(found, key=lambda exposure: (exposure.actor, exposure.arm))


def first_thumbs_down(tx: Transaction, experiment_id: str) -> list[FirstEvent]:
    """Each user's first thumbs-down, in order of time."""
    query = (
        sa.select(
            _INTERACTIONS.c.actor,
            _INTERACTIONS.c.arm,
            _INTERACTIONS.c.assignment_probability,
            sa.func.min(_FEEDBACK.c.created_at).label("at"),
        )
        .join(_FEEDBACK, _FEEDBACK.c.interaction_id == _INTERACTIONS.c.id)
        .where(
            *_of(experiment_id), _FEEDBACK.c.kind == FeedbackKind.THUMB, _FEEDBACK.c.quarantine_id.is_(None), _up(False)
        )
    )
    return _first(tx, query)


def first_errors(tx: Transaction, experiment_id: str) -> list[FirstEvent]:
    """Each user's first answer that failed, in order of time."""
    query = (
        sa.select(
            _INTERACTIONS.c.actor,
            _INTERACTIONS.c.arm,
            _INTERACTIONS.c.assignment_probability,
            sa.func.min(_COMPLETIONS.c.created_at).label("at"),
        )
        .join(_COMPLETIONS, _COMPLETIONS.c.id == _INTERACTIONS.c.id)
        .where(*_of(experiment_id), _COMPLETIONS.c.status == CompletionStatus.ERROR)
    )
    return _first(tx, query)


def ledger_version(tx: Transaction, project_id: str) -> int:
    """Number of the last audit entry: every change of a Release or an Experiment raises it."""
    audit = TABLES[AuditEntry]
    query = sa.select(sa.func.max(audit.c.seq).label("seq")).where(audit.c.project_id == project_id)
    return int(tx.rows(query)[0]["seq"] or 0)


def _of(experiment_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return _INTERACTIONS.c.experiment_id == experiment_id, _INTERACTIONS.c.actor.is_not(None)


def _up(up: bool) -> sa.ColumnElement[bool]:
    """Whether a thumb's JSON value says so; the store writes JSON without spaces."""
    return sa.type_coerce(_FEEDBACK.c.value, sa.Text).like(f'%"up":{"true" if up else "false"}%')


def _first(tx: Transaction, query: sa.Select[tuple[str, str, float, datetime]]) -> list[FirstEvent]:
    """One row per user: the earliest of the groups, one per assignment probability that was in force."""
    keys = (_INTERACTIONS.c.actor, _INTERACTIONS.c.arm, _INTERACTIONS.c.assignment_probability)
    events: dict[str, FirstEvent] = {}
    for row in tx.rows(query.group_by(*keys)):
        event = FirstEvent(*row.values())
        if event.actor not in events or event.at < events[event.actor].at:
            events[event.actor] = event
    return sorted(events.values(), key=lambda event: (event.at, event.actor))
