"""What a Release in shadow made of live requests, beside what their users were answered."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from plaudit.domain import Completion, CompletionStatus, Interaction, Response, ShadowAnswer
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_SHADOW = TABLES[ShadowAnswer]
_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_RESPONSES = TABLES[Response]


@dataclass(frozen=True)
class Pair:
    """One copied request. `unit` is its user, or the request itself without one; live_* are None while the live answer has not ended."""

    unit: str
    status: CompletionStatus
    latency_ms: float
    n_chars: int
    refused: bool
    live_status: CompletionStatus | None
    live_latency_ms: float | None
    live_chars: int | None
    live_opening: str | None


def pairs(tx: Transaction, project_id: str, release_id: str, limit: int, n_chars: int) -> list[Pair]:
    """The newest `limit` of a Release, newest first; `n_chars` of the live answer come back as its opening."""
    first = sa.and_(_RESPONSES.c.interaction_id == _SHADOW.c.interaction_id, _RESPONSES.c.idx == 0)
    query = (
        sa.select(
            sa.func.coalesce(_INTERACTIONS.c.actor, _SHADOW.c.interaction_id).label("unit"),
            _SHADOW.c.status,
            _SHADOW.c.latency_ms,
            _SHADOW.c.n_chars,
            _SHADOW.c.refused,
            _COMPLETIONS.c.status.label("live_status"),
            _COMPLETIONS.c.latency_ms.label("live_latency_ms"),
            sa.func.length(_RESPONSES.c.text).label("live_chars"),
            sa.func.substr(_RESPONSES.c.text, 1, n_chars).label("live_opening"),
        )
        .join(_INTERACTIONS, _INTERACTIONS.c.id == _SHADOW.c.interaction_id, isouter=True)
        .join(_COMPLETIONS, _COMPLETIONS.c.id == _SHADOW.c.interaction_id, isouter=True)
        .join(_RESPONSES, first, isouter=True)
        .where(_SHADOW.c.project_id == project_id, _SHADOW.c.release_id == release_id)
        .order_by(_SHADOW.c.created_at.desc(), _SHADOW.c.id.desc())
        .limit(limit)
    )
    return [Pair(**row) for row in tx.rows(query)]
