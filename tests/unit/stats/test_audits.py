"""Slices in which experts overturn more: Fisher's exact p against scipy's own, and how rarely a slice is flagged that is like the others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from plaudit.errors import BadInput
from plaudit.stats.audits import by_slice


def test_the_slice_that_is_wrong_is_flagged_and_its_p_is_fishers() -> None:
    slices = [["a", "x"]] * 8 + [["b", "x"]] * 60
    overturned = [True] * 6 + [False] * 2 + [True] * 4 + [False] * 56
    found = {one.name: one for one in by_slice(slices, overturned)}
    assert [name for name, one in found.items() if one.flagged] == ["a"]
    assert found["a"].p == pytest.approx(fisher_exact([[6, 2], [4, 56]], alternative="greater").pvalue)
    assert (found["a"].overturned.mean, found["a"].elsewhere) == (0.75, pytest.approx(4 / 60))
    assert found["x"].elsewhere is None  # everything: there is nothing to compare it with


def test_slices_that_are_alike_are_flagged_in_at_most_one_of_twenty_runs() -> None:
    luck = np.random.default_rng(0)
    flagged = 0
    for _ in range(200):
        slices = [[str(luck.integers(0, 12))] for _ in range(120)]
        flagged += any(one.flagged for one in by_slice(slices, (luck.random(120) < 0.15).tolist()))
    assert flagged <= 17  # Bin(200, .05) exceeds it once in 40 times; Fisher's test is conservative besides


def test_three_audits_say_nothing_and_rows_must_match() -> None:
    assert by_slice([["a"]] * 3 + [["b"]] * 50, [True] * 3 + [False] * 50)[0].name == "b"
    with pytest.raises(BadInput, match="2 rows of slices and 1"):
        by_slice([["a"], ["a"]], [True])


def test_four_audits_say_something_and_eight_points_more_are_no_news() -> None:
    assert by_slice([["a"]] * 4 + [["b"]] * 50, [True] * 4 + [False] * 50)[0].flagged

    def most(n_wrong: int) -> tuple[str, bool]:
        slices, overturned = [["a"]] * 1000 + [["b"]] * 1000, [True] * n_wrong + [False] * (1000 - n_wrong)
        first = by_slice(slices, overturned + [True] * 100 + [False] * 900)[0]
        assert first.p < 1e-6
        return first.name, first.flagged

    assert (most(180), most(220)) == (("a", False), ("a", True))
