"""The store: nouns in, nouns out. The only door to SQL besides the query files beside it.

Every write is one transaction, durable when the call returns (SQLite: WAL with `synchronous=FULL`; PostgreSQL: `synchronous_commit=on`).
`Store` methods open a transaction each; `with store.write() as tx:` joins several. Ids, times and decisions come from the caller.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from plaudit.errors import BadInput, Conflict, Corrupt, NotFound, Unavailable
from plaudit.store.migrate import migrate
from plaudit.store.schema import TABLES

Noun = TypeVar("Noun")


class Transaction:
    """Reads and writes on one connection. `find` filters by equality; a list, tuple or set means any of, None means null."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def add(self, *objects: Any) -> None:
        """Insert. Raises Conflict where a unique rule of the schema is broken."""
        by_kind: dict[type, list[dict[str, Any]]] = {}
        for thing in objects:
            row = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
            by_kind.setdefault(type(thing), []).append(row)
        for kind, rows in by_kind.items():
            try:
                self.connection.execute(_insert(TABLES[kind]), rows)
            except IntegrityError as error:
                if "not null" in str(error.orig).lower():
                    raise  # a caller's mistake, not a lost race
                raise Conflict(f"A {kind.__name__} like this is already stored ({error.orig}).") from error

    def get(self, kind: type[Noun], id: str) -> Noun:
        """Raises NotFound."""
        found = self.find(kind, id=id, limit=1)
        if not found:
            raise NotFound(f"There is no {kind.__name__} {id!r}.")
        return found[0]

    def find(
        self,
        kind: type[Noun],
        *,
        order: str = "id",
        descending: bool = False,
        limit: int | None = None,
        after: str | None = None,
        **equals: Any,
    ) -> list[Noun]:
        """Rows that equal every given column, ordered; `after` is the last id of the page before (with order by id)."""
        query = _select(TABLES[kind], _shape(equals), order, descending, after is not None, limit is not None)
        values = {**_values(equals), "after_": after, "limit_": limit}
        return [kind(**row) for row in self.connection.execute(query, values).mappings()]

    def first(self, kind: type[Noun], **equals: Any) -> Noun | None:
        """The newest row that equals, or None."""
        found = self.find(kind, descending=True, limit=1, **equals)
        return found[0] if found else None

    def count(self, kind: type, **equals: Any) -> int:
        return int(self.connection.execute(_count(TABLES[kind], _shape(equals)), _values(equals)).scalar_one())

    def change(self, kind: type[Noun], id: str, expect: dict[str, Any] | None = None, **changes: Any) -> Noun:
        """Compare and set: update one row if its columns still equal `expect`. Raises NotFound, or Conflict where they do not or where a
        unique rule of the schema would break."""
        equals = {"id": id, **(expect or {})}
        query = _update(TABLES[kind], _shape(equals), tuple(sorted(changes)))
        values = {**_values(equals), **{f"new_{name}": value for name, value in changes.items()}}
        try:
            n_changed = self.connection.execute(query, values).rowcount
        except IntegrityError as error:
            if "not null" in str(error.orig).lower():
                raise  # a caller's mistake, not a lost race
            raise Conflict(f"{kind.__name__} {id} would be the second of its kind ({error.orig}).") from error
        if n_changed == 0:
            now = self.get(kind, id)
            state = {name: getattr(now, name) for name in expect or {}}
            raise Conflict(f"{kind.__name__} {id} has changed meanwhile: expected {expect}, found {state}.")
        return self.get(kind, id)

    def rows(self, query: sa.Select[Any], values: dict[str, Any] | None = None) -> Sequence[sa.RowMapping]:
        """For the query files of `store/` only; `values` fill the statement's bound parameters."""
        return self.connection.execute(query, values or {}).mappings().all()


# Building a statement costs more than running it, so each shape of statement is built once: which columns are compared, and how.
Shape = tuple[tuple[str, str], ...]


def _shape(equals: dict[str, Any]) -> Shape:
    """((column, how), ...) with how one of: null, any, equal."""
    return tuple(
        (name, "null" if value is None else "any" if isinstance(value, list | set | tuple | frozenset) else "equal")
        for name, value in sorted(equals.items())
    )


def _values(equals: dict[str, Any]) -> dict[str, Any]:
    return {
        f"old_{name}": list(value) if isinstance(value, set | tuple | frozenset) else value
        for name, value in equals.items()
        if value is not None
    }


def _conditions(table: sa.Table, shape: Shape) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    for name, how in shape:
        column = table.c[name]
        match how:
            case "null":
                conditions.append(column.is_(None))
            case "any":
                conditions.append(column.in_(sa.bindparam(f"old_{name}", expanding=True, type_=column.type)))
            case _:
                conditions.append(column == sa.bindparam(f"old_{name}", type_=column.type))
    return conditions


@lru_cache(maxsize=1024)
def _select(table: sa.Table, shape: Shape, order: str, descending: bool, paged: bool, limited: bool) -> sa.Select[Any]:
    column = table.c[order]
    query = sa.select(table).where(*_conditions(table, shape)).order_by(column.desc() if descending else column.asc())
    if paged:
        after = sa.bindparam("after_", type_=sa.Text())
        query = query.where(table.c.id < after if descending else table.c.id > after)
    return query.limit(sa.bindparam("limit_", type_=sa.Integer())) if limited else query


@lru_cache(maxsize=1024)
def _count(table: sa.Table, shape: Shape) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(table).where(*_conditions(table, shape))


@lru_cache(maxsize=1024)
def _update(table: sa.Table, shape: Shape, names: tuple[str, ...]) -> sa.Update:
    changes = {name: sa.bindparam(f"new_{name}", type_=table.c[name].type) for name in names}
    return table.update().where(*_conditions(table, shape)).values(**changes)


@lru_cache
def _insert(table: sa.Table) -> sa.Insert:
    return table.insert()


class Store:
    """A database with the current schema."""

    def __init__(self, engine: sa.Engine, url: str) -> None:
        self._engine = engine
        self.url = url
        # SQLite has one writer. Threads that queue here go on at once when it is their turn; left to SQLite they would sleep and poll.
        self._turn = threading.RLock() if engine.dialect.name == "sqlite" else nullcontext()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """One read-write transaction, committed at the end of the block, rolled back where it raises."""
        yield from self._begin(writing=True)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """One consistent view."""
        yield from self._begin(writing=False)

    def _begin(self, writing: bool) -> Iterator[Transaction]:
        try:
            with (
                self._turn if writing else nullcontext(),
                self._engine.connect().execution_options(plaudit_write=writing) as connection,
                connection.begin(),
            ):
                yield Transaction(connection)
        except OperationalError as error:  # locked for too long, disk full, server gone
            raise Unavailable(f"The store does not answer ({error.orig}); check the disk and try again.") from error
        except PoolTimeout as error:
            raise Unavailable("The store has more readers than connections; try again in a moment.") from error
        except DatabaseError as error:
            if getattr(error.orig, "sqlite_errorname", None) in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
                raise Corrupt(
                    f"{self._engine.url.database} is no SQLite database that can be read ({error.orig}); restore it from a backup, "
                    "or move it away to start with an empty store."
                ) from error
            raise

    def add(self, *objects: Any) -> None:
        with self.write() as tx:
            tx.add(*objects)

    def get(self, kind: type[Noun], id: str) -> Noun:
        with self.read() as tx:
            return tx.get(kind, id)

    def find(self, kind: type[Noun], **query: Any) -> list[Noun]:
        with self.read() as tx:
            return tx.find(kind, **query)

    def first(self, kind: type[Noun], **equals: Any) -> Noun | None:
        with self.read() as tx:
            return tx.first(kind, **equals)

    def count(self, kind: type, **equals: Any) -> int:
        with self.read() as tx:
            return tx.count(kind, **equals)

    def change(self, kind: type[Noun], id: str, expect: dict[str, Any] | None = None, **changes: Any) -> Noun:
        with self.write() as tx:
            return tx.change(kind, id, expect, **changes)

    def close(self) -> None:
        self._engine.dispose()


def open_store(url: str) -> Store:
    """Open (and where needed create or migrate) the store at an SQLAlchemy URL such as `sqlite:////home/me/.plaudit/store.sqlite`.

    Raises BadInput (no URL), Corrupt (a file that is no database), Unavailable, Conflict (a store of a newer Plaudit).
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise BadInput(f"{url!r} is not a database URL; write for example sqlite:///store.sqlite.") from error
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
        _sqlite_settings(engine)
    else:
        engine = sa.create_engine(url, pool_pre_ping=True)
    store = Store(engine, url)
    try:
        with store.write() as tx:
            migrate(tx.connection)
    except BaseException:
        store.close()
        raise
    return store


def _sqlite_settings(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:  # noqa: ARG001
        connection.isolation_level = None  # we send BEGIN ourselves: the driver's own rules commit behind our back
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that will write takes the lock at once; upgrading later can fail without waiting.
        writing = connection.get_execution_options().get("plaudit_write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
