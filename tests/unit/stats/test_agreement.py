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


def test_kappa_of_pairs_is_the_mean_of_their_kappas_weighted_by_common_items(rng):
    """Against cohen_kappa, pair by pair; the rows come shuffled, and one worker labels some items twice (no pair with oneself)."""
    answers = rng.integers(0, 3, (3, 60))
    answers[1] = np.where(rng.random(60) < 0.7, answers[0], answers[1])
    shared = {(0, 1): 60, (0, 2): 20, (1, 2): 20}
    item = np.concatenate([np.arange(60), np.arange(60), np.arange(20), np.arange(12)])
    worker = np.concatenate([np.repeat([0, 1], 60), np.repeat(2, 20), np.repeat(2, 12)])
    label = np.concatenate([answers[0], answers[1], answers[2, :20], answers[2, :12]])
    rows = rng.permutation(140 + 12)
    found = agreement.pairwise_kappa(Votes(item[rows], worker[rows], label[rows], 3), rng, n_resamples=50)
    single = agreement.pairwise_kappa(Votes(item[:140], worker[:140], label[:140], 3), rng, n_resamples=50)
    by_pair = {
        pair: agreement.cohen_kappa(answers[pair[0]][:n], answers[pair[1]][:n], rng, 20) for pair, n in shared.items()
    }
    assert {(pair.first, pair.second): pair.n_items for pair in single.pairs} == shared
    for pair in single.pairs:
        assert pair.kappa.mean == pytest.approx(by_pair[pair.first, pair.second].mean, abs=1e-12)
    expected = sum(by_pair[pair].mean * n for pair, n in shared.items()) / 100
    assert single.mean.mean == pytest.approx(expected, abs=1e-12)
    assert (single.n_pairs, single.n_undefined, single.min_shared) == (3, 0, agreement.MIN_SHARED)
    assert single.mean.low < single.mean.mean < single.mean.high
    assert {(pair.first, pair.second): pair.n_items for pair in found.pairs} == {**shared, (0, 2): 32, (1, 2): 32}


def test_kappa_of_pairs_takes_what_there_is(rng):
    item, worker = np.array([0, 0, 1, 1, 2, 2, 3]), np.array([0, 1, 0, 1, 0, 1, 2])
    few = agreement.pairwise_kappa(Votes(item, worker, np.array([0, 0, 1, 1, 0, 1, 0]), 2), rng)
    assert (few.n_pairs, few.min_shared) == (1, 2)
    assert agreement.pairwise_kappa(Votes(np.arange(4), np.arange(4), np.array([0, 1, 0, 1]), 2), rng) is None
    assert agreement.pairwise_kappa(Votes(item, worker, np.zeros(7, int), 2), rng) is None  # all the same: undefined


def test_vote_pairs_are_sampled_by_item_beyond_the_limit(rng, monkeypatch):
    monkeypatch.setattr(agreement, "MAX_VOTE_PAIRS", 100)
    votes, _ = two_raters(rng, 400, 0.5)
    found = agreement.pairwise_kappa(votes, rng, n_resamples=20)
    assert found.mean.n == found.pairs[0].n_items == 100


def grouped(rng, n_items, gap, n_workers=30):
    """Six votes an item by two groups; on a share `gap` of the items the second group holds the opposite true."""
    truth = rng.integers(0, 2, n_items)
    split = rng.random(n_items) < gap
    worker = rng.random((n_items, n_workers)).argsort(axis=1)[:, :6].ravel()
    item, group = np.repeat(np.arange(n_items), 6), worker % 2
    held = np.where((group == 1) & split[item], 1 - truth[item], truth[item])
    label = np.where(rng.random(len(item)) < 0.8, held, 1 - held)
    return Votes(item, worker, label, 2), group


def test_groups_that_differ_show_a_gap_and_those_that_do_not_show_none(rng):
    """Closed form at accuracy .8: two votes agree with probability .68 where they hold the same true and .32 where not."""
    votes, group = grouped(rng, 4000, gap=0.25)
    found = agreement.group_agreement(votes, group)
    assert found.within.mean == pytest.approx(0.68, abs=0.02)
    assert found.between.mean == pytest.approx(0.75 * 0.68 + 0.25 * 0.32, abs=0.02)
    assert found.gap.low > 0.05
    accused = sum(agreement.group_agreement(*grouped(rng, 300, gap=0.0)).gap.excludes(0.0) for _ in range(200))
    assert accused <= 20  # 5 % of 200 and three standard errors


def test_group_counts_leave_the_unknown_out_and_need_company():
    votes = Votes(np.array([0, 0, 0, 1]), np.arange(4), np.array([1, 1, 0, 0]), 2)
    np.testing.assert_array_equal(
        agreement.group_counts(votes, np.array([0, 1, 1, -1])), [[[0, 1], [1, 1]], [[0, 0], [0, 0]]]
    )
    assert agreement.group_agreement(votes, np.array([0, 1, 1, -1])) is None


def test_many_labels_go_through_in_blocks(rng, monkeypatch):
    votes = Votes(np.repeat(np.arange(300), 3), np.tile(np.arange(3), 300), rng.integers(0, 7, 900), 7)
    whole = agreement.agreement(votes, np.random.default_rng(0), level="ordinal", n_resamples=50)
    monkeypatch.setattr(agreement, "_BLOCK_CELLS", 5 * 49)
    blocks = agreement.agreement(votes, np.random.default_rng(0), level="ordinal", n_resamples=50)
    assert blocks.alpha.mean == pytest.approx(whole.alpha.mean, abs=1e-12)
    assert blocks.alpha.low == pytest.approx(whole.alpha.low, abs=1e-12)


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
        lambda v, r: agreement.agreement(Votes(v.item, v.worker, v.label, agreement.MAX_LABELS + 1), r),
        lambda v, r: agreement.group_counts(v, np.zeros(3, int)),
        lambda v, r: agreement.cohen_kappa([1, 1, 1], [1, 1, 1], r),
        lambda v, r: agreement.cohen_kappa([1, 0, 1], [1, 1], r),
    ],
)
def test_bad_questions_are_refused(broken, rng):
    with pytest.raises(BadInput):
        broken(two_raters(rng, 10, 0.5)[0], rng)
