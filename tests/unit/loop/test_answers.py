"""Ratings of one response and verdicts per criterion: read, stored, replayed, taken back, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonKind,
    ComparisonState,
    Interaction,
    Preference,
    Project,
    ResponseText,
    Review,
    Verdict,
)
from plaudit.errors import BadInput, Conflict
from plaudit.loop import annotate, answers, govern, planning, quality, reviews
from plaudit.loop.quality import Rules
from plaudit.store.database import Store

Chat = Callable[..., Interaction]


def rating_questions(store: Store, talks: list[Interaction], now: datetime, overlap: int = 1) -> list[Comparison]:
    plan = planning.plan_ratings(
        store, talks[0].project_id, talks, batch="rate", overlap=overlap, criteria=("tone",), now=now
    )
    return list(plan.comparisons)


def pair_question(store: Store, talk: Interaction, now: datetime, overlap: int = 1) -> Comparison:
    return planning.plan_comparisons(
        store, talk.project_id, [talk], {talk.id: [ResponseText("Another one.")]}, model="m", batch="pairs", overlap=overlap,
        criteria=("accuracy", " tone "), now=now,
    ).comparisons[0]  # fmt: skip


def say(store: Store, name: str, now: datetime, **body: Any) -> annotate.AnnotationResult:
    who = govern.person(store, "prj_default", name, now).id
    loan = annotate.lend(store, "prj_default", who, 60, now)
    assert loan is not None
    said = {"lease_id": loan.lease.id, "seconds": 3.0, **body}
    return annotate.answer(store, "prj_default", who, said, now)


def test_a_reason_is_given_once() -> None:
    body = {"verdict": "tie", "seconds": 1, "reasons": ["b", "a", "b"]}
    assert answers.read_answer(body).reasons == ("b", "a")


def test_a_rating_is_a_number_on_the_projects_scale(store: Store, project: Project, chat: Chat, now: datetime) -> None:
    (asked,) = rating_questions(store, [chat()], now)
    assert (asked.kind, len(asked.response_ids)) == (ComparisonKind.RATING, 1)
    ann = govern.person(store, project.id, "ann", now).id
    loan = annotate.lend(store, project.id, ann, 60, now)
    assert loan is not None
    assert (loan.scale, [one.text for one in loan.responses]) == ((1, 5), ["Press the button."])
    body = {"lease_id": loan.lease.id, "seconds": 2.0, "verdict": "rate"}
    for wrong, why in (
        ({}, "rating is None"),
        ({"rating": 6}, "goes from 1 to 5"),
        ({"rating": 3, "criteria": {"tone": 0}}, "goes from 1 to 5"),
        ({"rating": 3, "criteria": {"tone": "tie"}}, 'tone is "tie"'),
        ({"rating": 3, "criteria": {"tone": True}}, "whole number"),
        ({"verdict": "tie", "edit": "x"}, "edit is given with verdict tie"),
        ({"rating": 3, "criteria": {"colour": 3}}, "this question asks for: tone"),
        ({"verdict": "tie"}, "the question is rating"),
        ({"verdict": "skip", "criteria": {"tone": 3}}, "goes with"),
    ):
        with pytest.raises(BadInput, match=why):
            annotate.answer(store, project.id, ann, {**body, **wrong}, now)
    right = {**body, "rating": 4, "criteria": {"tone": 2}, "edit": "Press the red button."}
    assert not annotate.answer(store, project.id, ann, right, now).replayed
    assert annotate.answer(store, project.id, ann, right, now).replayed
    with pytest.raises(Conflict, match="another one"):
        annotate.answer(store, project.id, ann, {**right, "criteria": {"tone": 3}}, now)
    rows = {one.criterion: one for one in store.find(Annotation)}
    assert {name: (one.verdict, one.rating, one.edit) for name, one in rows.items()} == {
        "overall": (Verdict.RATE, 4, "Press the red button."),
        "tone": (Verdict.RATE, 2, None),
    }
    assert store.get(Comparison, asked.id).state is ComparisonState.CLOSED


def test_a_pair_is_judged_as_a_whole_and_by_criterion(
    store: Store, project: Project, chat: Chat, now: datetime
) -> None:
    asked = pair_question(store, chat(), now, overlap=2)
    first, second = asked.response_ids
    assert asked.criteria == ("accuracy", "tone")
    with pytest.raises(BadInput, match="the question is pairwise"):
        say(store, "ann", now, verdict="rate", rating=3)
    with pytest.raises(BadInput, match='accuracy is "left"'):
        say(store, "ann", now, verdict="tie", criteria={"accuracy": "left"})
    say(store, "ann", now, verdict="prefer", choice=first, criteria={"accuracy": second, "tone": "tie"})
    say(store, "bob", now, verdict="prefer", choice=first, criteria={"accuracy": second, "tone": None})
    report = annotate.aggregate(store, project.id, method="majority", now=now)
    assert (report.n_preferences, [one.criterion for one in report.others]) == (1, ["accuracy", "tone"])
    found = {one.criterion: one for one in store.find(Preference)}
    assert (found["overall"].chosen_response_id, found["accuracy"].chosen_response_id) == (first, second)
    assert (found["tone"].n_votes, found["tone"].probability) == (1, 0.5)


def test_undo_takes_the_criteria_back_too(store: Store, project: Project, chat: Chat, now: datetime) -> None:
    asked = pair_question(store, chat(), now, overlap=2)
    say(store, "ann", now, verdict="tie", criteria={"tone": asked.response_ids[0]})
    assert store.count(Annotation) == 2
    annotate.undo(store, project.id, govern.person(store, project.id, "ann", now).id, 60, now)
    assert store.count(Annotation) == 0


def test_ratings_make_no_pairs_and_ask_no_expert(store: Store, project: Project, chat: Chat, now: datetime) -> None:
    (asked,) = rating_questions(store, [chat()], now, overlap=2)
    who = [govern.person(store, project.id, name, now).id for name in ("ann", "bob")]
    for rating, annotator in zip((1, 5), who, strict=True):
        loan = annotate.lend(store, project.id, annotator, 60, now)
        assert loan is not None
        body = {"lease_id": loan.lease.id, "seconds": 1.0, "verdict": "rate", "rating": rating}
        annotate.answer(store, project.id, annotator, body, now, Rules(audit_fraction=1.0, extra_votes=2))
    assert store.get(Comparison, asked.id).state is ComparisonState.CLOSED
    assert annotate.aggregate(store, project.id, now=now).n_preferences == 0
    assert store.count(Review) == 0
    with pytest.raises(BadInput, match="pairwise"):
        reviews.ask(store, project.id, asked.id, "lea", now)
    with pytest.raises(BadInput, match="pairwise"):
        quality.make_gold(store, project.id, asked.id, asked.response_ids[0], "lea", now)


@pytest.mark.parametrize("criteria", [("",), ("tone", " tone"), ("overall",), ("x" * 61,), tuple("abcdefghijklm")])
def test_criteria_are_few_different_names(criteria: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="The criteria are"):
        planning.check_criteria(criteria)
