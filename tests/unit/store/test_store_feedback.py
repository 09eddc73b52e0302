from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plaudit.domain import Feedback, FeedbackKind, new_id
from plaudit.errors import Conflict
from plaudit.store.database import Store
from plaudit.store.feedback import current, heads

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def row(key: str | None, minute: int = 0, **more: Any) -> Feedback:
    fields: dict[str, Any] = {
        "project_id": "prj", "interaction_id": "int_1", "response_idx": 0, "kind": FeedbackKind.THUMB, "value": {"up": True},
        "actor": "ada", "body_sha256": "x", **more,
    }  # fmt: skip
    return Feedback(id=new_id(Feedback), natural_key=key, created_at=NOW + timedelta(minutes=minute), **fields)


def test_the_head_is_what_nothing_supersedes(store: Store) -> None:
    first = row("a")
    second = row("a", 1, supersedes=first.id)
    gone = row("b", 2)
    store.add(
        first, second, gone, row("b", 3, supersedes=gone.id, retracted=True), row(None, 4, kind=FeedbackKind.COMMENT)
    )
    with store.read() as tx:
        found = heads(tx, [("int_1", "a"), ("int_1", "b"), ("int_1", "c")])
        assert (found["a"], found["b"].retracted, set(found)) == (second, True, {"a", "b"})
        assert heads(tx, [("int_2", "a")]) == heads(tx, []) == {}
        assert [one.kind for one in current(tx, "prj")] == [FeedbackKind.THUMB, FeedbackKind.COMMENT]
        assert current(tx, "prj", [FeedbackKind.THUMB]) == [second]
        assert current(tx, "prj_2") == []
        window = current(tx, "prj", since=NOW + timedelta(minutes=1), until=NOW + timedelta(minutes=4))
        assert window == [second]


def test_two_roots_and_two_successors_are_refused_by_the_database(store: Store) -> None:
    first = row("a")
    store.add(first, row(None), row(None))
    with pytest.raises(Conflict):
        store.add(row("a"))
    store.add(row("a", supersedes=first.id))
    with pytest.raises(Conflict):
        store.add(row("a", supersedes=first.id))
