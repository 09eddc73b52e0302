from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from plaudit.domain import Outcome, Project
from plaudit.errors import BadInput
from plaudit.loop import outcome_file
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_file_goes_in_once_and_its_bad_rows_are_named(
    store: Store, project: Project, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    if name.endswith("csv"):
        file.write_text(
            'user,name,value,at,key\n"a, b",purchase,3,2026-03-01T10:00:00Z,\nbob,purchase,many,2026-03-01T10:00:00Z,\n'
            "bob,purchase,4,2026-03-01T10:00:00Z,o-9\nbob,purchase\n"
        )
        bad = [3, 5]
    else:
        file.write_text(
            '{"user":"a, b","name":"purchase","value":3,"at":"2026-03-01T10:00:00Z"}\n[]\n'
            '{"user":"bob","name":"purchase","value":4,"at":"2026-03-01T10:00:00Z","key":"o-9"}\n{\n'
        )
        bad = [2, 4]
    done = outcome_file.import_file(store, project.id, file, NOW)
    assert (done.n_recorded, done.n_replayed, sorted(one.line for one in done.rejected)) == (2, 0, bad)
    assert {(one.actor, one.value) for one in store.find(Outcome)} == {("a, b", 3.0), ("bob", 4.0)}
    again = outcome_file.import_file(store, project.id, file, NOW)
    assert (again.n_recorded, again.n_replayed) == (0, 2)


def test_a_csv_without_the_columns_is_refused(store: Store, project: Project, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("user,amount\nbob,3\n")
    with pytest.raises(BadInput, match="amount"):
        outcome_file.import_file(store, project.id, file, NOW)
