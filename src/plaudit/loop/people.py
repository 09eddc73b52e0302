"""People: who may sign in, by one-time invitation links. No password is kept: whoever holds a link's secret is let in once.

A Person carries roles in their project; `govern.PERMISSIONS` says what a role may do, for people and keys alike. Signing out everywhere
raises the Person's generation, which every cookie names.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from plaudit.domain import ApiKey, Invitation, Person, Role, new_id
from plaudit.errors import BadInput, Conflict, Expired, NotFound
from plaudit.loop.govern import Permission, audit, may
from plaudit.store.database import Store, Transaction

VALID = timedelta(days=7)


def invite(
    store: Store,
    project_id: str,
    name: str,
    roles: Sequence[str],
    now: datetime,
    *,
    by: str = "system",
    valid: timedelta = VALID,
) -> tuple[Person, Invitation, str]:
    """The Person called `name` with these roles, and the secret of the link that signs them in, shown this once.

    A known Person's roles become these; no roles leave them as they are. An older link that nobody used ends. Raises BadInput for an
    unknown role, a bad name, nobody's roles.
    """
    for role in roles:
        if role not in list(Role):
            raise BadInput(f"Role {role!r} is unknown; choose from: {', '.join(Role)}.")
    if not name.strip() or name != name.strip() or len(name) > 200 or not name.isprintable():
        raise BadInput(f"A person's name is {name!r}; give 1 to 200 characters without spaces around them.")
    wanted = tuple(dict.fromkeys(str(role) for role in roles))
    secret = "pli_" + secrets.token_urlsafe(32)
    with store.write() as tx:
        found = tx.first(Person, project_id=project_id, name=name)
        if not wanted and (found is None or not found.roles):
            raise BadInput(f"{name} has no role yet; give at least one of: {', '.join(Role)}.")
        before = {"roles": list(found.roles), "removed": found.removed_at is not None} if found else {}
        if found is None:
            person = Person(id=new_id(Person), project_id=project_id, name=name, roles=wanted, created_at=now)
            tx.add(person)
        else:
            person = tx.change(Person, found.id, roles=wanted or found.roles, removed_at=None)
        _end_links(tx, person.id, now)
        invitation = Invitation(
            id=new_id(Invitation),
            project_id=project_id,
            person_id=person.id,
            secret_sha256=_digest(secret),
            created_at=now,
            expires_at=now + valid,
        )
        tx.add(invitation)
        after = {"roles": list(person.roles), "name": name}
        audit(tx, project_id, by, _role(by), "person.invite", person.id, before, after, now)
    return person, invitation, secret


def invited(store: Store, secret: str, now: datetime) -> Person:
    """Whom this link would sign in. Raises NotFound (an unknown link), Expired (used, or too late)."""
    with store.read() as tx:
        return tx.get(Person, _usable(tx, secret, now).person_id)


def accept(store: Store, secret: str, now: datetime) -> Person:
    """Use the link: whom it signs in. Raises as `invited` does; of two who use it at once, one is refused."""
    with store.write() as tx:
        invitation = _usable(tx, secret, now)
        try:
            tx.change(Invitation, invitation.id, {"used_at": None}, used_at=now)
        except Conflict as error:
            raise Expired("This sign-in link was used a moment ago; ask for a new one.") from error
        person = tx.get(Person, invitation.person_id)
        audit(tx, person.project_id, person.name, "person", "person.sign_in", person.id, {}, {}, now)
        return person


def sign_out_everywhere(store: Store, project_id: str, person_id: str, now: datetime, *, by: str) -> Person:
    """End every sign-in of a Person. Raises NotFound."""
    with store.write() as tx:
        person = _person(tx, project_id, person_id)
        audit(tx, project_id, by, _role(by), "person.sign_out_everywhere", person.id, {}, {}, now)
        return tx.change(Person, person.id, generation=person.generation + 1)


def remove(store: Store, project_id: str, person_id: str, now: datetime, *, by: str = "system") -> Person:
    """End what a Person may do: sign-ins, links, keys, roles. What they did stays theirs, and `invite` brings them back.

    Raises NotFound, and Conflict for the last admin who can sign in.
    """
    with store.write() as tx:
        person = _person(tx, project_id, person_id)
        if person.removed_at is not None:
            return person
        others = [one for one in tx.find(Person, project_id=project_id, removed_at=None) if one.id != person.id]
        if may(person.roles, Permission.ADMIN) and not any(may(one.roles, Permission.ADMIN) for one in others):
            raise Conflict(f"{person.name} is the last admin who can sign in; invite another one first.")
        _end_links(tx, person.id, now)
        for key in tx.find(ApiKey, project_id=project_id, person_id=person.id, revoked_at=None):
            tx.change(ApiKey, key.id, revoked_at=now)
            audit(tx, project_id, by, _role(by), "key.revoke", key.id, {"revoked": False}, {"revoked": True}, now)
        audit(tx, project_id, by, _role(by), "person.remove", person.id, {"roles": list(person.roles)}, {}, now)
        return tx.change(Person, person.id, removed_at=now, roles=(), generation=person.generation + 1)


def sign_in_link(service_url: str, secret: str) -> str:
    """The address that signs in whoever opens it."""
    return f"{service_url.rstrip('/')}/sign-in?invitation={secret}"


def find_person(store: Store, project_id: str, name: str) -> Person:
    """The Person of this name, also a removed one. Raises NotFound."""
    found = store.first(Person, project_id=project_id, name=name)
    if found is None:
        raise NotFound(f"There is no person called {name!r} in this project.")
    return found


def has_signed_in(store: Store, person_id: str) -> bool:
    """Whether a Person has ever used a link."""
    return any(link.used_at is not None for link in store.find(Invitation, person_id=person_id))


def signed_in(store: Store, person_id: str, generation: int) -> Person | None:
    """The Person whom a cookie names, None where they signed out everywhere, were removed, or never were."""
    person = store.first(Person, id=person_id)
    if person is None or person.removed_at is not None or person.generation != generation:
        return None
    return person


# --- inside ------------------------------------------------------------------------------------------------------------


def _person(tx: Transaction, project_id: str, person_id: str) -> Person:
    found = tx.first(Person, id=person_id, project_id=project_id)
    if found is None:
        raise NotFound(f"There is no person {person_id!r} in this project.")
    return found


def _usable(tx: Transaction, secret: str, now: datetime) -> Invitation:
    found = tx.first(Invitation, secret_sha256=_digest(secret))
    if found is None:
        raise NotFound("This sign-in link is unknown; copy the whole of it, or ask for a new one.")
    if found.used_at is not None:
        raise Expired(f"This sign-in link was used on {found.used_at:%Y-%m-%d %H:%M} UTC; ask for a new one.")
    if found.expires_at <= now:
        raise Expired(f"This sign-in link ended on {found.expires_at:%Y-%m-%d %H:%M} UTC; ask for a new one.")
    return found


def _end_links(tx: Transaction, person_id: str, now: datetime) -> None:
    for old in tx.find(Invitation, person_id=person_id, used_at=None):
        if old.expires_at > now:
            tx.change(Invitation, old.id, expires_at=now)


def _role(by: str) -> str:
    """As what this was done: at the machine, or by a person's own hand."""
    return "system" if by == "system" else "person"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
