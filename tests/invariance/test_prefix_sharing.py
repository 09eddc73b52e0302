"""The same numbers however responses are laid out: prefix shared or not, any padding, any order, with the trunk cached or not."""

from __future__ import annotations

import random

import pytest
import torch

from plaudit.learn import base_models
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.tokens import Rollout, hidden_states, logprobs_at, pack, response_logprobs, run_trunk


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return Decoder.load(base_models.prepare("tiny", tmp_path_factory.mktemp("sharing")), torch.float32)


@pytest.fixture(scope="module")
def adapter(decoder):
    adapter = Adapter(decoder.config, 4, 8, first_layer=2, seed=1)
    generator = torch.Generator().manual_seed(2)
    for b in adapter.b.values():
        b.data.normal_(0, 0.05, generator=generator)
    return adapter


@pytest.fixture(scope="module")
def rollout():
    rng = random.Random(7)

    def text(low, high):
        return [rng.randrange(32, 127) for _ in range(rng.randrange(low, high))]

    return Rollout(
        [text(3, 30) for _ in range(6)], [text(1, 25) for _ in range(24)], [i % 6 for i in range(24)], [True] * 24
    )


def test_prefix_sharing_on_equals_off(decoder, adapter, rollout):
    on = response_logprobs(decoder, adapter, pack(rollout), want_entropy=True)
    off = response_logprobs(decoder, adapter, pack(rollout, share_prefix=False), want_entropy=True)
    assert torch.equal(on[1], off[1])
    # 2e-6 on log-probs of some nats: fp32 has 24 bits.
    torch.testing.assert_close(on[0], off[0], atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(on[2], off[2], atol=5e-6, rtol=2e-6)


def test_a_layout_that_leaks_between_responses_would_be_seen(decoder, rollout):
    """The negative control: with a plain causal mask over the shared row the numbers are far off."""
    (batch, *_) = pack(rollout)
    leaky = torch.ones_like(batch.mask[0]).tril().expand_as(batch.mask)
    changed = type(batch)(**{**vars(batch), "mask": leaky})
    with torch.no_grad():
        right, wrong = (logprobs_at(decoder, hidden_states(decoder, None, b), b)[0] for b in (batch, changed))
    assert (right - wrong).abs().max() > 0.1


@pytest.fixture(scope="module")
def alike(rollout):
    """The same responses, all prompts beginning with eleven tokens."""
    start = [258, *range(40, 50)]
    return Rollout(
        [[*start, *ids] for ids in rollout.prompt_ids], rollout.response_ids, rollout.group, rollout.finished
    )


@pytest.mark.parametrize("responses", [None, [3, 4, 9, 22]])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_beginning_that_all_prompts_share_is_run_once_a_row_and_changes_nothing(
    decoder, adapter, alike, responses, layer
):
    plain = response_logprobs(decoder, adapter, pack(alike, responses, share_prefix=False))
    trunk = run_trunk(decoder, alike, layer, 150, common=11) if layer else None
    packs = pack(alike, responses, 300, common=11)
    shared = response_logprobs(decoder, adapter, packs, trunk)
    assert torch.equal(plain[1], shared[1])
    torch.testing.assert_close(plain[0], shared[0], atol=2e-6, rtol=1e-6)
    real = sum(int((batch.source >= 0).sum()) for batch in packs)
    groups = {alike.group[i] for i in responses or range(24)}
    rows = sum(len(batch.ids) for batch in packs)
    assert rows < len(groups)
    members = responses or range(24)
    own = sum(len(alike.prompt_ids[g]) - 11 for g in groups) + sum(len(alike.response_ids[i]) for i in members)
    assert real == own + 11 * rows


def test_groups_behind_a_shared_beginning_do_not_see_each_other(decoder, alike):
    """What a group's answers are given depends on that group alone: another neighbour, the same numbers."""
    other = [*alike.response_ids[:23], [35, 36, 37]]
    changed = Rollout([*alike.prompt_ids[:5], [*alike.prompt_ids[5], 90]], other, alike.group, alike.finished)
    before, after = (response_logprobs(decoder, None, pack(data, common=11))[0] for data in (alike, changed))
    mine = [i for i in range(24) if alike.group[i] != 5]
    width = min(before.shape[1], after.shape[1])
    torch.testing.assert_close(before[mine, :width], after[mine, :width], atol=2e-6, rtol=1e-6)
    assert (before[5, 0] - after[5, 0]).abs() > 1e-3


@pytest.mark.parametrize("budget", [1, 60, 200, 100000])
def test_checklist_1_padding_does_not_matter(decoder, adapter, rollout, budget):
    expected = response_logprobs(decoder, adapter, pack(rollout))[0]
    given = response_logprobs(decoder, adapter, pack(rollout, token_budget=budget))[0]
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)


def test_order_does_not_matter(decoder, adapter, rollout):
    order = random.Random(1).sample(range(24), 24)
    shuffled = Rollout(
        rollout.prompt_ids,
        [rollout.response_ids[i] for i in order],
        [rollout.group[i] for i in order],
        [True] * 24,
    )
    expected = response_logprobs(decoder, adapter, pack(rollout))[0]
    given = response_logprobs(decoder, adapter, pack(shuffled))[0]
    torch.testing.assert_close(given, expected[order], atol=1e-5, rtol=0)


def test_the_cached_trunk_equals_running_through(decoder, adapter, rollout):
    packs = pack(rollout, token_budget=200)
    expected = response_logprobs(decoder, adapter, packs)[0]
    for layer in (0, 1, 2):
        trunk = run_trunk(decoder, rollout, layer, token_budget=300)
        torch.testing.assert_close(response_logprobs(decoder, adapter, packs, trunk)[0], expected, atol=2e-6, rtol=1e-6)


def test_checklist_6_the_training_graph_repeats_the_old_log_probs_exactly(decoder, adapter, rollout):
    """With gradients on or off, and with the adapter at its identity against no adapter: bit for bit."""
    packs, trunk = pack(rollout, token_budget=300), run_trunk(decoder, rollout, 2)
    fresh = Adapter(decoder.config, 4, 8, first_layer=2)
    old = response_logprobs(decoder, fresh, packs, trunk)[0]
    assert torch.equal(old, response_logprobs(decoder, None, packs, trunk)[0])
    for batch in packs:
        values, _ = logprobs_at(decoder, hidden_states(decoder, fresh, batch, trunk), batch)
        assert values.requires_grad
        assert torch.equal(values.detach(), old[batch.response, : values.shape[1]])


def test_checklist_12_micro_batches_do_not_change_the_gradient(decoder, adapter, rollout):
    gradients = []
    for budget in (80, 100000):
        adapter.zero_grad()
        for batch in pack(rollout, token_budget=budget):
            logprobs_at(decoder, hidden_states(decoder, adapter, batch), batch)[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.parameters()]))
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)
