"""Errors to answers. OpenAI routes speak OpenAI's error shape, all others {"error": {"code", "message"}} with the
table below; a browser that asks for a page gets one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plaudit import openai_protocol as protocol
from plaudit.errors import PlauditError, Refused
from plaudit.web.headers import HEADERS
from plaudit.web.pages import shell

log = logging.getLogger("plaudit.web")

# The same statuses as on OpenAI routes, besides those where a plain JSON API says more.
STATUS: Mapping[str, int] = {**protocol.STATUS, "bad_input": 422, "expired": 410}
OPENAI_PATHS = ("/v1/chat/completions", "/v1/models")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, dict(headers or {}), "application/json")


def problem(error: PlauditError) -> tuple[int, dict[str, Any]]:
    """Status and body of what went wrong with one item of a batch."""
    status = STATUS.get(error.code, protocol.status_of(error))
    return status, {"error": {"code": error.code, "message": error.message}}


def on_plaudit_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PlauditError)
    if request.url.path in OPENAI_PATHS:
        body, status = protocol.error_body(error), protocol.status_of(error)
    else:
        said: dict[str, Any] = {"code": error.code, "message": error.message}
        if isinstance(error, Refused):
            said["reasons"] = list(error.reasons)
        body, status = {"error": said}, STATUS.get(error.code, protocol.status_of(error))
    if status >= 500:
        log.warning("%s %s: %s", request.method, request.url.path, error)
    if shell.wants_page(request):
        return shell.go("/sign-in") if status == 401 else shell.problem(request, status, error, error.message)
    headers = protocol.error_headers(error)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response(body, status, headers)


def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {error.detail}."
    if shell.wants_page(request):
        said = "This page does not exist." if error.status_code == 404 else said
        return shell.problem(request, error.status_code, None, said)
    code = "not_found" if error.status_code == 404 else "bad_request"
    body: dict[str, Any] = {"code": code, "message": said}
    if request.url.path in OPENAI_PATHS:
        body |= {"type": "invalid_request_error", "param": None}
    return json_response({"error": body}, error.status_code, error.headers)


def on_bug(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Anything else is a bug: the log has the traceback, the answer nothing of it."""
    said = "The service failed; its log says how."
    if shell.wants_page(request):
        return shell.problem(request, 500, None, said)
    body = {"code": "internal_error", "message": said, "type": "server_error"}
    return json_response({"error": body}, 500, HEADERS)  # which is made outside of what adds them elsewhere
