"""A lead assigns a batch or a domain: it is lent to those annotators before the rest, whatever its priority."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from plaudit.domain import AuditEntry, Comparison, Interaction, Project, ResponseText, Standing
from plaudit.errors import BadInput, NotFound
from plaudit.loop import annotate, govern, planning, quality
from plaudit.store.database import Store

Chat = Callable[..., Interaction]


def asked(store: Store, chat: Chat, batch: str, now: datetime, **columns: object) -> Comparison:
    talk = chat(f"About {batch}?")
    plan = planning.plan_comparisons(
        store, talk.project_id, [talk], {talk.id: [ResponseText("No.")]}, model="m", batch=batch, now=now
    )
    return store.change(Comparison, plan.comparisons[0].id, **{"priority": 0, **columns})


def lent_batch(store: Store, who: str, now: datetime) -> str | None:
    loan = annotate.lend(store, "prj_default", who, 60, now)
    return None if loan is None else loan.comparison.batch


def test_what_is_assigned_comes_first_and_the_rest_after_it(
    store: Store, project: Project, chat: Chat, now: datetime
) -> None:
    asked(store, chat, "urgent", now, priority=9)
    asked(store, chat, "mine", now)
    ann, bob = (govern.person(store, project.id, name, now).id for name in ("ann", "bob"))
    for _ in range(2):  # the second time changes nothing
        quality.assign(store, project.id, ann, batch="mine", by="lea", now=now)
    assert store.find(Standing)[0].batches == ("mine",)
    assert [one.action for one in store.find(AuditEntry)] == ["annotator.assign"]
    assert (lent_batch(store, ann, now), lent_batch(store, bob, now)) == ("mine", "urgent")
    held = annotate.lend(store, project.id, ann, 60, now)
    assert held is not None
    annotate.answer(store, project.id, ann, {"lease_id": held.lease.id, "verdict": "tie", "seconds": 1}, now)
    assert lent_batch(store, ann, now) == "urgent"
    quality.assign(store, project.id, ann, batch="mine", end=True, by="lea", now=now)
    assert store.find(Standing)[0].batches == ()


def test_a_domain_is_assigned_to_who_is_qualified_until_that_ends(
    store: Store, project: Project, chat: Chat, now: datetime
) -> None:
    asked(store, chat, "open", now, priority=9)
    asked(store, chat, "law", now, domain="law")
    ann = govern.person(store, project.id, "ann", now).id
    with pytest.raises(BadInput, match="ann is not qualified for 'law'"):
        quality.assign(store, project.id, ann, domain="law", by="lea", now=now)
    quality.qualify(store, project.id, ann, "law", now + timedelta(days=1), "lea", now)
    quality.assign(store, project.id, ann, domain="law", by="lea", now=now)
    later = now + timedelta(days=2)
    assert lent_batch(store, ann, later) == "open"
    annotate.release_lease(store, annotate.lend(store, project.id, ann, 60, later).lease.id, ann)  # type: ignore[union-attr]
    assert lent_batch(store, ann, now) == "law"


def test_only_what_there_is_is_assigned(store: Store, project: Project, now: datetime) -> None:
    ann = govern.person(store, project.id, "ann", now).id
    with pytest.raises(NotFound, match="no batch 'none'"):
        quality.assign(store, project.id, ann, batch="none", by="lea", now=now)
    with pytest.raises(BadInput, match="give one of them"):
        quality.assign(store, project.id, ann, by="lea", now=now)


def test_a_body_says_what_a_lead_does(store: Store, project: Project, chat: Chat, now: datetime) -> None:
    asked(store, chat, "mine", now)
    govern.person(store, project.id, "ann", now)
    until = (now + timedelta(days=9)).isoformat()
    for body in (
        {"act": "qualify", "domain": "law", "until": until},
        {"act": "assign", "domain": "law"},
        {"act": "assign", "batch": "mine"},
        {"act": "pause", "reason": "Too fast."},
    ):
        row = quality.act(store, project.id, "lea", {"person": "ann", **body}, now)
    assert (row["paused"], row["batches"], row["domains"]) == ("Too fast.", ["mine"], ["law"])
    assert row["qualified"] == [{"domain": "law", "until": until, "ended": False}]
    by_id = {"person": row["id"], "act": "resume"}
    assert quality.act(store, project.id, "lea", by_id, now)["paused"] is None
    (later,) = quality.annotators(store, project.id, now + timedelta(days=10))
    assert later["qualified"][0]["ended"]
    assert [one.actor for one in store.find(AuditEntry)] == ["lea"] * 5
    for body, error in (
        ({"person": "bob", "act": "resume"}, NotFound),
        ({"person": "ann", "act": "promote"}, BadInput),
        ({"person": "ann", "act": "pause"}, BadInput),
        ({"person": "ann", "act": "qualify", "until": until}, BadInput),
    ):
        with pytest.raises(error):
            quality.act(store, project.id, "lea", body, now)
