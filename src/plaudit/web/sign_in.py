"""Who is signed in: a cookie that holds identity only, and the door of every page. `app.PAGES` says what each page needs.

The cookie says (person, generation, when), signed with a secret that lies in the home. What the Person may do is read from the store at
every request, so a removal, a changed role and signing out everywhere count at once. API keys open API routes, cookies open pages.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from plaudit.artifacts import write_secret
from plaudit.domain import Person, utc_now
from plaudit.errors import Corrupt, Forbidden, Unauthorized
from plaudit.loop import govern, people
from plaudit.loop.govern import Permission
from plaudit.web.access import Endpoint

SIGNED_IN = timedelta(days=30)
READ_ONLY = ("GET", "HEAD")


def load_secret(home: Path) -> bytes:
    """The home's cookie secret (32 bytes, HOME/keys/cookie.key, mode 600), made where it is missing. Raises Corrupt."""
    file = home / "keys" / "cookie.key"
    if not file.exists():
        write_secret(file, secrets.token_bytes(32))
    secret = file.read_bytes()
    if len(secret) != 32:
        raise Corrupt(f"{file} has {len(secret)} bytes instead of 32; delete it (everybody signs in anew).")
    return secret


class Cookies:
    """Makes and reads the cookie of one home. Its name is the home's own, so that two homes on one host leave each other alone."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.name = f"plaudit_{hashlib.sha256(b'name' + secret).hexdigest()[:8]}"

    def mint(self, person: Person, now: datetime) -> str:
        said = f"{person.id}.{person.generation}.{int(now.timestamp())}"
        return f"{said}.{self._mac(said)}"

    def read(self, value: str, now: datetime) -> tuple[str, int] | None:
        """(person id, generation), None for a cookie that is forged, of another home, or older than SIGNED_IN."""
        said, _, mac = value.rpartition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(said).encode()):
            return None
        person_id, generation, at = said.split(".")
        if now - datetime.fromtimestamp(int(at), UTC) > SIGNED_IN:
            return None
        return person_id, int(generation)

    def _mac(self, said: str) -> str:
        return hmac.new(self._secret, said.encode(), hashlib.sha256).hexdigest()

    def put(self, request: Request, response: Response, person: Person, now: datetime) -> None:
        """Sign `person` in with this response."""
        self._set(request, response, self.mint(person, now), int(SIGNED_IN.total_seconds()))

    def end(self, request: Request, response: Response) -> None:
        """Sign out this browser with this response."""
        self._set(request, response, "", 0)

    def _set(self, request: Request, response: Response, value: str, max_age: int) -> None:
        https = request.url.scheme == "https"
        response.set_cookie(self.name, value, max_age=max_age, httponly=True, samesite="lax", secure=https)


def guarded_page(endpoint: Endpoint, permission: Permission | None) -> Endpoint:
    """The page behind its permission; None: open to everybody, also signed out. Inside, `visitor(request)` is who came."""

    async def checked(request: Request) -> Response:
        if request.method not in READ_ONLY:
            refuse_other_sites(request)
        person = request.state.person = await _who(request)
        if permission is not None:
            if person is None:
                raise Unauthorized("Nobody is signed in here; open your sign-in link, or ask an admin for one.")
            if not govern.may(person.roles, permission):
                roles = ", ".join(person.roles)
                raise Forbidden(f"This page needs the permission {permission}; your roles are: {roles}.")
        return await endpoint(request)

    return checked


def visitor(request: Request) -> Person | None:
    """Who is signed in, on any page; None also where no page was found at all."""
    person = getattr(request.state, "person", None)
    return person if isinstance(person, Person) else None


def signed_in(request: Request) -> Person:
    """Who is signed in, on a page that needs a permission."""
    person = visitor(request)
    assert person is not None
    return person


def refuse_other_sites(request: Request) -> None:
    """Raises Forbidden for a form that another site sent here.

    Browsers say where a request comes from: Sec-Fetch-Site, over plain HTTP only Origin, whose host must be ours. Both are out of a
    page's reach, so no token is needed (the rule of Go's http.CrossOriginProtection). What says neither is no browser.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        allowed = site in ("same-origin", "none")
    else:
        origin = request.headers.get("origin", "")
        allowed = bool(origin) and urlsplit(origin).netloc == request.headers.get("host")
    if not allowed:
        raise Forbidden("This form was sent from another site; open the page here and send it again.")


async def _who(request: Request) -> Person | None:
    door: Any = request.app.state.door
    value = request.cookies.get(door.cookies.name)
    said = door.cookies.read(value, utc_now()) if value else None
    if said is None:
        return None
    found: Person | None = await door.run(people.signed_in, door.store, *said)
    return found
