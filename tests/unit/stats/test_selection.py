"""Which questions are chosen, and why."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from plaudit.errors import BadInput
from plaudit.stats.selection import Mix, choose, read_mix


def test_each_share_takes_what_it_is_for_and_the_reason_says_so() -> None:
    luck = np.random.default_rng(0).random(100)
    difference = np.linspace(-5, 5, 100)
    spread = np.arange(100.0)
    found = choose(20, Mix(close=0.25, disagreement=0.25), luck, difference=difference, spread=spread)
    by_reason = {reason: [at for at, why in found if why == reason] for reason in ("random", "close", "disagreement")}
    assert {why: len(chosen) for why, chosen in by_reason.items()} == {"random": 10, "close": 5, "disagreement": 5}
    assert by_reason["random"] == np.argsort(luck)[:10].tolist()
    free = [at for at in range(100) if at not in by_reason["random"]]
    assert sorted(by_reason["close"]) == sorted(sorted(free, key=lambda at: abs(difference[at]))[:5])
    assert max(by_reason["disagreement"]) == max(free)
    assert len({at for at, _ in found}) == 20


def test_coverage_fills_the_slices_that_were_asked_least() -> None:
    slices = ["common"] * 80 + ["rare"] * 15 + ["new"] * 5
    asked = {"common": 40, "rare": 3}
    found = choose(20, Mix(coverage=1.0), np.arange(100.0), slices=slices, asked=asked)
    assert Counter(slices[at] for at, _ in found) == {"rare": 15, "new": 5}
    assert {why for _, why in found} == {"coverage"}


def test_coverage_counts_the_random_share_and_what_it_takes_itself() -> None:
    found = choose(4, Mix(coverage=0.5), np.arange(6.0), slices=["a"] * 4 + ["b"] * 2)
    assert found == [(0, "random"), (1, "random"), (4, "coverage"), (5, "coverage")]
    evenly = choose(4, Mix(coverage=1.0), np.arange(8.0), slices=["a"] * 4 + ["b"] * 4)
    assert sorted(at for at, _ in evenly) == [0, 1, 4, 5]


def test_shares_that_round_up_ask_no_more_than_was_wanted() -> None:
    found = choose(
        3, Mix(close=0.5, disagreement=0.5), np.arange(9.0), difference=np.arange(9.0), spread=np.arange(9.0)
    )
    assert found == [(0, "close"), (1, "close"), (8, "disagreement")]


def test_without_a_mix_all_is_random_and_no_score_is_needed() -> None:
    assert choose(3, Mix(), [0.3, 0.1, 0.2, 0.4]) == [(1, "random"), (2, "random"), (0, "random")]
    assert choose(9, read_mix(""), [0.5, 0.1]) == [(1, "random"), (0, "random")]


def test_a_mix_is_read_and_what_is_wrong_is_named() -> None:
    assert read_mix("close=.3, coverage=0.1") == Mix(close=0.3, coverage=0.1)
    for text, said in (
        ("doubt=.1", "doubt"),
        ("close", "close"),
        ("close=.8,coverage=.3", "add up"),
        ("close=-.1", "0 or more"),
    ):
        with pytest.raises(BadInput, match=said):
            read_mix(text)
    with pytest.raises(BadInput, match="reward model"):
        choose(2, Mix(close=1), [0.1, 0.2])
