from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

from plaudit.domain import DEFAULT_PROJECT, Person, Project, new_id, utc_now
from plaudit.errors import Conflict, Unavailable
from plaudit.loop import govern
from plaudit.store.database import open_store
from plaudit.store.spool import Change, Entry, Spool
from plaudit.web.recorder import MAX_BATCH, Recorder


def person(name: str) -> Person:
    return Person(id=new_id(Person), project_id=DEFAULT_PROJECT, name=name, created_at=utc_now())


class CountingStore:
    """A store whose transactions can be held up and counted."""

    def __init__(self, store) -> None:
        self.store = store
        self.n_transactions = 0
        self.gate = threading.Event()
        self.gate.set()
        self.down = False

    @contextmanager
    def write(self, **how):
        self.gate.wait(10)
        if self.down:
            raise Unavailable("The disk is full.")
        self.n_transactions += 1
        with self.store.write() as tx:
            yield tx


@pytest.fixture
def store(tmp_path, with_schema):
    opened = open_store(with_schema(tmp_path / "store.sqlite"))
    govern.ensure_project(opened, utc_now())
    yield CountingStore(opened)
    opened.close()


def with_recorder(store, use) -> None:
    async def run() -> None:
        recorder = Recorder(store)
        recorder.start()
        try:
            await asyncio.wait_for(use(recorder), 30)
        finally:
            store.gate.set()
            await recorder.stop()

    asyncio.run(run())


def test_a_row_is_there_when_its_future_ends(store) -> None:
    async def use(recorder: Recorder) -> None:
        ann = person("Ann")
        await recorder.submit(ann)
        assert store.store.get(Person, ann.id) == ann

    with_recorder(store, use)


def test_no_future_ends_before_its_commit(store) -> None:
    async def use(recorder: Recorder) -> None:
        store.gate.clear()
        future = recorder.submit(person("Ann"))
        await asyncio.sleep(0.05)
        assert not future.done()
        store.gate.set()
        await future

    with_recorder(store, use)


def test_what_gathers_during_a_commit_shares_the_next(store) -> None:
    async def use(recorder: Recorder) -> None:
        store.gate.clear()
        first = recorder.submit(person("first"))
        await asyncio.sleep(0.05)  # the writer has taken it and waits
        others = [recorder.submit(person(f"p{n}"), person(f"q{n}")) for n in range(100)]
        store.gate.set()
        await asyncio.gather(first, *others)
        assert store.n_transactions == 2
        assert store.store.count(Person) == 201

    with_recorder(store, use)


def test_a_batch_has_a_largest_size(store) -> None:
    async def use(recorder: Recorder) -> None:
        store.gate.clear()
        await asyncio.sleep(0)
        futures = [recorder.submit(person(f"p{n}")) for n in range(2 * MAX_BATCH + 1)]
        store.gate.set()
        await asyncio.gather(*futures)
        assert 3 <= store.n_transactions <= 4

    with_recorder(store, use)


def test_one_bad_row_fails_alone_and_takes_its_companions_along(store) -> None:
    async def use(recorder: Recorder) -> None:
        ann = person("Ann")
        await recorder.submit(ann)
        store.gate.clear()
        futures = [
            recorder.submit(person("good")),
            recorder.submit(person("with bad"), replace(person("bad"), name="Ann")),  # the name is taken
            recorder.submit(person("also good")),
        ]
        store.gate.set()
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), Conflict, type(None)]
        assert {found.name for found in store.store.find(Person)} == {"Ann", "good", "also good"}

    with_recorder(store, use)


def test_changes_are_written_with_the_rows(store) -> None:
    async def use(recorder: Recorder) -> None:
        await recorder.submit(person("Ann"), changes=[Change(Project, DEFAULT_PROJECT, {"name": "renamed"})])
        assert store.store.get(Project, DEFAULT_PROJECT).name == "renamed"

    with_recorder(store, use)


def test_a_store_that_is_down_is_said_to_everybody_and_the_next_batch_works(store) -> None:
    async def use(recorder: Recorder) -> None:
        store.down = True
        outcomes = await asyncio.gather(*(recorder.submit(person(f"{n}")) for n in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
        store.down = False
        await recorder.submit(person("later"))

    with_recorder(store, use)


def test_a_cancelled_request_still_has_its_rows_written(store) -> None:
    async def use(recorder: Recorder) -> None:
        store.gate.clear()
        left = recorder.submit(person("left"))
        left.cancel()
        store.gate.set()
        await recorder.submit(person("stayed"))
        assert {found.name for found in store.store.find(Person)} == {"left", "stayed"}

    with_recorder(store, use)


def test_stopping_writes_what_was_submitted_and_then_refuses(store) -> None:
    async def run() -> None:
        recorder = Recorder(store)
        recorder.start()
        futures = [recorder.submit(person(f"{n}")) for n in range(50)]
        await recorder.stop()
        await asyncio.gather(*futures)
        assert store.store.count(Person) == 50
        with pytest.raises(Unavailable):
            await recorder.submit(person("late"))

    asyncio.run(run())


# --- with a spool ------------------------------------------------------------------------------------------------------


def with_spooling_recorder(store, folder, use, patience_s=0.05) -> None:
    async def run() -> None:
        recorder = Recorder(store, Spool(folder), patience_s)
        recorder.start()
        try:
            await asyncio.wait_for(use(recorder), 60)
        finally:
            store.gate.set()
            await recorder.stop()

    asyncio.run(run())


async def until_back(recorder: Recorder) -> None:
    while recorder.spooling:
        await asyncio.sleep(0.01)


def names(store) -> set[str]:
    return {found.name for found in store.store.find(Person)}


def test_a_commit_that_hangs_is_overtaken_by_the_spool_and_written_once(store, tmp_path) -> None:
    async def use(recorder: Recorder) -> None:
        store.gate.clear()
        await asyncio.gather(
            *(recorder.submit(person(f"p{n}")) for n in range(5))
        )  # acknowledged while the commit hangs
        assert recorder.spooling
        assert names(store) == set()
        await recorder.submit(person("during"))
        store.gate.set()
        await until_back(recorder)
        assert names(store) == {*(f"p{n}" for n in range(5)), "during"}
        await recorder.submit(person("after"))
        assert "after" in names(store)
        assert list((tmp_path / "spool").iterdir()) == []

    with_spooling_recorder(store, tmp_path / "spool", use)


def test_a_store_that_is_down_spools_at_once_and_keeps_the_order_of_rows_and_changes(store, tmp_path) -> None:
    async def use(recorder: Recorder) -> None:
        store.down = True
        ann = person("Ann")
        await recorder.submit(ann)
        await recorder.submit(changes=[Change(Person, ann.id, {"name": "Anna"})])
        store.down = False
        await until_back(recorder)
        assert names(store) == {"Anna"}

    with_spooling_recorder(store, tmp_path / "spool", use, patience_s=30.0)


def test_rows_keep_coming_while_the_store_comes_back_and_none_is_lost(store, tmp_path) -> None:
    async def use(recorder: Recorder) -> None:
        async def talk(number: int) -> None:
            for turn in range(30):
                await recorder.submit(person(f"{number} {turn}"))

        store.down = True
        talking = [asyncio.create_task(talk(number)) for number in range(8)]
        await asyncio.sleep(0.05)
        store.down = False
        await asyncio.gather(*talking)
        await until_back(recorder)
        assert len(names(store)) == 240

    with_spooling_recorder(store, tmp_path / "spool", use, patience_s=30.0)


def test_a_bad_row_is_no_outage(store, tmp_path) -> None:
    async def use(recorder: Recorder) -> None:
        ann = person("Ann")
        await recorder.submit(ann)
        with pytest.raises(Conflict):
            await recorder.submit(replace(person("x"), name="Ann"))
        assert not recorder.spooling

    with_spooling_recorder(store, tmp_path / "spool", use, patience_s=30.0)


def test_what_a_crash_has_left_is_written_first(store, tmp_path) -> None:
    dead = Spool(tmp_path / "spool")
    dead.append([Entry((person("left"),))])
    dead.close()

    async def use(recorder: Recorder) -> None:
        await recorder.submit(person("new"))
        await until_back(recorder)
        assert names(store) == {"left", "new"}

    with_spooling_recorder(store, tmp_path / "spool", use, patience_s=30.0)


def test_stopping_while_the_store_is_away_leaves_the_rows_in_the_spool(store, tmp_path) -> None:
    async def run() -> None:
        recorder = Recorder(store, Spool(tmp_path / "spool"), 30.0)
        recorder.start()
        store.down = True
        futures = [recorder.submit(person(f"{n}")) for n in range(20)]
        await recorder.stop()
        await asyncio.gather(*futures)

    asyncio.run(run())
    store.down = False
    assert names(store) == set()
    later = Spool(tmp_path / "spool")
    assert later.leftovers()
    later.replay(store)
    assert names(store) == {f"{n}" for n in range(20)}


def test_where_the_spool_fails_too_the_caller_hears_it(store, tmp_path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")

    async def use(recorder: Recorder) -> None:
        store.down = True
        with pytest.raises(Unavailable, match="Neither"):
            await recorder.submit(person("x"))
        store.down = False
        await until_back(recorder)

    with_spooling_recorder(store, tmp_path / "spool", use, patience_s=30.0)
