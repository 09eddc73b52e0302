"""The gateway: OpenAI's chat completions, each recorded as an Interaction whose id is the completion's id.

The stub row is durable before the first byte of an answer (its commit and the upstream call start together); the end of the answer is
durable before `[DONE]`, or before a whole answer is sent. The release is chosen by who asks and by how the conversation began, not by the
`model` of the request: any name is accepted, and the answer says which model spoke. A candidate that fails before its first byte is stood
in for by the live release; the Interaction keeps both the assigned and the served one. A client that leaves cancels the generation, and what
it got is recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from plaudit import openai_protocol as protocol
from plaudit.backends import Backend
from plaudit.domain import CompletionStatus, Interaction, ResponseText, TrainingUse, utc_now
from plaudit.errors import PlauditError, UpstreamError
from plaudit.loop import body as fields
from plaudit.loop import collect
from plaudit.loop.collect import MAX_NAME_CHARS
from plaudit.openai_protocol import ChatRequest, Gathered, Json
from plaudit.web.access import key_of
from plaudit.web.door import Door, door_of, read_json, unless_client_leaves
from plaudit.web.problems import json_response
from plaudit.web.recorder import Change
from plaudit.web.serving import Serving

T = TypeVar("T")
MODEL = "plaudit"  # the name for "whatever release this user is assigned to"
EXTENSION = ("conversation_id", "family", "training_use", "attributes")
CLIENT_LEFT = 499  # nginx's number; nobody is there to read it


async def models(request: Request) -> Response:
    """GET /v1/models"""
    serving = await door_of(request).configs.current(key_of(request).project_id)
    live = serving.config.live
    return json_response(protocol.model_list((MODEL, live.model), int(live.created_at.timestamp())))


async def chat_completions(request: Request) -> Response:
    """POST /v1/chat/completions"""
    door = door_of(request)
    body = await read_json(request)
    asked = protocol.parse_chat_request(body)
    serving = await door.configs.current(key_of(request).project_id)
    turn = Turn(door, serving, asked, await begin(door, serving, asked))
    headers = {"x-plaudit-interaction": turn.interaction.id}
    try:
        if asked.stream:
            await unless_client_leaves(request, turn.open())
            return EventStream(
                turn.events(), headers={**protocol.SSE_HEADERS, **headers}, media_type="text/event-stream"
            )
        return json_response(await unless_client_leaves(request, turn.complete()), headers=headers)
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT)


class EventStream(StreamingResponse):
    """A stream whose generator is closed when the client leaves, not when it is next collected as garbage."""

    async def stream_response(self, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


async def begin(door: Door, serving: Serving, asked: ChatRequest) -> Interaction:
    """The stub of this turn. Raises BadInput for a malformed `plaudit` object."""
    extension = fields.checked(asked.extension, "`plaudit`", EXTENSION)
    actor = fields.text({"user": asked.user}, "user", max_chars=MAX_NAME_CHARS)
    conversation_id = fields.text(extension, "conversation_id", max_chars=MAX_NAME_CHARS)
    return collect.begin_interaction(
        serving.project,
        messages=asked.messages,
        actor=actor,
        conversation_id=conversation_id,
        family=fields.text(extension, "family", max_chars=MAX_NAME_CHARS),
        training_use=fields.member(
            extension, "training_use", TrainingUse, default=serving.project.training_use_default
        ),
        attributes=fields.attributes(extension),
        sampling=asked.sampling(),
        assignment=await door.configs.assign(serving, actor, conversation_id),
        config_version=serving.config.version,
        now=utc_now(),
    )


class Turn:
    """One request on its way: asked of a release, gathered as it comes, recorded at its end whatever that is."""

    def __init__(self, door: Door, serving: Serving, asked: ChatRequest, interaction: Interaction) -> None:
        self.interaction = interaction
        live = serving.config.live
        assigned = serving.config.release(self.interaction.release_id or live.id)
        self._releases = [assigned] if assigned.id == live.id else [assigned, live]
        self._served = assigned
        self._door = door
        self._asked = asked
        self._gathered = Gathered()
        self._head: list[Json] = []  # chunks up to the first that says something
        self._chunks: AsyncGenerator[Json, None] | None = None
        self._stood_in: str | None = None  # why the assigned release did not answer
        self._started = time.monotonic()
        self._first_token_ms: float | None = None
        self._ended = False

    async def complete(self) -> Json:
        """A whole completion, durable. Raises UpstreamError, Unavailable."""
        try:
            answer = await self._with_stub(self._of_first_release(self._whole))
            await self._end(CompletionStatus.OK)
        except BaseException as error:
            await self._failed(error)
            raise
        return {**answer, "id": self.interaction.id, "object": "chat.completion", "model": self._served.model}

    async def open(self) -> None:
        """Wait until the stub is durable and the first content is here. Raises UpstreamError, Unavailable."""
        try:
            await self._with_stub(self._of_first_release(self._opening))
        except BaseException as error:
            await self._failed(error)
            raise

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the stream, after `open`."""
        assert self._chunks is not None
        begun: set[int] = set()
        try:
            async with aclosing(self._chunks) as chunks:
                for chunk in self._head:
                    if shown := self._shown(chunk, begun):
                        yield protocol.event(shown)
                async for chunk in chunks:
                    self._gathered.add(chunk)
                    if shown := self._shown(chunk, begun):
                        yield protocol.event(shown)
            await self._end(CompletionStatus.OK)
        except PlauditError as error:
            await self._failed(error)
            yield protocol.error_event(error)
            return
        except BaseException as error:
            await self._failed(error)
            raise
        if self._asked.include_usage and self._gathered.usage:
            usage = protocol.usage_chunk(self.interaction.id, self._created, self._served.model, self._gathered.usage)
            yield protocol.event(usage)
        yield protocol.DONE

    # --- asking ---

    async def _with_stub(self, asking: Coroutine[Any, Any, T]) -> T:
        """Commit and upstream call start together; the outcome of the call waits for the commit."""
        stored = self._door.recorder.submit(self.interaction)
        task = asyncio.ensure_future(asking)
        try:
            await stored
            return await task
        except PlauditError:
            self._ended = self._ended or (stored.done() and stored.exception() is not None)  # no stub, so no end of it
            raise
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _of_first_release(self, ask: Callable[[Backend, Json], Awaitable[T]]) -> T:
        """Ask the assigned release, then, where it cannot answer and no byte was sent, the live one."""
        for release in self._releases:
            self._served = release
            try:
                return await ask(self._door.backend(release.upstream), self._asked.for_upstream(release.model))
            except UpstreamError as error:
                at_fault = error.status == 400  # the request, not the release
                if at_fault or release is self._releases[-1]:
                    raise
                self._stood_in = f"{release.id} could not answer: {error.message}"
        raise AssertionError("there is always a release")

    async def _whole(self, backend: Backend, body: Json) -> Json:
        gathered = Gathered()
        answer = await backend.complete(body)
        gathered.add(answer)
        self._keep(gathered)
        return answer

    async def _opening(self, backend: Backend, body: Json) -> None:
        head, gathered = [], Gathered()
        chunks = backend.stream(body)
        try:
            async for chunk in chunks:
                gathered.add(chunk)
                head.append(chunk)
                if _says_something(chunk):
                    break
            self._keep(gathered)
        except BaseException:
            await chunks.aclose()
            raise
        self._head, self._chunks = head, chunks

    def _keep(self, gathered: Gathered) -> None:
        if not gathered.answer().choices:
            raise UpstreamError("The model server answered without any choice.")
        self._gathered = gathered
        self._first_token_ms = self._elapsed_ms()

    # --- showing ---

    def _shown(self, chunk: Json, begun: set[int]) -> Json | None:
        """A chunk as the caller sees it: our id, the role in a choice's first delta, no usage; None where nothing is left."""
        choices = []
        for choice in chunk["choices"]:
            index = choice.get("index", 0)
            delta = choice.get("delta") or {}
            if index not in begun:
                begun.add(index)
                delta = {"role": "assistant", "content": "", **delta}
            choices.append({**choice, "delta": delta})
        if not choices:
            return None
        ours = {
            "id": self.interaction.id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._served.model,
            "choices": choices,
        }
        return {**{name: value for name, value in chunk.items() if name != "usage"}, **ours}

    @property
    def _created(self) -> int:
        return int(self.interaction.created_at.timestamp())

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._started) * 1000

    # --- recording ---

    async def _failed(self, error: BaseException) -> None:
        """Record how it ended; where the client has left nobody waits for that."""
        if isinstance(error, PlauditError):
            await asyncio.wait({self._end(CompletionStatus.ERROR, error.message)})
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._end(CompletionStatus.CANCELLED)
        else:
            self._end(CompletionStatus.ERROR, f"a bug: {type(error).__name__}")

    def _end(self, status: CompletionStatus, error: str | None = None) -> asyncio.Future[None]:
        """Submit the end of the Interaction, once."""
        if self._ended:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        self._ended = True
        answer = self._gathered.answer()
        completion, responses = collect.finish_interaction(
            self.interaction,
            texts=[ResponseText(c.text, c.finish_reason, c.logprob, c.n_tokens) for c in answer.choices],
            status=status,
            model=self._served.model,
            checkpoint_id=self._served.checkpoint_id,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            first_token_ms=self._first_token_ms,
            latency_ms=self._elapsed_ms(),
            error=error or self._stood_in,
            now=utc_now(),
        )
        changes: tuple[Change, ...] = ()
        if self._served.id != self.interaction.served_release_id:
            changes = (Change(Interaction, self.interaction.id, {"served_release_id": self._served.id}),)
        return self._door.recorder.submit(completion, *responses, changes=changes)


def _says_something(chunk: Json) -> bool:
    for choice in chunk["choices"]:
        delta = choice.get("delta") or {}
        if delta.get("content") or delta.get("tool_calls") or choice.get("finish_reason"):
            return True
    return False
