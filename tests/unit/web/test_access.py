from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from plaudit.domain import DEFAULT_PROJECT, ApiKey, utc_now
from plaudit.errors import Unavailable
from plaudit.loop import govern
from plaudit.store.database import open_store
from plaudit.web import access
from plaudit.web.access import Keys


@pytest.fixture
def store(tmp_path, with_schema):
    opened = open_store(with_schema(tmp_path / "store.sqlite"))
    govern.ensure_project(opened, utc_now())
    yield opened
    opened.close()


def test_a_key_is_remembered_for_a_moment_and_a_revoked_one_forgotten_after_it(store, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(access.time, "monotonic", lambda: clock[0])
    made, secret = govern.create_key(store, DEFAULT_PROJECT, "app", ["application"], now=utc_now())
    asked = []

    async def run(function, *arguments):
        asked.append(arguments)
        return function(*arguments)

    keys = Keys(store, run)
    assert asyncio.run(keys.find(secret)) == made
    assert asyncio.run(keys.find(secret)) == made
    assert len(asked) == 1
    govern.revoke_key(store, DEFAULT_PROJECT, made.id, utc_now())
    assert asyncio.run(keys.find(secret)) == made  # for at most REMEMBERED_S
    clock[0] += access.REMEMBERED_S + 0.01
    assert asyncio.run(keys.find(secret)) is None
    assert asyncio.run(keys.find("plk_other")) is None
    assert secret not in repr(vars(keys))


def test_the_memory_has_an_end(store, monkeypatch) -> None:
    monkeypatch.setattr(access, "MAX_REMEMBERED", 2)

    async def run(function, *arguments):
        return function(*arguments)

    keys = Keys(store, run)
    for number in range(5):
        _, secret = govern.create_key(store, DEFAULT_PROJECT, f"k{number}", ["application"], now=utc_now())
        assert asyncio.run(keys.find(secret)) is not None
        assert len(keys._known) <= 2


def test_a_key_that_was_known_stays_so_while_the_store_is_away(store, monkeypatch) -> None:
    monkeypatch.setattr(access, "REMEMBERED_S", -1.0)
    made, secret = govern.create_key(store, DEFAULT_PROJECT, "app", ["application"], now=utc_now())

    async def run(function, *arguments):
        return function(*arguments)

    async def away(function, *arguments):
        raise Unavailable("away")

    keys = Keys(store, run, away)
    assert asyncio.run(keys.find(secret)) == made
    assert asyncio.run(keys.find(secret)) == made
    with pytest.raises(Unavailable):
        asyncio.run(Keys(store, away, away).find(secret))


def test_a_key_is_looked_up_once_at_a_time(store, monkeypatch) -> None:
    monkeypatch.setattr(access, "REMEMBERED_S", -1.0)
    made, secret = govern.create_key(store, DEFAULT_PROJECT, "app", ["application"], now=utc_now())
    asked = []

    async def run(function, *arguments):
        asked.append(1)
        await asyncio.sleep(0)
        return function(*arguments)

    async def use() -> None:
        keys = Keys(store, run)
        assert await keys.find(secret) == made
        assert await asyncio.gather(*(keys.find(secret) for _ in range(5))) == [made] * 5

    asyncio.run(use())
    assert len(asked) == 2


def test_the_last_use_is_written_in_batches_and_again_where_the_store_was_away(store) -> None:
    made, _ = govern.create_key(store, DEFAULT_PROJECT, "app", ["application"], now=utc_now())
    other, _ = govern.create_key(store, DEFAULT_PROJECT, "b", ["application"], now=utc_now())
    first, later = utc_now(), utc_now() + timedelta(seconds=5)
    calls, away = [], [True]

    async def run(function, *arguments):
        calls.append(arguments[1])
        if away[0]:
            keys.used(made, later)  # while the store is asked
            raise Unavailable("away")
        return function(*arguments)

    keys = Keys(store, run)

    async def use() -> None:
        await keys.write_use()  # nothing was used
        keys.used(made, first)
        keys.used(other, first)
        await keys.write_use()
        assert store.get(ApiKey, made.id).last_used_at is None
        away[0] = False
        await keys.write_use()
        await keys.write_use()  # nothing is left
        assert [store.get(ApiKey, one.id).last_used_at for one in (made, other)] == [later, first]

    asyncio.run(use())
    assert [set(used) for used in calls] == [{made.id, other.id}] * 2
