"""Token rewards, GAE over masks, running moments."""

import pytest
import torch

from plaudit.learn import advantages


def test_score_lands_on_the_last_real_token():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    kl = torch.tensor([[0.1, 0.2, 0.3, 9.0], [0.4, 9.0, 9.0, 9.0]])
    got = advantages.token_rewards(torch.tensor([2.0, -1.0]), kl, mask, kl_coef=0.5)
    torch.testing.assert_close(got, torch.tensor([[-0.05, -0.1, 1.85, 0.0], [-1.2, 0.0, 0.0, 0.0]]))


def test_gae_carries_over_masked_positions():
    """A row with a hole (a tool's tokens between two turns) has the advantages of the row without it."""
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    values = torch.tensor([[0.5, 0.25, 0.125]])
    plain, plain_returns = advantages.gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.9, 0.8)
    holes = torch.tensor([[True, False, True, False, True, False]])
    spread_rewards, spread_values = torch.full((2, 1, 6), 77.0)
    spread_rewards[holes], spread_values[holes] = rewards[0], values[0]
    got, returns = advantages.gae(spread_rewards, spread_values, holes, 0.9, 0.8)
    torch.testing.assert_close(got[holes], plain[0])
    torch.testing.assert_close(returns[holes], plain_returns[0])
    assert got[~holes].abs().max() == 0
    assert returns[~holes].abs().max() == 0


def test_bootstrap_counts_as_the_value_after_the_last_token():
    rewards, values = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    mask = torch.tensor([[True, False]])
    got, _ = advantages.gae(rewards, values, mask, 0.9, 1.0, bootstrap=torch.tensor([2.0]))
    assert float(got[0, 0]) == pytest.approx(1 + 0.9 * 2)


def test_running_moments_in_parts_are_those_of_the_whole():
    x = torch.randn(37, generator=torch.Generator().manual_seed(1)) * 3 + 5
    moments = advantages.RunningMoments()
    for part in x.split(8):
        moments = moments.update(part)
    assert moments.mean == pytest.approx(float(x.mean()), rel=1e-6)
    assert moments.sd == pytest.approx(float(x.std()), rel=1e-6)
    assert advantages.RunningMoments().update(torch.ones(1)).sd == 1.0


def test_explained_variance():
    returns = torch.tensor([[1.0, 2.0, 3.0, 50.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert advantages.explained_variance(returns, returns, mask) == 1.0
    assert advantages.explained_variance(torch.full_like(returns, 7.0), returns, mask) == pytest.approx(0.0)
    assert advantages.explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert advantages.explained_variance(returns, torch.ones_like(returns), mask) == 0.0
