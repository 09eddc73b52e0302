"""Calls that come while one is under way share the next one: a transaction costs hardly more for twenty rows than for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

MOST = 256  # in one call
Item = TypeVar("Item")
Result = TypeVar("Result")


class Together(Generic[Item, Result]):
    """`act` answers items in their order: with a result, or with an exception that is raised where it was asked for. One event loop."""

    def __init__(self, act: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]]) -> None:
        self._act = act
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Result:
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST))]
            try:
                found = await self._act([item for item, _ in taken])
            except Exception as error:
                found = [error] * len(taken)
            for (_, answer), one in zip(taken, found, strict=True):
                if answer.done():  # its request was cancelled
                    continue
                if isinstance(one, Exception):
                    answer.set_exception(one)
                else:
                    answer.set_result(one)
        self._working = None
