"""The HTTP door: all wiring, and the one table of who may call what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from plaudit import backends
from plaudit.domain import DEFAULT_PROJECT, Project, TrainingUse, utc_now
from plaudit.errors import PlauditError
from plaudit.loop import govern
from plaudit.loop.govern import Permission
from plaudit.settings import Settings
from plaudit.store.database import Store
from plaudit.web import problems
from plaudit.web.access import Endpoint, guarded
from plaudit.web.api import annotation, feedback, openai
from plaudit.web.door import Door, door_of
from plaudit.web.problems import json_response


async def healthz(request: Request) -> Response:  # noqa: ARG001
    """GET /healthz: the process answers."""
    return json_response({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: it can serve: store, recorder and a live release are there. 503 with the reason where not."""
    door = door_of(request)
    missing = [] if door.recorder.alive else ["The recorder has stopped; restart the service."]
    try:
        await door.run(door.store.get, Project, DEFAULT_PROJECT)
        await door.configs.current(DEFAULT_PROJECT)
    except PlauditError as error:
        missing.append(error.message)
    return json_response({"status": "missing" if missing else "ready", "missing": missing}, 503 if missing else 200)


# method, path, handler, permission (None: open to everybody)
ROUTES: tuple[tuple[str, str, Endpoint, Permission | None], ...] = (
    ("GET", "/healthz", healthz, None),
    ("GET", "/readyz", readyz, None),
    ("GET", "/v1/models", openai.models, Permission.CHAT),
    ("POST", "/v1/chat/completions", openai.chat_completions, Permission.CHAT),
    ("GET", "/v1/assignment", feedback.assignment, Permission.CHAT),
    ("POST", "/v1/interactions", feedback.log_interaction, Permission.COLLECT),
    ("POST", "/v1/feedback", feedback.record_feedback, Permission.COLLECT),
    ("POST", "/v1/annotation/lease", annotation.lend, Permission.ANNOTATE),
    ("POST", "/v1/annotation/lease/{lease_id}/heartbeat", annotation.heartbeat, Permission.ANNOTATE),
    ("POST", "/v1/annotation/lease/{lease_id}/release", annotation.release, Permission.ANNOTATE),
    ("POST", "/v1/annotations", annotation.answer, Permission.ANNOTATE),
    ("GET", "/v1/annotation/progress", annotation.progress, Permission.ANNOTATE),
)


def create_app(settings: Settings, store: Store) -> Starlette:
    """The service over an opened store, which stays the caller's to close."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        govern.ensure_project(store, utc_now(), TrainingUse(settings.training_use_default))
        async with backends.open_session() as session:
            door = Door(settings, store, session)
            door.recorder.start()
            poll = asyncio.create_task(door.configs.poll())
            app.state.door = door
            try:
                yield
            finally:
                poll.cancel()
                with suppress(asyncio.CancelledError):
                    await poll
                await door.recorder.stop()

    return Starlette(
        routes=[
            Route(path, guarded(endpoint, permission) if permission else endpoint, methods=[method])
            for method, path, endpoint, permission in ROUTES
        ],
        exception_handlers={
            PlauditError: problems.on_plaudit_error,
            HTTPException: problems.on_http_exception,
            Exception: problems.on_bug,
        },
        lifespan=lifespan,
    )
