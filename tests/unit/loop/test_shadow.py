from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from plaudit.domain import CompletionStatus, Interaction, Project, Release
from plaudit.errors import NotFound
from plaudit.loop import release, shadow
from plaudit.openai_protocol import Answer, Choice
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_a_share_of_the_requests_is_drawn_by_their_ids() -> None:
    ids = [f"int_{i}" for i in range(4000)]
    drawn = [shadow.drawn("rel_1", id, 0.1) for id in ids]
    assert abs(sum(drawn) - 400) < 76
    assert drawn == [shadow.drawn("rel_1", id, 0.1) for id in ids]
    assert not any(shadow.drawn("rel_1", id, 0.0) for id in ids)
    assert all(shadow.drawn("rel_1", id, 1.0) for id in ids)


def test_figures_are_of_the_same_requests_on_both_sides(
    store: Store, project: Project, chat: Callable[..., Interaction]
) -> None:
    live: Release = release.register_base(store, project.id, "m", "fake:", NOW)
    with pytest.raises(NotFound, match="shadow_fraction"):
        shadow.figures(store, project.id, live.id)
    turns = [
        chat(actor="ada", answers=("four",)),  # every live answer takes 9 ms
        chat(actor="bob", answers=("I'm sorry, I can't help with that.",)),
        chat(actor="eve", answers=("failed",), status=CompletionStatus.ERROR),
        chat(actor="fay", answers=None),  # still being written
    ]
    for turn, text, latency in zip(turns, ("twelve chars", "yes", "x", "x"), (19.0, 9.0, 5.0, 5.0), strict=True):
        answer = Answer("m", (Choice(text, "stop"),), 3, 4)
        store.add(shadow.answered(live, turn.id, answer, latency, NOW))
    store.add(shadow.answered(live, turns[0].id, None, 1.0, NOW))  # the model server was away
    assert shadow.answered(live, turns[0].id, Answer("m", (), 3, 0), 1.0, NOW).status == CompletionStatus.ERROR
    found = shadow.figures(store, project.id, live.id)
    assert (found["n"], found["figures"]["errors"]["n"]) == (5, 4)
    assert {name: (one["shadow"], one["live"], one["n"]) for name, one in found["figures"].items()} == {
        "errors": (1 / 4, 1 / 4, 4),
        "latency": (14.0, 9.0, 2),
        "length": (7.5, (4 + 34) / 2, 2),
        "refusals": (0.0, 0.5, 2),
    }
    assert found["figures"]["latency"]["difference"]["mean"] == 5.0
    with pytest.raises(NotFound):
        shadow.figures(store, "prj_other", live.id)
