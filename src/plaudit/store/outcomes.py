"""Outcomes by their key, and summed per user of an experiment: the join by assignment."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from plaudit.domain import Interaction, Outcome
from plaudit.store.database import Transaction
from plaudit.store.experiment import Scope, arm, keys, known, within
from plaudit.store.schema import TABLES

_OUTCOMES = TABLES[Outcome]
_INTERACTIONS = TABLES[Interaction]
_BY_KEY = sa.select(_OUTCOMES).where(
    _OUTCOMES.c.project_id == sa.bindparam("project", type_=sa.Text()),
    _OUTCOMES.c.key.in_(sa.bindparam("many", expanding=True, type_=sa.Text())),
)


@dataclass(frozen=True)
class UserOutcome:
    """What became of one user of an experiment since their first turn in it. `n` may be 0; a user seen in both arms has two rows."""

    actor: str
    arm: str
    n: int
    total: float


def by_key(tx: Transaction, project_id: str, keys: Collection[str]) -> dict[str, Outcome]:
    """Those that are recorded already, by key."""
    rows = tx.rows(_BY_KEY, {"project": project_id, "many": sorted(keys)}) if keys else ()
    return {row["key"]: Outcome(**row) for row in rows}


def names(tx: Transaction, project_id: str) -> list[str]:
    """Every name that outcomes of the project have, in order."""
    query = sa.select(_OUTCOMES.c.name).where(_OUTCOMES.c.project_id == project_id).distinct()
    return sorted(row["name"] for row in tx.rows(query))


def before(tx: Transaction, project_id: str, name: str, until: datetime) -> dict[str, float]:
    """The sum of each user's outcomes of this name from before `until`; users without any are not there."""
    query = (
        sa.select(_OUTCOMES.c.actor, sa.func.sum(_OUTCOMES.c.value).label("total"))
        .where(_OUTCOMES.c.project_id == project_id, _OUTCOMES.c.name == name, _OUTCOMES.c.at < until)
        .group_by(_OUTCOMES.c.actor)
    )
    return {row["actor"]: float(row["total"]) for row in tx.rows(query)}


def per_user(tx: Transaction, project_id: str, of: Scope, name: str) -> list[UserOutcome]:
    """Every user of the experiment, or of a window of traffic, with the count and the sum of their outcomes of this name, from their first
    turn in that arm on; what happened before the assignment cannot come from it. In order of user and arm."""
    first = (
        sa.select(
            _INTERACTIONS.c.actor,
            arm(of),
            sa.func.min(_INTERACTIONS.c.created_at).label("since"),
        )
        .where(*within(of))
        .group_by(*keys(of))
        .subquery("first")
    )
    joined = first.outerjoin(
        _OUTCOMES,
        sa.and_(
            _OUTCOMES.c.project_id == project_id,
            _OUTCOMES.c.name == name,
            _OUTCOMES.c.actor == first.c.actor,
            _OUTCOMES.c.at >= first.c.since,
            *known(of, _OUTCOMES.c.at),
        ),
    )
    query = (
        sa.select(
            first.c.actor,
            first.c.arm,
            sa.func.count(_OUTCOMES.c.id).label("n"),
            sa.func.coalesce(sa.func.sum(_OUTCOMES.c.value), 0.0).label("total"),
        )
        .select_from(joined)
        .group_by(first.c.actor, first.c.arm)
        .order_by(first.c.actor, first.c.arm)
    )
    return [UserOutcome(row["actor"], row["arm"], int(row["n"]), float(row["total"])) for row in tx.rows(query)]
