from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from plaudit import errors
from plaudit.client import AsyncPlaudit, Plaudit, wire


class Wire:
    """Answers from a script: (status, JSON, headers), or an exception to raise. Remembers every request and pause."""

    def __init__(self, monkeypatch, *script) -> None:
        self.script = list(script)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []
        monkeypatch.setattr(wire.time, "sleep", self.pauses.append)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        status, body, *headers = step
        return httpx.Response(status, json=body, headers=headers[0] if headers else {})

    def plaudit(self, retries: int = 3) -> Plaudit:
        return Plaudit("http://service/v1/", "plk_1", transport=httpx.MockTransport(self), retries=retries)

    def bodies(self) -> list[dict]:
        return [json.loads(request.content) for request in self.requests]


RECORDED = (201, {"id": "fdb_1", "status": "recorded"})


def test_feedback_is_sent_in_the_shape_of_the_api(monkeypatch) -> None:
    script = Wire(monkeypatch, *[RECORDED] * 8)
    with script.plaudit() as plaudit:
        plaudit.feedback.thumb("int_1", up=False, user="u")
        plaudit.feedback.rate("int_1", 4)
        plaudit.feedback.edit("int_1", "better", response_index=2)
        plaudit.feedback.choose("int_1", None)
        plaudit.feedback.comment("int_1", "why", reasons=["wrong"])
        plaudit.feedback.comment("int_1", reasons=["wrong"])
        plaudit.feedback.signal("int_1", "dwell", seconds=2.5, consent=True)
        plaudit.feedback.retract("int_1", "thumb", user="u")
    assert {request.url for request in script.requests} == {httpx.URL("http://service/v1/feedback")}
    assert {request.headers["authorization"] for request in script.requests} == {"Bearer plk_1"}
    bodies = script.bodies()
    keys = {body.pop("idempotency_key") for body in bodies}
    assert len(keys) == 8
    assert bodies == [
        {"interaction_id": "int_1", "kind": "thumb", "value": {"up": False}, "user": "u"},
        {"interaction_id": "int_1", "kind": "rating", "value": {"rating": 4}},
        {"interaction_id": "int_1", "kind": "edit", "value": {"text": "better"}, "response_index": 2},
        {"interaction_id": "int_1", "kind": "choice", "value": {"chosen": None}},
        {"interaction_id": "int_1", "kind": "comment", "value": {"text": "why", "reasons": ["wrong"]}},
        {"interaction_id": "int_1", "kind": "comment", "value": {"text": None, "reasons": ["wrong"]}},
        {"interaction_id": "int_1", "kind": "signal", "value": {"name": "dwell", "seconds": 2.5, "consent": True}},
        {"interaction_id": "int_1", "kind": "thumb", "user": "u", "retract": True},
    ]


def test_a_retry_carries_the_same_idempotency_key(monkeypatch) -> None:
    script = Wire(monkeypatch, httpx.ReadTimeout("slow"), (500, {}), httpx.ConnectError("gone"), RECORDED)
    assert script.plaudit().feedback.thumb("int_1", up=True)["status"] == "recorded"
    assert len({body["idempotency_key"] for body in script.bodies()}) == 1
    assert script.pauses == [0.2, 0.4, 0.8]


def test_the_service_may_ask_for_a_longer_pause(monkeypatch) -> None:
    script = Wire(monkeypatch, (429, {}, {"retry-after": "5"}), (503, {}, {"retry-after": "600"}), RECORDED)
    script.plaudit().feedback.thumb("int_1", up=True)
    assert script.pauses == [5.0, wire.LONGEST_PAUSE_S]


@pytest.mark.parametrize("fault", [httpx.ReadTimeout("slow"), (500, {}), (503, {})])
def test_a_log_is_sent_again_with_its_key(monkeypatch, fault) -> None:
    script = Wire(monkeypatch, fault, (200, {"id": "int_1", "feedback_token": "pft_1"}))
    plaudit = script.plaudit()
    assert plaudit.log([{"role": "user", "content": "q"}], ["a"], user="u", model="mine") == "int_1"
    assert plaudit.token("int_1") == "pft_1"
    first, second = script.bodies()
    assert first == second
    assert len(first.pop("idempotency_key")) == 32
    assert first == {"messages": [{"role": "user", "content": "q"}], "responses": ["a"], "user": "u", "model": "mine"}


@pytest.mark.parametrize(
    ("outcome", "repeated"),
    [
        (httpx.ReadTimeout("slow"), False),
        (httpx.ConnectError("gone"), True),
        (httpx.ConnectTimeout("gone"), True),
        (httpx.PoolTimeout("full"), True),
    ],
)
def test_what_must_not_act_twice_is_repeated_only_where_it_cannot_have_arrived(outcome, repeated) -> None:
    if repeated:
        assert wire.pause_s(outcome, 0, 3, False, "http://service") == wire.FIRST_PAUSE_S
    else:
        with pytest.raises(errors.Unavailable, match="ReadTimeout"):
            wire.pause_s(outcome, 0, 3, False, "http://service")


def test_an_answer_of_something_else_is_an_error_of_ours(monkeypatch) -> None:
    with pytest.raises(errors.PlauditError, match="no JSON object"):
        Wire(monkeypatch, (200, ["a proxy"])).plaudit().assign("u")


def test_retries_end_with_a_sentence(monkeypatch) -> None:
    script = Wire(monkeypatch, *[httpx.ConnectError("gone")] * 3)
    with pytest.raises(errors.Unavailable, match="http://service does not answer"):
        script.plaudit(retries=2).assign("u")
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (422, errors.BadInput),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (410, errors.Expired),
        (413, errors.TooLarge),
        (409, errors.Refused),
    ],
)
def test_an_error_is_raised_as_what_it_is_and_not_retried(monkeypatch, status, kind) -> None:
    script = Wire(monkeypatch, (status, {"error": {"code": kind.code, "message": "the sentence"}}))
    with pytest.raises(kind, match="the sentence") as caught:
        script.plaudit().feedback.thumb("int_1", up=True)
    assert type(caught.value) is kind


def test_an_answer_that_is_no_json_is_still_an_error_of_ours(monkeypatch) -> None:
    script = Wire(monkeypatch, (418, "teapot"))
    with pytest.raises(errors.PlauditError, match="418"):
        script.plaudit().assign("u")


def test_annotation_calls_have_the_shape_of_the_api(monkeypatch) -> None:
    script = Wire(monkeypatch, (200, {"lease_id": "lse_1"}), (201, {"id": "ann_1"}), (200, {}), (200, {"answered": 1}))
    annotation = script.plaudit().annotation
    assert annotation.lease() == {"lease_id": "lse_1"}
    annotation.answer("lse_1", verdict="prefer", choice="res_1", seconds=2.5)
    annotation.heartbeat("lse_1")
    assert annotation.progress() == {"answered": 1}
    assert [f"{request.method} {request.url.path}" for request in script.requests] == [
        "POST /v1/annotation/lease",
        "POST /v1/annotations",
        "POST /v1/annotation/lease/lse_1/heartbeat",
        "GET /v1/annotation/progress",
    ]
    assert json.loads(script.requests[1].content) == {"lease_id": "lse_1", "verdict": "prefer", "choice": "res_1", "seconds": 2.5}  # fmt: skip


def test_the_asynchronous_client_sends_the_same_and_tries_again(monkeypatch) -> None:
    script = Wire(
        monkeypatch, (500, {}), RECORDED, (201, {"id": "int_2", "feedback_token": "pft_2"}), (200, {"arm": "a"})
    )
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(wire.asyncio, "sleep", sleep)

    async def talk() -> None:
        async with AsyncPlaudit("http://service", "plk_1", transport=httpx.MockTransport(script)) as plaudit:
            assert await plaudit.feedback.thumb("int_1", up=True) == {"id": "fdb_1", "status": "recorded"}
            assert await plaudit.log([{"role": "user", "content": "q"}], ["a"]) == "int_2"
            assert plaudit.token("int_2") == "pft_2"
            assert await plaudit.assign("u") == {"arm": "a"}

    asyncio.run(talk())
    assert pauses == [0.2]
    assert script.requests[0].content == script.requests[1].content
    assert {request.headers["authorization"] for request in script.requests} == {"Bearer plk_1"}


def test_what_may_have_acted_is_not_done_twice_and_no_pause_is_endless() -> None:
    failed, refused = httpx.Response(500), httpx.Response(503)
    assert wire.pause_s(failed, 0, 3, True, "http://service") == wire.FIRST_PAUSE_S
    with pytest.raises(errors.PlauditError):
        wire.pause_s(failed, 0, 3, False, "http://service")
    assert wire.pause_s(refused, 0, 3, False, "http://service") == 1.0  # it says that it did nothing
    for outcome in (failed, refused, httpx.ConnectError("gone")):
        assert wire.pause_s(outcome, 30, 99, True, "http://service") == wire.LONGEST_PAUSE_S


def test_an_error_keeps_its_reasons_and_how_long_to_wait() -> None:
    def told(code: str) -> errors.PlauditError:
        body = {"error": {"code": code, "message": "no", "reasons": ["too few"]}}
        return wire.error_of(httpx.Response(400, json=body, headers={"retry-after": "7"}))

    assert told("refused").reasons == ("too few",)
    assert (told("rate_limited").retry_after_s, told("unavailable").retry_after_s) == (7.0, 7.0)
