"""The lead's page of annotation: queue, agreement over time, annotators, disputes, flags, gold, guideline, cost; and what a lead does there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonState,
    Guideline,
    Json,
    Person,
    Purpose,
    Review,
    Role,
    Standing,
    Verdict,
    utc_now,
)
from plaudit.errors import BadInput
from plaudit.loop import annotate, quality, reviews
from plaudit.loop.quality import Rules
from plaudit.store import annotation as queue
from plaudit.store.database import Store
from plaudit.web.annotation_rules import rules_of
from plaudit.web.door import door_of
from plaudit.web.pages import curves, markdown
from plaudit.web.pages.annotate import plain_text
from plaudit.web.pages.forms import read_form
from plaudit.web.pages.shell import Column, Table, answer, go
from plaudit.web.sign_in import signed_in

SHOWN_DISPUTES = 50
SHOWN_WEEKS = 26
QUEUE = (
    Column("batch", "Batch"),
    Column("purpose", "Purpose", "brief"),
    Column("open", "Open", "number"),
    Column("flagged", "Flagged", "number"),
    Column("closed", "Closed", "number"),
    Column("cancelled", "Cancelled", "number"),
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
    Column("domains", "Qualified for", "words"),
)
WEEKS = (
    Column("week", "Week of", "brief"),
    Column("raw", "Agreement", "number"),
    Column("low", "from", "number"),
    Column("high", "to", "number"),
    Column("n_items", "Questions", "number"),
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


@dataclass(frozen=True)
class Seen:
    """What the page reads, once."""

    comparisons: dict[str, Comparison]
    given: list[Annotation]
    people: dict[str, Person]
    standings: dict[str, Standing]
    reviews: dict[str, Review]
    guidelines: list[Guideline]
    queue: list[Json]
    gold_records: dict[str, tuple[int, int]]


def see(store: Store, project_id: str) -> Seen:
    with store.read() as tx:
        return Seen(
            comparisons={one.id: one for one in tx.find(Comparison, project_id=project_id)},
            given=tx.find(Annotation, project_id=project_id, criterion=quality.OVERALL),
            people={one.id: one for one in tx.find(Person, project_id=project_id)},
            standings={one.person_id: one for one in tx.find(Standing, project_id=project_id)},
            reviews={one.comparison_id: one for one in tx.find(Review, project_id=project_id)},
            guidelines=tx.find(Guideline, project_id=project_id, order="version", descending=True),
            queue=queue.queue_by_batch(tx, project_id),
            gold_records=queue.gold_records(tx, project_id),
        )


# --- the page -----------------------------------------------------------------------------------------------------------


async def page(request: Request) -> Response:
    """GET /annotation."""
    return await _page(request)


async def _page(request: Request, preview: str | None = None) -> Response:
    door, me = door_of(request), signed_in(request)
    rules, now = rules_of(door.settings), utc_now()
    seen = await door.run(see, door.store, me.project_id)
    tables = await door.run(tables_of, seen, now)
    costs = await door.run(quality.cost, door.store, me.project_id, rules)
    weeks = next(table for table in tables if table.id == "agreement").rows
    points = [(float(index), float(row["raw"])) for index, row in enumerate(weeks, start=1)]
    current = seen.guidelines[0].text if seen.guidelines else ""
    return answer(
        request,
        "annotation.html",
        tables,
        costs=costs,
        rules=rules,
        curve=curves.curve(points, "agreement by week") if len(points) > 1 else "",
        text=current if preview is None else preview,
        preview=markdown.render(preview) if preview else "",
        candidates=_candidates(seen),
        annotators=_annotators(seen),
        paused=[one.person_id for one in seen.standings.values() if one.paused_at is not None],
    )


def tables_of(seen: Seen, now: datetime) -> list[Table]:
    return [
        Table("queue", "Queue", QUEUE, _queue_rows(seen), "No questions yet; `plaudit annotate plan` makes some."),
        Table("agreement", "Agreement by week", WEEKS, _weeks(seen), "No question has two answers yet."),
        Table("annotators", "Annotators", PEOPLE, _people_rows(seen, now), "Nobody has answered yet."),
        Table(
            "disputed", "Most disputed", DISPUTES, _disputes(seen), "Where two agree there is no dispute: none so far."
        ),
        Table("flagged", "Flagged", FLAGS, _flags(seen), "Nothing is flagged."),
        Table(
            "gold",
            "Gold",
            GOLD,
            _gold_rows(seen),
            "No gold yet; make some below, ten or more so that newcomers begin with it.",
        ),
        Table(
            "guidelines", "Guideline versions", VERSIONS, [vars(one) for one in seen.guidelines], "No guideline yet."
        ),
    ]


def _annotators(seen: Seen) -> list[Person]:
    """Whose role it is, or who has done it, by name."""
    did = {one.annotator_id for one in seen.given}
    found = [one for one in seen.people.values() if {Role.ANNOTATOR, Role.EXPERT} & set(one.roles) or one.id in did]
    return sorted((one for one in found if one.removed_at is None), key=lambda one: one.name)


def _queue_rows(seen: Seen) -> list[Json]:
    rows: dict[tuple[str | None, str], Json] = {}
    for one in seen.queue:
        row = rows.setdefault(
            (one["batch"], one["purpose"]),
            {"batch": one["batch"], "purpose": str(one["purpose"])} | {str(state): 0 for state in ComparisonState},
        )
        row[str(one["state"])] += one["n"]
    return list(rows.values())


def _votes(seen: Seen) -> dict[str, list[Annotation]]:
    """Training Comparison -> the answers that prefer one."""
    votes: dict[str, list[Annotation]] = defaultdict(list)
    for one in seen.given:
        if one.verdict is Verdict.PREFER and seen.comparisons[one.comparison_id].purpose is Purpose.TRAINING:
            votes[one.comparison_id].append(one)
    return votes


def _weeks(seen: Seen) -> list[Json]:
    """Raw agreement of the questions whose last answer fell in the week: the share of agreeing pairs, averaged over questions."""
    from plaudit.stats.intervals import mean_interval

    by_week: dict[str, list[float]] = defaultdict(list)
    for cast in _votes(seen).values():
        if len(cast) < 2:
            continue
        last = max(one.created_at for one in cast)
        monday = (last - timedelta(days=last.weekday())).date().isoformat()
        n = len(cast)
        counts = [sum(one.choice == choice for one in cast) for choice in {one.choice for one in cast}]
        by_week[monday].append(sum(c * (c - 1) for c in counts) / (n * (n - 1)))
    rows = []
    for week, agreeing in sorted(by_week.items())[-SHOWN_WEEKS:]:
        shown = mean_interval(agreeing) if len(agreeing) > 1 else None
        rows.append(
            {
                "week": week,
                "raw": sum(agreeing) / len(agreeing),
                "low": max(0.0, shown.low) if shown else None,
                "high": min(1.0, shown.high) if shown else None,
                "n_items": len(agreeing),
            }
        )
    return rows


def _people_rows(seen: Seen, now: datetime) -> list[Json]:
    from statistics import median

    from plaudit.stats.intervals import wilson

    by_person: dict[str, list[Annotation]] = defaultdict(list)
    for one in seen.given:
        by_person[one.annotator_id].append(one)
    agreeing: dict[str, list[bool]] = defaultdict(list)
    for cast in _votes(seen).values():
        for one in cast:
            others = [other.choice for other in cast if other is not one]
            same = sum(choice == one.choice for choice in others)
            if 2 * same != len(others):  # a majority of the others
                agreeing[one.annotator_id].append(2 * same > len(others))
    rows = []
    for person_id in sorted(by_person.keys() | seen.standings.keys()):
        given = by_person[person_id]
        answered = [one for one in given if one.verdict is not Verdict.SKIP]
        chosen = [one for one in answered if one.choice is not None]
        right, n_gold = seen.gold_records.get(person_id, (0, 0))
        agrees = wilson(sum(agreeing[person_id]), len(agreeing[person_id])) if agreeing[person_id] else None
        standing = seen.standings.get(person_id)
        rows.append(
            {
                "id": person_id,
                "name": seen.people[person_id].name if person_id in seen.people else person_id,
                "status": f"paused: {standing.pause_reason}" if standing and standing.paused_at else "active",
                "n_answers": len(answered),
                "gold_right": right if n_gold else None,
                "n_gold": n_gold or None,
                "gold_low": wilson(right, n_gold).low if n_gold else None,
                "first_fraction": sum(one.choice == one.order[0] for one in chosen) / len(chosen) if chosen else None,
                "median_seconds": median(one.seconds for one in answered) if answered else None,
                "n_skips": sum(one.verdict is Verdict.SKIP and not one.flagged for one in given),
                "n_flags": sum(one.flagged for one in given),
                "agrees": agrees.mean if agrees else None,
                "agrees_low": agrees.low if agrees else None,
                "agrees_high": agrees.high if agrees else None,
                "domains": ", ".join(quality.domains_of(standing, now)),
            }
        )
    return rows


def _disputes(seen: Seen) -> list[Json]:
    rows: list[Json] = []
    for id, cast in _votes(seen).items():
        comparison = seen.comparisons[id]
        if len({one.choice for one in cast}) < 2 or comparison.state is ComparisonState.CANCELLED:
            continue
        p = quality.posterior_of(cast, comparison.response_ids[0], seen.gold_records)
        n_first = sum(one.choice == comparison.response_ids[0] for one in cast)
        review = seen.reviews.get(id)
        rows.append(
            {
                "id": id,
                "question": _question(comparison),
                "probability": p,
                "votes": f"{n_first} : {len(cast) - n_first}",
                "review": "" if review is None else "decided" if review.decided_at else "waits",
            }
        )
    return sorted(rows, key=lambda row: abs(row["probability"] - 0.5))[:SHOWN_DISPUTES]


def _flags(seen: Seen) -> list[Json]:
    flagged = [one for one in seen.given if one.flagged]
    return [
        {
            "id": one.comparison_id,
            "question": _question(seen.comparisons[one.comparison_id]),
            "reasons": ", ".join(one.reasons),
            "note": one.note,
        }
        for one in flagged
        if seen.comparisons[one.comparison_id].state is ComparisonState.FLAGGED
    ]


def _gold_rows(seen: Seen) -> list[Json]:
    rows = []
    by_comparison: dict[str, list[Annotation]] = defaultdict(list)
    for answer_given in seen.given:
        if not answer_given.flagged:
            by_comparison[answer_given.comparison_id].append(answer_given)
    for one in seen.comparisons.values():
        if one.purpose is Purpose.GOLD:
            given = by_comparison[one.id]
            rows.append(
                {
                    "id": one.id,
                    "question": _question(one),
                    "state": "retired" if one.state is ComparisonState.CANCELLED else str(one.state),
                    "right": sum(a.choice == one.gold_choice for a in given),
                    "n": len(given),
                }
            )
    return rows


def _candidates(seen: Seen) -> list[Json]:
    """Closed training questions on which all of at least three agreed, and that are not gold yet."""
    known = {one.attributes.get("made_from") for one in seen.comparisons.values() if one.purpose is Purpose.GOLD}
    return [
        {"value": f"{id}:{cast[0].choice}", "question": _question(seen.comparisons[id]), "n": len(cast)}
        for id, cast in _votes(seen).items()
        if len(cast) >= 3
        and len({one.choice for one in cast}) == 1
        and id not in known
        and seen.comparisons[id].state is ComparisonState.CLOSED
        and seen.comparisons[id].messages
    ][:SHOWN_DISPUTES]


def _question(comparison: Comparison) -> str:
    text = plain_text(comparison.messages[-1]) if comparison.messages else "(erased)"
    return text if len(text) <= 140 else text[:137] + "..."


# --- what a lead does -----------------------------------------------------------------------------------------------------


async def guideline(request: Request) -> Response:
    """POST /annotation/guideline: the next version; with `act` preview only a look at it."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    text = form.get("text", "").replace("\r\n", "\n")
    if form.get("act") == "preview":
        return await _page(request, preview=text)
    await door.run(annotate.write_guideline, door.store, me.project_id, text, utc_now())
    return go("/annotation#guideline")


async def annotator(request: Request) -> Response:
    """POST /annotation/annotator: pause, resume or qualify a person (`act`)."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    who, now = form.get("person", ""), utc_now()
    match form.get("act"):
        case "pause":
            reason = form.get("reason", "")
            await door.run(quality.pause, door.store, me.project_id, who, reason, me.name, now)
        case "resume":
            await door.run(quality.resume, door.store, me.project_id, who, me.name, now)
        case "qualify":
            days = form.get("days", "")
            if not days.isdecimal() or int(days) > 3650:
                raise BadInput(f"days is {days!r}; give a whole number from 0 (ends it) to 3650.")
            until = now + timedelta(days=int(days)) if int(days) else None
            await door.run(quality.qualify, door.store, me.project_id, who, form.get("domain", ""), until, me.name, now)
        case other:
            raise BadInput(f"act is {other!r}; give pause, resume or qualify.")
    return go("/annotation")


async def gold(request: Request) -> Response:
    """POST /annotation/gold: make gold of what is ticked, or retire one (`act`)."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    if form.get("act") == "retire":
        await door.run(quality.retire_gold, door.store, me.project_id, form.get("gold", ""), me.name, utc_now())
        return go("/annotation#gold-title")
    ticked = [value for name, value in form.items() if name.startswith("item-")]
    if not ticked:
        raise BadInput("Nothing is ticked; tick the questions that should become gold.")
    for value in ticked:
        id, _, choice = value.partition(":")
        await door.run(quality.make_gold, door.store, me.project_id, id, choice, me.name, utc_now())
    return go("/annotation#gold-title")


async def question(request: Request) -> Response:
    """POST /annotation/question: a flagged one is kept or dropped, a disputed one sent to an expert (`act`)."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    id, act, now = form.get("comparison", ""), form.get("act"), utc_now()
    rules: Rules = rules_of(door.settings)
    if act == "expert":
        await door.run(reviews.ask, door.store, me.project_id, id, me.name, now)
    elif act in ("keep", "drop"):
        await door.run(quality.resolve_flag, door.store, me.project_id, id, act == "keep", me.name, rules, now)
    else:
        raise BadInput(f"act is {act!r}; give keep, drop or expert.")
    return go("/annotation")
