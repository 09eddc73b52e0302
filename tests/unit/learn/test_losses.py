"""Losses: padding never leaks, and sums over micro-batches are the big batch."""

import pytest
import torch

from plaudit.learn import losses


def batch(rows=6, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    new, old, advantage, returns = torch.randn(4, rows, width, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    return new * 0.1, old * 0.1, advantage, returns, torch.arange(width) < lengths[:, None]


@pytest.mark.parametrize("micro", [1, 2, 3, 6])
def test_accumulated_gradient_is_the_whole_minibatch(micro):
    new, old, advantage, returns, mask = batch()
    n = mask.sum()

    def gradient(size):
        x = new.clone().requires_grad_()
        for rows in torch.arange(len(new)).split(size):
            policy, _ = losses.clipped_surrogate(x[rows], old[rows], advantage[rows], mask[rows], 0.05, n)
            value = losses.clipped_value_loss(x[rows], old[rows], returns[rows], mask[rows], 0.05, n)
            (policy + value + losses.nll(x[rows], mask[rows], n)).backward()
        return x.grad

    torch.testing.assert_close(gradient(micro), gradient(len(new)))
    # Negative control: a mean per micro-batch, the usual mistake, gives another gradient.
    x = new.clone().requires_grad_()
    for rows in torch.arange(len(new)).split(1):
        (losses.nll(x[rows], mask[rows], mask[rows].sum()) / len(new)).backward()
    y = new.clone().requires_grad_()
    losses.nll(y, mask, n).backward()
    assert not torch.allclose(x.grad, y.grad)


def test_padding_may_hold_anything():
    new, old, advantage, _, mask = batch()
    dirty = [torch.where(mask, x, torch.tensor(bad)) for x, bad in ((new, torch.inf), (old, -torch.inf))]
    x = dirty[0].clone().requires_grad_()
    loss, stats = losses.clipped_surrogate(x, dirty[1], advantage, mask, 0.2, mask.sum())
    loss.backward()
    clean, clean_stats = losses.clipped_surrogate(new, old, advantage, mask, 0.2, mask.sum())
    assert float(loss.detach()) == float(clean)
    assert float(stats.approx_kl) == float(clean_stats.approx_kl)
    assert torch.isfinite(x.grad).all()
    assert x.grad[~mask].abs().max() == 0


def test_first_update_has_ratio_one_and_the_plain_policy_gradient():
    new, _, advantage, _, mask = batch()
    x = new.clone().requires_grad_()
    loss, stats = losses.clipped_surrogate(x, new, advantage, mask, 0.2, mask.sum())
    loss.backward()
    assert float(stats.max_ratio_error) == 0
    assert float(stats.approx_kl) == 0
    torch.testing.assert_close(x.grad, torch.where(mask, -advantage / mask.sum(), 0.0))


def test_k3_is_finite_for_any_ratio():
    far = torch.tensor([500.0, -500.0])
    assert torch.isfinite(losses.kl_k3(far, torch.zeros(2))).all()
    assert (losses.kl_k3(far, torch.zeros(2)) > 0).all()


def test_margin_asks_for_a_larger_difference():
    chosen, rejected, p = torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0])
    assert losses.bradley_terry(chosen, rejected, p, margin=1.0) > losses.bradley_terry(chosen, rejected, p)
    assert losses.centring(torch.tensor([1.5]), torch.tensor([-1.5])) == 0
    assert losses.centring(torch.tensor([1.5]), torch.tensor([0.5])) == 4


def test_importance_weights_are_cut_above_and_1_on_padding():
    """By hand: ratios 1/2, 2 and 4 with a cap of 3; the fourth place is padding and may hold anything."""
    p = torch.log(torch.tensor([[0.1, 0.4, 0.8, 1.0]]))
    q = torch.log(torch.tensor([[0.2, 0.2, 0.2, 1.0]]))
    q[0, 3] = -torch.inf
    mask = torch.tensor([[True, True, True, False]])
    weights, ratio, cut = losses.truncated_importance(p.requires_grad_(), q, mask, 3.0)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 2.0, 3.0, 1.0]]))
    assert float(ratio) == pytest.approx(6.5 / 3)
    assert float(cut) == pytest.approx(1 / 3)
    assert not weights.requires_grad
