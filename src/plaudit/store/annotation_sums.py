"""What a lead sees of a project's annotation, summed by the database: the page does not become slower with every answer kept.

Most of it reads the index `annotations_to_sum` alone. Times are grouped as they are stored, in microseconds since 1970: a day is a whole
number of 86,400 s, a week begins on Monday, both in UTC.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from plaudit.domain import (
    OVERALL,
    Annotation,
    Comparison,
    ComparisonKind,
    ComparisonState,
    Person,
    Purpose,
    Standing,
    Verdict,
)
from plaudit.store.database import Transaction
from plaudit.store.schema import TABLES

_A, _C, _P = TABLES[Annotation], TABLES[Comparison], TABLES[Person]
_S = TABLES[Standing]
_MICROSECONDS = sa.BigInteger()
_DAY_US = 86_400_000_000
_MONDAY_US = 4 * _DAY_US  # 1970-01-05
_QUEUE = (Purpose.TRAINING, Purpose.EVALUATION)


@dataclass(frozen=True)
class Agreeing:
    """Raw agreement of the questions with two votes or more: sums of each one's share of agreeing pairs, and of its square."""

    n_items: int
    total: float
    squares: float


@dataclass(frozen=True)
class Work:
    """One annotator's answers, counted. `median_seconds` is None without an answer."""

    annotator_id: str
    n_answers: int
    n_skips: int
    n_flags: int
    n_chosen: int  # answers that prefer one
    n_first: int  # of those, the one shown first
    n_counted: int  # votes on training questions where the others have a majority
    n_agreeing: int  # of those, with it
    median_seconds: float | None


@dataclass(frozen=True)
class Dispute:
    """A training question whose votes differ."""

    comparison_id: str
    first_response_id: str
    cast: tuple[Annotation, ...]

    @property
    def n_first(self) -> int:
        return sum(one.choice == self.first_response_id for one in self.cast)


@dataclass(frozen=True)
class Criterion:
    """What was said about one criterion, or about the whole of rating questions. `mean_rating` None where nobody rated."""

    criterion: str
    n_questions: int
    n_answers: int
    n_ties: int
    mean_rating: float | None


@dataclass(frozen=True)
class Burn:
    """What is left to answer now, and what was answered and asked on each day since `since`, in answers."""

    left: int
    answered: Mapping[date, int]
    asked: Mapping[date, int]


def agreement_by_week(tx: Transaction, project_id: str, n_weeks: int) -> dict[date, Agreeing]:
    """Monday -> the questions whose last vote fell into that week; the newest weeks, oldest first."""
    per = _split(project_id, OVERALL).having(sa.func.count() > 1).subquery()
    week = ((per.c.last - _MONDAY_US) // (7 * _DAY_US)).label("week")
    query = _agreeing(per, week).group_by(week).order_by(sa.desc("week")).limit(n_weeks)
    rows = reversed(tx.rows(query))
    return {date(1970, 1, 5) + timedelta(weeks=int(row["week"])): _read_agreeing(row) for row in rows}


def agreement_by_criterion(tx: Transaction, project_id: str) -> dict[str, Agreeing]:
    """Of the criteria beside the whole."""
    per = _split(project_id, None).having(sa.func.count() > 1).subquery()
    query = _agreeing(per, per.c.criterion).group_by(per.c.criterion)
    return {row["criterion"]: _read_agreeing(row) for row in tx.rows(query)}


def _split(project_id: str, criterion: str | None) -> sa.Select[Any]:
    """Of each training question with votes that prefer one: how many (n), how many of them for the first response (n_first), the last of
    them (last, microseconds). Grouped in the order of the index, so that nothing is sorted."""
    about = _A.c.criterion == criterion if criterion is not None else _A.c.criterion != OVERALL
    return (
        sa.select(
            _A.c.criterion,
            _A.c.comparison_id,
            sa.func.count().label("n"),
            _n(_A.c.choice == _first_of(_C.c.response_ids, _A.c.choice)).label("n_first"),
            sa.func.max(sa.type_coerce(_A.c.created_at, _MICROSECONDS)).label("last"),
        )
        .join(_C, _C.c.id == _A.c.comparison_id)
        .where(
            _A.c.project_id == project_id,
            about,
            _A.c.verdict == Verdict.PREFER,
            _C.c.purpose == Purpose.TRAINING,
        )
        .group_by(_A.c.criterion, _A.c.comparison_id)
    )


def _agreeing(per: sa.Subquery, by: sa.ColumnElement[Any]) -> sa.Select[Any]:
    other = per.c.n - per.c.n_first
    same = per.c.n_first * (per.c.n_first - 1) + other * (other - 1)
    share = sa.cast(same, sa.Double) / sa.cast(per.c.n * (per.c.n - 1), sa.Double)
    return sa.select(
        by,
        sa.func.count().label("n_items"),
        sa.func.sum(share).label("total"),
        sa.func.sum(share * share).label("squares"),
    )


def _read_agreeing(row: sa.RowMapping) -> Agreeing:
    return Agreeing(int(row["n_items"]), float(row["total"]), float(row["squares"]))


def work_by_annotator(tx: Transaction, project_id: str) -> dict[str, Work]:
    answers, votes = (
        _A.c.verdict != Verdict.SKIP,
        sa.and_(_A.c.verdict == Verdict.PREFER, _C.c.purpose == Purpose.TRAINING),
    )
    by_question: Any = _A.c.comparison_id
    better = _A.c.choice == _first_of(_C.c.response_ids, _A.c.choice)
    given = (
        sa.select(
            _A.c.annotator_id,
            sa.case((answers, 1), else_=0).label("answer"),
            sa.case((sa.and_(~answers, _A.c.flagged.is_(False)), 1), else_=0).label("skip"),
            sa.case((_A.c.flagged.is_(True), 1), else_=0).label("flag"),
            sa.case((_A.c.choice.is_not(None), 1), else_=0).label("chosen"),
            sa.case((_A.c.choice == _first_of(_A.c.order, _A.c.choice), 1), else_=0).label("shown_first"),
            sa.case((votes, 1), else_=0).label("vote"),
            sa.case((better, 1), else_=0).label("better"),
            sa.func.sum(sa.case((votes, 1), else_=0)).over(partition_by=by_question).label("n"),
            sa.func.sum(sa.case((sa.and_(votes, better), 1), else_=0)).over(partition_by=by_question).label("n_better"),
        )
        .join(_C, _C.c.id == _A.c.comparison_id)
        .where(_A.c.project_id == project_id, _A.c.criterion == OVERALL)
        .subquery()
    )
    own = given.c
    others = own.n - 1
    with_me = sa.case((own.better == 1, own.n_better), else_=own.n - own.n_better) - 1
    query = sa.select(
        own.annotator_id,
        *(_whole(sa.func.sum(own[name])).label(label) for name, label in (
            ("answer", "n_answers"), ("skip", "n_skips"), ("flag", "n_flags"), ("chosen", "n_chosen"), ("shown_first", "n_first")
        )),
        _n(sa.and_(own.vote == 1, 2 * with_me != others)).label("n_counted"),
        _n(sa.and_(own.vote == 1, 2 * with_me > others)).label("n_agreeing"),
    ).group_by(own.annotator_id)  # fmt: skip
    return {
        row["annotator_id"]: Work(
            **row, median_seconds=_median_seconds(tx, project_id, row["annotator_id"], row["n_answers"])
        )
        for row in tx.rows(query)
    }


def _median_seconds(tx: Transaction, project_id: str, annotator_id: str, n_answers: int) -> float | None:
    """The middle one of the index `annotations_by_annotator`, or the mean of both."""
    values = {
        "project": project_id,
        "annotator": annotator_id,
        "skipped": (n_answers - 1) // 2,
        "taken": 2 - n_answers % 2,
    }
    found = [row["seconds"] for row in tx.rows(_MIDDLE, values)] if n_answers else []
    return sum(found) / len(found) if found else None


_MIDDLE = (
    sa.select(_A.c.seconds)
    .where(
        _A.c.project_id == sa.bindparam("project", type_=sa.Text()),
        _A.c.annotator_id == sa.bindparam("annotator", type_=sa.Text()),
        _A.c.criterion == OVERALL,
        _A.c.verdict != Verdict.SKIP,
    )
    .order_by(_A.c.seconds)
    .offset(sa.bindparam("skipped", type_=sa.Integer()))
    .limit(sa.bindparam("taken", type_=sa.Integer()))
)


def disputes(tx: Transaction, project_id: str, limit: int) -> list[Dispute]:
    """The training questions whose votes are split most evenly, the newest first of those that are so equally, with their votes."""
    per = _split(project_id, OVERALL).where(_C.c.state != ComparisonState.CANCELLED).subquery()
    uneven = sa.func.abs(2.0 * per.c.n_first / per.c.n - 1.0)
    query = (
        sa.select(per.c.comparison_id)
        .where(per.c.n_first > 0, per.c.n_first < per.c.n)
        .order_by(uneven, per.c.comparison_id.desc())
        .limit(limit)
    )
    ids = [row["comparison_id"] for row in tx.rows(query)]
    first = {one.id: one.response_ids[0] for one in tx.find(Comparison, id=ids)}
    cast: dict[str, list[Annotation]] = {id: [] for id in ids}
    for one in tx.find(Annotation, comparison_id=ids, criterion=OVERALL, verdict=Verdict.PREFER):
        cast[one.comparison_id].append(one)
    return [Dispute(id, first[id], tuple(cast[id])) for id in ids]


def unanimous(
    tx: Transaction, project_id: str, least: int, without: Sequence[str], limit: int
) -> dict[str, tuple[str, int]]:
    """Closed training questions that are there -> (the response that all of at least `least` chose, how many they are)."""
    query = (
        sa.select(_A.c.comparison_id, sa.func.max(_A.c.choice).label("choice"), sa.func.count().label("n"))
        .join(_C, _C.c.id == _A.c.comparison_id)
        .where(
            _A.c.project_id == project_id,
            _A.c.criterion == OVERALL,
            _A.c.verdict == Verdict.PREFER,
            _C.c.purpose == Purpose.TRAINING,
            _C.c.state == ComparisonState.CLOSED,
            _C.c.messages != (),
            _A.c.comparison_id.not_in(list(without)),
        )
        .group_by(_A.c.comparison_id)
        .having(sa.func.count() >= least, sa.func.min(_A.c.choice) == sa.func.max(_A.c.choice))
        .order_by(_A.c.comparison_id)
        .limit(limit)
    )
    return {row["comparison_id"]: (row["choice"], int(row["n"])) for row in tx.rows(query)}


def gold(tx: Transaction, project_id: str) -> list[Comparison]:
    """Every question whose answer is known."""
    query = sa.select(_C).where(_C.c.project_id == project_id, _C.c.gold_choice.is_not(None)).order_by(_C.c.id)
    return [Comparison(**row) for row in tx.rows(query)]


def gold_answers(tx: Transaction, project_id: str) -> dict[str, tuple[int, int]]:
    """gold question -> (right, answered); a flag is not counted."""
    query = (
        sa.select(_C.c.id, _n(_A.c.choice == _C.c.gold_choice).label("n_right"), sa.func.count().label("n"))
        .join(_A, _A.c.comparison_id == _C.c.id)
        .where(
            _C.c.project_id == project_id,
            _C.c.gold_choice.is_not(None),
            _A.c.criterion == OVERALL,
            _A.c.flagged.is_(False),
        )
        .group_by(_C.c.id)
    )
    return {row["id"]: (row["n_right"], int(row["n"])) for row in tx.rows(query)}


def flags(tx: Transaction, project_id: str, limit: int) -> list[Annotation]:
    """What was said of the questions that wait for the lead."""
    query = (
        sa.select(_A)
        .join(_C, _C.c.id == _A.c.comparison_id)
        .where(_C.c.project_id == project_id, _C.c.state == ComparisonState.FLAGGED, _A.c.flagged.is_(True))
        .order_by(_A.c.id)
        .limit(limit)
    )
    return [Annotation(**row) for row in tx.rows(query)]


def criteria(tx: Transaction, project_id: str) -> list[Criterion]:
    """What was said of each criterion, and of rating questions as a whole."""
    query = (
        sa.select(
            _A.c.criterion,
            sa.func.count(sa.distinct(_A.c.comparison_id)).label("n_questions"),
            sa.func.count().label("n_answers"),
            _n(_A.c.verdict == Verdict.TIE).label("n_ties"),
            sa.func.avg(_A.c.rating).label("mean_rating"),
        )
        .where(
            _A.c.project_id == project_id,
            _A.c.verdict != Verdict.SKIP,
            sa.or_(_A.c.criterion != OVERALL, _A.c.verdict == Verdict.RATE),
        )
        .group_by(_A.c.criterion)
        .order_by(_A.c.criterion)
    )
    rows = [dict(row) for row in tx.rows(query)]
    return [Criterion(**row | {"mean_rating": _float(row["mean_rating"])}) for row in rows]


def rating_questions(tx: Transaction, project_id: str, limit: int) -> list[dict[str, Any]]:
    """Rating questions by how much their ratings differ: id, n, mean, low, high."""
    query = (
        sa.select(
            _A.c.comparison_id.label("id"),
            sa.func.count().label("n"),
            sa.func.avg(_A.c.rating).label("mean"),
            sa.func.min(_A.c.rating).label("low"),
            sa.func.max(_A.c.rating).label("high"),
        )
        .join(_C, _C.c.id == _A.c.comparison_id)
        .where(
            _C.c.project_id == project_id,
            _C.c.kind == ComparisonKind.RATING,
            _A.c.criterion == OVERALL,
            _A.c.verdict == Verdict.RATE,
        )
        .group_by(_A.c.comparison_id)
        .order_by((sa.func.max(_A.c.rating) - sa.func.min(_A.c.rating)).desc(), _A.c.comparison_id)
        .limit(limit)
    )
    return [dict(row) | {"mean": float(row["mean"])} for row in tx.rows(query)]


def burn(tx: Transaction, project_id: str, since: datetime) -> Burn:
    """Of training and evaluation questions; gold never ends, and who skips answers nothing."""
    at = sa.type_coerce(_A.c.created_at, _MICROSECONDS)
    asked_at = sa.type_coerce(_C.c.created_at, _MICROSECONDS)
    begin = (since - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    given = (
        sa.select(sa.func.count(sa.distinct(_A.c.annotator_id)))
        .where(_A.c.comparison_id == _C.c.id, _A.c.verdict != Verdict.SKIP)
        .correlate(_C)
        .scalar_subquery()
    )
    work = _C.c.project_id == project_id, _C.c.purpose.in_(_QUEUE)
    left = sa.select(sa.func.sum(_C.c.overlap - given).label("n")).where(*work, _C.c.state == ComparisonState.OPEN)
    answered = (
        sa.select((at // _DAY_US).label("day"), sa.func.count().label("n"))
        .join(_C, _C.c.id == _A.c.comparison_id)
        .where(_A.c.project_id == project_id, _A.c.criterion == OVERALL, _A.c.verdict != Verdict.SKIP, at >= begin)
        .where(*work)
        .group_by(sa.text("day"))
    )
    asked = (
        sa.select((asked_at // _DAY_US).label("day"), sa.func.sum(_C.c.overlap).label("n"))
        .where(*work, _C.c.state != ComparisonState.CANCELLED, asked_at >= begin)
        .group_by(sa.text("day"))
    )
    return Burn(int(tx.rows(left)[0]["n"] or 0), _by_day(tx, answered), _by_day(tx, asked))


def batches_and_domains(tx: Transaction, project_id: str) -> tuple[list[str], list[str]]:
    """Of the questions that are open, by name."""
    found = []
    for column in (_C.c.batch, _C.c.domain):
        query = sa.select(column.label("name")).where(
            _C.c.project_id == project_id,
            _C.c.state == ComparisonState.OPEN,
            _C.c.purpose.in_(_QUEUE),
            column.is_not(None),
        )
        found.append([row["name"] for row in tx.rows(query.distinct().order_by(column))])
    return found[0], found[1]


def people_at_work(tx: Transaction, project_id: str, did: Collection[str]) -> list[Person]:
    """Those of `did`, and who has a standing or a role: the others are names that came with imports."""
    stands = sa.select(_S.c.person_id).where(_S.c.project_id == project_id)
    query = (
        sa.select(_P)
        .where(_P.c.project_id == project_id, sa.or_(_P.c.id.in_(list(did)), _P.c.id.in_(stands), _P.c.roles != ()))
        .order_by(_P.c.name)
    )
    return [Person(**row) for row in tx.rows(query)]


# --- inside ------------------------------------------------------------------------------------------------------------


def _n(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    """How many rows of the group."""
    return _whole(sa.func.sum(sa.case((condition, 1), else_=0)))


def _whole(value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """PostgreSQL sums whole numbers into numeric."""
    return sa.cast(value, sa.BigInteger)


def _first_of(ids: sa.Column[Any], like: sa.Column[Any]) -> sa.ColumnElement[str]:
    """The beginning of a stored list of ids (`["res_1",...`), as long as `like`: equal to it where that is the first id."""
    return sa.func.substr(sa.type_coerce(ids, sa.Text()), 3, sa.func.length(like))


def _by_day(tx: Transaction, query: sa.Select[Any, Any]) -> dict[date, int]:
    return {date(1970, 1, 1) + timedelta(days=int(row["day"])): int(row["n"]) for row in tx.rows(query)}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
