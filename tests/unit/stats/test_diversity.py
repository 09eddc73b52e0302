import math

import numpy as np
import pytest

from plaudit.errors import BadInput
from plaudit.stats import diversity


def test_distinct_n_by_hand():
    texts = [["a", "b", "a", "b"], ["a", "b", "c"]]
    assert diversity.distinct_n(texts, 1) == pytest.approx(3 / 7)
    assert diversity.distinct_n(texts, 2) == pytest.approx(3 / 5)  # ab ba ab | ab bc
    assert diversity.distinct_n([["a"]], 2) == 0.0


def test_repetition_fraction_by_hand():
    assert diversity.repetition_fraction(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert diversity.repetition_fraction([7] * 103) == pytest.approx(0.99)
    assert diversity.repetition_fraction(["a", "b", "c"]) == 0.0
    assert diversity.repetition_fraction(range(50)) == 0.0


def test_self_bleu_of_equal_and_of_unrelated_texts():
    same = [["the", "cat", "sat", "on", "the", "mat"]] * 3
    assert diversity.self_bleu(same) == pytest.approx(1.0)
    assert diversity.self_bleu([list(range(i * 10, i * 10 + 10)) for i in range(4)]) == 0.0
    for short in ([], ["yes"], ["no", "idea"]):  # shorter than the longest n-gram, and as equal
        assert diversity.self_bleus([short, short, ["the", "cat", "sat", "down"]]) == pytest.approx([1.0, 1.0, 0.0])
    assert diversity.self_bleus([[], ["a", "b"]]) == [0.0, 0.0]
    assert diversity.self_bleu([["a", "b"], ["b", "a"]]) == pytest.approx(
        math.sqrt(1 * 0.1)
    )  # one of its two orders, smoothed


def test_bleu_against_references_by_hand():
    """Papineni et al. 2002: clipped counts over all references, the closest length for the brevity penalty."""
    texts = [["a", "b", "c", "d", "e"], ["a", "b", "c", "x", "e", "f"], ["a", "b", "c", "d"]]

    def bleu(*precisions, penalty=1.0):
        return penalty * math.exp(sum(math.log(p) for p in precisions) / 4)

    first = bleu(5 / 5, 3 / 4, 2 / 3, 1 / 2)  # e is in the second, d in the third; "d e" is nowhere else
    second = bleu(4 / 6, 2 / 5, 1 / 4, 0.1 / 3)  # no 4-gram in common: smoothed
    third = bleu(1, 1, 1, 1, penalty=math.exp(1 - 5 / 4))
    assert diversity.self_bleu(texts) == pytest.approx((first + second + third) / 3)


def test_a_count_is_clipped_by_the_others_not_by_oneself():
    # "a" three times here, once and twice elsewhere: two of three match. The others find all of theirs.
    assert diversity.self_bleu([["a", "a", "a"], ["a"], ["a", "a"]], max_n=1) == pytest.approx(
        (2 / 3 + math.exp(1 - 2 / 1) + 1) / 3
    )


def brute_force_self_bleu(texts):
    total = 0.0
    for i, text in enumerate(texts):
        others = texts[:i] + texts[i + 1 :]
        log_p = 0.0
        for n in range(1, 5):
            grams = [tuple(text[j : j + n]) for j in range(len(text) - n + 1)]
            matches = sum(
                min(grams.count(g), max([tuple(o[j : j + n]) for j in range(len(o) - n + 1)].count(g) for o in others))
                for g in set(grams)
            )
            log_p += math.log((matches or 0.1) / len(grams)) / 4
        closest = min((abs(len(o) - len(text)), len(o)) for o in others)[1]
        total += math.exp(min(0.0, 1 - closest / len(text)) + log_p)
    return total / len(texts)


def test_linear_time_self_bleu_is_the_quadratic_one():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 5, rng.integers(6, 25)).tolist() for _ in range(15)]
    assert diversity.self_bleu(texts) == pytest.approx(brute_force_self_bleu(texts))


@pytest.mark.parametrize("broken", [lambda: diversity.self_bleu([["a"]]), lambda: diversity.distinct_n([["a"]], 0)])
def test_impossible_questions_are_refused(broken):
    with pytest.raises(BadInput):
        broken()
