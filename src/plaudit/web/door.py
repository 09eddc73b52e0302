"""What every handler holds: the parts of the running service, and how a request's body is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import aiohttp
from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request

from plaudit import backends
from plaudit.backends import Backend
from plaudit.errors import BadInput, TooLarge
from plaudit.loop import body as fields
from plaudit.settings import Settings
from plaudit.store.database import Store
from plaudit.web.access import Keys
from plaudit.web.recorder import Recorder
from plaudit.web.serving import ServingConfigs

T = TypeVar("T")
MAX_THREADS = 12  # as many as the store's pool has connections, less those of the recorder and the poll


@dataclass
class Door:
    """The service while it runs; `app.create_app` opens and closes it."""

    settings: Settings
    store: Store
    session: aiohttp.ClientSession
    recorder: Recorder = field(init=False)
    configs: ServingConfigs = field(init=False)
    keys: Keys = field(init=False)
    _threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MAX_THREADS))

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.store)
        self.configs = ServingConfigs(self.store, self.run)
        self.keys = Keys(self.store, self.run)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """A synchronous function of `loop` or `store` in the bounded thread pool."""
        return await to_thread.run_sync(lambda: function(*arguments), limiter=self._threads)

    def backend(self, url: str) -> Backend:
        return backends.connect(url, self.session, self.settings.upstream_timeout_s)


def door_of(request: Request) -> Door:
    door = request.app.state.door
    assert isinstance(door, Door)
    return door


async def read_json(request: Request, optional: bool = False) -> dict[str, Any]:
    """The body as a JSON object that can be stored. Raises TooLarge (before it is in memory), BadInput."""
    limit = door_of(request).settings.max_body_bytes
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise TooLarge(f"The body is larger than {limit} bytes (max_body_bytes).")
        pieces.append(piece)
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
