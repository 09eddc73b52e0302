from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from plaudit.store import feedback, monitoring
from plaudit.store.database import Store, Transaction

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def plan(store: Store, read: Callable[[Transaction], object]) -> str:
    """How SQLite means to answer the one query that `read` makes."""
    asked: list[tuple[str, tuple[object, ...]]] = []
    with store.read() as tx:
        sa.event.listen(tx.connection, "before_cursor_execute", lambda *told: asked.append((told[2], told[3])))
        read(tx)
        ((statement, values),) = asked
        return "; ".join(row[3] for row in tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values))


def test_the_page_of_abuse_reads_indices_and_neither_rows_nor_all_of_the_past(store: Store) -> None:
    if store.dialect != "sqlite":
        pytest.skip("PostgreSQL chooses its plan by what is in the table")
    acts = plan(store, lambda tx: monitoring.spoken(tx, "prj_1", NOW, NOW))
    assert (
        acts == "SEARCH feedback USING COVERING INDEX feedback_by_time (project_id=? AND created_at>? AND created_at<?)"
    )
    assert "feedback USING COVERING INDEX feedback_by_quarantine" in plan(store, lambda tx: feedback.held(tx, "prj_1"))
