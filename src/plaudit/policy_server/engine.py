"""The one thread that samples: requests come in at any time, join the running batch between two steps, and leave it when they end.

    submit(job)  ->  bounded queue  ->  worker: admit, step, admit, step ...  ->  pieces into each job's asyncio queue

One DecodeLoop, one base model, any number of adapters; every row carries its own. Everything that a step has for one event loop
crosses the thread border in one call.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plaudit.errors import NotFound, PlauditError, Unavailable, UpstreamError
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.rollout import DecodeLoop, Row, Sampling
from plaudit.learn.tokens import ChatTokenizer
from plaudit.policy_server.text import Detokenizer

log = logging.getLogger("plaudit.policy_server")

GATHER_S = 0.004  # an idle worker waits this long for company: one prefill of eight prompts is cheaper than eight
LOWEST_LOGPROB = -9999.0  # minus infinity is not JSON; OpenAI's own floor


@dataclass(frozen=True)
class Piece:
    """What is new of one choice; the last one of a choice has its finish_reason (stop | length)."""

    index: int
    text: str
    start: int  # characters of the choice before `text`
    ids: list[int]  # stop token included; behind a stop string all that were sampled
    logprobs: list[dict[str, Any]]
    finish_reason: str | None
    stop_reason: int | str | None  # the request's own stop token or stop string, where one ended it
    n_tokens: int  # of the whole choice so far


@dataclass(eq=False)
class Job:
    """n rows of one prompt. Pieces, or the error that ended it, arrive in `pieces`, which the jobs of one request share."""

    prompt_ids: list[int]
    n: int
    sampling: Sampling
    stop: tuple[str, ...]
    adapter: Adapter | None
    stream: bool
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[Piece | PlauditError] = field(default_factory=asyncio.Queue)
    first: int = 0  # index of its first choice
    cancelled: bool = False  # set by whoever no longer waits; the worker drops its rows at the next step

    def cancel(self) -> None:
        self.cancelled = True


@dataclass(eq=False)
class _Running:
    """A row in the batch with the text it has become."""

    job: Job
    index: int
    row: Row
    text: Detokenizer
    logprobs: list[dict[str, Any]] = field(default_factory=list)  # not yet sent
    reported: int = 0  # tokens whose logprobs have been formed
    sent: int = 0  # tokens that a piece has carried


class Engine:
    """Owns decoder and worker thread. `submit` and `cancel` may be called from any thread."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: ChatTokenizer,
        max_rows: int = 128,
        max_waiting: int = 1024,
        cache_tokens: int = 32768,
        prompt_bytes: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_rows, self.max_waiting, self.cache_tokens = max_rows, max_waiting, cache_tokens
        self._prompt_bytes = prompt_bytes
        self._loop = DecodeLoop(decoder, prompt_bytes=prompt_bytes)
        self._waiting: deque[Job] = deque()
        self._forget: list[Adapter] = []
        self._running: dict[Row, _Running] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._fresh: DecodeLoop | None = None  # takes the place of the loop as soon as nothing is being sampled
        self._taken = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the worker after its current step; what still waits gets Unavailable."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def load(self) -> dict[str, int]:
        return {"running": len(self._running), "waiting": sum(job.n for job in list(self._waiting))}

    def submit(self, *jobs: Job) -> None:
        """Queue the jobs of a request, all or none. Raises Unavailable when too much waits already."""
        with self._wake:
            if self._stopping:
                raise Unavailable("The policy server is stopping; ask again in a moment.", retry_after_s=2.0)
            waiting = sum(other.n for other in self._waiting)
            if waiting + sum(job.n for job in jobs) > self.max_waiting:
                raise Unavailable(
                    f"{waiting} responses wait already, {self.max_waiting} at most may; try again in a few seconds.",
                    retry_after_s=5.0,
                )
            self._waiting.extend(jobs)
            self._wake.notify()

    def forget(self, adapter: Adapter) -> None:
        """Drop what is cached for an adapter that is being unloaded; its running rows end as they began."""
        with self._wake:
            self._forget.append(adapter)

    def reload(self, decoder: Decoder) -> None:
        """Sample with another decoder of the same shape from here on. Waits for the answers in progress, which end as they began; what waits
        in the queue is sampled with the new one, and nothing that was cached of the old one is used again. Raises Unavailable."""
        # Made here: what fails in it fails for who asked, not for the worker.
        fresh = DecodeLoop(decoder, prompt_bytes=self._prompt_bytes)
        with self._wake:
            if self._fresh is not None:
                raise Unavailable("Weights are being exchanged already; ask again in a moment.", retry_after_s=2.0)
            self._taken.clear()
            self._fresh = fresh
            self._wake.notify_all()
        while not self._taken.wait(timeout=1.0):
            if self._stopping or not self._thread.is_alive():
                raise Unavailable("The policy server is stopping; ask again in a moment.", retry_after_s=2.0)

    # --- the worker -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                idle = not self._running and not self._waiting
                while not self._stopping and not self._waiting and not self._running and self._fresh is None:
                    self._wake.wait()
                if self._stopping:
                    break
            if idle:
                time.sleep(GATHER_S)
            try:
                self._turn()
            except Exception:
                log.exception("A sampling step failed; its requests get an error and the batch starts afresh.")
                self._fail_all(UpstreamError("The policy server failed in a sampling step; its log says how.", 500))
        self._fail_all(Unavailable("The policy server is stopping; ask again in a moment.", retry_after_s=2.0))

    def _turn(self) -> None:
        """One step of the batch, new rows admitted before it."""
        if any(running.job.cancelled for running in self._running.values()):
            self._loop.drop(lambda row: self._running[row].job.cancelled)
            self._running = {row: running for row, running in self._running.items() if not running.job.cancelled}
        if self._fresh is not None and not self._running:
            with self._wake:
                self._loop, self._fresh = self._fresh, None
                self._taken.set()
        fresh = self._admissible() if self._fresh is None else []
        for running in fresh:
            self._running[running.row] = running
        self._deliver(self._loop.admit([running.row for running in fresh]))
        self._deliver(self._loop.step())

    def _admissible(self) -> list[_Running]:
        """Jobs from the front of the queue as far as rows and cache reach."""
        fresh: list[_Running] = []
        with self._wake:
            for adapter in self._forget:
                self._loop.forget(adapter)
            self._forget.clear()
            need = max(
                (len(r.row.prompt_ids) + r.row.sampling.max_new_tokens for r in self._running.values()), default=0
            )
            while self._waiting:
                job = self._waiting[0]
                rows = len(self._running) + len(fresh) + job.n
                longest = max(need, len(job.prompt_ids) + job.sampling.max_new_tokens)
                if rows > job.n and (rows > self.max_rows or rows * longest > self.cache_tokens):
                    break
                self._waiting.popleft()
                if job.cancelled:
                    continue
                need = longest
                for index in range(job.n):
                    row = Row(job.prompt_ids, job.sampling, key=index, adapter=job.adapter)
                    fresh.append(_Running(job, index, row, Detokenizer(self.tokenizer.decode, job.stop)))
        return fresh

    def _deliver(self, rows: Sequence[Row]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Piece | PlauditError]]] = {}
        for row in rows:
            running = self._running[row]
            piece = self._piece(running)
            if piece is not None:
                by_loop.setdefault(running.job.loop, []).append((running.job, piece))
                if piece.finish_reason is not None:
                    del self._running[row]
        for loop, pieces in by_loop.items():
            _hand_over(loop, pieces)
        self._loop.drop(lambda row: row not in self._running)  # those that a stop string ended

    def _piece(self, running: _Running) -> Piece | None:
        """What this row has to say now; None while a whole answer is awaited or its text is not decided yet."""
        row, job, text = running.row, running.job, running.text
        if not job.stream and not job.stop and row.end is None:
            return None  # decoded once, at the end
        ids = row.ids[:-1] if row.end == "stop" else row.ids
        new = text.push(ids, last=row.end is not None)
        reason = "stop" if text.stop is not None else row.end
        if job.sampling.logprobs is not None:
            fresh = range(running.reported, len(row.ids))
            running.logprobs += [self._logprob(row, place, job.sampling.logprobs) for place in fresh]
            running.reported = len(row.ids)
        if reason is None and (not job.stream or not new):
            return None
        said = new if job.stream else text.sent
        logprobs, running.logprobs = running.logprobs, []
        fresh_ids, running.sent = row.ids[running.sent :], len(row.ids)
        by_token = row.ids[-1] if row.end == "stop" and row.ids[-1] in job.sampling.stop_ids else None
        why = text.stop if text.stop is not None else by_token
        start = len(text.sent) - len(said)
        return Piece(job.first + running.index, said, start, fresh_ids, logprobs, reason, why, len(row.ids))

    def _logprob(self, row: Row, place: int, n_top: int) -> dict[str, Any]:
        entry = self._entry(row.ids[place], row.logprobs[place])
        entry["top_logprobs"] = [self._entry(token, value) for token, value in row.top[place][:n_top]]
        return entry

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.token(token)
        whole = "\ufffd" not in text  # part of a character has no text of its own
        return {
            "token": text,
            "token_id": token,
            "logprob": max(logprob, LOWEST_LOGPROB),
            "bytes": list(text.encode()) if whole else None,
        }

    def _fail_all(self, error: PlauditError) -> None:
        with self._wake:
            jobs = {running.job: None for running in self._running.values()} | dict.fromkeys(self._waiting)
            self._waiting.clear()
        self._running.clear()
        self._loop = DecodeLoop(self._loop.decoder, prompt_bytes=self._prompt_bytes)
        for job in jobs:
            _hand_over(job.loop, [(job, error)])


class Adapters:
    """Which adapter a model name means. Changed from request handlers, read by them; the worker sees Adapter objects only."""

    def __init__(self, base_name: str) -> None:
        self.base_name = base_name
        self._loaded: dict[str, Adapter] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return [self.base_name, *self._loaded]

    def find(self, name: str) -> Adapter | None:
        """The adapter, None for the base. Raises NotFound."""
        if name == self.base_name:
            return None
        try:
            return self._loaded[name]
        except KeyError:
            raise NotFound(
                f"The model {name!r} does not exist here; loaded are {', '.join(map(repr, self.names()))}."
            ) from None

    def has(self, name: str) -> bool:
        return name in self.names()

    def add(self, name: str, adapter: Adapter) -> Adapter | None:
        """Returns the adapter whose place it takes."""
        with self._lock:
            before = self._loaded.get(name)
            self._loaded = {**self._loaded, name: adapter}
            return before

    def remove(self, name: str) -> Adapter:
        with self._lock:
            adapter = self._loaded[name]
            self._loaded = {key: value for key, value in self._loaded.items() if key != name}
            return adapter


def _hand_over(loop: asyncio.AbstractEventLoop, pieces: Sequence[tuple[Job, Piece | PlauditError]]) -> None:
    def put() -> None:
        for job, piece in pieces:
            job.pieces.put_nowait(piece)

    try:
        loop.call_soon_threadsafe(put)
    except RuntimeError:  # the event loop is closed: nobody waits any more
        for job, _ in pieces:
            job.cancel()
