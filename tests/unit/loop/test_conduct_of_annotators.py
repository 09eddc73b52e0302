"""Signs and audits from the store, and the crowd of `benchmarks/annotators.py` on a small scale."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest

from plaudit.crowds import HONEST, LAZY
from plaudit.domain import Annotation, Comparison, Interaction, Project, ResponseText, Review, ReviewKind, Verdict
from plaudit.loop import annotate, conduct, govern, planning, quality, reviews
from plaudit.store.database import Store

Chat = Callable[..., Interaction]
QUOTABLE = "a second answer that says to open the page and to wait for a while"


@pytest.fixture
def asked(store: Store, chat: Chat, now: datetime) -> list[Comparison]:
    """Twenty questions, every fourth about refunds."""
    talks = [
        chat(f"question {i}", (f"answer {i}",), attributes={"topic": "other" if i % 4 else "refund"}) for i in range(20)
    ]
    extra = {one.id: [ResponseText(QUOTABLE)] for one in talks}
    planned = planning.plan_comparisons(
        store, talks[0].project_id, talks, extra, model="m", batch="b", overlap=2, now=now
    )
    return list(planned.comparisons)


def answer_all(store: Store, project: Project, who: str, first: bool, note: str | None, now: datetime) -> str:
    """`first`: always what is shown first, else always the first response. Returns the Person's id."""
    person = govern.person(store, project.id, who, now).id
    at = now
    while (loan := annotate.lend(store, project.id, person, 60, at)) is not None:
        choice = loan.lease.order[0] if first else loan.comparison.response_ids[0]
        body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": choice, "seconds": 20.0, "note": note}
        annotate.answer(store, project.id, person, body, at)
        at += timedelta(seconds=20)
    return person


def test_signs_name_people_and_say_who_is_paused(
    store: Store, project: Project, asked: list[Comparison], now: datetime
) -> None:
    source = "I prefer this one because it is clear and answers the question of the user."
    lefty = answer_all(store, project, "Lefty", first=True, note=source, now=now)
    answer_all(store, project, "Ann", first=False, note=f"I like {QUOTABLE}", now=now)
    quality.pause(store, project.id, lefty, "A talk first.", "Lea", now)
    found = {one.kind: one for one in conduct.suspicions(store, project.id)}
    assert set(found) == {"one side", "pastes"}
    assert {(one.name, one.annotator_id, one.paused) for one in found.values()} == {("Lefty", lefty, True)}
    assert found["one side"].why == "chose what was shown first in 100% of 20 answers"


def test_answers_to_gold_count_and_come_in_the_order_of_time(
    store: Store, project: Project, asked: list[Comparison], now: datetime
) -> None:
    """Ann answers 20 golden questions rightly and then 20 wrongly: a drift from the twentieth on, found nowhere but in gold."""
    ann = govern.person(store, project.id, "Ann", now).id
    golden = [quality.make_gold(store, project.id, one.id, one.response_ids[0], "Lea", now) for one in asked]
    rows = []
    again = [
        replace(one, id=f"cmp_again{at}") for at, one in enumerate(golden)
    ]  # ids that come after those of `golden`
    store.add(*again)
    for at, one in enumerate(again + golden):
        rows.append(
            Annotation(
                id=f"ann_{at:02}", project_id=project.id, comparison_id=one.id, annotator_id=ann, guideline_id=None,
                verdict=Verdict.PREFER, choice=one.response_ids[at >= 20], order=one.response_ids[:: 1 if at % 2 else -1],
                seconds=9.0, created_at=now + timedelta(seconds=at),
            )
        )  # fmt: skip
    store.add(*reversed(rows))
    (drift,) = conduct.suspicions(store, project.id)
    assert (drift.kind, drift.n) == ("drift", 40)
    assert drift.why == "agrees with gold and the others in 0% since answer 20 of 40, and did before"


def test_who_quotes_the_answers_pastes_nothing() -> None:
    note = "I like open your account settings and check the mail we sent, very clear"
    assert conduct.unquoted(note, ["Open your account settings and check the mail we sent."]) == "i like very clear"
    assert conduct.unquoted(note, ["something else"]) == note.lower().replace(",", "")


def test_a_project_without_answers_has_no_signs(store: Store, project: Project) -> None:
    assert conduct.suspicions(store, project.id) == []
    assert conduct.audited(store, project.id) == []


def test_audits_flag_the_attribute_where_most_are_wrong_and_leave_disputes_out(
    store: Store, project: Project, asked: list[Comparison], now: datetime
) -> None:
    for name in ("Ann", "Ben"):
        answer_all(store, project, name, first=False, note=None, now=now)
    expert = govern.person(store, project.id, "Eve", now).id
    refunds = {one.id for at, one in enumerate(asked) if at % 4 == 0}
    with store.write() as tx:
        for at, one in enumerate(asked):
            kind = ReviewKind.AUDIT if at else ReviewKind.DISPUTE
            undecided = at == 1  # nobody can overturn what was not concluded
            quality.ask_expert(tx, one, kind, 0.5 if undecided else quality.posterior(tx, one), now)
            if one.id in refunds:
                tx.change(Comparison, one.id, domain="money")
    for review in store.find(Review):
        comparison = store.first(Comparison, id=review.comparison_id)
        assert comparison is not None
        choice = comparison.response_ids[comparison.id in refunds]
        bad = comparison.id == asked[4].id  # a refund, of which neither answer will do
        reviews.decide(
            store, project.id, expert, review.id, verdict=Verdict.BOTH_BAD if bad else Verdict.PREFER,
            choice=None if bad else choice, confidence=3,
            error_class="none", note=None, now=now,
        )  # fmt: skip
    found = conduct.audited(store, project.id)
    assert [(one.name, one.flagged, one.overturned.mean, one.overturned.n) for one in found] == [
        ("domain: money", True, 1.0, 4),
        ("topic: refund", True, 1.0, 4),
        ("topic: other", False, 0.0, 14),
    ]


def benchmark() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "annotators.py"
    spec = importlib.util.spec_from_file_location("benchmark_annotators", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_six_crowds_of_which_the_lazy_are_found_and_the_honest_left_alone() -> None:
    """Bounds are binomial: of 78 honest at .01 three or more are accused once in 20 times, of 18 lazy at .95 fewer than 15 are found once in 90."""
    told = benchmark().tally(6, 900, first_seed=500)
    assert sum(told.named[one] for one in HONEST) <= 2
    assert sum(told.named[one] for one in LAZY) >= 15
    assert told.wrong_topic_flagged >= 5
    assert told.other_topic_flagged <= 2
