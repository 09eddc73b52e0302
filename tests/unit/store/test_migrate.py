"""The migrations are frozen deeds, the schema is what the code believes: both must say the same, and rows must survive every step.

To cover a new migration N nothing is written here: `test_rows_survive` runs from each version before the newest, with rows in every table.
Where a migration changes what a row says, it names that in CHANGED.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from plaudit.errors import Conflict
from plaudit.store import migrate as migrations
from plaudit.store.database import open_store
from plaudit.store.schema import metadata

# (migration, table, column) whose values the migration rewrites on purpose.
CHANGED: set[tuple[int, str, str]] = set()
INDEXES = {
    "sqlite": "SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = :table AND sql IS NOT NULL",
    "postgresql": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = :table",
}
SPELLING = {"REAL": "DOUBLE", "DOUBLE_PRECISION": "DOUBLE"}  # of one type, by who wrote the statement


@pytest.fixture
def connection(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url)
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


def shape(connection: sa.Connection) -> dict[str, Any]:
    """Columns (type, null, key) and indexes of every table; types in the one spelling that SQLite reports."""
    inspector = sa.inspect(connection)
    keys = {table: key["constrained_columns"] for (_, table), key in inspector.get_multi_pk_constraint().items() if key}
    found: dict[str, Any] = {}
    for (_, table), described in inspector.get_multi_columns().items():
        if table == "schema_migrations":
            continue
        columns = {
            column["name"]: (
                SPELLING.get(str(column["type"]), str(column["type"])),
                column["nullable"],
                column["name"] in keys[table],
            )
            for column in described
        }
        found[table] = (columns, index_sql(connection, table))
    return found


def index_sql(connection: sa.Connection, table: str) -> list[str]:
    """CREATE INDEX statements as stored: only they show DESC and WHERE."""
    query = sa.text(INDEXES[connection.dialect.name])
    return sorted(re.sub(r"\s+", " ", row[0]).replace('"', "") for row in connection.execute(query, {"table": table}))


def rows_at(connection: sa.Connection) -> dict[str, list[dict[str, Any]]]:
    inspector = sa.inspect(connection)
    return {
        table: [dict(row) for row in connection.execute(sa.text(f'SELECT * FROM "{table}" ORDER BY id')).mappings()]
        for table in inspector.get_table_names()
        if table != "schema_migrations"
    }


def fill(connection: sa.Connection) -> None:
    """Two rows in every table of whatever schema is there."""
    inspector = sa.inspect(connection)
    for table in inspector.get_table_names():
        if table == "schema_migrations":
            continue
        columns = inspector.get_columns(table)
        for number in (1, 2):
            values = {
                column["name"]: f"{column['name']} {number}" if isinstance(column["type"], sa.Text) else number == 1
                if isinstance(column["type"], sa.Boolean) else number
                for column in columns
            }  # fmt: skip
            names = ", ".join(f'"{name}"' for name in values)
            marks = ", ".join(f":{name}" for name in values)
            connection.execute(sa.text(f'INSERT INTO "{table}" ({names}) VALUES ({marks})'), values)


def test_the_numbers_have_no_gap_and_the_newest_is_the_latest() -> None:
    assert [number for number, _ in migrations.files()] == list(range(1, migrations.LATEST + 1))


def test_the_migrated_database_is_the_schema(connection: sa.Connection) -> None:
    with connection.begin_nested() as attempt:
        metadata.create_all(connection)
        expected = shape(connection)
        attempt.rollback()
    migrations.migrate(connection)
    migrated = shape(connection)
    assert migrated.keys() == expected.keys()
    for table in expected:
        assert migrated[table] == expected[table], table


@pytest.mark.parametrize("start", range(1, migrations.LATEST + 1))
def test_rows_survive(connection: sa.Connection, start: int) -> None:
    migrations.migrate(connection, start)
    assert migrations.version(connection) == start
    fill(connection)
    before = rows_at(connection)
    assert all(len(rows) == 2 for rows in before.values())
    migrations.migrate(connection)
    after = rows_at(connection)
    rewritten = {(table, column) for number, table, column in CHANGED if number > start}
    for table, rows in before.items():
        for old, new in zip(rows, after[table], strict=True):
            assert {k: v for k, v in old.items() if (table, k) not in rewritten}.items() <= new.items()


def test_0002_leaves_the_newest_of_two_live_releases_live(connection: sa.Connection) -> None:
    migrations.migrate(connection, 1)
    fill(connection)
    for key, project, state in (
        ("rel_1", "a", "live"),
        ("rel_2", "a", "live"),
        ("rel_3", "a", "live"),
        ("rel_4", "a", "canary"),
        ("rel_5", "b", "live"),
    ):
        connection.execute(
            sa.text(
                "INSERT INTO releases (id, project_id, model, upstream, state, created_at, state_at) VALUES (:id, :p, 'm', 'u', :s, 1, 1)"
            ),
            {"id": key, "p": project, "s": state},
        )
    migrations.migrate(connection)
    found = connection.execute(sa.text("SELECT id, state FROM releases WHERE id LIKE 'rel%' ORDER BY id"))
    assert [row[1] for row in found] == ["retired", "retired", "live", "canary", "live"]


def test_migrating_twice_changes_nothing(connection: sa.Connection) -> None:
    migrations.migrate(connection)
    before = shape(connection)
    migrations.migrate(connection)
    assert (shape(connection), migrations.version(connection)) == (before, migrations.LATEST)


def test_a_newer_database_is_refused(url: str) -> None:
    open_store(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO schema_migrations (number) VALUES (999)"))
    engine.dispose()
    with pytest.raises(Conflict, match="schema 999, newer"):
        open_store(url)


def test_the_files_hold_nothing_that_only_one_database_knows() -> None:
    for number, text in migrations.files():
        for word in (
            "AUTOINCREMENT",
            "SERIAL",
            "PRAGMA",
            "WITHOUT ROWID",
            "JSONB",
            "DATETIME",
            "REPLACE INTO",
            "STRICT",
        ):
            assert word not in text.upper(), f"{number:04}: {word}"
