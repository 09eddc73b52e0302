"""The group-baseline family against closed forms, named in each test: advantages, what a token counts, where the KL acts."""

import itertools
import math

import pytest
import torch

from plaudit.learn import advantages, losses

GROUP = torch.tensor([0, 0, 0, 1, 1])


def spread(*totals):
    """Rewards (N, 3) that sum to these totals, none of them on the last column, which is padding."""
    x = torch.tensor(totals, dtype=torch.float64)
    return torch.stack([x - 1, torch.ones_like(x), torch.zeros_like(x)], dim=1)


MASK = torch.tensor([[True, True, False]]).expand(5, 3)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # R - mean of the prompt's others: 1 - 4, 2 - 3.5, 6 - 1.5 and 0 - 4, 4 - 0 (Kool et al. 2019, "Buy 4 REINFORCE samples")
        ("leave_one_out", (-3.0, -1.5, 4.5, -4.0, 4.0)),
        # R - mean of the prompt's: means 3 and 2
        ("group_mean", (-2.0, -1.0, 3.0, -2.0, 2.0)),
        # over the sd with n - 1: (4 + 1 + 9) / 2 = 7 and (4 + 4) / 1 = 8, plus TRL's 1e-4
        ("group_mean_sd", tuple(d / (math.sqrt(v) + 1e-4) for d, v in ((-2, 7), (-1, 7), (3, 7), (-2, 8), (2, 8)))),
    ],
)
def test_group_advantages_by_hand(baseline, expected):
    got = advantages.group_advantages(spread(1, 2, 6, 0, 4), MASK, GROUP, baseline)
    column = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got[:, 0], column)
    torch.testing.assert_close(got[:, 1], column)  # the same for all tokens of a response
    assert got[:, 2].abs().max() == 0


def test_batch_baseline_by_hand():
    """REINFORCE++: rewards to go (1, 3), (2, 2), masked: mean 2, biased variance 1/2."""
    rewards = torch.tensor([[-2.0, 3.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, False]])
    got = advantages.group_advantages(rewards, mask, torch.tensor([0, 1]), "batch")
    unit = 1 / math.sqrt(0.5)
    torch.testing.assert_close(got, torch.tensor([[-unit, unit, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64))


def test_equal_rewards_teach_nothing():
    for baseline in ("leave_one_out", "group_mean", "group_mean_sd"):
        got = advantages.group_advantages(spread(0.7, 0.7, 0.7, 5.0, 5.0), MASK, GROUP, baseline)
        assert got.abs().max() < 1e-10, baseline


@pytest.mark.parametrize(("baseline", "factor"), [("leave_one_out", 1.0), ("group_mean", 2 / 3)])
def test_the_estimator_on_a_bandit_is_the_gradient(baseline, factor):
    """Closed form: over all triples of samples of a two-armed softmax bandit, leave-one-out is unbiased for d E[r]; the group's own mean
    gives (n-1)/n of it."""
    theta = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([1.0, 3.0], dtype=torch.float64)
    (exact,) = torch.autograd.grad((theta.softmax(0) * worth).sum(), theta)
    total = torch.zeros(2, dtype=torch.float64)
    for arms in itertools.product((0, 1), repeat=3):
        logprobs = theta.log_softmax(0)[list(arms)]
        rewards = worth[list(arms)][:, None]
        one = torch.ones(3, 1, dtype=torch.bool)
        advantage = advantages.group_advantages(rewards, one, torch.zeros(3, dtype=torch.long), baseline)
        (gradient,) = torch.autograd.grad((advantage[:, 0] * logprobs).mean(), theta)
        total += logprobs.detach().sum().exp() * gradient
    torch.testing.assert_close(total, factor * exact)


def test_k3_in_the_loss_has_the_gradient_of_the_other_kl():
    """Closed form: under samples of p the mean gradient of k3 is that of KL(q || p), and of k1 it is 0; neither is that of KL(p || q)."""
    theta = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def gradient(value):
        return torch.autograd.grad(value, theta)[0]

    def p():
        return theta.softmax(0)

    forward, reverse = gradient((q * (q / p()).log()).sum()), gradient((p() * (p() / q).log()).sum())
    k3 = gradient((p().detach() * losses.kl_k3(p().log(), q.log())).sum())
    k1 = gradient((p().detach() * losses.kl_k1(p().log(), q.log())).sum())
    torch.testing.assert_close(k3, forward)
    torch.testing.assert_close(k1, torch.zeros_like(k1))
    assert (forward - reverse).abs().max() > 0.01  # the test tells the two apart


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        # 4 + 2 tokens in two responses (the third trains nothing), max_new_tokens 8
        ("token", (1 / 6, 1 / 6)),
        ("sequence", (1 / 8, 1 / 4)),
        ("constant", (1 / 16, 1 / 16)),
    ],
)
def test_what_a_token_counts(norm, expected):
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    weights = losses.response_weights(mask, norm, 8)
    assert weights[:2].tolist() == pytest.approx(expected)
    assert torch.isfinite(weights).all()
