"""The way in and out: the start, signing in by a link that works once, signing out here or everywhere.

Opening a link changes nothing (mail programs and chats open links to preview them); its button does.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import utc_now
from plaudit.errors import Expired, NotFound
from plaudit.loop import govern, people
from plaudit.web.door import door_of
from plaudit.web.pages.forms import read_form
from plaudit.web.pages.shell import PLACES, answer, go, page
from plaudit.web.sign_in import visitor

_STATUS = {"not_found": 404, "expired": 410}


async def start(request: Request) -> Response:
    """GET /: the first page that this person may open."""
    person = visitor(request)
    if person is None:
        return go("/sign-in")
    place = next((place for place in PLACES if govern.may(person.roles, place.permission)), None)
    return go(place.path) if place else page(request, "nothing.html")


async def sign_in(request: Request) -> Response:
    """GET /sign-in: says how to get a link; with `?invitation=` asks whether to use it."""
    door, secret = door_of(request), request.query_params.get("invitation")
    if secret is None:
        return answer(request, "sign_in.html", name="", refused="")
    try:
        invited = await door.run(people.invited, door.store, secret, utc_now())
    except (NotFound, Expired) as error:
        return page(request, "sign_in.html", _STATUS[error.code], name="", refused=error.message)
    return answer(request, "sign_in.html", name=invited.name, invitation=secret, refused="")


async def use_invitation(request: Request) -> Response:
    """POST /sign-in: uses the link and signs this browser in."""
    door, form = door_of(request), await read_form(request)
    try:
        person = await door.run(people.accept, door.store, form.get("invitation", ""), utc_now())
    except (NotFound, Expired) as error:
        return page(request, "sign_in.html", _STATUS[error.code], name="", refused=error.message)
    response = go("/")
    door.cookies.put(request, response, person, utc_now())
    return response


async def sign_out(request: Request) -> Response:
    """POST /sign-out: this browser; with `everywhere`, all of this person's."""
    door, person, form = door_of(request), visitor(request), await read_form(request)
    if person is not None and form.get("everywhere"):
        await door.run(
            partial(people.sign_out_everywhere, by=person.name), door.store, person.project_id, person.id, utc_now()
        )
    response = go("/sign-in")
    door.cookies.end(request, response)
    return response
