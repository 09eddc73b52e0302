"""Curves made of characters: a line of blocks, and a picture of braille dots with its axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"
# Bit of the dot in column x (0, 1) and row y (0 at the top) of a braille character (Unicode 10.0, 2800-28FF).
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """Values from left to right as blocks of eight heights, at most `width` of them; each is the mean of its share. Empty for none."""
    if not values:
        return ""
    n = min(width, len(values))
    cuts = [round(i * len(values) / n) for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    top = len(BLOCKS) - 1
    # A constant is a line in the middle, neither good nor bad.
    return "".join(BLOCKS[round((value - low) / (high - low) * top) if high > low else top // 2] for value in means)


def curve(points: Sequence[tuple[float, float]], width: int = 44, height: int = 7) -> list[str]:
    """`height` rows of a picture of (x, y), x increasing, joined by lines, y's range on the left; then a row with x's range."""
    if not points:
        return ["no points yet"]
    columns, rows = width * 2, height * 4
    xs, ys = [x for x, _ in points], [y for _, y in points]
    (left, right), (low, high) = (xs[0], xs[-1]), (min(ys), max(ys))
    cells = [[0x2800] * width for _ in range(height)]

    def place(x: float, y: float) -> tuple[int, int]:
        column = round((x - left) / (right - left) * (columns - 1)) if right > left else 0
        up = (y - low) / (high - low) if high > low else 0.5
        return column, round((1 - up) * (rows - 1))

    at = place(*points[0])
    for point in points:
        to = place(*point)
        steps = max(abs(to[0] - at[0]), abs(to[1] - at[1]), 1)
        for i in range(steps + 1):
            column = round(at[0] + (to[0] - at[0]) * i / steps)
            row = round(at[1] + (to[1] - at[1]) * i / steps)
            cells[row // 4][column // 2] |= DOTS[column % 2][row % 4]
        at = to
    labels = {height - 1: number(low), 0: number(high)} if high > low else {height // 2: number(low)}
    room = max(map(len, labels.values()))
    picture = [f"{labels.get(i, ''):>{room}} ┤{''.join(map(chr, row))}" for i, row in enumerate(cells)]
    ends = number(left), number(right)
    return [*picture, f"{'':>{room}} └{ends[0]}{'':{max(width - len(ends[0]) - len(ends[1]), 1)}}{ends[1]}"]


def number(value: float) -> str:
    """At most four digits that matter: 0.6931, 12.35, 1234, 0.0002."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """8 s, 3:05, 2:10:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
