"""What the gateway promises about the disk: the stub before the first byte, the end before the last; and both calls start together.

Here with `on_store_failure` refuse, where the disk is the store's alone; with the spool beside it: test_store_outage.py.
"""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from plaudit import openai_protocol as protocol
from plaudit.domain import Completion, CompletionStatus, Interaction
from plaudit.errors import Unavailable
from plaudit.web import turn
from plaudit.web.recorder import Recorder

BODY = {"model": "plaudit", "messages": [{"role": "user", "content": "hello"}]}


class Gate:
    """Holds the recorder's n-th commit (from 1) until it is opened, or lets it fail."""

    def __init__(self, monkeypatch) -> None:
        self.closed_at = 0
        self.fails_at = 0
        self.open = threading.Event()
        self.n_commits = 0
        commit = Recorder._commit

        def held(recorder, batch) -> None:
            self.n_commits += 1
            if self.n_commits == self.closed_at:
                self.open.wait(20)
            if self.n_commits == self.fails_at:
                raise Unavailable("The store does not answer (disk full).")
            commit(recorder, batch)

        monkeypatch.setattr(Recorder, "_commit", held)


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.open.set()


def stream(service, timeout: float):
    headers = {"authorization": f"Bearer {service.key('application')}"}
    url = service.url + "/v1/chat/completions"
    return httpx.stream("POST", url, json={**BODY, "stream": True}, headers=headers, timeout=timeout)


def read_until_silence(response: httpx.Response) -> str:
    """What came until nothing did for the client's timeout."""
    text = ""
    try:
        for piece in response.iter_text():
            text += piece
    except httpx.ReadTimeout:
        return text
    raise AssertionError(f"the stream ended: {text}")


def test_no_byte_leaves_before_the_stub_is_on_disk_although_the_model_was_asked(start_service, serve, gate) -> None:
    asked = threading.Event()

    async def completions(request: Request) -> JSONResponse:
        asked.set()
        choices = [protocol.choice(0, "hi", "stop")]
        return JSONResponse(protocol.completion("x", 0, "m", choices, protocol.usage(1, 1)))

    url = serve(Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])]))
    service = start_service(url + "/v1", "m-1", on_store_failure="refuse")
    headers = {"authorization": f"Bearer {service.key('application')}"}
    gate.closed_at = 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(service.url + "/v1/chat/completions", json=BODY, headers=headers, timeout=1)
    assert asked.wait(10), "the call waited for the commit"
    assert service.store.count(Interaction) == 0
    gate.open.set()
    service.stored(Completion)


def test_a_stream_has_no_first_byte_before_the_stub(start_service, gate) -> None:
    service = start_service(on_store_failure="refuse")
    gate.closed_at = 1
    with pytest.raises(httpx.ReadTimeout), stream(service, timeout=1):
        pass


def test_a_stream_is_not_done_before_its_end_is_on_disk(start_service, gate) -> None:
    service = start_service(on_store_failure="refuse")
    gate.closed_at = 2
    with stream(service, timeout=1) as response:
        text = read_until_silence(response)
    assert "finish_reason" in text
    assert "[DONE]" not in text
    assert service.store.count(Completion) == 0


def test_a_whole_answer_is_not_sent_before_its_end_is_on_disk(start_service, gate) -> None:
    service = start_service(on_store_failure="refuse")
    headers = {"authorization": f"Bearer {service.key('application')}"}
    gate.closed_at = 2
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(service.url + "/v1/chat/completions", json=BODY, headers=headers, timeout=1)
    assert service.store.count(Interaction) == 1


@pytest.mark.parametrize("as_stream", [False, True])
def test_a_store_that_fails_refuses_before_the_first_byte_and_no_end_without_a_stub_is_written(
    start_service, gate, as_stream
) -> None:
    service = start_service(on_store_failure="refuse")
    headers = {"authorization": f"Bearer {service.key('application')}"}
    url = service.url + "/v1/chat/completions"
    gate.fails_at = 1
    refused = httpx.post(url, json={**BODY, "stream": as_stream}, headers=headers)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert httpx.post(url, json={**BODY, "stream": as_stream}, headers=headers).status_code == 200
    assert service.store.count(Completion) == service.store.count(Interaction) == 1


@pytest.mark.parametrize(("quick", "n_commits"), [(True, 1), (False, 2)], ids=["quick", "slow"])
def test_with_a_spool_a_quick_answer_is_written_with_its_stub_and_a_slow_ones_stub_is_not_kept_waiting(
    start_service, serve, gate, monkeypatch, quick, n_commits
) -> None:
    if quick:
        monkeypatch.setattr(turn, "STUB_AFTER_S", 20)  # also on a machine that is slow today
    answered = threading.Event()

    async def completions(request: Request) -> JSONResponse:
        if not quick:
            await asyncio.to_thread(answered.wait, 20)
        choices = [protocol.choice(0, "hi", "stop")]
        return JSONResponse(protocol.completion("x", 0, "m", choices, protocol.usage(1, 1)))

    url = serve(Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])]))
    service = start_service(url + "/v1", "m-1", on_store_failure="serve")
    headers = {"authorization": f"Bearer {service.key('application')}"}
    asking = threading.Thread(
        target=httpx.post, args=(service.url + "/v1/chat/completions",), kwargs={"json": BODY, "headers": headers}
    )
    asking.start()
    service.stored(Interaction)  # of the slow one before it is answered
    answered.set()
    asking.join()
    (ended,) = service.stored(Completion)
    assert service.store.get(Interaction, ended.id).id == ended.id
    assert gate.n_commits == n_commits


def test_a_model_that_fails_at_once_leaves_both_rows(start_service, serve) -> None:
    async def completions(request: Request) -> JSONResponse:
        return JSONResponse({"error": {"message": "no"}}, 500)

    url = serve(Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])]))
    service = start_service(url + "/v1", "m-1", on_store_failure="serve")
    headers = {"authorization": f"Bearer {service.key('application')}"}
    assert httpx.post(service.url + "/v1/chat/completions", json=BODY, headers=headers).status_code == 502
    (ended,) = service.stored(Completion)
    assert (ended.status, service.store.count(Interaction)) == (CompletionStatus.ERROR, 1)
