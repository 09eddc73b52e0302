"""Before anything imports torch: idle threads must wait, not spin, because tests share their cores with the servers they start.

And a throwaway PostgreSQL: `postgres_url` is an empty database of its own, `postgres_store_url` one with today's schema and no rows. SQLite in
this process waits for no disk, and `with_schema(file)` is a store with today's schema that ran no migration.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import pwd
import shlex
import shutil
import sqlite3
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "2")

# Not what a person would run: nothing is kept, and commits are weak unless the store asks for more, which a test wants to see.
SERVER = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=100", "shared_buffers=32MB", "jit=off")  # fmt: skip
# Names sort as people in English want it, not by bytes: nothing of ours may lean on the order of a particular database.
CLUSTER = ("--username=plaudit", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu",
           "--icu-locale=en-US", "--no-sync")  # fmt: skip
WITH_SCHEMA = "with_schema"
# To empty what has rows is quicker than to make a database for each test.
EMPTY = """
DO $$ DECLARE name text; filled bool; BEGIN
  PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migrations' LOOP
    EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I)', name) INTO filled;
    IF filled THEN EXECUTE format('TRUNCATE %I', name); END IF;
  END LOOP;
END $$
"""


LONG = ("e2e", "service", "learning", "invariance")  # folders whose files take up to minutes each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest go first, or one worker would end alone with a file of minutes; within a folder and after these the order stays random.
    By itself `--dist loadfile` starts with the files of most tests, and the longest of ours have one to four."""
    items.sort(key=lambda item: next((n for n, folder in enumerate(LONG) if folder in item.path.parts), len(LONG)))


@dataclass
class Postgres:
    """A running server that nobody else can reach."""

    folder: str  # of the socket
    bin: Path
    pid: int
    numbers: Iterator[int]

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://plaudit@/{database}?host={self.folder}"

    def ask(self, statement: str, database: str = "postgres") -> list[Any]:
        import psycopg

        with psycopg.connect(host=self.folder, user="plaudit", dbname=database, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database of one's own."""
        name = f"plaudit_{next(self.numbers)}"
        self.ask(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.ask(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Starts a server from the installed binaries. It dies with this process, also by kill -9: a shell beside it waits for the end of a pipe
    that only we hold. Servers refuse to run as root; there it runs as nobody, in a folder whose parents nobody may enter."""
    binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [
        found for found in [shutil.which("initdb")] if found
    ]
    if not binaries:
        pytest.skip("PostgreSQL is not installed (initdb is not in /usr/lib/postgresql/*/bin)")
    bin = Path(binaries[-1]).parent
    folder = tempfile.mkdtemp(prefix="plaudit-pg-")
    who: dict[str, Any] = {"cwd": "/", "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        who |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data = f"{folder}/data"
    subprocess.run([bin / "initdb", "-D", data, *CLUSTER], check=True, capture_output=True, **who)
    settings = " ".join(
        f"-c {shlex.quote(one)}" for one in (*SERVER, "listen_addresses=", f"unix_socket_directories={folder}")
    )
    script = f"{bin}/postgres -D {data} {settings} >{folder}/log 2>&1 & read end; kill -QUIT $!; wait; rm -rf {folder}"
    shell = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True, **who)
    try:
        server = Postgres(folder, bin, _wait_for(folder, shell), count())
        server.ask(f"CREATE DATABASE {WITH_SCHEMA}")
        from plaudit.store.database import open_store

        open_store(server.url(WITH_SCHEMA)).close()
        yield server
    finally:
        assert shell.stdin is not None
        shell.stdin.close()
        shell.wait(timeout=60)


def _wait_for(folder: str, shell: subprocess.Popen[bytes]) -> int:
    """The server's process id, once it takes connections."""
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host=folder, user="plaudit", dbname="postgres").close()
        except psycopg.OperationalError:
            assert shell.poll() is None, "PostgreSQL ended at its start"
            assert time.monotonic() < deadline, Path(folder, "log").read_text()
            time.sleep(0.02)
        else:
            return int(Path(folder, "data", "postmaster.pid").read_text().split()[0])


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def postgres_store_url(postgres: Postgres) -> Iterator[str]:
    yield postgres.url(WITH_SCHEMA)
    postgres.ask(EMPTY, WITH_SCHEMA)


# --- SQLite --------------------------------------------------------------------------------------------------------------


def _wait_for_no_disk(connection: Any, record: Any, proxy: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(autouse=True, scope="session")
def no_disk() -> Iterator[None]:
    """What the product commits to SQLite in this process it does not sync: thousands of commits would wait for a disk that nobody pulls out.
    The processes that tests start do sync, and test_power_loss looks at their calls; `synced` is for what must be seen here."""
    sa.event.listen(sa.pool.Pool, "checkout", _wait_for_no_disk)
    yield
    sa.event.remove(sa.pool.Pool, "checkout", _wait_for_no_disk)


@pytest.fixture
def synced(no_disk: None) -> Iterator[None]:
    """SQLite as the product sets it up."""
    sa.event.remove(sa.pool.Pool, "checkout", _wait_for_no_disk)
    yield
    sa.event.listen(sa.pool.Pool, "checkout", _wait_for_no_disk)


@pytest.fixture(scope="session")
def with_schema(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """with_schema(file) -> the URL of a SQLite store with today's schema: a new one is a copy, for a tenth of what all migrations take."""
    from plaudit.store.database import open_store

    made = tmp_path_factory.mktemp("schema") / "store.sqlite"
    open_store(f"sqlite:///{made}").close()

    def copy(file: Path) -> str:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():  # or rows that a test put there would go
            shutil.copyfile(made, file)
        return f"sqlite:///{file}"

    return copy


# --- HTTP ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="session")
def certificates_read_once() -> Iterator[None]:
    """Every client of httpx reads all the world's certificates, 50 ms of a core, also where it only speaks http to this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield
