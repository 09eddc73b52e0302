"""What an erasure touches: everything of one user, or everything before a time; and the one statement per table that empties it.

A row that is erased stays as a tombstone: its id, its time, its release, its arm and its thumbs remain, under a name that leads nowhere, so
that no figure of a past look changes. Texts, attributes, pseudonyms and every hash of them go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonState,
    Completion,
    Feedback,
    FeedbackKind,
    Interaction,
    Message,
    Outcome,
    Preference,
    Purpose,
    Quarantine,
    Response,
    Review,
    TrainingUse,
)
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_RESPONSES = TABLES[Response]
_FEEDBACK = TABLES[Feedback]
_COMPARISONS = TABLES[Comparison]
_ANNOTATIONS = TABLES[Annotation]
_REVIEWS = TABLES[Review]
_PREFERENCES = TABLES[Preference]
_OUTCOMES = TABLES[Outcome]
_QUARANTINES = TABLES[Quarantine]
_CHUNK = 500  # ids to a statement
# What may stay of a value once nobody knows whose it was.
_KEPT = {FeedbackKind.THUMB: ("up",), FeedbackKind.RATING: ("rating",), FeedbackKind.CHOICE: ("chosen",)}
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """An Interaction that goes."""

    id: str
    actor: str | None
    conversation_id: str
    prompt_sha256: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Said:
    """A Feedback that goes, or stays without its words."""

    id: str
    actor: str | None
    kind: FeedbackKind
    value: dict[str, Any]


@dataclass(frozen=True)
class Traces:
    """What there is of a user, or of a time."""

    asked: tuple[Asked, ...]
    said: tuple[Said, ...]
    response_ids: tuple[str, ...]  # of their Interactions, of edits they wrote, and of questions about their prompts
    comparison_ids: tuple[str, ...]
    preference_ids: frozenset[str]
    shared_prompts: frozenset[str]  # prompt_sha256 of theirs that somebody else asked too, word by word
    n_outcomes: int

    @property
    def empty(self) -> bool:
        return not (self.asked or self.said or self.n_outcomes)


def traces(tx: Transaction, project_id: str, actor: str | None, until: datetime) -> Traces:
    """Of this actor, or without one of everything that began before `until` and has not been erased."""
    whose = _INTERACTIONS.c.actor == actor if actor is not None else _INTERACTIONS.c.created_at < until
    here = _INTERACTIONS.c.project_id == project_id, _INTERACTIONS.c.erasure_id.is_(None)
    columns = (_INTERACTIONS.c[name] for name in ("id", "actor", "conversation_id", "prompt_sha256", "messages"))
    asked = tuple(Asked(*row.values()) for row in tx.rows(sa.select(*columns).where(*here, whose)))
    ids = [one.id for one in asked]
    spoken = [_FEEDBACK.c[name] for name in ("id", "actor", "kind", "value")]
    said = {
        row["id"]: Said(**row) for part in _parts(ids) for row in tx.rows(_of(spoken, _FEEDBACK.c.interaction_id, part))
    }
    if actor is not None:
        theirs = sa.select(*spoken).where(_FEEDBACK.c.project_id == project_id, _FEEDBACK.c.actor == actor)
        said |= {row["id"]: Said(**row) for row in tx.rows(theirs)}
    hashes = sorted({one.prompt_sha256 for one in asked})
    shared = _ids(tx, hashes, lambda part: sa.select(_INTERACTIONS.c.prompt_sha256).where(
        *here, ~whose, _INTERACTIONS.c.prompt_sha256.in_(part)
    ))  # fmt: skip
    comparisons = _ids(tx, ids, lambda part: _of([_COMPARISONS.c.id], _COMPARISONS.c.interaction_id, part))
    own = list({one.prompt_sha256: one.messages for one in asked if one.prompt_sha256 not in shared}.values())
    comparisons |= _ids(tx, own, lambda part: sa.select(_COMPARISONS.c.id).where(
        _COMPARISONS.c.project_id == project_id, _COMPARISONS.c.messages.in_(part)
    ))  # fmt: skip
    comparisons |= _redacted(tx, project_id, {one.prompt_sha256 for one in asked} - shared)
    responses = _ids(tx, ids, lambda part: _of([_RESPONSES.c.id], _RESPONSES.c.interaction_id, part))
    responses |= {"res_" + one.id.partition("_")[2] for one in said.values()}  # an edit's text, once a Snapshot read it
    for part in _parts(sorted(comparisons)):
        for row in tx.rows(_of([_COMPARISONS.c.response_ids], _COMPARISONS.c.id, part)):
            responses |= set(row["response_ids"])
    preferences = _ids(tx, ids, lambda part: _of([_PREFERENCES.c.id], _PREFERENCES.c.interaction_id, part))
    return Traces(
        asked=asked,
        said=tuple(said.values()),
        response_ids=tuple(sorted(responses)),
        comparison_ids=tuple(sorted(comparisons)),
        preference_ids=frozenset(preferences),
        shared_prompts=frozenset(shared),
        n_outcomes=tx.count(Outcome, project_id=project_id, actor=actor) if actor is not None else 0,
    )


def _redacted(tx: Transaction, project_id: str, prompts: set[str]) -> set[str]:
    """Evaluation Comparisons that show one of these prompts without its personal data: they keep its hash."""
    attributes = sa.type_coerce(_COMPARISONS.c.attributes, sa.Text)
    query = sa.select(_COMPARISONS.c.id, _COMPARISONS.c.attributes).where(
        _COMPARISONS.c.project_id == project_id,
        _COMPARISONS.c.purpose == Purpose.EVALUATION,
        attributes.contains('"prompt_sha256"'),
    )
    return {row["id"] for row in tx.rows(query) if row["attributes"]["prompt_sha256"] in prompts} if prompts else set()


def empty(tx: Transaction, project_id: str, erasure_id: str, found: Traces, actor: str | None) -> None:
    """Leave tombstones of what was found. Whoever is erased gets a name of this erasure: `erasure_id`, or with several a number behind it."""
    names = _Names(erasure_id, single=actor is not None)
    conversations = {one.conversation_id: f"{erasure_id}/{nth}" for nth, one in enumerate(found.asked)}
    _each(
        tx,
        _INTERACTIONS,
        [
            {
                "of": one.id,
                "actor": names.of(one.actor),
                "conversation_id": conversations[one.conversation_id],
                "family": erasure_id,
                "prompt_sha256": "",
                "system_sha256": None,
                "messages": (),
                "attributes": {},
                "sampling": {},
                "verdicts": (),
                "training_use": TrainingUse.DENIED,
                "erasure_id": erasure_id,
            }
            for one in found.asked
        ],
    )
    erased = {one.actor for one in found.asked} if actor is None else {actor}
    _each(
        tx,
        _FEEDBACK,
        [
            {
                "of": one.id,
                "actor": names.of(one.actor) if one.actor in erased else one.actor,
                "value": {name: one.value[name] for name in _KEPT.get(one.kind, ()) if name in one.value},
                "natural_key": None,
                "body_sha256": "",
                "retracted": True,
            }
            for one in found.said
        ],
    )
    ids = [one.id for one in found.asked]
    empty_answers(tx, found.response_ids)
    for part in _parts(ids):
        tx.connection.execute(_COMPLETIONS.update().where(_COMPLETIONS.c.id.in_(part)).values(error=None))
    for part in _parts(sorted(found.preference_ids)):
        tx.connection.execute(_PREFERENCES.update().where(_PREFERENCES.c.id.in_(part)).values(family=erasure_id))
    for part in _parts(found.comparison_ids):
        gone = _COMPARISONS.update().where(_COMPARISONS.c.id.in_(part))
        tx.connection.execute(gone.values(messages=(), attributes={}, family=erasure_id))
        tx.connection.execute(
            gone.where(_COMPARISONS.c.state.in_([ComparisonState.OPEN, ComparisonState.FLAGGED])).values(
                state=ComparisonState.CANCELLED
            )
        )
        said = {"note": None, "edit": None, "reasons": ()}
        tx.connection.execute(_ANNOTATIONS.update().where(_ANNOTATIONS.c.comparison_id.in_(part)).values(**said))
        tx.connection.execute(_REVIEWS.update().where(_REVIEWS.c.comparison_id.in_(part)).values(note=None))
    if actor is not None:
        mine = _OUTCOMES.c.project_id == project_id, _OUTCOMES.c.actor == actor
        rows = tx.rows(sa.select(_OUTCOMES.c.id).where(*mine))
        _each(
            tx, _OUTCOMES, [{"of": row["id"], "actor": erasure_id, "key": row["id"], "body_sha256": ""} for row in rows]
        )
        held = _QUARANTINES.c.project_id == project_id, _QUARANTINES.c.actor == actor
        tx.connection.execute(_QUARANTINES.update().where(*held).values(actor=erasure_id))


def late_answers(tx: Transaction, project_id: str, erasure_ids: Sequence[str]) -> list[str]:
    """Ids of answers with words that came after their Interaction was erased: the generation was still going on."""
    query = (
        sa.select(_RESPONSES.c.id)
        .join(_INTERACTIONS, _INTERACTIONS.c.id == _RESPONSES.c.interaction_id)
        .where(
            _INTERACTIONS.c.project_id == project_id,
            _INTERACTIONS.c.erasure_id.in_(erasure_ids),
            _RESPONSES.c.text != "",
        )
    )
    return [row["id"] for row in tx.rows(query)]


def empty_answers(tx: Transaction, response_ids: Sequence[str]) -> None:
    words = {"text": "", "tool_calls": (), "verdicts": ()}
    for part in _parts(response_ids):
        tx.connection.execute(_RESPONSES.update().where(_RESPONSES.c.id.in_(part)).values(**words))


class _Names:
    """Old pseudonym -> new one; the same for the same."""

    def __init__(self, erasure_id: str, single: bool) -> None:
        self._id = erasure_id
        self._single = single
        self._known: dict[str, str] = {}

    def of(self, actor: str | None) -> str | None:
        if actor is None:
            return None
        return self._known.setdefault(actor, self._id if self._single else f"{self._id}/{len(self._known)}")


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _of(columns: Iterable[Any], key: sa.Column[Any], ids: Sequence[str]) -> sa.Select[Any]:
    return sa.select(*columns).where(key.in_(ids))


def _ids(tx: Transaction, items: Sequence[Any], query: Any) -> set[str]:
    return {str(next(iter(row.values()))) for part in _parts(items) for row in tx.rows(query(part))}


def _each(tx: Transaction, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Update each row named by `of` with the values beside it."""
    if not rows:
        return
    changes = {name: sa.bindparam(f"new_{name}", type_=table.c[name].type) for name in rows[0] if name != "of"}
    query = table.update().where(table.c.id == sa.bindparam("of", type_=sa.Text())).values(**changes)
    tx.connection.execute(query, [{("of" if n == "of" else f"new_{n}"): v for n, v in row.items()} for row in rows])
