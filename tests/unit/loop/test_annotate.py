from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonState,
    CompletionStatus,
    EvaluationItem,
    Interaction,
    Lease,
    LeaseState,
    Preference,
    Project,
    Purpose,
    Response,
    ResponseOrigin,
    ResponseText,
    TrainingUse,
)
from plaudit.errors import BadInput, Conflict, Expired, NotFound, PlauditError
from plaudit.loop import annotate, govern, planning
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]


def item(index: int, first: str = "first", second: str = "second") -> EvaluationItem:
    return EvaluationItem(
        messages=({"role": "user", "content": f"question {index}"},),
        family=f"family {index}",
        first=ResponseText(first),
        second=ResponseText(second),
        first_checkpoint_id="ckp_1",
        second_checkpoint_id=None,
    )


def evaluation(store: Store, project: Project, n: int, overlap: int = 3, batch: str = "eval") -> list[Comparison]:
    return planning.plan_evaluation(
        store, project.id, [item(i) for i in range(n)], batch=batch, overlap=overlap, now=NOW
    )


def people(store: Store, project: Project, n: int) -> list[str]:
    return [govern.person(store, project.id, f"annotator {i}", NOW).id for i in range(n)]


def lend(store: Store, project: Project, who: str, now: datetime = NOW, lease_s: float = 60.0) -> annotate.Loan:
    loan = annotate.lend(store, project.id, who, lease_s, now)
    assert loan is not None
    return loan


def reply(
    store: Store,
    loan: annotate.Loan,
    verdict: str = "prefer",
    choice: str | None = None,
    now: datetime = NOW,
    **more: Any,
) -> annotate.AnnotationResult:
    if verdict == "prefer" and choice is None:
        choice = loan.comparison.response_ids[0]
    body = {"lease_id": loan.lease.id, "verdict": verdict, "choice": choice, "seconds": 4.0, **more}
    return annotate.answer(store, loan.lease.project_id, loan.lease.annotator_id, body, now)


# --- questions ---------------------------------------------------------------------------------------------------------


def plan(store: Store, interactions: Sequence[Interaction], extra: dict[str, Sequence[ResponseText]]) -> planning.Plan:
    return planning.plan_comparisons(
        store, interactions[0].project_id, interactions, extra, model="base", batch="b1", now=NOW
    )


def test_a_question_sets_what_was_shown_against_each_further_sample(store: Store, chat: Chat) -> None:
    interaction = chat(answers=("shown", "shown too"), family="reset")
    made = plan(
        store, [interaction], {interaction.id: [ResponseText("sample", "stop", -3.5, 7), ResponseText("other")]}
    )
    assert made.skipped == {}
    assert [store.get(Comparison, one.id) for one in made.comparisons] == list(made.comparisons)
    texts = []
    for comparison in made.comparisons:
        shown, sampled = (store.get(Response, id) for id in comparison.response_ids)
        texts.append((shown.text, sampled.text))
        assert (shown.origin, sampled.origin) == (ResponseOrigin.SERVED, ResponseOrigin.SAMPLED)
        assert (comparison.purpose, comparison.family, comparison.batch) == (Purpose.TRAINING, "reset", "b1")
        assert comparison.messages == interaction.messages
    assert texts == [("shown", "sample"), ("shown", "other")]
    responses = store.find(Response, interaction_id=interaction.id)
    assert sorted(one.idx for one in responses) == [0, 1, 2, 3]
    assert next(one for one in responses if one.text == "sample").logprob == -3.5


def test_what_may_not_be_asked_is_counted_by_reason(store: Store, chat: Chat) -> None:
    interactions = [
        chat(training_use=TrainingUse.UNKNOWN),
        chat(training_use=TrainingUse.DENIED),
        chat(answers=None),
        chat(status=CompletionStatus.CANCELLED),
        chat(answers=("  ",)),
        chat(answers=("same",)),
        chat(),
    ]
    extra = {one.id: [ResponseText("same ")] for one in interactions[:-1]}
    made = plan(store, interactions, extra)
    assert made.comparisons == ()
    assert made.skipped == {
        "consent is not allowed": 2,
        "no finished answer": 2,
        "empty answer": 1,
        "identical text": 1,
        "no further sample": 1,
    }
    assert store.count(Comparison) == 0
    assert store.count(Response, origin=ResponseOrigin.SAMPLED) == 0


def test_planning_again_adds_only_what_is_missing(store: Store, chat: Chat) -> None:
    first, second = chat(), chat()
    extra = {one.id: [ResponseText("sample")] for one in (first, second)}
    plan(store, [first], extra)
    again = plan(store, [first, second], extra)
    assert [one.interaction_id for one in again.comparisons] == [second.id]
    assert again.skipped == {"already in this batch": 1}


def test_an_evaluation_keeps_the_items_order_and_is_planned_once(store: Store, project: Project) -> None:
    made = evaluation(store, project, 12)
    assert evaluation(store, project, 12) == made
    assert store.count(Comparison) == 12
    assert [one.family for one in made] == [f"family {i}" for i in range(12)]
    assert {one.purpose for one in made} == {Purpose.EVALUATION}
    with pytest.raises(Conflict, match="other items"):
        evaluation(store, project, 11)


def test_equal_texts_are_a_tie_that_nobody_is_asked_about(store: Store, project: Project) -> None:
    planning.plan_evaluation(store, project.id, [item(0, "same", "same ")], batch="b", now=NOW)
    assert annotate.lend(store, project.id, people(store, project, 1)[0], 60, NOW) is None
    (votes,) = annotate.evaluation_votes(store, project.id, "b")
    assert (votes.identical, votes.closed, votes.wins) == (True, True, 0)


def test_overlap_is_bounded(store: Store, project: Project) -> None:
    with pytest.raises(BadInput, match="overlap is 0"):
        evaluation(store, project, 1, overlap=0)


# --- lending -----------------------------------------------------------------------------------------------------------


def test_who_holds_a_question_gets_it_again_with_fresh_time(store: Store, project: Project) -> None:
    evaluation(store, project, 2)
    (ann,) = people(store, project, 1)
    first = lend(store, project, ann)
    later = NOW + timedelta(seconds=50)
    again = lend(store, project, ann, later)
    assert again.lease.id == first.lease.id
    assert again.responses == first.responses
    assert again.lease.expires_at == later + timedelta(seconds=60)
    assert store.count(Lease) == 1


def test_live_leases_and_answers_fill_the_overlap_and_expired_leases_return(store: Store, project: Project) -> None:
    evaluation(store, project, 1, overlap=2)
    ann, bob, cid = people(store, project, 3)
    reply(store, lend(store, project, ann))
    lend(store, project, bob)
    assert annotate.lend(store, project.id, cid, 60, NOW) is None
    after = NOW + timedelta(seconds=60)
    assert lend(store, project, cid, after).comparison.id


def test_nobody_is_asked_twice_not_even_who_skipped_and_a_skip_fills_no_place(store: Store, project: Project) -> None:
    evaluation(store, project, 1, overlap=1)
    ann, bob = people(store, project, 2)
    reply(store, lend(store, project, ann), "skip")
    assert annotate.lend(store, project.id, ann, 60, NOW) is None
    reply(store, lend(store, project, bob))
    assert annotate.evaluation_votes(store, project.id, "eval")[0].closed


def test_priority_goes_first_then_age_and_purposes_can_be_chosen(store: Store, project: Project, chat: Chat) -> None:
    first, second = evaluation(store, project, 2, overlap=3)
    store.change(Comparison, second.id, priority=5)
    interaction = chat()
    plan(store, [interaction], {interaction.id: [ResponseText("sample")]})
    ann, bob, cid = people(store, project, 3)
    assert lend(store, project, ann).comparison.id == second.id
    reply(store, lend(store, project, ann))
    assert lend(store, project, ann).comparison.id == first.id
    training = annotate.lend(store, project.id, bob, 60, NOW, [Purpose.TRAINING])
    assert training is not None
    assert training.comparison.purpose is Purpose.TRAINING
    assert annotate.lend(store, "prj_other", cid, 60, NOW) is None


def test_the_order_is_random_per_annotator_stable_and_even(store: Store, project: Project) -> None:
    comparisons = evaluation(store, project, 40)
    orders = {
        (comparison.id, who): annotate.shown_order(comparison, who)
        for comparison in comparisons
        for who in map(str, range(50))
    }
    n_kept = sum(orders[one.id, who] == one.response_ids for one in comparisons for who in map(str, range(50)))
    assert abs(n_kept - 1000) < 4 * 500**0.5  # binomial(2000, 1/2): 4 standard deviations
    (ann,) = people(store, project, 1)
    loan = lend(store, project, ann)
    assert loan.lease.order == annotate.shown_order(loan.comparison, ann)
    assert tuple(one.id for one in loan.responses) == loan.lease.order


def test_an_answer_records_the_guideline_that_was_shown(store: Store, project: Project) -> None:
    evaluation(store, project, 1)
    old = annotate.write_guideline(store, project.id, "Be helpful.", NOW)
    assert annotate.write_guideline(store, project.id, "Be helpful.", NOW) == old
    loan = lend(store, project, people(store, project, 1)[0])
    new = annotate.write_guideline(store, project.id, "Be brief.", NOW)
    assert (old.version, new.version) == (1, 2)
    assert loan.guideline == old
    assert reply(store, loan).annotation.guideline_id == old.id


def test_heartbeat_gives_time_and_only_to_the_holder(store: Store, project: Project) -> None:
    evaluation(store, project, 1, overlap=1)
    ann, bob = people(store, project, 2)
    loan = lend(store, project, ann)
    assert annotate.heartbeat(store, loan.lease.id, ann, 600, NOW).expires_at == NOW + timedelta(seconds=600)
    with pytest.raises(NotFound):
        annotate.heartbeat(store, loan.lease.id, bob, 600, NOW)
    later = NOW + timedelta(seconds=601)
    assert annotate.heartbeat(store, loan.lease.id, ann, 60, later).expires_at > later  # nobody else needs it
    much_later = later + timedelta(seconds=61)
    lend(store, project, bob, much_later)
    with pytest.raises(Expired):
        annotate.heartbeat(store, loan.lease.id, ann, 60, much_later)


def test_a_lease_given_back_returns_at_once(store: Store, project: Project) -> None:
    evaluation(store, project, 1, overlap=1)
    ann, bob = people(store, project, 2)
    loan = lend(store, project, ann)
    for _ in range(2):
        assert annotate.release_lease(store, loan.lease.id, ann).state is LeaseState.RELEASED
    with pytest.raises(Expired, match="given back"):
        reply(store, loan)
    reply(store, lend(store, project, bob))
    with pytest.raises(NotFound):
        annotate.release_lease(store, loan.lease.id, bob)


def test_sixteen_annotators_two_hundred_comparisons_none_beyond_its_overlap(store: Store, project: Project) -> None:
    """Some clients die with a lease in hand; hours later, when those have expired, everybody comes back."""
    evaluation(store, project, 200, overlap=3)
    crowd = people(store, project, 16)
    failures: list[PlauditError] = []
    rounds = [NOW + timedelta(hours=hour) for hour in range(3)]

    def work(who: str, now: datetime, draw: random.Random) -> None:
        try:
            while (loan := annotate.lend(store, project.id, who, 60, now)) is not None:
                if now is not rounds[-1] and draw.random() < 0.05:
                    return  # this client dies
                reply(store, loan, now=now)
        except PlauditError as error:
            failures.append(error)

    for now in rounds:
        threads = [threading.Thread(target=work, args=(who, now, random.Random(who))) for who in crowd]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    leases, answers = store.find(Lease), store.find(Annotation)
    assert len(leases) > len(answers)  # clients did die
    # Within a round no lease expires: its leases and the answers before it are the takers of a comparison.
    assert max(Counter((one.comparison_id, one.annotator_id, one.created_at) for one in leases).values()) == 1
    for now in rounds:
        takers: dict[str, set[str]] = defaultdict(set)
        for lease in (one for one in leases if one.created_at == now):
            takers[lease.comparison_id].add(lease.annotator_id)
        for given in (one for one in answers if one.created_at < now):
            takers[given.comparison_id].add(given.annotator_id)
        assert max(map(len, takers.values())) == 3
    by_comparison = Counter(one.comparison_id for one in answers)
    assert len(by_comparison) == 200
    assert set(by_comparison.values()) == {3}  # none beyond its overlap, none stuck
    assert store.count(Comparison, state=ComparisonState.CLOSED) == 200


def test_two_processes_share_the_queue(store: Store, project: Project) -> None:
    """Two stores on one database have no lock in common but the database's own."""
    evaluation(store, project, 30, overlap=1)
    second = open_store(store.url)
    crowd = people(store, project, 4)

    def work(where: Store, who: str) -> None:
        while (loan := annotate.lend(where, project.id, who, 60, NOW)) is not None:
            reply(where, loan)

    threads = [threading.Thread(target=work, args=((store, second)[i % 2], who)) for i, who in enumerate(crowd)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.close()
    assert store.count(Annotation) == store.count(Lease) == 30
    assert store.count(Comparison, state=ComparisonState.CLOSED) == 30


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """What each returns, begun together."""
    ready = threading.Barrier(len(acts))

    def begin(act: Callable[[], Any]) -> Any:
        ready.wait(30)
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(begin, acts))


def test_an_annotator_who_asks_in_many_windows_at_once_holds_one_question(store: Store, project: Project) -> None:
    evaluation(store, project, 10, overlap=3)
    (who,) = people(store, project, 1)
    loans = at_once(*[lambda: annotate.lend(store, project.id, who, 60, NOW)] * 6)
    assert len({loan.lease.id for loan in loans}) == store.count(Lease) == 1


def test_a_question_that_three_want_at_once_goes_to_all_three(store: Store, project: Project) -> None:
    """Who finds its row locked by the others waits for them, instead of going home without a question."""
    for batch in range(5):
        evaluation(store, project, 1, overlap=3, batch=str(batch))
        loans = at_once(*(partial(annotate.lend, store, project.id, who, 60, NOW) for who in people(store, project, 3)))
        assert all(loans)
        for loan in loans:
            reply(store, loan)


# --- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_stored_with_the_order_shown_and_replays(store: Store, project: Project) -> None:
    evaluation(store, project, 1)
    loan = lend(store, project, people(store, project, 1)[0])
    given = reply(store, loan, choice=loan.lease.order[1], strength=2)
    assert store.get(Annotation, given.annotation.id) == given.annotation
    assert (given.annotation.order, given.annotation.choice) == (loan.lease.order, loan.lease.order[1])
    assert reply(store, loan, choice=loan.lease.order[1], strength=2, seconds=9.0) == replace(given, replayed=True)
    with pytest.raises(Conflict):
        reply(store, loan, choice=loan.lease.order[0], strength=2)
    with pytest.raises(Conflict, match="answered"):
        annotate.release_lease(store, loan.lease.id, loan.lease.annotator_id)
    with pytest.raises(Conflict, match="answered"):
        annotate.heartbeat(store, loan.lease.id, loan.lease.annotator_id, 60, NOW)
    assert store.count(Annotation) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"verdict": "left"}, "verdict"),
        ({"verdict": None}, "verdict"),
        ({"verdict": "prefer", "choice": None}, "choice"),
        ({"verdict": "prefer", "choice": "left"}, "choice"),
        ({"verdict": "tie"}, "choice"),
        ({"verdict": "tie", "choice": None, "strength": 2}, "strength"),
        ({"strength": 4}, "strength"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": None}, "seconds"),
        ({"lease_id": None}, "lease_id"),
        ({"colour": "x"}, "colour"),
        ({"note": 5}, "note"),
        ({"reasons": "vague"}, "reasons"),
        ({"reasons": ["x"] * 21}, "reasons"),
        ({"flagged": True}, "flagged"),
        ({"verdict": "tie", "choice": None, "edit": "x"}, "edit"),
    ],
)
def test_a_malformed_answer_is_refused_by_field(
    store: Store, project: Project, body: dict[str, Any], field: str
) -> None:
    evaluation(store, project, 1)
    loan = lend(store, project, people(store, project, 1)[0])
    right = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": loan.lease.order[0], "seconds": 1.0}
    with pytest.raises(BadInput, match=field):
        annotate.answer(store, project.id, loan.lease.annotator_id, {**right, **body}, NOW)
    assert store.count(Annotation) == 0


def test_another_annotators_lease_and_another_project_are_not_found(store: Store, project: Project) -> None:
    evaluation(store, project, 1)
    ann, bob = people(store, project, 2)
    loan = lend(store, project, ann)
    body = {"lease_id": loan.lease.id, "verdict": "tie", "choice": None, "seconds": 1.0}
    for project_id, who in ((project.id, bob), ("prj_other", ann)):
        with pytest.raises(NotFound):
            annotate.answer(store, project_id, who, body, NOW)


def test_a_late_answer_counts_while_nobody_else_needs_the_place(store: Store, project: Project) -> None:
    evaluation(store, project, 2, overlap=1)
    ann, bob = people(store, project, 2)
    late = NOW + timedelta(seconds=61)
    held = lend(store, project, ann)
    reply(store, held, now=late)  # nobody had taken it
    second = lend(store, project, ann, late)
    later = late + timedelta(seconds=61)
    taken = lend(store, project, bob, later)
    assert taken.comparison.id == second.comparison.id
    with pytest.raises(Expired):
        reply(store, second, now=later)
    reply(store, taken, now=later)
    assert store.count(Annotation) == 2


def test_an_answer_ends_every_lease_of_its_annotator_on_that_comparison(store: Store, project: Project) -> None:
    """Else a page left open in a second tab would hold a place that its own answer has filled."""
    evaluation(store, project, 1, overlap=2)
    ann, bob = people(store, project, 2)
    later = NOW + timedelta(seconds=61)
    first = lend(store, project, ann)
    second = lend(store, project, ann, later)
    assert first.lease.id != second.lease.id
    reply(store, first, now=later)
    assert {one.state for one in store.find(Lease)} == {LeaseState.ANSWERED}
    lend(store, project, bob, later)


def test_the_third_answer_closes(store: Store, project: Project) -> None:
    (comparison,) = evaluation(store, project, 1, overlap=3)
    for number, who in enumerate(people(store, project, 3)):
        assert store.get(Comparison, comparison.id).state is ComparisonState.OPEN, number
        reply(store, lend(store, project, who), "both_bad")
    assert store.get(Comparison, comparison.id).state is ComparisonState.CLOSED


def test_progress_is_ones_own(store: Store, project: Project) -> None:
    evaluation(store, project, 4)
    ann, bob = people(store, project, 2)
    reply(store, lend(store, project, ann), seconds=2.0)
    reply(store, lend(store, project, ann), seconds=6.0)
    reply(store, lend(store, project, ann), "skip", seconds=100.0)
    assert annotate.progress(store, project.id, ann, NOW) == {
        "answered": 2,
        "skipped": 1,
        "available": 1,
        "median_seconds": 4.0,
    }
    lend(store, project, bob)
    assert annotate.progress(store, project.id, bob, NOW) == {
        "answered": 0,
        "skipped": 0,
        "available": 4,
        "median_seconds": None,
    }


# --- conclusions -------------------------------------------------------------------------------------------------------


def annotated(store: Store, project: Project, chat: Chat, n: int = 6) -> list[str]:
    """n training comparisons, each answered by three people for what was shown; their ids."""
    interactions = [chat(f"question {i}", (f"answer {i}",)) for i in range(n)]
    made = plan(store, interactions, {one.id: [ResponseText(f"sample {one.id}")] for one in interactions})
    for who in people(store, project, 3):
        while (loan := annotate.lend(store, project.id, who, 60, NOW)) is not None:
            reply(store, loan)
    return [one.id for one in made.comparisons]


def test_aggregation_writes_one_preference_per_training_comparison_and_upserts(
    store: Store, project: Project, chat: Chat
) -> None:
    evaluation(store, project, 3)
    ids = annotated(store, project, chat)
    report = annotate.aggregate(store, project.id, now=NOW)
    assert (report.n_preferences, report.n_written, report.n_votes, report.method) == (6, 6, 18, "dawid-skene")
    before = store.find(Preference)
    assert {one.comparison_id for one in before} == set(ids)
    for preference in before:
        chosen, rejected = (
            store.get(Response, id) for id in (preference.chosen_response_id, preference.rejected_response_id)
        )
        assert (chosen.origin, rejected.origin) == (ResponseOrigin.SERVED, ResponseOrigin.SAMPLED)
        assert preference.probability > 0.9
        assert (preference.n_votes, preference.family) == (
            3,
            store.get(Comparison, preference.comparison_id or "").family,
        )
    later = NOW + timedelta(days=1)
    assert annotate.aggregate(store, project.id, now=later).n_written == 0
    assert store.find(Preference) == before
    changed = annotate.aggregate(store, project.id, method="majority", now=later)
    assert changed.n_written == 6
    after = store.find(Preference)
    assert [(one.id, one.created_at) for one in after] == [(one.id, one.created_at) for one in before]
    assert {(one.method, one.probability, one.weight) for one in after} == {("majority", 1.0, 3.0)}


def test_aggregation_can_be_held_to_one_batch_and_to_known_methods(store: Store, project: Project, chat: Chat) -> None:
    annotated(store, project, chat, 2)
    assert annotate.aggregate(store, project.id, batch="b2", now=NOW).n_preferences == 0
    assert annotate.aggregate(store, project.id, batch="b1", now=NOW).n_preferences == 2
    with pytest.raises(BadInput, match="louder"):
        annotate.aggregate(store, project.id, method="louder", now=NOW)  # type: ignore[arg-type]


def test_an_open_comparison_has_no_conclusion_yet(store: Store, project: Project, chat: Chat) -> None:
    interaction = chat()
    plan(store, [interaction], {interaction.id: [ResponseText("sample")]})
    reply(store, lend(store, project, people(store, project, 1)[0]))
    report = annotate.aggregate(store, project.id, now=NOW)
    assert (report.n_preferences, report.n_comparisons, report.agreement) == (0, 0, None)


def test_evaluation_votes_are_seen_from_the_first_answer(store: Store, project: Project) -> None:
    (comparison,) = evaluation(store, project, 1, overlap=5)
    first, second = comparison.response_ids
    verdicts = [
        ("prefer", first),
        ("prefer", first),
        ("prefer", second),
        ("tie", None),
        ("both_bad", None),
        ("skip", None),
    ]
    for who, (verdict, choice) in zip(people(store, project, 6), reversed(verdicts), strict=True):
        reply(store, lend(store, project, who), verdict, choice)
    (votes,) = annotate.evaluation_votes(store, project.id, "eval")
    assert (votes.wins, votes.losses, votes.ties, votes.both_bad, votes.skips) == (2, 1, 1, 1, 1)
    assert (votes.first_response_id, votes.item, votes.closed) == (first, 0, True)
    with pytest.raises(NotFound, match="none"):
        annotate.evaluation_votes(store, project.id, "none")
