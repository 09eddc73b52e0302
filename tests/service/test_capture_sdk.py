"""Capture, Plaudit and AsyncPlaudit against a running service, with the OpenAI SDK as an application uses it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from openai import APIConnectionError, AsyncOpenAI, OpenAI

from plaudit.client import AsyncPlaudit, Capture, Plaudit
from plaudit.client.relay import Relay
from plaudit.domain import Feedback, FeedbackKind, Interaction, InteractionSource

ASKED = {"model": "any", "messages": [{"role": "user", "content": "hi"}], "user": "u-1"}


@pytest.fixture
def service(start_service):
    return start_service()


def test_a_wrapped_client_goes_through_the_gateway_and_its_answers_can_be_rated(service) -> None:
    capture = Capture(service.url, service.key("application"))
    with OpenAI(api_key="sk-own") as own, capture.wrap(own) as client:
        answer = client.chat.completions.create(**ASKED)
        with client.chat.completions.create(**ASKED, stream=True) as stream:
            streamed = {chunk.id for chunk in stream}
    (second,) = streamed
    capture.feedback.thumb(answer.id, up=True)
    capture.feedback.thumb(answer.id, up=False)
    capture.feedback.comment(second, reasons=["wrong"], user="u-1")
    assert capture.flush(30)
    tokens = {capture.token(answer.id), capture.token(second)}
    assert None not in tokens
    assert len(tokens) == 2
    assert capture.token("int_other") is None
    assert {one.id for one in service.store.find(Interaction, actor="u-1")} == {answer.id, second}
    values = [(one.interaction_id, one.value) for one in service.store.find(Feedback, order="id")]
    assert values[:2] == [(answer.id, {"up": True}), (answer.id, {"up": False})]
    assert values[2][0] == second
    assert capture.outbox.n_dropped == 0
    capture.close()


def test_an_asynchronous_client_too_and_the_browser_rates_through_the_relay(service) -> None:
    capture = Capture(service.url, service.key("application"))
    app = capture.routes()
    assert isinstance(app, Relay)

    async def serve_one_user() -> str:
        async with AsyncOpenAI(api_key="sk-own") as own, capture.wrap(own) as client:
            answer = await client.chat.completions.create(**ASKED)
        body = {"token": capture.token(answer.id), "items": [item(answer.id), item("int_another")]}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as browser:
            said = await browser.post("/plaudit/feedback", json=body)
            forged = await browser.post("/plaudit/feedback", json={**body, "token": f"{body['token']}x"})
        assert said.status_code == 207
        assert [one["code"] for one in said.json()["results"]] == [201, 403]  # the token is for one answer
        assert forged.status_code == 401
        return answer.id

    def item(id: str) -> dict:
        return {"interaction_id": id, "kind": "rating", "value": 4, "idempotency_key": id}

    answered = asyncio.run(serve_one_user())
    (rating,) = service.store.find(Feedback)
    assert (rating.interaction_id, rating.actor, rating.value) == (answered, "u-1", {"rating": 4})
    capture.close()


def test_what_was_answered_elsewhere_is_logged_behind_the_hosts_back(service) -> None:
    capture = Capture(service.url, service.key("application"))
    assert capture.assign("u-2")["model"] == "fake-1"
    name = capture.log(ASKED["messages"], ["hello"], user="u-2", model="mine")
    capture.feedback.thumb(name, up=True)
    assert capture.flush(30)
    (logged,) = service.store.find(Interaction)
    (thumb,) = service.store.find(Feedback)
    assert (logged.source, logged.actor) == (InteractionSource.LOGGED, "u-2")
    assert (thumb.interaction_id, thumb.kind, thumb.actor) == (logged.id, FeedbackKind.THUMB, "u-2")
    capture.close()


def test_without_a_service_only_the_chat_fails_and_as_the_openai_sdk_says_it() -> None:
    capture = Capture("http://127.0.0.1:9", "plk_1", exit_timeout_s=0.05)
    with OpenAI(api_key="sk-own", max_retries=0) as own, capture.wrap(own) as client, pytest.raises(APIConnectionError):
        client.chat.completions.create(**ASKED)
    capture.feedback.thumb("int_1", up=True)
    assert capture.assign("u") is None
    assert capture.log(ASKED["messages"], ["a"]).startswith("log_")
    assert capture.token("int_1") is None
    capture.close()


def test_the_same_by_hand_in_both_worlds(service) -> None:
    key = service.key("application")
    with Plaudit(service.url, key) as plaudit:
        answer = plaudit.chat(ASKED["messages"], user="u-3")
        assert plaudit.token(answer.id).startswith("pft_")
        assert plaudit.feedback.thumb(answer.id, up=True)["status"] == "recorded"
        again = plaudit.log(ASKED["messages"], ["a"], idempotency_key="k")
        assert plaudit.log(ASKED["messages"], ["a"], idempotency_key="k") == again

    async def talk() -> None:
        async with AsyncPlaudit(service.url, key) as plaudit:
            said = await plaudit.chat(ASKED["messages"], user="u-3", attributes={"language": "en"})
            assert plaudit.token(said.id).startswith("pft_")
            assert (await plaudit.feedback.signal(said.id, "dwell", seconds=3, consent=True))["status"] == "recorded"
            assert (await plaudit.assign("u-3"))["model"] == "fake-1"

    asyncio.run(talk())
    assert service.store.count(Interaction, actor="u-3") == 2
