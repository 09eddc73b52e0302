"""Plots: where things lie in the picture, and that no name can become markup."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from plaudit.web.pages import plots
from plaudit.web.pages.plots import Bound, Span

NASTY = '<script>"&'


def test_ticks_are_round_and_inside() -> None:
    assert plots.ticks(-0.21, 0.11) == [-0.2, -0.1, 0.0, 0.1]
    assert plots.ticks(0, 7) == [0, 2, 4, 6]
    assert all(3 <= len(plots.ticks(low, low + width)) <= 6 for low in (-3.3, 0.0, 17.2) for width in (1e-4, 0.7, 41.0))


def test_a_sequence_draws_each_look_once_and_in_order() -> None:
    looks = [Bound(60.0 * n, 0.1, 0.1 - 1 / n, 0.1 + 1 / n, NASTY) for n in (1, 2, 4)]
    drawn = plots.sequence([*looks, Bound(300.0, float("nan"), 0, 0)], NASTY, "y", [(0.0, NASTY)], [(0.0, NASTY)])
    dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert len(dots) == 3  # what is no number is left out
    assert [x for x, _ in dots] == sorted(x for x, _ in dots)
    bars = [(float(low), float(high)) for low, high in re.findall(r'class="bar" d="M[\d.]+ ([\d.]+)V([\d.]+)"', drawn)]
    assert all(low > dot > high for (low, high), (_, dot) in zip(bars, dots, strict=True))  # y grows downwards
    assert [low - high for low, high in bars] == sorted((low - high for low, high in bars), reverse=True)
    assert "<script" not in drawn
    assert "style=" not in drawn
    assert "no look yet" in plots.sequence([], "", "")


def test_a_timeline_gives_every_state_its_share_of_the_width() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    spans = [Span("a", "canary", at, at + timedelta(hours=1)), Span("b", "live", at, at + timedelta(hours=4))]
    drawn = plots.timeline(spans, "x")
    widths = [float(width) for width in re.findall(r'x="150.0" y="\d+" width="([\d.]+)"', drawn)]
    assert widths[1] == 4 * widths[0]
