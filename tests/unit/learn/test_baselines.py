"""The baselines learn what they can see, nothing else, and treat the two sides alike."""

import numpy as np
import pytest

from plaudit.learn.baselines import Pairs, bag_of_words, length_only


def pairs(rows):
    chosen, rejected, probability = zip(*rows, strict=True)
    return Pairs(chosen, rejected, np.array(probability), np.ones(len(rows)))


def swapped(data):
    return Pairs(data.rejected, data.chosen, 1 - data.probability, data.weight)


@pytest.mark.parametrize("wanted", ["longer", "shorter"])
def test_length_learns_either_sign(wanted):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(200):
        a, b = ("x" * int(n) for n in rng.integers(1, 60, 2))
        first_wins = (len(a) > len(b)) == (wanted == "longer")
        rows.append((a, b, 0.9 if first_wins else 0.1))
    predict = length_only(pairs(rows[:150]))
    test = pairs(rows[150:])
    decided = np.array([len(a) != len(b) for a, b in zip(test.chosen, test.rejected, strict=True)])
    assert ((predict(test) > 0.5) == (test.probability > 0.5))[decided].mean() > 0.95
    np.testing.assert_allclose(predict(swapped(test)), 1 - predict(test), atol=1e-12)


def test_bag_of_words_finds_the_word_and_length_does_not():
    rng = np.random.default_rng(1)
    words = ["alpha", "beta", "gamma", "delta"]
    rows = []
    for index in range(300):
        good = " ".join([*rng.choice(words, 5), "thanks"])
        bad = " ".join([*rng.choice(words, 5), "whatever"[: len("thanks")]])
        rows.append((good, bad, 0.8) if index % 2 else (bad, good, 0.2))
    train, test = pairs(rows[:200]), pairs(rows[200:])
    right = (bag_of_words(train)(test) > 0.5) == (test.probability > 0.5)
    assert right.mean() > 0.98
    assert ((length_only(train)(test) > 0.5) == (test.probability > 0.5)).mean() < 0.7
    np.testing.assert_allclose(bag_of_words(train)(swapped(test)), 1 - bag_of_words(train)(test), atol=1e-12)


def test_a_soft_label_is_learnt_as_a_probability():
    """Every pair is the same, preferred with p = .7: without a strong penalty the fit must say about .7, not 1."""
    data = pairs([("good", "bad", 0.7)] * 400)
    assert bag_of_words(data)(data)[0] == pytest.approx(0.7, abs=0.02)
    assert length_only(data)(data)[0] == pytest.approx(0.7, abs=0.02)


def test_weights_count():
    data = Pairs(["good", "good"], ["bad", "bad"], np.array([1.0, 0.0]), np.array([300.0, 100.0]))
    assert bag_of_words(data)(data)[0] == pytest.approx(0.75, abs=0.02)


def test_nothing_to_learn_from_gives_a_half():
    blank = pairs([(" ", "  ", 1.0), ("  ", " ", 1.0)])
    np.testing.assert_array_equal(bag_of_words(blank)(blank), [0.5, 0.5])
