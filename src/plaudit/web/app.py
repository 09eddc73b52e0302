"""The HTTP door: all wiring, and the one table of who may call what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from plaudit import backends
from plaudit.domain import DEFAULT_PROJECT, Project, TrainingUse, utc_now
from plaudit.errors import ConfigError, PlauditError, Unavailable
from plaudit.loop import govern
from plaudit.loop.govern import Permission
from plaudit.settings import Settings
from plaudit.store.database import Store
from plaudit.web import metrics, openapi, problems
from plaudit.web.access import Endpoint, guarded
from plaudit.web.api import annotation, erasure, feedback, openai, outcomes
from plaudit.web.door import Door, chosen_filters, door_of
from plaudit.web.headers import guarded_answers, parse_origins
from plaudit.web.metrics import counted
from plaudit.web.operations import OPERATIONS
from plaudit.web.pages import (
    abuse,
    annotate,
    annotation_files,
    annotation_signs,
    chat,
    entrance,
    evaluations,
    experiment_acts,
    experiments,
    people,
    registry,
    releases,
    reviews,
    runs,
    shell,
    snapshots,
)
from plaudit.web.pages import annotation as lead
from plaudit.web.problems import json_response
from plaudit.web.sign_in import guarded_page


async def healthz(request: Request) -> Response:  # noqa: ARG001
    """GET /healthz: the process answers."""
    return json_response({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: it can serve: store (or the spool in its place), recorder and a live release are there. 503 with the reason where not."""
    door = door_of(request)
    missing = [] if door.recorder.alive else ["The recorder has stopped; restart the service."]
    away = ["The store is away; rows wait in the spool."] if door.recorder.spooling else []
    try:
        if "gateway" in door.settings.roles:
            await door.configs.current(DEFAULT_PROJECT)
        await door.run_within(door.store.get, Project, DEFAULT_PROJECT)
    except Unavailable as error:
        serving = door.recorder.serves_without_store and door.configs.knows(DEFAULT_PROJECT)
        (away if serving else missing).append(error.message)
    except PlauditError as error:
        missing.append(error.message)
    status = "missing" if missing else "spooling" if away else "ready"
    return json_response({"status": status, "missing": missing + away}, 503 if missing else 200)


async def openapi_json(request: Request) -> Response:
    """GET /openapi.json: what this process serves, as OpenAPI."""
    return json_response(request.app.state.openapi)


# method, path, handler, permission (None: open to everybody)
ROUTES: tuple[tuple[str, str, Endpoint, Permission | None], ...] = (
    ("GET", "/healthz", healthz, None),
    ("GET", "/readyz", readyz, None),
    ("GET", "/openapi.json", openapi_json, None),
    ("GET", "/metrics", metrics.show, Permission.MEASURE),
    ("GET", "/v1/models", openai.models, Permission.CHAT),
    ("POST", "/v1/chat/completions", openai.chat_completions, Permission.CHAT),
    ("GET", "/v1/assignment", feedback.assignment, Permission.COLLECT),
    ("POST", "/v1/interactions", feedback.log_interaction, Permission.COLLECT),
    ("POST", "/v1/interactions/batch", feedback.log_interactions, Permission.COLLECT),
    ("POST", "/v1/feedback", feedback.record_feedback, Permission.COLLECT),
    ("POST", "/v1/feedback/batch", feedback.record_feedbacks, Permission.COLLECT),
    ("POST", "/v1/outcomes", outcomes.record, Permission.COLLECT),
    ("POST", "/v1/outcomes/batch", outcomes.record_batch, Permission.COLLECT),
    ("POST", "/v1/erasure", erasure.erase, Permission.ERASE),
    ("POST", "/v1/annotation/lease", annotation.lend, Permission.ANNOTATE),
    ("POST", "/v1/annotation/lease/{lease_id}/heartbeat", annotation.heartbeat, Permission.ANNOTATE),
    ("POST", "/v1/annotation/lease/{lease_id}/release", annotation.release, Permission.ANNOTATE),
    ("POST", "/v1/annotations", annotation.answer, Permission.ANNOTATE),
    ("POST", "/v1/annotation/undo", annotation.undo, Permission.ANNOTATE),
    ("GET", "/v1/annotation/progress", annotation.progress, Permission.ANNOTATE),
    ("GET", "/v1/annotation/annotators", annotation.annotators, Permission.PLAN),
    ("POST", "/v1/annotation/annotators", annotation.change_annotator, Permission.PLAN),
    ("GET", "/v1/annotation/gold", annotation.gold, Permission.PLAN),
    ("POST", "/v1/annotation/gold", annotation.make_gold, Permission.PLAN),
    ("POST", "/v1/annotation/gold/{gold_id}/retire", annotation.retire_gold, Permission.PLAN),
    ("POST", "/v1/annotation/questions", annotation.change_question, Permission.PLAN),
    ("GET", "/v1/annotation/reviews", annotation.waiting_reviews, Permission.REVIEW),
    ("GET", "/v1/annotation/reviews/{review_id}", annotation.review, Permission.REVIEW),
    ("POST", "/v1/annotation/reviews/{review_id}", annotation.decide_review, Permission.REVIEW),
)

# The same for pages, which a signed-in Person opens, not a key.
PAGES: tuple[tuple[str, str, Endpoint, Permission | None], ...] = (
    ("GET", "/", entrance.start, None),
    ("GET", "/sign-in", entrance.sign_in, None),
    ("POST", "/sign-in", entrance.use_invitation, None),
    ("POST", "/sign-out", entrance.sign_out, None),
    ("GET", "/static/{name}", shell.static_file, None),
    ("GET", "/runs", runs.runs, Permission.READ),
    ("GET", "/runs/{run_id}", runs.run, Permission.READ),
    ("GET", "/runs/{run_id}/card/{name}", runs.picture, Permission.READ),
    ("GET", "/snapshots", snapshots.snapshots, Permission.READ),
    ("GET", "/snapshots/diff", snapshots.diff, Permission.READ),
    ("GET", "/snapshots/{sha256}", snapshots.snapshot, Permission.READ),
    ("GET", "/snapshots/{sha256}/{table}/{row_id}", snapshots.row, Permission.READ),
    ("GET", "/evaluations", evaluations.evaluations, Permission.READ),
    ("GET", "/evaluations/{evaluation_id}", evaluations.evaluation, Permission.READ),
    ("POST", "/evaluations/{evaluation_id}/override", evaluations.override, Permission.OVERRIDE),
    ("GET", "/leaderboard", evaluations.board, Permission.READ),
    ("GET", "/releases", releases.releases, Permission.READ),
    ("GET", "/releases/{release_id}", releases.release, Permission.READ),
    ("POST", "/releases/{release_id}/decision", releases.decide, Permission.APPROVE),
    ("POST", "/releases/{release_id}/move", releases.move, Permission.OPERATE),
    ("GET", "/experiments", experiments.experiments, Permission.READ),
    ("POST", "/experiments", experiment_acts.start, Permission.OPERATE),
    ("GET", "/experiments/reward", experiments.reward, Permission.READ),
    ("GET", "/experiments/{experiment_id}", experiments.experiment, Permission.READ),
    ("POST", "/experiments/{experiment_id}/move", experiment_acts.move, Permission.OPERATE),
    ("GET", "/registry", registry.registry, Permission.READ),
    ("GET", "/registry/{checkpoint_id}", registry.version, Permission.READ),
    ("GET", "/chat", chat.chat, Permission.CHAT),
    ("POST", "/chat/turn", chat.turn, Permission.CHAT),
    ("GET", "/annotate", annotate.question, Permission.ANNOTATE),
    ("POST", "/annotate", annotate.answer, Permission.ANNOTATE),
    ("POST", "/annotate/undo", annotate.undo, Permission.ANNOTATE),
    ("POST", "/annotate/heartbeat", annotate.heartbeat, Permission.ANNOTATE),
    ("GET", "/annotation", lead.page, Permission.PLAN),
    ("GET", "/annotation/signs", annotation_signs.page, Permission.PLAN),
    ("POST", "/annotation/guideline", lead.guideline, Permission.PLAN),
    ("POST", "/annotation/annotator", lead.annotator, Permission.PLAN),
    ("POST", "/annotation/gold", lead.gold, Permission.PLAN),
    ("POST", "/annotation/question", lead.question, Permission.PLAN),
    ("POST", "/annotation/import", annotation_files.take_in, Permission.PLAN),
    ("GET", "/annotation/export", annotation_files.give_out, Permission.READ),
    ("GET", "/reviews", reviews.waiting, Permission.REVIEW),
    ("GET", "/reviews/{review_id}", reviews.review, Permission.REVIEW),
    ("POST", "/reviews/{review_id}", reviews.decide, Permission.REVIEW),
    ("GET", "/abuse", abuse.page, Permission.OPERATE),
    ("POST", "/abuse", abuse.quarantine, Permission.OPERATE),
    ("POST", "/abuse/lift", abuse.lift, Permission.OPERATE),
    ("GET", "/people", people.people, Permission.ADMIN),
    ("POST", "/people", people.invite, Permission.ADMIN),
    ("POST", "/people/remove", people.remove, Permission.ADMIN),
)


# What each part of the service answers (the setting `role`). The open ones of ROUTES and GET /metrics belong to every part, all of PAGES
# to the console.
PARTS: Mapping[str, frozenset[Permission]] = {
    "gateway": frozenset({Permission.CHAT}),
    "feedback": frozenset({Permission.COLLECT}),
    "console": frozenset(Permission) - {Permission.CHAT, Permission.COLLECT},
}


def _routes(settings: Settings) -> list[Route]:
    """What this process answers. Raises ConfigError."""
    parts = [PARTS[role] for role in sorted(settings.roles) if role in PARTS]
    if not parts:
        raise ConfigError(f"role is {settings.role!r}, which has no service; start it with `plaudit worker`.")
    routes = [
        Route(path, _behind(path, endpoint, permission), methods=[method])
        for method, path, endpoint, permission in _served(settings)
    ]
    pages = [
        Route(path, guarded_page(endpoint, permission), methods=[method])
        for method, path, endpoint, permission in PAGES
        if "console" in settings.roles
    ]
    return routes + pages


def _served(settings: Settings) -> list[tuple[str, str, Endpoint, Permission | None]]:
    """Of ROUTES, what this process answers."""
    parts = [PARTS[role] for role in sorted(settings.roles) if role in PARTS]
    may = {None, Permission.MEASURE}.union(*parts)
    return [route for route in ROUTES if route[3] in may]


def _behind(path: str, endpoint: Endpoint, permission: Permission | None) -> Endpoint:
    """The endpoint behind its permission; where a feedback token will do, behind either."""
    if permission is None:
        return endpoint
    keyed = guarded(endpoint, permission)
    return feedback.by_token_or(keyed, endpoint) if path in feedback.TOKEN_PATHS else keyed


def create_app(settings: Settings, store: Store) -> Starlette:
    """The service over an opened store, which stays the caller's to close. Raises ConfigError."""
    filters = chosen_filters(settings)
    origins = parse_origins(settings.feedback_origins)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        govern.ensure_project(store, utc_now(), TrainingUse(settings.training_use_default))
        async with backends.open_session() as session:
            door = Door(settings, store, session, filters)
            door.recorder.start()
            background = [asyncio.create_task(work) for work in (door.configs.poll(), door.keys.keep_writing_use())]
            app.state.door = door
            try:
                yield
            finally:
                for task in background:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
                await door.shadowing.stop()
                await door.keys.write_use()
                await door.recorder.stop()

    routes = _routes(settings)
    made = Starlette(
        routes=routes,
        middleware=[
            Middleware(counted, templates={route.endpoint: route.path for route in routes}),
            Middleware(guarded_answers, origins=origins, token_paths=feedback.TOKEN_PATHS),
        ],
        exception_handlers={
            PlauditError: problems.on_plaudit_error,
            HTTPException: problems.on_http_exception,
            Exception: problems.on_bug,
        },
        lifespan=lifespan,
    )
    made.state.openapi = openapi.document(_served(settings), OPERATIONS)
    return made
