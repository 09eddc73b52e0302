"""What a lead sees of a project's annotation, summed by the database, mostly from the indices `annotations_to_sum` and `comparisons_to_sum`.

How the votes of a question agree is read once for all tables that need it (`compare_votes`). The time grows with the answers. Times are
grouped as they are stored, in microseconds since 1970: a day is a whole number of 86,400 s, a week begins on Monday, both in UTC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from operator import itemgetter
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
READ_AT_ONCE = 5000  # rows
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


@dataclass(frozen=True)
class Compared:
    """The votes of training questions beside one another.

    weeks: Monday -> the questions whose last vote fell into that week, oldest first. agreeing: by criterion, of those beside the whole.
    disputed: the questions whose votes are split, the most even first and of these the newest; cancelled ones are left out. agrees: annotator ->
    (votes on questions where the others have a majority, of those with it).
    """

    weeks: dict[date, Agreeing]
    agreeing: dict[str, Agreeing]
    disputed: list[str]
    agrees: dict[str, tuple[int, int]]


def compare_votes(tx: Transaction, project_id: str) -> Compared:
    """Reads each vote from the index, question by question; it is faster to compare them here than to join and group them there."""
    training: dict[str, str] = dict(_tuples(tx, _TRAINING, project_id))
    shares: dict[tuple[str, int], list[float]] = {}
    disputed: list[tuple[float, str]] = []
    agrees: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    asked, cast = ("", ""), list[tuple[str, str, int]]()

    def compare() -> None:
        (criterion, id), n = asked, len(cast)
        if n < 2 or id not in training:
            return
        choices = [choice for choice, _, _ in cast]
        same = {choice: choices.count(choice) for choice in set(choices)}
        share = sum([k * (k - 1) for k in same.values()]) / (n * (n - 1))
        if criterion != OVERALL:
            shares.setdefault((criterion, 0), []).append(share)
            return
        week = (max([at for _, _, at in cast]) - _MONDAY_US) // (7 * _DAY_US)
        shares.setdefault((OVERALL, week), []).append(share)
        if len(same) > 1 and training[id] != ComparisonState.CANCELLED:
            disputed.append((abs(2 * max(same.values()) / n - 1), id))
        for choice, annotator, _ in cast:
            twice = 2 * (same[choice] - 1)
            if twice != n - 1:
                agrees[annotator][0] += 1
                agrees[annotator][1] += twice > n - 1

    for criterion, id, choice, annotator, at in _tuples(tx, _VOTES, project_id):
        if (criterion, id) != asked:
            compare()
            asked, cast = (criterion, id), []
        cast.append((choice, annotator, at))
    compare()
    disputed.sort(key=itemgetter(1), reverse=True)
    disputed.sort(key=itemgetter(0))
    return Compared(
        weeks={
            date(1970, 1, 5) + timedelta(weeks=week): _agreeing(found)
            for (criterion, week), found in sorted(shares.items())
            if criterion == OVERALL
        },
        agreeing={criterion: _agreeing(found) for (criterion, _), found in shares.items() if criterion != OVERALL},
        disputed=[id for _, id in disputed],
        agrees={annotator: (n, with_them) for annotator, (n, with_them) in agrees.items()},
    )


def _agreeing(shares: Sequence[float]) -> Agreeing:
    return Agreeing(len(shares), sum(shares), sum(share * share for share in shares))


def _tuples(tx: Transaction, query: sa.Select[*tuple[Any, ...]], project_id: str) -> Iterator[Any]:
    """Its rows, a part of them in memory at a time."""
    return chain.from_iterable(tx.connection.execute(query, {"project": project_id}).partitions(READ_AT_ONCE))


def _plain(column: sa.Column[Any]) -> sa.ColumnElement[str]:
    """Text as it is stored: thousands of enums take longer to make than to compare."""
    return sa.type_coerce(column, sa.Text())


_project = sa.bindparam("project", type_=sa.Text())
_TRAINING = sa.select(_plain(_C.c.id), _plain(_C.c.state)).where(
    _C.c.project_id == _project, _C.c.purpose == Purpose.TRAINING
)
_VOTES = (
    sa.select(
        _plain(_A.c.criterion),
        _plain(_A.c.comparison_id),
        _plain(_A.c.choice),
        _plain(_A.c.annotator_id),
        sa.type_coerce(_A.c.created_at, _MICROSECONDS),
    )
    .where(_A.c.project_id == _project, _A.c.verdict == Verdict.PREFER)
    .order_by(_A.c.criterion, _A.c.comparison_id)
)


def work_by_annotator(tx: Transaction, project_id: str) -> dict[str, Work]:
    answers = _A.c.verdict != Verdict.SKIP
    query = (
        sa.select(
            _A.c.annotator_id,
            _n(answers).label("n_answers"),
            _n(sa.and_(~answers, _A.c.flagged.is_(False))).label("n_skips"),
            _n(_A.c.flagged.is_(True)).label("n_flags"),
            _n(_A.c.choice.is_not(None)).label("n_chosen"),
            _n(_begins(_A.c.order, _A.c.choice)).label("n_first"),
        )
        .where(_A.c.project_id == project_id, _A.c.criterion == OVERALL)
        .group_by(_A.c.annotator_id)
    )
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


def disputes(tx: Transaction, ids: Sequence[str]) -> list[Dispute]:
    """These training questions with their votes, in this order."""
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


def _begins(ids: sa.Column[Any], id: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Whether a stored list of ids (`["res_1",...`) has this one first."""
    return (
        sa.func.substr(sa.type_coerce(ids, sa.Text()), 1, sa.func.length(id) + 3)
        == '["' + sa.type_coerce(id, sa.Text()) + '"'
    )


def _by_day(tx: Transaction, query: sa.Select[Any, Any]) -> dict[date, int]:
    return {date(1970, 1, 1) + timedelta(days=int(row["day"])): int(row["n"]) for row in tx.rows(query)}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
