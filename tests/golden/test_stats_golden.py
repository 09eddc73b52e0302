"""Published figures and other implementations' results for plaudit.stats; `stats.json` names the source of each."""

import json
from pathlib import Path

import numpy as np
import pytest

from plaudit.loop import label_files
from plaudit.stats import aggregate, agreement, drift, group_sequential, intervals, sequential, user_metrics

GOLDEN = json.loads((Path(__file__).parent / "stats.json").read_text(encoding="utf-8"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_plain_dawid_skene_reproduces_the_1979_paper():
    golden = GOLDEN["dawid_skene_1979"]
    patient, observer, answer = np.array(golden["observations_patient_observer_class"]).T - 1
    votes = aggregate.Votes(patient, observer, answer, 4)
    result = aggregate.dawid_skene(votes, prior=np.zeros((4, 4)), tolerance=1e-12, max_iterations=1000)
    assert result.log_likelihood == pytest.approx(golden["loglik"], abs=1e-6)
    assert (result.posterior.argmax(axis=1) + 1).tolist() == golden["hard"]
    np.testing.assert_allclose(result.posterior.mean(axis=0), golden["marginals"], atol=6e-5)
    for number in range(5):
        np.testing.assert_allclose(result.confusion[number], golden[f"obs{number + 1}"], atol=0.0051)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_with_missing_ratings_matches_krippendorff(level, rng):
    golden = GOLDEN["krippendorff_alpha"]
    rows = [
        (unit, coder, value - 1)
        for coder, row in enumerate(golden["matrix_coder_by_unit"])
        for unit, value in enumerate(row)
        if value is not None
    ]
    unit, coder, value = np.array(rows).T
    report = agreement.agreement(aggregate.Votes(unit, coder, value, 4), rng, level=level, n_resamples=50)
    assert report.alpha.mean == pytest.approx(golden[level], abs=1e-12)


def test_two_rater_coefficients_match_irrcac(rng):
    golden = GOLDEN["gwet_irrcac"]
    cells = [(a, b) for a, row in enumerate(golden["table"]) for b, n in enumerate(row) for _ in range(n)]
    first, second = np.array(cells).T
    n = len(cells)
    votes = aggregate.Votes(np.tile(np.arange(n), 2), np.repeat([0, 1], n), np.concatenate([first, second]), 3)
    report = agreement.agreement(votes, rng, n_resamples=50)
    assert report.raw.mean == pytest.approx(golden["pa"], abs=1e-9)
    assert report.ac1.mean == pytest.approx(golden["ac1"], abs=1e-7)
    assert report.fleiss.mean == pytest.approx(golden["scott"], abs=1e-7)
    assert report.alpha.mean == pytest.approx(golden["alpha"], abs=1e-7)
    assert agreement.cohen_kappa(first, second, rng, 50).mean == pytest.approx(golden["cohen"], abs=1e-7)
    assert agreement.pairwise_kappa(votes, rng, n_resamples=50).mean.mean == pytest.approx(golden["cohen"], abs=1e-7)


def test_a_file_of_krippendorffs_ratings_gives_his_alphas(tmp_path):
    golden = GOLDEN["krippendorff_alpha"]
    lines = [
        f"{unit},{coder},{value}\n"
        for coder, row in enumerate(golden["matrix_coder_by_unit"])
        for unit, value in enumerate(row)
        if value is not None
    ]
    (tmp_path / "ratings.csv").write_text("item,worker,label\n" + "".join(lines))
    report = label_files.agreement_file(tmp_path / "ratings.csv")
    for level in ("nominal", "ordinal", "interval"):
        assert report.alpha[level].mean == pytest.approx(golden[level], abs=1e-12)


def test_confidence_sequence_matches_confseq():
    golden = GOLDEN["confseq"]["two_sided"]
    rho = sequential.tuned_rho(100)
    assert 1 / rho**2 == pytest.approx(golden["rho"], abs=1e-5)
    # A unit-variance mean over n = 100 users: half-width times n is the boundary of the sum.
    assert 100 * sequential.half_width(0.1, 100, rho) == pytest.approx(golden["bound"], abs=1e-5)


def test_one_sided_sequence_is_a_tight_upper_bound_of_the_exact_one():
    exact = GOLDEN["confseq"]["one_sided_bound"]
    bound = 100 * float(sequential.half_width(0.1, 100, sequential.tuned_rho(100, one_sided=True), one_sided=True))
    assert exact < bound < 1.01 * exact


def test_cookie_cats_ratio_check_and_retention():
    golden = GOLDEN["cookie_cats"]
    users = [golden["gate_30"][0], golden["gate_40"][0]]
    back = [golden["gate_30"][1], golden["gate_40"][1]]
    check = sequential.sample_ratio(users, [0.5, 0.5])
    assert check.chi_square == pytest.approx(golden["srm_chi2"], abs=1e-4)
    assert check.chi_square_p == pytest.approx(golden["srm_p"], abs=1e-8)
    arms = [np.repeat([1.0, 0.0], [b, n - b]) for n, b in zip(users, back, strict=True)]
    gap = user_metrics.difference(*arms)
    # Ours does not pool the variance, so z differs in the fourth digit.
    assert -gap.mean / gap.se == pytest.approx(golden["z"], rel=1e-3)


@pytest.mark.parametrize("case", GOLDEN["wilson"]["cases"], ids=lambda c: f"{c['successes']}/{c['n']}")
def test_wilson_matches_newcombe(case):
    interval = intervals.wilson(case["successes"], case["n"])
    assert (interval.low, interval.high) == pytest.approx((case["low"], case["high"]), abs=5.1e-5)


@pytest.mark.parametrize("h", [4, 5])
def test_cusum_run_lengths_match_montgomery(h):
    golden = GOLDEN["cusum_run_length"]
    ours = [drift.cusum_run_length(0.5, h, shift) for shift in golden["shift"]]
    assert ours == pytest.approx(golden[f"h{h}"], rel=6e-3)


def test_group_sequential_matches_gsdesign():
    golden = GOLDEN["group_sequential"]
    for looks, type_1 in golden["repeated_1_96_one_sided"].items():
        assert group_sequential.crossing([1.96] * int(looks), two_sided=False) == pytest.approx(type_1, abs=6e-4)
    bounds = group_sequential.obrien_fleming(4)
    assert bounds == pytest.approx(golden["obrien_fleming_4"], abs=6e-3)
    assert group_sequential.inflation(group_sequential.obrien_fleming(5)) == pytest.approx(
        golden["inflation_k5_power_80"], abs=6e-4
    )


@pytest.mark.slow
def test_group_sequential_matches_gsdesign_at_twenty_looks():
    bounds = group_sequential.obrien_fleming(20)
    assert group_sequential.inflation(bounds, power=0.9) == pytest.approx(
        GOLDEN["group_sequential"]["inflation_k20_power_90"], abs=6e-4
    )
