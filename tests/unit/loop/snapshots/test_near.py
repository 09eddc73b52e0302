from __future__ import annotations

import random
import re

import numpy as np
import pytest

from plaudit.loop.snapshots.near import N_HASHES, near_pairs, shingles, signatures, signatures_with
from plaudit.loop.snapshots.splits import families_together


def test_shingles_are_runs_of_three_words_without_case_and_signs() -> None:
    assert shingles("The cat, the CAT sat") == ["the cat the", "cat the cat", "the cat sat"]
    assert shingles("Hello you!") == ["hello you"]
    assert shingles("") == [""]
    assert shingles("ÄRGER am Straßenrand gut") == shingles("ärger AM strassenrand Gut")
    assert shingles("a b c d", "chosen ") == ["chosen a b c", "chosen b c d"]


def mixed(share: float, rng: random.Random, n: int = 400) -> tuple[list[str], list[str], float]:
    """Two sets of shingles and their Jaccard index, by counting."""
    common = [f"c{rng.random()}" for _ in range(int(n * share))]
    left = [*common, *(f"l{rng.random()}" for _ in range(n - len(common)))]
    right = [*common, *(f"r{rng.random()}" for _ in range(n - len(common)))]
    return left, right, len({*left} & {*right}) / len({*left} | {*right})


@pytest.mark.parametrize("share", [0.0, 0.4, 0.7, 0.95, 1.0])
def test_equal_places_estimate_the_jaccard_index(share: float) -> None:
    rng = random.Random(1)
    drawn = [mixed(share, rng) for _ in range(40)]
    left, right = signatures([one for one, _, _ in drawn]), signatures([two for _, two, _ in drawn])
    assert left.shape == (40, N_HASHES)
    error = (left == right).mean() - np.mean([index for _, _, index in drawn])
    assert abs(error) <= 4 * (0.25 / (40 * N_HASHES)) ** 0.5  # 4 standard errors of the mean of 40 estimates


def test_groups_are_found_and_nothing_else_is_joined() -> None:
    rng = random.Random(2)
    words = [f"w{i}" for i in range(3000)]
    texts = []
    for group in range(60):
        words_of = rng.choices(words, k=120)
        texts.append(" ".join(words_of))
        # one word changed at an end: index about .98
        texts += [" ".join([*words_of[:-1], rng.choice(words)]) for _ in range(group % 3)]
    expected, at = [], 0
    for group in range(60):
        expected += [set(range(at, at + 1 + group % 3))] if group % 3 else []
        at += 1 + group % 3
    signed = signatures([shingles(text) for text in texts])
    together = families_together((str(one), i) for i, j in near_pairs(signed, 0.8) for one in (i, j))
    groups: dict[str, set[int]] = {}
    for one, root in together.items():
        groups.setdefault(root, set()).add(int(one))
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, expected))
    assert list(near_pairs(signed[:0], 0.8)) == []


def test_a_signature_is_the_same_on_any_machine() -> None:
    """Frozen: what is a near duplicate decides what is in people's Snapshots."""
    assert signatures([["a b c", "b c d"]])[0, :4].tolist() == [40215, 64068, 10834, 16841]


def test_words_of_ascii_are_those_of_any_text() -> None:
    text = "".join(f"A{chr(sign)}b1 {chr(sign)}" for sign in range(128))
    words = re.findall(r"\w+", text.casefold())  # what is done to a text with other letters
    assert " ".join(shingles(text)[0::3]).split() == words[: len(words) // 3 * 3]


def test_a_threshold_of_one_finds_equals_and_a_union_is_signed_as_one_set() -> None:
    one, two = shingles("a b c d e f"), shingles("some other words than those", "chosen ")
    alone, both = signatures_with([one, one], [two, []])
    assert (both[0] == signatures([[*one, *two]])[0]).all()
    assert (alone == signatures([one, one])).all()
    assert set(near_pairs(alone, 1.0)) == {(0, 1)}
    assert list(near_pairs(both, 1.0)) == []
