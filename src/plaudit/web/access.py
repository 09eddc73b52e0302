"""Who are you, may you. A Bearer key carries roles, a role carries permissions (`loop.govern`); `app.ROUTES` says what each route needs."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import ApiKey, utc_now
from plaudit.errors import Forbidden, PlauditError, Unauthorized, Unavailable
from plaudit.loop import govern
from plaudit.loop.govern import Permission
from plaudit.store.database import Store

Endpoint = Callable[[Request], Awaitable[Response]]

REMEMBERED_S = 1.0  # a revoked key dies within this time
MAX_REMEMBERED = 10_000
LAST_USE_S = 10.0  # between two writings of when keys were used
log = logging.getLogger("plaudit.web")


class Keys:
    """Keys by their secret, remembered for a second so that the hot path does not ask the store each time."""

    def __init__(self, store: Store, run: Callable[..., Any], run_within: Callable[..., Any] | None = None) -> None:
        self._store = store
        self._run = run
        self._run_within = run_within or run  # ends with Unavailable where the store takes too long
        self._known: dict[bytes, tuple[float, ApiKey]] = {}
        self._asking: set[bytes] = set()
        self._used: dict[str, datetime] = {}  # by key id, not yet in the store

    async def find(self, secret: str) -> ApiKey | None:
        digest = hashlib.sha256(secret.encode()).digest()  # no secret stays in memory
        now = time.monotonic()
        known = self._known.get(digest)
        if known is not None and (known[0] > now or digest in self._asking):
            return known[1]
        self._asking.add(digest)
        try:
            run = self._run if known is None else self._run_within
            key: ApiKey | None = await run(govern.find_key, self._store, secret)
        except Unavailable:
            if known is None:
                raise
            key = known[1]  # the store is away, so nobody can have revoked it since
        finally:
            self._asking.discard(digest)
        if key is None:
            self._known.pop(digest, None)
        else:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[digest] = (now + REMEMBERED_S, key)
        return key

    def used(self, key: ApiKey, at: datetime) -> None:
        """Remember its last use; `write_use` brings it to the store."""
        self._used[key.id] = at

    async def keep_writing_use(self) -> None:
        """For ever, away from the requests."""
        while True:
            await asyncio.sleep(LAST_USE_S)
            await self.write_use()

    async def write_use(self) -> None:
        """Write the last uses, in one transaction; those that a store which is away does not take wait for the next time."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._run_within(govern.record_use, self._store, used)
        except PlauditError as error:
            self._used = {**used, **self._used}
            log.warning("When keys were last used is written later: %s", error)


def guarded(endpoint: Endpoint, permission: Permission) -> Endpoint:
    """The endpoint behind its permission; inside, `key_of(request)` is the caller's key."""

    async def checked(request: Request) -> Response:
        door: Any = request.app.state.door
        key: ApiKey | None = await door.keys.find(_secret(request))
        if key is None:
            raise Unauthorized("This API key is unknown or revoked; make one with `plaudit key create`.")
        door.keys.used(key, utc_now())
        door.limits.key(key.id)
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
