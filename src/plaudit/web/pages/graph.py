"""A graph of what rests on what, as SVG text: boxes in layers from top to bottom, each a link to its own page where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

BOX_WIDTH, BOX_HEIGHT = 196, 50
GAP_X, GAP_Y = 16, 42
MARGIN = 6
MOST_LETTERS = 24  # of a line in a box


@dataclass(frozen=True)
class Box:
    """`kind` is the first line, `name` the second; `rests_on` names boxes below it. Names of boxes that are not there are passed over."""

    id: str
    kind: str
    name: str
    href: str = ""
    rests_on: tuple[str, ...] = ()


def graph(boxes: Sequence[Box], about: str) -> Markup:
    """The picture; `about` says in words what it is."""
    if not boxes:
        return Markup('<p class="quiet">nothing yet</p>')
    rows = layers(boxes)
    widest = max(len(row) for row in rows)
    width = widest * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    height = len(rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    at: dict[str, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        left = (width - len(row) * (BOX_WIDTH + GAP_X) + GAP_X) / 2
        for place, box in enumerate(row):
            at[box.id] = (left + place * (BOX_WIDTH + GAP_X), MARGIN + depth * (BOX_HEIGHT + GAP_Y))
    edges = [_edge(at[box.id], at[below]) for box in boxes for below in direct(box, boxes)]
    drawn = [_box(box, *at[box.id]) for row in rows for box in row]
    shape = '<svg class="graph" role="group" aria-label="{}" width="{:.0f}" height="{:.0f}" viewBox="0 0 {:.0f} {:.0f}">{}</svg>'
    return Markup(shape).format(about, width, height, width, height, Markup("").join([*edges, *drawn]))


def direct(box: Box, boxes: Sequence[Box]) -> list[str]:
    """What a box rests on, without what lies below another thing that it rests on: the longer way says it."""
    by_id = {one.id: one for one in boxes}
    below = [id for id in dict.fromkeys(box.rests_on) if id in by_id and id != box.id]
    reached: dict[str, set[str]] = {}
    for start in below:
        seen, waiting = set[str](), list(by_id[start].rests_on)
        while waiting:
            id = waiting.pop()
            if id in by_id and id not in seen:
                seen.add(id)
                waiting += by_id[id].rests_on
        reached[start] = seen
    return [id for id in below if not any(id in reached[other] for other in below if other != id)]


def layers(boxes: Sequence[Box]) -> list[list[Box]]:
    """Every box below all that rest on it, as high as that allows; within a layer near to what is above it. A box that rests on itself by
    way of others keeps the layer it was first given."""
    by_id: Mapping[str, Box] = {box.id: box for box in boxes}
    depth = dict.fromkeys(by_id, 0)
    for _ in boxes:  # as many rounds as the longest way can have steps
        moved = False
        for box in boxes:
            for below in box.rests_on:
                if below in depth and depth[below] < depth[box.id] + 1 < len(boxes):
                    depth[below], moved = depth[box.id] + 1, True
        if not moved:
            break
    rows = [[box for box in boxes if depth[box.id] == level] for level in range(max(depth.values()) + 1)]
    rows = [row for row in rows if row]
    place = {box.id: float(i) for i, box in enumerate(rows[0])}
    for row in rows[1:]:
        above = {box.id: [place[one.id] for one in boxes if box.id in one.rests_on and one.id in place] for box in row}
        row.sort(key=lambda box: sum(above[box.id]) / len(above[box.id]) if above[box.id] else 0.0)
        place |= {box.id: float(i) for i, box in enumerate(row)}
    return rows


def _edge(above: tuple[float, float], below: tuple[float, float]) -> Markup:
    x1, y1 = above[0] + BOX_WIDTH / 2, above[1] + BOX_HEIGHT
    x2, y2 = below[0] + BOX_WIDTH / 2, below[1]
    middle = (y1 + y2) / 2
    return Markup('<path class="edge" d="M{:.0f} {:.0f}C{:.0f} {:.0f} {:.0f} {:.0f} {:.0f} {:.0f}"/>').format(
        x1, y1, x1, middle, x2, middle, x2, y2
    )


def _box(box: Box, x: float, y: float) -> Markup:
    shape = Markup(
        '<rect class="box" x="{0:.0f}" y="{1:.0f}" width="{2}" height="{3}" rx="6"/>'
        '<text class="kind" x="{4:.0f}" y="{5:.0f}">{6}</text><text x="{4:.0f}" y="{7:.0f}">{8}</text>'
    ).format(x, y, BOX_WIDTH, BOX_HEIGHT, x + 10, y + 19, _short(box.kind), y + 38, _short(box.name))
    if not box.href:
        return Markup("<g>{}</g>").format(shape)
    return Markup('<a href="{}" aria-label="{} {}">{}</a>').format(box.href, box.kind, box.name, shape)


def _short(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
