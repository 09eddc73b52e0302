from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from plaudit.domain import Feedback, Interaction, Project
from plaudit.loop import log_file
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_last_months_log_comes_in_once_with_its_feedback(store: Store, project: Project, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    line = '{"messages": [{"role": "user", "content": "q%d"}], "responses": ["a"], "user": "u", "at": "2026-02-0%dT10:00:00Z"%s}'
    file.write_text(
        "\n".join([
            line % (1, 1, ', "feedback": [{"kind": "thumb", "value": false}, {"kind": "comment", "value": "meh"}]'),
            line % (2, 2, ', "feedback": [{"kind": "rating", "value": 9}]'),
            "not json",
            line % (3, 3, ', "responses": []'),
        ])
    )  # fmt: skip
    done = log_file.import_file(store, project.id, file, NOW)
    assert (done.n_recorded, done.n_replayed, done.n_feedback) == (2, 0, 2)
    assert sorted((one.line, one.reason.split(":")[0].split(" ")[0]) for one in done.rejected) == [
        (2, "feedback"), (3, "it"), (4, "responses"),
    ]  # fmt: skip
    assert {one.created_at.day for one in store.find(Interaction)} == {1, 2}
    assert {(one.kind, one.created_at.day) for one in store.find(Feedback)} == {("thumb", 1), ("comment", 1)}
    again = log_file.import_file(store, project.id, file, NOW)
    assert (again.n_recorded, again.n_replayed, again.n_feedback) == (0, 2, 0)
    assert (store.count(Interaction), store.count(Feedback)) == (2, 2)
