from __future__ import annotations

import math
import re

from plaudit.web.pages.curves import HEIGHT, LEFT, MOST, TOP, WIDTH, curve, thinned


def path(svg: str) -> str:
    found = re.search(r'class="line" d="([^"]*)"', svg)
    assert found is not None
    return found[1]


def test_a_curve_runs_from_corner_to_corner() -> None:
    assert path(curve([(1, 0.0), (2, 1.0)], "x")) == f"M{LEFT}.0 114.0L{WIDTH - 6}.0 {TOP}.0"
    assert HEIGHT - 18 == 114


def test_a_running_curve_leaves_room_for_what_comes() -> None:
    svg = curve([(0, 0.0), (5, 1.0)], "x", of=10)
    assert path(svg).endswith(f"L160.0 {TOP}.0")  # half of the way
    assert "step 0 to 10" in svg


def test_a_value_that_is_no_number_is_a_gap() -> None:
    assert path(curve([(1, 0.0), (2, math.nan), (3, 1.0), (4, 0.5)], "x")).count("M") == 2
    assert "no figure yet" in curve([(1, math.nan)], "x")
    assert "no figure yet" in curve([], "x")


def test_a_constant_is_in_the_middle_and_text_stays_text() -> None:
    svg = curve([(1, 2.0), (2, 2.0)], '"<script>')
    assert path(svg) == "M6.0 66.0L314.0 66.0"
    assert "<script" not in svg
    assert 'style="' not in svg


def test_thinning_keeps_every_spike() -> None:
    points = [(float(x), 0.0) for x in range(10_000)]
    points[4_321] = (4_321.0, 9.0)
    points[7_000] = (7_000.0, -9.0)
    kept = thinned(points)
    assert len(kept) <= MOST
    assert {(4_321.0, 9.0), (7_000.0, -9.0)} <= set(kept)
    assert kept == sorted(kept, key=lambda point: point[0])
    assert thinned(points[:MOST]) == points[:MOST]
