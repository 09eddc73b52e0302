from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from plaudit import backends
from plaudit import openai_protocol as protocol
from plaudit.backends import Fake, complete_many, load_adapter, sample, unload_adapter
from plaudit.errors import UpstreamError

MESSAGES = [{"role": "user", "content": "hello"}]
Reply = Callable[[str, dict], tuple[int, dict, dict]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "asked", "answers"),
    [
        ("closes what is idle", 4, True),  # two that open two connections, one that is lost, and its repetition
        ("breaks while it generates", 1, False),
        ("breaks in the midst of its answer", 1, False),
        ("answers what is no JSON", 1, False),
    ],
)
def test_only_what_was_not_generated_is_asked_again_and_over_a_new_connection(stream, kind, asked, answers) -> None:
    """A server may close a connection that was idle just as the next request is on its way over it, and the others with it."""
    n_asked = 0
    both_in = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal n_asked
        for turn in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(size.split(b":")[1]))
            n_asked += 1
            if kind == "closes what is idle" and turn == 0:
                if n_asked == 2:
                    both_in.set()
                await both_in.wait()
                whole = json.dumps(answered("whole")).encode()
                words = protocol.event(protocol.chunk("x", 0, "m", 0, {"content": "whole"})) + protocol.DONE
                content = words if stream else whole
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
                await writer.drain()
                continue
            if kind == "answers what is no JSON":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\ndata: [1, 2]\n\n")
                await writer.drain()
            if kind == "breaks in the midst of its answer":
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{"choices": ')
                await writer.drain()
            break
        writer.close()

    async def say() -> None:
        made = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{made.sockets[0].getsockname()[1]}/v1"
        async with made, backends.open_session() as session:
            upstream = backends.Upstream(url, session, 10)
            body = {"model": "m", "messages": MESSAGES}

            async def once() -> None:
                if stream:
                    assert [chunk async for chunk in upstream.stream(body)]
                else:
                    assert await upstream.complete(body) == answered("whole")

            if answers:
                await asyncio.gather(once(), once())  # two connections lie in the pool
                await once()
            else:
                with pytest.raises(UpstreamError, match=r"out of reach|not a JSON object"):
                    await once()

    asyncio.run(asyncio.wait_for(say(), 30))
    assert n_asked == asked


@pytest.fixture
def server() -> Iterator[Callable[[Reply], str]]:
    """Serves `reply(path, body) -> (status, headers, JSON)` on a port of its own; gives its base URL."""
    servers = []

    def serve(reply: Reply) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, headers, answer = reply(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(made)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{made.server_address[1]}/v1"

    yield serve
    for made in servers:
        made.shutdown()
        made.server_close()


def answered(text: str) -> dict:
    return protocol.completion("x", 0, "m", [protocol.choice(0, text, "stop")], protocol.usage(1, 2))


def run_stream(body: dict) -> list[dict]:
    async def collect() -> list[dict]:
        return [chunk async for chunk in Fake().stream(body)]

    return asyncio.run(collect())


@pytest.mark.parametrize(
    "more", [{}, {"n": 3}, {"max_tokens": 4}, {"stop": [" the"]}, {"seed": 4, "logprobs": True}, {"stop": "e"}]
)
def test_the_fake_streams_what_it_completes(more) -> None:
    body = {"model": "m", "messages": MESSAGES, **more}
    whole = protocol.read_answer(asyncio.run(Fake().complete(body)))
    streamed = protocol.Gathered()
    for chunk in run_stream({**body, "stream_options": {"include_usage": True}}):
        streamed.add(chunk)
    assert streamed.answer() == whole
    assert len(whole.choices) == more.get("n", 1)


def test_the_fake_depends_on_its_request_and_on_nothing_else() -> None:
    def said(**more) -> str:
        return asyncio.run(Fake().complete({"model": "m", "messages": MESSAGES, **more}))["choices"][0]["message"][
            "content"
        ]

    assert said() == said()
    assert len({said(), said(seed=1), said(model="other"), said(messages=[{"role": "user", "content": "bye"}])}) == 4
    assert len(said(max_tokens=2).split()) == 2


@pytest.mark.parametrize("n", [1, 2])
def test_answers_come_in_the_order_of_the_requests_and_never_too_many_at_once(server, n) -> None:
    lock = threading.Lock()
    at_once = most = 0
    both_in = threading.Event()

    def reply(path: str, body: dict):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            if at_once == 3:
                both_in.set()
        both_in.wait(30)
        time.sleep(0.03)  # for a fourth, if there were one
        with lock:
            at_once -= 1
        return 200, {}, answered(body["messages"][0]["content"])

    url = server(reply)
    heard: list[int] = []
    conversations = [[{"role": "user", "content": str(number)}] for number in range(12)]
    answers = sample(url, "m", conversations, n, concurrency=3 * n, progress=heard.append)
    assert [answer.choices[0].text for answer in answers] == [str(number) for number in range(12)]
    assert most == 3
    assert heard == list(range(1, 13))


def test_sampling_options_reach_the_server_and_no_two_requests_share_a_seed(server) -> None:
    """Not within a call, nor between calls with neighbouring seeds, whose answers would then not be independent."""
    bodies: list[dict] = []

    def reply(path: str, body: dict):
        bodies.append(body)
        return 200, {}, answered("x")

    sample(server(reply), "ckp_1", [MESSAGES, MESSAGES], n=2, temperature=0.7, max_tokens=5, seed=10)
    seeds = [body.pop("seed") for body in bodies]
    told = {"n": 2, "temperature": 0.7, "max_tokens": 5, "stream": False}
    assert bodies[0] == bodies[1] == {"model": "ckp_1", "messages": MESSAGES, **told}
    sample(server(reply), "ckp_1", [MESSAGES, MESSAGES], n=2, temperature=0.7, max_tokens=5, seed=11)
    sample(server(reply), "ckp_1", [MESSAGES, MESSAGES], n=2, temperature=0.7, max_tokens=5, seed=10)
    next_seeds, again = [[body["seed"] for body in bodies[at : at + 2]] for at in (2, 4)]
    assert len({*seeds, *next_seeds}) == 4
    assert sorted(again) == sorted(seeds)


def test_a_full_server_is_asked_again_after_the_pause_it_names(server, monkeypatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(backends.asyncio, "sleep", lambda seconds: _note(paused, seconds))
    asked = []

    def reply(path: str, body: dict):
        asked.append(body)
        return (503, {"retry-after": "3"}, {"error": "full"}) if len(asked) < 3 else (200, {}, answered("at last"))

    (answer,) = complete_many(server(reply), [{"model": "m", "messages": MESSAGES}])
    assert answer.choices[0].text == "at last"
    assert paused == [3.0, 3.0]


def test_a_server_that_stays_full_is_given_up_in_time(server) -> None:
    asked = []

    def reply(path: str, body: dict):
        asked.append(body)
        return 503, {"retry-after": "0.05"}, {"error": "full"}

    with pytest.raises(UpstreamError, match="full") as caught:
        complete_many(server(reply), [{"model": "m", "messages": MESSAGES}], timeout_s=0.3)
    assert caught.value.status == 503
    assert 2 <= len(asked) <= 6


async def _note(paused: list[float], seconds: float) -> None:
    paused.append(seconds)


def test_patience_ends_and_the_first_error_ends_all(server) -> None:
    asked = []

    def reply(path: str, body: dict):
        asked.append(body)
        return 400, {}, {"error": {"message": "too long by 3 tokens"}}

    with pytest.raises(UpstreamError, match="too long by 3 tokens") as caught:
        complete_many(server(reply), [{"model": "m", "messages": MESSAGES}] * 30, concurrency=1)
    assert caught.value.status == 400
    assert len(asked) < 30


def test_adapters_are_loaded_and_unloaded_by_vllms_protocol(server) -> None:
    asked = []

    def reply(path: str, body: dict):
        asked.append((path, body))
        return 200, {}, "ok"

    url = server(reply)
    load_adapter(url, "ckp_1", "/folder")
    unload_adapter(url, "ckp_1")
    assert asked == [
        ("/v1/load_lora_adapter", {"lora_name": "ckp_1", "lora_path": "/folder"}),
        ("/v1/unload_lora_adapter", {"lora_name": "ckp_1"}),
    ]


@pytest.mark.parametrize(
    ("act", "status", "said", "fine"),
    [
        (load_adapter, 400, "The lora adapter 'a' has already been loaded.", True),
        (load_adapter, 400, "No adapter found at /folder", False),
        (load_adapter, 404, "No such folder", False),
        (unload_adapter, 404, "The lora adapter 'a' cannot be found: not found", True),
        (unload_adapter, 500, "boom", False),
    ],
)
def test_only_what_is_already_so_is_forgiven(server, act, status, said, fine) -> None:
    url = server(lambda path, body: (status, {}, {"error": {"message": said}}))
    arguments = (url, "a", "/folder") if act is load_adapter else (url, "a")
    if fine:
        act(*arguments)
    else:
        with pytest.raises(UpstreamError, match=f"{status}: {said}"):
            act(*arguments)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Sun, 22 Nov 2026 09:30:20 GMT", 20.0),
        ("Sun, 22 Nov 2026 09:00:00 GMT", 0.0),  # past: at once
        ("", None),
        ("soon", None),
        ("-3", None),
        ("nan", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(said, seconds) -> None:
    """RFC 9110, 10.2.3."""
    assert backends._seconds(said, datetime(2026, 11, 22, 9, 30, tzinfo=UTC)) == seconds


def test_what_no_store_holds_is_mended_everywhere_in_an_answer() -> None:
    said = {"a\x00": ["\ud83d", {"b": "\ude00x\x00"}], "n": 1, "ok": "😀"}
    assert backends._storable(said) == {"a\ufffd": ["\ufffd", {"b": "\ufffdx\ufffd"}], "n": 1, "ok": "😀"}


def test_an_answer_without_end_is_refused(server, monkeypatch) -> None:
    monkeypatch.setattr(backends, "MAX_ANSWER_BYTES", 1000)
    url = server(lambda path, body: (200, {}, answered("x" * 2000)))
    with pytest.raises(UpstreamError, match="more than 1000 bytes"):
        complete_many(url, [{"model": "m", "messages": MESSAGES}])
