import numpy as np
import pytest

from plaudit.errors import BadInput
from plaudit.stats import agreement
from plaudit.stats.aggregate import Votes


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def two_raters(rng, n, prevalence, accuracy=0.85):
    truth = (rng.random(n) < prevalence).astype(int)
    answers = np.where(rng.random((2, n)) < accuracy, truth, 1 - truth)
    return Votes(np.tile(np.arange(n), 2), np.repeat([0, 1], n), answers.ravel(), 2), answers


def test_frame_trap_and_its_remedy(rng):
    """Closed forms at accuracy .85: p_e is .5 at 50/50 and .6568 at 90/10, so kappa is .49 and .2571, by prevalence alone."""
    balanced, _ = two_raters(rng, 40_000, 0.5)
    skewed, answers = two_raters(rng, 40_000, 0.9)
    assert agreement.agreement(balanced, rng, n_resamples=20).fleiss.mean == pytest.approx(0.49, abs=0.015)
    assert agreement.agreement(skewed, rng, n_resamples=20).fleiss.mean == pytest.approx(0.257, abs=0.02)
    assert agreement.cohen_kappa(*answers, rng, 20).mean == pytest.approx(0.257, abs=0.02)
    mended = agreement.symmetrised(skewed, [f"cmp_{i}" for i in range(40_000)])
    report = agreement.agreement(mended, rng, n_resamples=20)
    assert report.fleiss.mean == pytest.approx(0.49, abs=0.015)
    assert report.alpha.mean == pytest.approx(0.49, abs=0.015)
    assert report.raw.mean == pytest.approx(0.745, abs=0.01)


def test_symmetrising_is_by_id_consistent_within_an_item_and_undone_by_itself(rng):
    votes = Votes(np.repeat(np.arange(50), 2), np.tile([0, 1], 50), rng.integers(0, 3, 100), 3, rng.integers(0, 2, 100))
    ids = [f"cmp_{i}" for i in range(50)]
    once = agreement.symmetrised(votes, ids, mirror=[1, 0, 2])
    swapped = once.first != votes.first
    assert 0.2 < swapped.mean() < 0.8
    assert (swapped[::2] == swapped[1::2]).all()
    assert (once.label[votes.label == 2] == 2).all()
    twice = agreement.symmetrised(once, ids, mirror=[1, 0, 2])
    np.testing.assert_array_equal(twice.label, votes.label)
    alone = agreement.symmetrised(Votes(np.array([0, 0]), np.array([0, 1]), np.array([0, 2]), 3), [ids[7]])
    assert sorted(alone.label.tolist()) == [0, 2]


@pytest.mark.parametrize("name", ["raw", "ac1", "fleiss", "alpha"])
def test_item_bootstrap_covers(name):
    rng = np.random.default_rng(12)
    truth = {"raw": 0.745, "ac1": 0.49, "fleiss": 0.49, "alpha": 0.49}[name]
    hits = 0
    for _ in range(200):
        interval = getattr(agreement.agreement(two_raters(rng, 150, 0.5)[0], rng, n_resamples=400), name)
        hits += interval.low <= truth <= interval.high
    assert 0.90 <= hits / 200 <= 0.99


def test_guessing_is_no_agreement_and_unanimity_is_full(rng):
    guess = Votes(np.repeat(np.arange(3000), 3), np.tile(np.arange(3), 3000), rng.integers(0, 4, 9000), 4)
    report = agreement.agreement(guess, rng, level="ordinal", n_resamples=200)
    assert report.raw.mean == pytest.approx(0.25, abs=0.02)
    for coefficient in (report.ac1, report.fleiss, report.alpha):
        assert abs(coefficient.mean) < 0.03
        assert not coefficient.excludes(0.0)
    label = np.repeat(rng.integers(0, 4, 100), 3)
    same = agreement.agreement(Votes(np.repeat(np.arange(100), 3), np.tile(np.arange(3), 100), label, 4), rng)
    assert (same.raw.mean, same.ac1.mean, same.fleiss.mean, same.alpha.mean) == pytest.approx((1, 1, 1, 1))


def test_interval_alpha_reads_the_values_of_labels(rng):
    item, worker, label = np.repeat(np.arange(60), 2), np.tile([0, 1], 60), rng.integers(0, 3, 120)
    votes = Votes(item, worker, label, 3)
    scaled = agreement.agreement(votes, np.random.default_rng(0), level="interval", values=[0, 10, 20])
    plain = agreement.agreement(votes, np.random.default_rng(0), level="interval")
    assert scaled.alpha.mean == pytest.approx(plain.alpha.mean)
    stretched = agreement.agreement(votes, rng, level="interval", values=[0, 1, 100])
    assert stretched.alpha.mean != pytest.approx(plain.alpha.mean, abs=1e-3)


def test_single_votes_are_left_out_and_one_label_has_no_alpha(rng):
    votes = Votes(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0]), np.array([1, 1, 1, 1, 0]), 2)
    report = agreement.agreement(votes, rng)
    assert (report.n_items, report.n_votes) == (2, 4)
    assert report.raw.mean == 1.0
    assert report.alpha is None
    assert report.fleiss is None
    assert report.to_dict()["alpha"] is None


@pytest.mark.parametrize(
    "broken",
    [
        lambda v, r: agreement.agreement(Votes(np.arange(5), np.zeros(5, int), np.arange(5) % 2, 2), r),
        lambda v, r: agreement.agreement(v, r, level="ratio"),
        lambda v, r: agreement.agreement(v, r, level="interval", values=[1.0]),
        lambda v, r: agreement.symmetrised(v, ["a"]),
        lambda v, r: agreement.symmetrised(v, list("abcdefghij"), mirror=[0, 0]),
        lambda v, r: agreement.cohen_kappa([1, 1, 1], [1, 1, 1], r),
        lambda v, r: agreement.cohen_kappa([1, 0, 1], [1, 1], r),
    ],
)
def test_bad_questions_are_refused(broken, rng):
    with pytest.raises(BadInput):
        broken(two_raters(rng, 10, 0.5)[0], rng)
