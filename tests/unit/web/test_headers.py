from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from plaudit.errors import ConfigError
from plaudit.web.headers import HEADERS, guarded_answers, parse_origins

SHOP = "https://shop.example"


def app(origins: str) -> Starlette:
    async def plain(request: Request) -> Response:
        return PlainTextResponse("x", headers={"cache-control": "public", "content-security-policy": "own"})

    async def nothing(request: Request) -> Response:
        return Response(status_code=204)

    return Starlette(
        routes=[Route("/open", plain), Route("/rate", nothing, methods=["POST"])],
        middleware=[Middleware(guarded_answers, origins=parse_origins(origins), token_paths=("/rate",))],
    )


def ask(method: str, path: str, origins: str = SHOP, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app(origins))
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            return await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return asyncio.run(send())


def cors(answer: httpx.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control")}


def test_every_answer_has_the_headers_and_keeps_its_own() -> None:
    for answer in (ask("POST", "/rate"), ask("GET", "/nowhere"), ask("PUT", "/rate")):
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    own = ask("GET", "/open").headers
    assert own.get_list("cache-control") == ["public"]
    assert own.get_list("content-security-policy") == ["own"]
    assert own["x-content-type-options"] == "nosniff"


def test_without_origins_no_other_site_may_read_anything() -> None:
    for method in ("OPTIONS", "POST"):
        answer = ask(method, "/rate", origins="", origin=SHOP, access_control_request_method="POST")
        assert not cors(answer)
    assert ask("OPTIONS", "/rate", origins="", origin=SHOP).status_code == 405


def test_the_origins_may_send_tokens_and_only_there() -> None:
    preflight = ask("OPTIONS", "/rate", origin=SHOP, access_control_request_method="POST")
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == SHOP
    assert preflight.headers["access-control-allow-methods"] == "POST"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    sent = ask("POST", "/rate", origin=SHOP, authorization="Bearer pft_x.y")
    assert sent.headers["access-control-allow-origin"] == SHOP
    assert "origin" in sent.headers["vary"]
    assert "access-control-allow-credentials" not in {**preflight.headers, **sent.headers}
    assert not cors(ask("GET", "/open", origin=SHOP))
    assert not cors(ask("OPTIONS", "/open", origin=SHOP, access_control_request_method="POST"))


def test_other_origins_and_api_keys_are_not_let_in() -> None:
    for origin in ("https://shop.example.evil.example", "http://shop.example", "null", "https://SHOP.example"):
        assert not cors(ask("POST", "/rate", origin=origin))
        assert not cors(ask("OPTIONS", "/rate", origin=origin, access_control_request_method="POST"))
    for secret in ("Bearer plk_x", "bearer PLK_x"):
        assert not cors(ask("POST", "/rate", origin=SHOP, authorization=secret))


def test_origins_are_exact() -> None:
    assert parse_origins(" https://a.example, http://localhost:3000 ,") == {
        "https://a.example",
        "http://localhost:3000",
    }
    assert parse_origins("") == frozenset()
    for wrong in ("*", "https://*.example", "shop.example", "https://a.example/", "https://", "null"):
        with pytest.raises(ConfigError, match="feedback_origins"):
            parse_origins(wrong)
