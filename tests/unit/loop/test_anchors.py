"""Signed heads outside the store: each way to tamper, with the sentence that names it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from plaudit.domain import AuditEntry, Project
from plaudit.errors import Corrupt
from plaudit.loop import anchors, govern
from plaudit.store.database import Store
from plaudit.store.schema import TABLES

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENTRIES = TABLES[AuditEntry]


def write(store: Store, project_id: str, n: int, who: str = "ann") -> None:
    for i in range(n):
        govern.audit(store, project_id, who, "operator", "x.y", f"obj_{i}", {}, {"i": i}, NOW)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "elsewhere" / "anchors.jsonl"


@pytest.fixture
def log(store: Store, project: Project, home: Path, file: Path) -> Project:
    """Six entries; the second and the fifth are anchored."""
    for n in (2, 3):
        write(store, project.id, n)
        assert anchors.anchor(store, project.id, home, file, NOW)
    write(store, project.id, 1)
    return project


def test_a_whole_log_says_what_is_anchored(store: Store, log: Project, home: Path, file: Path) -> None:
    found = anchors.verify(store, log.id, home, file)
    assert (found.head.seq, found.n_anchors, found.anchored and found.anchored.seq) == (6, 2, 5)
    assert anchors.anchor(store, log.id, home, file, NOW)
    assert anchors.anchor(store, log.id, home, file, NOW) is None  # the head has not moved
    assert anchors.verify(store, log.id, home, file).n_anchors == 3
    assert (home / anchors.KEY).stat().st_mode & 0o077 == 0


def test_a_log_without_anchors_verifies_by_its_chain(store: Store, project: Project, home: Path, file: Path) -> None:
    write(store, project.id, 2)
    assert anchors.verify(store, project.id, home, file) == anchors.Verified(
        govern.verify_audit(store, project.id), None, 0
    )
    assert not file.exists(), "to verify writes nothing"


def forge(store: Store, project_id: str, seq: int, who: str) -> None:
    """Everything from `seq` on written anew with right hashes: what somebody with the store in hand can do."""
    before = store.find(AuditEntry, project_id=project_id, order="seq")
    with store.write() as tx:
        tx.connection.execute(ENTRIES.delete().where(ENTRIES.c.seq >= seq))
    for one in before[seq - 1 :]:
        govern.audit(store, project_id, who, one.role, one.action, one.object_id, one.before, one.after, NOW)


def change(store: Store) -> sa.Update:
    return ENTRIES.update().where(ENTRIES.c.seq == 3).values(actor="eve")


def remove(store: Store) -> sa.Delete:
    return ENTRIES.delete().where(ENTRIES.c.seq == 3)


def cut(store: Store) -> sa.Delete:
    return ENTRIES.delete().where(ENTRIES.c.seq >= 4)


@pytest.mark.parametrize(
    ("deed", "said"),
    [(change, "Audit entry 3"), (remove, "jumps from entry 2 to 4"), (cut, "ends at entry 3, entry 5 was anchored")],
)
def test_a_changed_a_removed_entry_and_a_cut_tail(
    store: Store, log: Project, home: Path, file: Path, deed, said
) -> None:
    with store.write() as tx:
        assert tx.connection.execute(deed(store)).rowcount
    with pytest.raises(Corrupt, match=said):
        anchors.verify(store, log.id, home, file)
    with pytest.raises(Corrupt, match=said):
        anchors.anchor(store, log.id, home, file, NOW)


def test_reordered_entries(store: Store, log: Project, home: Path, file: Path) -> None:
    with store.write() as tx:
        for now, then in ((3, 99), (4, 3), (99, 4)):
            tx.connection.execute(ENTRIES.update().where(ENTRIES.c.seq == now).values(seq=then))
    with pytest.raises(Corrupt, match="Audit entry 3"):
        anchors.verify(store, log.id, home, file)


@pytest.mark.parametrize(("start", "found"), [(1, 2), (2, 2), (3, 5), (5, 5)])
def test_a_chain_that_was_written_anew(store: Store, log: Project, home: Path, file: Path, start, found) -> None:
    forge(store, log.id, start, "eve")
    assert govern.verify_audit(store, log.id).seq == 6, "the chain alone cannot tell"
    with pytest.raises(Corrupt, match=f"Entry {found} of the audit log is not the one that was anchored"):
        anchors.verify(store, log.id, home, file)


def test_a_tail_that_was_cut_where_it_is_not_anchored_is_not_seen(
    store: Store, log: Project, home: Path, file: Path
) -> None:
    """The limit that the page states: entry 6 has no anchor yet."""
    with store.write() as tx:
        tx.connection.execute(ENTRIES.delete().where(ENTRIES.c.seq == 6))
    assert anchors.verify(store, log.id, home, file).head.seq == 5


def test_tampered_anchors(store: Store, log: Project, home: Path, file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    forged = {**json.loads(lines[0]), "sha256": "f" * 64}
    for wrong in ([json.dumps(forged).encode() + b"\n", lines[1]], lines[1:], lines[::-1], [b"?\n"]):
        file.write_bytes(b"".join(wrong))
        with pytest.raises(Corrupt, match=r"Line 1 of .* does not carry our signature"):
            anchors.verify(store, log.id, home, file)
    file.unlink()
    with pytest.raises(Corrupt, match="is missing although this home has signed"):
        anchors.verify(store, log.id, home, file)
    file.write_bytes(b"".join(lines))
    (home / anchors.KEY).unlink()
    with pytest.raises(Corrupt, match=r"audit\.key, which signed .* is missing"):
        anchors.verify(store, log.id, home, file)
    anchors._key(home)  # another one
    with pytest.raises(Corrupt, match="does not carry our signature"):
        anchors.verify(store, log.id, home, file)


def test_what_a_crash_left_of_a_line_is_cut_off(store: Store, log: Project, home: Path, file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b'{"project_id": "prj')
    assert anchors.anchor(store, log.id, home, file, NOW)
    assert anchors.verify(store, log.id, home, file).n_anchors == 3


def test_projects_share_a_file(store: Store, log: Project, home: Path, file: Path) -> None:
    store.add(Project(id="prj_2", project_id="prj_2", name="two", created_at=NOW))
    write(store, "prj_2", 1)
    assert anchors.anchor(store, "prj_2", home, file, NOW)
    assert anchors.verify(store, "prj_2", home, file).n_anchors == 1
    assert anchors.verify(store, log.id, home, file).n_anchors == 2
