"""Graphs of lineage: layers, what is left out, links, escaping."""

from __future__ import annotations

from plaudit.web.pages.graph import Box, direct, graph, layers

NASTY = '<script>"&'


def test_layers_put_everything_below_what_rests_on_it() -> None:
    boxes = [
        Box("release", "r", "1", rests_on=("policy", "evaluation")),
        Box("evaluation", "e", "1"),
        Box("policy", "p", "1", rests_on=("run", "snapshot", "gone")),
        Box("run", "u", "1", rests_on=("snapshot",)),
        Box("snapshot", "s", "1"),
    ]
    assert [{box.id for box in row} for row in layers(boxes)] == [
        {"release"},
        {"evaluation", "policy"},
        {"run"},
        {"snapshot"},
    ]
    assert direct(boxes[2], boxes) == ["run"]  # which rests on the snapshot itself
    around = [Box("a", "", "", rests_on=("b",)), Box("b", "", "", rests_on=("a",))]
    assert sum(len(row) for row in layers(around)) == 2


def test_a_graph_links_its_boxes_and_escapes_their_names() -> None:
    drawn = graph([Box("a", "release", NASTY, "/releases/a", ("b",)), Box("b", "snapshot", "x" * 99)], NASTY)
    assert drawn.count("<rect") == 2
    assert drawn.count('class="edge"') == 1
    assert '<a href="/releases/a"' in drawn
    assert "<script" not in drawn
    assert "x" * 30 not in drawn
