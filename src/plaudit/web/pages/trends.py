"""Two pictures of the lead's page as SVG text, made by hand as `curves.py` says why: agreement by week, and what is left by day."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, timedelta

from markupsafe import Markup

from plaudit.web.pages.words import number, percent

WIDTH, HEIGHT = 360, 160  # of the view box; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 24
MOST_AHEAD = 2.0  # the guess is drawn for at most so many times the days seen


def agreement(weeks: Sequence[tuple[str, float, float | None, float | None]], about: str) -> Markup:
    """(Monday, mean, low, high) from 0 to 1: a dot with a bar for each week, joined; no bar where there is no interval."""
    least = min((low if low is not None else mean for _, mean, low, _ in weeks), default=0.0)
    floor = max(0.0, math.floor(10 * least) / 10 - 0.1)

    def x(at: int) -> float:
        return LEFT + (at + 0.5) / len(weeks) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (1 - value) / (1 - floor) * (HEIGHT - TOP - BOTTOM) if floor < 1 else TOP

    parts = [_across(y(value), percent(value)) for value in (floor, (1 + floor) / 2, 1.0)]
    for at, (week, mean, low, high) in enumerate(weeks):
        bar = _path("bar", f"M{x(at):.1f} {y(low):.1f}V{y(high):.1f}") if low is not None and high is not None else ""
        said = f"week of {week}: {percent(mean)}" + (
            f" ({percent(low)} to {percent(high)})" if low is not None and high is not None else ""
        )
        dot = Markup('<circle class="end" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(x(at), y(mean))
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(said, bar, dot))
    line = "L".join(f"{x(at):.1f} {y(mean):.1f}" for at, (_, mean, _, _) in enumerate(weeks))
    parts.insert(3, _path("line", f"M{line}"))
    parts.append(
        _text(x(0), HEIGHT - 8, _short(date.fromisoformat(weeks[0][0])), "middle" if len(weeks) == 1 else "start")
    )
    if len(weeks) > 1:
        parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, _short(date.fromisoformat(weeks[-1][0])), "end"))
    return _svg(about, parts)


def burn_down(days: Sequence[tuple[date, int]], rate: float, about: str) -> Markup:
    """(day, answers left at its end), and dashed how it goes on with `rate` answers a day."""
    first, left = days[0][0], days[-1][1]
    seen = max(1, (days[-1][0] - first).days)
    ahead = min(left / rate, MOST_AHEAD * seen + 7) if rate > 0 else 0.0
    whole, most = seen + ahead, max(1, *(n for _, n in days))

    def at(day: float, n: float) -> str:
        return f"{LEFT + day / whole * (WIDTH - LEFT - RIGHT):.1f} {TOP + (1 - n / most) * (HEIGHT - TOP - BOTTOM):.1f}"

    def y(n: float) -> float:
        return TOP + (1 - n / most) * (HEIGHT - TOP - BOTTOM)

    parts = [_across(y(n), number(n)) for n in (0, most)]
    line = "L".join(at((day - first).days, n) for day, n in days)
    parts.append(_path("line", f"M{line}" if len(days) > 1 else f"M{at(0, days[0][1])}h0"))
    end_x, end_y = at((days[-1][0] - first).days, left).split()
    if ahead:
        parts.append(_path("guess", f"M{end_x} {end_y}L{at((days[-1][0] - first).days + ahead, left - rate * ahead)}"))
    parts.append(Markup('<circle class="end" cx="{}" cy="{}" r="3.5"/>').format(end_x, end_y))
    parts.append(_text(LEFT, HEIGHT - 8, _short(first)))
    end = days[-1][0] + timedelta(days=math.ceil(ahead))
    if end > first:
        parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, _short(end), "end"))
    return _svg(about, parts)


def _across(y: float, label: str) -> Markup:
    return _path("axis", f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}") + _text(LEFT - 6, y + 4, label, "end")


def _path(name: str, d: str) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(name, d)


def _text(x: float, y: float, said: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, said)


def _short(day: date) -> str:
    return f"{day.day} {day:%b}"


def _svg(about: str, parts: Sequence[Markup]) -> Markup:
    shape = '<svg class="curve" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>'
    return Markup(shape).format(about, WIDTH, HEIGHT, Markup("").join(parts))
