"""What a Snapshot is made of: every Preference with its texts and its consent, every prompt, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from plaudit.domain import (
    Comparison,
    Completion,
    CompletionStatus,
    Interaction,
    Message,
    Preference,
    Purpose,
    Response,
    TrainingUse,
)
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_PREFERENCES = TABLES[Preference]
_COMPARISONS = TABLES[Comparison]
_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_RESPONSES = TABLES[Response]


@dataclass(frozen=True)
class Evidence:
    """A Preference beside what decides whether it may be trained on. `training_use` is None where no Interaction stands behind it."""

    preference: Preference
    chosen: str | None
    rejected: str | None
    chosen_finish_reason: str | None
    rejected_finish_reason: str | None
    messages: tuple[Message, ...] | None
    training_use: TrainingUse | None
    purpose: Purpose | None  # None: it came from feedback


@dataclass(frozen=True)
class Prompt:
    """One prompt that an end user sent with consent."""

    prompt_sha256: str
    family: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class HeldOut:
    """Families and messages of evaluation Comparisons: what must never be trained on."""

    families: frozenset[str]
    messages: tuple[tuple[Message, ...], ...]


def evidence(tx: Transaction, project_id: str) -> list[Evidence]:
    """Every Preference of the project, in order of id."""
    chosen, rejected = _RESPONSES.alias("chosen"), _RESPONSES.alias("rejected")
    query = (
        sa.select(
            _PREFERENCES,
            chosen.c.text.label("chosen_text"),
            rejected.c.text.label("rejected_text"),
            chosen.c.finish_reason.label("chosen_finish_reason"),
            rejected.c.finish_reason.label("rejected_finish_reason"),
            _INTERACTIONS.c.messages,
            _INTERACTIONS.c.training_use,
            _COMPARISONS.c.purpose,
        )
        .outerjoin(chosen, chosen.c.id == _PREFERENCES.c.chosen_response_id)
        .outerjoin(rejected, rejected.c.id == _PREFERENCES.c.rejected_response_id)
        .outerjoin(_INTERACTIONS, _INTERACTIONS.c.id == _PREFERENCES.c.interaction_id)
        .outerjoin(_COMPARISONS, _COMPARISONS.c.id == _PREFERENCES.c.comparison_id)
        .where(_PREFERENCES.c.project_id == project_id)
        .order_by(_PREFERENCES.c.id)
    )
    names = [column.name for column in _PREFERENCES.c]
    return [
        Evidence(
            preference=Preference(**{name: row[name] for name in names}),
            chosen=row["chosen_text"],
            rejected=row["rejected_text"],
            chosen_finish_reason=row["chosen_finish_reason"],
            rejected_finish_reason=row["rejected_finish_reason"],
            messages=row["messages"],
            training_use=row["training_use"],
            purpose=row["purpose"],
        )
        for row in tx.rows(query)
    ]


def interactions_by_use(tx: Transaction, project_id: str) -> dict[TrainingUse, int]:
    """How many Interactions there are for each kind of consent."""
    query = (
        sa.select(_INTERACTIONS.c.training_use, sa.func.count().label("n"))
        .where(_INTERACTIONS.c.project_id == project_id)
        .group_by(_INTERACTIONS.c.training_use)
    )
    return {row["training_use"]: int(row["n"]) for row in tx.rows(query)}


def prompts(tx: Transaction, project_id: str) -> list[Prompt]:
    """Every prompt whose consent is `allowed` and that was not refused by the model server, once per Interaction, oldest first."""
    query = (
        sa.select(_INTERACTIONS.c.prompt_sha256, _INTERACTIONS.c.family, _INTERACTIONS.c.messages)
        .outerjoin(_COMPLETIONS, _COMPLETIONS.c.id == _INTERACTIONS.c.id)
        .where(
            _INTERACTIONS.c.project_id == project_id,
            _INTERACTIONS.c.training_use == TrainingUse.ALLOWED,
            sa.or_(_COMPLETIONS.c.status.is_(None), _COMPLETIONS.c.status != CompletionStatus.ERROR),
        )
        .order_by(_INTERACTIONS.c.id)
    )
    return [Prompt(**row) for row in tx.rows(query)]


def held_out(tx: Transaction, project_id: str) -> HeldOut:
    query = (
        sa.select(_COMPARISONS.c.family, _COMPARISONS.c.messages)
        .where(_COMPARISONS.c.project_id == project_id, _COMPARISONS.c.purpose == Purpose.EVALUATION)
        .order_by(_COMPARISONS.c.id)
    )
    rows = tx.rows(query)
    return HeldOut(frozenset(row["family"] for row in rows), tuple(row["messages"] for row in rows))
