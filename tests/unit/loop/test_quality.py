"""Gold, pausing, qualification, further votes, flags, undo, cost; and what experts say in the aggregation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonState,
    Interaction,
    Lease,
    LeaseState,
    Preference,
    Project,
    Purpose,
    ResponseText,
    Review,
    ReviewKind,
    Standing,
    Verdict,
)
from plaudit.errors import BadInput, Conflict, Expired, Forbidden, NotFound
from plaudit.loop import annotate, govern, planning, quality, reviews
from plaudit.loop.quality import Rules
from plaudit.store.database import Store

Chat = Callable[..., Interaction]
Asked = Callable[..., list[Comparison]]


@pytest.fixture
def asked(store: Store, chat: Chat, now: datetime) -> Asked:
    """asked(n, overlap=3, batch="b") -> n training Comparisons."""

    def make(n: int, overlap: int = 3, batch: str = "b") -> list[Comparison]:
        talks = [chat(f"question {i} of {batch}", (f"answer {i} of {batch}",)) for i in range(n)]
        extra = {one.id: [ResponseText(f"sample of {one.id}")] for one in talks}
        planned = planning.plan_comparisons(
            store, talks[0].project_id, talks, extra, model="m", batch=batch, overlap=overlap, now=now
        )
        return list(planned.comparisons)

    return make


def somebody(store: Store, project: Project, name: str, now: datetime) -> str:
    return govern.person(store, project.id, name, now).id


def lend(store: Store, who: str, now: datetime, rules: Rules = quality.DEFAULT_RULES) -> annotate.Loan:
    loan = annotate.lend(store, "prj_default", who, 60, now, rules=rules)
    assert loan is not None
    return loan


def reply(
    store: Store,
    loan: annotate.Loan,
    now: datetime,
    which: int | None = 0,
    rules: Rules = quality.DEFAULT_RULES,
    **more: Any,
) -> Annotation:
    """`which`: the index of the response that is chosen; None skips."""
    said: dict[str, Any] = {"verdict": "skip", "choice": None}
    if which is not None:
        said = {"verdict": "prefer", "choice": loan.comparison.response_ids[which]}
    body = {"lease_id": loan.lease.id, "seconds": 4.0, **said, **more}
    return annotate.answer(store, "prj_default", loan.lease.annotator_id, body, now, rules).annotation


def made_gold(store: Store, sources: list[Comparison], now: datetime) -> list[Comparison]:
    return [quality.make_gold(store, one.project_id, one.id, one.response_ids[0], "Lea", now) for one in sources]


# --- gold -----------------------------------------------------------------------------------------------------------------


def test_without_gold_nothing_changes_and_gold_is_no_work_of_its_own(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    sources = asked(2, overlap=1)
    ann, bob = (somebody(store, project, name, now) for name in ("ann", "bob"))
    for _ in range(2):
        reply(store, lend(store, ann, now, Rules(gold_fraction=1.0)), now)
    made_gold(store, sources, now)
    # Two gold questions are too few to begin with, and silent gold comes only in between work.
    assert annotate.lend(store, project.id, bob, 60, now, rules=Rules(gold_fraction=1.0)) is None


def test_ten_gold_questions_come_first_and_seven_right_are_needed(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    gold = made_gold(store, asked(10, overlap=1), now)
    asked(3, overlap=5, batch="work")
    good, bad = (somebody(store, project, name, now) for name in ("good", "bad"))
    orders = []
    for who, n_right in ((good, 7), (bad, 6)):
        order = []
        for n in range(10):
            loan = lend(store, who, now, Rules(gold_fraction=0.0))
            assert loan.comparison.purpose is Purpose.GOLD
            order.append(loan.comparison.id)
            reply(store, loan, now, 0 if n < n_right else 1)
        orders.append(order)
        assert sorted(order) == sorted(one.id for one in gold)
    assert orders[0] != orders[1]
    assert lend(store, good, now, Rules(gold_fraction=0.0)).comparison.purpose is Purpose.TRAINING
    with pytest.raises(Forbidden, match="6 of the first 10"):
        annotate.lend(store, project.id, bad, 60, now)
    paused = store.find(Standing, person_id=bad)[0]
    assert (paused.paused_by, paused.paused_at) == ("gold", now)
    assert {one.state for one in store.find(Comparison, purpose=Purpose.GOLD)} == {ComparisonState.OPEN}


def test_a_skip_of_gold_is_a_miss_and_a_flag_is_not_counted(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    made_gold(store, asked(11, overlap=1), now)
    skipper = somebody(store, project, "skipper", now)
    for n in range(11):
        loan = lend(store, skipper, now)
        if n == 0:
            reply(store, loan, now, None, flagged=True, reasons=["private data"])
        else:
            reply(store, loan, now, 0 if n <= 6 else None)
    with pytest.raises(Forbidden, match="6 of the first 10"):
        annotate.lend(store, project.id, skipper, 60, now)


def test_silent_gold_is_a_share_that_a_reload_does_not_redraw(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    sources = asked(9, overlap=1)
    made_gold(store, sources, now)
    asked(9, overlap=1, batch="work")
    ann = somebody(store, project, "ann", now)
    kinds = []
    for _ in range(9):
        loan = lend(store, ann, now, Rules(gold_fraction=0.5))
        annotate.release_lease(store, loan.lease.id, ann)
        again = lend(store, ann, now, Rules(gold_fraction=0.5))
        assert again.comparison.id == loan.comparison.id
        kinds.append(again.comparison.purpose)
        reply(store, again, now)
    assert len(set(kinds)) == 2


def test_nobody_is_asked_as_gold_what_they_answered_as_a_question(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    (source,) = asked(1, overlap=1)
    asked(2, overlap=2, batch="work")
    ann, bob = (somebody(store, project, name, now) for name in ("ann", "bob"))
    reply(store, lend(store, ann, now), now)
    (gold,) = made_gold(store, [source], now)
    rules = Rules(gold_fraction=1.0)
    assert lend(store, bob, now, rules).comparison.id == gold.id
    assert lend(store, ann, now, rules).comparison.purpose is Purpose.TRAINING


def test_who_answers_like_a_coin_is_paused_and_the_good_are_not() -> None:
    """The rule alone, by the binomial distribution: the numbers beside FLOOR."""
    from scipy.stats import binom

    from plaudit.stats.intervals import wilson

    most_paused = max(k for k in range(21) if wilson(k, quality.FLOOR_FROM).low < quality.FLOOR)
    assert binom.cdf(most_paused, quality.FLOOR_FROM, 0.9) < 1 / 400
    assert binom.cdf(most_paused, quality.FLOOR_FROM, 0.5) > 16 / 17


def test_the_floor_pauses_after_twenty_and_only_gold_since_a_resumption_counts(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    made_gold(store, asked(24, overlap=1), now)
    asked(40, overlap=3, batch="work")
    ann = somebody(store, project, "ann", now)
    n_gold = 0
    while n_gold < 20:
        loan = lend(store, ann, now, Rules(gold_fraction=1.0))
        n_gold += loan.comparison.purpose is Purpose.GOLD
        reply(store, loan, now, 0 if n_gold <= 13 else 1)
    with pytest.raises(Forbidden, match="13 of the last 20"):
        annotate.lend(store, project.id, ann, 60, now)
    later = now + timedelta(hours=1)
    assert quality.resume(store, project.id, ann, "Lea", later).paused_at is None
    loan = lend(store, ann, later, Rules(gold_fraction=1.0))
    reply(store, loan, later, 1)
    lend(store, ann, later)
    with pytest.raises(Conflict):
        quality.resume(store, project.id, ann, "Lea", later)


def test_gold_is_made_once_of_training_questions_and_can_retire(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    (source,) = asked(1)
    with pytest.raises(BadInput, match="choice"):
        quality.make_gold(store, project.id, source.id, "res_0", "Lea", now)
    (gold,) = made_gold(store, [source], now)
    with pytest.raises(Conflict, match="gold already"):
        made_gold(store, [source], now)
    with pytest.raises(BadInput, match="training"):
        quality.make_gold(store, project.id, gold.id, source.response_ids[0], "Lea", now)
    assert quality.retire_gold(store, project.id, gold.id, "Lea", now).state is ComparisonState.CANCELLED
    assert made_gold(store, [source], now)
    with pytest.raises(NotFound):
        quality.retire_gold(store, "prj_other", gold.id, "Lea", now)


def test_gold_asks_as_its_question_did_and_only_who_is_qualified(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    (source,) = asked(1)
    with store.write() as tx:
        about = {"warning": "violence", "first_overlap": 3}
        tx.change(Comparison, source.id, domain="law", criteria=("tone",), attributes=about)
    (gold,) = made_gold(store, [source], now)
    assert (gold.domain, gold.criteria) == ("law", ("tone",))
    assert gold.attributes == {"warning": "violence", "made_from": source.id}
    asked(1, batch="plain")
    eager = Rules(gold_fraction=1.0)
    layman, lawyer = (somebody(store, project, name, now) for name in ("ann", "bob"))
    quality.qualify(store, project.id, lawyer, "law", now + timedelta(days=1), "Lea", now)
    assert lend(store, layman, now, eager).comparison.id != gold.id
    assert lend(store, lawyer, now, eager).comparison.id == gold.id


# --- standing -----------------------------------------------------------------------------------------------------------


def test_a_pause_takes_back_what_is_held_and_is_audited(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    asked(2)
    ann = somebody(store, project, "ann", now)
    held = lend(store, ann, now)
    quality.pause(store, project.id, ann, "On holiday.", "Lea", now)
    assert store.get(Lease, held.lease.id).state is LeaseState.RELEASED
    with pytest.raises(Expired):
        reply(store, held, now)
    for act in (annotate.lend, annotate.undo):
        with pytest.raises(Forbidden, match="On holiday"):
            act(store, project.id, ann, 60, now)  # type: ignore[operator]
    quality.resume(store, project.id, ann, "Lea", now)
    assert lend(store, ann, now)
    assert [one.action for one in store.find(govern.AuditEntry)][-2:] == ["annotator.pause", "annotator.resume"]
    with pytest.raises(NotFound):
        quality.pause(store, "prj_other", ann, "x", "Lea", now)


def test_a_domain_is_for_the_qualified_while_that_lasts(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    (law,) = asked(1)
    store.change(Comparison, law.id, domain="law")
    ann = somebody(store, project, "ann", now)
    assert annotate.lend(store, project.id, ann, 60, now) is None
    assert annotate.progress(store, project.id, ann, now)["available"] == 0
    quality.qualify(store, project.id, ann, "law", now + timedelta(days=1), "Lea", now)
    assert annotate.progress(store, project.id, ann, now)["available"] == 1
    assert annotate.lend(store, project.id, ann, 60, now + timedelta(days=2)) is None
    assert lend(store, ann, now).comparison.id == law.id


# --- undo and flags -------------------------------------------------------------------------------------------------------


def test_undo_lends_the_last_question_again_while_it_is_open(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    asked(2, overlap=2)
    ann, bob = (somebody(store, project, name, now) for name in ("ann", "bob"))
    with pytest.raises(NotFound):
        annotate.undo(store, project.id, ann, 60, now)
    first = lend(store, ann, now)
    reply(store, first, now)
    second = lend(store, ann, now)
    assert annotate.undo(store, project.id, ann, 60, now).comparison_id == first.comparison.id
    assert store.count(Annotation) == 0
    assert store.get(Lease, second.lease.id).state is LeaseState.RELEASED
    assert lend(store, ann, now).comparison.id == first.comparison.id
    assert reply(store, lend(store, ann, now), now, 1).choice == first.comparison.response_ids[1]
    reply(store, lend(store, bob, now), now)
    with pytest.raises(Conflict, match="closed"):
        annotate.undo(store, project.id, ann, 60, now)


def test_a_flag_stops_a_training_question_until_the_lead_decides(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    (question,) = asked(1, overlap=2)
    ann, bob, cid = (somebody(store, project, name, now) for name in ("ann", "bob", "cid"))
    held = lend(store, bob, now)
    given = reply(store, lend(store, ann, now), now, None, flagged=True, reasons=["harmful"], note="look")
    assert (given.verdict, given.flagged, given.reasons, given.note) == (Verdict.SKIP, True, ("harmful",), "look")
    assert annotate.lend(store, project.id, cid, 60, now) is None
    reply(store, held, now)  # who holds it may still answer
    assert quality.resolve_flag(store, project.id, question.id, True, "Lea", Rules(), now).state is ComparisonState.OPEN
    with pytest.raises(Conflict, match="not flagged"):
        quality.resolve_flag(store, project.id, question.id, False, "Lea", Rules(), now)
    reply(store, lend(store, cid, now), now)
    assert store.get(Comparison, question.id).state is ComparisonState.CLOSED


def test_a_flag_can_be_taken_back(store: Store, project: Project, asked: Asked, now: datetime) -> None:
    (question,) = asked(1)
    ann = somebody(store, project, "ann", now)
    reply(store, lend(store, ann, now), now, None, flagged=True)
    assert store.get(Comparison, question.id).state is ComparisonState.FLAGGED
    annotate.undo(store, project.id, ann, 60, now)
    assert store.get(Comparison, question.id).state is ComparisonState.OPEN
    reply(store, lend(store, ann, now), now)


# --- further votes, experts, money ----------------------------------------------------------------------------------------


def vote(store: Store, project: Project, choices: str, rules: Rules, now: datetime) -> None:
    """Distinct annotators answer the one open question: a or b."""
    for n, choice in enumerate(choices):
        who = somebody(store, project, f"voter {n}", now)
        reply(store, lend(store, who, now, rules), now, "ab".index(choice), rules)


@pytest.mark.parametrize(("choices", "review"), [("aaa", None), ("abaa", None), ("abbaa", ReviewKind.DISPUTE)])
def test_votes_that_do_not_decide_ask_for_more_and_then_for_an_expert(
    store: Store, project: Project, asked: Asked, now: datetime, choices: str, review: ReviewKind | None
) -> None:
    """With every annotator right 4 times of 5: three equal votes say .985, 2:1 says .8, 3:1 .94, 3:2 .8; .9 decides."""
    (question,) = asked(1)
    rules = Rules(extra_votes=2)
    vote(store, project, choices, rules, now)
    closed = store.get(Comparison, question.id)
    assert (closed.state, closed.overlap) == (ComparisonState.CLOSED, len(choices))
    found = store.find(Review)
    assert [one.kind for one in found] == ([review] if review else [])
    if found:
        assert found[0].probability == pytest.approx(0.8)


def test_who_is_good_on_gold_decides_alone_against_two_who_are_not(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    (question,) = asked(1)
    choice, other = question.response_ids
    cast = [
        Annotation(
            id=f"ann_{who}", project_id=project.id, comparison_id=question.id, annotator_id=who, guideline_id=None,
            verdict=Verdict.PREFER, choice=said, order=question.response_ids, seconds=1.0, created_at=now,
        )
        for who, said in (("good", choice), ("bad", other), ("worse", other))
    ]  # fmt: skip
    even = quality.posterior_of(cast, choice, {})
    told = quality.posterior_of(cast, choice, {"good": (20, 20), "bad": (5, 10), "worse": (5, 10)})
    assert even == pytest.approx(0.2)
    assert told == pytest.approx(24 / 1 / (24 / 1 + (9 / 6) ** 2))  # odds 24, against 1.5 each


def test_no_further_votes_and_audits_by_default_nor_beyond_the_budget(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    for rules in (Rules(), Rules(extra_votes=2, audit_fraction=1.0, pay=1.0, budget=3.0)):
        (question,) = asked(1, batch=str(rules))
        vote(store, project, "aab", rules, now)
        assert store.get(Comparison, question.id).state is ComparisonState.CLOSED
    assert [one.kind for one in store.find(Review)] == [ReviewKind.DISPUTE]  # an expert is asked, a crowd is not
    costs = quality.cost(store, project.id, Rules(pay=0.5))
    assert (costs["n_answers"], costs["spent"], costs["per_preference"]) == (6, 3.0, None)


def test_audits_are_a_share_and_an_expert_is_blind_and_has_the_last_word(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    questions = asked(2)
    rules = Rules(audit_fraction=1.0)
    for n in range(3):
        who = somebody(store, project, f"voter {n}", now)
        while (loan := annotate.lend(store, project.id, who, 60, now)) is not None:
            reply(store, loan, now, 0, rules)
    annotate.aggregate(store, project.id, now=now)
    assert {one.chosen_response_id for one in store.find(Preference)} == {one.response_ids[0] for one in questions}
    expert = somebody(store, project, "expert", now)
    assert reviews.waiting(store, project.id, who) == []  # not those who answered
    first, second = reviews.waiting(store, project.id, expert)
    assert (first.kind, first.decided_at) == (ReviewKind.AUDIT, None)
    case = reviews.look(store, project.id, expert, first.id)
    assert [one.column for one in case.votes] == [1, 2, 3]
    assert not any(name.startswith("per_") for one in case.votes for name in map(str, vars(one).values()))
    wrong = case.comparison.response_ids[1]
    said: dict[str, Any] = {"confidence": 3, "error_class": "taste", "note": None, "now": now}
    with pytest.raises(BadInput, match="choice"):
        reviews.decide(store, project.id, expert, first.id, verdict=Verdict.TIE, choice=wrong, **said)
    reviews.decide(store, project.id, expert, first.id, verdict=Verdict.PREFER, choice=wrong, **said)
    with pytest.raises(Conflict):
        reviews.decide(store, project.id, expert, first.id, verdict=Verdict.TIE, choice=None, **said)
    reviews.decide(store, project.id, expert, second.id, verdict=Verdict.BOTH_BAD, choice=None, **said)
    annotate.aggregate(store, project.id, now=now)
    (kept,) = store.find(Preference)
    assert (kept.comparison_id, kept.chosen_response_id, kept.probability) == (first.comparison_id, wrong, 1.0)
    with pytest.raises(Forbidden, match="yourself"):
        reviews.look(store, project.id, who, second.id)


def test_gold_teaches_who_is_right_and_makes_no_preference(
    store: Store, project: Project, asked: Asked, now: datetime
) -> None:
    gold = made_gold(store, asked(12, overlap=1, batch="sources"), now)
    (question,) = asked(1, overlap=2, batch="work")
    for name, which in (("good", 0), ("bad", 1)):
        who = somebody(store, project, name, now)
        for _ in range(len(gold)):
            loan = lend(store, who, now, Rules(gold_fraction=1.0))
            reply(store, loan, now, which)
            if loan.comparison.id == question.id or store.count(Standing, person_id=who):
                break
    quality.resume(store, project.id, who, "Lea", now + timedelta(seconds=1))
    later = now + timedelta(minutes=1)
    for name, which in (("good", 0), ("bad", 1)):
        who = somebody(store, project, name, now)
        while store.first(Annotation, comparison_id=question.id, annotator_id=who) is None:
            reply(store, lend(store, who, later, Rules(gold_fraction=0.0)), later, which)
    report = annotate.aggregate(store, project.id, now=later)
    (drawn,) = store.find(Preference)
    assert (drawn.comparison_id, drawn.chosen_response_id) == (question.id, question.response_ids[0])
    assert drawn.probability > 0.9
    assert (report.n_comparisons, report.n_votes) == (1, 2)


def test_a_skip_gives_its_place_away(store: Store, project: Project, asked: Asked, now: datetime) -> None:
    asked(1, overlap=1)
    ann, bob = (somebody(store, project, name, now) for name in ("ann", "bob"))
    reply(store, lend(store, ann, now), now, None)
    held = lend(store, bob, now)
    with pytest.raises(Conflict, match="others have taken"):
        annotate.undo(store, project.id, ann, 60, now)
    assert store.count(Annotation, annotator_id=ann) == 1  # nothing was taken back
    annotate.release_lease(store, held.lease.id, bob)
    assert annotate.undo(store, project.id, ann, 60, now).comparison_id == held.comparison.id
