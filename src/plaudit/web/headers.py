"""What every answer carries, and who may read answers from another site: nobody, but with a feedback token the pages of `feedback_origins`.

What an answer says of itself stands: pages have a content security policy of their own, event streams and static files their caching.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit.errors import ConfigError

# JSON and redirects show nothing, so the policy forbids all. Source: OWASP, "REST Security Cheat Sheet", Security Headers.
HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
PREFLIGHT: Mapping[str, str] = {
    "access-control-allow-methods": "POST",
    "access-control-allow-headers": "authorization, content-type, idempotency-key",
    "access-control-max-age": "600",
}


def parse_origins(setting: str) -> frozenset[str]:
    """The origins of `feedback_origins`. Raises ConfigError for what is none, such as a star or an address with a path."""
    origins = frozenset(part.strip() for part in setting.split(",") if part.strip())
    for origin in origins:
        scheme, _, host = origin.partition("://")
        if scheme not in ("http", "https") or not host or set(host) & set("/*?# "):
            raise ConfigError(
                f"feedback_origins has {origin!r}; write origins such as https://shop.example with commas."
            )
    return origins


def guarded_answers(app: ASGIApp, origins: frozenset[str], token_paths: Collection[str]) -> ASGIApp:
    """The app with HEADERS on every answer, and CORS for `origins` on `token_paths`, where the request brings no API key."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        shared: Mapping[str, str] = {}
        if origins and scope["path"] in token_paths:
            asked = Headers(scope=scope)
            shared = _shared(asked, origins)
            if "access-control-allow-origin" in shared and scope["method"] == "OPTIONS":
                headers = {**HEADERS, **shared, **PREFLIGHT}
                await Response(status_code=204, headers=headers)(scope, receive, send)
                return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = {name for name, _ in message["headers"]}
                more = [*(pair for pair in _RAW if pair[0] not in said), *_raw(shared)]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await app(scope, receive, sending)

    return answering


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


_RAW = _raw(HEADERS)


def _shared(asked: Headers, origins: frozenset[str]) -> Mapping[str, str]:
    """The CORS headers for this request. No credentials are allowed, so a cookie never counts; an API key has no business in a page."""
    origin, secret = asked.get("origin"), asked.get("authorization", "").lower()
    if origin not in origins or secret.startswith("bearer plk_"):
        return {"vary": "origin"}
    return {
        "vary": "origin",
        "access-control-allow-origin": str(origin),
        "access-control-expose-headers": "retry-after",
    }
