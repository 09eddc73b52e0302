"""A power cut at any moment loses no acknowledged row: neither of the store (SQLite, `synchronous=FULL`) nor of the spool.

strace records every write, sync, truncation and name of a recorder at work, and the ids in the moment at which they are acknowledged. At 200
moments the disk is rebuilt as a power cut may leave it (what was synced, and of the rest nothing or a random part, torn at sectors; a new
file only where its folder was synced), opened, and searched for every id that had been acknowledged by then.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from plaudit.domain import Person, utc_now
from plaudit.errors import Corrupt
from plaudit.loop import govern
from plaudit.store.database import open_store
from plaudit.store.spool import Spool

N_CUTS = 200
SECTOR = 512
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")]

# Turns in three phases: the store takes the rows, it is locked and the spool takes them, it is back. Small caches: checkpoints happen.
WORK = """
import asyncio, os, sqlite3, sys
from pathlib import Path
from plaudit.domain import DEFAULT_PROJECT, Person, new_id, utc_now
from plaudit.store.database import open_store
from plaudit.store.spool import Spool
from plaudit.web.recorder import Recorder

home = Path(sys.argv[1])

def person(n):
    id = new_id(Person)
    return Person(id=id, project_id=DEFAULT_PROJECT, name=id + "x" * 600, created_at=utc_now())

async def some(recorder, n_groups):
    for group in range(n_groups):
        people = [person(n) for n in range(5)]
        async def one(row):
            await recorder.submit(row)
            os.write(1, b"ack " + row.id.encode() + b"\\n")
        await asyncio.gather(*(one(row) for row in people))

async def work():
    store = open_store(f"sqlite:///{home / 'store.sqlite'}")
    with store.read() as tx:
        tx.connection.exec_driver_sql("PRAGMA wal_autocheckpoint=20")
    recorder = Recorder(store, Spool(home / "spool"), patience_s=0.05)
    recorder.start()
    await some(recorder, 20)
    lock = sqlite3.connect(home / "store.sqlite", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    await some(recorder, 20)
    assert recorder.spooling
    lock.execute("ROLLBACK")
    lock.close()
    while recorder.spooling:
        await asyncio.sleep(0.01)
    await some(recorder, 20)
    await recorder.stop()
    store.close()

asyncio.run(work())
"""


# --- the trace ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    what: str  # create | write | truncate | unlink | sync begins | sync ends | ack
    path: str = ""
    offset: int | None = None  # of a write; None appends
    data: bytes = b""
    sync: int = 0


CALLS = "openat,write,pwrite64,fsync,fdatasync,ftruncate,unlink,close"
LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))$")
RESULT = re.compile(r"^(.*)\) += (-?\d+|\?)")
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def recorded(home: Path) -> list[Event]:
    """What a recorder at work in `home` did to the disk, in order."""
    trace = home.parent / "trace.txt"
    command = ["strace", "-f", "--seccomp-bpf", "-xx", "-s", "1000000", "-o", str(trace), "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [*command, sys.executable, "-c", WORK, str(home)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(events(trace, str(home)))


def events(trace: Path, home: str) -> Iterator[Event]:
    open_files: dict[int, str] = {}
    waiting: dict[str, tuple[str, str, int]] = {}
    for n_sync, line in enumerate(trace.read_text().splitlines()):
        found = LINE.match(line)
        if not found:
            continue
        thread, resumed, rest, call, arguments = found.groups()
        if resumed:
            call, arguments, n_begun = waiting.pop(thread)
            arguments += rest
        else:
            n_begun = n_sync
            yield from begins(call, arguments, n_begun, open_files)
            if arguments.endswith("<unfinished ...>"):
                waiting[thread] = (call, arguments.removesuffix("<unfinished ...>"), n_begun)
                continue
        arguments, result = RESULT.match(arguments).groups()
        if result.isdigit():  # else it failed
            yield from ends(call, arguments, int(result), n_begun, open_files, home)


def begins(call: str, arguments: str, number: int, open_files: dict[int, str]) -> Iterator[Event]:
    """A sync covers what was written before it began; an acknowledgement counts from its first moment."""
    descriptor = re.match(r"(\d+)", arguments)
    if call in ("fsync", "fdatasync") and descriptor and int(descriptor[1]) in open_files:
        yield Event("sync begins", open_files[int(descriptor[1])], sync=number)
    if call == "write" and descriptor and int(descriptor[1]) == 1:
        yield Event("ack", text(arguments).decode().split()[1])


def ends(call: str, arguments: str, result: int, number: int, open_files: dict[int, str], home: str) -> Iterator[Event]:
    if call == "openat":
        path = text(arguments).decode()
        open_files.pop(result, None)
        if path.startswith(home) and not path.endswith("-shm"):
            open_files[result] = path
            if "O_CREAT" in arguments:
                yield Event("create", path)
        return
    if call == "unlink":
        yield Event("unlink", text(arguments).decode())
        return
    descriptor = int(re.match(r"\d+", arguments)[0])
    path = open_files.get(descriptor, "")
    if not path:
        return
    match call:
        case "close":
            del open_files[descriptor]
        case "write":
            yield Event("write", path, None, text(arguments)[:result])
        case "pwrite64":
            yield Event("write", path, int(arguments.rpartition(",")[2]), text(arguments)[:result])
        case "ftruncate":
            yield Event("truncate", path, int(arguments.rpartition(",")[2]))
        case _:
            yield Event("sync ends", path, sync=number)


def text(arguments: str) -> bytes:
    return bytes.fromhex(TEXT.search(arguments)[1].replace("\\x", ""))


# --- the disk ----------------------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """What is safe, and what is only written."""

    safe: dict[str, bytearray]
    size: dict[str, int]  # as the process sees it
    loose: dict[str, list[Event]] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)  # names that their folder does not have for sure
    begun: dict[int, tuple[str, int]] = field(
        default_factory=dict
    )  # sync -> how much of its file was loose when it began

    def apply(self, event: Event, syncs_work: bool = True) -> None:
        path = event.path
        match event.what:
            case "create" if path not in self.safe:
                self.safe[path], self.size[path] = bytearray(), 0
                self.new.add(path)
            case "write":
                at = self.size[path] if event.offset is None else event.offset
                self.size[path] = max(self.size[path], at + len(event.data))
                self.loose.setdefault(path, []).append(Event("write", path, at, event.data))
            case "truncate":
                self.size[path] = event.offset or 0
                self.loose.setdefault(path, []).append(event)
            case "unlink":
                for known in (self.safe, self.size, self.loose):
                    known.pop(path, None)
            case "sync begins":
                self.begun[event.sync] = path, len(self.loose.get(path, ()))
            case "sync ends" if syncs_work:
                _, n_safe = self.begun.pop(event.sync)
                for one in self.loose.get(path, [])[:n_safe]:
                    put(self.safe[path], one)
                self.loose[path] = self.loose.get(path, [])[n_safe:]
                for sync, (other, n) in self.begun.items():
                    self.begun[sync] = other, max(0, n - n_safe) if other == path else n
                self.new = {name for name in self.new if str(Path(name).parent) != path}  # the folder was synced

    def after_power_cut(self, luck: random.Random | None) -> dict[str, bytes]:
        """Without luck nothing loose is left; with it some of it is, in any mixture."""
        left = {}
        for path, content in self.safe.items():
            if path in self.new and (luck is None or luck.random() < 0.5):
                continue
            copy = bytearray(content)
            for event in self.loose.get(path, ()) if luck else ():
                if luck.random() < 0.5:
                    whole = event.what == "truncate" or luck.random() < 0.7
                    keep = len(event.data) if whole else SECTOR * luck.randrange(len(event.data) // SECTOR + 1)
                    put(copy, Event(event.what, path, event.offset, event.data[:keep]))
            left[path] = bytes(copy)
        return left


def put(content: bytearray, event: Event) -> None:
    at = event.offset or 0
    if event.what == "truncate":
        del content[at:]
        content.extend(bytes(at - len(content)))
        return
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(event.data)] = event.data


def lost(left: dict[str, bytes], home: str, at: Path, acknowledged: set[str]) -> set[str]:
    """Which acknowledged ids are in neither store nor spool of that disk; all of them where the store cannot be read."""
    shutil.rmtree(at, ignore_errors=True)
    for path, content in left.items():
        copy = at / Path(path).relative_to(home)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    try:
        store = open_store(f"sqlite:///{at / 'store.sqlite'}")
    except Corrupt:
        return acknowledged
    try:
        with store.read() as tx:
            if tx.connection.execute(sa.text("PRAGMA integrity_check")).scalar_one() != "ok":
                return acknowledged
        Spool(at / "spool").replay(store)
        return acknowledged - {row.id for row in store.find(Person)}
    except Corrupt:
        return acknowledged
    finally:
        store.close()


def cuts(
    trace: list[Event], home: Path, at: Path, n_cuts: int, syncs_work: bool = True
) -> Iterator[tuple[int, set[str]]]:
    """(acknowledged so far, lost) at moments spread over the trace; every second one leaves a random part of what was not synced."""
    begin = bytearray((home / "store.sqlite.before").read_bytes())
    disk = Disk({str(home / "store.sqlite"): begin}, {str(home / "store.sqlite"): len(begin)})
    acknowledged: set[str] = set()
    first = next(place for place, event in enumerate(trace) if event.what == "ack")
    moments = {first + (len(trace) - 1 - first) * cut // (n_cuts - 1) for cut in range(n_cuts)}
    for place, event in enumerate(trace):
        if event.what == "ack":
            acknowledged.add(event.path)
        else:
            disk.apply(event, syncs_work)
        if place in moments:
            left = disk.after_power_cut(random.Random(place) if place % 2 else None)
            yield len(acknowledged), lost(left, str(home), at, acknowledged)


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> tuple[list[Event], Path]:
    home = tmp_path_factory.mktemp("power") / "home"
    store = open_store(f"sqlite:///{home / 'store.sqlite'}")
    govern.ensure_project(store, utc_now())
    store.close()
    shutil.copy(home / "store.sqlite", home / "store.sqlite.before")
    return recorded(home), home


def test_no_acknowledged_row_is_lost_at_any_of_200_power_cuts(traced, tmp_path) -> None:
    trace, home = traced
    assert sum(event.what == "ack" for event in trace) == 300
    assert any("spool-" in event.path and event.what == "sync ends" for event in trace)
    assert sum(event.what == "write" and event.path.endswith("store.sqlite") for event in trace) > 20  # checkpoints
    seen = list(cuts(trace, home, tmp_path / "after", N_CUTS))
    assert len(seen) > 0.9 * N_CUTS
    assert [missing for _, missing in seen if missing] == []
    assert seen[-1][0] == 300


def test_the_instrument_sees_rows_that_were_never_synced(traced, tmp_path) -> None:
    """Negative control: the same trace with every sync void."""
    trace, home = traced
    assert any(missing for _, missing in cuts(trace, home, tmp_path / "after", 10, syncs_work=False))
