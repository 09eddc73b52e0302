"""The spool: what was appended is in the store after a replay, whatever happened in between, and only once."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from plaudit.domain import (
    DEFAULT_PROJECT,
    Completion,
    CompletionStatus,
    Interaction,
    InteractionSource,
    Person,
    Response,
    ResponseOrigin,
    TrainingUse,
)
from plaudit.errors import Unavailable
from plaudit.store import spool as module
from plaudit.store.database import Store
from plaudit.store.spool import REFUSED, Change, Entry, Spool

NOW = datetime(2026, 11, 22, 9, 30, 0, 123456, tzinfo=UTC)


def person(number: int, name: str = "") -> Person:
    return Person(
        id=f"per_{number}", project_id=DEFAULT_PROJECT, name=name or f"p{number}", roles=("lead",), created_at=NOW
    )


def turn() -> tuple[Interaction, Completion, Response]:
    """One of each noun that the gateway writes, with every type of column."""
    interaction = Interaction(
        id="int_1", project_id=DEFAULT_PROJECT, conversation_id="cnv_1", turn=1, actor=None,
        messages=({"role": "user", "content": "Grüße 🎉\n\u2028"},), family="f", prompt_sha256="0" * 64,
        source=InteractionSource.GATEWAY, release_id="rel_1", served_release_id="rel_1", assignment_probability=0.1,
        sampling={"temperature": 0.7}, training_use=TrainingUse.ALLOWED, attributes={"a": True},
        verdicts=({"filter": "x", "action": "flag", "n": 1},), created_at=NOW,
    )  # fmt: skip
    completion = Completion(
        id="int_1", project_id=DEFAULT_PROJECT, status=CompletionStatus.OK, model="m", prompt_tokens=3, latency_ms=0.1 + 0.2,
        created_at=NOW,
    )  # fmt: skip
    response = Response(
        id="res_1", project_id=DEFAULT_PROJECT, interaction_id="int_1", idx=0, text="hi", finish_reason=None,
        origin=ResponseOrigin.SERVED, model="m", logprob=-1.5, tool_calls=({"id": "c"},), created_at=NOW,
    )  # fmt: skip
    return interaction, completion, response


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path):
    made = Spool(folder)
    yield made
    made.close()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("spool-*.jsonl"))


def test_rows_and_changes_come_back_as_they_were(store: Store, spool: Spool) -> None:
    interaction, completion, response = turn()
    spool.append([Entry((interaction,))])
    denied = Change(Interaction, "int_1", {"training_use": TrainingUse.DENIED, "served_release_id": "rel_2"})
    spool.append([Entry((completion, response), (denied,)), Entry((person(1),))])
    assert spool.replay(store) == 3
    expected = replace(interaction, training_use=TrainingUse.DENIED, served_release_id="rel_2")
    assert store.get(Interaction, "int_1") == expected
    assert store.get(Completion, "int_1") == completion
    assert store.get(Response, "res_1") == response
    assert store.get(Person, "per_1") == person(1)


def test_nothing_is_written_twice_however_often_it_is_replayed(store: Store, folder: Path) -> None:
    first = Spool(folder)
    first.append([Entry((person(number),)) for number in range(5)])
    store.add(person(2), person(4))  # a commit that ended late
    assert first.replay(store) == 5
    assert first.replay(store) == 0  # it knows how far it is
    first.close()  # as a crash before `clear` would
    second = Spool(folder)
    assert second.leftovers()
    assert second.replay(store) == 5  # it does not
    assert {found.id for found in store.find(Person)} == {f"per_{number}" for number in range(5)}
    assert list(folder.iterdir()) == []  # nothing was refused as a conflict either


def test_what_comes_during_a_replay_is_read_by_the_next(store: Store, spool: Spool) -> None:
    spool.append([Entry((person(1),))])
    spool.replay(store)
    spool.append([Entry((person(2),))])
    assert spool.replay(store) == 1
    assert store.count(Person) == 2


def test_a_file_belongs_to_a_process_until_that_is_gone(store: Store, folder: Path) -> None:
    alive, other = Spool(folder), Spool(folder)
    alive.append([Entry((person(1),))])
    assert not other.leftovers()
    assert other.replay(store) == 0
    assert store.count(Person) == 0
    alive.close()
    assert other.leftovers()
    assert other.replay(store) == 1
    assert (store.count(Person), files(folder)) == (1, [])


def test_a_line_that_a_crash_cut_off_is_skipped_and_the_rest_is_read(store: Store, folder: Path, caplog) -> None:
    dead = Spool(folder)
    dead.append([Entry((person(1),)), Entry((person(2),)), Entry((person(3),))])
    (path,) = files(folder)
    dead.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"per_2", b"per_9") + lines[2][:-20])
    with caplog.at_level(logging.WARNING):
        Spool(folder).replay(store)
    assert [found.id for found in store.find(Person)] == ["per_1"]
    assert "torn" in caplog.text


def test_a_store_that_is_away_leaves_all_of_it_for_the_next_time(store: Store, spool: Spool, monkeypatch) -> None:
    spool.append([Entry((person(number),)) for number in range(5)])
    monkeypatch.setattr(module, "MAX_REPLAYED", 2)
    with monkeypatch.context() as patch:
        n_writes = []

        def write() -> None:
            n_writes.append(1)
            if len(n_writes) == 2:
                raise Unavailable("away")
            return Store.write(store)

        patch.setattr(store, "write", write)
        with pytest.raises(Unavailable):
            spool.replay(store)
    assert store.count(Person) == 2
    assert spool.replay(store) == 3
    assert store.count(Person) == 5


def test_a_row_that_the_store_refuses_for_ever_is_kept_aside_and_hinders_no_other(
    store: Store, spool: Spool, folder: Path
) -> None:
    store.add(person(7, "taken"))
    spool.append([Entry((person(1),)), Entry((person(2, "taken"),)), Entry((person(3),))])
    assert spool.replay(store) == 3
    assert [found.id for found in store.find(Person)] == ["per_1", "per_3", "per_7"]
    assert b"per_2" in (folder / REFUSED).read_bytes()


def test_after_a_failed_fsync_a_file_is_written_to_no_more(
    store: Store, spool: Spool, folder: Path, monkeypatch
) -> None:
    spool.append([Entry((person(1),))])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input"):
            spool.append([Entry((person(2),))])
    spool.append([Entry((person(3),))])
    assert len(files(folder)) == 2
    spool.replay(store)
    assert {"per_1", "per_3"} <= {found.id for found in store.find(Person)}
    spool.clear()
    assert files(folder) == []


def test_only_the_owner_may_read_what_users_said(spool: Spool, folder: Path) -> None:
    spool.append([Entry((person(1),))])
    assert [oct(path.stat().st_mode & 0o777) for path in (folder, *files(folder))] == ["0o700", "0o600"]


def test_no_line_is_acknowledged_before_its_fsync(spool: Spool, monkeypatch) -> None:
    """Order of the calls: all bytes written, then synced, then returned."""
    calls = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *a: calls.append("write") or write(*a))
    monkeypatch.setattr(os, "fsync", lambda *a: calls.append("fsync") or fsync(*a))
    spool.append([Entry((person(1),))])
    assert calls == ["fsync", "write", "fsync"]  # the folder, which holds the name; then the file


def test_a_file_that_another_removes_before_it_is_locked_is_never_written_to(
    store: Store, spool: Spool, folder: Path, monkeypatch
) -> None:
    """Another process that looks for leftovers may see a file between its creation and its lock, take it for one, and remove it."""
    flock = module.fcntl.flock
    raced = []

    def late(descriptor: int, how: int) -> None:
        if not raced:
            raced.append(1)
            assert Spool(folder).replay(store) == 0  # adopts the empty file
        flock(descriptor, how)

    monkeypatch.setattr(module.fcntl, "flock", late)
    spool.append([Entry((person(1),))])
    assert spool.replay(store) == 1
    assert store.count(Person) == 1
