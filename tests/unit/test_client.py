from __future__ import annotations

import json

import httpx
import pytest

from plaudit import client as client_module
from plaudit import errors
from plaudit.client import Plaudit


class Wire:
    """Answers from a script: (status, JSON, headers), or an exception to raise. Remembers every request and pause."""

    def __init__(self, monkeypatch, *script) -> None:
        self.script = list(script)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []
        monkeypatch.setattr(client_module.time, "sleep", self.pauses.append)

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
    wire = Wire(monkeypatch, *[RECORDED] * 8)
    with wire.plaudit() as plaudit:
        plaudit.feedback.thumb("int_1", up=False, user="u")
        plaudit.feedback.rate("int_1", 4)
        plaudit.feedback.edit("int_1", "better", response_index=2)
        plaudit.feedback.choose("int_1", None)
        plaudit.feedback.comment("int_1", "why", reasons=["wrong"])
        plaudit.feedback.comment("int_1", reasons=["wrong"])
        plaudit.feedback.signal("int_1", "copy")
        plaudit.feedback.retract("int_1", "thumb", user="u")
    assert {request.url for request in wire.requests} == {httpx.URL("http://service/v1/feedback")}
    assert {request.headers["authorization"] for request in wire.requests} == {"Bearer plk_1"}
    bodies = wire.bodies()
    keys = {body.pop("idempotency_key") for body in bodies}
    assert len(keys) == 8
    assert bodies == [
        {"interaction_id": "int_1", "kind": "thumb", "value": {"up": False}, "user": "u"},
        {"interaction_id": "int_1", "kind": "rating", "value": {"rating": 4}},
        {"interaction_id": "int_1", "kind": "edit", "value": {"text": "better"}, "response_index": 2},
        {"interaction_id": "int_1", "kind": "choice", "value": {"chosen": None}},
        {"interaction_id": "int_1", "kind": "comment", "value": {"text": "why", "reasons": ["wrong"]}},
        {"interaction_id": "int_1", "kind": "comment", "value": {"text": None, "reasons": ["wrong"]}},
        {"interaction_id": "int_1", "kind": "signal", "value": {"name": "copy"}},
        {"interaction_id": "int_1", "kind": "thumb", "user": "u", "retract": True},
    ]


def test_a_retry_carries_the_same_idempotency_key(monkeypatch) -> None:
    wire = Wire(monkeypatch, httpx.ReadTimeout("slow"), (500, {}), httpx.ConnectError("gone"), RECORDED)
    assert wire.plaudit().feedback.thumb("int_1", up=True)["status"] == "recorded"
    assert len({body["idempotency_key"] for body in wire.bodies()}) == 1
    assert wire.pauses == [0.2, 0.4, 0.8]


def test_the_service_may_ask_for_a_longer_pause(monkeypatch) -> None:
    wire = Wire(monkeypatch, (429, {}, {"retry-after": "5"}), (503, {}, {"retry-after": "600"}), RECORDED)
    wire.plaudit().feedback.thumb("int_1", up=True)
    assert wire.pauses == [5.0, client_module.LONGEST_PAUSE_S]


@pytest.mark.parametrize("fault", [httpx.ReadTimeout("slow"), (500, {})])
def test_a_log_that_may_have_arrived_is_not_sent_again(monkeypatch, fault) -> None:
    wire = Wire(monkeypatch, fault)
    with pytest.raises(errors.PlauditError):
        wire.plaudit().log([{"role": "user", "content": "q"}], ["a"])
    assert len(wire.requests) == 1


def test_a_log_that_cannot_have_arrived_is_sent_again(monkeypatch) -> None:
    wire = Wire(monkeypatch, httpx.ConnectError("gone"), (503, {}), (201, {"id": "int_1"}))
    assert wire.plaudit().log([{"role": "user", "content": "q"}], ["a"], user="u", model="mine") == "int_1"
    assert wire.bodies()[-1] == {"messages": [{"role": "user", "content": "q"}], "responses": ["a"], "user": "u", "model": "mine"}  # fmt: skip


def test_retries_end_with_a_sentence(monkeypatch) -> None:
    wire = Wire(monkeypatch, *[httpx.ConnectError("gone")] * 3)
    with pytest.raises(errors.Unavailable, match="http://service does not answer"):
        wire.plaudit(retries=2).assign("u")
    assert len(wire.requests) == 3


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
    wire = Wire(monkeypatch, (status, {"error": {"code": kind.code, "message": "the sentence"}}))
    with pytest.raises(kind, match="the sentence") as caught:
        wire.plaudit().feedback.thumb("int_1", up=True)
    assert type(caught.value) is kind


def test_an_answer_that_is_no_json_is_still_an_error_of_ours(monkeypatch) -> None:
    wire = Wire(monkeypatch, (418, "teapot"))
    with pytest.raises(errors.PlauditError, match="418"):
        wire.plaudit().assign("u")


def test_annotation_calls_have_the_shape_of_the_api(monkeypatch) -> None:
    wire = Wire(monkeypatch, (200, {"lease_id": "lse_1"}), (201, {"id": "ann_1"}), (200, {}), (200, {"answered": 1}))
    annotation = wire.plaudit().annotation
    assert annotation.lease() == {"lease_id": "lse_1"}
    annotation.answer("lse_1", verdict="prefer", choice="res_1", seconds=2.5)
    annotation.heartbeat("lse_1")
    assert annotation.progress() == {"answered": 1}
    assert [f"{request.method} {request.url.path}" for request in wire.requests] == [
        "POST /v1/annotation/lease",
        "POST /v1/annotations",
        "POST /v1/annotation/lease/lse_1/heartbeat",
        "GET /v1/annotation/progress",
    ]
    assert json.loads(wire.requests[1].content) == {"lease_id": "lse_1", "verdict": "prefer", "choice": "res_1", "seconds": 2.5}  # fmt: skip
