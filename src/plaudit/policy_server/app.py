"""The policy server's routes: OpenAI's chat completions and models, vLLM's adapter routes, a health check.

Answers differ from a vendor's in two ways: a token in `logprobs` also carries its `token_id`, and the stop token is one of them (it was
sampled, and monitoring wants its probability). Where a stop string cut the text, `logprobs` holds every token that was sampled.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from plaudit import openai_protocol as protocol
from plaudit.artifacts import MANIFEST
from plaudit.errors import BadInput, Corrupt, NotFound, PlauditError, TooLarge, Unavailable
from plaudit.learn import checkpoint
from plaudit.learn.nets import Adapter, Decoder, Shape
from plaudit.learn.rollout import Sampling
from plaudit.learn.tokens import ChatTokenizer
from plaudit.policy_server.engine import Adapters, Engine, Job, Piece

DEFAULT_MAX_TOKENS = 256  # where the request does not say
MAX_BODY_BYTES = 4_000_000


class PolicyServer:
    """One base model, its adapters and the worker thread behind the routes."""

    def __init__(
        self,
        base: Path,
        name: str,
        decoder: Decoder,
        adapters: Mapping[str, Path] | None = None,
        max_rows: int = 128,
        max_context: int = 2048,
        max_waiting: int = 1024,
    ) -> None:
        self.base, self.config = base, decoder.config
        self.max_context = min(max_context, decoder.config.max_positions)
        self.tokenizer = ChatTokenizer.load(base)
        self.engine = Engine(
            decoder, self.tokenizer, max_rows, max_waiting, cache_tokens=protocol.MAX_N * self.max_context
        )
        self.adapters = Adapters(name)
        self.started_at = int(time.time())
        for adapter_name, path in (adapters or {}).items():
            self.adapters.add(adapter_name, read_adapter(path, base, decoder.config))

    def job(self, request: protocol.ChatRequest) -> Job:
        """Render and check a request. Raises NotFound (model), BadInput (context, template)."""
        adapter = self.adapters.find(request.model)
        messages = [
            {**message, "content": protocol.text_of(message), "role": _role(message["role"])}
            for message in request.messages
        ]
        ids = self.tokenizer.render(messages)
        room = self.max_context - len(ids)
        limit = request.max_tokens or min(DEFAULT_MAX_TOKENS, room)
        if limit > room or room < 1:
            raise BadInput(
                f"The prompt has {len(ids)} tokens and {request.max_tokens or 1} were asked for; this server's context "
                f"is {self.max_context} tokens together, so shorten the messages or ask for fewer tokens."
            )
        sampling = Sampling(
            max_new_tokens=limit,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            logprobs=request.top_logprobs if request.logprobs else None,
        )
        return Job(
            ids, request.n, sampling, request.stop, adapter, stream=request.stream, loop=asyncio.get_running_loop()
        )

    # --- routes -----------------------------------------------------------------------------------------------------------

    async def chat(self, http: Request) -> Response:
        request = protocol.parse_chat_request(await _body(http))
        job = self.job(request)
        self.engine.submit(job)
        id, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        if request.stream:
            chunks = self._stream(request, job, id, created)
            try:
                # Awaited before the 200 is committed: an error up to here still gets its own status.
                first = await anext(chunks)
            except BaseException:
                job.cancel()
                raise
            return StreamingResponse(_rest(first, chunks), headers=protocol.SSE_HEADERS, media_type="text/event-stream")
        pieces = await _unless_gone(http, job)
        choices = [
            protocol.choice(piece.index, piece.text, piece.finish_reason, _logprobs(request, piece)) for piece in pieces
        ]
        counts = protocol.usage(len(job.prompt_ids), sum(piece.n_tokens for piece in pieces))
        return JSONResponse(protocol.completion(id, created, request.model, choices, counts))

    async def _stream(self, request: protocol.ChatRequest, job: Job, id: str, created: int) -> AsyncIterator[bytes]:
        """Events of one request. An error before the first piece is raised; one after it ends the stream without [DONE]."""
        counts: dict[int, int] = {}
        open_choices, begun = set(range(job.n)), False
        try:
            while open_choices:
                piece = await job.pieces.get()
                if isinstance(piece, PlauditError):
                    if not begun:
                        raise piece
                    yield protocol.error_event(piece)
                    return
                begun = True

                def chunk(delta: dict[str, Any], reason: str | None, logprobs: Any, at: int = piece.index) -> bytes:
                    return protocol.event(protocol.chunk(id, created, request.model, at, delta, reason, logprobs))

                if piece.index not in counts:
                    yield chunk({"role": "assistant", "content": ""}, None, None)
                counts[piece.index] = piece.n_tokens
                logprobs = _logprobs(request, piece)
                if piece.text or piece.logprobs:
                    yield chunk({"content": piece.text}, None, logprobs)
                if piece.finish_reason is not None:
                    yield chunk({}, piece.finish_reason, None)
                    open_choices.discard(piece.index)
            if request.include_usage:
                total = protocol.usage(len(job.prompt_ids), sum(counts.values()))
                yield protocol.event(protocol.usage_chunk(id, created, request.model, total))
            yield protocol.DONE
        finally:
            job.cancel()  # a client that left; nothing to cancel where all choices have ended

    async def models(self, _: Request) -> Response:
        return JSONResponse(protocol.model_list(self.adapters.names(), self.started_at))

    async def health(self, _: Request) -> Response:
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "stopped", **self.engine.load}, 200 if alive else 503)

    async def load_adapter(self, http: Request) -> Response:
        """vLLM's route: 200 with a sentence, 400 (fields, another base, a name in use), 404 (no such folder)."""
        name, path = await _fields(http, "lora_name", "lora_path")
        if self.adapters.has(name):
            raise BadInput(f"The lora adapter {name!r} has already been loaded; unload it first.")
        try:
            adapter = await run_in_threadpool(read_adapter, Path(path), self.base, self.config)
        except Corrupt as error:
            raise BadInput(error.message) from error  # the caller named the folder; vLLM says 400 too
        self.adapters.add(name, adapter)
        return PlainTextResponse(f"Success: LoRA adapter {name!r} added successfully.")

    async def unload_adapter(self, http: Request) -> Response:
        """vLLM's route: 200 with a sentence, 400 (fields), 404 (not loaded)."""
        (name,) = await _fields(http, "lora_name")
        if name == self.adapters.base_name or not self.adapters.has(name):
            raise NotFound(f"The lora adapter {name!r} was not found; loaded are {self.adapters.names()[1:]}.")
        self.engine.forget(self.adapters.remove(name))
        return PlainTextResponse(f"Success: LoRA adapter {name!r} removed successfully.")


def create_app(server: PolicyServer) -> Starlette:
    """The ASGI application; the worker thread lives as long as its lifespan."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        server.engine.start()
        try:
            yield
        finally:
            await run_in_threadpool(server.engine.stop)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/v1/load_lora_adapter", server.load_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", server.unload_adapter, methods=["POST"]),
            Route("/healthz", server.health),
        ],
        exception_handlers={PlauditError: _on_error},
        lifespan=lifespan,
    )


def read_adapter(path: Path, base: Path, config: Shape) -> Adapter:
    """A policy Checkpoint (verified, and only for this base) or a plain PEFT folder. Raises NotFound, BadInput, Corrupt."""
    if not path.is_dir():
        raise NotFound(f"{path} is not a folder on the policy server's machine; give the Checkpoint's folder there.")
    adapter = (
        checkpoint.load_policy(path, base) if (path / MANIFEST).is_file() else checkpoint.read_adapter(path, config)
    )
    return adapter.requires_grad_(False)


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PlauditError)
    return JSONResponse(protocol.error_body(error), protocol.status_of(error), protocol.error_headers(error))


async def _body(http: Request) -> Any:
    data = bytearray()
    async for part in http.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise TooLarge(f"The body has more than {MAX_BODY_BYTES} bytes.")
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"The body is not JSON ({error}).") from error


async def _fields(http: Request, *names: str) -> list[str]:
    body = await _body(http)
    values = [body.get(name) if isinstance(body, dict) else None for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not value:
            raise BadInput(f"{name!r} is {value!r}; it must be a non-empty string.")
    return [str(value) for value in values]


async def _unless_gone(http: Request, job: Job) -> list[Piece]:
    """The last piece of each choice, in order. A client that disconnects cancels the job."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.create_task(gone())
    pieces: dict[int, Piece] = {}
    try:
        while len(pieces) < job.n:
            wait = asyncio.create_task(job.pieces.get())
            await asyncio.wait((wait, watch), return_when=asyncio.FIRST_COMPLETED)
            if not wait.done():
                wait.cancel()
                raise Unavailable("The client has gone.")  # nobody reads this answer
            piece = wait.result()
            if isinstance(piece, PlauditError):
                raise piece
            pieces[piece.index] = piece
    finally:
        job.cancel()
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    return [pieces[index] for index in sorted(pieces)]


async def _rest(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for chunk in chunks:
            yield chunk
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]


def _logprobs(request: protocol.ChatRequest, piece: Piece) -> dict[str, Any] | None:
    return {"content": piece.logprobs, "refusal": None} if request.logprobs else None


def _role(role: str) -> str:
    return "system" if role == "developer" else role
