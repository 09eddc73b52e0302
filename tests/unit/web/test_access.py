from __future__ import annotations

import asyncio

import pytest

from plaudit.domain import DEFAULT_PROJECT, utc_now
from plaudit.loop import govern
from plaudit.store.database import open_store
from plaudit.web import access
from plaudit.web.access import Keys


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")
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
