"""Calls that share one: nobody gets another's answer, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from plaudit.errors import Unavailable
from plaudit.web.together import MOST, Together


class Slow:
    """Doubles numbers, a batch at a time, when it is let; 13 fails alone, 99 for all."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.let = asyncio.Event()

    async def act(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        await self.let.wait()
        if 99 in items:
            raise Unavailable("The store is away.")
        return [ValueError("unlucky") if item == 13 else 2 * item for item in items]


def test_what_comes_meanwhile_goes_together_and_everybody_gets_the_own_answer() -> None:
    async def run() -> None:
        slow = Slow()
        together: Together[int, int] = Together(slow.act)
        asked = [asyncio.create_task(together.ask(n)) for n in range(12)]
        await asyncio.sleep(0)
        asked += [asyncio.create_task(together.ask(n)) for n in range(12, 14)]
        await asyncio.sleep(0.01)
        late = asyncio.create_task(together.ask(40))
        await asyncio.sleep(0)
        slow.let.set()
        found = await asyncio.gather(*asked, late, return_exceptions=True)
        assert found[:13] == [2 * n for n in range(13)]
        assert isinstance(found[13], ValueError)
        assert found[14] == 80
        assert sum(map(len, slow.batches)) == 15
        assert slow.batches[-1][-1] == 40
        assert len(slow.batches) <= 3
        assert await together.ask(7) == 14  # it works on after a rest
        assert slow.batches[-1] == [7]

    asyncio.run(run())


def test_what_fails_as_a_whole_fails_for_those_alone_who_were_in_it() -> None:
    async def run() -> None:
        slow = Slow()
        slow.let.set()
        together: Together[int, int] = Together(slow.act)
        first = await asyncio.gather(together.ask(1), together.ask(99), return_exceptions=True)
        assert [type(one) for one in first] == [Unavailable, Unavailable]
        assert await together.ask(2) == 4

    asyncio.run(run())


def test_a_caller_who_leaves_hinders_nobody() -> None:
    async def run() -> None:
        slow = Slow()
        together: Together[int, int] = Together(slow.act)
        stays, leaves = asyncio.create_task(together.ask(1)), asyncio.create_task(together.ask(2))
        await asyncio.sleep(0.01)
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        slow.let.set()
        assert await stays == 2
        assert await together.ask(3) == 6

    asyncio.run(run())


def test_a_call_has_an_end() -> None:
    async def run() -> None:
        slow = Slow()
        slow.let.set()
        together: Together[int, int] = Together(slow.act)
        numbers = [n for n in range(MOST + 20) if n not in (13, 99)]
        assert await asyncio.gather(*map(together.ask, numbers)) == [2 * n for n in numbers]
        assert max(map(len, slow.batches)) == MOST

    asyncio.run(run())
