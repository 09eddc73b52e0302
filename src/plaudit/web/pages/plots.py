"""Pictures with axes, as SVG text made by hand for the reason that `curves.py` gives: bounds that narrow, states over time, points with bars.

Only attributes and class names, for the pages' content security policy allows no inline style. The colours are console.css's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from plaudit.web.pages.words import duration, number

WIDTH, HEIGHT = 640, 240  # of the view box; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 62, 26, 32, 40  # room for the axes
LETTER = 6.4  # pixels of one, about
ROW = 28  # of the timeline
STEPS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400)


@dataclass(frozen=True)
class Bound:
    """A figure with its interval at one time; `x` is seconds, or any number for `scatter`."""

    x: float
    mean: float
    low: float
    high: float
    label: str = ""


@dataclass(frozen=True)
class Span:
    """`name` was in `state` from one time to another."""

    name: str
    state: str
    begin: datetime
    end: datetime


def sequence(
    looks: Sequence[Bound],
    about: str,
    y_title: str,
    limits: Sequence[tuple[float, str]] = (),
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Bounds over time (x in seconds since the start), each look a dot with its bar; `limits` are lines across at a y, `marks` lines up at an x."""
    seen = [one for one in looks if all(math.isfinite(value) for value in (one.x, one.mean, one.low, one.high))]
    if not seen:
        return Markup('<p class="quiet">no look yet</p>')
    ys = [value for one in seen for value in (one.low, one.high)] + [y for y, _ in limits]
    xs = [0.0, *(one.x for one in seen), *(x for x, _ in marks)]
    frame = _Frame((min(xs), max(xs)), (min(ys), max(ys)))
    parts = [frame.y_axis(y_title), frame.time_axis("since it began")]
    for x, label in marks:
        parts.append(_path("mark", f"M{frame.x(x):.1f} {TOP}V{HEIGHT - BOTTOM}"))
        parts.append(_text(frame.x(x) + 4, TOP - 4, label))
    above = [f"{frame.at(one.x, one.high)}" for one in seen]
    below = [f"{frame.at(one.x, one.low)}" for one in reversed(seen)]
    parts.append(_path("band", f"M{'L'.join(above + below)}Z"))
    names = []
    for place, (y, label) in enumerate(sorted(limits)):
        parts.append(_path("limit", f"M{LEFT} {frame.y(y):.1f}H{WIDTH - RIGHT}"))
        beside = -4 if place else 13  # the lowest is named below its line, so that two near ones do not meet
        names.append(_text(WIDTH - RIGHT - 2, frame.y(y) + beside, label, "end"))
    parts.append(_path("line", f"M{'L'.join(frame.at(one.x, one.mean) for one in seen)}"))
    parts += [*(_dot(frame, one) for one in seen), *names]  # names last, so that no line runs over them
    return _svg(about, HEIGHT, parts)


def scatter(points: Sequence[Bound], about: str, x_title: str, y_title: str) -> Markup:
    """Points with their bars of y; zero is in both axes."""
    if not points:
        return Markup('<p class="quiet">no point yet</p>')
    ys = [value for one in points for value in (one.low, one.high)]
    frame = _Frame(
        (min(0.0, *(one.x for one in points)), max(0.0, *(one.x for one in points))), (min(0.0, *ys), max(0.0, *ys))
    )
    parts = [frame.y_axis(y_title), frame.x_axis(x_title)]
    parts.append(_path("limit", f"M{LEFT} {frame.y(0):.1f}H{WIDTH - RIGHT}M{frame.x(0):.1f} {TOP}V{HEIGHT - BOTTOM}"))
    parts += [_dot(frame, one) for one in points]
    return _svg(about, HEIGHT, parts)


def timeline(spans: Sequence[Span], about: str) -> Markup:
    """One row for each name, in the order they come in: what it was when, as a bar with the word."""
    if not spans:
        return Markup('<p class="quiet">nothing happened yet</p>')
    names = list(dict.fromkeys(one.name for one in spans))
    begin, end = min(one.begin for one in spans), max(one.end for one in spans)
    whole = max((end - begin).total_seconds(), 1.0)
    left, height = 150, TOP + ROW * len(names) + BOTTOM - 10
    across = left

    def x(at: datetime) -> float:
        return left + (at - begin).total_seconds() / whole * (WIDTH - RIGHT - left)

    parts: list[Markup] = []
    for state in dict.fromkeys(one.state for one in spans):  # what the colours mean, for bars too narrow for their word
        parts.append(Markup('<rect class="{}" x="{}" y="4" width="12" height="12" rx="3"/>').format(state, across))
        parts.append(_text(across + 17, 14, state.replace("_", " ")))
        across += 17 + round(len(state) * LETTER) + 22
    for row, name in enumerate(names):
        parts.append(_text(left - 8, TOP + ROW * row + 17, _short(name, 22), "end"))
        parts.append(_path("axis", f"M{left} {TOP + ROW * row + ROW - 1}H{WIDTH - RIGHT}"))
    for one in spans:
        top, width = TOP + ROW * names.index(one.name) + 3, max(x(one.end) - x(one.begin), 2.0)
        shape = Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}" rx="3"><title>{}</title></rect>')
        said = f"{one.name}: {one.state} for {duration((one.end - one.begin).total_seconds())}"
        parts.append(shape.format(one.state, x(one.begin), top, width, ROW - 8, said))
        word = one.state.replace("_", " ")
        if width > len(word) * LETTER + 8:
            parts.append(
                Markup('<text class="on" x="{:.1f}" y="{}">{}</text>').format(x(one.begin) + 5, top + 14, word)
            )
    for at, anchor in ((begin, "start"), (end, "end")):
        parts += [_text(x(at), height - 12, f"{at:%Y-%m-%d %H:%M} UTC", anchor)]
    return _svg(about, height, parts)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers from low to high."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


# --- inside ------------------------------------------------------------------------------------------------------------


class _Frame:
    """Where a value lies in the picture. A little air is left above and below; an axis of one value gets a width."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_low, self.x_high = x if x[1] > x[0] else (x[0] - 1, x[1] + 1)
        air = 0.06 * (y[1] - y[0]) or 0.5 * abs(y[0]) or 1.0
        self.y_low, self.y_high = y[0] - air, y[1] + air

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def at(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f} {self.y(y):.1f}"

    def y_axis(self, title: str) -> Markup:
        made = [_text(4, 12, title)]
        for tick in ticks(self.y_low, self.y_high):
            made += [
                _path("axis", f"M{LEFT} {self.y(tick):.1f}H{WIDTH - RIGHT}"),
                _text(LEFT - 6, self.y(tick) + 4, number(tick), "end"),
            ]
        return Markup("").join(made)

    def x_axis(self, title: str) -> Markup:
        return self._below([(tick, number(tick)) for tick in ticks(self.x_low, self.x_high, 7)], title)

    def time_axis(self, title: str) -> Markup:
        whole = self.x_high - self.x_low
        step = next((step for step in STEPS_S if whole / step <= 7), STEPS_S[-1])
        marks = range(math.ceil(self.x_low / step), math.floor(self.x_high / step) + 1)
        return self._below([(n * step, _after(n * step)) for n in marks], title)

    def _below(self, marks: Sequence[tuple[float, str]], title: str) -> Markup:
        made = [_path("axis", f"M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}")]
        made += [_text(self.x(at), HEIGHT - BOTTOM + 15, label, "middle") for at, label in marks]
        return Markup("").join([*made, _text(WIDTH - RIGHT, HEIGHT - 6, title, "end")])


def _after(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s" if seconds else "0"


def _dot(frame: _Frame, one: Bound) -> Markup:
    bar = f"M{frame.at(one.x, one.low)}V{frame.y(one.high):.1f}"
    said = f"{one.label}: {number(one.mean)} [{number(one.low)}, {number(one.high)}]"
    shape = Markup('<g><title>{}</title>{}<circle class="end" cx="{:.1f}" cy="{:.1f}" r="3.5"/></g>')
    return shape.format(said, _path("bar", bar), frame.x(one.x), frame.y(one.mean))


def _path(name: str, d: str) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(name, d)


def _text(x: float, y: float, said: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, said)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(about: str, height: int, parts: Sequence[Markup]) -> Markup:
    shape = '<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>'
    return Markup(shape).format(about, WIDTH, height, Markup("").join(parts))
