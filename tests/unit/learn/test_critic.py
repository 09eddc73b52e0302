"""The expected score of a beginning: exact where it is a line in what the fit reads, and nothing where prefixes say nothing."""

import pytest
import torch

from plaudit.learn.critic import expected_scores

COUNTS = torch.arange(6) < torch.tensor([6, 3, 5, 6, 4, 6, 2, 6])[:, None]


def prefixes(seed=0):
    return torch.randn(COUNTS.shape, generator=torch.Generator().manual_seed(seed)) * COUNTS


def test_a_score_that_the_prefix_already_holds_is_foretold():
    """Prefix scores that never change are the final one: the fit must find the slope 1 and leave no error after the first token."""
    final = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.3, 1.2, 0.9, -2.0])
    prior, ends = expected_scores(final[:, None] * COUNTS, final, COUNTS)
    wanted = final[:, None].expand_as(prior)
    after = COUNTS & (torch.arange(6) > 0)
    assert (prior - wanted)[after].abs().max() < 0.01
    assert (ends - final).abs().max() < 0.01
    # Before the first token nothing is known but the mean (the ridge pulls it by less than this).
    assert float(prior[:, 0].std()) == pytest.approx(0.0, abs=1e-6)
    assert float(prior[0, 0]) == pytest.approx(float(final.mean()), abs=0.01)


def test_padding_gets_nothing_and_changes_nothing():
    final, wide = torch.randn(8, generator=torch.Generator().manual_seed(1)), prefixes()
    prior, ends = expected_scores(wide, final, COUNTS)
    assert prior[~COUNTS].eq(0).all()
    dirty = torch.where(COUNTS, wide, 1e3)
    again, ends_again = expected_scores(dirty, final, COUNTS)
    torch.testing.assert_close(again, prior)
    torch.testing.assert_close(ends_again, ends)


def test_equals_numpys_least_squares():
    """Golden: the same five columns by numpy's solver."""
    import numpy as np

    final, prefix = torch.randn(8, generator=torch.Generator().manual_seed(2)), prefixes(3)
    rows, goal = [], []
    for i in range(8):
        for t in range(int(COUNTS[i].sum())):
            phi = float(prefix[i, t - 1]) if t else 0.0
            rows.append([1, t / 6, phi, phi * t / 6, float(t == 0)])
            goal.append(float(final[i]))
    beta = np.linalg.lstsq(np.array(rows), np.array(goal), rcond=None)[0]
    prior, ends = expected_scores(prefix, final, COUNTS)
    assert prior[COUNTS].tolist() == pytest.approx((np.array(rows) @ beta).tolist(), abs=5e-3)
    lengths = COUNTS.sum(dim=1).tolist()
    whole = [(float(prefix[i, n - 1]), n / 6) for i, n in enumerate(lengths)]  # after the last token
    after = np.array([[1, u, phi, phi * u, 0.0] for phi, u in whole]) @ beta
    assert ends.tolist() == pytest.approx(after.tolist(), abs=5e-3)
