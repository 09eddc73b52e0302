"""Batches of similar length, the kept trunk, and a trunk that continues another."""

import pytest
import torch

from plaudit.errors import BadInput
from plaudit.learn import base_models, batches
from plaudit.learn.nets import Decoder
from plaudit.learn.tokens import Rollout, hidden_states, logprobs_at, pack, response_logprobs, run_trunk


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return Decoder.load(base_models.prepare("tiny", tmp_path_factory.mktemp("bases")), torch.float32)


def pairs(n):
    """n prompts with two responses each, all of different lengths."""
    prompts = [list(range(97, 99 + i)) for i in range(n)]
    responses = [list(range(97, 98 + i + 2 * side)) for i in range(n) for side in (0, 1)]
    return Rollout(prompts, responses, [i // 2 for i in range(2 * n)], [True] * (2 * n))


def test_buckets_hold_everything_once_and_similar_lengths_together():
    lengths = [int(x) for x in torch.randint(1, 500, (100,), generator=torch.Generator().manual_seed(0))]
    got = batches.length_buckets(lengths, 8, torch.Generator().manual_seed(1))
    assert sorted(item for batch in got for item in batch) == list(range(100))
    assert sorted(map(len, got)) == [4] + [8] * 12
    spread = sum(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in got) / len(got)
    assert spread < 120  # of 500; batches in random order would spread over about 400
    firsts = [min(lengths[i] for i in batch) for batch in got]
    assert firsts != sorted(firsts)
    assert batches.length_buckets(lengths, 8, torch.Generator().manual_seed(1)) == got
    assert batches.length_buckets(lengths, 8, torch.Generator().manual_seed(2)) != got


def test_group_lengths_count_the_prompt_once():
    assert batches.group_lengths(pairs(2)) == [2 + 1 + 3, 3 + 2 + 4]


@pytest.mark.parametrize("first_layer", [0, 2])
@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_packs_hold_whole_groups_and_lead_to_the_same_states(decoder, monkeypatch, first_layer, limit):
    monkeypatch.setattr(batches, "TRUNK_CACHE_BYTES", limit)
    data = pairs(5)
    batcher = batches.Batcher(decoder, data, first_layer, token_budget=40)
    packs, trunk, names = batcher.packs([3, 1])
    assert (trunk is None) == (first_layer == 0)
    seen = []
    for batch in packs:
        hidden = hidden_states(decoder, None, batch, trunk)
        for place, index in enumerate(names[batch.response].tolist()):
            seen.append(index)
            alone = pack(data, [index])[0]
            expected = hidden_states(decoder, None, alone)[0, alone.last[0]]
            torch.testing.assert_close(hidden[batch.row[place], batch.last[place]], expected, atol=1e-4, rtol=1e-4)
    assert sorted(seen) == [2, 3, 6, 7]
    for batch in packs:  # both sides of a pair in one pack
        members = names[batch.response].tolist()
        assert all(index ^ 1 in members for index in members)


def test_blocks_cover_all_groups_in_order(decoder, monkeypatch):
    monkeypatch.setattr(batches, "TRUNK_CACHE_BYTES", 0)
    batcher = batches.Batcher(decoder, pairs(5), 1, 1000)
    assert [list(block) for block in batcher.blocks(size=2)] == [[0, 1], [2, 3], [4]]
    assert [list(block) for block in batcher.blocks(range(0, 5, 2), size=2)] == [[0, 2], [4]]


def test_a_trunk_continues_a_shallower_one(decoder):
    data = pairs(4)
    shallow = batches.extend_trunk(decoder, data, None, 1, 1000)
    deep = batches.extend_trunk(decoder, data, shallow, 3, 1000)
    assert (shallow.layer, deep.layer) == (1, 3)
    torch.testing.assert_close(deep.hidden, run_trunk(decoder, data, 3, 1000).hidden)
    assert not torch.equal(deep.hidden, shallow.hidden)


@pytest.fixture(scope="module")
def ragged():
    """12 prompts with one to three responses each, of very different lengths."""
    prompts = [[97 + (7 * i + j) % 26 for j in range(2 + 5 * i % 17)] for i in range(12)]
    group = [i for i in range(12) for _ in range(1 + i % 3)]
    responses = [[97 + (11 * i + j) % 26 for j in range(1 + 13 * i % 29)] for i in range(len(group))]
    return Rollout(prompts, responses, group, [True] * len(group))


@pytest.mark.parametrize("budget", [1, 150, 100000])
def test_side_by_side_equals_one_row_each(decoder, ragged, budget):
    """Packing without cross-contamination: mask and positions keep conversations apart, to 2e-6 on log-probs."""
    alone = pack(ragged, token_budget=1, share_prefix=False)
    together = batches.side_by_side(pack(ragged, None, 1), budget)
    assert sum(len(batch.ids) for batch in together) < 12  # rows really are shared
    assert max(batch.ids.numel() for batch in together) <= max(budget, *(len(batch.ids[0]) for batch in together))
    expected, counts, _ = response_logprobs(decoder, None, alone)
    given, same, _ = response_logprobs(decoder, None, together)
    assert torch.equal(counts, same)
    torch.testing.assert_close(given, expected, atol=2e-6, rtol=1e-6)
    # Rotary angles are relative, so log-probs would not see positions that go on counting; other models would.
    counted = [sorted(int(p) for b in packs for p in b.positions[b.source >= 0]) for packs in (pack(ragged), together)]
    assert counted[0] == counted[1]
    trunk = run_trunk(decoder, ragged, 2)  # `source` leads to the same place of the flat table
    torch.testing.assert_close(response_logprobs(decoder, None, together, trunk)[0], expected, atol=2e-6, rtol=1e-6)


def test_a_row_without_block_mask_would_be_seen(decoder, ragged):
    """The negative control of the test above."""
    (batch,) = batches.side_by_side(pack(ragged, None, 1), 100000)
    leaky = torch.ones_like(batch.mask[0]).tril().expand_as(batch.mask)
    changed = type(batch)(**{**vars(batch), "mask": leaky})
    with torch.no_grad():
        right, wrong = (logprobs_at(decoder, hidden_states(decoder, None, b), b)[0] for b in (batch, changed))
    assert (right - wrong).abs().max() > 0.1


def test_no_row_grows_and_padding_falls(ragged):
    plain, filled = pack(ragged, None, 100000), batches.side_by_side(pack(ragged, None, 1), 100000)
    assert filled[0].ids.shape[1] == plain[0].ids.shape[1]
    real = sum(int((batch.source >= 0).sum()) for batch in plain)
    assert sum(int((batch.source >= 0).sum()) for batch in filled) == real
    assert sum(batch.ids.numel() for batch in filled) < 0.8 * sum(batch.ids.numel() for batch in plain)


def test_a_batcher_packs_where_told(decoder, ragged):
    groups = [0, 3, 4, 7]
    shapes = {}
    for packing in (False, True):
        packs, _, names = batches.Batcher(decoder, ragged, 1, 100000, packing).packs(groups)
        assert sorted(names[packs[0].response].tolist()) == [i for i in range(ragged.n) if ragged.group[i] in groups]
        shapes[packing] = len(packs[0].ids)
    assert shapes[True] < shapes[False] == 4


def test_a_conversation_longer_than_the_model_is_refused(decoder):
    long = Rollout([[97] * 2000], [[98] * 49], [0], [True])
    with pytest.raises(BadInput, match="2049 tokens, the model has 2048 positions"):
        batches.Batcher(decoder, long, 0, 1000)
