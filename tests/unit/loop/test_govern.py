from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from plaudit.domain import (
    ApiKey,
    Approval,
    AuditEntry,
    Decision,
    Person,
    Project,
    Release,
    ReleaseState,
    Role,
    TrainingUse,
)
from plaudit.errors import BadInput, ConfigError, Conflict, Corrupt, NotFound, Refused
from plaudit.loop import govern
from plaudit.loop.govern import Permission
from plaudit.store.database import Store
from plaudit.store.schema import TABLES

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENTRIES = TABLES[AuditEntry]


# --- who may -----------------------------------------------------------------------------------------------------------


def test_every_role_has_permissions_and_every_permission_somebody() -> None:
    assert set(govern.PERMISSIONS) == set(Role)
    assert set().union(*govern.PERMISSIONS.values()) == set(Permission)


@pytest.mark.parametrize(
    ("roles", "permission", "allowed"),
    [
        (("application",), Permission.CHAT, True),
        (("application",), Permission.ANNOTATE, False),
        (("annotator",), Permission.ANNOTATE, True),
        (("annotator",), Permission.READ, False),
        (("operator",), Permission.APPROVE, False),
        (("operator", "approver"), Permission.APPROVE, True),
        (("admin",), Permission.ADMIN, True),
        ((), Permission.CHAT, False),
    ],
)
def test_a_key_may_what_one_of_its_roles_may(roles: tuple[str, ...], permission: Permission, allowed: bool) -> None:
    assert govern.may(roles, permission) is allowed


# --- projects, people, keys --------------------------------------------------------------------------------------------


def test_project_and_people_are_made_once(store: Store) -> None:
    first = govern.ensure_project(store, NOW, TrainingUse.ALLOWED)
    assert govern.ensure_project(store, NOW + timedelta(days=1)) == first
    assert first.training_use_default is TrainingUse.ALLOWED
    ann = govern.person(store, first.id, "Ann", NOW)
    assert govern.person(store, first.id, "Ann", NOW) == ann
    assert govern.person(store, first.id, "Bob", NOW) != ann
    assert store.count(Person) == 2
    for wrong in ("", " ", " Ann", "x" * 201):
        with pytest.raises(BadInput, match="name"):
            govern.person(store, first.id, wrong, NOW)


def test_a_key_is_found_by_its_secret_until_it_is_revoked(store: Store, project: Project) -> None:
    key, secret = govern.create_key(store, project.id, "app", ["application"], now=NOW)
    assert govern.find_key(store, secret) == key
    assert govern.find_key(store, secret + "x") is None
    assert govern.find_key(store, "\ud800") is None
    assert secret not in str(store.find(ApiKey)) + str(store.find(AuditEntry))
    revoked = govern.revoke_key(store, project.id, key.id, NOW)
    assert revoked.revoked_at == NOW
    assert govern.find_key(store, secret) is None
    assert govern.revoke_key(store, project.id, key.id, NOW + timedelta(days=1)).revoked_at == NOW
    with pytest.raises(NotFound):
        govern.revoke_key(store, "prj_other", key.id, NOW)


def test_a_personal_role_needs_a_person_and_roles_are_known(store: Store, project: Project) -> None:
    with pytest.raises(BadInput, match="say whose"):
        govern.create_key(store, project.id, "k", ["annotator"], now=NOW)
    with pytest.raises(BadInput, match="'king' is unknown"):
        govern.create_key(store, project.id, "k", ["king"], now=NOW)
    with pytest.raises(BadInput, match="no role"):
        govern.create_key(store, project.id, "k", [], now=NOW)
    key, _ = govern.create_key(store, project.id, "k", ["annotator"], "Ann", now=NOW)
    assert key.person_id == govern.person(store, project.id, "Ann", NOW).id


# --- audit -------------------------------------------------------------------------------------------------------------


def chain(store: Store, project: Project, n: int = 5) -> list[AuditEntry]:
    return [
        govern.audit(store, project.id, "ann", "operator", "x.y", f"obj_{i}", {}, {"i": i, "f": 0.1}, NOW)
        for i in range(n)
    ]


def test_a_chain_verifies_and_each_project_has_its_own(store: Store, project: Project) -> None:
    assert govern.verify_audit(store, project.id) == govern.EMPTY_CHAIN
    entries = chain(store, project)
    assert govern.verify_audit(store, project.id) == govern.AuditHead(5, entries[-1].sha256)
    store.add(Project(id="prj_2", project_id="prj_2", name="two", created_at=NOW))
    other = govern.audit(store, "prj_2", "a", "r", "x", "o", {}, {}, NOW.astimezone(timezone(timedelta(hours=2))))
    assert (other.seq, govern.verify_audit(store, "prj_2").seq) == (1, 1)


TAMPERING = {
    "an altered reason": ENTRIES.update().where(ENTRIES.c.seq == 3).values(after={"i": 99}),
    "an altered actor": ENTRIES.update().where(ENTRIES.c.seq == 1).values(actor="bob"),
    "an altered time": ENTRIES.update().where(ENTRIES.c.seq == 2).values(created_at=NOW + timedelta(microseconds=1)),
    "a removed entry": ENTRIES.delete().where(ENTRIES.c.seq == 2),
    "a removed first entry": ENTRIES.delete().where(ENTRIES.c.seq == 1),
    "a renumbered, so removed, end": ENTRIES.update().where(ENTRIES.c.seq == 5).values(seq=6),
    "a forged hash": ENTRIES.update().where(ENTRIES.c.seq == 5).values(sha256="f" * 64),
}


@pytest.mark.parametrize("deed", TAMPERING)
def test_tampering_is_found(store: Store, project: Project, deed: str) -> None:
    chain(store, project)
    with store.write() as tx:
        assert tx.connection.execute(TAMPERING[deed]).rowcount == 1
    with pytest.raises(Corrupt, match="jumps" if "removed" in deed else "Audit entry"):
        govern.verify_audit(store, project.id)


def test_a_rewritten_chain_and_a_cut_tail_are_found_by_the_anchor(store: Store, project: Project) -> None:
    anchor = govern.AuditHead(5, chain(store, project)[-1].sha256)
    assert govern.verify_audit(store, project.id, anchor) == anchor
    with store.write() as tx:
        tx.connection.execute(ENTRIES.delete().where(ENTRIES.c.seq >= 4))
    assert govern.verify_audit(store, project.id).seq == 3  # the chain alone cannot tell
    with pytest.raises(Corrupt, match="its tail was cut"):
        govern.verify_audit(store, project.id, anchor)
    chain(store, project, 2)
    with pytest.raises(Corrupt, match="written anew"):
        govern.verify_audit(store, project.id, anchor)


def test_an_entry_falls_with_the_change_it_tells_of(store: Store, project: Project) -> None:
    def fail() -> None:
        with store.write() as tx:
            govern.audit(tx, project.id, "ann", "r", "x", "o", {}, {}, NOW)
            raise RuntimeError("the change failed")

    with pytest.raises(RuntimeError):
        fail()
    assert store.count(AuditEntry) == 0


def test_many_writers_make_one_chain(store: Store, project: Project) -> None:
    threads = [threading.Thread(target=chain, args=(store, project, 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert govern.verify_audit(store, project.id).seq == 80


# --- approvals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def release(store: Store, project: Project) -> Release:
    made = Release(
        id="rel_1", project_id=project.id, checkpoint_id="ckp_1", model="m", upstream="u", created_at=NOW, state_at=NOW
    )
    store.add(made)
    for name in ("Ann", "Bob"):
        govern.person(store, project.id, name, NOW)
    return made


def decide(store: Store, release: Release, stage: str, who: str, decision: Decision = Decision.APPROVE) -> Approval:
    return govern.approve(store, release.project_id, release.id, stage, who, decision, "looks right", NOW)


def to_canary(store: Store, release: Release) -> None:
    store.change(Release, release.id, state=ReleaseState.CANARY)


def test_four_eyes(store: Store, release: Release) -> None:
    decide(store, release, "canary", "Ann")
    to_canary(store, release)
    with pytest.raises(Refused, match="second person") as refused:
        decide(store, release, "live", "Ann")
    assert refused.value.reasons == ("four eyes",)
    approval = decide(store, release, "live", "Bob")
    assert store.get(Approval, approval.id) == approval
    assert [entry.actor for entry in store.find(AuditEntry, action="release.approve")] == ["Ann", "Bob"]
    govern.verify_audit(store, release.project_id)


def test_who_took_their_yes_back_may_decide_on_the_other_stage(store: Store, release: Release) -> None:
    decide(store, release, "canary", "Ann")
    decide(store, release, "canary", "Ann", Decision.REFUSE)
    with store.read() as tx:
        assert govern.approved(tx, release.id, "canary") is None
    decide(store, release, "canary", "Bob")
    to_canary(store, release)
    decide(store, release, "live", "Ann")


def test_whoever_approved_may_still_refuse(store: Store, release: Release) -> None:
    decide(store, release, "canary", "Ann")
    to_canary(store, release)
    assert decide(store, release, "live", "Ann", Decision.REFUSE).decision is Decision.REFUSE


def test_approvals_are_for_the_next_stage_by_known_people_with_a_reason(store: Store, release: Release) -> None:
    with pytest.raises(Conflict, match="candidate"):
        decide(store, release, "live", "Ann")
    with pytest.raises(BadInput, match="'moon'"):
        decide(store, release, "moon", "Ann")
    with pytest.raises(NotFound, match="'Eve'"):
        decide(store, release, "canary", "Eve")
    with pytest.raises(NotFound):
        decide(store, replace(release, id="rel_none"), "canary", "Ann")
    with pytest.raises(NotFound):
        govern.approve(store, "prj_other", release.id, "canary", "Ann", Decision.APPROVE, "r", NOW)
    with pytest.raises(BadInput, match="reason"):
        govern.approve(store, release.project_id, release.id, "canary", "Ann", Decision.APPROVE, " ", NOW)
    assert store.count(Approval) == 0


def test_entries_are_never_sealed_alike(store: Store, project: Project) -> None:
    assert len({entry.sha256 for entry in chain(store, project, 3)}) == 3
    with store.read() as tx:
        assert tx.connection.execute(sa.select(sa.func.count()).select_from(ENTRIES)).scalar_one() == 3


# --- the address, and the use of keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.3", False),
        ("", False),
        ("localhost.example", False),
    ],
)
def test_without_a_key_only_this_machine_may_be_listened_to(
    store: Store, project: Project, host: str, own: bool
) -> None:
    assert govern.is_loopback(host) == own
    ended, _ = govern.create_key(store, project.id, "gone", ["admin"], now=NOW)
    govern.revoke_key(store, project.id, ended.id, NOW)
    if own:
        govern.check_address(store, host)
    else:
        with pytest.raises(ConfigError, match=r"plaudit key create NAME --role admin"):
            govern.check_address(store, host)
    govern.create_key(store, project.id, "app", ["application"], now=NOW)
    govern.check_address(store, host)


def test_the_last_use_of_a_key_never_goes_back(store: Store, project: Project) -> None:
    first, _ = govern.create_key(store, project.id, "a", ["application"], now=NOW)
    second, _ = govern.create_key(store, project.id, "b", ["application"], now=NOW)
    later = NOW + timedelta(minutes=1)
    govern.record_use(store, {first.id: later, "key_gone": NOW})
    govern.record_use(store, {first.id: NOW, second.id: NOW})
    assert [store.get(ApiKey, key.id).last_used_at for key in (first, second)] == [later, NOW]
    assert store.count(AuditEntry, action="key.use") == 0
