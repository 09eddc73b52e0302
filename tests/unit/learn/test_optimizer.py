"""The schedule by hand, groups at their own rates, and an update that refuses NaN."""

import pytest
import torch
from torch import nn

from plaudit.errors import TrainingStopped
from plaudit.learn.configs import OptimizerConfig
from plaudit.learn.optimizer import AdamW, rate_factor


def parameter(value=1.0):
    return nn.Parameter(torch.tensor([value]))


def test_schedule_by_hand():
    config = OptimizerConfig(warmup_fraction=0.2)
    factors = [rate_factor(config, update, 10) for update in range(10)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    flat = OptimizerConfig(warmup_fraction=0.2, schedule="constant")
    assert [rate_factor(flat, update, 10) for update in (0, 2, 9)] == pytest.approx([1 / 3, 1, 1])
    assert rate_factor(OptimizerConfig(warmup_fraction=0.0), 0, 1) == 1


def test_ten_updates_are_torchs():
    """The oracle is torch.optim.AdamW with the same clipping and rates."""
    config = OptimizerConfig(learning_rate=0.03, head_learning_rate=0.2, weight_decay=0.1, warmup_fraction=0.3)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    mine, theirs = ([nn.Parameter(row.clone()) for row in start] for _ in range(2))
    adam = AdamW(config, mine[:1], mine[1:])
    oracle = torch.optim.AdamW(
        [{"params": theirs[:1]}, {"params": theirs[1:]}], betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1
    )
    for update in range(10):
        gradients = torch.randn(2, 5, generator=generator, dtype=torch.float64)
        for parameters in (mine, theirs):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(theirs, 1.0)
        for group, peak in zip(oracle.param_groups, (0.03, 0.2), strict=True):
            group["lr"] = peak * rate_factor(config, update, 10)
        oracle.step()
        norm, rate = adam.step(update, 10)
        assert norm == pytest.approx(float(gradients.norm()))
        assert rate == oracle.param_groups[0]["lr"]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
    assert mine[0].grad is None


def test_state_continues_where_it_was():
    config = OptimizerConfig(learning_rate=0.1)
    a, b = parameter(), parameter()
    first, second = AdamW(config, [a], []), AdamW(config, [b], [])
    a.grad = torch.tensor([0.3])
    first.step(0, 3)
    b.data.copy_(a.data)
    second.load(first.state())
    for each, adam in ((a, first), (b, second)):
        each.grad = torch.tensor([-0.7])
        adam.step(1, 3)
    assert float(a.detach()) == float(b.detach())


def test_a_parameter_without_gradient_is_left_alone():
    config = OptimizerConfig(learning_rate=0.1)
    a, b = parameter(), parameter(2.0)
    adam = AdamW(config, [a, b], [])
    a.grad = torch.tensor([1.0])
    adam.step(0, 3)
    assert float(b.detach()) == 2.0
    assert float(a.detach()) < 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_and_leaves_the_weights(bad):
    body = parameter()
    adam = AdamW(OptimizerConfig(), [body], [])
    body.grad = torch.tensor([bad])
    with pytest.raises(TrainingStopped, match="update 3 is not finite"):
        adam.step(3, 10)
    assert float(body.detach()) == 1.0
    assert adam.steps == 0
