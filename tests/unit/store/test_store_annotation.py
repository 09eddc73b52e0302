from __future__ import annotations

from sqlalchemy.dialects import postgresql

from plaudit.store import annotation, feedback


def test_postgresql_locks_the_row_it_lends_and_skips_those_that_others_hold() -> None:
    """What SQLite's single writer makes needless must be in the statement for other databases."""
    dialect = postgresql.dialect()
    assert str(annotation._NEXT_FREE.compile(dialect=dialect)).rstrip().endswith("FOR UPDATE SKIP LOCKED")
    assert str(annotation._NEXT.compile(dialect=dialect)).rstrip().endswith("FOR UPDATE")
    assert str(annotation._LOCK.compile(dialect=dialect)).rstrip().endswith("FOR UPDATE")
    # An outer join's other side cannot be locked: PostgreSQL refuses the clause without its table.
    assert str(feedback._LOCK.compile(dialect=dialect)).rstrip().endswith("FOR UPDATE OF interactions")
