"""Feedback tokens, batches, outcomes and erasure over HTTP."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from plaudit.domain import Feedback, Interaction, Outcome, utc_now
from plaudit.loop import collect, feedback_tokens

CHAT = {"model": "plaudit", "messages": [{"role": "user", "content": "Where is my order?"}], "user": "u1"}


@pytest.fixture
def service(start_service):
    return start_service()


def post(service, path: str, key: str | None, json: Any, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(service.url + path, headers=headers, json=json, timeout=30, **more)


def test_a_browser_with_the_token_of_an_answer_may_rate_that_answer_only(service) -> None:
    key = service.key("application")
    answer = post(service, "/v1/chat/completions", key, CHAT)
    token, interaction = answer.headers["x-plaudit-feedback-token"], answer.json()["id"]
    thumb = {"interaction_id": interaction, "kind": "thumb", "value": True}
    assert post(service, "/v1/feedback", token, thumb).status_code == 201
    beacon = httpx.post(
        service.url + "/v1/feedback", json={**thumb, "token": token, "idempotency_key": "b1"}, timeout=30
    )
    assert beacon.status_code == 200
    batch = httpx.post(
        service.url + "/v1/feedback/batch", json={"items": [{**thumb, "value": False}], "token": token}, timeout=30
    )
    assert [one["code"] for one in batch.json()["results"]] == [201]
    (stored, _) = service.store.find(Feedback)
    assert stored.actor == "u1"

    other = post(service, "/v1/interactions", key, {"messages": CHAT["messages"], "responses": ["Here."], "user": "u2"})
    theirs = {**thumb, "interaction_id": other.json()["id"]}
    assert post(service, "/v1/feedback", token, theirs).status_code == 403
    assert post(service, "/v1/feedback", token, {**thumb, "user": "u2"}).status_code == 403
    assert post(service, "/v1/feedback", other.json()["feedback_token"], theirs).status_code == 201
    assert post(service, "/v1/feedback", token[:-3], thumb).status_code == 401
    ring, project = service.app.state.door.feedback_keys.current(), service.project.id
    old = feedback_tokens.mint(ring, project, interaction, "u1", utc_now() - 2 * feedback_tokens.LIFETIME)
    assert post(service, "/v1/feedback", old, thumb).status_code == 401
    assert post(service, "/v1/interactions", token, thumb).status_code == 401  # a token is no key
    assert post(service, "/v1/feedback", None, {**thumb, "token": 7}).status_code == 401
    assert service.store.count(Feedback) == 3


def test_batches_say_what_became_of_each_item(service) -> None:
    key = service.key("application")
    line = {"messages": CHAT["messages"], "responses": ["Here."], "user": "u1", "idempotency_key": "i1"}
    logged = post(service, "/v1/interactions/batch", key, {"items": [line, line, {**line, "responses": []}, 3]})
    assert logged.status_code == 207
    results = logged.json()["results"]
    assert [one["code"] for one in results] == [201, 200, 422, 422]
    assert results[0]["id"] == results[1]["id"]
    assert post(service, "/v1/interactions", key, line).status_code == 200
    about = results[0]["id"]
    said = [{"interaction_id": about, "kind": "thumb", "value": n % 2 == 0, "user": f"u{n}"} for n in range(1000)]
    done = post(service, "/v1/feedback/batch", key, {"items": said})
    assert {one["code"] for one in done.json()["results"]} == {201}
    assert service.store.count(Feedback) == 1000
    for wrong in ({"items": []}, {"items": said + said[:1]}, {}, {"items": said[:1], "more": 1}):
        assert post(service, "/v1/feedback/batch", key, wrong).status_code == 422
    bought = {"user": "u1", "name": "paid", "value": 2.5, "at": "2026-03-01T10:00:00Z"}
    assert [post(service, "/v1/outcomes", key, bought).status_code for _ in range(2)] == [201, 200]
    mixed = post(
        service, "/v1/outcomes/batch", key, {"items": [bought, {**bought, "value": "x"}, {**bought, "value": 3}]}
    )
    assert [one["code"] for one in mixed.json()["results"]] == [200, 422, 201]
    assert service.store.count(Outcome) == 2


def test_a_user_is_erased_by_those_who_may(service) -> None:
    key, operator = service.key("application"), service.key("operator")
    answer = post(service, "/v1/chat/completions", key, CHAT)
    assert post(service, "/v1/erasure", key, {"user": "u1"}).status_code == 403
    assert post(service, "/v1/erasure", operator, {"user": "nobody"}).status_code == 404
    done = post(service, "/v1/erasure", operator, {"user": "u1"})
    assert done.status_code == 201
    assert done.json()["erased"]["interactions"] == 1
    tomb = service.store.get(Interaction, answer.json()["id"])
    assert (tomb.messages, tomb.actor) == ((), done.json()["id"])
    token = answer.headers["x-plaudit-feedback-token"]
    assert (
        post(service, "/v1/feedback", token, {"interaction_id": tomb.id, "kind": "thumb", "value": True}).status_code
        == 404
    )


def test_feedback_that_comes_at_once_shares_a_transaction_and_nobody_pays_for_anothers(service, monkeypatch) -> None:
    """Eight users at once: the first holds up the store, of the others one trips over a bug, and one holds the token of another's answer."""
    key = service.key("application")
    answers = [post(service, "/v1/chat/completions", key, {**CHAT, "user": f"u{n}"}) for n in range(8)]
    record, held, sizes = collect.record_feedbacks, threading.Event(), []

    def recording(store, project_id, bodies, *more):
        sizes.append(len(bodies))
        if len(sizes) == 1:
            held.wait(20)
        if any(body["value"] == "bug" for body in bodies):
            raise RuntimeError("a bug")
        return record(store, project_id, bodies, *more)

    monkeypatch.setattr(collect, "record_feedbacks", recording)

    def comment(n: int) -> httpx.Response:
        body = {"interaction_id": answers[n].json()["id"], "kind": "comment", "value": "bug" if n == 3 else f"by {n}"}
        token = answers[4 if n == 5 else n].headers["x-plaudit-feedback-token"]
        return post(service, "/v1/feedback", token, body)

    with ThreadPoolExecutor(8) as pool:
        said = [pool.submit(comment, n) for n in range(8)]
        while len(service.app.state.door.feedback(service.project.id)._waiting) < 7:
            time.sleep(0.01)
        held.set()
        codes = [one.result().status_code for one in said]
    assert codes == [201, 201, 201, 500, 201, 403, 201, 201]
    rows = service.store.find(Feedback)
    assert sorted(row.value["text"] for row in rows) == [f"by {n}" for n in (0, 1, 2, 4, 6, 7)]
    assert {row.interaction_id: row.actor for row in rows} == {
        answers[n].json()["id"]: f"u{n}" for n in (0, 1, 2, 4, 6, 7)
    }
    assert sizes[:2] == [1, 7]
