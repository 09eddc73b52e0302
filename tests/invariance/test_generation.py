"""Sampling is the same however rows are batched: cached or naive, alone or together, adapters mixed or not."""

from __future__ import annotations

import pytest
import torch

from plaudit.learn import base_models, rollout
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.rollout import DecodeLoop, Row, Sampling, generate, sample, uniform
from plaudit.learn.tokens import ChatTokenizer, pack, response_logprobs

SAMPLING = Sampling(24, temperature=0.9, seed=11)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("generation"))


@pytest.fixture(scope="module")
def decoder(base):
    return Decoder.load(base, torch.float32)


@pytest.fixture(scope="module")
def prompts(base):
    tokenizer = ChatTokenizer.load(base)
    system = {"role": "system", "content": "answer in short words"}
    return [
        tokenizer.render([system, {"role": "user", "content": text}])
        for text in (
            "one",
            "two is longer",
            "three",
            "a much longer question than the others",
            "five",
            "six",
            "7",
            "eight",
        )
    ]


def make_adapter(decoder, seed, scale=0.3):
    adapter = Adapter(decoder.config, 4, 8, first_layer=1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for b in adapter.b.values():
        b.data.normal_(0, scale, generator=generator)
    return adapter


@torch.no_grad()
def naive(decoder, prompt, sampling, key, adapter=None):
    """No cache, one row, the whole text again for every token."""
    ids = []
    while len(ids) < sampling.max_new_tokens:
        x = torch.tensor([[*prompt, *ids]])
        length = x.shape[1]
        mask = torch.ones(1, length, length, dtype=torch.bool).tril()
        hidden = decoder.run_layers(
            decoder.embed(x), torch.arange(length)[None], mask, 0, decoder.config.n_layers, adapter
        )
        logits = decoder.logits(decoder.final(hidden[:, -1]))
        token, _ = sample(logits, uniform([sampling.seed], [key], [len(ids)]), [sampling])
        ids.append(int(token))
        if ids[-1] in decoder.config.stop_ids:
            break
    return ids


def test_cached_equals_naive(decoder, prompts):
    got = generate(decoder, prompts, 2, SAMPLING).rollout.response_ids
    assert got == [naive(decoder, prompts[i // 2], SAMPLING, i) for i in range(16)]
    assert len({len(ids) for ids in got}) > 3  # rows ended at different steps


def test_cached_equals_naive_with_an_adapter(decoder, prompts):
    adapter = make_adapter(decoder, 3)
    got = generate(decoder, prompts, 1, SAMPLING, adapter).rollout.response_ids
    assert got == [naive(decoder, prompt, SAMPLING, i, adapter) for i, prompt in enumerate(prompts)]
    assert got != generate(decoder, prompts, 1, SAMPLING).rollout.response_ids


def test_batch_8_equals_8_times_batch_1(decoder, prompts):
    loop = DecodeLoop(decoder)
    alone = []
    for key, prompt in enumerate(prompts):
        row = Row(prompt, SAMPLING, key)
        loop.admit([row])
        while loop.rows:
            loop.step()
        alone.append(row.ids)
    assert generate(decoder, prompts, 1, SAMPLING).rollout.response_ids == alone


@pytest.mark.parametrize("max_rows", [1, 3, 5])
def test_a_narrow_batch_gives_the_same(decoder, prompts, max_rows):
    wide = generate(decoder, prompts, 2, SAMPLING)
    narrow = generate(decoder, prompts, 2, SAMPLING, max_rows=max_rows)
    assert narrow.rollout == wide.rollout


def test_the_shared_beginning_changes_nothing(decoder, prompts, monkeypatch):
    shared = generate(decoder, prompts, 2, SAMPLING)
    loop = DecodeLoop(decoder)
    loop.admit([Row(prompt, SAMPLING, 0) for prompt in prompts])
    assert len(loop._cache._prefix[None][0]) >= 23  # the system prompt was computed once
    monkeypatch.setattr(rollout, "MIN_PREFIX", 10**6)
    assert generate(decoder, prompts, 2, SAMPLING).rollout == shared.rollout


def run_through(loop, rows):
    loop.admit(rows)
    while loop.rows:
        loop.step()
    return [row.ids for row in rows]


def test_prompts_that_were_kept_change_nothing(decoder, prompts):
    """Asked again, alone and among others, by base and adapter: the text of a loop that keeps nothing."""
    adapter = make_adapter(decoder, 3)
    loop = DecodeLoop(decoder, prompt_bytes=10**8)
    for owner in (None, adapter, None, adapter):
        alone = generate(decoder, prompts, 1, SAMPLING, owner).rollout.response_ids
        for part in ((0, 3, 5), (3,), range(8)):
            got = run_through(loop, [Row(prompts[i], SAMPLING, i, owner) for i in part])
            assert got == [alone[i] for i in part]
    kept = loop._cache.prompts
    assert (kept.misses, kept.hits, len(kept)) == (16, 32, 16)


def test_a_small_room_for_prompts_changes_nothing(decoder, prompts):
    alone = generate(decoder, prompts, 1, SAMPLING).rollout.response_ids
    roomy = DecodeLoop(decoder, prompt_bytes=10**8)
    run_through(roomy, [Row(prompt, SAMPLING, i) for i, prompt in enumerate(prompts)])
    loop = DecodeLoop(decoder, prompt_bytes=roomy._cache.prompts.used_bytes * 2 // 3)
    for _ in range(3):
        assert run_through(loop, [Row(prompt, SAMPLING, i) for i, prompt in enumerate(prompts)]) == alone
    assert 0 < len(loop._cache.prompts) < 8


def test_an_unloaded_adapter_leaves_nothing_behind_and_its_last_rows_are_right(decoder, prompts):
    adapter = make_adapter(decoder, 3)
    loop = DecodeLoop(decoder, prompt_bytes=10**8)
    alone = generate(decoder, prompts, 1, SAMPLING, adapter).rollout.response_ids
    assert run_through(loop, [Row(prompt, SAMPLING, i, adapter) for i, prompt in enumerate(prompts)]) == alone
    loop.forget(adapter)
    assert run_through(loop, [Row(prompt, SAMPLING, i, adapter) for i, prompt in enumerate(prompts)]) == alone
    assert len(loop._cache.prompts) == loop._cache.prompts.used_bytes == 0
    assert adapter not in loop._cache._prefix


def test_prefill_in_parts_changes_nothing(decoder, prompts, monkeypatch):
    whole = generate(decoder, prompts, 1, SAMPLING)
    monkeypatch.setattr(rollout, "PREFILL_TOKENS", 100)
    assert generate(decoder, prompts, 1, SAMPLING).rollout == whole.rollout


def test_rows_with_different_adapters_equal_each_alone(decoder, prompts):
    one, two = make_adapter(decoder, 3), make_adapter(decoder, 4)
    choice = [one, None, two, one, None, two, None, one]
    mixed = generate(decoder, prompts, 1, SAMPLING, choice).rollout.response_ids
    for adapter in (one, two, None):
        alone = generate(decoder, prompts, 1, SAMPLING, adapter).rollout.response_ids
        for i, given in enumerate(choice):
            if given is adapter:
                assert mixed[i] == alone[i]


def test_rows_that_join_later_equal_rows_that_start_together(decoder, prompts):
    together = [Row(prompt, SAMPLING, key) for key, prompt in enumerate(prompts)]
    loop = DecodeLoop(decoder)
    loop.admit(together)
    while loop.rows:
        loop.step()
    later = [Row(prompt, SAMPLING, key) for key, prompt in enumerate(prompts)]
    loop = DecodeLoop(decoder)
    for row in later:
        loop.admit([row])
        loop.step()
        loop.step()
    while loop.rows:
        loop.step()
    assert [row.ids for row in later] == [row.ids for row in together]


def test_the_samplers_log_probs_are_the_training_graphs(decoder, prompts):
    adapter = make_adapter(decoder, 3)
    generated = generate(decoder, prompts, 2, SAMPLING, adapter)
    values, counts, _ = response_logprobs(decoder, adapter, pack(generated.rollout), temperature=SAMPLING.temperature)
    got = torch.tensor([x for row in generated.logprobs for x in row])
    torch.testing.assert_close(got, values[counts], atol=2e-5, rtol=0)
