"""`GET /openapi.json`: OpenAPI 3.1 of the JSON API, put together from the route table and from what stands beside each handler.

The shapes of bodies are those that the handlers read with (`loop.shapes`); only that of a chat completion is OpenAI's, read elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from plaudit.loop import collect
from plaudit.loop.govern import Permission
from plaudit.loop.shapes import Shape

OPENAPI_VERSION = "3.1.0"
JSON = "application/json"
EVENTS = "text/event-stream"
TEXT = "text/plain"
STRING: Shape = {"type": "string"}
# What any guarded route may answer besides its own: no key, too little of one, too fast, a store that is away.
GUARDED = (401, 403, 429, 503)
WITH_BODY = (413, 422)
MEANING: Mapping[int, str] = {
    200: "Done.",
    201: "Recorded.",
    204: "Done; there is nothing to say.",
    207: "A result for each item, in their order.",
    400: "Malformed; the sentence names the field.",
    401: "No valid API key, or an expired or forged feedback token.",
    403: "The key's roles, or the feedback token, do not allow it.",
    404: "It is not in this project.",
    409: "It conflicts with what is there.",
    410: "The lease has ended.",
    413: "Larger than max_body_bytes.",
    422: "Malformed; the sentence names the field.",
    429: "Faster than the limits; Retry-After says when to come back.",
    502: "The model server answered with something that is no completion.",
    503: "The store or the model server does not answer; Retry-After says when to come back.",
    504: "The model server was silent.",
}


@dataclass(frozen=True)
class Operation:
    """What one route takes and answers."""

    summary: str
    answers: Mapping[int, Shape | None]  # by status: the schema of what it says, None for nothing or for an error
    body: Shape | None = None
    query: Mapping[str, Shape] = field(default_factory=dict)  # required where its schema has a minLength
    token: bool = False  # a feedback token will do
    openai: bool = False  # errors in OpenAI's shape, 400 instead of 422
    media: str = JSON


def answer(**fields: Shape) -> Shape:
    """An object that has at least these fields."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def batch(item: Shape) -> Shape:
    """The body of a batch route."""
    items = {"type": "array", "minItems": 1, "maxItems": collect.MAX_BATCH, "items": item}
    return {"type": "object", "properties": {"items": items}, "required": ["items"], "additionalProperties": False}


PROBLEM = answer(error=answer(code=STRING, message=STRING))
OPENAI_PROBLEM = answer(error=answer(message=STRING, type=STRING, param={}, code={}))


def document(
    routes: Iterable[tuple[str, str, Any, Permission | None]], described: Mapping[str, Operation]
) -> dict[str, Any]:
    """The whole document about these routes of the route table; `described` has their Operations ("POST /v1/feedback")."""
    paths: dict[str, Any] = {}
    named: dict[str, Shape] = {"Problem": PROBLEM, "OpenAIProblem": OPENAI_PROBLEM}
    for method, path, endpoint, permission in routes:
        if f"{method} {path}" not in described:
            continue
        said = _operation(path, permission, described[f"{method} {path}"])
        paths.setdefault(path, {})[method.lower()] = {"operationId": endpoint.__name__, **_by_name(said, named)}
    return {
        "openapi": OPENAPI_VERSION,
        "info": {
            "title": "Plaudit",
            "version": version("plaudit"),
            "description": "Chats, feedback, outcomes and annotation. docs/api.md says what holds for them.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key (plk_...)."},
                "token": {"type": "http", "scheme": "bearer", "description": "A feedback token (pft_...)."},
            },
            "schemas": named,
        },
    }


def _by_name(part: Any, named: dict[str, Shape]) -> Any:
    """The same with every schema that has a title moved to `named`, so that a generated client has a class for it."""
    if isinstance(part, list):
        return [_by_name(one, named) for one in part]
    if not isinstance(part, Mapping):
        return part
    inner = {name: _by_name(one, named) for name, one in part.items()}
    if not isinstance(part.get("title"), str):
        return inner
    named[part["title"]] = inner
    return {"$ref": f"#/components/schemas/{part['title']}"}


def _operation(path: str, permission: Permission | None, one: Operation) -> dict[str, Any]:
    said: dict[str, Any] = {"summary": one.summary, "tags": [str(permission or "open")]}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": "minLength" in schema, "schema": schema}
        for name, schema in one.query.items()
    ]
    if parameters:
        said["parameters"] = parameters
    if one.body is not None:
        said["requestBody"] = {"required": True, "content": {JSON: {"schema": one.body}}}
    said["responses"] = {str(status): _response(status, one) for status in statuses(permission, one)}
    said["security"] = [{scheme: []} for scheme in ("key", "token")[: 1 + one.token]] if permission else []
    return said


def statuses(permission: Permission | None, one: Operation) -> list[int]:
    """All that a route may answer, in order."""
    found = set(one.answers) | set(GUARDED if permission is not None else ())
    if one.body is not None:
        found |= {413, 400} if one.openai else set(WITH_BODY)
    return sorted(found)


def _response(status: int, one: Operation) -> dict[str, Any]:
    schema = one.answers.get(status)
    if schema is None and status >= 400:
        schema = {"$ref": f"#/components/schemas/{'OpenAIProblem' if one.openai else 'Problem'}"}
    said: dict[str, Any] = {"description": MEANING[status]}
    if schema is not None:
        said["content"] = {one.media if status < 400 else JSON: {"schema": schema}}
        if status == 200 and one.media == EVENTS:
            said["content"][JSON] = {"schema": schema}
    return said
