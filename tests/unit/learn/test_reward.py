"""The figures of a validation by hand; training itself is in tests/learning/test_reward_learning.py."""

import math

import numpy as np
import pytest

from plaudit.artifacts import PreferenceRow
from plaudit.learn import reward
from plaudit.learn.configs import RewardConfig


def rows(*probabilities):
    return [
        PreferenceRow(f"p{i}", f"c{i}", "overall", f"f{i % 2}", "valid", (), "good", "bad", p, 2.0, "annotation")
        for i, p in enumerate(probabilities)
    ]


def test_accuracy_is_against_the_majority_with_half_for_ties():
    hits, families = reward.correct(np.array([0.9, 0.5, 0.2, 0.7]), rows(1.0, 0.8, 0.6, 0.5))
    assert hits.tolist() == [1.0, 0.5, 0.0]  # the row people tied on has no majority
    assert families == ["f0", "f1", "f0"]


def test_log_loss_is_against_the_soft_label():
    truth = np.array([0.8, 0.8])
    point = reward.curve_point(np.array([0.8, 0.5]), rows(0.8, 0.8))
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert point["log_loss"] == pytest.approx((entropy + math.log(2)) / 2)
    assert point["accuracy"] == 0.75
    # turning rows round for the reliability curve changes neither
    many = rows(*[0.8] * 40)
    out = reward.figures(np.full(40, 0.8), np.full(40, 0.8), np.ones(40), ["a", "b"] * 20, many)
    assert out["log_loss"] == pytest.approx(entropy)
    assert out["ece"] == pytest.approx(0.0, abs=1e-9)
    assert {round(entry["mean_probability"], 3) for entry in out["bins"]} == {0.2, 0.8}
    assert out["accuracy"]["mean"] == 1.0
    assert truth.mean() == 0.8


def test_validation_without_held_out_rows_says_so():
    config = RewardConfig(snapshot="s", base="b")
    assert reward.validate(None, rows(1.0), [], config) == {"valid": None, "baselines": {}, "difference": {}}


def test_baselines_see_weights_only_where_asked():
    weighted, plain = (
        reward.as_pairs(rows(1.0), RewardConfig(snapshot="s", base="b", use_weights=w)) for w in (True, False)
    )
    assert weighted.weight.tolist() == [2.0]
    assert plain.weight.tolist() == [1.0]


def test_one_family_gives_no_interval_but_its_figures():
    config = RewardConfig(snapshot="s", base="b")
    one = [row for row in rows(1.0, 0.9, 0.9) if row.family == "f0"]
    out = reward.validate(np.array([0.9, 0.9]), rows(1.0, 0.9), one, config)
    assert out["difference"] == {}
    assert out["valid"]["accuracy"]["mean"] == 1.0
    assert set(out["baselines"]) == {"length_only", "bag_of_words"}
