import numpy as np
import pytest
from scipy import special

from plaudit.errors import BadInput
from plaudit.stats import group_sequential


def test_one_look_is_a_z_test():
    assert group_sequential.crossing([1.96]) == pytest.approx(2 * special.ndtr(-1.96))
    assert group_sequential.obrien_fleming(1) == pytest.approx([1.959964], abs=1e-5)
    assert group_sequential.crossing([1.96], drift=2.8) == pytest.approx(
        special.ndtr(2.8 - 1.96) + special.ndtr(-2.8 - 1.96)
    )


def test_crossing_is_what_random_walks_do():
    """Three looks with a drift, against 200,000 simulated walks."""
    rng = np.random.default_rng(31)
    walk = np.cumsum(rng.normal(1.5 / np.sqrt(3), 1, (200_000, 3)), axis=1) / np.sqrt([1, 2, 3])
    bounds = [3.0, 2.4, 2.0]
    share = (np.abs(walk) >= bounds).any(axis=1).mean()
    assert group_sequential.crossing(bounds, drift=1.5) == pytest.approx(share, abs=0.004)
    one_sided = (walk >= bounds).any(axis=1).mean()
    assert group_sequential.crossing(bounds, drift=1.5, two_sided=False) == pytest.approx(one_sided, abs=0.004)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: group_sequential.crossing([]),
        lambda: group_sequential.obrien_fleming(0),
        lambda: group_sequential.obrien_fleming(3, 0.7),
    ],
)
def test_impossible_questions_are_refused(broken):
    with pytest.raises(BadInput):
        broken()
