"""What an Experiment has observed, aggregated per user by the database: one pass over its interactions, nothing per message comes back. The
same of a `Window` of all traffic, to rehearse an experiment on what it would have observed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from plaudit.domain import (
    AuditEntry,
    Completion,
    CompletionStatus,
    Feedback,
    FeedbackKind,
    Interaction,
    Response,
    ResponseScore,
)
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_FEEDBACK = TABLES[Feedback]
_RESPONSES = TABLES[Response]
_SCORES = TABLES[ResponseScore]


@dataclass(frozen=True)
class Window:
    """Named users of a project from `since` to `until`, whatever answered them, by what was known at `until`. All are of one arm, ""."""

    project_id: str
    since: datetime
    until: datetime


Scope = str | Window  # an Experiment's id, or all traffic


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
class UserSum:
    """What one user did in one arm by one metric: a sum over `n` things."""

    actor: str
    arm: str
    total: float
    n: int


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
    thumb = sa.and_(
        _FEEDBACK.c.interaction_id == _INTERACTIONS.c.id,
        _FEEDBACK.c.kind == FeedbackKind.THUMB,
        _FEEDBACK.c.quarantine_id.is_(None),
    )
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


def exposures(tx: Transaction, of: Scope, arms: Collection[str] = ()) -> list[Exposure]:
    """Users of these arms (a window has none) with their messages and thumbs, by the assigned arm. A thumb that was changed or retracted later
    has still happened: it counts for both of its values, so that no figure of a past look can be revised."""
    where = (*within(of), *_of_arms(of, arms))
    seen = (
        sa.select(
            _INTERACTIONS.c.actor,
            arm(of),
            sa.func.coalesce(sa.func.min(_INTERACTIONS.c.stage), 0).label("stage"),
            sa.func.count().label("n_messages"),
            sa.func.count(sa.distinct(_INTERACTIONS.c.conversation_id)).label("n_conversations"),
        )
        .where(*where)
        .group_by(*keys(of))
    )
    thumbs = (
        sa.select(
            _INTERACTIONS.c.actor,
            arm(of),
            sa.func.count(sa.distinct(_INTERACTIONS.c.id)).label("n_with_feedback"),
            sa.func.count(sa.distinct(sa.case((_up(True), _INTERACTIONS.c.id)))).label("n_up"),
            sa.func.count(sa.distinct(sa.case((_up(False), _INTERACTIONS.c.id)))).label("n_down"),
        )
        .join(_FEEDBACK, _FEEDBACK.c.interaction_id == _INTERACTIONS.c.id)
        .where(*where, *_given(of, FeedbackKind.THUMB))
        .group_by(*keys(of))
    )
    counted = {(row["actor"], row["arm"]): row for row in tx.rows(thumbs)}
    found = []
    for row in tx.rows(seen):
        thumb = counted.get((row["actor"], row["arm"]))
        counts = (thumb["n_with_feedback"], thumb["n_up"], thumb["n_down"]) if thumb else (0, 0, 0)
        found.append(Exposure(*row.values(), *counts))
    return sorted(found, key=lambda exposure: (exposure.actor, exposure.arm))


def first_thumbs_down(tx: Transaction, of: Scope, arms: Collection[str] = ()) -> list[FirstEvent]:
    """Each user's first thumbs-down, in order of time."""
    query = (
        sa.select(
            _INTERACTIONS.c.actor,
            arm(of),
            sa.func.coalesce(_INTERACTIONS.c.assignment_probability, 0.5).label("probability"),
            sa.func.min(_FEEDBACK.c.created_at).label("at"),
        )
        .join(_FEEDBACK, _FEEDBACK.c.interaction_id == _INTERACTIONS.c.id)
        .where(
            *within(of),
            *_of_arms(of, arms),
            *_given(of, FeedbackKind.THUMB),
            _up(False),
        )
    )
    return _first(tx, of, query)


def first_errors(tx: Transaction, of: Scope, arms: Collection[str] = ()) -> list[FirstEvent]:
    """Each user's first answer that failed, in order of time."""
    query = (
        sa.select(
            _INTERACTIONS.c.actor,
            arm(of),
            sa.func.coalesce(_INTERACTIONS.c.assignment_probability, 0.5).label("probability"),
            sa.func.min(_COMPLETIONS.c.created_at).label("at"),
        )
        .join(_COMPLETIONS, _COMPLETIONS.c.id == _INTERACTIONS.c.id)
        .where(
            *within(of),
            *_of_arms(of, arms),
            *known(of, _COMPLETIONS.c.created_at),
            _COMPLETIONS.c.status == CompletionStatus.ERROR,
        )
    )
    return _first(tx, of, query)


def n_with_feedback(tx: Transaction, of: Scope, kind: FeedbackKind, name: str | None = None) -> list[UserSum]:
    """Messages of each user that got feedback of a kind (a signal of that name), as `total` and as `n`; users without any are not there.
    What was retracted has happened."""
    where = [*within(of), *_given(of, kind)]
    if name is not None:
        says = f'"name":{json.dumps(name, ensure_ascii=False)}'  # as the store writes JSON
        where.append(sa.type_coerce(_FEEDBACK.c.value, sa.Text).contains(says, autoescape=True))
    messages = sa.func.count(sa.distinct(_INTERACTIONS.c.id))
    query = (
        sa.select(_INTERACTIONS.c.actor, arm(of), messages.label("total"), messages.label("n"))
        .join(_FEEDBACK, _FEEDBACK.c.interaction_id == _INTERACTIONS.c.id)
        .where(*where)
        .group_by(*keys(of))
    )
    return _sums(tx, query)


def ratings(tx: Transaction, of: Scope) -> list[UserSum]:
    """Sum and number of the ratings each user gave; one that was changed counts for both of its values, as thumbs do."""
    query = (
        sa.select(_INTERACTIONS.c.actor, arm(of), _FEEDBACK.c.value)
        .join(_FEEDBACK, _FEEDBACK.c.interaction_id == _INTERACTIONS.c.id)
        .where(*within(of), *_given(of, FeedbackKind.RATING))
        .order_by(_FEEDBACK.c.id)
    )
    given: dict[tuple[str, str], list[float]] = {}
    for row in tx.rows(query):
        if row["value"].get("rating") is not None:
            given.setdefault((row["actor"], row["arm"]), []).append(float(row["value"]["rating"]))
    return [UserSum(actor, arm, sum(values), len(values)) for (actor, arm), values in given.items()]


def completions(tx: Transaction, of: Scope) -> Mapping[str, list[UserSum]]:
    """`errors` over all answers that ended, `latency` (ms) over those that are whole."""
    whole = sa.and_(_COMPLETIONS.c.status == CompletionStatus.OK, _COMPLETIONS.c.latency_ms.is_not(None))
    failed = _COMPLETIONS.c.status == CompletionStatus.ERROR
    query = (
        sa.select(
            _INTERACTIONS.c.actor,
            arm(of),
            sa.func.sum(sa.case((failed, 1), else_=0)).label("errors"),
            sa.func.count().label("n"),
            sa.func.sum(sa.case((whole, _COMPLETIONS.c.latency_ms), else_=0.0)).label("latency"),
            sa.func.sum(sa.case((whole, 1), else_=0)).label("n_whole"),
        )
        .join(_COMPLETIONS, _COMPLETIONS.c.id == _INTERACTIONS.c.id)
        .where(*within(of), *known(of, _COMPLETIONS.c.created_at))
        .group_by(*keys(of))
    )
    rows = tx.rows(query)
    return {
        "errors": [UserSum(row["actor"], row["arm"], float(row["errors"]), int(row["n"])) for row in rows],
        "latency": [UserSum(row["actor"], row["arm"], float(row["latency"]), int(row["n_whole"])) for row in rows],
    }


def answers(tx: Transaction, of: Scope, score: bool = False) -> list[UserSum]:
    """Over the first answer of every message: characters, or the score that a monitor gave those it drew."""
    came = _SCORES.c.created_at if score else _RESPONSES.c.created_at
    value = _SCORES.c.value if score else sa.func.length(_RESPONSES.c.text)
    found = sa.join(_INTERACTIONS, _RESPONSES, _RESPONSES.c.interaction_id == _INTERACTIONS.c.id)
    if score:
        found = found.join(_SCORES, _SCORES.c.id == _RESPONSES.c.id)
    query = (
        sa.select(_INTERACTIONS.c.actor, arm(of), sa.func.sum(value).label("total"), sa.func.count().label("n"))
        .select_from(found)
        .where(*within(of), *known(of, came), _RESPONSES.c.idx == 0)
        .group_by(*keys(of))
    )
    return _sums(tx, query)


def counted_openings(tx: Transaction, of: Scope, n_chars: int, counts: Callable[[str], bool]) -> list[UserSum]:
    """First answers of each user, and those whose opening `counts`."""
    opening = sa.func.substr(_RESPONSES.c.text, 1, n_chars).label("opening")
    query = (
        sa.select(_INTERACTIONS.c.actor, arm(of), opening)
        .join(_RESPONSES, _RESPONSES.c.interaction_id == _INTERACTIONS.c.id)
        .where(*within(of), *known(of, _RESPONSES.c.created_at), _RESPONSES.c.idx == 0)
    )
    found: dict[tuple[str, str], list[bool]] = {}
    for row in tx.rows(query):
        found.setdefault((row["actor"], row["arm"]), []).append(counts(row["opening"]))
    return [UserSum(actor, arm, float(sum(said)), len(said)) for (actor, arm), said in found.items()]


def spent_tokens(tx: Transaction, experiment_id: str, arm: str) -> tuple[int, int]:
    """Prompt and completion tokens that one arm's answers took."""
    query = (
        sa.select(
            sa.func.coalesce(sa.func.sum(_COMPLETIONS.c.prompt_tokens), 0).label("prompt"),
            sa.func.coalesce(sa.func.sum(_COMPLETIONS.c.completion_tokens), 0).label("completion"),
        )
        .join(_INTERACTIONS, _INTERACTIONS.c.id == _COMPLETIONS.c.id)
        .where(_INTERACTIONS.c.experiment_id == experiment_id, _INTERACTIONS.c.arm == arm)
    )
    row = tx.rows(query)[0]
    return int(row["prompt"]), int(row["completion"])


def _sums(tx: Transaction, query: sa.Select[Any]) -> list[UserSum]:
    return [UserSum(row["actor"], row["arm"], float(row["total"]), int(row["n"])) for row in tx.rows(query)]


def ledger_version(tx: Transaction, project_id: str) -> int:
    """Number of the last audit entry: every change of a Release or an Experiment raises it."""
    audit = TABLES[AuditEntry]
    query = sa.select(sa.func.max(audit.c.seq).label("seq")).where(audit.c.project_id == project_id)
    return int(tx.rows(query)[0]["seq"] or 0)


def within(of: Scope) -> tuple[sa.ColumnElement[bool], ...]:
    """Conditions on the interactions of named users."""
    named = _INTERACTIONS.c.actor.is_not(None)
    if isinstance(of, str):
        return _INTERACTIONS.c.experiment_id == of, named
    at = _INTERACTIONS.c.created_at
    return _INTERACTIONS.c.project_id == of.project_id, named, at >= of.since, at <= of.until


def arm(of: Scope) -> sa.ColumnElement[str]:
    return _INTERACTIONS.c.arm if isinstance(of, str) else sa.literal("").label("arm")


def keys(of: Scope) -> tuple[sa.ColumnElement[Any], ...]:
    """What a user's rows are grouped by."""
    return (_INTERACTIONS.c.actor, _INTERACTIONS.c.arm) if isinstance(of, str) else (_INTERACTIONS.c.actor,)


def known(of: Scope, at: sa.ColumnElement[datetime]) -> tuple[sa.ColumnElement[bool], ...]:
    """A window's end holds for what came of its interactions, too."""
    return () if isinstance(of, str) else (at <= of.until,)


def _of_arms(of: Scope, arms: Collection[str]) -> tuple[sa.ColumnElement[bool], ...]:
    return (_INTERACTIONS.c.arm.in_(arms),) if isinstance(of, str) else ()


def _given(of: Scope, kind: FeedbackKind) -> tuple[sa.ColumnElement[bool], ...]:
    return _FEEDBACK.c.kind == kind, _FEEDBACK.c.quarantine_id.is_(None), *known(of, _FEEDBACK.c.created_at)


def _up(up: bool) -> sa.ColumnElement[bool]:
    """Whether a thumb's JSON value says so; the store writes JSON without spaces."""
    return sa.type_coerce(_FEEDBACK.c.value, sa.Text).like(f'%"up":{"true" if up else "false"}%')


def _first(tx: Transaction, of: Scope, query: sa.Select[tuple[str, str, float, datetime]]) -> list[FirstEvent]:
    """One row per user: the earliest of the groups, one per assignment probability that was in force."""
    events: dict[str, FirstEvent] = {}
    for row in tx.rows(query.group_by(*keys(of), _INTERACTIONS.c.assignment_probability)):
        event = FirstEvent(*row.values())
        if event.actor not in events or event.at < events[event.actor].at:
            events[event.actor] = event
    return sorted(events.values(), key=lambda event: (event.at, event.actor))
