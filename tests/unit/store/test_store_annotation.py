from __future__ import annotations

from sqlalchemy.dialects import postgresql

from plaudit.store import annotation, feedback


def test_postgresql_locks_the_row_it_lends_and_skips_those_that_others_hold() -> None:
    """What SQLite's single writer makes needless must be in the statement for other databases."""
    dialect = postgresql.dialect()
    assert str(annotation._NEXT.compile(dialect=dialect)).rstrip().endswith("FOR UPDATE SKIP LOCKED")
    for statement in (annotation._LOCK, feedback._LOCK):
        assert str(statement.compile(dialect=dialect)).rstrip().endswith("FOR UPDATE")
