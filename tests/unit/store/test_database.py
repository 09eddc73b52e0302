from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from plaudit.domain import Person, Project, Release, ReleaseState, Run, RunState, new_id
from plaudit.errors import BadInput, ConfigError, Conflict, Corrupt, NotFound, Unavailable
from plaudit.store import database
from plaudit.store.database import Store, open_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def somebody(name: str, project_id: str = "prj") -> Person:
    return Person(id=new_id(Person), project_id=project_id, name=name, created_at=NOW)


def run(key: str, **more: object) -> Run:
    return replace(Run(id=new_id(Run), project_id="prj", step="ppo", key=key, turn=1, created_at=NOW), **more)  # type: ignore[arg-type]


def test_sqlite_is_durable_patient_and_lets_readers_go_on(sqlite_url: str, synced: None) -> None:
    store = open_store(sqlite_url)
    with store.read() as tx:
        said = {name: tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in
                ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")}  # fmt: skip
    assert said == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30000, "foreign_keys": 1}  # 2 is FULL
    store.close()


def test_what_goes_in_comes_out(store: Store) -> None:
    made = run(
        "k", config={"lr": 1e-4, "name": "ü"}, state=RunState.RUNNING, lease_expires_at=NOW + timedelta(microseconds=1)
    )
    store.add(made)
    assert store.get(Run, made.id) == made
    with pytest.raises(NotFound, match="run_none"):
        store.get(Run, "run_none")


def test_find_filters_orders_limits_and_pages(store: Store) -> None:
    people = [somebody(name) for name in "dbca"]
    store.add(*people, somebody("x", "prj_2"))
    ids = [person.id for person in people]
    assert [one.id for one in store.find(Person, project_id="prj")] == ids  # ids sort by time
    assert [one.name for one in store.find(Person, project_id="prj", order="name")] == ["a", "b", "c", "d"]
    assert [one.name for one in store.find(Person, project_id="prj", order="name", descending=True, limit=2)] == [
        "d",
        "c",
    ]
    assert [one.id for one in store.find(Person, project_id="prj", after=ids[1])] == ids[2:]
    assert [one.id for one in store.find(Person, project_id="prj", after=ids[2], descending=True)] == ids[1::-1]
    assert {one.name for one in store.find(Person, name=("a", "b"))} == {"a", "b"}
    assert {one.name for one in store.find(Person, name={"x"}, project_id=["prj", "prj_2"])} == {"x"}
    assert store.find(Person, name=[]) == []
    assert store.first(Person, project_id="prj") == people[-1]
    assert store.first(Person, project_id="prj_3") is None
    assert (store.count(Person), store.count(Person, name=["a", "x"])) == (5, 2)


def test_none_means_null(store: Store) -> None:
    store.add(run("a", owner="me"), run("b"))
    assert [one.key for one in store.find(Run, owner=None)] == ["b"]
    assert store.count(Run, owner=None) == 1


def test_change_compares_before_it_sets(store: Store) -> None:
    made = run("k")
    store.add(made)
    changed = store.change(Run, made.id, {"state": RunState.QUEUED, "owner": None}, state=RunState.RUNNING, owner="me")
    assert changed == store.get(Run, made.id) == replace(made, state=RunState.RUNNING, owner="me")
    with pytest.raises(Conflict, match="running"):
        store.change(Run, made.id, {"state": RunState.QUEUED}, owner="you")
    assert store.get(Run, made.id).owner == "me"
    assert store.change(Run, made.id, owner=None).owner is None
    with pytest.raises(NotFound):
        store.change(Run, "run_none", owner="me")


def test_a_second_of_its_kind_is_a_conflict_and_nothing_of_the_transaction_stays(store: Store) -> None:
    store.add(somebody("ann"))
    with pytest.raises(Conflict, match="Person"):
        store.add(somebody("bob"), somebody("ann"))
    assert [one.name for one in store.find(Person)] == ["ann"]


def test_a_missing_value_is_a_bug_and_not_a_conflict(store: Store) -> None:
    with pytest.raises(IntegrityError):
        store.add(replace(somebody("ann"), name=None))  # type: ignore[arg-type]


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    def fail() -> None:
        with store.write() as tx:
            tx.add(somebody("ann"))
            assert tx.count(Person) == 1
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert store.count(Person) == 0


def test_a_reader_keeps_its_view_while_others_write(store: Store) -> None:
    with store.read() as tx:
        assert tx.count(Person) == 0
        writer = threading.Thread(target=store.add, args=(somebody("ann"),))
        writer.start()
        writer.join(25)  # less than the patience of a writer that a reader holds up
        assert not writer.is_alive()
        assert tx.count(Person) == 0
    assert store.count(Person) == 1


def test_a_writer_in_another_process_is_waited_for_and_then_reported(sqlite_url: str) -> None:
    """A foreign connection holds the write lock; with a short patience the answer is Unavailable, not a traceback of the driver."""
    store = open_store(sqlite_url)
    engine = sa.create_engine(sqlite_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as foreign:
        foreign.exec_driver_sql("BEGIN IMMEDIATE")
        impatient = sa.create_engine(sqlite_url, connect_args={"timeout": 0})
        hasty = Store(impatient, sqlite_url)
        with pytest.raises(Unavailable, match="locked"):
            hasty.add(somebody("ann"))
        foreign.exec_driver_sql("ROLLBACK")
        hasty.close()
    engine.dispose()
    store.add(somebody("ann"))
    store.close()


def test_writers_of_two_processes_queue_and_none_is_lost(store: Store, store_url: str) -> None:
    """Two Stores on one database share no lock but its own: on SQLite a transaction that upgraded from reading would fail at once, on
    PostgreSQL it would not see what the others wrote."""
    other = open_store(store_url)

    def write(number: int) -> None:
        for step in range(5):
            with (store, other)[number % 2].write() as tx:
                n = tx.count(Person)
                tx.add(somebody(f"{number}-{step}-{n}"))

    threads = [
        threading.Thread(target=write, args=(number,)) for number in range(20)
    ]  # more than a pool has connections
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    names = [one.name for one in store.find(Person)]
    assert sorted(int(name.rsplit("-", 1)[1]) for name in names) == list(range(100))  # each saw all that came before


CHILD = """
import sys
from datetime import UTC, datetime
from plaudit.domain import Person, new_id
from plaudit.store.database import open_store
store = open_store(sys.argv[1])
number = 0
while True:
    store.add(Person(id=new_id(Person), project_id="prj", name=str(number), created_at=datetime.now(UTC)))
    print(number, flush=True)
    number += 1
"""


def test_kill_9_loses_no_acknowledged_row(url: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, url], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(20)]
    child.kill()
    acknowledged += [int(line) for line in child.stdout.read().split()]
    child.wait()
    child.stdout.close()
    store = open_store(url)
    stored = {int(one.name) for one in store.find(Person)}
    store.close()
    assert stored >= set(acknowledged)
    assert len(stored) <= len(acknowledged) + 2  # at most what was under way


def test_a_url_that_is_none_is_refused_and_folders_are_made(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="database URL"):
        open_store("not a url")
    deep = tmp_path / "a" / "b" / "store.sqlite"
    open_store(f"sqlite:///{deep}").close()
    assert deep.is_file()


def test_a_file_that_is_no_database_is_one_sentence_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    file.write_bytes(b"this is not a database " * 100)
    with pytest.raises(Corrupt, match=rf"^{file} is no SQLite database .* backup, or move it away"):
        open_store(f"sqlite:///{file}")
    assert file.read_bytes() == b"this is not a database " * 100


def test_a_database_whose_pages_are_broken_is_named(sqlite_url: str, tmp_path: Path) -> None:
    store = open_store(sqlite_url)
    store.add(*(somebody(str(number)) for number in range(200)))
    store.close()
    file = tmp_path / "store.sqlite"
    kept = file.read_bytes()
    file.write_bytes(kept[:4096] + b"\xff" * (len(kept) - 4096))  # the header and the schema's first page stay
    with pytest.raises(Corrupt, match=r"store\.sqlite is no SQLite"):
        open_store(sqlite_url).find(Person)


def release(state: ReleaseState, project_id: str = "prj") -> Release:
    return Release(
        id=new_id(Release),
        project_id=project_id,
        checkpoint_id=None,
        model="m",
        upstream="fake:",
        state=state,
        created_at=NOW,
        state_at=NOW,
    )


def test_a_project_has_one_live_release_whoever_writes(store: Store) -> None:
    waiting = release(ReleaseState.CANARY)
    live, live_state = release(ReleaseState.LIVE), {"state": ReleaseState.CANARY}
    store.add(live, waiting, release(ReleaseState.RETIRED), release(ReleaseState.RETIRED))
    store.add(release(ReleaseState.LIVE, "prj_2"))
    with pytest.raises(Conflict, match="Release"):
        store.add(release(ReleaseState.LIVE))
    with pytest.raises(Conflict, match=f"{waiting.id} would be the second"):
        store.change(Release, waiting.id, live_state, state=ReleaseState.LIVE)
    store.change(Release, live.id, state=ReleaseState.RETIRED)
    assert store.change(Release, waiting.id, live_state, state=ReleaseState.LIVE).state == ReleaseState.LIVE


def test_a_project_is_reopened_with_its_rows(url: str) -> None:
    first = open_store(url)
    project = Project(id="prj", project_id="prj", name="p", created_at=NOW)
    first.add(project)
    first.close()
    second = open_store(url)
    assert second.get(Project, "prj") == project
    second.close()


def test_a_statement_is_built_once_per_shape(store: Store) -> None:
    """Building a statement costs more than running it; a hundred look-ups by other values must not cost a hundred builds."""
    store.find(Person, name="warm", project_id="up")
    before = database._select.cache_info().misses
    for number in range(100):
        store.find(Person, name=str(number), project_id="prj")
    assert database._select.cache_info().misses == before


# --- what only PostgreSQL has -----------------------------------------------------------------------------------------------


def setting(tx: database.Transaction, name: str) -> str:
    return str(tx.connection.exec_driver_sql(f"SHOW {name}").scalar_one())


def test_postgresql_commits_are_durable_where_the_server_would_not(postgres_store_url: str) -> None:
    engine = sa.create_engine(postgres_store_url)
    with engine.connect() as other:
        assert other.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "off"  # the test server's default
    engine.dispose()
    store = open_store(postgres_store_url)
    for transaction in (store.write(), store.write(beside_others=True)):
        with transaction as tx:
            assert (setting(tx, "synchronous_commit"), setting(tx, "lock_timeout")) == ("on", "30s")
            assert (setting(tx, "transaction_isolation"), setting(tx, "transaction_read_only")) == (
                "read committed",
                "off",
            )
    with store.read() as tx:
        assert (setting(tx, "transaction_isolation"), setting(tx, "transaction_read_only")) == ("repeatable read", "on")
    store.close()


def test_a_stronger_promise_of_the_server_stays(postgres_store_url: str) -> None:
    store = open_store(postgres_store_url + "&options=-csynchronous_commit%3Dremote_apply")
    with store.write() as tx:
        assert setting(tx, "synchronous_commit") == "remote_apply"
    store.close()


def test_who_writes_alone_waits_for_the_others_and_they_for_him(postgres_store_url: str, monkeypatch) -> None:
    monkeypatch.setattr(database, "PATIENCE_S", 0.2)
    store, other = open_store(postgres_store_url), open_store(postgres_store_url)
    with store.write(beside_others=True) as tx:
        tx.add(somebody("ann"))
        with other.write(beside_others=True) as beside:  # would wait for ever if it waited
            beside.add(somebody("bob"))
        with pytest.raises(Unavailable, match=r"lock timeout\); check the database server"):
            other.add(somebody("eve"))
    with store.write() as tx:
        for beside_others in (True, False):
            with pytest.raises(Unavailable, match="lock timeout"), other.write(beside_others=beside_others):
                pass
        assert other.count(Person) == 2  # a reader waits for nobody
    store.close()
    other.close()


def test_a_connection_that_the_server_ends_is_unavailable_once(postgres, postgres_store_url: str) -> None:
    store = open_store(postgres_store_url)

    def cut_off() -> None:
        with store.write() as tx:
            tx.add(somebody("ann"))
            (pid,) = tx.connection.exec_driver_sql("SELECT pg_backend_pid()").one()
            postgres.ask(f"SELECT pg_terminate_backend({pid}, 5000)")
            tx.count(Person)

    with pytest.raises(Unavailable, match="check the database server"):
        cut_off()
    assert store.count(Person) == 0
    store.add(somebody("ann"))
    store.close()


def test_a_server_that_only_reads_is_unavailable(postgres_store_url: str) -> None:
    store = open_store(postgres_store_url)

    def as_on_a_standby() -> None:
        with store.write() as tx:
            tx.connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            tx.add(somebody("ann"))

    with pytest.raises(Unavailable, match="read-only"):
        as_on_a_standby()
    store.close()


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        Unavailable, match=r"^The store does not answer \(.*\); check the database server and try again\.$"
    ):
        open_store(f"postgresql://somebody@/plaudit?host={tmp_path}")


def test_without_a_driver_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"plaudit\[postgres\]"):
        open_store("postgresql://somebody@/plaudit")


def test_other_databases_are_refused() -> None:
    with pytest.raises(BadInput, match="SQLite or PostgreSQL, not 'mysql'"):
        open_store("mysql://localhost/plaudit")


def test_the_character_that_postgresql_cannot_hold_is_replaced_everywhere(store: Store) -> None:
    store.add(somebody("a\x00b"))
    assert [one.name for one in store.find(Person, name="a\x00b")] == ["a\ufffdb"]
