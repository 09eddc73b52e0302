"""The store: nouns in, nouns out. The only door to SQL besides the query files beside it.

Every write is one transaction, durable when the call returns (SQLite: WAL with `synchronous=FULL`; PostgreSQL: `synchronous_commit=on`).
`Store` methods open a transaction each; `with store.write() as tx:` joins several. Ids, times and decisions come from the caller.

What a writer has read stays true until it commits, on both databases: SQLite has one writer, and on PostgreSQL every `write()` holds one
advisory lock of the database until its commit is durable. The few writers that many requests wait for share that lock (`beside_others`);
they only append, or lock the rows that they decide on.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from plaudit.errors import BadInput, ConfigError, Conflict, Corrupt, NotFound, Unavailable
from plaudit.settings import shown
from plaudit.store.migrate import migrate
from plaudit.store.schema import TABLES

Noun = TypeVar("Noun")
PATIENCE_S = 30  # that a writer waits for another
CONNECT_S = 10
_WRITERS = 0x706C6175646974  # "plaudit": the advisory lock of all writers of a PostgreSQL database
_READ_ONLY, _NO_NULL = "25006", "23502"  # codes of the SQL standard, as PostgreSQL gives them


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
                if _misses_a_value(error):
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
            if _misses_a_value(error):
                raise  # a caller's mistake, not a lost race
            raise Conflict(f"{kind.__name__} {id} would be the second of its kind ({error.orig}).") from error
        if n_changed == 0:
            now = self.get(kind, id)
            state = {name: getattr(now, name) for name in expect or {}}
            raise Conflict(f"{kind.__name__} {id} has changed meanwhile: expected {expect}, found {state}.")
        return self.get(kind, id)

    def one_at_a_time(self, what: str) -> None:
        """Until this transaction ends, no other gets past this line with the same `what`; of use to those who write beside others."""
        if self.connection.dialect.name == "postgresql":
            self.connection.execute(_ONE_AT_A_TIME, {"what": what})

    def rows(self, query: sa.Select[Any], values: dict[str, Any] | None = None) -> Sequence[sa.RowMapping]:
        """For the query files of `store/` only; `values` fill the statement's bound parameters."""
        return self.connection.execute(query, values or {}).mappings().all()

    def tuples(self, query: sa.Select[*tuple[Any, ...]]) -> list[Any]:
        """As the driver gives them, so without the types of the columns: where there are so many that a row object each would take longer
        than to read them. For the query files of `store/` only."""
        result = self.connection.execute(query)
        assert result.cursor is not None
        found = list(result.cursor.fetchall())
        result.close()
        return found


_ONE_AT_A_TIME = sa.text("SELECT pg_advisory_xact_lock(1, hashtext(:what))")

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


def _misses_a_value(error: IntegrityError) -> bool:
    return getattr(error.orig, "sqlstate", None) == _NO_NULL or "NOT NULL" in str(error.orig)


class Store:
    """A database with the current schema."""

    def __init__(self, engine: sa.Engine, url: str) -> None:
        self._engine = engine
        self.url = url
        self.dialect = engine.dialect.name  # sqlite | postgresql
        # SQLite has one writer. Threads that queue here go on at once when it is their turn; left to SQLite they would sleep and poll.
        self._turn = threading.RLock() if self.dialect == "sqlite" else nullcontext()

    @contextmanager
    def write(self, *, beside_others: bool = False) -> Iterator[Transaction]:
        """One read-write transaction, committed at the end of the block, rolled back where it raises; after a Conflict it is over.

        Nobody else writes meanwhile. `beside_others`: those may who said so too, where the database can (PostgreSQL).
        """
        yield from self._begin("beside" if beside_others else "alone")

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """One consistent view."""
        yield from self._begin("read")

    def _begin(self, how: str) -> Iterator[Transaction]:
        writing = how != "read"
        options: dict[str, Any] = {"plaudit_begin": how}
        if self.dialect == "postgresql":
            # A writer sees what was committed before each statement, so also what it waited for; a reader sees one moment.
            level = "READ COMMITTED" if writing else "REPEATABLE READ"
            options |= {"isolation_level": level, "postgresql_readonly": not writing}
        try:
            with (
                self._turn if writing else nullcontext(),
                self._engine.connect().execution_options(**options) as connection,
                connection.begin(),
            ):
                yield Transaction(connection)
        except PoolTimeout as error:
            raise Unavailable("The store has more readers than connections; try again in a moment.") from error
        except (DatabaseError, InterfaceError) as error:
            raised = self._unavailable(error) or self._corrupt(error)
            if raised is None:
                raise
            raise raised from error

    def _unavailable(self, error: DatabaseError | InterfaceError) -> Unavailable | None:
        """Locked for too long, disk full, server gone, or one that only reads."""
        code = getattr(error.orig, "sqlstate", None)
        if not isinstance(error, OperationalError | InterfaceError) and code != _READ_ONLY:
            return None
        said = str(error.orig).strip().partition("\n")[0]
        what = "the disk" if self.dialect == "sqlite" else "the database server"
        return Unavailable(f"The store does not answer ({said}); check {what} and try again.")

    def _corrupt(self, error: DatabaseError | InterfaceError) -> Corrupt | None:
        if getattr(error.orig, "sqlite_errorname", None) not in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            return None
        return Corrupt(
            f"{self._engine.url.database} is no SQLite database that can be read ({error.orig}); restore it from a backup, "
            "or move it away to start with an empty store."
        )

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

    def compact(self) -> bool:
        """Rewrite the file so that nothing is left in it of deleted values; False where a long reader held on to the old one. PostgreSQL
        frees the space by itself, and overwrites it when it needs it."""
        if self.dialect != "sqlite":
            return True
        connection = self._engine.raw_connection()  # VACUUM stands outside of any transaction
        try:
            with self._turn:
                cursor = connection.cursor()
                cursor.execute("VACUUM")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                (busy, *_) = cursor.fetchone() or (1,)
                cursor.close()
                return not busy
        finally:
            connection.close()

    @property
    def file(self) -> Path | None:
        """Of SQLite; None for a server."""
        return Path(str(self._engine.url.database)).absolute() if self.dialect == "sqlite" else None

    def save(self, file: Path) -> None:
        """SQLite only: a copy of the database as it is at one moment, while others read and write."""
        assert self.dialect == "sqlite"
        connection = self._engine.raw_connection()
        try:
            source = connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            with closing(sqlite3.connect(file)) as copy:
                source.backup(copy)
        finally:
            connection.close()

    def close(self) -> None:
        self._engine.dispose()


def open_store(url: str) -> Store:
    """Open (and where needed create or migrate) the store at an SQLAlchemy URL: `sqlite:////home/me/.plaudit/store.sqlite` or
    `postgresql://user:password@host/database`.

    Raises BadInput (no such URL), ConfigError (no driver installed), Corrupt (a file that is no database), Unavailable, Conflict (a store of
    a newer Plaudit).
    """
    store = Store(_engine(url), url)
    try:
        with store.write() as tx:
            migrate(tx.connection)
    except BaseException:
        store.close()
        raise
    return store


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise BadInput(f"{shown(url)!r} is not a database URL; write for example sqlite:///store.sqlite.") from error
    match parsed.drivername.partition("+")[0]:
        case "sqlite":
            if parsed.database and parsed.database != ":memory:":
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = sa.create_engine(parsed, connect_args={"timeout": PATIENCE_S, "check_same_thread": False})
            _sqlite_settings(engine)
        case "postgresql" | "postgres":
            parsed = parsed.set(drivername="postgresql+psycopg")
            given = {} if "connect_timeout" in parsed.query else {"connect_timeout": CONNECT_S}
            try:
                engine = sa.create_engine(parsed, pool_pre_ping=True, connect_args=given)
            except ModuleNotFoundError as error:
                raise ConfigError(f"PostgreSQL needs its driver ({error}); pip install 'plaudit[postgres]'.") from error
            _postgresql_settings(engine)
        case other:
            raise BadInput(
                f"The store can be SQLite or PostgreSQL, not {other!r}; give sqlite:///... or postgresql://..."
            )
    return engine


def _sqlite_settings(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:  # noqa: ARG001
        connection.isolation_level = None  # we send BEGIN ourselves: the driver's own rules commit behind our back
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={PATIENCE_S}000", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that will write takes the lock at once; upgrading later can fail without waiting.
        reading = connection.get_execution_options().get("plaudit_begin") == "read"
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _postgresql_settings(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:  # noqa: ARG001
        cursor = connection.cursor()
        # What is stronger (remote_apply) stays; what is weaker would acknowledge rows that a crash takes back.
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')"
        )
        cursor.execute(f"SET lock_timeout = '{PATIENCE_S}s'")
        # A client whose machine lost its power must not hold the writers' lock for the two hours of the system's default.
        for name, seconds in (("idle", 30), ("interval", 10)):
            cursor.execute(f"SET tcp_keepalives_{name} = {seconds}")
        cursor.execute("SET tcp_keepalives_count = 3")
        cursor.close()
        connection.commit()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        match connection.get_execution_options().get("plaudit_begin"):
            case "alone":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
            case "beside":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({_WRITERS})")
