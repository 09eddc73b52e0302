"""Capture: interactions made elsewhere, feedback, and which Release a user is assigned to; one by one and in batches.

Feedback may come with an API key, or with the feedback token of one answer: in the header, or in the body, since `sendBeacon` sets no header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Assignment, Interaction, utc_now
from plaudit.errors import BadInput, PlauditError
from plaudit.loop import collect, feedback_tokens
from plaudit.loop.collect import FeedbackResult, Logged
from plaudit.loop.feedback_tokens import Claims
from plaudit.openai_protocol import Json
from plaudit.web.access import Endpoint, key_of
from plaudit.web.door import Door, Said, door_of, read_json
from plaudit.web.problems import json_response, problem

MAX_KEY_CHARS = 200
TOKEN_PATHS = ("/v1/feedback", "/v1/feedback/batch")  # where a feedback token may stand in for an API key


# --- interactions ------------------------------------------------------------------------------------------------------


async def log_interaction(request: Request) -> Response:
    """POST /v1/interactions: 201, or 200 where this very one was logged before. A user's assignment is remembered where the application
    names the release that it was told to use."""
    body = _with_key(await read_json(request), request)
    (result,) = await _log(request, [body])
    if isinstance(result, PlauditError):
        raise result
    return json_response(_said_of(door_of(request), result.interaction), 200 if result.replayed else 201)


async def log_interactions(request: Request) -> Response:
    """POST /v1/interactions/batch: 207, a status for each."""
    items = batch_of(await read_json(request), "interactions")
    results = await _log(request, items)
    door = door_of(request)
    return results_response(
        [
            problem(one)
            if isinstance(one, PlauditError)
            else (200 if one.replayed else 201, _said_of(door, one.interaction))
            for one in results
        ]
    )


async def _log(request: Request, bodies: Sequence[Any]) -> list[Logged | PlauditError]:
    door, project_id = door_of(request), key_of(request).project_id
    assignments = [await _assignment(door, project_id, body) for body in bodies]
    return await door.run(collect.log_interactions, door.store, project_id, bodies, utc_now(), assignments)


async def _assignment(door: Door, project_id: str, body: Any) -> Assignment | None:
    if not isinstance(body, dict) or not isinstance(body.get("user"), str) or not body.get("release_id"):
        return None
    spoken = body.get("conversation_id")
    serving = await door.configs.current(project_id)
    declared = body.get("attributes")
    return await door.configs.assign(
        serving,
        body["user"],
        spoken if isinstance(spoken, str) else None,
        declared if isinstance(declared, dict) else None,
    )


def _said_of(door: Door, interaction: Interaction) -> Json:
    token = feedback_tokens.mint(
        door.feedback_keys.current(), interaction.project_id, interaction.id, interaction.actor, utc_now()
    )
    return {"id": interaction.id, "feedback_token": token}


# --- feedback ----------------------------------------------------------------------------------------------------------


def by_token_or(keyed: Endpoint, endpoint: Endpoint) -> Endpoint:
    """The endpoint behind a feedback token, where one is sent, else behind an API key (`keyed`)."""

    async def either(request: Request) -> Response:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        token: Any = secret.strip() if scheme.lower() == "bearer" else None
        if not scheme:
            try:
                request.state.body = await read_json(request)
            except BadInput:
                return await keyed(request)  # which says that nobody has signed this
            token = request.state.body.pop("token", None)
        if not isinstance(token, str) or not token.startswith(feedback_tokens.PREFIX):
            return await keyed(request)
        request.state.claims = feedback_tokens.check(door_of(request).feedback_keys.current(), token, utc_now())
        door_of(request).limits.token(request.state.claims)
        return await endpoint(request)

    return either


async def record_feedback(request: Request) -> Response:
    """POST /v1/feedback. 201 recorded or superseded, 200 where this very act was recorded before."""
    body = _with_key(await _body(request), request)
    user = body.get("user")
    if isinstance(user, str) and not hasattr(request.state, "claims"):
        door_of(request).limits.actor(key_of(request).project_id, user)
    result = await door_of(request).feedback(_project_id(request)).ask(Said(body, _claims(request)))
    if isinstance(result, PlauditError):
        raise result
    status, said = _result(result)
    return json_response(said, status)


async def record_feedbacks(request: Request) -> Response:
    """POST /v1/feedback/batch: 207, a status for each, all in one transaction."""
    items = batch_of(await _body(request), "feedback")
    claims = _claims(request)
    results = await door_of(request).record(_project_id(request), [Said(item, claims) for item in items])
    return results_response([problem(one) if isinstance(one, PlauditError) else _result(one) for one in results])


def _claims(request: Request) -> Claims | None:
    return getattr(request.state, "claims", None)


def _project_id(request: Request) -> str:
    claims = _claims(request)
    return claims.project_id if claims else key_of(request).project_id


def _result(result: FeedbackResult) -> tuple[int, Json]:
    replayed = result.status == "replayed"
    return 200 if replayed else 201, {"id": result.feedback.id, "status": result.status}


async def _body(request: Request) -> dict[str, Any]:
    """The body, which the guard may have read to look for a token."""
    if not hasattr(request.state, "body"):
        request.state.body = await read_json(request)
    body: dict[str, Any] = request.state.body
    return body


# --- what batches share ------------------------------------------------------------------------------------------------


def batch_of(body: dict[str, Any], what: str) -> list[Any]:
    """The list that a batch holds. Raises BadInput."""
    items = body.get("items")
    if set(body) != {"items"} or not isinstance(items, list) or not 0 < len(items) <= collect.MAX_BATCH:
        raise BadInput(f'Send {{"items": [...]}} with 1 to {collect.MAX_BATCH} {what}, and nothing beside it.')
    return items


def results_response(results: Sequence[tuple[int, Json]]) -> Response:
    """207: what became of each item, in their order."""
    return json_response({"results": [{"code": code, **said} for code, said in results]}, 207)


def _with_key(body: dict[str, Any], request: Request) -> dict[str, Any]:
    """The body with the idempotency key of the header in it. Raises BadInput where the two differ."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return body
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise BadInput(f"The header Idempotency-Key must have 1 to {MAX_KEY_CHARS} characters.")
    if body.get("idempotency_key", key) != key:
        raise BadInput("idempotency_key differs between header and body; send it once.")
    return {**body, "idempotency_key": key}


async def assignment(request: Request) -> Response:
    """GET /v1/assignment?user=U&conversation_id=C&attribute=NAME=VALUE, for applications that call the model themselves; without C a new
    conversation. The attributes are those of the later log, for Releases and pilots of a segment."""
    user = request.query_params.get("user")
    if not user:
        raise BadInput("The query parameter `user` is missing: the pseudonym of the end user.")
    configs = door_of(request).configs
    serving = await configs.current(key_of(request).project_id)
    said = (one.partition("=") for one in request.query_params.getlist("attribute"))
    attributes = {name: value for name, _, value in said}
    assigned = await configs.assign(serving, user, request.query_params.get("conversation_id"), attributes)
    return json_response(
        {
            "release_id": assigned.release_id,
            "model": serving.config.release(assigned.release_id).model,
            "experiment_id": assigned.experiment_id,
            "arm": assigned.arm,
        }
    )
