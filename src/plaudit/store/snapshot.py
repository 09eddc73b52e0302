"""What a Snapshot is made of: every Preference with its texts and its consent, every prompt, and what is held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa

from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonState,
    Completion,
    CompletionStatus,
    Feedback,
    FeedbackKind,
    Interaction,
    Json,
    Message,
    Preference,
    Purpose,
    Response,
    ResponseOrigin,
    TrainingUse,
    Verdict,
)
from plaudit.store import feedback
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_ANNOTATIONS = TABLES[Annotation]
_PREFERENCES = TABLES[Preference]
_COMPARISONS = TABLES[Comparison]
_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_RESPONSES = TABLES[Response]
_FEEDBACK = TABLES[Feedback]
PAGE = 2000  # rows in memory at once


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
    actor: str | None = None
    conversation_id: str | None = None
    attributes: Json = field(default_factory=dict)  # of the Interaction
    batch: str | None = None  # of the Comparison
    reason: str | None = None  # why it was asked
    models: tuple[str, ...] = ()  # that wrote the two answers


@dataclass(frozen=True)
class Prompt:
    """One prompt that an end user sent with consent."""

    prompt_sha256: str
    family: str
    messages: tuple[Message, ...]
    actor: str | None = None
    conversation_id: str | None = None
    attributes: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Thumb:
    """A thumb that counts, beside the answer that it is about."""

    feedback_id: str
    up: bool
    family: str
    messages: tuple[Message, ...]
    training_use: TrainingUse
    text: str
    finish_reason: str | None
    model: str = ""
    actor: str | None = None
    conversation_id: str | None = None
    attributes: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Cast:
    """What one annotator said of a closed Comparison that was made for training."""

    comparison_id: str
    criterion: str
    annotator_id: str
    verdict: Verdict
    choice: str | None
    strength: int | None  # 1..3, where they said how much better
    seconds: float


@dataclass(frozen=True)
class HeldOut:
    """Families and messages of evaluation Comparisons: what must never be trained on."""

    families: frozenset[str]
    messages: tuple[tuple[Message, ...], ...]


def _pages(tx: Transaction, query: sa.Select[Any], id: sa.ColumnElement[str]) -> Iterator[sa.RowMapping]:
    """Rows in order of `id`, which is one of the columns, PAGE at a time."""
    after = ""
    query = query.where(id > sa.bindparam("after_page")).order_by(id).limit(PAGE)
    while page := tx.rows(query, {"after_page": after}):
        yield from page
        after = page[-1][id]
        if len(page) < PAGE:
            return


def evidence(tx: Transaction, project_id: str) -> Iterator[Evidence]:
    """Every Preference of the project, in order of id."""
    chosen, rejected = _RESPONSES.alias("chosen"), _RESPONSES.alias("rejected")
    query = (
        sa.select(
            _PREFERENCES,
            chosen.c.text.label("chosen_text"),
            rejected.c.text.label("rejected_text"),
            chosen.c.model.label("chosen_model"),
            rejected.c.model.label("rejected_model"),
            chosen.c.finish_reason.label("chosen_finish_reason"),
            rejected.c.finish_reason.label("rejected_finish_reason"),
            _INTERACTIONS.c.messages,
            _INTERACTIONS.c.training_use,
            _INTERACTIONS.c.actor,
            _INTERACTIONS.c.conversation_id,
            _INTERACTIONS.c.attributes,
            _COMPARISONS.c.messages.label("asked"),
            _COMPARISONS.c.purpose,
            _COMPARISONS.c.batch,
            _COMPARISONS.c.reason,
        )
        .outerjoin(chosen, chosen.c.id == _PREFERENCES.c.chosen_response_id)
        .outerjoin(rejected, rejected.c.id == _PREFERENCES.c.rejected_response_id)
        .outerjoin(_INTERACTIONS, _INTERACTIONS.c.id == _PREFERENCES.c.interaction_id)
        .outerjoin(_COMPARISONS, _COMPARISONS.c.id == _PREFERENCES.c.comparison_id)
        .where(_PREFERENCES.c.project_id == project_id)
    )
    names = [column.name for column in _PREFERENCES.c]
    for row in _pages(tx, query, _PREFERENCES.c.id):
        yield Evidence(
            preference=Preference(**{name: row[name] for name in names}),
            chosen=row["chosen_text"],
            rejected=row["rejected_text"],
            chosen_finish_reason=row["chosen_finish_reason"],
            rejected_finish_reason=row["rejected_finish_reason"],
            # As annotators read it, without the personal data that they were not shown; an edit was made of what was sent.
            messages=row["asked"] or row["messages"],
            training_use=row["training_use"],
            purpose=row["purpose"],
            actor=row["actor"],
            conversation_id=row["conversation_id"],
            attributes=row["attributes"] or {},
            batch=row["batch"],
            reason=row["reason"],
            models=tuple(name for name in (row["chosen_model"], row["rejected_model"]) if name is not None),
        )


def interactions_by_use(tx: Transaction, project_id: str) -> dict[TrainingUse, int]:
    """How many Interactions there are for each kind of consent."""
    query = (
        sa.select(_INTERACTIONS.c.training_use, sa.func.count().label("n"))
        .where(_INTERACTIONS.c.project_id == project_id)
        .group_by(_INTERACTIONS.c.training_use)
    )
    return {row["training_use"]: int(row["n"]) for row in tx.rows(query)}


def prompts(tx: Transaction, project_id: str) -> Iterator[Prompt]:
    """Every prompt whose consent is `allowed` and that was not refused by the model server, once per Interaction, oldest first."""
    query = (
        sa.select(
            _INTERACTIONS.c.id,
            _INTERACTIONS.c.prompt_sha256,
            _INTERACTIONS.c.family,
            _INTERACTIONS.c.messages,
            _INTERACTIONS.c.actor,
            _INTERACTIONS.c.conversation_id,
            _INTERACTIONS.c.attributes,
        )
        .outerjoin(_COMPLETIONS, _COMPLETIONS.c.id == _INTERACTIONS.c.id)
        .where(
            _INTERACTIONS.c.project_id == project_id,
            _INTERACTIONS.c.training_use == TrainingUse.ALLOWED,
            sa.or_(_COMPLETIONS.c.status.is_(None), _COMPLETIONS.c.status != CompletionStatus.ERROR),
        )
    )
    for row in _pages(tx, query, _INTERACTIONS.c.id):
        yield Prompt(**{name: value for name, value in row.items() if name != "id"})


def thumbs(tx: Transaction, project_id: str) -> Iterator[Thumb]:
    """Every thumb that stands (not superseded, retracted or in quarantine) on an answer that a user was shown, in order of id."""
    query = (
        sa.select(
            _FEEDBACK.c.id,
            _FEEDBACK.c.value,
            _FEEDBACK.c.actor,
            _INTERACTIONS.c.conversation_id,
            _INTERACTIONS.c.attributes,
            _INTERACTIONS.c.family,
            _INTERACTIONS.c.messages,
            _INTERACTIONS.c.training_use,
            _RESPONSES.c.text,
            _RESPONSES.c.finish_reason,
            _RESPONSES.c.model,
        )
        .join(_INTERACTIONS, _INTERACTIONS.c.id == _FEEDBACK.c.interaction_id)
        .join(
            _RESPONSES,
            sa.and_(
                _RESPONSES.c.interaction_id == _FEEDBACK.c.interaction_id,
                _RESPONSES.c.idx == _FEEDBACK.c.response_idx,
                _RESPONSES.c.origin.in_([ResponseOrigin.SERVED, ResponseOrigin.LOGGED]),
            ),
        )
        .where(
            _FEEDBACK.c.project_id == project_id,
            _FEEDBACK.c.kind == FeedbackKind.THUMB,
            *feedback.counts(),
            feedback.is_head(),
        )
    )
    for row in _pages(tx, query, _FEEDBACK.c.id):
        yield Thumb(
            feedback_id=row["id"],
            up=row["value"]["up"],
            family=row["family"],
            messages=row["messages"],
            training_use=row["training_use"],
            text=row["text"],
            finish_reason=row["finish_reason"],
            model=row["model"],
            actor=row["actor"],
            conversation_id=row["conversation_id"],
            attributes=row["attributes"],
        )


def cast(tx: Transaction, project_id: str) -> Iterator[Cast]:
    """Every such Annotation, in order of id."""
    columns = [_ANNOTATIONS.c[spec.name] for spec in fields(Cast)]
    query = (
        sa.select(_ANNOTATIONS.c.id, *columns)
        .join(_COMPARISONS, _COMPARISONS.c.id == _ANNOTATIONS.c.comparison_id)
        .where(
            _COMPARISONS.c.project_id == project_id,
            _COMPARISONS.c.purpose == Purpose.TRAINING,
            _COMPARISONS.c.state == ComparisonState.CLOSED,
        )
    )
    for row in _pages(tx, query, _ANNOTATIONS.c.id):
        yield Cast(**{column.name: row[column.name] for column in columns})


def held_out(tx: Transaction, project_id: str) -> HeldOut:
    query = (
        sa.select(_COMPARISONS.c.family, _COMPARISONS.c.messages)
        .where(_COMPARISONS.c.project_id == project_id, _COMPARISONS.c.purpose == Purpose.EVALUATION)
        .order_by(_COMPARISONS.c.id)
    )
    rows = tx.rows(query)
    return HeldOut(frozenset(row["family"] for row in rows), tuple(row["messages"] for row in rows))
