"""The tables and pictures of the lead's page, from what the store has summed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from markupsafe import Markup

from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonState,
    Guideline,
    Json,
    Person,
    Review,
    Role,
    Standing,
)
from plaudit.loop import quality
from plaudit.loop.quality import Rules
from plaudit.store import annotation as queue
from plaudit.store import annotation_sums as sums
from plaudit.store.annotation_sums import Agreeing, Burn, Criterion, Dispute, Work
from plaudit.store.database import Store
from plaudit.web.pages import trends
from plaudit.web.pages.annotate import plain_text
from plaudit.web.pages.shell import Column, Table

SHOWN_DISPUTES = 50
SHOWN_FLAGS = 500
SHOWN_WEEKS = 26
SHOWN_DAYS = 30
RATE_DAYS = 7  # the present rate is that of the newest days
LEAST_UNANIMOUS = 3
QUEUE = (
    Column("batch", "Batch"),
    Column("purpose", "Purpose", "brief"),
    Column("open", "Open", "number"),
    Column("flagged", "Flagged", "number"),
    Column("closed", "Closed", "number"),
    Column("cancelled", "Cancelled", "number"),
)
DAYS = (
    Column("day", "Day", "brief"),
    Column("left", "Answers left", "number"),
    Column("answered", "Answered", "number"),
    Column("asked", "Asked for", "number"),
)
PEOPLE = (
    Column("name", "Name", "brief"),
    Column("status", "Status", "brief"),
    Column("n_answers", "Answers", "number"),
    Column("gold_right", "Gold right", "number"),
    Column("n_gold", "of", "number"),
    Column("gold_low", "at least", "number"),
    Column("first_fraction", "Chose the first", "number"),
    Column("median_seconds", "Median time", "duration"),
    Column("n_skips", "Skips", "number"),
    Column("n_flags", "Flags", "number"),
    Column("agrees", "With the majority", "number"),
    Column("agrees_low", "from", "number"),
    Column("agrees_high", "to", "number"),
)
ASSIGNMENTS = (
    Column("name", "Name", "brief"),
    Column("what", "What", "brief"),
    Column("of", "Of"),
    Column("until", "Until", "moment"),
    Column("state", "State", "brief"),
)
WEEKS = (
    Column("week", "Week of", "brief"),
    Column("raw", "Agreement", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("n_items", "Questions", "number"),
)
CRITERIA = (
    Column("criterion", "Criterion", "brief"),
    Column("n_questions", "Questions", "number"),
    Column("n_answers", "Answers", "number"),
    Column("mean_rating", "Mean rating", "number"),
    Column("n_ties", "Equal", "number"),
    Column("raw", "Agreement", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
)
RATINGS = (
    Column("id", "Comparison", "brief"),
    Column("question", "Question", "words"),
    Column("n", "Ratings", "number"),
    Column("mean", "Mean", "number"),
    Column("low", "least", "number"),
    Column("high", "greatest", "number"),
)
DISPUTES = (
    Column("id", "Comparison", "brief"),
    Column("question", "Question", "words"),
    Column("probability", "For the first", "number"),
    Column("votes", "Votes", "brief"),
    Column("review", "Expert", "brief"),
)
FLAGS = (
    Column("id", "Comparison", "brief"),
    Column("question", "Question", "words"),
    Column("reasons", "Because", "words"),
    Column("note", "Note", "words"),
)
GOLD = (
    Column("id", "Gold", "brief"),
    Column("question", "Question", "words"),
    Column("state", "State", "state"),
    Column("right", "Right", "number"),
    Column("n", "Answered", "number"),
)
VERSIONS = (
    Column("version", "Version", "number"),
    Column("text", "Text", "words"),
    Column("created_at", "Since", "moment"),
)
COST = (
    Column("n_answers", "Answers", "number"),
    Column("n_preferences", "Preferences", "number"),
    Column("spent", "Spent", "number"),
    Column("budget", "Budget", "number"),
    Column("per_preference", "For each Preference", "number"),
)


@dataclass(frozen=True)
class Seen:
    """What the page reads, in one view of the store."""

    questions: dict[str, str]  # the words of those that a table names
    people: list[Person]
    standings: dict[str, Standing]
    reviews: dict[str, Review]
    guidelines: list[Guideline]
    queue: list[Json]
    burn: Burn
    weeks: dict[date, Agreeing]
    work: dict[str, Work]
    agrees: dict[str, tuple[int, int]]
    gold_records: dict[str, tuple[int, int]]
    gold: list[Comparison]
    gold_answers: dict[str, tuple[int, int]]
    disputes: list[Dispute]
    flags: list[Annotation]
    unanimous: dict[str, tuple[str, int]]
    criteria: list[Criterion]
    criteria_agree: dict[str, Agreeing]
    ratings: list[Json]
    batches: list[str]
    domains: list[str]


def see(store: Store, project_id: str, now: datetime) -> Seen:
    since = (now - timedelta(days=SHOWN_DAYS - 1)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with store.read() as tx:
        gold, work = sums.gold(tx, project_id), sums.work_by_annotator(tx, project_id)
        compared = sums.compare_votes(tx, project_id)
        records = queue.gold_records(tx, project_id)
        made_from = [str(one.attributes["made_from"]) for one in gold if "made_from" in one.attributes]
        disputed = sums.disputes(tx, compared.disputed[:SHOWN_DISPUTES])
        flagged = sums.flags(tx, project_id, SHOWN_FLAGS)
        unanimous = sums.unanimous(tx, project_id, LEAST_UNANIMOUS, made_from, SHOWN_DISPUTES)
        criteria = sums.criteria(tx, project_id)
        ratings = sums.rating_questions(tx, project_id, SHOWN_DISPUTES) if criteria else []
        shown = {one.comparison_id for one in disputed} | {one.comparison_id for one in flagged}
        named = shown | unanimous.keys() | {one["id"] for one in ratings}
        asked = [*gold, *tx.find(Comparison, id=sorted(named))]
        batches, domains = sums.batches_and_domains(tx, project_id)
        return Seen(
            questions={one.id: question_of(one) for one in asked},
            people=sums.people_at_work(tx, project_id, work.keys()),
            standings={one.person_id: one for one in tx.find(Standing, project_id=project_id)},
            reviews={
                one.comparison_id: one for one in tx.find(Review, comparison_id=[one.comparison_id for one in disputed])
            },
            guidelines=tx.find(Guideline, project_id=project_id, order="version", descending=True),
            queue=queue.queue_by_batch(tx, project_id),
            burn=sums.burn(tx, project_id, since),
            weeks=dict(list(compared.weeks.items())[-SHOWN_WEEKS:]),
            work=work,
            agrees=compared.agrees,
            gold_records=records,
            gold=gold,
            gold_answers=sums.gold_answers(tx, project_id),
            disputes=disputed,
            flags=flagged,
            unanimous=unanimous,
            criteria=criteria,
            criteria_agree=compared.agreeing,
            ratings=ratings,
            batches=batches,
            domains=domains,
        )


def tables_of(seen: Seen, rules: Rules, costs: Json, now: datetime) -> list[Table]:
    days = days_of(seen.burn, now)
    tables = [
        Table("queue", "Queue", QUEUE, _queue_rows(seen), "No questions yet; `plaudit annotate plan` makes some."),
        Table("days", "What is left, by day", DAYS, [_day_row(one) for one in reversed(days)], "Nothing was asked or answered yet."),
        Table("agreement", "Agreement by week", WEEKS, week_rows(seen.weeks), "No question has two answers yet."),
        Table("annotators", "Annotators", PEOPLE, _people_rows(seen), "Nobody has answered yet."),
        Table("assignments", "Assignments and qualifications", ASSIGNMENTS, assignment_rows(seen.people, seen.standings, now),
              "Nobody is assigned or qualified for anything: everybody is lent what comes next."),
        Table("disputed", "Most disputed", DISPUTES, _disputes(seen), "Where two agree there is no dispute: none so far."),
        Table("flagged", _flagged_title(seen), FLAGS, _flags(seen), "Nothing is flagged."),
        Table("gold", "Gold", GOLD, _gold_rows(seen), "No gold yet; make some below, ten or more so that newcomers begin with it."),
        Table("guidelines", "Guideline versions", VERSIONS, [vars(one) for one in seen.guidelines], "No guideline yet."),
        Table("cost", "Cost", COST, [costs] if rules.pay else [], "No answer has a price; see the setting `pay_per_answer`."),
    ]  # fmt: skip
    if seen.criteria:
        tables.insert(3, Table("criteria", "Ratings and criteria", CRITERIA, _criteria_rows(seen), "None are asked."))
    if seen.ratings:
        rows = [one | {"question": seen.questions.get(one["id"], "")} for one in seen.ratings]
        tables.insert(4, Table("ratings", "Ratings that differ most", RATINGS, rows, "Nothing is rated yet."))
    return tables


def _flagged_title(seen: Seen) -> str:
    return f"Flagged: the {SHOWN_FLAGS} that wait longest" if len(seen.flags) == SHOWN_FLAGS else "Flagged"


# --- over time ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Day:
    """`left`: answers still to give at its end, of the questions that there were."""

    day: date
    left: int
    answered: int
    asked: int


def days_of(burn: Burn, now: datetime) -> list[Day]:
    """From the first day on which something was asked or answered, counted back from what is left now."""
    seen = sorted(burn.answered.keys() | burn.asked.keys())
    if not seen:
        return []
    days, left, day = [], burn.left, now.astimezone(UTC).date()
    while day >= seen[0]:
        answered, asked = burn.answered.get(day, 0), burn.asked.get(day, 0)
        days.append(Day(day, left, answered, asked))
        left = max(0, left + answered - asked)
        day -= timedelta(days=1)
    return days[::-1]


def rate_of(days: Sequence[Day]) -> float:
    """Answers a day: the mean of the newest days."""
    newest = days[-RATE_DAYS:]
    return sum(one.answered for one in newest) / len(newest) if newest else 0.0


def burn_picture(seen: Seen, now: datetime) -> tuple[Markup, str]:
    """The picture, and in words when it will be done."""
    days = days_of(seen.burn, now)
    rate = rate_of(days)
    if not days:
        return Markup(""), ""
    picture = trends.burn_down([(one.day, one.left) for one in days], rate, "answers left by day")
    if not seen.burn.left:
        return picture, "Nothing is left to answer."
    if not rate:
        return picture, f"{seen.burn.left:,} answers are left, and nobody has answered in the last {RATE_DAYS} days."
    n_days = seen.burn.left / rate
    return (
        picture,
        f"{seen.burn.left:,} answers are left: {n_days:.2g} days at {rate:.3g} a day, the rate of the last {RATE_DAYS} days.",
    )


def week_rows(weeks: Mapping[date, Agreeing]) -> list[Json]:
    """Raw agreement of the questions whose last answer fell in the week: the share of agreeing pairs, averaged over questions."""
    return [{"week": week.isoformat(), **_interval(found)} for week, found in weeks.items()]


def agreement_picture(rows: Sequence[Mapping[str, Any]]) -> Markup:
    points = [(row["week"], row["raw"], row["low"], row["high"]) for row in rows]
    return trends.agreement(points, "agreement by week, with 95 % intervals") if points else Markup("")


def _interval(found: Agreeing | None) -> Json:
    """A mean with a t interval from its sums."""
    if found is None:
        return {"raw": None, "low": None, "high": None, "n_items": 0}
    n, mean = found.n_items, found.total / found.n_items
    low = high = None
    if n > 1:
        from plaudit.stats.intervals import t_quantile  # scipy loads with the first page, not when the service starts

        half = t_quantile(0.95, n - 1) * math.sqrt(max(0.0, found.squares - n * mean * mean) / (n - 1) / n)
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    return {"raw": mean, "low": low, "high": high, "n_items": n}


# --- rows --------------------------------------------------------------------------------------------------------------


def _day_row(one: Day) -> Json:
    return {"day": one.day.isoformat(), "left": one.left, "answered": one.answered, "asked": one.asked}


def _queue_rows(seen: Seen) -> list[Json]:
    rows: dict[tuple[str | None, str], Json] = {}
    for one in seen.queue:
        row = rows.setdefault(
            (one["batch"], one["purpose"]),
            {"batch": one["batch"], "purpose": str(one["purpose"])} | {str(state): 0 for state in ComparisonState},
        )
        row[str(one["state"])] += one["n"]
    return list(rows.values())


def _people_rows(seen: Seen) -> list[Json]:
    from plaudit.stats.intervals import wilson

    names = {one.id: one.name for one in seen.people}
    rows = []
    for person_id in sorted(seen.work.keys() | seen.standings.keys(), key=lambda id: (names.get(id, id), id)):
        work = seen.work.get(person_id) or Work(person_id, 0, 0, 0, 0, 0, None)
        right, n_gold = seen.gold_records.get(person_id, (0, 0))
        n_counted, n_agreeing = seen.agrees.get(person_id, (0, 0))
        agrees = wilson(n_agreeing, n_counted) if n_counted else None
        standing = seen.standings.get(person_id)
        rows.append(
            {
                "id": person_id,
                "name": names.get(person_id, person_id),
                "status": f"paused: {standing.pause_reason}" if standing and standing.paused_at else "active",
                "n_answers": work.n_answers,
                "gold_right": right if n_gold else None,
                "n_gold": n_gold or None,
                "gold_low": wilson(right, n_gold).low if n_gold else None,
                "first_fraction": work.n_first / work.n_chosen if work.n_chosen else None,
                "median_seconds": work.median_seconds,
                "n_skips": work.n_skips,
                "n_flags": work.n_flags,
                "agrees": agrees.mean if agrees else None,
                "agrees_low": agrees.low if agrees else None,
                "agrees_high": agrees.high if agrees else None,
            }
        )
    return rows


def assignment_rows(people: Iterable[Person], standings: Mapping[str, Standing], now: datetime) -> list[Json]:
    """What each person was assigned, and is qualified for until when; by name."""
    rows: list[Json] = []
    for person in people:
        standing = standings.get(person.id)
        if standing is None:
            continue
        valid = quality.domains_of(standing, now)
        about = {"person_id": person.id, "name": person.name}
        rows += [
            about | {"what": "assigned batch", "of": one, "until": None, "state": "active"} for one in standing.batches
        ]
        rows += [
            about
            | {
                "what": "assigned domain",
                "of": one,
                "until": None,
                "state": "active" if one in valid else "not qualified",
            }
            for one in standing.domains
        ]
        rows += [
            about
            | {
                "what": "qualified for",
                "of": domain,
                "until": datetime.fromisoformat(until),
                "state": "active" if domain in valid else "ended",
            }
            for domain, until in sorted(standing.qualifications.items())
        ]
    return rows


def _criteria_rows(seen: Seen) -> list[Json]:
    return [vars(one) | _interval(seen.criteria_agree.get(one.criterion)) for one in seen.criteria]


def _disputes(seen: Seen) -> list[Json]:
    rows: list[Json] = []
    for one in seen.disputes:
        review = seen.reviews.get(one.comparison_id)
        rows.append(
            {
                "id": one.comparison_id,
                "question": seen.questions.get(one.comparison_id, ""),
                "probability": quality.posterior_of(one.cast, one.first_response_id, seen.gold_records),
                "votes": f"{one.n_first} : {len(one.cast) - one.n_first}",
                "review": "" if review is None else "decided" if review.decided_at else "waits",
            }
        )
    return sorted(rows, key=lambda row: abs(row["probability"] - 0.5))


def _flags(seen: Seen) -> list[Json]:
    return [
        {
            "id": one.comparison_id,
            "question": seen.questions.get(one.comparison_id, ""),
            "reasons": ", ".join(one.reasons),
            "note": one.note,
        }
        for one in seen.flags
    ]


def _gold_rows(seen: Seen) -> list[Json]:
    rows = []
    for one in seen.gold:
        right, n = seen.gold_answers.get(one.id, (0, 0))
        state = "retired" if one.state is ComparisonState.CANCELLED else str(one.state)
        rows.append({"id": one.id, "question": seen.questions[one.id], "state": state, "right": right, "n": n})
    return rows


def candidates(seen: Seen) -> list[Json]:
    """Closed training questions on which all of at least three agreed, and that are not gold yet."""
    return [
        {"value": f"{id}:{choice}", "question": seen.questions.get(id, ""), "n": n}
        for id, (choice, n) in seen.unanimous.items()
    ]


def annotators(seen: Seen) -> list[Person]:
    """Whose role it is, or who has done it, by name."""
    own = {Role.ANNOTATOR, Role.EXPERT}
    return [
        one
        for one in seen.people
        if one.removed_at is None and (own & set(one.roles) or one.id in seen.work or one.id in seen.standings)
    ]


def question_of(comparison: Comparison) -> str:
    text = plain_text(comparison.messages[-1]) if comparison.messages else "(erased)"
    return text if len(text) <= 140 else text[:137] + "..."
