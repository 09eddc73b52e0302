"""Who are you, may you. A Bearer key carries roles, a role carries permissions (`loop.govern`); `app.ROUTES` says what each route needs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import ApiKey
from plaudit.errors import Forbidden, Unauthorized
from plaudit.loop import govern
from plaudit.loop.govern import Permission
from plaudit.store.database import Store

Endpoint = Callable[[Request], Awaitable[Response]]

REMEMBERED_S = 1.0  # a revoked key dies within this time
MAX_REMEMBERED = 10_000


class Keys:
    """Keys by their secret, remembered for a second so that the hot path does not ask the store each time."""

    def __init__(self, store: Store, run: Callable[..., Any]) -> None:
        self._store = store
        self._run = run
        self._known: dict[bytes, tuple[float, ApiKey]] = {}

    async def find(self, secret: str) -> ApiKey | None:
        digest = hashlib.sha256(secret.encode()).digest()  # no secret stays in memory
        now = time.monotonic()
        known = self._known.get(digest)
        if known is not None and known[0] > now:
            return known[1]
        key: ApiKey | None = await self._run(govern.find_key, self._store, secret)
        if key is None:
            self._known.pop(digest, None)
        else:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[digest] = (now + REMEMBERED_S, key)
        return key


def guarded(endpoint: Endpoint, permission: Permission) -> Endpoint:
    """The endpoint behind its permission; inside, `key_of(request)` is the caller's key."""

    async def checked(request: Request) -> Response:
        keys: Keys = request.app.state.door.keys
        key = await keys.find(_secret(request))
        if key is None:
            raise Unauthorized("This API key is unknown or revoked; make one with `plaudit key create`.")
        if not govern.may(key.roles, permission):
            roles = ", ".join(key.roles)
            raise Forbidden(f"{request.url.path} needs the permission {permission}; this key's roles are: {roles}.")
        request.state.key = key
        return await endpoint(request)

    return checked


def key_of(request: Request) -> ApiKey:
    """The key of a guarded request."""
    key = request.state.key
    assert isinstance(key, ApiKey)
    return key


def person_of(request: Request) -> str:
    """The id of the Person who acts with this key. Raises Forbidden for a key that is nobody's."""
    person_id = key_of(request).person_id
    if person_id is None:
        raise Forbidden(
            f"Key {key_of(request).name!r} belongs to no person; make one with `plaudit key create --person NAME`."
        )
    return person_id


def _secret(request: Request) -> str:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthorized("Send an API key as `Authorization: Bearer plk_...`; make one with `plaudit key create`.")
    return secret.strip()
