import numpy as np
import pytest
from scipy import stats

from plaudit.errors import BadInput
from plaudit.stats import assignment

USERS = [f"user-{i}" for i in range(40_000)]


def buckets(salt):
    return np.array([assignment.bucket(salt, user) for user in USERS])


def test_buckets_are_uniform():
    counts = np.bincount(buckets("exp_a") // 100, minlength=100)
    assert len(counts) == 100
    assert stats.chisquare(counts).pvalue > 0.001


def test_salts_are_independent():
    arms = [buckets(salt) // 1000 for salt in ("exp_a", "exp_b")]
    table = np.zeros((10, 10))
    np.add.at(table, tuple(arms), 1)
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_salt_and_unit_do_not_run_together():
    assert assignment.bucket("exp1", "23") != assignment.bucket("exp12", "3")


def test_arms_are_equal_and_a_ramp_never_moves_anyone():
    ramp = [assignment.enrol(f) for f in (0, 0.01, 0.05, 0.1, 0.25, 0.5)]
    for bucket in range(assignment.N_BUCKETS):
        arms = [assignment.arm_for(bucket, step) for step in ramp]
        seen = [arm for arm in arms if arm is not None]
        assert len(set(seen)) <= 1
        assert arms[len(arms) - len(seen) :] == seen, "once in, always in"
    for step in ramp:
        arms = [assignment.arm_for(bucket, step) for bucket in range(assignment.N_BUCKETS)]
        assert arms.count("candidate") == arms.count("control") == step.buckets_per_arm
    assert ramp[-1].fraction_per_arm == 0.5


@pytest.mark.parametrize("fraction", [-0.1, 0.51, float("nan"), 0.00001])
def test_impossible_shares_are_refused(fraction):
    with pytest.raises(BadInput):
        assignment.enrol(fraction)


@pytest.mark.parametrize("bucket", [-1, 10_000])
def test_impossible_buckets_are_refused(bucket):
    with pytest.raises(BadInput):
        assignment.arm_for(bucket, assignment.enrol(0.1))
