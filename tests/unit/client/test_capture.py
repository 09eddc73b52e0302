"""Capture never disturbs its host: the service down, slow, broken or refusing; the memory bounded; everything sent at the end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from openai import AzureOpenAI, OpenAI

from plaudit.client import Capture, outbox
from plaudit.errors import BadInput

MESSAGES = [{"role": "user", "content": "q"}]


class Service:
    """Takes batches; `faults` come first: a status, an exception to raise, or a function of the request."""

    def __init__(self, *faults) -> None:
        self.faults = list(faults)
        self.requests: list[httpx.Request] = []
        self.taken: list[tuple[str, dict]] = []  # (route, item), as acknowledged

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            if isinstance(fault, int):
                return httpx.Response(fault, json={})
            answer = fault(request)
            if answer is not None:
                return answer
        results = []
        for item in json.loads(request.content)["items"]:
            self.taken.append((request.url.path, item))
            number = len(self.taken)
            results.append({"code": 201, "id": f"int_{number}", "feedback_token": f"pft_{number}"})
        return httpx.Response(207, json={"results": results})

    def capture(self, **options) -> Capture:
        given = {"interval_s": 0.01, "exit_timeout_s": 5.0} | options
        return Capture("http://service", "plk_1", transport=httpx.MockTransport(self), **given)

    def values(self) -> list:
        return [item.get("value") for _, item in self.taken]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 0.01)


def test_what_is_said_goes_out_in_order_and_in_batches() -> None:
    service = Service()
    capture = service.capture(interval_s=30)
    for up in (True, False, True):
        capture.feedback.thumb("int_1", up=up)
    assert service.requests == []  # it waits for others, and nobody waits for it
    assert capture.flush(10)
    assert len(service.requests) == 1
    assert service.requests[0].headers["authorization"] == "Bearer plk_1"
    assert service.values() == [{"up": True}, {"up": False}, {"up": True}]
    assert all(item["at"] and item["idempotency_key"] for _, item in service.taken)
    capture.close()


def test_what_waits_is_as_it_was_said_and_goes_in_pieces_that_the_service_takes(monkeypatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BATCH_BYTES", 500)
    service = Service()
    capture = service.capture(interval_s=30)
    messages = [dict(MESSAGES[0])]
    capture.log(messages, ["a"])
    messages[0]["content"] = "the host goes on with its own list"
    for _ in range(3):
        capture.feedback.comment("int_1", "x" * 300)
    assert capture.flush(10)
    assert service.taken[0][1]["messages"] == MESSAGES
    monkeypatch.setattr(outbox, "MAX_ID_MAP", 1)
    newer = capture.log(MESSAGES, ["b"])
    assert capture.flush(10)
    assert list(capture.outbox._ids) == [newer]  # which ids became which is not kept for ever
    assert [len(json.loads(request.content)["items"]) for request in service.requests] == [1, 1, 1, 1, 1]
    capture.close()


def test_a_full_batch_does_not_wait(monkeypatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BATCH", 2)
    service = Service()
    capture = service.capture(interval_s=600)
    for number in range(4):
        capture.feedback.comment("int_1", str(number))
    deadline = time.monotonic() + 60
    while len(service.taken) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert len(service.requests) == 2
    capture.close()


@pytest.mark.parametrize("fault", [httpx.ConnectError("down"), httpx.ReadTimeout("slow"), 500, 502, 429, 401, 404])
def test_what_did_not_arrive_is_sent_again_as_it_was(fault) -> None:
    service = Service(fault, fault)
    capture = service.capture()
    capture.feedback.rate("int_1", 4)
    assert capture.flush(30)
    assert len({request.content for request in service.requests}) == 1
    assert (len(service.requests), service.values(), capture.outbox.n_dropped) == (3, [{"rating": 4}], 0)
    capture.close()


def test_one_that_is_refused_hinders_no_other() -> None:
    def half(request: httpx.Request) -> httpx.Response:
        codes = [{"code": 404, "error": {}}, {"code": 201, "id": "fdb_1"}, {"code": 503, "error": {}}]
        return httpx.Response(207, json={"results": codes})

    service = Service(half)
    capture = service.capture(interval_s=30)
    for number in range(3):
        capture.feedback.comment("int_1", str(number))
    assert capture.flush(30)
    assert service.values() == [{"text": "2", "reasons": []}]  # the one that the service had no time for, again
    assert capture.outbox.n_dropped == 1
    capture.close()


def test_a_batch_that_is_too_large_is_halved_and_what_stays_too_large_is_dropped() -> None:
    service = Service(*[lambda request: httpx.Response(413, json={}) if len(request.content) > 600 else None] * 9)
    capture = service.capture(interval_s=30)
    capture.feedback.comment("int_1", "short")
    capture.feedback.comment("int_1", "x" * 1000)
    capture.feedback.comment("int_1", "also short")
    assert capture.flush(30)
    assert [value["text"] for value in service.values()] == ["short", "also short"]
    assert capture.outbox.n_dropped == 1
    capture.close()


def test_the_memory_has_an_end_and_the_host_sees_nothing_of_it() -> None:
    stuck = threading.Event()

    def hangs(request: httpx.Request) -> None:
        stuck.wait(30)

    service = Service(hangs)
    capture = service.capture(max_items=5, max_bytes=2000, exit_timeout_s=0.01)
    begun = time.monotonic()
    capture.feedback.comment("int_1", "x" * 3000)  # too large while there is room for five
    assert (capture.outbox.n_waiting, capture.outbox.n_dropped) == (0, 1)
    for number in range(50):
        capture.feedback.comment("int_1", str(number))
    assert capture.outbox.n_waiting == 5
    assert capture.outbox.n_dropped == 46
    capture.close()  # gives up on what waits
    assert time.monotonic() - begun < 20
    assert capture.outbox.n_dropped == 51
    capture.feedback.thumb("int_1", up=True)  # also after its end
    assert capture.outbox.n_waiting == 0
    stuck.set()


def test_a_service_that_is_full_says_how_long_to_wait_and_the_host_hears_of_it_once(caplog) -> None:
    def full(status: int) -> httpx.MockTransport:
        return httpx.MockTransport(lambda request: httpx.Response(status, headers={"retry-after": "7"}))

    for status, pause in ((503, 7.0), (429, 7.0), (500, outbox.FIRST_PAUSE_S)):
        capture = Capture("http://service", "plk_1", transport=full(status))
        caplog.clear()
        for _ in range(3):
            assert capture.outbox._send([outbox._Item(outbox.FEEDBACK, {}, 2)]) == (0, pause)
        assert len(caplog.records) == 1  # at most once a minute
        capture.close()


@pytest.mark.parametrize("bad", [{1, 2}, object(), b"bytes"])
def test_what_is_no_json_is_not_the_hosts_problem(bad) -> None:
    service = Service()
    capture = service.capture()
    capture.feedback.thumb("int_1", up=bad)
    capture.feedback.thumb("int_1", up=True, nonsense=1)
    assert capture.log(MESSAGES, None).startswith("log_")
    capture.feedback.comment("int_1", "good")
    assert capture.flush(30)
    assert service.values() == [{"text": "good", "reasons": []}]
    capture.close()


def test_feedback_about_a_logged_answer_comes_after_it_and_has_its_id() -> None:
    service = Service(httpx.ConnectError("down"))
    capture = service.capture(interval_s=30)
    name = capture.log(MESSAGES, ["a"], user="u")
    capture.feedback.thumb(name, up=True)
    assert capture.flush(30)
    (first, logged), (second, thumb) = service.taken
    assert (first, second) == ("/v1/interactions/batch", "/v1/feedback/batch")
    assert (logged["idempotency_key"], logged["user"]) == (name, "u")
    assert thumb["interaction_id"] == "int_1"
    assert capture.token("int_1") == "pft_1"
    capture.close()


def test_an_assignment_that_does_not_come_is_none_and_not_asked_for_again_at_once() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["user"])
        if request.url.params["user"] == "slow":
            raise httpx.ReadTimeout("slow")
        return httpx.Response(200, json={"release_id": "rel_1"})

    capture = Capture("http://service", transport=httpx.MockTransport(answer))
    assert capture.assign("u") == {"release_id": "rel_1"}
    assert capture.assign("slow") is None
    assert capture.assign("u") is None
    assert asked == ["u", "slow"]
    capture.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_sends_its_own_and_not_its_parents() -> None:
    service = Service()
    capture = service.capture(interval_s=600)
    capture.feedback.comment("int_1", "the parent's")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            capture.feedback.comment("int_1", "the child's")
            code = 0 if capture.flush(30) and [one["text"] for one in service.values()] == ["the child's"] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert capture.flush(30)
    assert [one["text"] for one in service.values()] == ["the parent's"]
    capture.close()


def test_only_an_openai_client_can_be_wrapped() -> None:
    capture = Capture("http://service")
    with pytest.raises(BadInput, match="given a str"):
        capture.wrap("http://service")
    azure = AzureOpenAI(azure_endpoint="https://a.example", api_key="k", api_version="1")
    with pytest.raises(BadInput, match="AzureOpenAI"):
        capture.wrap(azure)
    azure.close()
    client = OpenAI(api_key="k", max_retries=7, base_url="https://api.example/v1")
    wrapped = capture.wrap(client)
    assert (str(wrapped.base_url), wrapped.api_key, wrapped.max_retries) == ("http://service/v1/", "none", 7)
    assert str(client.base_url) == "https://api.example/v1/"  # the host's own is untouched
    for one in (client, wrapped):
        one.close()
    capture.close()


PROGRAM = """
import sys
from plaudit.client import Capture
capture = Capture(sys.argv[1], "plk_1", interval_s=600, exit_timeout_s=float(sys.argv[2]))
capture.feedback.thumb("int_1", up=True)
print("done")
"""


def run(url: str, seconds: float) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-W", "error", "-c", PROGRAM, url, str(seconds)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))


def test_a_program_that_ends_sends_what_waits() -> None:
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(100)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                text = b""
                while b"true" not in text:  # the end of the body: "up": true
                    text += connection.recv(65536)
                got.append(text)
                said = b'{"results": [{"code": 201, "id": "fdb_1"}]}'
                head = f"HTTP/1.1 207 Multi-Status\r\ncontent-length: {len(said)}\r\nconnection: close\r\n\r\n"
                connection.sendall(head.encode() + said)

        thread = threading.Thread(target=serve)
        thread.start()
        done = run(f"http://127.0.0.1:{listener.getsockname()[1]}", 60)
        thread.join(100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert b"POST /v1/feedback/batch" in got[0]


@pytest.mark.slow
def test_a_program_ends_also_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = run(f"http://127.0.0.1:{port}", 0.2)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "Traceback" not in done.stderr
    assert "1 lost" in done.stderr or "Feedback waits" in done.stderr
