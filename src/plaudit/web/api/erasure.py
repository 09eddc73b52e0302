"""Erasure of one user over HTTP, for the application whose user asks for it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import utc_now
from plaudit.loop import erasure, shapes
from plaudit.loop.collect import MAX_NAME_CHARS
from plaudit.web.access import key_of
from plaudit.web.door import door_of, read_json
from plaudit.web.problems import json_response

ERASURE = shapes.shape({"user": shapes.text(MAX_NAME_CHARS, "The pseudonym that the turns had.")})


async def erase(request: Request) -> Response:
    """POST /v1/erasure {user}: 201 what was erased; the worker rewrites the store's file and purges what was built from it."""
    door, key = door_of(request), key_of(request)
    user = shapes.read(await read_json(request), "The erasure", ERASURE)["user"]
    settings = door.settings
    done = await door.run(
        erasure.erase_user,
        door.store,
        settings.home,
        key.project_id,
        user,
        f"key {key.id}",
        settings.purge_days,
        utc_now(),
    )
    return json_response(erasure.shown(done), 201)
