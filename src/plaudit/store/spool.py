"""Rows on a local disk while the store is away: append-only files, fsynced, replayed when it is back. Ids are the keys: a row that the
store already has is not written again, so a replay can be cut short and repeated.

A file belongs to the process that holds its lock. `leftovers` are files whose process is gone: a kill -9 leaves what it had acknowledged,
and the next one to start replays it. A line is `crc32 json`; a line that a crash cut off has been acknowledged to nobody and is skipped.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from plaudit.domain import Interaction
from plaudit.errors import Corrupt, Unavailable
from plaudit.store.database import Store
from plaudit.store.schema import TABLES

MAX_REPLAYED = 1024  # entries in one transaction
REFUSED = "refused.jsonl"
NOTHING = b'{"rows":[],"changes":[]}'  # an entry in which nothing happens
_KINDS = {kind.__name__: kind for kind in TABLES}
log = logging.getLogger("plaudit.store")


@dataclass(frozen=True)
class Change:
    """A correction of a row that was written before: which columns of which one."""

    kind: type
    id: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """What is written together or not at all."""

    rows: tuple[Any, ...] = ()
    changes: tuple[Change, ...] = ()


class Spool:
    """The files of one process in a folder that others may use too. One thread appends, another replays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: list[_File] = []  # the last is appended to
        self._name = f"spool-{os.getpid()}-{os.urandom(4).hex()}-"
        self._n_made = 0

    def append(self, entries: Sequence[Entry]) -> None:
        """Write and fsync. Raises OSError; then the file is left as it is, and the next call begins another."""
        if not self._own or self._own[-1].failed:
            self._own.append(self._make())
        self._own[-1].append(b"".join(map(_line, entries)))

    def leftovers(self) -> bool:
        """Whether a process that is gone has left rows here."""
        return any(not _held(path) for path in self._others())

    def replay(self, store: Store) -> int:
        """Write what the store lacks, first what others have left; the number of entries read. Files of others that are through are
        removed. Raises Unavailable, Corrupt; what was not reached is read again by the next call."""
        n_read = 0
        for path in self._others():
            left = _File.adopt(path)
            if left is not None:
                try:
                    n_read += self._replay(left, store)
                    left.path.unlink(missing_ok=True)
                finally:
                    left.close()
        return n_read + sum(self._replay(file, store) for file in list(self._own))

    def clear(self) -> None:
        """Remove our own files. The caller knows that all of them are replayed and nobody appends."""
        for file in self._own:
            file.path.unlink(missing_ok=True)
            file.close()
        self._own = []

    def close(self) -> None:
        """Let go of the files, which stay for whoever comes next."""
        for file in self._own:
            file.close()
        self._own = []

    def _make(self) -> _File:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            self._n_made += 1
            try:
                return _File.create(self._folder / f"{self._name}{self._n_made:06}.jsonl")
            except BlockingIOError:  # somebody looking for leftovers was quicker with the lock
                continue

    def _others(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("spool-*.jsonl") if not path.name.startswith(self._name))

    def _replay(self, file: _File, store: Store) -> int:
        n_read = 0
        while lines := file.read(MAX_REPLAYED):
            self._write(store, lines)
            file.advance(lines)
            n_read += len(lines)
        return n_read

    def _write(self, store: Store, lines: list[bytes]) -> None:
        """All in one transaction; where that fails, one by one. What the store refuses for ever is kept in a file of its own."""
        entries = [entry for entry in map(_entry, lines) if entry is not None]
        try:
            _apply(store, entries)
        except (Unavailable, Corrupt):
            raise
        except Exception as error:
            if len(lines) == 1:
                log.exception("A spooled row cannot be written; it is kept in %s.", self._folder / REFUSED)
                with (self._folder / REFUSED).open("ab") as kept:
                    kept.write(lines[0])
                    kept.flush()
                    os.fsync(kept.fileno())
                return
            log.info("A batch of spooled rows is written one by one (%s).", error)
            for line in lines:
                self._write(store, [line])


def forget(folder: Path, project_id: str, actor: str, interaction_ids: Collection[str]) -> int:
    """Empty every entry about this user, also in files of living processes and in what the store refused; the number of entries. An emptied
    line is as long as it was, so whoever appends to its file or replays it goes on undisturbed."""
    files = [*sorted(folder.glob("spool-*.jsonl")), *folder.glob(REFUSED)]
    theirs = set(interaction_ids)
    for path in files:
        for _, line in _lines(path):
            for row in (_body(line) or {}).get("rows", ()):
                if row["kind"] == Interaction.__name__ and _said_by(row["columns"], project_id, actor):
                    theirs.add(row["columns"]["id"])
    return sum(
        _empty(path, [(at, line) for at, line in _lines(path) if _is_about(line, project_id, actor, theirs)])
        for path in files
    )


def _is_about(line: bytes, project_id: str, actor: str, interaction_ids: Collection[str]) -> bool:
    body = _body(line)
    if body is None:  # torn: nobody reads it any more, and it may quote them all the same
        return json.dumps(actor).encode() in line or any(id.encode() in line for id in interaction_ids)
    return any(change["id"] in interaction_ids for change in body["changes"]) or any(
        _said_by(columns, project_id, actor)
        or not {columns.get("id"), columns.get("interaction_id")}.isdisjoint(interaction_ids)
        for columns in (row["columns"] for row in body["rows"])
    )


def _said_by(columns: dict[str, Any], project_id: str, actor: str) -> bool:
    return columns.get("actor") == actor and columns.get("project_id") == project_id


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(first byte, line) of the whole lines; none where the file is gone."""
    at = 0
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield at, line
                at += len(line)
    except FileNotFoundError:  # replayed in this moment
        return


def _empty(path: Path, found: Sequence[tuple[int, bytes]]) -> int:
    if not found:
        return 0
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        for at, line in found:
            text = NOTHING.ljust(len(line) - 10)  # the crc and what stands around the text
            os.pwrite(descriptor, b"%08x %s\n" % (zlib.crc32(text), text), at)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return len(found)


def _apply(store: Store, entries: Sequence[Entry]) -> None:
    by_kind: dict[type[Any], dict[str, Any]] = {}
    for entry in entries:
        for row in entry.rows:
            by_kind.setdefault(type(row), {})[row.id] = row
    with store.write() as tx:
        for kind, rows in by_kind.items():
            known = {found.id for found in tx.find(kind, id=list(rows))}
            tx.add(*(row for id, row in rows.items() if id not in known))
        for entry in entries:
            for change in entry.changes:
                tx.change(change.kind, change.id, **change.columns)


# --- files -------------------------------------------------------------------------------------------------------------


class _File:
    """A locked file with a place up to which it was replayed."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.failed = False
        self._descriptor = descriptor
        self._replayed = 0

    @classmethod
    def create(cls, path: Path) -> _File:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            _lock(path, descriptor)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # else a power cut can take the name of a file whose bytes are safe
            finally:
                os.close(folder)
        except OSError:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    @classmethod
    def adopt(cls, path: Path) -> _File | None:
        """The file of a process that is gone; None while it lives, or where another has taken it."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            _lock(path, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def append(self, content: bytes) -> None:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError:
            self.failed = True  # after a failed fsync nobody knows what is on the disk: never write here again
            raise

    def read(self, n_lines: int) -> list[bytes]:
        """Whole lines from the place on."""
        lines: list[bytes] = []
        with open(self.path, "rb") as opened:
            opened.seek(self._replayed)
            for line in opened:
                if not line.endswith(b"\n") or len(lines) == n_lines:
                    break
                lines.append(line)
        return lines

    def advance(self, lines: Sequence[bytes]) -> None:
        self._replayed += sum(map(len, lines))

    def close(self) -> None:
        os.close(self._descriptor)


def _lock(path: Path, descriptor: int) -> None:
    """Raises BlockingIOError where another has it, or has had it and removed the file since we opened it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        same = path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        same = False
    if not same:
        raise BlockingIOError(f"{path} was removed in the moment in which it was locked.")


def _held(path: Path) -> bool:
    """Whether a living process has the file."""
    found = _File.adopt(path)
    if found is None:
        return True
    found.close()
    return False


# --- lines -------------------------------------------------------------------------------------------------------------


def _line(entry: Entry) -> bytes:
    body = {
        "rows": [{"kind": type(row).__name__, "columns": _columns(type(row), _values(row))} for row in entry.rows],
        "changes": [
            {"kind": change.kind.__name__, "id": change.id, "columns": _columns(change.kind, change.columns)}
            for change in entry.changes
        ],
    }
    text = json.dumps(body, ensure_ascii=True, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _entry(line: bytes) -> Entry | None:
    """None for a line that is torn."""
    body = _body(line)
    if body is None:
        log.warning("A line of the spool is torn and was acknowledged to nobody; it is skipped.")
        return None
    return Entry(
        tuple(_KINDS[row["kind"]](**dict(_objects(_KINDS[row["kind"]], row["columns"]))) for row in body["rows"]),
        tuple(
            Change(_KINDS[one["kind"]], one["id"], dict(_objects(_KINDS[one["kind"]], one["columns"])))
            for one in body["changes"]
        ),
    )


def _body(line: bytes) -> dict[str, Any] | None:
    crc, _, text = line.removesuffix(b"\n").partition(b" ")
    if crc != b"%08x" % zlib.crc32(text):
        return None
    body: dict[str, Any] = json.loads(text)
    return body


def _values(row: Any) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(row)}


def _columns(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """As the database is given them."""
    table = TABLES[kind]
    return {
        name: bind(value, None) if (bind := getattr(table.c[name].type, "process_bind_param", None)) else value
        for name, value in values.items()
    }


def _objects(kind: type, columns: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The opposite."""
    table = TABLES[kind]
    for name, value in columns.items():
        read = getattr(table.c[name].type, "process_result_value", None)
        yield name, read(value, None) if read else value
