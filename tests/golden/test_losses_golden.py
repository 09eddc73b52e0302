"""Losses and advantages against numbers that come from elsewhere: another implementation or a closed form, named in each test."""

import math

import pytest
import torch

from plaudit.learn import advantages, losses


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_gae_tianshou():
    """Three episodes of four steps; figures of tianshou's test_gae (test/base/test_returns.py), gamma .99, lambda .95; they are returns A + V."""
    rewards = tensor(101, 102, 103, 200, 104, 105, 106, 201, 107, 108, 109, 202).view(3, 4)
    next_values = tensor(2, 3, 4, -1, 5, 6, 7, -2, 8, 9, 10, -3)
    values = next_values.roll(1).view(3, 4)
    # A value of one step is the next value of the step before it; the first step of an episode has the last one's, as tianshou does.
    expected = tensor(
        454.8344, 376.1143, 291.298, 200.0, 464.561, 383.1085, 295.387, 201.0, 474.2876, 390.1027, 299.476, 202.0
    ).view(3, 4)
    got, returns = advantages.gae(rewards, values, torch.ones(3, 4, dtype=torch.bool), gamma=0.99, lam=0.95)
    torch.testing.assert_close(returns, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(got, expected - values, atol=1e-3, rtol=0)


def test_gae_with_lambda_one_is_return_minus_value():
    """Closed form: lambda = 1 telescopes to sum of discounted rewards (plus the discounted bootstrap) minus V."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    bootstrap = torch.randn(5, generator=generator, dtype=torch.float64)
    got, _ = advantages.gae(rewards, values, torch.ones(5, 6, dtype=torch.bool), 0.9, 1.0, bootstrap)
    discounts = 0.9 ** torch.arange(7, dtype=torch.float64)
    expected = torch.stack(
        [(rewards[:, t:] * discounts[: 6 - t]).sum(1) + bootstrap * discounts[6 - t] - values[:, t] for t in range(6)],
        dim=1,
    )
    torch.testing.assert_close(got, expected)


def test_whiten_by_hand():
    """Closed form: 1, 2, 3, 4 have mean 2.5 and biased variance 1.25; the masked 100 counts nowhere."""
    x = tensor(1, 2, 100, 3, 4).view(1, 5)
    mask = torch.tensor([[True, True, False, True, True]])
    unit = 1 / math.sqrt(1.25)
    shifted = tensor(-1.5 * unit, -0.5 * unit, 0, 0.5 * unit, 1.5 * unit).view(1, 5)
    torch.testing.assert_close(advantages.whiten(x, mask, shift_mean=True), shifted)
    kept = torch.where(mask, shifted + 2.5, 0.0)
    torch.testing.assert_close(advantages.whiten(x, mask, shift_mean=False), kept)


def test_dpo_first_step_loss_is_ln_2():
    """Closed form: with policy = reference both log-ratios are 0 and -p log s(0) - (1-p) log s(0) = ln 2, whatever p."""
    zero = tensor(0, 0, 0)
    expected = torch.full((3,), 0.6931471805599453)
    torch.testing.assert_close(losses.dpo(zero, zero, 0.1, tensor(1.0, 0.5, 0.8)).float(), expected)


def test_dpo_by_hand():
    """Rafailov et al. 2023, equation 7: at D = ln 3, s(D) = 3/4; conservative DPO with e = 1/4 there costs the entropy of 3/4."""
    chosen, rejected = tensor(2 * math.log(3), math.log(3)), tensor(-8 * math.log(3), -9 * math.log(3))
    hard = losses.dpo(chosen, rejected, 0.1)
    torch.testing.assert_close(hard.float(), torch.full((2,), math.log(4 / 3)))
    soft = losses.dpo(chosen, rejected, 0.1, tensor(0.75, 0.75))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(soft.float(), torch.full((2,), entropy))
    # The gradient of the policy's log-probs is -beta (p - s(D)): 0 where D is the label's logit (Rafailov et al., below equation 7).
    x = chosen.clone().requires_grad_()
    losses.dpo(x, rejected, 0.1, tensor(0.75, 1.0)).sum().backward()
    torch.testing.assert_close(x.grad, tensor(0.0, -0.1 * 0.25), atol=1e-7, rtol=1e-5)


def test_ipo_by_hand():
    """Azar et al. 2023, equation 17: the wanted gap is 1/(2 tau) = 5 for tau .1; for labels of .75 it is half of that."""
    chosen, rejected = tensor(5, 0, 1, 2.5), tensor(0, 0, 3, 0)
    got = losses.ipo(chosen, rejected, 0.1, tensor(1.0, 1.0, 1.0, 0.75))
    torch.testing.assert_close(got.float(), torch.tensor([0.0, 25.0, 49.0, 0.0]))


def test_kto_by_hand():
    """Ethayarajh et al. 2024, section 4, the loss w - v: s(ln 3) = 3/4, so a gain of ln 3 costs w+ / 4 when desirable, 3 w- / 4 when not."""
    ratio = torch.full((3,), 10 * math.log(3) + 2)
    got = losses.kto(ratio, 2.0, tensor(1.0, 0.0, 0.5), 0.1, desirable_weight=2.0, undesirable_weight=3.0)
    torch.testing.assert_close(got.float(), torch.tensor([2 / 4, 9 / 4, (2 / 4 + 9 / 4) / 2]))
    start = losses.kto(torch.zeros(2), 0.0, tensor(1.0, 0.0), 0.1)  # policy = reference: half of the weight
    torch.testing.assert_close(start.float(), torch.tensor([0.5, 0.5]))


def test_kto_reference_point_is_clamped_and_carries_no_gradient():
    """Ethayarajh et al. 2024, section 4."""
    x = tensor(3, -1, 4).requires_grad_()
    z = losses.kto_reference_point(x)
    assert float(z) == 2.0
    assert not z.requires_grad
    assert float(losses.kto_reference_point(tensor(-3, 1))) == 0.0


def test_adaptive_kl_of_ziegler():
    """coef *= 1 + clip(KL/target - 1, -.2, .2) n/horizon, by hand: inside, above and below the clip."""
    assert advantages.adaptive_kl_coef(0.2, kl=6.6, target=6.0, n=256, horizon=10_000) == pytest.approx(0.2 * 1.00256)
    assert advantages.adaptive_kl_coef(0.2, kl=60.0, target=6.0, n=256, horizon=10_000) == pytest.approx(0.2 * 1.00512)
    assert advantages.adaptive_kl_coef(0.2, kl=-1.0, target=6.0, n=256, horizon=10_000) == pytest.approx(0.2 * 0.99488)


def test_clipped_surrogate_by_hand():
    """Schulman et al. 2017, figure 1: ratio 2 with A = 1 counts as 1.2, with A = -1 as 2; ratio 1/2 with A = 1 as 1/2, with A = -1 as .8."""
    new = tensor(math.log(2), math.log(2), math.log(0.5), math.log(0.5)).view(1, 4)
    advantage = tensor(1, -1, 1, -1).view(1, 4)
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss, stats = losses.clipped_surrogate(new, torch.zeros_like(new), advantage, mask, 0.2, denominator=4)
    assert float(loss) == pytest.approx(-(1.2 - 2 + 0.5 - 0.8) / 4)
    assert float(stats.clipped) == 2
    assert float(stats.ratio) == pytest.approx(5.0)
    # k3 of old against new: r - 1 - log r
    assert float(stats.approx_kl) == pytest.approx(2 * (1 - math.log(2)) + 2 * (-0.5 + math.log(2)), rel=1e-6)


def test_dual_clip_by_hand():
    """Ye et al. 2020, equation 5: ratio 5 with A = -1 is bounded at c2 = 3; positive advantages do not change."""
    new = tensor(math.log(5), math.log(5)).view(1, 2)
    advantage = tensor(-1, 1).view(1, 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, _ = losses.clipped_surrogate(new, torch.zeros_like(new), advantage, mask, 0.2, 1, dual_clip=3.0)
    assert float(loss) == pytest.approx(3 - 1.2)


def test_clipped_value_loss_by_hand():
    """old 0, new 1, clip .2: towards a return of 2 the clipped error (1.8) is the worse; from a return of 0 the unclipped (1) is."""
    values, old = tensor(1, 1).view(1, 2), tensor(0, 0).view(1, 2)
    loss = losses.clipped_value_loss(
        values, old, tensor(2, 0).view(1, 2), torch.ones(1, 2, dtype=torch.bool), 0.2, denominator=2
    )
    assert float(loss) == pytest.approx(0.5 * (1.8**2 + 1.0) / 2)


def test_kl_estimators_of_a_bernoulli():
    """Closed form: under p = (.7, .3) against q = (.4, .6) both k1 and k3 average to KL(p || q)."""
    p, q = tensor(0.7, 0.3), tensor(0.4, 0.6)
    exact = float((p * (p / q).log()).sum())
    assert float((p * losses.kl_k1(p.log(), q.log())).sum()) == pytest.approx(exact)
    assert float((p * losses.kl_k3(p.log(), q.log())).sum()) == pytest.approx(exact)
    assert losses.kl_k1(p.log(), q.log()).min() < 0 <= losses.kl_k3(p.log(), q.log()).min()


def test_bradley_terry_soft_labels():
    """Closed form: the minimum over D lies at logit(p) and is the entropy of p; p = 1 at D = 0 is ln 2."""
    p = tensor(0.8)
    at_optimum = losses.bradley_terry(torch.log(p / (1 - p)), torch.zeros(1), p)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert float(at_optimum) == pytest.approx(entropy, rel=1e-6)
    assert float(losses.bradley_terry(tensor(3.0), tensor(3.0), tensor(1.0))) == pytest.approx(math.log(2), rel=1e-6)
    # swapping the sides and the label is the same statement
    assert float(losses.bradley_terry(tensor(2.0), tensor(0.5), tensor(0.7))) == pytest.approx(
        float(losses.bradley_terry(tensor(0.5), tensor(2.0), tensor(0.3)))
    )
