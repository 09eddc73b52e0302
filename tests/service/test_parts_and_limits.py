"""What a service with a role answers, how fast one may ask it, who else may send it tokens, and that it remembers when keys were used."""

from __future__ import annotations

import time

import httpx
import pytest

from plaudit.domain import ApiKey
from plaudit.errors import ConfigError
from plaudit.settings import Settings
from plaudit.web import access
from plaudit.web.app import PAGES, PARTS, ROUTES, create_app

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_every_permission_belongs_to_exactly_one_part() -> None:
    named = [permission for permissions in PARTS.values() for permission in permissions]
    assert len(named) == len(set(named))
    assert {permission for *_, permission in (*ROUTES, *PAGES)} - {None} <= set(named)


@pytest.mark.parametrize(
    ("role", "open_ones", "closed"),
    [
        ("gateway", ["/v1/models"], ["/v1/feedback", "/v1/annotation/progress", "/sign-in", "/people", "/"]),
        (
            "feedback",
            ["/v1/feedback", "/v1/assignment"],
            ["/v1/models", "/v1/annotation/progress", "/sign-in", "/people"],
        ),
        ("console", ["/v1/annotation/progress", "/v1/erasure", "/sign-in", "/people"], ["/v1/models", "/v1/feedback"]),
        ("gateway,feedback", ["/v1/models", "/v1/outcomes"], ["/v1/erasure", "/runs", "/sign-in"]),
        ("all", ["/v1/models", "/v1/feedback", "/v1/erasure", "/runs"], []),
    ],
)
def test_a_part_answers_its_own_routes_and_no_others(
    start_service, role: str, open_ones: list[str], closed: list[str]
) -> None:
    service = start_service(upstream="fake:" if "gateway" in role or role == "all" else "", role=role)
    headers = bearer(service.key("admin", person="Root"))
    with httpx.Client(base_url=service.url, headers=headers, timeout=30) as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        for path in open_ones:
            assert client.get(path).status_code != 404, path
        for path in closed:
            for method in ("GET", "POST"):
                assert client.request(method, path).status_code == 404, path


def test_a_role_without_a_service_says_so() -> None:
    for role, says in (("worker", "plaudit worker"), ("king", "give all, or some of")):
        with pytest.raises(ConfigError, match=says):
            create_app(Settings(role=role), None)


def test_a_key_and_a_user_that_are_too_fast_are_told_when_to_come_back(start_service) -> None:
    service = start_service(rate_per_key=0.01, rate_per_actor=0.02, rate_burst_s=200.0)  # 2 of a key, 4 of a user
    with httpx.Client(base_url=service.url, timeout=30) as client:
        keys = [service.key("application", person=f"P{n}") for n in range(4)]
        spent = [client.get("/v1/models", headers=bearer(keys[0])).status_code for _ in range(3)]
        assert spent == [200, 200, 429]
        refused = client.post("/v1/chat/completions", json=CHAT, headers=bearer(keys[0]))
        said = refused.json()["error"]
        assert (refused.status_code, said["code"], said["type"]) == (429, "rate_limited", "rate_limit_error")
        assert 90 <= int(refused.headers["retry-after"]) <= 100
        body = CHAT | {"user": "u1"}
        first = client.post("/v1/chat/completions", json=body, headers=bearer(keys[1]))
        token = first.headers["x-plaudit-feedback-token"]
        thumb = {"interaction_id": first.json()["id"], "kind": "comment", "value": {"text": "x"}}
        given = [client.post("/v1/feedback", json=thumb, headers=bearer(token)).status_code for _ in range(2)]
        named = client.post("/v1/feedback", json=thumb | {"user": "u1"}, headers=bearer(keys[1]))
        assert (first.status_code, given, named.status_code) == (200, [201, 201], 201)
        for sent in (
            client.post("/v1/feedback", json=thumb | {"token": token}),
            client.post("/v1/feedback", json=thumb | {"user": "u1"}, headers=bearer(keys[2])),
            client.post("/v1/chat/completions", json=body, headers=bearer(keys[2])),
        ):
            assert (sent.status_code, sent.json()["error"]["code"]) == (429, "rate_limited"), sent.text
        assert (
            client.post("/v1/chat/completions", json=CHAT | {"user": "u2"}, headers=bearer(keys[3])).status_code == 200
        )


def test_the_pages_of_an_origin_may_send_tokens_and_nothing_else(start_service) -> None:
    service = start_service(feedback_origins="https://shop.example")
    key = service.key("application")
    page = {"origin": "https://shop.example"}
    with httpx.Client(base_url=service.url, timeout=30) as client:
        spoken = client.post("/v1/chat/completions", json=CHAT, headers=bearer(key) | page)
        assert "access-control-allow-origin" not in spoken.headers
        asked = page | {"access-control-request-method": "POST"}
        assert client.options("/v1/feedback", headers=asked).status_code == 204
        assert client.options("/v1/chat/completions", headers=asked).status_code == 405
        thumb = {"interaction_id": spoken.json()["id"], "kind": "thumb", "value": True}
        token = spoken.headers["x-plaudit-feedback-token"]
        for headers in (bearer(token), bearer("pft_e30.forged")):  # a page may read why it was refused
            sent = client.post("/v1/feedback", json=thumb, headers=headers | page)
            assert sent.headers["access-control-allow-origin"] == "https://shop.example"
        assert (
            "access-control-allow-origin"
            not in client.post("/v1/feedback", json=thumb, headers=bearer(key) | page).headers
        )
        assert (
            "access-control-allow-origin" not in client.post("/v1/feedback", json=thumb, headers=bearer(token)).headers
        )


def test_origins_that_are_none_stop_the_service_at_its_start() -> None:
    with pytest.raises(ConfigError, match="feedback_origins"):
        create_app(Settings(feedback_origins="*"), None)


def test_the_last_use_of_a_key_is_in_the_store_after_a_while(start_service, monkeypatch) -> None:
    monkeypatch.setattr(access, "LAST_USE_S", 0.05)
    service = start_service()
    used = service.key("application")
    service.key("operator")
    assert httpx.get(service.url + "/v1/models", headers=bearer(used)).status_code == 200
    deadline = time.monotonic() + 20
    while (key := service.store.first(ApiKey, name="application-None")).last_used_at is None:
        assert time.monotonic() < deadline, "the use of the key was never written"
        time.sleep(0.02)
    assert key.last_used_at >= key.created_at
    assert service.store.first(ApiKey, name="operator-None").last_used_at is None
