from __future__ import annotations

import asyncio

import pytest

from plaudit.domain import DEFAULT_PROJECT, Experiment, ExperimentState, Release, ReleaseState, new_id, utc_now
from plaudit.errors import Unavailable
from plaudit.loop import experiment, govern, release
from plaudit.loop.serving import assign
from plaudit.store.database import open_store
from plaudit.web import serving
from plaudit.web.serving import ServingConfigs


@pytest.fixture
def store(tmp_path, with_schema):
    opened = open_store(with_schema(tmp_path / "store.sqlite"))
    govern.ensure_project(opened, utc_now())
    yield opened
    opened.close()


async def run(function, *arguments):
    return function(*arguments)


def begin_experiment(store) -> Experiment:
    control = store.first(Release, state=ReleaseState.LIVE)
    now = utc_now()
    candidate = Release(
        id=new_id(Release), project_id=DEFAULT_PROJECT, checkpoint_id=None, model="c", upstream="fake:",
        state=ReleaseState.CANARY, created_at=now, state_at=now,
    )  # fmt: skip
    store.add(candidate)
    return experiment.start(store, DEFAULT_PROJECT, candidate.id, control.id, now, stages=(0.5,))


def test_nothing_live_is_unavailable_and_asked_again_next_time(store) -> None:
    configs = ServingConfigs(store, run)
    with pytest.raises(Unavailable):
        asyncio.run(configs.current(DEFAULT_PROJECT))
    release.register_base(store, DEFAULT_PROJECT, "m", "fake:", utc_now())
    assert asyncio.run(configs.current(DEFAULT_PROJECT)).config.live.model == "m"


def test_a_change_of_the_ledger_is_served_after_the_next_poll_as_one_whole(store, monkeypatch) -> None:
    monkeypatch.setattr(serving, "POLL_S", 0.005)
    release.register_base(store, DEFAULT_PROJECT, "m", "fake:", utc_now())
    configs = ServingConfigs(store, run)

    async def use() -> None:
        before = await configs.current(DEFAULT_PROJECT)
        started = begin_experiment(store)
        assert await configs.current(DEFAULT_PROJECT) is before  # the hot path does not ask the store
        polling = asyncio.create_task(configs.poll())
        while (after := await configs.current(DEFAULT_PROJECT)) is before:
            await asyncio.sleep(0.005)
        polling.cancel()
        assert before.config.experiment is None
        assert after.config.experiment == started
        assert after.config.candidate.id == started.candidate_id
        assert after.config.version > before.config.version
        store.change(Experiment, started.id, state=ExperimentState.STOPPED)
        assert (await configs.refresh(DEFAULT_PROJECT)).config.experiment is None

    asyncio.run(asyncio.wait_for(use(), 20))


def test_a_store_that_fails_leaves_the_last_known_releases_serving(store, monkeypatch) -> None:
    monkeypatch.setattr(serving, "POLL_S", 0.0)
    release.register_base(store, DEFAULT_PROJECT, "m", "fake:", utc_now())
    failures = []

    async def flaky(function, *arguments):
        if configs._known:
            failures.append(1)
            raise Unavailable("The store does not answer.")
        return function(*arguments)

    configs = ServingConfigs(store, flaky)

    async def use() -> None:
        await configs.current(DEFAULT_PROJECT)
        polling = asyncio.create_task(configs.poll())
        while len(failures) < 3:
            await asyncio.sleep(0)
        assert not polling.done()
        polling.cancel()
        assert (await configs.current(DEFAULT_PROJECT)).config.live.model == "m"

    asyncio.run(asyncio.wait_for(use(), 20))


def test_a_conversation_goes_on_where_its_beginning_cannot_be_read(store) -> None:
    release.register_base(store, DEFAULT_PROJECT, "m", "fake:", utc_now())

    async def away(function, *arguments):
        raise Unavailable("away")

    async def use() -> None:
        configs = ServingConfigs(store, run, away)
        begin_experiment(store)
        current = await configs.current(DEFAULT_PROJECT)
        told = await configs.assign(current, "u-1", "c-1")
        assert told == assign(current.config, "u-1")

    asyncio.run(use())
