from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest

from plaudit.client import relay
from plaudit.client.relay import Relay
from plaudit.loop import feedback_tokens

BODY = {"token": "pft_1.2", "items": [{"kind": "thumb"}]}


def ask(method: str, path: str, answer=None, **request) -> tuple[httpx.Response, list[httpx.Request]]:
    """One request to a Relay whose service answers with `answer`; also what the service was asked."""
    asked: list[httpx.Request] = []

    def service(sent: httpx.Request) -> httpx.Response:
        asked.append(sent)
        if isinstance(answer, Exception):
            raise answer
        return answer or httpx.Response(207, json={"results": []}, headers={"set-cookie": "a=b", "server": "s"})

    app = Relay("http://service", transport=httpx.MockTransport(service))

    async def talk() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop.example") as browser:
            return await browser.request(method, path, **request)

    return asyncio.run(talk()), asked


def test_the_widget_is_served_from_where_it_is_mounted() -> None:
    first, _ = ask("GET", "/anywhere/widget.js")
    assert first.status_code == 200
    assert first.headers["content-type"].startswith("text/javascript")
    assert first.content == relay.WIDGET
    again, _ = ask("GET", "/anywhere/widget.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_feedback_is_passed_on_without_a_key_or_anything_else_of_the_browsers() -> None:
    answer, (sent,) = ask("POST", "/plaudit/feedback", json=BODY, headers={"cookie": "session=1", "authorization": "x"})
    assert (sent.method, str(sent.url)) == ("POST", "http://service/v1/feedback/batch")
    assert json.loads(sent.content) == BODY
    assert not {"cookie", "authorization"} & set(sent.headers)
    assert (answer.status_code, answer.json()) == (207, {"results": []})
    assert "set-cookie" not in answer.headers


def test_what_the_service_answers_is_what_the_browser_gets() -> None:
    said = httpx.Response(429, json={"error": {"code": "rate_limited"}}, headers={"retry-after": "7"})
    answer, _ = ask("POST", "/feedback", said, json=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (422, {"content": b"no json"}),
        (422, {"json": ["a list"]}),
        (422, {"json": {"token": "pft_1"}}),
        (422, {"content": b"[" * 100_000}),
        (401, {"json": {"token": "plk_1", "items": []}}),
        (413, {"content": b"x" * (relay.MAX_BODY_BYTES + 1)}),
        (403, {"json": BODY, "headers": {"sec-fetch-site": "cross-site"}}),
    ],
)
def test_what_is_not_of_the_widget_stays_here(status: int, request_) -> None:
    answer, asked = ask("POST", "/feedback", **request_)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert asked == []


def test_a_service_that_is_away_is_503() -> None:
    answer, _ = ask("POST", "/feedback", httpx.ConnectError("gone"), json=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/feedback", 405), ("GET", "/else", 404)])
def test_there_is_nothing_else(method: str, path: str, status: int) -> None:
    assert ask(method, path)[0].status_code == status


def test_a_token_begins_as_the_service_begins_it() -> None:
    assert relay.TOKEN_PREFIX == feedback_tokens.PREFIX


def test_the_widget_asks_for_nothing_that_a_strict_policy_forbids() -> None:
    text = relay.WIDGET.decode()
    assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\(|new Function|\.style\b|import\(|<style", text)
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}
