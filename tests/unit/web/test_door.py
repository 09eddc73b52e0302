from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect, Request

from plaudit.errors import BadInput, TooLarge
from plaudit.settings import Settings
from plaudit.web import door as module
from plaudit.web.door import read_json, unless_client_leaves


def request(*pieces: bytes, then=None) -> Request:
    """A POST whose body comes in pieces; then `then`, an event for the client's leaving."""
    messages = [
        {"type": "http.request", "body": piece, "more_body": place < len(pieces) - 1}
        for place, piece in enumerate(pieces)
    ]

    async def receive():
        if messages:
            return messages.pop(0)
        if then is not None:
            await then.wait()
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    settings = Settings(max_body_bytes=50)
    monkeypatch.setattr(module, "door_of", lambda request: SimpleNamespace(settings=settings))


def test_a_body_in_pieces_is_one_object() -> None:
    assert asyncio.run(read_json(request(b'{"a": ', b'"\xc3', b'\xa9"}'))) == {"a": "é"}


def test_a_body_over_the_limit_is_refused_before_it_is_all_there() -> None:
    left = [b"x" * 30] * 100
    asked = request(*left)
    with pytest.raises(TooLarge, match="50 bytes"):
        asyncio.run(read_json(asked))
    assert asyncio.run(read_json(request(b'{"a": "' + b"x" * 41 + b'"}'))) == {"a": "x" * 41}  # exactly 50


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"3", b"null", b"[1]", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": -Infinity}', b"\xff", b'{"a": "\\u0000"}', b'{"a": {"\\ud800": 1}}'],
)  # fmt: skip
def test_what_is_no_object_that_can_be_stored_is_refused(content) -> None:
    with pytest.raises(BadInput):
        asyncio.run(read_json(request(content)))


def test_work_that_ends_gives_its_outcome_or_its_error() -> None:
    async def run(outcome):
        async def work():
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        asked = request(b"{}")
        await asked.body()
        return await unless_client_leaves(asked, work())

    assert asyncio.run(run(7)) == 7
    with pytest.raises(BadInput):
        asyncio.run(run(BadInput("x")))


def test_work_is_cancelled_and_has_ended_when_the_client_leaves() -> None:
    seen = []

    async def run() -> None:
        leaving = asyncio.Event()

        async def work() -> None:
            try:
                leaving.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)  # it takes its time to tidy up
                seen.append("cancelled")
                raise

        asked = request(b"{}", then=leaving)
        await asked.body()
        with pytest.raises(ClientDisconnect):
            await unless_client_leaves(asked, work())
        assert seen == ["cancelled"]

    asyncio.run(asyncio.wait_for(run(), 10))
