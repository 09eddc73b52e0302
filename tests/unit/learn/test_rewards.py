"""Scores come from the response's own tokens, the right one of them, whatever the batch."""

import pytest
import torch

from plaudit.learn import base_models, rewards
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.tokens import Rollout, hidden_states, pack, run_trunk


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return Decoder.load(base_models.prepare("tiny", tmp_path_factory.mktemp("bases")), torch.float32)


def model(decoder, pooling="last", read_layer=4):
    return rewards.RewardModel(decoder, None, ScalarHead(64, seed=1), pooling, 0, read_layer=read_layer)


ROWS = Rollout([[97, 98, 99], [100]], [[101, 102, 256], [103], [104, 105, 106, 107]], [0, 0, 1], [True, False, False])


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("read_layer", [2, 4])
def test_scores_do_not_depend_on_the_batch(decoder, pooling, read_layer):
    scorer = model(decoder, pooling, read_layer)
    together = rewards.score_responses(scorer, pack(ROWS), None)
    for index in range(3):
        alone = rewards.score_responses(scorer, pack(ROWS, [index]), None)[index]
        assert float(alone) == pytest.approx(float(together[index]), abs=1e-5)
    trunk = run_trunk(decoder, ROWS, 1)
    deeper = rewards.RewardModel(decoder, None, scorer.head, pooling, 1, read_layer=read_layer)
    torch.testing.assert_close(rewards.score_responses(deeper, pack(ROWS), trunk), together, atol=1e-5, rtol=0)


def test_last_reads_the_last_real_token_and_mean_reads_all(decoder):
    batch = pack(ROWS, [0])[0]
    hidden = hidden_states(decoder, None, batch)[0]  # (T, D): three prompt tokens, then the response
    head = ScalarHead(64, seed=1)
    scores = {how: float(rewards.pack_scores(model(decoder, how), batch, None).detach()) for how in ("last", "mean")}
    states = hidden / hidden.pow(2).mean(-1, keepdim=True).sqrt()
    by_hand = (states @ head.weight + head.bias).detach()
    assert scores["last"] == pytest.approx(float(by_hand[5]), abs=1e-4)
    assert scores["mean"] == pytest.approx(float(by_hand[3:6].mean()), abs=1e-4)


def test_an_early_layer_is_another_model(decoder):
    early, late = (rewards.score_responses(model(decoder, "last", depth), pack(ROWS), None) for depth in (2, 4))
    assert (early - late).abs().max() > 1e-2


def test_values_detach_from_the_policy(decoder):
    head = ScalarHead(64, seed=2)
    batch = pack(ROWS, [0])[0]
    hidden = hidden_states(decoder, None, batch).detach().requires_grad_()
    rewards.token_values(head, hidden, batch, detach=True).sum().backward()
    assert hidden.grad is None
    assert head.weight.grad is not None
    rewards.token_values(head, hidden, batch, detach=False).sum().backward()
    assert hidden.grad is not None
    # the states that predict tokens 0, 1, 2 lie at columns 2, 3, 4
    assert hidden.grad[0].abs().sum(-1).nonzero().flatten().tolist() == [2, 3, 4]


@pytest.mark.parametrize("pooling", ["last", "mean", "both"])
def test_a_prefix_scores_what_the_cut_response_would(decoder, pooling):
    scorer = rewards.RewardModel(
        decoder, None, ScalarHead(rewards.head_width(pooling, 64), seed=1), pooling, 0, read_layer=2
    )
    prefix = rewards.prefix_scores(scorer, pack(ROWS), None)
    assert prefix.shape == (3, 4)
    for index, ids in enumerate(ROWS.response_ids):
        prompt = ROWS.prompt_ids[ROWS.group[index]]
        for n in range(1, len(ids) + 1):
            cut = Rollout([prompt], [ids[:n]], [0], [False])
            alone = rewards.score_responses(scorer, pack(cut), None)[0]
            assert float(prefix[index, n - 1]) == pytest.approx(float(alone), abs=1e-5)
        assert prefix[index, len(ids) :].eq(0).all()


def test_an_ensembles_prefixes_are_its_members_mean(decoder):
    members = tuple(
        rewards.RewardModel(decoder, None, ScalarHead(64, seed=seed), "last", 0, read_layer=2) for seed in (1, 2)
    )
    whole = rewards.RewardModel(decoder, None, members[0].head, "last", 0, read_layer=2, members=members)
    each = torch.stack([rewards.prefix_scores(member, pack(ROWS), None) for member in members])
    torch.testing.assert_close(rewards.prefix_scores(whole, pack(ROWS), None), each.mean(dim=0))


def ensemble(decoder, adapters):
    heads = [ScalarHead(64, seed=seed) for seed in (1, 2)]
    members = tuple(
        rewards.RewardModel(decoder, adapter, head, "last", 1, sd, read_layer=4)
        for adapter, head, sd in zip(adapters, heads, (2.0, 0.5), strict=True)
    )
    return rewards.RewardModel(decoder, adapters[0], heads[0], "last", 1, 1.5, read_layer=4, members=members)


def adapter(decoder, seed):
    found = Adapter(decoder.config, 4, 8, 1, seed=seed)
    for b in found.b.values():
        b.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return found


def test_an_ensemble_scores_the_mean_of_its_members(decoder):
    whole = ensemble(decoder, [adapter(decoder, 1), adapter(decoder, 2)])
    trunk = run_trunk(decoder, ROWS, 1)
    alone = torch.stack([rewards.score_responses(member, pack(ROWS), trunk) for member in whole.members])
    torch.testing.assert_close(rewards.score_responses(whole, pack(ROWS), trunk), alone.mean(dim=0))
    each = rewards.member_scores(whole, pack(ROWS), trunk)
    torch.testing.assert_close(each, alone / torch.tensor([[2.0], [0.5]]))  # in units of each one's own spread
    one = rewards.member_scores(whole.members[1], pack(ROWS), trunk)
    torch.testing.assert_close(one, each[1:])


def test_members_on_one_body_read_its_states_once(decoder, monkeypatch):
    shared = adapter(decoder, 1)
    calls = []
    read = rewards.pooled
    monkeypatch.setattr(rewards, "pooled", lambda *given: calls.append(given) or read(*given))
    rewards.score_responses(ensemble(decoder, [shared, shared]), pack(ROWS), None)
    assert len(calls) == len(pack(ROWS))


def test_scores_by_criterion_are_the_heads_own(decoder):
    heads = {"kind": ScalarHead(64, seed=1), "brief": ScalarHead(64, seed=2)}
    whole = rewards.RewardModel(decoder, None, ScalarHead(64, seed=3), "last", 0, read_layer=4, heads=heads)
    found = rewards.criterion_scores(whole, pack(ROWS), None)
    for name, head in heads.items():
        alone = rewards.RewardModel(decoder, None, head, "last", 0, read_layer=4)
        assert torch.equal(found[name], rewards.score_responses(alone, pack(ROWS), None))
    assert rewards.criterion_scores(model(decoder), pack(ROWS), None) == {}
