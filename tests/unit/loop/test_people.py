from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from plaudit.domain import ApiKey, Invitation, Person
from plaudit.errors import BadInput, Conflict, Expired, NotFound
from plaudit.loop import govern, people


def test_a_link_signs_in_once(store, project, now) -> None:
    person, invitation, secret = people.invite(store, project.id, "Ann", ["lead", "lead"], now)
    assert person.roles == ("lead",)
    assert invitation.expires_at == now + people.VALID
    assert people.invited(store, secret, now) == person
    assert not people.has_signed_in(store, person.id)
    assert people.accept(store, secret, now) == person
    assert people.has_signed_in(store, person.id)
    for act in (people.invited, people.accept):
        with pytest.raises(Expired, match="was used on 2026-03-01 12:00"):
            act(store, secret, now)
        with pytest.raises(NotFound):
            act(store, secret + "x", now)


def test_of_two_who_use_a_link_at_once_one_is_in(store, project, now) -> None:
    _, _, secret = people.invite(store, project.id, "Ann", ["lead"], now)
    outcomes: list[str] = []

    def use() -> None:
        try:
            people.accept(store, secret, now)
            outcomes.append("in")
        except Expired:
            outcomes.append("refused")

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in"] + ["refused"] * 7


def test_a_link_that_was_used_between_the_look_and_the_act_is_refused(store, project, now, monkeypatch) -> None:
    """What PostgreSQL can do to two at once, and SQLite, which has one writer, cannot."""
    _, invitation, secret = people.invite(store, project.id, "Ann", ["lead"], now)
    people.accept(store, secret, now)
    monkeypatch.setattr(people, "_usable", lambda *_: invitation)
    with pytest.raises(Expired, match="a moment ago"):
        people.accept(store, secret, now)


def test_a_link_ends_with_its_time_and_with_the_next_one(store, project, now) -> None:
    _, _, first = people.invite(store, project.id, "Ann", ["lead"], now, valid=timedelta(hours=1))
    with pytest.raises(Expired, match="ended on"):
        people.accept(store, first, now + timedelta(hours=1))
    _, _, second = people.invite(store, project.id, "Ann", [], now)
    with pytest.raises(Expired):
        people.accept(store, first, now)
    assert people.accept(store, second, now).roles == ("lead",)
    assert store.count(Person) == 1


def test_what_cannot_be_invited(store, project, now) -> None:
    for name, roles, said in (
        ("Ann", [], "no role yet"),
        ("Ann", ["king"], "'king' is unknown"),
        (" Ann", ["lead"], "name"),
        ("A\nnn", ["lead"], "name"),
        ("", ["lead"], "name"),
    ):
        with pytest.raises(BadInput, match=said):
            people.invite(store, project.id, name, roles, now)
    assert store.count(Invitation) == 0


def test_a_generation_ends_with_signing_out_everywhere_and_with_removal(store, project, now) -> None:
    people.invite(store, project.id, "Root", ["admin"], now)
    person, _, _ = people.invite(store, project.id, "Ann", ["lead"], now)
    assert people.signed_in(store, person.id, 0) == person
    assert people.signed_in(store, person.id, 1) is None
    people.sign_out_everywhere(store, project.id, person.id, now, by="Ann")
    assert people.signed_in(store, person.id, 0) is None
    assert people.signed_in(store, person.id, 1) is not None
    key, _ = govern.create_key(store, project.id, "k", ["lead"], "Ann", now=now)
    _, _, secret = people.invite(store, project.id, "Ann", [], now)
    removed = people.remove(store, project.id, person.id, now)
    assert (removed.roles, removed.removed_at) == ((), now)
    assert people.remove(store, project.id, person.id, now) == removed
    assert people.signed_in(store, person.id, removed.generation) is None
    assert store.get(ApiKey, key.id).revoked_at == now
    with pytest.raises(Expired):
        people.accept(store, secret, now)
    back, _, _ = people.invite(store, project.id, "Ann", ["annotator"], now)
    assert (back.id, back.removed_at, back.roles) == (person.id, None, ("annotator",))
    assert people.find_person(store, project.id, "Ann") == back
    govern.verify_audit(store, project.id)


def test_the_last_admin_stays_and_nobody_of_another_project_is_reached(store, project, now) -> None:
    root, _, _ = people.invite(store, project.id, "Root", ["admin"], now)
    with pytest.raises(Conflict, match="last admin"):
        people.remove(store, project.id, root.id, now)
    for act in (people.remove, people.sign_out_everywhere):
        with pytest.raises(NotFound):
            act(store, "prj_other", root.id, now, by="x")
    with pytest.raises(NotFound):
        people.find_person(store, "prj_other", "Root")
