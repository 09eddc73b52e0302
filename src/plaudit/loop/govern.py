"""Govern: who may do what, who approved what, and a log that cannot be rewritten unseen. Lies below the stages.

The audit log is a hash chain per project: each entry holds the sha256 of the one before. `verify_audit` finds a changed, inserted,
reordered or removed entry; a cut tail or a rewritten chain it finds against anchors, heads that were kept outside the store (`anchors.py`).
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum

from plaudit.artifacts import sha256_of
from plaudit.domain import (
    DEFAULT_PROJECT,
    ApiKey,
    Approval,
    AuditEntry,
    Decision,
    Json,
    Person,
    Project,
    Release,
    ReleaseState,
    Role,
    TrainingUse,
    new_id,
)
from plaudit.errors import BadInput, ConfigError, Conflict, Corrupt, NotFound, Refused
from plaudit.loop import webhooks
from plaudit.store.audit import lock_head
from plaudit.store.database import Store, Transaction

# --- who may -----------------------------------------------------------------------------------------------------------


class Permission(StrEnum):
    """What a route or a command needs."""

    CHAT = "chat"  # the gateway: complete, list models
    COLLECT = "collect"  # ask for an assignment, log interactions, give feedback
    ANNOTATE = "annotate"  # lease, answer, own progress
    REVIEW = "review"  # decide as an expert what annotators dispute, and audits
    PLAN = "plan"  # make comparisons, guidelines, aggregate
    READ = "read"  # look at everything that is not a secret
    APPROVE = "approve"  # say yes or no to a release
    ERASE = "erase"  # remove what is kept of a user
    OPERATE = "operate"  # train, evaluate, release, roll back, monitors
    MEASURE = "measure"  # read the figures of a process, as Prometheus does
    OVERRIDE = "override"  # let a release pass a gate that failed
    ADMIN = "admin"  # keys, people, projects


PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    Role.APPLICATION: frozenset({Permission.CHAT, Permission.COLLECT}),
    Role.ANNOTATOR: frozenset({Permission.ANNOTATE}),
    Role.EXPERT: frozenset({Permission.ANNOTATE, Permission.REVIEW}),
    Role.LEAD: frozenset({Permission.ANNOTATE, Permission.PLAN, Permission.READ, Permission.REVIEW}),
    Role.APPROVER: frozenset({Permission.APPROVE, Permission.READ}),
    Role.OPERATOR: frozenset(
        {Permission.ERASE, Permission.MEASURE, Permission.OPERATE, Permission.PLAN, Permission.READ}
    ),
    Role.ADMIN: frozenset(Permission),
}
# These act in somebody's name: such a key belongs to a Person.
PERSONAL_ROLES = frozenset({Role.ANNOTATOR, Role.EXPERT, Role.LEAD, Role.APPROVER})


def may(roles: Collection[str], permission: Permission) -> bool:
    """Whether one of the roles carries the permission."""
    return any(permission in PERMISSIONS[Role(role)] for role in roles)


def acting_role(roles: Collection[str], permission: Permission) -> str:
    """Of somebody who may, the first of their roles that lets them, as the audit log names it."""
    return next(role for role in roles if may([role], permission))


# --- projects, people, keys --------------------------------------------------------------------------------------------


def ensure_project(store: Store, now: datetime, training_use_default: TrainingUse = TrainingUse.UNKNOWN) -> Project:
    """The default project, made where it is missing."""
    with store.write() as tx:
        found = tx.first(Project, id=DEFAULT_PROJECT)
        if found is None:
            found = Project(
                id=DEFAULT_PROJECT,
                project_id=DEFAULT_PROJECT,
                name="default",
                training_use_default=training_use_default,
                created_at=now,
            )
            tx.add(found)
        return found


def person(store: Store, project_id: str, name: str, now: datetime) -> Person:
    """The Person of this name, made where they are missing."""
    with store.write() as tx:
        return _person(tx, project_id, name, now)


def _person(tx: Transaction, project_id: str, name: str, now: datetime) -> Person:
    if not name.strip() or name != name.strip() or len(name) > 200:
        raise BadInput(f"A person's name is {name!r}; give 1 to 200 characters without spaces around them.")
    found = tx.first(Person, project_id=project_id, name=name)
    if found is None:
        found = Person(id=new_id(Person), project_id=project_id, name=name, created_at=now)
        tx.add(found)
    return found


def create_key(
    store: Store, project_id: str, name: str, roles: Sequence[str], person: str | None = None, *, now: datetime
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is shown this once: only its sha256 is kept (the secret has 256 random bits, so no salt is needed).

    `person` is the name of the Person who acts with it. Raises BadInput for no or unknown roles, or a personal role without a person.
    """
    if not roles:
        raise BadInput(f"Key {name!r} has no role; give at least one of: {', '.join(Role)}.")
    for role in roles:
        if role not in list(Role):
            raise BadInput(f"Role {role!r} is unknown; choose from: {', '.join(Role)}.")
        if Role(role) in PERSONAL_ROLES and person is None:
            raise BadInput(f"Key {name!r} carries the role {role}, which acts in somebody's name; say whose it is.")
    secret = "plk_" + secrets.token_urlsafe(32)
    with store.write() as tx:
        key = ApiKey(
            id=new_id(ApiKey),
            project_id=project_id,
            person_id=_person(tx, project_id, person, now).id if person is not None else None,
            name=name,
            roles=tuple(str(role) for role in roles),
            secret_sha256=_digest(secret),
            created_at=now,
        )
        tx.add(key)
        after = {"name": name, "roles": list(key.roles), "person_id": key.person_id}
        audit(tx, project_id, "system", "system", "key.create", key.id, {}, after, now)
    return key, secret


def find_key(store: Store, secret: str) -> ApiKey | None:
    """The live key of this secret, else None. The look-up is by hash, so its time says nothing about the secret."""
    found = store.first(ApiKey, secret_sha256=_digest(secret))
    return found if found is not None and found.revoked_at is None else None


def revoke_key(store: Store, project_id: str, key_id: str, now: datetime) -> ApiKey:
    """End a key; ending it twice changes nothing. Raises NotFound."""
    with store.write() as tx:
        key = tx.first(ApiKey, id=key_id, project_id=project_id)
        if key is None:
            raise NotFound(f"There is no key {key_id!r} in this project.")
        if key.revoked_at is not None:
            return key
        audit(tx, project_id, "system", "system", "key.revoke", key_id, {"revoked": False}, {"revoked": True}, now)
        return tx.change(ApiKey, key_id, revoked_at=now)


def record_use(store: Store, used: Mapping[str, datetime]) -> None:
    """Remember when each key (by id) was last used. An older time than what is known changes nothing: several services tell."""
    with store.write() as tx:
        for key in tx.find(ApiKey, id=list(used)):
            if key.last_used_at is None or key.last_used_at < used[key.id]:
                tx.change(ApiKey, key.id, last_used_at=used[key.id])


def check_address(store: Store, host: str) -> None:
    """Raises ConfigError where other machines could reach a service at `host` and no key has been made."""
    if not is_loopback(host) and store.first(ApiKey, revoked_at=None) is None:
        raise ConfigError(
            f"host is {host!r}, which other machines can reach, and there is no API key yet; make one first with "
            "`plaudit key create NAME --role admin`, or start once on 127.0.0.1, which prints the first."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; of a name other than localhost nobody knows."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


# --- audit -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditHead:
    """The end of a chain; kept outside the store it is an anchor. seq 0: no entry yet."""

    seq: int
    sha256: str


EMPTY_CHAIN = AuditHead(0, "0" * 64)


def audit(
    where: Store | Transaction,
    project_id: str,
    actor: str,
    role: str,
    action: str,
    object_id: str,
    before: Json,
    after: Json,
    now: datetime,
) -> AuditEntry:
    """Append one link. With a Transaction it stands or falls with the change it tells of; with a Store it is a transaction of its own."""
    if isinstance(where, Store):
        with where.write() as tx:
            return audit(tx, project_id, actor, role, action, object_id, before, after, now)
    head = lock_head(where, project_id)
    unsealed = AuditEntry(
        id=new_id(AuditEntry),
        project_id=project_id,
        seq=head.seq + 1 if head else 1,
        actor=actor,
        role=role,
        action=action,
        object_id=object_id,
        before=before,
        after=after,
        previous_sha256=head.sha256 if head else EMPTY_CHAIN.sha256,
        sha256="",
        created_at=now,
    )
    entry = AuditEntry(**{**vars(unsealed), "sha256": _seal(unsealed)})
    where.add(entry)
    webhooks.announce(where, project_id, "state", [(object_id, entry.id)], now)
    return entry


def _seal(entry: AuditEntry) -> str:
    """sha256 over every field but itself; the time to the microsecond, as the store keeps it."""
    content = {**asdict(entry), "created_at": entry.created_at.astimezone(UTC).isoformat(timespec="microseconds")}
    del content["sha256"]
    return sha256_of(content)


def verify_audit(store: Store, project_id: str, *anchors: AuditHead) -> AuditHead:
    """Recompute the whole chain; returns its head. Raises Corrupt naming the first entry that does not fit, or is not the anchored one."""
    with store.read() as tx:
        entries = tx.find(AuditEntry, order="seq", project_id=project_id)
    head = EMPTY_CHAIN
    hashes = {0: EMPTY_CHAIN.sha256}
    for entry in entries:
        if entry.seq != head.seq + 1:
            raise Corrupt(f"The audit log jumps from entry {head.seq} to {entry.seq}: entries were removed or added.")
        if entry.previous_sha256 != head.sha256 or entry.sha256 != _seal(entry):
            raise Corrupt(f"Audit entry {entry.seq} ({entry.id}) is not what was written; compare with a backup.")
        head = AuditHead(entry.seq, entry.sha256)
        hashes[entry.seq] = entry.sha256
    for anchor in anchors:
        if anchor.seq > head.seq:
            raise Corrupt(f"The audit log ends at entry {head.seq}, entry {anchor.seq} was anchored: its tail was cut.")
        if hashes[anchor.seq] != anchor.sha256:
            raise Corrupt(f"Entry {anchor.seq} of the audit log is not the one that was anchored: it was written anew.")
    return head


# --- approvals ---------------------------------------------------------------------------------------------------------

# The states from which a release may enter a stage.
STAGES: Mapping[str, frozenset[ReleaseState]] = {
    "canary": frozenset({ReleaseState.CANDIDATE, ReleaseState.SHADOW}),
    "live": frozenset({ReleaseState.CANARY}),
}


def approve(
    store: Store,
    project_id: str,
    release_id: str,
    stage: str,
    person: str,
    decision: Decision,
    reason: str,
    now: datetime,
) -> Approval:
    """A named Person's yes or no to one stage of a Release; the newest decision on a stage counts, `approved` tells.

    `person` is the name of a Person of this project. Four eyes: whoever approved one stage may not approve the other. Raises BadInput
    (stage, empty reason), NotFound (release, person), Conflict (the release is past this stage), Refused (four eyes).
    """
    if stage not in STAGES:
        raise BadInput(f"Stage {stage!r} is unknown; choose from: {', '.join(STAGES)}.")
    if not reason.strip():
        raise BadInput("reason is empty; say in a sentence why.")
    with store.write() as tx:
        release = tx.first(Release, id=release_id, project_id=project_id)
        if release is None:
            raise NotFound(f"There is no Release {release_id!r} in this project.")
        if tx.first(Person, project_id=project_id, name=person) is None:
            raise NotFound(f"There is no Person named {person!r} in this project; create a key for them first.")
        if release.state not in STAGES[stage]:
            raise Conflict(f"Release {release_id} is {release.state}; {stage} cannot be decided on now.")
        if decision is Decision.APPROVE:
            for other in STAGES.keys() - {stage}:
                given = approved(tx, release_id, other)
                if given is not None and given.person == person:
                    text = f"{person} approved {release_id} for {other} already; {stage} needs a second person."
                    raise Refused(text, ["four eyes"])
        approval = Approval(
            id=new_id(Approval),
            project_id=project_id,
            release_id=release_id,
            stage=stage,
            person=person,
            decision=decision,
            reason=reason,
            created_at=now,
        )
        tx.add(approval)
        after = {"stage": stage, "decision": str(decision), "reason": reason}
        audit(tx, project_id, person, Role.APPROVER, f"release.{decision}", release_id, {}, after, now)
    return approval


def approved(tx: Transaction, release_id: str, stage: str) -> Approval | None:
    """The standing approval of a stage: the newest decision, if it is a yes."""
    newest = tx.first(Approval, release_id=release_id, stage=stage)
    return newest if newest is not None and newest.decision is Decision.APPROVE else None
