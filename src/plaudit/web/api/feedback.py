"""Capture: interactions made elsewhere, feedback, and which Release a user is assigned to."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Assignment, utc_now
from plaudit.errors import BadInput
from plaudit.loop import collect
from plaudit.web.access import key_of
from plaudit.web.door import door_of, read_json
from plaudit.web.problems import json_response

MAX_KEY_CHARS = 200


async def log_interaction(request: Request) -> Response:
    """POST /v1/interactions. A user's assignment is remembered where the application names the release that it was told to use."""
    door, project_id = door_of(request), key_of(request).project_id
    body = await read_json(request)
    assignment: Assignment | None = None
    if isinstance(body.get("user"), str) and body.get("release_id"):
        spoken = body.get("conversation_id")
        serving = await door.configs.current(project_id)
        assignment = await door.configs.assign(serving, body["user"], spoken if isinstance(spoken, str) else None)
    interaction = await door.run(collect.log_interaction, door.store, project_id, body, utc_now(), assignment)
    return json_response({"id": interaction.id}, 201)


async def record_feedback(request: Request) -> Response:
    """POST /v1/feedback. 201 recorded or superseded, 200 where this very act was recorded before."""
    door = door_of(request)
    body = await read_json(request)
    idempotency_key = request.headers.get("idempotency-key")
    if idempotency_key is not None and not 0 < len(idempotency_key) <= MAX_KEY_CHARS:
        raise BadInput(f"The header Idempotency-Key must have 1 to {MAX_KEY_CHARS} characters.")
    project_id = key_of(request).project_id
    result = await door.run(collect.record_feedback, door.store, project_id, body, idempotency_key, utc_now())
    replayed = result.status == "replayed"
    return json_response({"id": result.feedback.id, "status": result.status}, 200 if replayed else 201)


async def assignment(request: Request) -> Response:
    """GET /v1/assignment?user=U&conversation_id=C, for applications that call the model themselves; without C a new conversation."""
    user = request.query_params.get("user")
    if not user:
        raise BadInput("The query parameter `user` is missing: the pseudonym of the end user.")
    configs = door_of(request).configs
    serving = await configs.current(key_of(request).project_id)
    assigned = await configs.assign(serving, user, request.query_params.get("conversation_id"))
    return json_response(
        {
            "release_id": assigned.release_id,
            "model": serving.config.release(assigned.release_id).model,
            "experiment_id": assigned.experiment_id,
            "arm": assigned.arm,
        }
    )
