"""All rows of a store, counted, hashed and brought into another one: SQLite to PostgreSQL, back, and into a file for a backup.

A row is copied as the database holds it, not through the nouns, so nothing is read anew and nothing can be lost in it. A table's hash is
the sum of its rows' hashes, which no order changes: the two databases sort text differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from plaudit.errors import Conflict, Corrupt
from plaudit.store.database import Store, Transaction, open_store
from plaudit.store.schema import TABLES

BATCH = 1000  # rows at a time
_MODULUS = 2**256


@dataclass(frozen=True)
class TableContent:
    """What a table holds: two tables with the same rows in any order are equal."""

    n_rows: int
    sha256: str


def _plain(column: sa.Column[Any]) -> sa.Column[Any]:
    """The column as the database has it, without what `schema.py` makes of its values."""
    kind = column.type.impl if isinstance(column.type, sa.TypeDecorator) else column.type
    return sa.Column(column.name, kind, primary_key=column.primary_key)


_PLAIN = [sa.Table(table.name, sa.MetaData(), *map(_plain, table.columns)) for table in TABLES.values()]


def contents(store: Store) -> dict[str, TableContent]:
    """Every table by name, as of one moment."""
    with store.read() as tx:
        return {table.name: _content(tx, table) for table in _PLAIN}


def copy_rows(source: Store, target: Store) -> dict[str, TableContent]:
    """Bring every row of `source` as of now into `target`, all of them or none, and compare what arrived with what was sent.

    Raises Conflict where the target has rows already, Corrupt where a table did not arrive as it was sent.
    """
    done = {}
    with source.read() as reading, target.write() as writing:
        for table in _PLAIN:
            if writing.rows(sa.select(table.c.id).limit(1)):
                raise Conflict(f"The target has {table.name} already; copy into an empty database.")
        for table in _PLAIN:
            sent = _Sum()
            for rows in _batches(reading, table):
                sent.add(rows)
                writing.connection.execute(table.insert(), rows)
            arrived = _content(writing, table)
            if arrived != sent.content():
                raise Corrupt(
                    f"Of {table.name} {sent.content().n_rows} rows were sent and {arrived.n_rows} arrived, or other ones; nothing was copied."
                )
            done[table.name] = arrived
    return done


def save_rows(store: Store, file: Path) -> dict[str, TableContent]:
    """Every row as of one moment in a new SQLite file, whatever database they come from. Nobody has to stop writing meanwhile."""
    if store.dialect == "sqlite":
        store.save(file)
    saved = open_store(f"sqlite:///{file}")
    try:
        return contents(saved) if store.dialect == "sqlite" else copy_rows(store, saved)
    finally:
        saved.close()


class _Sum:
    def __init__(self) -> None:
        self._n_rows = 0
        self._total = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            digest = hashlib.sha256(json.dumps(row, ensure_ascii=False, sort_keys=True).encode()).digest()
            self._total = (self._total + int.from_bytes(digest)) % _MODULUS
        self._n_rows += len(rows)

    def content(self) -> TableContent:
        return TableContent(self._n_rows, f"{self._total:064x}")


def _content(tx: Transaction, table: sa.Table) -> TableContent:
    found = _Sum()
    for rows in _batches(tx, table):
        found.add(rows)
    return found.content()


def _batches(tx: Transaction, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    query = sa.select(table).execution_options(yield_per=BATCH)
    for rows in tx.connection.execute(query).mappings().partitions():
        yield [_without_nul(row) for row in rows]


def _without_nul(row: Mapping[Any, Any]) -> dict[str, Any]:
    """As `schema.PlainText` writes it today; a file of before may hold the character, PostgreSQL cannot."""
    return {
        name: value.replace("\x00", "\ufffd") if isinstance(value, str) and "\x00" in value else value
        for name, value in row.items()
    }
