"""The part of an application that its browsers talk to: an ASGI application, to be mounted anywhere, that needs no framework.

    GET  .../widget.js    the widget
    POST .../feedback     {"token", "items"} of the widget, passed on to POST /v1/feedback/batch

No API key is involved: the feedback token of an answer says which one answer its holder may rate. So the relay passes on what is signed
and reads none of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from importlib import resources
from typing import Any

import httpx

from plaudit.client.wire import certificates

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TIMEOUT_S = 10.0
MAX_BODY_BYTES = 300_000
TOKEN_PREFIX = "pft_"

WIDGET = resources.files("plaudit.client").joinpath("widget.js").read_bytes()
WIDGET_TAG = hashlib.sha256(WIDGET).hexdigest()[:12]


class Relay:
    """The application; `capture.routes()` makes it."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` takes the place of the network."""
        self._url = url
        self._verify = certificates()  # before a browser waits for it
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        match scope["method"], scope["path"].rpartition("/")[2]:
            case (("GET" | "HEAD"), "widget.js"):
                await self._widget(scope, send)
            case "POST", "feedback":
                await self._feedback(scope, receive, send)
            case _, ("widget.js" | "feedback"):
                await _say(send, 405, "bad_input", "GET widget.js or POST feedback.")
            case _:
                await _say(send, 404, "not_found", "There are widget.js and feedback here, nothing else.")

    async def _widget(self, scope: Scope, send: Send) -> None:
        tag = f'"{WIDGET_TAG}"'
        headers = {
            "content-type": "text/javascript; charset=utf-8",
            "etag": tag,
            "cache-control": "public, max-age=300",
            "x-content-type-options": "nosniff",
        }
        known = _headers(scope).get("if-none-match") == tag
        body = b"" if known or scope["method"] == "HEAD" else WIDGET
        await _answer(send, 304 if known else 200, headers, body)

    async def _feedback(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _headers(scope).get("sec-fetch-site", "same-origin") not in ("same-origin", "same-site", "none"):
            await _say(send, 403, "forbidden", "This feedback comes from a page of another site.")
            return
        body = await _read(receive)
        if body is None:
            await _say(send, 413, "too_large", f"The body is larger than {MAX_BODY_BYTES} bytes.")
            return
        try:
            asked = json.loads(body)
            token, items = asked["token"], asked["items"]
            signed = isinstance(token, str) and token.startswith(TOKEN_PREFIX)
        except (ValueError, KeyError, TypeError, RecursionError):
            await _say(send, 422, "bad_input", 'Send {"token": "pft_...", "items": [...]}.')
            return
        if not signed:
            await _say(send, 401, "unauthorized", "This is no feedback token; take the one that came with the answer.")
            return
        try:
            async with httpx.AsyncClient(verify=self._verify, transport=self._transport, timeout=TIMEOUT_S) as http:
                said = await http.post(f"{self._url}/v1/feedback/batch", json={"token": token, "items": items})
        except (httpx.HTTPError, OSError):
            await _say(send, 503, "unavailable", "The feedback service does not answer; send this again.", 5)
            return
        kept = {name: said.headers[name] for name in ("content-type", "retry-after") if name in said.headers}
        await _answer(send, said.status_code, {**kept, "cache-control": "no-store"}, said.content)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def _read(receive: Receive) -> bytes | None:
    """The body; None where it is too large."""
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        piece = message.get("body", b"")
        size += len(piece)
        if size > MAX_BODY_BYTES:
            return None
        pieces.append(piece)
        more = message["type"] == "http.request" and message.get("more_body", False)
    return b"".join(pieces)


async def _say(send: Send, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
    """An error in the service's own shape."""
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    await _answer(send, status, headers, json.dumps({"error": {"code": code, "message": message}}).encode())


async def _answer(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
