"""Forward-only migrations: numbered SQL files in `migrations/`, in a dialect that SQLite and PostgreSQL share. Each runs once, in one
transaction with the row that remembers it; a file that has been released is never edited."""

from __future__ import annotations

from importlib import resources

import sqlalchemy as sa

from plaudit.errors import Conflict


def files() -> list[tuple[int, str]]:
    """(number, SQL text) in order."""
    folder = resources.files("plaudit.store.migrations")
    found = [(int(entry.name[:4]), entry.read_text()) for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return sorted(found)


LATEST = files()[-1][0]


def version(connection: sa.Connection) -> int:
    """The number of the last migration that this database has seen; 0 for an empty one."""
    if not sa.inspect(connection).has_table("schema_migrations"):
        return 0
    return int(connection.execute(sa.text("SELECT COALESCE(MAX(number), 0) FROM schema_migrations")).scalar_one())


def migrate(connection: sa.Connection, target: int = LATEST) -> None:
    """Bring the database to `target`. The caller's transaction makes it all or nothing. Raises Conflict for a newer database."""
    current = version(connection)
    if current > LATEST:
        raise Conflict(f"This store is at schema {current}, newer than this Plaudit knows ({LATEST}); upgrade Plaudit.")
    if current == 0:
        connection.execute(sa.text("CREATE TABLE IF NOT EXISTS schema_migrations (number BIGINT NOT NULL PRIMARY KEY)"))
    for number, text in files():
        if current < number <= target:
            code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
            for statement in code.split(";"):
                if statement.strip():
                    connection.execute(sa.text(statement))
            connection.execute(sa.text("INSERT INTO schema_migrations (number) VALUES (:n)"), {"n": number})
