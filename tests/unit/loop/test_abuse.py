from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plaudit.domain import Assignment, AuditEntry, Feedback, Interaction, Project, Quarantine
from plaudit.errors import BadInput, Conflict, NotFound
from plaudit.loop import abuse, collect, snapshot
from plaudit.store import experiment as looks
from plaudit.store import monitoring
from plaudit.store.database import Store

ARMS = ("candidate", "control")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]


def say(store: Store, interaction: Interaction, kind: str, value: object, after_s: float = 0) -> Feedback:
    body = {"interaction_id": interaction.id, "kind": kind, "value": value}
    return collect.record_feedback(store, interaction.project_id, body, None, NOW + timedelta(seconds=after_s)).feedback


def test_quarantined_feedback_counts_for_nothing_until_it_is_lifted(
    store: Store, project: Project, chat: Chat, tmp_path: Path
) -> None:
    arm = Assignment("rel", "exp_1", "candidate", 0, 0.5)
    troll, other = chat(actor="troll", assignment=arm), chat("another question", actor="bob", assignment=arm)
    say(store, troll, "edit", "Press the other button.")
    say(store, troll, "thumb", False)
    say(store, other, "thumb", True)

    def figures() -> tuple[int, int, int, int]:
        with store.read() as tx:
            thumbs = monitoring.thumbs(tx, project.id, NOW, NOW + timedelta(hours=1))
            spoken = monitoring.traffic(tx, project.id, NOW, NOW + timedelta(hours=1)).n_with_feedback
            down = sum(one.n_down for one in looks.exposures(tx, "exp_1", ARMS)) + len(
                looks.first_thumbs_down(tx, "exp_1", ARMS)
            )
        frozen, _ = snapshot.freeze(store, project.id, tmp_path, now=NOW)
        return len(thumbs), spoken, down, sum(frozen.counts["preferences"].values())

    assert figures() == (2, 2, 2, 1)
    held = abuse.quarantine(store, project.id, actor="troll", reason="a test", by="me", now=NOW)
    assert held.n_feedback == 2
    assert figures() == (1, 1, 0, 0)
    late = say(store, troll, "thumb", True, 5)  # accepted, stored, held
    assert late.quarantine_id == held.id
    assert figures() == (1, 1, 0, 0)
    ended = abuse.lift(store, project.id, held.id, "me", NOW)
    assert (ended.n_feedback, ended.lifted_at) == (3, NOW)
    assert figures() == (2, 2, 2, 1)
    assert abuse.lift(store, project.id, held.id, "me", NOW + timedelta(days=1)) == ended
    assert say(store, troll, "thumb", False, 9).quarantine_id is None


def test_a_quarantine_of_an_answer_holds_whoever_spoke_about_it(store: Store, project: Project, chat: Chat) -> None:
    shared, apart = chat(), chat()
    for one in (shared, apart):
        say(store, one, "thumb", True)
    held = abuse.quarantine(store, project.id, interaction_id=shared.id, reason="a crowd", by="me", now=NOW)
    assert [one.interaction_id for one in store.find(Feedback, quarantine_id=held.id)] == [shared.id]


def test_what_two_quarantines_are_about_is_held_until_both_are_lifted(
    store: Store, project: Project, chat: Chat
) -> None:
    shared, other = chat(), chat()
    for one in (shared, other):
        say(store, one, "thumb", True)
    actor = shared.actor
    by_actor = abuse.quarantine(store, project.id, actor=actor, reason="who", by="me", now=NOW)
    by_answer = abuse.quarantine(store, project.id, interaction_id=shared.id, reason="where", by="me", now=NOW)
    apart = abuse.quarantine(store, project.id, actor="nobody", reason="else", by="me", now=NOW)
    say(store, other, "thumb", False, 5)  # after it, and held with it

    def holding() -> dict[str, int]:
        return {one.id: one.n_feedback for one in abuse.quarantines(store, project.id)}

    assert holding() == {apart.id: 0, by_answer.id: 0, by_actor.id: 3}
    assert abuse.lift(store, project.id, by_actor.id, "me", NOW).n_feedback == 2
    assert holding() == {apart.id: 0, by_answer.id: 1}
    assert [one.interaction_id for one in store.find(Feedback, quarantine_id=by_answer.id)] == [shared.id]
    abuse.lift(store, project.id, by_answer.id, "me", NOW, "operator", "They were right.")
    assert not any(one.quarantine_id for one in store.find(Feedback))
    assert [(one.id, one.n_feedback) for one in abuse.quarantines(store, project.id, lifted_too=True)] == [
        (apart.id, 0),
        (by_answer.id, 1),
        (by_actor.id, 2),
    ]
    last = store.find(AuditEntry, object_id=by_answer.id, order="seq")[-1]
    assert (last.role, last.action, last.after["reason"]) == ("operator", "quarantine.lift", "They were right.")


def test_what_makes_no_quarantine(store: Store, project: Project, chat: Chat) -> None:
    with pytest.raises(BadInput, match="everything"):
        abuse.quarantine(store, project.id, reason="why not", by="me", now=NOW)
    with pytest.raises(BadInput, match="reason"):
        abuse.quarantine(store, project.id, actor="a", reason=" ", by="me", now=NOW)
    with pytest.raises(NotFound, match="int_0"):
        abuse.quarantine(store, project.id, interaction_id="int_0", reason="x", by="me", now=NOW)
    with pytest.raises(NotFound, match="qrt_0"):
        abuse.lift(store, project.id, "qrt_0", "me", NOW)
    abuse.quarantine(store, project.id, actor="a", reason="x", by="me", now=NOW)
    with pytest.raises(Conflict, match="already"):
        abuse.quarantine(store, project.id, actor="a", reason="x", by="me", now=NOW)


def test_suspects_are_held_once_with_all_their_signals_and_others_stay(
    store: Store, project: Project, chat: Chat
) -> None:
    for n in range(11):
        say(store, chat(f"q{n}", actor="bot"), "thumb", True, n * 0.5)
    say(store, chat("q", actor="ada"), "thumb", True, 3)
    end = NOW + timedelta(minutes=5)
    assert {(one.signal, one.actor) for one in abuse.suspects(store, project.id, NOW, end)} == {
        ("burst", "bot"),
        ("clicks", "bot"),
    }
    (held,) = abuse.quarantine_suspects(store, project.id, NOW, end)
    assert (held.actor, held.n_feedback) == ("bot", 11)
    assert "burst (11 acts), clicks (10 acts)" in held.reason
    assert abuse.quarantine_suspects(store, project.id, NOW, end) == []
    assert store.count(Quarantine) == 1
