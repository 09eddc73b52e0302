"""The policy server's routes: OpenAI's chat completions, completions and models, vLLM's adapter routes, a health check.

Answers differ from a vendor's in two ways: a token in `logprobs` also carries its `token_id`, and the stop token is one of them (it was
sampled, and monitoring wants its probability). Where a stop string cut the text, `logprobs` and `token_ids` hold every token that was sampled.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
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
from plaudit.policy_server import answers, requests
from plaudit.policy_server.answers import Reply
from plaudit.policy_server.engine import Adapters, Engine, Job, Piece
from plaudit.policy_server.requests import Asked

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
        prompt_cache_bytes: int = 0,
        processed_logprobs: bool = False,
        reload_weights: bool = False,
    ) -> None:
        self.base, self.config = base, decoder.config
        self._decoder, self._reloads = decoder, reload_weights
        self.max_context = min(max_context, decoder.config.max_positions)
        self.tokenizer = ChatTokenizer.load(base)
        self.processed_logprobs = processed_logprobs
        cache_tokens = protocol.MAX_N * self.max_context
        self.engine = Engine(decoder, self.tokenizer, max_rows, max_waiting, cache_tokens, prompt_cache_bytes)
        self.adapters = Adapters(name)
        self.started_at = int(time.time())
        for adapter_name, path in (adapters or {}).items():
            self.adapters.add(adapter_name, read_adapter(path, base, decoder.config))

    def prompt_ids(self, asked: Asked) -> list[list[int]]:
        """Chat messages rendered, text encoded, token ids as they came. Raises BadInput (template, a prompt without tokens)."""
        if asked.prompts is None:
            messages = [
                {**message, "content": protocol.text_of(message), "role": _role(message["role"])}
                for message in asked.chat.messages
            ]
            return [self.tokenizer.render(messages)]
        found = [self.tokenizer.encode(one) if isinstance(one, str) else list(one) for one in asked.prompts]
        if not all(found):
            raise BadInput("`prompt` has no token; give at least one.")
        return found

    def jobs(self, asked: Asked, prompts: list[list[int]]) -> list[Job]:
        """One for each prompt, all with one queue. Raises NotFound (model), BadInput (context)."""
        chat = asked.chat
        adapter = self.adapters.find(chat.model)
        room = self.max_context - max(map(len, prompts))
        limit = chat.max_tokens or min(DEFAULT_MAX_TOKENS, room)
        if limit > room or room < 1:
            raise BadInput(
                f"The prompt has {self.max_context - room} tokens and {chat.max_tokens or 1} were asked for; this server's context "
                f"is {self.max_context} tokens together, so shorten the messages or ask for fewer tokens."
            )
        sampling = Sampling(
            max_new_tokens=limit,
            temperature=1.0 if chat.temperature is None else chat.temperature,
            top_k=asked.top_k,
            top_p=1.0 if chat.top_p is None else chat.top_p,
            seed=secrets.randbits(63) if chat.seed is None else chat.seed,
            logprobs=asked.logprobs,
            processed=self.processed_logprobs,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            logit_bias=asked.logit_bias,
            stop_ids=asked.stop_token_ids,
            ignore_stop=asked.ignore_eos,
        )
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | PlauditError]()
        return [
            Job(ids, chat.n, sampling, chat.stop, adapter, chat.stream, loop, pieces, first=place * chat.n)
            for place, ids in enumerate(prompts)
        ]

    # --- routes -----------------------------------------------------------------------------------------------------------

    async def chat(self, http: Request) -> Response:
        """OpenAI's chat completions."""
        return await self._answer(http, requests.read_chat(await _body(http), self.config.vocab_size), "chatcmpl")

    async def completions(self, http: Request) -> Response:
        """OpenAI's completions: the prompt as text, or as token ids that are sampled from as they are."""
        return await self._answer(http, requests.read_completion(await _body(http), self.config.vocab_size), "cmpl")

    async def _answer(self, http: Request, asked: Asked, prefix: str) -> Response:
        prompts = self.prompt_ids(asked)
        jobs = self.jobs(asked, prompts)
        reply = Reply(asked, tuple(map(tuple, prompts)), f"{prefix}-{secrets.token_hex(12)}", int(time.time()))
        self.engine.submit(*jobs)
        if not asked.chat.stream:
            return JSONResponse(answers.whole(reply, await _unless_gone(http, jobs)))
        chunks = _stream(reply, jobs)
        try:
            # Awaited before the 200 is committed: an error up to here still gets its own status.
            first = await anext(chunks)
        except BaseException:
            _cancel(jobs)
            raise
        return StreamingResponse(_rest(first, chunks), headers=protocol.SSE_HEADERS, media_type="text/event-stream")

    async def models(self, _: Request) -> Response:
        return JSONResponse(protocol.model_list(self.adapters.names(), self.started_at))

    async def health(self, _: Request) -> Response:
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "stopped", **self.engine.load}, 200 if alive else 503)

    async def load_adapter(self, http: Request) -> Response:
        """vLLM's route: 200 with a sentence, 400 (fields, another base, a name in use), 404 (no such folder).

        `load_inplace`: true exchanges an adapter of that name: requests from now on sample with the new one, running ones end as they began.
        """
        body = await _body(http)
        name, path = _fields(body, "lora_name", "lora_path")
        inplace = body.get("load_inplace", False)
        if not isinstance(inplace, bool):
            raise BadInput(f"'load_inplace' is {inplace!r}; it must be true or false.")
        if name == self.adapters.base_name or (self.adapters.has(name) and not inplace):
            raise BadInput(
                f"The lora adapter {name!r} has already been loaded; to load it again in its place, set 'load_inplace' to true."
            )
        try:
            adapter = await run_in_threadpool(read_adapter, Path(path), self.base, self.config)
        except Corrupt as error:
            raise BadInput(error.message) from error  # the caller named the folder; vLLM says 400 too
        before = self.adapters.add(name, adapter)
        if before is not None:
            self.engine.forget(before)
        return PlainTextResponse(f"Success: LoRA adapter {name!r} added successfully.")

    async def unload_adapter(self, http: Request) -> Response:
        """vLLM's route: 200 with a sentence, 400 (fields), 404 (not loaded)."""
        (name,) = _fields(await _body(http), "lora_name")
        if name == self.adapters.base_name or not self.adapters.has(name):
            raise NotFound(f"The lora adapter {name!r} was not found; loaded are {self.adapters.names()[1:]}.")
        self.engine.forget(self.adapters.remove(name))
        return PlainTextResponse(f"Success: LoRA adapter {name!r} removed successfully.")

    async def collective_rpc(self, http: Request) -> Response:
        """vLLM's route, for {"method": "reload_weights"} alone: the base folder's weights are read again. Answers when they are in use.

        400 where the server was not started to do so, the method is another, or the weights have another shape.
        """
        (method,) = _fields(await _body(http), "method")
        if not self._reloads:
            raise BadInput("This server keeps the weights it was started with; start it with --reload-weights.")
        if method != "reload_weights":
            raise BadInput(f"The method {method!r} is none of this server's; it has reload_weights.")
        await run_in_threadpool(self._reload)
        return JSONResponse({"results": [None]})

    def _reload(self) -> None:
        decoder = type(self._decoder).load(self.base, self._decoder.dtype)
        if decoder.config != self.config:
            raise BadInput(
                f"The model in {self.base} has another shape than the one that is served; start the server anew."
            )
        self.engine.reload(decoder)
        self._decoder = decoder

    async def reset_prefix_cache(self, _: Request) -> Response:
        """vLLM's route. Nothing to do: a reload drops what was cached, and nothing else makes it wrong."""
        return Response(status_code=200)


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
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/collective_rpc", server.collective_rpc, methods=["POST"]),
            Route("/reset_prefix_cache", server.reset_prefix_cache, methods=["POST"]),
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


def _fields(body: Any, *names: str) -> list[str]:
    values = [body.get(name) if isinstance(body, dict) else None for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not value:
            raise BadInput(f"{name!r} is {value!r}; it must be a non-empty string.")
    return [str(value) for value in values]


async def _unless_gone(http: Request, jobs: Sequence[Job]) -> list[Piece]:
    """The last piece of each choice, in order. A client that disconnects cancels the jobs."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.create_task(gone())
    pieces: dict[int, Piece] = {}
    try:
        while len(pieces) < sum(job.n for job in jobs):
            wait = asyncio.create_task(jobs[0].pieces.get())
            await asyncio.wait((wait, watch), return_when=asyncio.FIRST_COMPLETED)
            if not wait.done():
                wait.cancel()
                raise Unavailable("The client has gone.")  # nobody reads this answer
            piece = wait.result()
            if isinstance(piece, PlauditError):
                raise piece
            pieces[piece.index] = piece
    finally:
        _cancel(jobs)
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    return [pieces[index] for index in sorted(pieces)]


async def _stream(reply: Reply, jobs: Sequence[Job]) -> AsyncIterator[bytes]:
    """Events of one request. An error before the first piece is raised; one after it ends the stream without [DONE]."""
    counts: dict[int, int] = {}
    unfinished = set(range(reply.n_choices))
    try:
        while unfinished:
            piece = await jobs[0].pieces.get()
            if isinstance(piece, PlauditError):
                if not counts:
                    raise piece
                yield protocol.error_event(piece)
                return
            first = piece.index not in counts
            counts[piece.index] = piece.n_tokens
            for chunk in answers.chunks(reply, piece, first):
                yield protocol.event(chunk)
            if piece.finish_reason is not None:
                unfinished.discard(piece.index)
        if reply.asked.chat.include_usage:
            yield protocol.event(answers.usage_chunk(reply, sum(counts.values())))
        yield protocol.DONE
    finally:
        _cancel(jobs)  # a client that left; nothing to cancel where all choices have ended


def _cancel(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.cancel()


async def _rest(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for chunk in chunks:
            yield chunk
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]


def _role(role: str) -> str:
    return "system" if role == "developer" else role
