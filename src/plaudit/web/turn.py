"""One request on its way through the gateway: asked of a release, screened and gathered as it comes, recorded at its end whatever that is.

The stub row is durable before the first byte of an answer (its commit and the upstream call start together; a whole answer that comes within
`STUB_AFTER_S` is written with its stub in one commit); the end of the answer is durable before `[DONE]`, or before a whole answer is sent. A
candidate that fails before its first byte is stood in for by the live release; the Interaction keeps both the assigned and the served one.
What a filter holds back is neither shown nor stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from plaudit import openai_protocol as protocol
from plaudit.backends import Backend
from plaudit.domain import CompletionStatus, Interaction, ResponseText, TrainingUse, utc_now
from plaudit.errors import PlauditError, UpstreamError
from plaudit.loop import collect
from plaudit.openai_protocol import ChatRequest, Gathered, Json
from plaudit.store.spool import Change
from plaudit.web import telemetry
from plaudit.web.door import Door
from plaudit.web.screening import CONTENT_FILTER, Screening
from plaudit.web.serving import Serving

T = TypeVar("T")
STUB_AFTER_S = 0.02


class Turn:
    """`complete`, or `open` and then `events`; each at most once."""

    def __init__(
        self, door: Door, serving: Serving, asked: ChatRequest, interaction: Interaction, blocked: bool = False
    ) -> None:
        self.interaction = interaction
        live = serving.config.live
        assigned = serving.config.release(self.interaction.release_id or live.id)
        self._releases = [assigned] if assigned.id == live.id or blocked else [assigned, live]
        self._served = assigned
        self._door = door
        self._asked = asked
        self._blocked = blocked
        self._gathered = Gathered()
        self._screening = Screening(door.filters.response)
        self._head: list[Json] = []  # chunks up to the first that says something
        self._chunks: AsyncGenerator[Json, None] | None = None
        self._stood_in: str | None = None  # why the assigned release did not answer
        self._started = time.monotonic()
        self.upstream_s = 0.0  # waited for model servers, up to the first content or the whole answer
        self._first_token_ms: float | None = None
        self._ended = False
        self._stub: tuple[Interaction, ...] = (interaction,)  # as long as it is not submitted
        self._span = telemetry.begin(asked, interaction) if door.settings.telemetry else None

    async def complete(self) -> Json:
        """A whole completion, durable. Raises UpstreamError, Unavailable."""
        try:
            answer = await self._with_stub(
                self._of_first_release(self._whole), STUB_AFTER_S if self._door.recorder.serves_without_store else 0.0
            )
            await self._end(CompletionStatus.OK)
        except BaseException as error:
            await self._failed(error)
            raise
        if self._screening.hides:
            answer = _without_logprobs(answer)
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
        begun: set[int] = set()
        try:
            async with aclosing(self._screened()) as chunks:
                async for chunk in chunks:
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

    async def _with_stub(self, asking: Coroutine[Any, Any, T], after_s: float = 0.0) -> T:
        """Commit and upstream call start together; the outcome of the call waits for the commit. A call that ends within `after_s` leaves
        the stub to `_end`."""
        task = asyncio.ensure_future(asking)
        stored: asyncio.Future[None] | None = None
        try:
            if not after_s or not (await asyncio.wait({task}, timeout=after_s))[0]:
                stored = self._door.recorder.submit(*self._stub)
                self._stub = ()
                await stored
            return await task
        except PlauditError as error:
            if stored is not None and stored.done() and stored.exception() is not None and not self._ended:
                self._ended = True  # no stub, so no end of it
                if self._span is not None:
                    telemetry.fail(self._span, error.code)
            raise
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _of_first_release(self, ask: Callable[[Backend, Json], Awaitable[T]]) -> T:
        """Ask the assigned release, then, where it cannot answer and no byte was sent, the live one."""
        for release in self._releases:
            self._served = release
            try:
                backend = Blocked() if self._blocked else self._door.backend(release.upstream)
                return await ask(backend, self._asked.for_upstream(release.model))
            except UpstreamError as error:
                at_fault = error.status == 400  # the request, not the release
                if at_fault or release is self._releases[-1]:
                    raise
                self._stood_in = f"{release.id} could not answer: {error.message}"
        raise AssertionError("there is always a release")

    async def _whole(self, backend: Backend, body: Json) -> Json:
        gathered, screening = Gathered(), Screening(self._door.filters.response)
        asked = time.monotonic()
        try:
            raw = await backend.complete(body)
        finally:
            self.upstream_s += time.monotonic() - asked
        answer = screening.whole(raw)
        gathered.add(answer)
        self._keep(gathered, screening)
        return answer

    async def _opening(self, backend: Backend, body: Json) -> None:
        head, gathered, screening = [], Gathered(), Screening(self._door.filters.response)
        chunks = backend.stream(body)
        patience, asked = self._door.settings.upstream_timeout_s, time.monotonic()
        try:
            async with asyncio.timeout(patience):
                async for chunk in chunks:
                    passed = screening.chunk(chunk)
                    gathered.add(passed)
                    head.append(passed)
                    if _says_something(chunk):
                        break
            self._keep(gathered, screening)
        except TimeoutError as error:
            await chunks.aclose()
            raise UpstreamError(f"The model server was silent: no word of an answer in {patience:g} s.", 504) from error
        except BaseException:
            await chunks.aclose()
            raise
        finally:
            self.upstream_s += time.monotonic() - asked
        self._head, self._chunks = head, chunks

    def _keep(self, gathered: Gathered, screening: Screening) -> None:
        if not gathered.answer().choices:
            raise UpstreamError("The model server answered without any choice.")
        self._gathered, self._screening = gathered, screening
        self._first_token_ms = self._elapsed_ms()

    # --- showing ---

    async def _screened(self) -> AsyncGenerator[Json, None]:
        """What the stream says, as far as it may be shown, gathered on the way; ends early where all of it is blocked."""
        assert self._chunks is not None
        async with aclosing(self._chunks) as chunks:
            for chunk in self._head:
                yield chunk
            while self._screening.n_blocked() < self._asked.n:
                raw = await anext(chunks, None)
                passed = self._screening.rest() if raw is None else self._screening.chunk(raw)
                self._gathered.add(passed)
                yield passed
                if raw is None:
                    return

    def _shown(self, chunk: Json, begun: set[int]) -> Json | None:
        """A chunk as the caller sees it: our id, the role in a choice's first delta, no usage; None where nothing is left."""
        choices = []
        for choice in chunk["choices"]:
            index = choice.get("index", 0)
            delta = choice.get("delta") or {}
            if index not in begun:
                begun.add(index)
                delta = {"role": "assistant", "content": "", **delta}
            elif self._screening.hides and delta == {"content": ""} and not choice.get("finish_reason"):
                continue  # all of it is held back
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
        shown = {**{name: value for name, value in chunk.items() if name != "usage"}, **ours}
        return _without_logprobs(shown) if self._screening.hides else shown

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
        self._screening.end()
        answer = self._gathered.answer()
        completion, responses = collect.finish_interaction(
            self.interaction,
            texts=[
                self._text(index, choice) for index, choice in zip(self._gathered.indices, answer.choices, strict=True)
            ],
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
        changed: Json = {}
        if self._served.id != self.interaction.served_release_id:
            changed["served_release_id"] = self._served.id
        if self._screening.n_blocked():
            changed["training_use"] = TrainingUse.DENIED  # a text that a filter cut short never trains
        changes = (Change(Interaction, self.interaction.id, changed),) if changed else ()
        if self._span is not None:
            telemetry.end(self._span, self._served.model, answer, completion)
        stub, self._stub = self._stub, ()
        return self._door.recorder.submit(*stub, completion, *responses, changes=changes)

    def _text(self, index: int, choice: protocol.Choice) -> ResponseText:
        own = not self._screening.changed(index)
        return ResponseText(
            text=choice.text,
            finish_reason=choice.finish_reason,
            logprob=choice.logprob if own else None,  # that was of the text before
            n_tokens=choice.n_tokens,
            tool_calls=choice.tool_calls,
            verdicts=self._screening.verdicts(index),
        )


class Blocked:
    """Stands in for a model server where a filter has blocked the prompt: nobody is asked, and nothing is the answer."""

    async def complete(self, body: Json) -> Json:
        choices = [protocol.choice(0, "", CONTENT_FILTER)]
        return protocol.completion("blocked", 0, body["model"], choices, protocol.usage(0, 0))

    async def stream(self, body: Json) -> AsyncGenerator[Json, None]:
        yield protocol.chunk("blocked", 0, body["model"], 0, {"role": "assistant", "content": ""}, CONTENT_FILTER)
        yield protocol.usage_chunk("blocked", 0, body["model"], protocol.usage(0, 0))


def _without_logprobs(body: Json) -> Json:
    """Their tokens spell the text that a filter may have taken away."""
    return {**body, "choices": [{**choice, "logprobs": None} for choice in body["choices"]]}


def _says_something(chunk: Json) -> bool:
    for choice in chunk["choices"]:
        delta = choice.get("delta") or {}
        if delta.get("content") or delta.get("tool_calls") or choice.get("finish_reason"):
            return True
    return False
