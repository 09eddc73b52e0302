"""Every sum of the lead's page against the same figure counted in Python, on a random crowd, on both databases."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from itertools import combinations, pairwise
from statistics import median

import pytest

from plaudit.domain import Annotation, Comparison, ComparisonKind, ComparisonState, Person, Purpose, Verdict, new_id
from plaudit.store import annotation_sums as sums
from plaudit.store.database import Store

NOW = datetime(2026, 3, 4, 15, tzinfo=UTC)  # a Wednesday
PROJECT = "prj_1"


@pytest.fixture
def crowd(store: Store) -> tuple[list[Comparison], list[Annotation]]:
    """Training, evaluation, gold and rating questions of two projects, over five weeks; five annotators of different taste."""
    draw = random.Random(7)
    asked: list[Comparison] = []
    given: list[Annotation] = []
    for at in range(160):
        purpose = draw.choice([Purpose.TRAINING] * 6 + [Purpose.EVALUATION, Purpose.GOLD])
        kind = (
            ComparisonKind.RATING if purpose is Purpose.TRAINING and draw.random() < 0.15 else ComparisonKind.PAIRWISE
        )
        ids = (f"res_{at:03}a",) if kind is ComparisonKind.RATING else (f"res_{at:03}a", f"res_{at:03}b")
        project = PROJECT if draw.random() < 0.85 else "prj_2"
        state = draw.choice(
            [ComparisonState.CLOSED, ComparisonState.FLAGGED, ComparisonState.CANCELLED, *ComparisonState]
        )
        erased = draw.random() < 0.25
        one = Comparison(
            id=new_id(Comparison), project_id=project, interaction_id=None, kind=kind, purpose=purpose,
            messages=() if erased else ({"role": "user", "content": f"{at}?"},), family=str(at), response_ids=ids, overlap=3, state=state,
            batch=f"b{at % 3}", domain="law" if at % 5 == 0 else None,
            gold_choice=ids[0] if purpose is Purpose.GOLD else None, created_at=NOW - timedelta(hours=draw.randrange(800)),
        )  # fmt: skip
        asked.append(one)
        for annotator in draw.sample(range(5), draw.randrange(4)):
            criteria = ["overall"] + (["tone"] if draw.random() < 0.3 else [])
            flagged = draw.random() < 0.12
            skipped = flagged or draw.random() < 0.1
            for criterion in ["overall"] if skipped else criteria:
                rated = kind is ComparisonKind.RATING and not skipped
                verdict = (
                    Verdict.SKIP
                    if skipped
                    else Verdict.RATE
                    if rated
                    else draw.choice([Verdict.PREFER] * 5 + [Verdict.TIE])
                )
                given.append(
                    Annotation(
                        id=new_id(Annotation), project_id=project, comparison_id=one.id, annotator_id=f"per_{annotator}",
                        guideline_id=None, criterion=criterion, verdict=verdict, flagged=flagged,
                        choice=ids[draw.random() < 0.1 + 0.2 * annotator] if verdict is Verdict.PREFER else None,
                        rating=draw.randint(1, 5) if rated else None, order=tuple(draw.sample(ids, len(ids))),
                        seconds=draw.uniform(1, 60), created_at=one.created_at + timedelta(hours=draw.randrange(60)),
                    )
                )  # fmt: skip
    store.add(*asked, *given, Person(id="per_0", project_id=PROJECT, name="Zoe", created_at=NOW))
    store.add(Person(id="per_9", project_id=PROJECT, name="Only imported", created_at=NOW))
    store.add(Person(id="per_8", project_id=PROJECT, name="Has a role", roles=("expert",), created_at=NOW))
    mine = [one for one in given if one.project_id == PROJECT]
    return [one for one in asked if one.project_id == PROJECT], mine


def votes(asked: list[Comparison], given: list[Annotation], criterion: str = "overall") -> dict[str, list[Annotation]]:
    training = {one.id for one in asked if one.purpose is Purpose.TRAINING}
    found = defaultdict(list)
    for one in given:
        if one.criterion == criterion and one.verdict is Verdict.PREFER and one.comparison_id in training:
            found[one.comparison_id].append(one)
    return found


def shares(cast: dict[str, list[Annotation]]) -> dict[str, float]:
    """Of each question with two votes: how many of its pairs of votes agree."""
    pairs = {id: [a.choice == b.choice for a, b in combinations(some, 2)] for id, some in cast.items()}
    return {id: sum(same) / len(same) for id, same in pairs.items() if same}


def test_sums_are_what_counting_gives(store: Store, crowd: tuple[list[Comparison], list[Annotation]]) -> None:
    asked, given = crowd
    cast = votes(asked, given)
    overall = [one for one in given if one.criterion == "overall"]
    with store.read() as tx:
        compared = sums.compare_votes(tx, PROJECT)
        weeks, tone = compared.weeks, compared.agreeing["tone"]
        work = sums.work_by_annotator(tx, PROJECT)
        disputes = sums.disputes(tx, compared.disputed)
        unanimous = sums.unanimous(tx, PROJECT, 2, (), 1000)
        others = sums.unanimous(tx, PROJECT, 2, list(unanimous)[:1], 1000)
        flags = sums.flags(tx, PROJECT, 1000)
        burn = sums.burn(tx, PROJECT, NOW - timedelta(days=400))
        recent = sums.burn(tx, PROJECT, datetime(2026, 3, 1, tzinfo=UTC))
        gold, gold_answers = sums.gold(tx, PROJECT), sums.gold_answers(tx, PROJECT)
        criteria = {one.criterion: one for one in sums.criteria(tx, PROJECT)}
        ratings = sums.rating_questions(tx, PROJECT, 1000)

    by_week = defaultdict(list)
    for id, share in shares(cast).items():
        last = max(one.created_at for one in cast[id])
        by_week[(last - timedelta(days=last.weekday())).date()].append(share)
    assert {week: (found.n_items, round(found.total, 9)) for week, found in weeks.items()} == {
        week: (len(some), round(sum(some), 9)) for week, some in by_week.items()
    }
    assert [round(found.squares, 9) for found in weeks.values()] == [
        round(sum(x * x for x in by_week[week]), 9) for week in sorted(by_week)
    ]
    assert list(weeks) == sorted(by_week)
    assert tone.n_items == len(shares(votes(asked, given, "tone")))

    for who, row in work.items():
        mine = [one for one in overall if one.annotator_id == who]
        answered = [one for one in mine if one.verdict is not Verdict.SKIP]
        assert (row.n_answers, row.n_flags) == (len(answered), sum(one.flagged for one in mine))
        assert row.n_skips == sum(one.verdict is Verdict.SKIP and not one.flagged for one in mine)
        assert row.n_first == sum(one.choice == one.order[0] for one in mine)
        assert row.n_chosen == sum(one.choice is not None for one in mine)
        assert row.median_seconds == pytest.approx(median(one.seconds for one in answered))
        agreeing = []
        for some in cast.values():
            for one in (one for one in some if one.annotator_id == who):
                same = [other.choice == one.choice for other in some if other is not one]
                if 2 * sum(same) != len(same):
                    agreeing.append(2 * sum(same) > len(same))
        assert compared.agrees[who] == (len(agreeing), sum(agreeing))

    named = {one.id: one for one in asked}
    split = {id: some for id, some in cast.items() if len({one.choice for one in some}) > 1}
    standing = {id: some for id, some in split.items() if named[id].state is not ComparisonState.CANCELLED}
    assert len(standing) < len(split)
    assert {one.comparison_id: len(one.cast) for one in disputes} == {id: len(some) for id, some in standing.items()}
    evenness = [round(abs(2 * one.n_first / len(one.cast) - 1), 9) for one in disputes]
    assert evenness == sorted(evenness)
    neighbours = zip(pairwise(evenness), pairwise(one.comparison_id for one in disputes), strict=True)
    assert all(newer > older for (a, b), (newer, older) in neighbours if a == b)
    assert {id: n for id, (_, n) in unanimous.items()} == {
        id: len(some)
        for id, some in cast.items()
        if len(some) >= 2 and id not in split and named[id].state is ComparisonState.CLOSED and named[id].messages
    }
    agreed = {id for id, some in cast.items() if len(some) >= 2} - set(split)
    assert any(named[id].state is ComparisonState.CLOSED and not named[id].messages for id in agreed)  # erased since
    assert list(others) == list(unanimous)[1:]
    waiting = [one for one in given if one.flagged and named[one.comparison_id].state is ComparisonState.FLAGGED]
    assert waiting
    assert [one.id for one in flags] == sorted(one.id for one in waiting)

    work_of = {one.id: one for one in asked if one.purpose is not Purpose.GOLD}
    answers = [one for one in overall if one.comparison_id in work_of and one.verdict is not Verdict.SKIP]
    left = sum(
        one.overlap - sum(a.comparison_id == one.id for a in answers)
        for one in work_of.values()
        if one.state is ComparisonState.OPEN
    )
    assert (burn.left, sum(burn.answered.values())) == (left, len(answers))
    assert sum(burn.asked.values()) == sum(
        one.overlap for one in work_of.values() if one.state is not ComparisonState.CANCELLED
    )
    assert recent.answered == {day: n for day, n in burn.answered.items() if day >= date(2026, 3, 1)}
    assert burn.answered[answers[0].created_at.date()] == sum(
        one.created_at.date() == answers[0].created_at.date() for one in answers
    )
    assert [one.id for one in gold] == [one.id for one in asked if one.gold_choice is not None]
    for one in gold:
        told = [a for a in overall if a.comparison_id == one.id and not a.flagged]
        right = sum(a.choice == one.gold_choice for a in told)
        assert gold_answers.get(one.id, (0, 0)) == (right, len(told))

    rated = [one for one in overall if one.verdict is Verdict.RATE]
    assert criteria["overall"].mean_rating == pytest.approx(sum(int(one.rating or 0) for one in rated) / len(rated))
    assert criteria["tone"].n_ties == sum(one.criterion == "tone" and one.verdict is Verdict.TIE for one in given)
    assert sum(row["n"] for row in ratings) == len(rated)
    assert [row["high"] - row["low"] for row in ratings] == sorted(
        (row["high"] - row["low"] for row in ratings), reverse=True
    )


def test_who_works_and_what_waits(store: Store, crowd: tuple[list[Comparison], list[Annotation]]) -> None:
    asked, _ = crowd
    with store.read() as tx:
        assert [one.name for one in sums.people_at_work(tx, PROJECT, ["per_0"])] == ["Has a role", "Zoe"]
        batches, domains = sums.batches_and_domains(tx, PROJECT)
        open_ones = [one for one in asked if one.state is ComparisonState.OPEN and one.purpose is not Purpose.GOLD]
        assert (batches, domains) == (sorted({str(one.batch) for one in open_ones}), ["law"])
        assert sums.compare_votes(tx, "prj_none") == sums.Compared({}, {}, [], {})
        disputed = sums.compare_votes(tx, PROJECT).disputed
        assert sums.burn(tx, "prj_none", NOW) == sums.Burn(0, {}, {})
    with store.write() as tx:
        tx.change(Comparison, disputed[0], state=ComparisonState.CANCELLED)
        assert sums.compare_votes(tx, PROJECT).disputed == disputed[1:]
