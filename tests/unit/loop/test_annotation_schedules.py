"""Random schedules of annotators (hypothesis), and a crowd at once: none lent twice, none beyond the overlap, none stuck."""

from __future__ import annotations

import random
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plaudit.domain import (
    Annotation,
    Comparison,
    ComparisonState,
    EvaluationItem,
    Lease,
    LeaseState,
    Project,
    Purpose,
    ResponseText,
    Verdict,
)
from plaudit.errors import Conflict, Expired, Forbidden, NotFound
from plaudit.loop import annotate, govern, planning, quality
from plaudit.loop.quality import Rules
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEASE_S = 60.0
N, OVERLAP = 3, 2
RULES = Rules(extra_votes=1, audit_fraction=0.5)


def questions(store: Store, project: Project, n: int, overlap: int) -> list[Comparison]:
    items = [
        EvaluationItem(
            messages=({"role": "user", "content": f"question {i}"},),
            family=f"family {i}",
            first=ResponseText("first"),
            second=ResponseText("second"),
            first_checkpoint_id=None,
            second_checkpoint_id=None,
        )
        for i in range(n)
    ]
    made = planning.plan_evaluation(store, project.id, items, batch="b", overlap=overlap, now=NOW)
    with store.write() as tx:
        return [tx.change(Comparison, one.id, purpose=Purpose.TRAINING) for one in made]


who = st.integers(0, 3)


class Schedules(RuleBasedStateMachine):
    """Four annotators and three questions; a model in Python of who has said what."""

    @initialize()
    def begin(self) -> None:
        self.store = open_store("sqlite:///:memory:")
        self.now = NOW
        project = govern.ensure_project(self.store, NOW)
        self.asked = {one.id for one in questions(self.store, project, N, OVERLAP)}
        self.crowd = [govern.person(self.store, project.id, f"annotator {n}", NOW).id for n in range(4)]
        self.said: dict[tuple[str, str], Verdict] = {}
        self.last: dict[str, str] = {}
        self.paused: set[str] = set()

    def teardown(self) -> None:
        """Everybody is gone, with whatever they held. Others come and find everything that is left: nothing is stuck."""
        if not hasattr(self, "store"):
            return
        self.now += timedelta(hours=1)
        for n in range(OVERLAP + RULES.extra_votes):
            person = govern.person(self.store, "prj_default", f"later {n}", self.now).id
            while (
                loan := annotate.lend(self.store, "prj_default", person, LEASE_S, self.now, rules=RULES)
            ) is not None:
                body = {"lease_id": loan.lease.id, "verdict": "tie", "choice": None, "seconds": 1.0}
                annotate.answer(self.store, "prj_default", person, body, self.now, RULES)
        assert not self.store.find(Comparison, state=ComparisonState.OPEN)
        self.store.close()

    def held(self, person: str) -> list[Lease]:
        live = self.store.find(Lease, annotator_id=person, state=LeaseState.LIVE)
        return [one for one in live if one.expires_at > self.now]

    @rule(n=who)
    def ask(self, n: int) -> None:
        person = self.crowd[n]
        if person in self.paused:
            with pytest.raises(Forbidden):
                annotate.lend(self.store, "prj_default", person, LEASE_S, self.now, rules=RULES)
            return
        before = self.held(person)
        loan = annotate.lend(self.store, "prj_default", person, LEASE_S, self.now, rules=RULES)
        if before:
            assert loan is not None
            assert loan.lease.id == before[0].id
        elif loan is not None:
            assert (loan.comparison.id, person) not in self.said

    @rule(n=who, verdict=st.sampled_from(list(Verdict)), flagged=st.booleans())
    def answer(self, n: int, verdict: Verdict, flagged: bool) -> None:
        person = self.crowd[n]
        lease = self.store.first(Lease, annotator_id=person, state=LeaseState.LIVE)
        if lease is None:
            return
        body = {
            "lease_id": lease.id,
            "verdict": str(verdict),
            "choice": lease.order[0] if verdict is Verdict.PREFER else None,
            "seconds": 1.0,
            "flagged": flagged and verdict is Verdict.SKIP,
        }
        try:
            annotate.answer(self.store, "prj_default", person, body, self.now, RULES)
        except Expired:
            assert lease.expires_at <= self.now
            return
        self.said[lease.comparison_id, person] = verdict
        self.last[person] = lease.comparison_id

    @rule(n=who)
    def take_back(self, n: int) -> None:
        person = self.crowd[n]
        try:
            lease = annotate.undo(self.store, "prj_default", person, LEASE_S, self.now)
        except (NotFound, Conflict, Forbidden):
            return
        del self.said[lease.comparison_id, person]

    @rule(n=who)
    def heartbeat(self, n: int) -> None:
        for lease in self.store.find(Lease, annotator_id=self.crowd[n], state=LeaseState.LIVE):
            try:
                longer = annotate.heartbeat(self.store, lease.id, self.crowd[n], LEASE_S, self.now)
            except Expired:
                assert lease.expires_at <= self.now
            else:
                assert longer.expires_at == self.now + timedelta(seconds=LEASE_S)

    @rule(n=who)
    def give_back(self, n: int) -> None:
        for lease in self.held(self.crowd[n]):
            annotate.release_lease(self.store, lease.id, self.crowd[n])

    @rule(seconds=st.sampled_from([1, 30, 61]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(n=who)
    def pause(self, n: int) -> None:
        quality.pause(self.store, "prj_default", self.crowd[n], "A break.", "Lea", self.now)
        self.paused.add(self.crowd[n])
        assert not self.held(self.crowd[n])

    @precondition(lambda self: self.paused)
    @rule()
    def resume(self) -> None:
        quality.resume(self.store, "prj_default", self.paused.pop(), "Lea", self.now)

    @rule(keep=st.booleans())
    def lead_decides(self, keep: bool) -> None:
        for one in self.store.find(Comparison, state=ComparisonState.FLAGGED):
            quality.resolve_flag(self.store, "prj_default", one.id, keep, "Lea", RULES, self.now)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "store"):
            return
        given = self.store.find(Annotation)
        assert {(one.comparison_id, one.annotator_id): one.verdict for one in given} == self.said
        for person in self.crowd:
            assert len(self.held(person)) <= 1
        live = {(one.comparison_id, one.annotator_id) for person in self.crowd for one in self.held(person)}
        assert not live & self.said.keys()
        for one in self.store.find(Comparison):
            answers = sum(id == one.id and verdict is not Verdict.SKIP for (id, _), verdict in self.said.items())
            holders = sum(id == one.id for id, _ in live)
            assert one.overlap <= OVERLAP + RULES.extra_votes
            if one.state is ComparisonState.OPEN:
                assert answers < one.overlap  # none stuck: it would be lent, or is held
                assert answers + holders <= one.overlap
            if one.state is ComparisonState.CLOSED:
                assert answers == one.overlap


Schedules.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestSchedules = pytest.mark.slow(Schedules.TestCase)


@pytest.mark.slow
def test_sixteen_annotators_at_once_on_both_databases(store: Store, project: Project) -> None:
    """300 questions; benchmarks/annotation.py asks 5,000 of 64 annotators."""
    n_many, n_people = 300, 16
    questions(store, project, n_many, 3)
    crowd = [govern.person(store, project.id, f"annotator {n}", NOW).id for n in range(n_people)]
    failures: list[Exception] = []

    def work(person: str, now: datetime, deadly: bool) -> None:
        draw = random.Random(person)
        try:
            while (loan := annotate.lend(store, project.id, person, LEASE_S, now)) is not None:
                if deadly and draw.random() < 0.1:
                    return  # this client dies with a lease in hand
                body = {"lease_id": loan.lease.id, "verdict": "tie", "choice": None, "seconds": 1.0}
                annotate.answer(store, project.id, person, body, now)
        except Exception as error:
            failures.append(error)

    for hour in range(2):
        now = NOW + timedelta(hours=hour)
        threads = [threading.Thread(target=work, args=(person, now, hour == 0)) for person in crowd]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    given = store.find(Annotation)
    assert set(Counter(one.comparison_id for one in given).values()) == {3}
    assert len({(one.comparison_id, one.annotator_id) for one in given}) == len(given) == 3 * n_many
    assert store.count(Comparison, state=ComparisonState.CLOSED) == n_many
    leases = Counter((one.comparison_id, one.annotator_id, one.created_at) for one in store.find(Lease))
    assert max(leases.values()) == 1
