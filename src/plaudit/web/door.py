"""What every handler holds: the parts of the running service, and how a request's body is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TypeVar

import aiohttp
from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request

from plaudit import backends
from plaudit.backends import Backend
from plaudit.domain import utc_now
from plaudit.errors import BadInput, ConfigError, Corrupt, PlauditError, TooLarge, Unavailable
from plaudit.loop import body as fields
from plaudit.loop import collect, filters
from plaudit.loop.collect import FeedbackResult
from plaudit.loop.feedback_tokens import Claims, KeyRing
from plaudit.loop.filters import Filters
from plaudit.settings import Settings
from plaudit.store.database import Store
from plaudit.store.spool import Spool
from plaudit.web import telemetry
from plaudit.web.access import Keys
from plaudit.web.limits import Limits
from plaudit.web.metrics import Metrics
from plaudit.web.recorder import Recorder
from plaudit.web.serving import ServingConfigs
from plaudit.web.shadowing import Shadowing
from plaudit.web.sign_in import Cookies, load_secret
from plaudit.web.together import Together

T = TypeVar("T")
# As many as the store's pool has connections, less that of the recorder. What every chat needs has threads of its own: writers that wait
# for a locked store must not stand before it.
MAX_THREADS = 10
MAX_HOT_THREADS = 4


@dataclass(frozen=True)
class Said:
    """One feedback as it came: the body, and the claims of the feedback token that stood in for a key."""

    body: Any
    token: Claims | None


@dataclass
class Door:
    """The service while it runs; `app.create_app` opens and closes it."""

    settings: Settings
    store: Store
    session: aiohttp.ClientSession
    filters: Filters
    recorder: Recorder = field(init=False)
    configs: ServingConfigs = field(init=False)
    keys: Keys = field(init=False)
    limits: Limits = field(init=False)
    cookies: Cookies = field(init=False)
    feedback_keys: KeyRing = field(init=False)
    shadowing: Shadowing = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    _threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MAX_THREADS))
    _hot_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MAX_HOT_THREADS))
    _feedback: dict[str, Together[Said, FeedbackResult | PlauditError]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spool = Spool(self.settings.home / "spool") if self.settings.on_store_failure == "serve" else None
        self.recorder = Recorder(self.store, spool, self.settings.store_patience_s)
        self.shadowing = Shadowing(self.settings, self.recorder, self.backend)
        self.configs = ServingConfigs(self.store, self.run_hot, self.run_within)
        self.keys = Keys(self.store, self.run_hot, self.run_within)
        self.limits = Limits(self.settings)
        self.cookies = Cookies(load_secret(self.settings.home))
        self.feedback_keys = KeyRing(self.settings.home, self.settings.feedback_keys)

    async def record(self, project_id: str, said: Sequence[Said]) -> list[FeedbackResult | PlauditError]:
        """What became of each feedback, in their order; one transaction. Raises Unavailable, Corrupt."""
        # Asked before the store is: an answer may leave the spool for the store meanwhile, and never goes the other way.
        arriving = self.recorder.spooling
        bodies, tokens = [one.body for one in said], [one.token for one in said]
        results = await self.run(collect.record_feedbacks, self.store, project_id, bodies, utc_now(), tokens, arriving)
        self.metrics.said(results)
        return results

    def feedback(self, project_id: str) -> Together[Said, FeedbackResult | PlauditError]:
        """Where feedback of this project that comes one by one is recorded, what comes at once in one transaction."""
        if project_id not in self._feedback:
            self._feedback[project_id] = Together(partial(self._record_each, project_id))
        return self._feedback[project_id]

    async def _record_each(
        self, project_id: str, said: Sequence[Said]
    ) -> Sequence[FeedbackResult | PlauditError | Exception]:
        """Where all together fail, and not for want of the store, each alone: nobody pays for another's."""
        try:
            return await self.record(project_id, said)
        except Exception as error:
            if len(said) == 1 or isinstance(error, Unavailable | Corrupt):
                return [error] * len(said)
        return [result for one in said for result in await self._record_each(project_id, [one])]

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """A synchronous function of `loop` or `store` in the bounded thread pool."""
        return await to_thread.run_sync(lambda: function(*arguments), limiter=self._threads)

    async def run_hot(self, function: Callable[..., T], *arguments: Any) -> T:
        """A read that every chat needs."""
        return await to_thread.run_sync(lambda: function(*arguments), limiter=self._hot_threads)

    async def run_within(self, function: Callable[..., T], *arguments: Any) -> T:
        """The same within the patience for the store, for who has another way. Raises Unavailable; the thread is left to end by itself."""
        patience = self.settings.store_patience_s
        try:
            async with asyncio.timeout(patience):
                return await to_thread.run_sync(
                    lambda: function(*arguments), limiter=self._hot_threads, abandon_on_cancel=True
                )
        except TimeoutError as error:
            raise Unavailable(f"The store did not answer within {patience:g} s (store_patience_s).") from error

    def backend(self, url: str) -> Backend:
        return backends.connect(url, self.session, self.settings.upstream_timeout_s, self.settings.upstream_idle_s)


def chosen_filters(settings: Settings) -> Filters:
    """The filters of the settings, before anything is opened. Raises ConfigError, also for a wrong `on_store_failure`."""
    if settings.on_store_failure not in ("serve", "refuse"):
        raise ConfigError(f"on_store_failure is {settings.on_store_failure!r}; choose serve or refuse.")
    if settings.telemetry:
        telemetry.check()
    return filters.parse(settings.filters)


def door_of(request: Request) -> Door:
    door = request.app.state.door
    assert isinstance(door, Door)
    return door


async def read_json(request: Request, optional: bool = False) -> dict[str, Any]:
    """The body as a JSON object that can be stored. Raises TooLarge (before it is in memory), BadInput, also where it does not arrive in time."""
    settings = door_of(request).settings
    limit, patience = settings.max_body_bytes, settings.body_timeout_s
    pieces, size = [], 0
    try:
        async with asyncio.timeout(patience):
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    raise TooLarge(f"The body is larger than {limit} bytes (max_body_bytes).")
                pieces.append(piece)
    except TimeoutError as error:
        raise BadInput(f"The body did not arrive within {patience:g} s (body_timeout_s); send it again.") from error
    if optional and size == 0:
        return {}
    try:
        body = json.loads(b"".join(pieces).decode(), parse_constant=_no_constant)
    except RecursionError as error:
        raise BadInput("The body is nested too deeply.") from error
    except ValueError as error:
        raise BadInput(f"The body is not JSON in UTF-8 ({error}).") from error
    if not isinstance(body, dict):
        raise BadInput("The body must be a JSON object.")
    return dict(fields.checked(body, "The body", tuple(body)))  # any name, but only values that a store can hold


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of `work`, which is cancelled when the client goes away (ClientDisconnect). The body must have been read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
