"""People: who may sign in, as what; inviting and removing them."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Invitation, Json, Person, Role, utc_now
from plaudit.loop import govern
from plaudit.loop import people as acts
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages.forms import read_form
from plaudit.web.pages.shell import Column, Table, answer, go
from plaudit.web.sign_in import signed_in

COLUMNS = (
    Column("name", "Name", "brief"),
    Column("roles", "Roles", "words"),
    Column("sign_in", "Signs in", "brief"),
    Column("last_at", "Last link used", "moment"),
    Column("created_at", "Since", "moment"),
)


async def people(request: Request) -> Response:
    """GET /people."""
    return await _page(request)


async def invite(request: Request) -> Response:
    """POST /people: shows the new link, this once, so it answers with the page itself and not with 303."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    roles = [role for role in Role if form.get(f"role-{role}")]
    call = partial(acts.invite, by=me.name)
    person, invitation, secret = await door.run(
        call, door.store, me.project_id, form.get("name", "").strip(), roles, utc_now()
    )
    return await _page(
        request, invited=person, invitation=invitation, link=acts.sign_in_link(str(request.base_url), secret)
    )


async def remove(request: Request) -> Response:
    """POST /people/remove."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    await door.run(partial(acts.remove, by=me.name), door.store, me.project_id, form.get("person", ""), utc_now())
    return go("/people")


async def _page(
    request: Request, invited: Person | None = None, invitation: Invitation | None = None, link: str = ""
) -> Response:
    door, me = door_of(request), signed_in(request)
    rows = await door.run(_rows, door.store, me.project_id)
    table = Table("people", "People", COLUMNS, rows, "Nobody yet.")
    may = {str(role): ", ".join(sorted(govern.PERMISSIONS[role])) for role in Role if role != Role.APPLICATION}
    return answer(
        request,
        "people.html",
        [table],
        me=me,
        may=may,
        invited=invited,
        invitation=invitation,
        link=link,
        removable=[row for row in rows if row["id"] != me.id and row["sign_in"] != "no longer"],
    )


def _rows(store: Store, project_id: str) -> list[Json]:
    with store.read() as tx:
        found = tx.find(Person, project_id=project_id, order="name")
        links = tx.find(Invitation, project_id=project_id)
    newest = {link.person_id: link for link in links}
    used = {link.person_id: link.used_at for link in links if link.used_at is not None}
    return [
        {
            "id": person.id,
            "name": person.name,
            "roles": ", ".join(person.roles),
            "sign_in": _sign_in(person, newest.get(person.id), person.id in used),
            "last_at": used.get(person.id),
            "created_at": person.created_at,
        }
        for person in found
    ]


def _sign_in(person: Person, newest: Invitation | None, has: bool) -> str:
    if person.removed_at is not None:
        return "no longer"
    if newest is not None and newest.used_at is None and newest.expires_at > utc_now():
        return f"has a link until {newest.expires_at:%Y-%m-%d}"
    return "yes" if has else "never did"
