"""What annotators give a Snapshot beside their votes: better wordings, and ratings of one response. Of closed training questions only: what
is open can still be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from plaudit.domain import (
    OVERALL,
    Annotation,
    Comparison,
    ComparisonKind,
    ComparisonState,
    Interaction,
    Json,
    Message,
    Purpose,
    Response,
    TrainingUse,
    Verdict,
)
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_A, _C = TABLES[Annotation], TABLES[Comparison]
_I, _R = TABLES[Interaction], TABLES[Response]
_CLOSED = _C.c.purpose == Purpose.TRAINING, _C.c.state == ComparisonState.CLOSED
# The one response of a rating question, whose list of ids is stored as `["res_1"]`.
_IDS = sa.type_coerce(_C.c.response_ids, sa.Text())
_ONLY = sa.func.substr(_IDS, 3, sa.func.length(_IDS) - 4)


@dataclass(frozen=True)
class Edit:
    """What one annotator wrote over the response that they chose, or rated."""

    annotation_id: str
    annotator_id: str
    interaction_id: str
    response_id: str
    batch: str | None
    messages: tuple[Message, ...]  # as the annotator read them
    text: str
    created_at: datetime


@dataclass(frozen=True)
class Rated:
    """One response and the mean of its ratings as a whole."""

    comparison_id: str
    rating: float
    batch: str | None
    family: str
    messages: tuple[Message, ...]
    training_use: TrainingUse
    text: str
    finish_reason: str | None
    model: str
    actor: str | None
    conversation_id: str
    attributes: Json = field(default_factory=dict)


def edits(tx: Transaction, project_id: str) -> list[Edit]:
    """In order of the annotation's id."""
    query = (
        sa.select(
            _A.c.id.label("annotation_id"),
            _A.c.annotator_id,
            _C.c.interaction_id,
            sa.func.coalesce(_A.c.choice, _ONLY).label("response_id"),
            _C.c.batch,
            _C.c.messages,
            _A.c.edit.label("text"),
            _A.c.created_at,
        )
        .join(_C, _C.c.id == _A.c.comparison_id)
        .where(_A.c.project_id == project_id, _A.c.edit.is_not(None), _C.c.interaction_id.is_not(None), *_CLOSED)
        .order_by(_A.c.id)
    )
    return [Edit(**row) for row in tx.rows(query)]


def rated(tx: Transaction, project_id: str) -> Iterator[Rated]:
    """In order of the Comparison's id."""
    means = (
        sa.select(_A.c.comparison_id, sa.cast(sa.func.avg(_A.c.rating), sa.Double).label("rating"))
        .where(_A.c.project_id == project_id, _A.c.criterion == OVERALL, _A.c.verdict == Verdict.RATE)
        .group_by(_A.c.comparison_id)
        .subquery()
    )
    columns: list[Any] = [_I.c[name] for name in ("training_use", "actor", "conversation_id", "attributes")]
    columns += [
        _C.c.messages,  # as annotators read them, without the personal data that they were not shown
        _R.c.text,
        _R.c.finish_reason,
        _R.c.model,
        _C.c.family,
        _C.c.batch,
        means.c.comparison_id,
        means.c.rating,
    ]
    query = (
        sa.select(*columns)
        .join_from(_C, means, means.c.comparison_id == _C.c.id)
        .join(_I, _I.c.id == _C.c.interaction_id)
        .join(_R, _R.c.id == _ONLY)
        .where(_C.c.project_id == project_id, _C.c.kind == ComparisonKind.RATING, *_CLOSED)
        .order_by(_C.c.id)
    )
    for row in tx.rows(query):
        yield Rated(**row)
