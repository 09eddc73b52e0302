"""Queries of annotation: which Comparison to lend, how many hold or have answered it, and the votes that aggregation reads.

A Comparison's *takers* are the distinct annotators who hold a live lease on it or have answered it; a skip is no answer, but whoever
skipped is not asked again. Every choice below is made while the Comparison's row is locked, and counted again under that lock, so that
two clients at once can never exceed the overlap (SQLite holds one writer at a time; PostgreSQL passes over rows that others hold, and
waits for them only where it finds no other).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from plaudit.domain import (
    OVERALL,
    Annotation,
    Comparison,
    ComparisonState,
    Completion,
    CompletionStatus,
    Interaction,
    Lease,
    LeaseState,
    Person,
    Preference,
    Purpose,
    TrainingUse,
    Verdict,
)
from plaudit.errors import NotFound
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES, UtcTime

_COMPARISONS = TABLES[Comparison]
_LEASES = TABLES[Lease]
_ANNOTATIONS = TABLES[Annotation]
_PEOPLE = TABLES[Person]
_INTERACTIONS = TABLES[Interaction]
_COMPLETIONS = TABLES[Completion]
_PREFERENCES = TABLES[Preference]


@dataclass(frozen=True)
class Assigned:
    """What a lead gave to one annotator: it is lent to them before everything else."""

    batches: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


NOTHING = Assigned()


@dataclass(frozen=True)
class Vote:
    """One Annotation beside what aggregation needs of its Comparison."""

    annotation: Annotation
    comparison_id: str
    interaction_id: str | None
    family: str
    response_ids: tuple[str, ...]


def not_yet_compared(tx: Transaction, project_id: str, release_id: str, limit: int) -> list[str]:
    """Ids of the newest interactions that this Release answered to the end, that may be trained on, and that no Comparison is about."""
    compared = sa.exists().where(_COMPARISONS.c.interaction_id == _INTERACTIONS.c.id)
    query = (
        sa.select(_INTERACTIONS.c.id)
        .join(_COMPLETIONS, _COMPLETIONS.c.id == _INTERACTIONS.c.id)
        .where(
            _INTERACTIONS.c.project_id == project_id,
            _INTERACTIONS.c.served_release_id == release_id,
            _INTERACTIONS.c.training_use == TrainingUse.ALLOWED,
            _COMPLETIONS.c.status == CompletionStatus.OK,
            ~compared,
        )
        .order_by(_INTERACTIONS.c.id.desc())
        .limit(limit)
    )
    return [row["id"] for row in tx.rows(query)]


def live_lease(tx: Transaction, project_id: str, annotator_id: str, now: datetime) -> Lease | None:
    """What this annotator holds now; the newest."""
    found = tx.rows(_HELD, {"project": project_id, "annotator": annotator_id, "now": now})
    return Lease(**found[0]) if found else None


def lock_annotator(tx: Transaction, project_id: str, annotator_id: str) -> None:
    """From here to the transaction's end this annotator's other requests wait: two at once cannot be lent two questions, and each sees
    what the one before did. It comes before the lock of a Comparison, everywhere, so that two cannot wait for each other."""
    tx.one_at_a_time(f"{project_id}/{annotator_id}")


def next_comparison(
    tx: Transaction,
    project_id: str,
    annotator_id: str,
    purposes: Collection[Purpose],
    now: datetime,
    domains: Collection[str] = (),
    assigned: Assigned = NOTHING,
) -> Comparison | None:
    """The first open Comparison that still needs this annotator, of what is `assigned` to them or else of all, by priority; locked. None
    where there is none.

    `domains`: what they are qualified for; a Comparison without a domain is for everybody.
    """
    passed_over: list[str] = []
    values = _who_wants(project_id, annotator_id, purposes, now, domains)
    values |= {"own_batches": list(assigned.batches), "own_domains": list(assigned.domains)}
    # What others hold at this moment may still have a place.
    tries = (_OWN_FREE, _OWN, _NEXT_FREE, _NEXT) if assigned != NOTHING else (_NEXT_FREE, _NEXT)
    while True:
        with tx.connection.begin_nested() as attempt:
            found: Sequence[sa.RowMapping] = ()
            for query in tries:
                found = found or tx.rows(query, {**values, "passed_over": passed_over})
            if not found:
                return None
            comparison = Comparison(**found[0])
            # Between the query's view and its lock somebody else may have taken the last place: look again, now that nobody can.
            if needs(tx, comparison.id, annotator_id, now):
                return comparison
            passed_over.append(comparison.id)
            attempt.rollback()  # lets go of its lock: who waits while holding one can wait for ever


def lock_comparison(tx: Transaction, comparison_id: str) -> Comparison:
    """The Comparison, held until the transaction ends. Raises NotFound."""
    found = tx.rows(_LOCK, {"comparison": comparison_id})
    if not found:
        raise NotFound(f"There is no Comparison {comparison_id!r}.")
    return Comparison(**found[0])


def needs(tx: Transaction, comparison_id: str, annotator_id: str, now: datetime) -> bool:
    """Whether an open Comparison has a place for this annotator, who neither holds nor has answered it. Call it under the lock."""
    return bool(tx.rows(_NEEDS, {"comparison": comparison_id, "annotator": annotator_id, "now": now}))


def n_answers(tx: Transaction, comparison_id: str) -> int:
    """Distinct annotators who answered; skips do not count."""
    return int(tx.rows(_N_ANSWERS, {"comparison": comparison_id})[0]["n"])


def n_available(
    tx: Transaction,
    project_id: str,
    annotator_id: str,
    purposes: Collection[Purpose],
    now: datetime,
    domains: Collection[str] = (),
    at_most: int = 1_000_000,
) -> int:
    """How many open Comparisons this annotator could still be lent; counting ends at `at_most`."""
    values = _who_wants(project_id, annotator_id, purposes, now, domains)
    return int(tx.rows(_N_AVAILABLE, {**values, "at_most": at_most})[0]["n"])


def _who_wants(
    project_id: str, annotator_id: str, purposes: Collection[Purpose], now: datetime, domains: Collection[str]
) -> dict[str, Any]:
    return {
        "project": project_id,
        "annotator": annotator_id,
        "now": now,
        "purposes": list(purposes),
        "domains": list(domains),
    }


@dataclass(frozen=True)
class Gold:
    """One gold Comparison beside what one annotator said to it: `verdict` None where they were not asked yet."""

    comparison_id: str
    state: ComparisonState
    domain: str | None
    gold_choice: str
    made_from: str | None  # the Comparison that it was copied from
    verdict: Verdict | None
    choice: str | None
    flagged: bool | None
    answered_at: datetime | None

    @property
    def right(self) -> bool:
        return self.choice == self.gold_choice


def gold_of(tx: Transaction, project_id: str, annotator_id: str) -> list[Gold]:
    """Every gold Comparison of the project, in the order in which they were made."""
    return [
        Gold(
            comparison_id=row["id"],
            state=row["state"],
            domain=row["domain"],
            gold_choice=row["gold_choice"],
            made_from=row["attributes"].get("made_from"),
            verdict=row["verdict"],
            choice=row["choice"],
            flagged=row["flagged"],
            answered_at=row["answered_at"],
        )
        for row in tx.rows(_GOLD, {"project": project_id, "annotator": annotator_id})
    ]


def gold_records(
    tx: Transaction, project_id: str, annotator_ids: Collection[str] | None = None
) -> dict[str, tuple[int, int]]:
    """annotator -> (right, answered) over all gold; a skip is not right, a flag is not counted."""
    query = _GOLD_RECORDS.where(_COMPARISONS.c.project_id == project_id)
    if annotator_ids is not None:
        query = query.where(_ANNOTATIONS.c.annotator_id.in_(list(annotator_ids)))
    return {row["annotator_id"]: (int(row["n_right"]), int(row["n"])) for row in tx.rows(query)}


def own_answers(tx: Transaction, project_id: str, annotator_id: str) -> list[tuple[Verdict, float]]:
    """(verdict, seconds) of each question this annotator has answered or skipped."""
    query = sa.select(_ANNOTATIONS.c.verdict, _ANNOTATIONS.c.seconds).where(
        _ANNOTATIONS.c.project_id == project_id,
        _ANNOTATIONS.c.annotator_id == annotator_id,
        _ANNOTATIONS.c.criterion == OVERALL,
    )
    return [(row["verdict"], row["seconds"]) for row in tx.rows(query)]


def n_paid(tx: Transaction, project_id: str) -> int:
    """Questions answered by anybody, gold too; a skip is not paid."""
    query = (
        sa.select(sa.func.count().label("n"))
        .select_from(_ANNOTATIONS)
        .where(
            _ANNOTATIONS.c.project_id == project_id,
            _ANNOTATIONS.c.criterion == OVERALL,
            _ANNOTATIONS.c.verdict != Verdict.SKIP,
        )
    )
    return int(tx.rows(query)[0]["n"])


def take_back(tx: Transaction, comparison_id: str, annotator_id: str) -> None:
    """Remove what this annotator said to this Comparison."""
    tx.connection.execute(
        _ANNOTATIONS.delete().where(
            _ANNOTATIONS.c.comparison_id == comparison_id, _ANNOTATIONS.c.annotator_id == annotator_id
        )
    )


def queue_by_batch(tx: Transaction, project_id: str) -> list[dict[str, Any]]:
    """batch, purpose, state and n, in the order of the batches."""
    columns = (_COMPARISONS.c.batch, _COMPARISONS.c.purpose, _COMPARISONS.c.state)
    query = (
        sa.select(*columns, sa.func.count().label("n"))
        .where(_COMPARISONS.c.project_id == project_id)
        .group_by(*columns)
        .order_by(sa.func.min(_COMPARISONS.c.id))
    )
    return [dict(row) for row in tx.rows(query)]


def votes(tx: Transaction, project_id: str, purpose: Purpose, batch: str | None = None) -> list[Vote]:
    """Every Annotation of the closed Comparisons of a purpose (and batch), in a stable order."""
    query = _VOTES.where(
        _COMPARISONS.c.project_id == project_id,
        _COMPARISONS.c.purpose == purpose,
        _COMPARISONS.c.state == ComparisonState.CLOSED,
    )
    if batch is not None:
        query = query.where(_COMPARISONS.c.batch == batch)
    return _read_votes(tx, query)


def gold_votes(tx: Transaction, project_id: str) -> list[Vote]:
    """Every Annotation of gold, which never closes."""
    return _read_votes(
        tx, _VOTES.where(_COMPARISONS.c.project_id == project_id, _COMPARISONS.c.gold_choice.is_not(None))
    )


def drop_preferences(tx: Transaction, comparison_ids: Collection[str]) -> None:
    """Remove what was concluded from these Comparisons."""
    if comparison_ids:
        tx.connection.execute(_PREFERENCES.delete().where(_PREFERENCES.c.comparison_id.in_(list(comparison_ids))))


def _read_votes(tx: Transaction, query: sa.Select[Any]) -> list[Vote]:
    names = [column.name for column in _ANNOTATIONS.c]
    return [
        Vote(
            annotation=Annotation(**{name: row[name] for name in names}),
            comparison_id=row["comparison_id"],
            interaction_id=row["interaction_id"],
            family=row["family"],
            response_ids=row["response_ids"],
        )
        for row in tx.rows(query)
    ]


def names(tx: Transaction, person_ids: Collection[str]) -> dict[str, str]:
    """Names of people by id."""
    query = sa.select(_PEOPLE.c.id, _PEOPLE.c.name).where(_PEOPLE.c.id.in_(list(person_ids)))
    return {row["id"]: row["name"] for row in tx.rows(query)}


_VOTES = (
    sa.select(_ANNOTATIONS, _COMPARISONS.c.interaction_id, _COMPARISONS.c.family, _COMPARISONS.c.response_ids)
    .join(_COMPARISONS, _COMPARISONS.c.id == _ANNOTATIONS.c.comparison_id)
    .order_by(_ANNOTATIONS.c.comparison_id, _ANNOTATIONS.c.annotator_id, _ANNOTATIONS.c.criterion)
)


# --- statements, built once -----------------------------------------------------------------------------------------------

_annotator = sa.bindparam("annotator", type_=sa.Text())
_now = sa.bindparam("now", type_=UtcTime())
_purposes = sa.bindparam("purposes", expanding=True, type_=_COMPARISONS.c.purpose.type)

_answered = sa.exists().where(
    _ANNOTATIONS.c.comparison_id == _COMPARISONS.c.id, _ANNOTATIONS.c.annotator_id == _annotator
)
_live_here = sa.and_(
    _LEASES.c.comparison_id == _COMPARISONS.c.id, _LEASES.c.state == LeaseState.LIVE, _LEASES.c.expires_at > _now
)
_n_live = sa.select(sa.func.count(sa.distinct(_LEASES.c.annotator_id))).where(_live_here).correlate(_COMPARISONS)
_n_answered = (
    sa.select(sa.func.count(sa.distinct(_ANNOTATIONS.c.annotator_id)))
    .where(_ANNOTATIONS.c.comparison_id == _COMPARISONS.c.id, _ANNOTATIONS.c.verdict != Verdict.SKIP)
    .correlate(_COMPARISONS)
)
_wanting = sa.and_(
    _COMPARISONS.c.state == ComparisonState.OPEN,
    ~_answered,
    ~sa.exists().where(_live_here, _LEASES.c.annotator_id == _annotator),
    # An answer turns its leases ANSWERED in the same transaction, so nobody counts twice.
    _n_live.scalar_subquery() + _n_answered.scalar_subquery() < _COMPARISONS.c.overlap,
)
_wanting_in_project = sa.and_(
    _COMPARISONS.c.project_id == sa.bindparam("project", type_=sa.Text()),
    _COMPARISONS.c.purpose.in_(_purposes),
    sa.or_(
        _COMPARISONS.c.domain.is_(None),
        _COMPARISONS.c.domain.in_(sa.bindparam("domains", expanding=True, type_=sa.Text())),
    ),
    _wanting,
)
_NEXT = (
    sa.select(_COMPARISONS)
    .where(
        _wanting_in_project,
        _COMPARISONS.c.id.not_in(sa.bindparam("passed_over", expanding=True, type_=sa.Text())),
    )
    .order_by(_COMPARISONS.c.priority.desc(), _COMPARISONS.c.id)
    .limit(1)
    .with_for_update()
)
_NEXT_FREE = _NEXT.with_for_update(skip_locked=True)
_OWN = _NEXT.where(
    sa.or_(
        _COMPARISONS.c.batch.in_(sa.bindparam("own_batches", expanding=True, type_=sa.Text())),
        _COMPARISONS.c.domain.in_(sa.bindparam("own_domains", expanding=True, type_=sa.Text())),
    )
)
_OWN_FREE = _OWN.with_for_update(skip_locked=True)
_N_AVAILABLE = sa.select(sa.func.count().label("n")).select_from(
    sa.select(_COMPARISONS.c.id)
    .where(_wanting_in_project)
    .limit(sa.bindparam("at_most", type_=sa.Integer()))
    .subquery()
)
_this_one = _COMPARISONS.c.id == sa.bindparam("comparison", type_=sa.Text())
_NEEDS = sa.select(_COMPARISONS.c.id).where(_this_one, _wanting)
_LOCK = sa.select(_COMPARISONS).where(_this_one).with_for_update()
_N_ANSWERS = sa.select(sa.func.count(sa.distinct(_ANNOTATIONS.c.annotator_id)).label("n")).where(
    _ANNOTATIONS.c.comparison_id == sa.bindparam("comparison", type_=sa.Text()), _ANNOTATIONS.c.verdict != Verdict.SKIP
)
_HELD = (
    sa.select(_LEASES)
    .where(
        _LEASES.c.project_id == sa.bindparam("project", type_=sa.Text()),
        _LEASES.c.annotator_id == _annotator,
        _LEASES.c.state == LeaseState.LIVE,
        _LEASES.c.expires_at > _now,
    )
    .order_by(_LEASES.c.id.desc())
    .limit(1)
)
_GOLD = (
    sa.select(
        _COMPARISONS.c.id,
        _COMPARISONS.c.state,
        _COMPARISONS.c.domain,
        _COMPARISONS.c.gold_choice,
        _COMPARISONS.c.attributes,
        _ANNOTATIONS.c.verdict,
        _ANNOTATIONS.c.choice,
        _ANNOTATIONS.c.flagged,
        _ANNOTATIONS.c.created_at.label("answered_at"),
    )
    .select_from(
        _COMPARISONS.outerjoin(
            _ANNOTATIONS,
            sa.and_(
                _ANNOTATIONS.c.comparison_id == _COMPARISONS.c.id,
                _ANNOTATIONS.c.annotator_id == _annotator,
                _ANNOTATIONS.c.criterion == OVERALL,
            ),
        )
    )
    .where(
        _COMPARISONS.c.project_id == sa.bindparam("project", type_=sa.Text()), _COMPARISONS.c.gold_choice.is_not(None)
    )
    .order_by(_COMPARISONS.c.id)
)
_right = sa.case((_ANNOTATIONS.c.choice == _COMPARISONS.c.gold_choice, 1), else_=0)
_GOLD_RECORDS = (
    sa.select(_ANNOTATIONS.c.annotator_id, sa.func.sum(_right).label("n_right"), sa.func.count().label("n"))
    .select_from(_COMPARISONS.join(_ANNOTATIONS, _ANNOTATIONS.c.comparison_id == _COMPARISONS.c.id))
    .where(
        _COMPARISONS.c.gold_choice.is_not(None),
        _ANNOTATIONS.c.criterion == OVERALL,
        _ANNOTATIONS.c.flagged.is_(False),
    )
    .group_by(_ANNOTATIONS.c.annotator_id)
)
