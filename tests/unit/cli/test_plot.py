"""Characters that draw: heights, dots and axes, checked by hand."""

from __future__ import annotations

import pytest

from plaudit.cli.plot import curve, duration, number, sparkline


def test_a_sparkline_has_the_heights_of_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3, 3]) == "▄▄▄"
    assert sparkline([-1, 1]) == "▁█"
    assert sparkline([]) == ""


def test_many_values_share_a_block_by_their_mean() -> None:
    assert sparkline([0, 0, 10, 0, 10, 10], width=3) == "▁▅█"  # means 0, 5, 10: half of 7 rounds to 4
    assert len(sparkline(list(range(1000)), width=32)) == 32


def test_a_curve_from_corner_to_corner() -> None:
    # 2 x 1 cells are 4 x 4 dots: the diagonal, from the lower left to the upper right (bits by Unicode's table).
    assert curve([(1, 0.0), (4, 3.0)], width=2, height=1) == ["3 ┤⡠⠊", "  └1 4"]


def test_a_curve_has_its_ranges_on_the_axes() -> None:
    rows = curve([(1, 0.25), (2, 0.5), (30, 12.5)], width=20, height=5)
    assert [row.partition("┤")[0].strip() for row in rows[:5]] == ["12.5", "", "", "", "0.25"]
    assert rows[5].split() == ["└1", "30"]
    assert {len(row) for row in rows} == {len(rows[0])}


def test_a_constant_and_a_single_point_can_be_drawn() -> None:
    assert "2 ┤" in curve([(1, 2.0), (9, 2.0)], width=4, height=3)[1]
    assert any("⠁" <= mark <= "⣿" for mark in "".join(curve([(5, 1.0)], width=4, height=3)))
    assert curve([]) == ["no points yet"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.693147, "0.6931"), (12.345, "12.35"), (12345.6, "12346"), (1e-5, "1e-05"), (-3, "-3")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00"), (185, "3:05"), (7800, "2:10:00")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
