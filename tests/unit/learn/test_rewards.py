"""Scores come from the response's own tokens, the right one of them, whatever the batch."""

import pytest
import torch

from plaudit.learn import base_models, rewards
from plaudit.learn.nets import Decoder, ScalarHead
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
