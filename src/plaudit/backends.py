"""A policy over HTTP. `Upstream` is any OpenAI-compatible server (our policy server, vLLM, llama.cpp, a vendor); `Fake` ships for trying
things out and for tests, and gives the same text for the same request.

    Upstream / Fake    complete(body) -> completion     stream(body) -> chunks     (asynchronous: the gateway)
    complete_many, sample                               (synchronous, bounded concurrency: the loop)
    load_adapter, unload_adapter                        (synchronous: vLLM's protocol)

Bodies, completions and chunks are the decoded JSON of `openai_protocol`. Failures are UpstreamError with the status that our own caller
should see: 504 for a server that is silent, 400, 429 and 503 (with Retry-After) as the server said them, 502 for everything else. A 502
is tried once more, over a new connection, where nothing was generated: nobody could be reached, the server said that it failed, or it closed
a connection of before, which it may do while a request is on its way. What a server sends is brought to text that can be stored (no NUL, no
half of a surrogate pair: both become U+FFFD) and has an end (MAX_ANSWER_BYTES).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import aiohttp

from plaudit import openai_protocol as protocol
from plaudit.artifacts import seed_of
from plaudit.errors import UpstreamError
from plaudit.openai_protocol import Answer, Json
from plaudit.settings import shown

CONNECT_S = 10.0
RETRY_PAUSE_S = 0.1
MAX_ANSWER_BYTES = 64_000_000
PASSED_STATUSES = (400, 429, 503)
FAILURES = (aiohttp.ClientError, TimeoutError, OSError, UpstreamError)


class Backend(Protocol):
    """What the gateway asks of a policy."""

    async def complete(self, body: Json) -> Json: ...

    def stream(self, body: Json) -> AsyncGenerator[Json, None]: ...


def connect(url: str, session: aiohttp.ClientSession, timeout_s: float, idle_s: float | None = None) -> Backend:
    """The backend at a Release's `upstream`: `fake:` (or `fake:0.05`, seconds a word), else the base URL of a server."""
    if url.startswith("fake:"):
        return Fake(float(url.removeprefix("fake:") or 0))
    return Upstream(url, session, timeout_s, idle_s)


def open_session() -> aiohttp.ClientSession:
    """A session without aiohttp's own limit on connections; close it in the same event loop."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, socket_factory=_new_socket))


@dataclass
class _Attempt:
    """How far one request came. `reused`: it went over a connection of before. `answered`: a 200 came back, so that the server is at it."""

    reused: bool = True
    answered: bool = False

    def may_repeat(self, error: Exception) -> bool:
        """Whether nothing was generated. A new connection that breaks before an answer does not say: the server may have been at it."""
        if self.answered:
            return False
        return self.reused or isinstance(error, (UpstreamError, aiohttp.ClientConnectorError))


# Whose connection is being opened. aiohttp's traces would say it too, and cost every request.
_ATTEMPT: ContextVar[_Attempt | None] = ContextVar("_ATTEMPT", default=None)


def _new_socket(address: tuple[Any, ...]) -> socket.socket:
    if (attempt := _ATTEMPT.get()) is not None:
        attempt.reused = False
    family, kind, protocol_number, *_ = address
    return socket.socket(family, kind, protocol_number)


class Upstream:
    """An OpenAI-compatible server at `url` (with its `/v1`).

    `timeout_s` bounds the wait for a whole answer's next byte and for a stream's first chunk, `idle_s` (default: the same) that for each
    later chunk. Comments that keep a connection open are no chunks.
    """

    def __init__(
        self, url: str, session: aiohttp.ClientSession, timeout_s: float = 120.0, idle_s: float | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.shown = shown(self.url)
        self._session = session
        self._first_s = timeout_s
        self._idle_s = timeout_s if idle_s is None else idle_s
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=timeout_s)

    async def complete(self, body: Json) -> Json:
        """A whole completion."""
        for last in (False, True):
            attempt = _Attempt()
            try:
                async with self._post("chat/completions", body, attempt, anew=last) as response:
                    await self._check(response)
                    attempt.answered = True
                    return self._decode(await self._read(response))
            except FAILURES as error:
                failure = self._failure(error)
                if last or failure.status != 502 or not attempt.may_repeat(error):
                    raise failure from error
            await asyncio.sleep(RETRY_PAUSE_S)
        raise AssertionError("unreachable")

    async def stream(self, body: Json) -> AsyncGenerator[Json, None]:
        """Chunks until `[DONE]`; a stream that ends without it has failed. Closing the iterator closes the connection."""
        for last in (False, True):
            attempt, received = _Attempt(), False
            try:
                async with self._post("chat/completions", body, attempt, anew=last) as response:
                    await self._check(response)
                    attempt.answered = True
                    async with aclosing(self._chunks(response)) as chunks:
                        while True:
                            async with asyncio.timeout(self._idle_s if received else self._first_s):
                                chunk = await anext(chunks, None)
                            if chunk is None:
                                return
                            received = True
                            yield chunk
            except FAILURES as error:
                failure = self._failure(error)
                if last or failure.status != 502 or not attempt.may_repeat(error):
                    raise failure from error
            await asyncio.sleep(RETRY_PAUSE_S)

    async def load_adapter(self, name: str, path: str) -> None:
        """Have the server load a LoRA folder that it can read under `name`. Loading it again is fine."""
        await self._adapter("load_lora_adapter", {"lora_name": name, "lora_path": path}, fine="already")

    async def unload_adapter(self, name: str) -> None:
        """The opposite; an adapter that is not there is fine."""
        await self._adapter("unload_lora_adapter", {"lora_name": name}, fine="not found")

    async def _adapter(self, verb: str, body: Json, fine: str) -> None:
        try:
            async with self._post(verb, body, _Attempt()) as response:
                text = await response.text()
                if response.status != 200 and fine not in text.lower():
                    raise UpstreamError(f"{self.shown} answered {verb} with {response.status}: {_message(text)}")
        except FAILURES as error:
            raise self._failure(error) from error

    @asynccontextmanager
    async def _post(
        self, path: str, body: Json, attempt: _Attempt, anew: bool = False
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """anew: over a connection of its own, for where one in the pool was closed others are likely to be."""
        session = open_session() if anew else self._session
        try:
            _ATTEMPT.set(attempt)
            async with session.post(f"{self.url}/{path}", json=body, timeout=self._timeout) as response:
                yield response
        finally:
            if anew:
                await session.close()

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 200:
            return
        said = f"The model server at {self.shown} answered {response.status}: {_message(await self._read(response))}"
        status = response.status if response.status in PASSED_STATUSES else 502
        after = _seconds(response.headers.get("retry-after", ""), datetime.now(UTC))
        raise UpstreamError(said, status, 1.0 if after is None and status in (429, 503) else after)

    async def _read(self, response: aiohttp.ClientResponse) -> str:
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise UpstreamError(f"The model server at {self.shown} sent more than {MAX_ANSWER_BYTES} bytes.")
            pieces.append(piece)
        return b"".join(pieces).decode(errors="replace")

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[Json, None]:
        reader = protocol.EventReader()
        async for piece in response.content.iter_any():
            for data in reader.feed(piece):
                if data.startswith("[DONE]"):
                    return
                chunk = self._decode(data)
                if chunk.get("error"):
                    raise UpstreamError(f"The model server at {self.shown} failed midway: {_message(data)}")
                yield chunk
        raise UpstreamError(f"The model server at {self.shown} closed the stream before its end.")

    def _decode(self, text: str) -> Json:
        try:
            body = json.loads(text, parse_constant=_no_number)
            if "\\u" in text:  # only an escape can bring what UTF-8 cannot
                body = _storable(body)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise UpstreamError(f"The model server at {self.shown} sent something that is not a JSON object.")
        return body

    def _failure(self, error: Exception) -> UpstreamError:
        if isinstance(error, UpstreamError):
            return error
        if isinstance(error, TimeoutError):  # before ClientError: aiohttp's timeouts are both
            return UpstreamError(f"The model server at {self.shown} was silent for too long.", 504)
        return UpstreamError(f"The model server at {self.shown} is out of reach ({type(error).__name__}).", 502)


def _seconds(retry_after: str, now: datetime) -> float | None:
    """A Retry-After, which is seconds (some send fractions) or an HTTP date; None where it is neither."""
    try:
        if re.fullmatch(r"\d{1,9}(\.\d+)?", retry_after):
            return float(retry_after)
        return max(0.0, (parsedate_to_datetime(retry_after) - now).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a zone
        return None


def _no_number(name: str) -> float:
    """JSON has no infinities, and yet servers send the log-probability of what cannot be drawn; vLLM's number for it is -9999."""
    if name == "-Infinity":
        return -9999.0
    raise ValueError(f"{name} is not a JSON number")


def _storable(value: Any) -> Any:
    """The same JSON with U+FFFD for every NUL and every half of a surrogate pair."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_storable(one) for one in value]
    if isinstance(value, dict):
        return {_storable(name): _storable(one) for name, one in value.items()}
    return value


def _message(text: str) -> str:
    """What an error body says, in at most 300 characters."""
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        pass
    return text.strip()[:300]


FAKE_TEXT = (
    "please thank you for your question first open the settings page then check that order number and try again "
    "if it does not help we can send a new one today because every account has a simple way back to what works"
)
WORDS = FAKE_TEXT.split()


class Fake:
    """Answers from a word list by a hash of (model, messages, seed, index): no model, no randomness. Tokens are words.

    `word_s` is the time a word takes. `max_tokens`, `n`, `stop`, `seed`, `logprobs` and `stream` act as in the protocol.
    """

    def __init__(self, word_s: float = 0.0) -> None:
        self._word_s = word_s

    async def complete(self, body: Json) -> Json:
        drawn = [self._draw(body, index) for index in range(body.get("n") or 1)]
        await asyncio.sleep(self._word_s * max(len(words) for words, _ in drawn))
        choices = [
            protocol.choice(index, "".join(words), finish, _fake_logprobs(body, words))
            for index, (words, finish) in enumerate(drawn)
        ]
        return protocol.completion("fake", 0, body["model"], choices, self._usage(body, drawn))

    async def stream(self, body: Json) -> AsyncGenerator[Json, None]:
        model = body["model"]
        drawn = [self._draw(body, index) for index in range(body.get("n") or 1)]
        for index in range(len(drawn)):
            yield protocol.chunk("fake", 0, model, index, {"role": "assistant", "content": ""})
        for place in range(max(len(words) for words, _ in drawn) + 1):
            await asyncio.sleep(self._word_s)
            for index, (words, finish) in enumerate(drawn):
                if place < len(words):
                    delta = {"content": words[place]}
                    logprobs = _fake_logprobs(body, words[place : place + 1])
                    yield protocol.chunk("fake", 0, model, index, delta, logprobs=logprobs)
                elif place == len(words):
                    yield protocol.chunk("fake", 0, model, index, {}, finish)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield protocol.usage_chunk("fake", 0, model, self._usage(body, drawn))

    def _draw(self, body: Json, index: int) -> tuple[list[str], str]:
        """(words with the space before each, finish_reason) of one choice."""
        key = json.dumps([body["model"], body["messages"], body.get("seed"), index], sort_keys=True)
        digest = hashlib.sha256(key.encode()).digest()
        picked = [WORDS[byte % len(WORDS)] for byte in digest[: 6 + digest[0] % 20]]
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(picked)
        words = [word if place == 0 else f" {word}" for place, word in enumerate(picked[:limit])]
        stops = body.get("stop") or ()
        for stop in [stops] if isinstance(stops, str) else stops:
            before, found, _ = "".join(words).partition(stop)
            if found:
                return ([before] if before else []), "stop"
        return words, "length" if len(words) < len(picked) else "stop"

    def _usage(self, body: Json, drawn: Sequence[tuple[list[str], str]]) -> Json:
        asked = sum(len(str(message.get("content")).split()) for message in body["messages"])
        return protocol.usage(asked, sum(len(words) for words, _ in drawn))


def _fake_logprobs(body: Json, words: Sequence[str]) -> Json | None:
    if not body.get("logprobs"):
        return None
    return {"content": [{"token": word, "logprob": -1.0, "bytes": None, "top_logprobs": []} for word in words]}


# --- for the loop, which is synchronous --------------------------------------------------------------------------------


def complete_many(
    url: str,
    requests: Sequence[Mapping[str, Any]],
    *,
    concurrency: int = 64,
    timeout_s: float = 600.0,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Complete every request (bodies of chat completions), at most `concurrency` at a time; answers in the order of the requests.

    A server that is full (429, 503) is asked again after the pause it names, for `timeout_s`. `progress` hears the number that are done,
    in the calling thread. Raises UpstreamError for the first that fails for good; the others are cancelled.
    """

    async def run() -> list[Answer]:
        gate = asyncio.Semaphore(concurrency)
        done = 0

        async with open_session() as session:
            backend = connect(url, session, timeout_s)

            async def one(body: Json) -> Answer:
                nonlocal done
                async with gate:
                    answer = protocol.read_answer(await _patiently(backend, body, timeout_s))
                done += 1
                if progress is not None:
                    progress(done)
                return answer

            tasks = [asyncio.create_task(one({**body, "stream": False})) for body in requests]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(run())


async def _patiently(backend: Backend, body: Json, patience_s: float) -> Json:
    until = time.monotonic() + patience_s
    while True:
        try:
            return await backend.complete(body)
        except UpstreamError as error:
            pause = error.retry_after_s or 1.0
            if error.status not in (429, 503) or time.monotonic() + pause > until:
                raise
        await asyncio.sleep(pause)


def sample(
    url: str,
    model: str | Sequence[str],
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    n: int = 1,
    *,
    concurrency: int = 128,
    progress: Callable[[int], None] | None = None,
    **sampling: Any,
) -> list[Answer]:
    """`n` responses of `model` (one for all, or one for each) to each conversation. `sampling`: temperature, max_tokens, seed, logprobs ... of
    the protocol.

    At most `concurrency` responses are under way. A `seed` is the seed of the whole: every request gets its own from it.
    """
    seed = sampling.pop("seed", None)
    models = [model] * len(conversations) if isinstance(model, str) else model
    requests = [
        {"model": name, "messages": list(messages), "n": n, **sampling}
        | ({} if seed is None else {"seed": seed_of(seed, place)})
        for place, (name, messages) in enumerate(zip(models, conversations, strict=True))
    ]
    return complete_many(url, requests, concurrency=max(1, concurrency // n), progress=progress)


def load_adapter(url: str, name: str, path: str, timeout_s: float = 120.0) -> None:
    """Have the server at `url` load the adapter in the folder `path` as `name`. A `fake:` has nothing to load."""
    _ask(url, timeout_s, lambda upstream: upstream.load_adapter(name, path))


def unload_adapter(url: str, name: str, timeout_s: float = 120.0) -> None:
    _ask(url, timeout_s, lambda upstream: upstream.unload_adapter(name))


def _ask(url: str, timeout_s: float, act: Callable[[Upstream], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_session() as session:
            await act(Upstream(url, session, timeout_s))

    if not url.startswith("fake:"):
        asyncio.run(run())
