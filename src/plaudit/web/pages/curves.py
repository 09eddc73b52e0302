"""A curve as SVG text, made by hand: a page draws dozens of them every second, which Altair in the service's memory could not.

Only attributes and class names: the pages' content security policy allows no inline style. The colours are console.css's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from plaudit.web.pages.words import number

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 320, 132  # of the view box; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 6, 6, 18, 18  # room for the labels, above and below the curve
MOST = 300  # points drawn; more cannot be told apart at this width


def curve(points: Points, about: str, *, of: float | None = None) -> Markup:
    """Points (x increasing) joined by a line, a gap where y is no number; the ends of both axes written out.

    `about` says to those who cannot see it what they miss. `of`: where x will end, so that a running curve grows into its picture.
    """
    seen = [(x, y) for x, y in points if math.isfinite(y)]
    if not seen:
        return Markup('<p class="quiet">no figure yet</p>')
    low, high = min(y for _, y in seen), max(y for _, y in seen)
    first, last = points[0][0], max(points[-1][0], of or points[-1][0])

    def place(x: float, y: float) -> str:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f} {TOP + (1 - up) * (HEIGHT - TOP - BOTTOM):.1f}"

    path, pen = [], False
    for x, y in thinned(points):
        if math.isfinite(y):
            path.append(f"{'L' if pen else 'M'}{place(x, y)}")
        pen = math.isfinite(y)
    end_x, end_y = place(*seen[-1]).split()
    ends = [(LEFT, TOP - 6, "start", number(high)), (LEFT, HEIGHT - 5, "start", number(low))] if high > low else []
    ends.append((WIDTH - RIGHT, HEIGHT - 5, "end", f"step {first:g} to {last:g}"))
    labels = Markup("").join(Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(*end) for end in ends)
    return Markup(
        '<svg class="curve" role="img" aria-label="{}" viewBox="0 0 {} {}">'
        '<path class="axis" d="M{} {}H{}M{} {}H{}"/><path class="line" d="{}"/><circle class="end" cx="{}" cy="{}" r="3"/>{}</svg>'
    ).format(
        about,
        WIDTH,
        HEIGHT,
        LEFT,
        TOP,
        WIDTH - RIGHT,
        LEFT,
        HEIGHT - BOTTOM,
        WIDTH - RIGHT,
        "".join(path),
        end_x,
        end_y,
        labels,
    )


def thinned(points: Points, most: int = MOST) -> list[tuple[float, float]]:
    """At most `most` points that look like all of them: of every stretch its least and its greatest value, in their order."""
    if len(points) <= most:
        return list(points)
    cuts = [round(i * len(points) / (most // 2)) for i in range(most // 2 + 1)]
    kept: list[tuple[float, float]] = []
    for a, b in pairwise(cuts):
        stretch = [point for point in points[a:b] if math.isfinite(point[1])] or list(points[a : a + 1])
        least, greatest = min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])
        kept += [least] if least == greatest else sorted((least, greatest), key=lambda p: p[0])
    return kept
