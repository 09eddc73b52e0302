"""The sampling thread: answers equal `generate`, queue and cache have bounds, a failure or a client that left harms nobody else."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
import torch

from plaudit.errors import NotFound, PlauditError, Unavailable
from plaudit.learn import base_models
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.rollout import Sampling, generate
from plaudit.learn.tokens import ChatTokenizer
from plaudit.policy_server.engine import Adapters, Engine, Job

PROMPTS = [[259, *text.encode(), 256, 260] for text in ("one", "a longer question", "three")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def decoder(base):
    return Decoder.load(base, torch.float32)


@pytest.fixture
def start(decoder, base):
    engines = []

    def make(**options):
        engine = Engine(decoder, ChatTokenizer.load(base), **options)
        engine.start()
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.stop()


def job(prompt, n=1, stop=(), stream=False, adapter=None, **sampling):
    options = {"max_new_tokens": 16, "seed": 3} | sampling
    return Job(list(prompt), n, Sampling(**options), tuple(stop), adapter, stream, asyncio.get_running_loop())


async def finish(job):
    """All pieces of a job, by choice."""
    pieces = [[] for _ in range(job.n)]
    while not all(p and p[-1].finish_reason for p in pieces):
        piece = await asyncio.wait_for(job.pieces.get(), 60)
        if isinstance(piece, PlauditError):
            raise piece
        pieces[piece.index].append(piece)
    return pieces


def test_requests_that_arrive_together_get_what_each_would_get_alone(start, decoder, base):
    engine = start()
    tokenizer = ChatTokenizer.load(base)

    async def run():
        jobs = [job(PROMPTS[i % 3], n=1 + i % 3, stream=i % 2 == 0, seed=i) for i in range(24)]
        for each in jobs:
            engine.submit(each)
            await asyncio.sleep(0)
        return jobs, await asyncio.gather(*map(finish, jobs))

    jobs, answers = asyncio.run(run())
    for each, pieces in zip(jobs, answers, strict=True):
        alone = generate(decoder, [each.prompt_ids], each.n, each.sampling).rollout
        for i, own in enumerate(pieces):
            assert "".join(piece.text for piece in own) == tokenizer.decode(alone.response_ids[i])
            assert own[-1].n_tokens == len(alone.response_ids[i])
            assert own[-1].finish_reason == ("stop" if alone.finished[i] else "length")
            assert each.stream or len(own) == 1
    assert engine.load == {"running": 0, "waiting": 0}


def test_narrow_bounds_delay_but_lose_nothing(start):
    engine = start(max_rows=3, cache_tokens=200)

    async def run():
        jobs = [job(PROMPTS[i % 3], n=2, seed=i) for i in range(10)]
        for each in jobs:
            engine.submit(each)
        return await asyncio.gather(*map(finish, jobs))

    assert len(asyncio.run(run())) == 10


def test_a_request_wider_than_the_bounds_still_runs(start):
    engine = start(max_rows=2, cache_tokens=10)

    async def run():
        wide = job(PROMPTS[1], n=5)
        engine.submit(wide)
        return await finish(wide)

    assert len(asyncio.run(run())) == 5


def test_a_full_queue_is_said_with_a_time(decoder, base):
    engine = Engine(decoder, ChatTokenizer.load(base), max_waiting=4)  # not started: everything waits

    async def run():
        engine.submit(job(PROMPTS[0], n=3))
        with pytest.raises(Unavailable, match="3 responses wait") as caught:
            engine.submit(job(PROMPTS[0], n=2))
        engine.submit(job(PROMPTS[0], n=1))
        return caught.value.retry_after_s

    assert asyncio.run(run()) > 0


def test_a_request_is_queued_whole_or_not_at_all(decoder, base):
    engine = Engine(decoder, ChatTokenizer.load(base), max_waiting=4)

    async def run():
        with pytest.raises(Unavailable):
            engine.submit(job(PROMPTS[0], n=2), job(PROMPTS[1], n=3))

    asyncio.run(run())
    assert engine.load == {"running": 0, "waiting": 0}


def test_prompts_that_were_kept_give_the_same_answers(start, decoder):
    """Twice the same questions of a server that keeps prompts: token for token what `generate` gives."""
    engine = start(prompt_bytes=10**7)

    async def run():
        again = []
        for _ in range(2):
            jobs = [job(prompt, n=2, seed=i, logprobs=0) for i, prompt in enumerate(PROMPTS)]
            engine.submit(*jobs)
            again.append(await asyncio.gather(*map(finish, jobs)))
        return again

    first, second = asyncio.run(run())
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        alone = generate(decoder, [PROMPTS[i]], 2, Sampling(16, seed=i)).rollout.response_ids
        assert [pieces[-1].ids for pieces in one] == [pieces[-1].ids for pieces in other] == alone
    assert engine._loop._cache.prompts.hits == 3


def test_cancelled_jobs_leave_the_batch_and_the_queue(start):
    engine = start(max_rows=1)

    async def run():
        endless = job(PROMPTS[0], stream=True, max_new_tokens=1900)
        queued, wanted = job(PROMPTS[1]), job(PROMPTS[2])
        engine._loop.stop_ids = frozenset()
        for each in (endless, queued, wanted):
            engine.submit(each)
        await endless.pieces.get()
        endless.cancel()
        queued.cancel()
        await finish(wanted)
        return queued.pieces.empty(), endless.pieces.qsize()

    nothing, got = asyncio.run(run())
    assert nothing
    assert got < 1800


def test_a_stop_string_frees_its_row(start):
    engine = start()

    async def run():
        engine._loop.stop_ids = frozenset()
        one = job(PROMPTS[0], stop=["e"], max_new_tokens=1000, stream=False)
        engine.submit(one)
        return await finish(one)

    (pieces,) = asyncio.run(run())
    assert pieces[-1].finish_reason == "stop"
    assert "e" not in pieces[-1].text
    assert pieces[-1].n_tokens < 1000
    deadline = time.monotonic() + 60  # the worker drops the row in its next round, after the answer has left
    while engine._loop.rows and time.monotonic() < deadline:
        time.sleep(0.005)
    assert engine._loop.rows == []


def test_a_failing_step_fails_its_requests_and_no_later_one(start, monkeypatch):
    engine = start()
    logged = []
    monkeypatch.setattr("plaudit.policy_server.engine.log.exception", lambda *_: logged.append(sys.exc_info()[1]))

    async def run():
        def broken():
            engine._loop.step = working
            raise RuntimeError("a bug")

        working = engine._loop.step
        engine._loop.step = broken
        hit = job(PROMPTS[0])
        engine.submit(hit)
        with pytest.raises(PlauditError, match="failed in a sampling step"):
            await finish(hit)
        after = job(PROMPTS[0])
        engine.submit(after)
        return await finish(after)

    assert asyncio.run(run())[0][-1].finish_reason
    assert [str(error) for error in logged] == ["a bug"]


def test_stopping_tells_those_who_wait(decoder, base):
    engine = Engine(decoder, ChatTokenizer.load(base))
    engine._loop.stop_ids = frozenset()
    engine.start()

    async def run():
        long = job(PROMPTS[0], max_new_tokens=1900, stream=True)
        engine.submit(long)
        await long.pieces.get()
        exchange = asyncio.create_task(asyncio.to_thread(engine.reload, decoder))
        while engine._fresh is None:
            await asyncio.sleep(0)
        await asyncio.to_thread(engine.stop)
        with pytest.raises(Unavailable, match="stopping"):
            await exchange
        with pytest.raises(Unavailable, match="stopping"):
            await finish(long)
        with pytest.raises(Unavailable, match="stopping"):
            engine.submit(job(PROMPTS[0]))

    asyncio.run(run())
    assert not engine.alive


def test_what_runs_ends_with_the_old_weights_and_what_waits_begins_with_the_new(start, decoder, base):
    other = Decoder.load(base, torch.float32)
    with torch.no_grad():
        other.get_parameter("head").mul_(-1.0)
    engine = start()

    async def run():
        long = job(PROMPTS[0], max_new_tokens=60, stream=True, seed=4)
        engine.submit(long)
        ids = list((await long.pieces.get()).ids)
        exchange = asyncio.create_task(asyncio.to_thread(engine.reload, other))
        while engine._fresh is None:
            await asyncio.sleep(0)
        waits = job(PROMPTS[1])
        engine.submit(waits)
        with pytest.raises(Unavailable, match="exchanged already"):
            engine.reload(decoder)
        ids += [token for piece in (await finish(long))[0] for token in piece.ids]
        await exchange
        return ids, [token for piece in (await finish(waits))[0] for token in piece.ids]

    old, new = asyncio.run(run())
    assert old == generate(decoder, [PROMPTS[0]], 1, Sampling(60, seed=4)).rollout.response_ids[0]
    assert new == generate(other, [PROMPTS[1]], 1, Sampling(16, seed=3)).rollout.response_ids[0]
    assert len(old) > 40, "long enough to be under way"


def test_weights_that_cannot_be_taken_fail_for_who_brought_them_alone(start, decoder):
    class Broken:
        config = decoder.config

        def for_sampling(self):
            raise MemoryError("no room for them")

    engine = start()

    async def run():
        with pytest.raises(MemoryError, match="no room"):
            await asyncio.to_thread(engine.reload, Broken())
        after = job(PROMPTS[0])
        engine.submit(after)
        return [token for piece in (await finish(after))[0] for token in piece.ids]

    assert asyncio.run(run()) == generate(decoder, [PROMPTS[0]], 1, Sampling(16, seed=3)).rollout.response_ids[0]


def test_each_request_samples_with_its_own_adapter(start, decoder):
    adapter = Adapter(decoder.config, 4, 8, seed=1)
    for b in adapter.b.values():
        b.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    engine = start()

    async def run():
        jobs = [job(PROMPTS[0], n=3, adapter=adapter if i % 2 else None, logprobs=0) for i in range(6)]
        for each in jobs:
            engine.submit(each)
        return await asyncio.gather(*map(finish, jobs))

    answers = asyncio.run(run())
    for i, pieces in enumerate(answers):
        alone = generate(decoder, [PROMPTS[0]], 3, Sampling(16, seed=3), adapter if i % 2 else None).rollout
        ids = [[entry["token_id"] for entry in own[-1].logprobs] for own in pieces]
        assert ids == alone.response_ids
    engine.forget(adapter)
    assert answers[0] != answers[1]


def test_adapters_by_name():
    adapters, one = Adapters("base"), object()
    assert adapters.find("base") is None
    adapters.add("a", one)
    assert (adapters.find("a"), adapters.names(), adapters.has("b")) == (one, ["base", "a"], False)
    with pytest.raises(NotFound, match=r"'b' does not exist here; loaded are 'base', 'a'"):
        adapters.find("b")
    assert adapters.remove("a") is one
    assert adapters.names() == ["base"]
