"""A home in a tar: taken under writes, brought back elsewhere, equal; and nothing but an intact backup comes back."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from plaudit import artifacts
from plaudit.domain import (
    AuditEntry,
    Checkpoint,
    CheckpointKind,
    Completion,
    Interaction,
    Person,
    Project,
    Run,
    RunState,
    SnapshotRecord,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Corrupt, NotFound, Unavailable
from plaudit.loop import backup as module
from plaudit.loop import govern
from plaudit.loop.backup import back_up, restore
from plaudit.store.copy import contents
from plaudit.store.database import Store, open_store
from plaudit.store.spool import Entry, Spool

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, store: Store, project: Project) -> Path:
    """With a Snapshot, a run with its Checkpoint, keys, a log, and rows that name the folders. On SQLite the store lies in it too."""
    snapshot, run = tmp_path / "snapshots" / "s", tmp_path / "runs" / "r"
    (run / "checkpoint").mkdir(parents=True)
    (run / "checkpoint" / "weights").write_bytes(os.urandom(3000))
    made = artifacts.finish(run / "checkpoint", "checkpoint", {})
    snapshot.mkdir(parents=True)
    (snapshot / "rows").write_text("rows")
    artifacts.finish(snapshot, "snapshot", {}, "s")
    config = {"snapshot": str(snapshot), "prompt": f"where is {snapshot}?", "base": "/cache/base"}
    (run / "config.json").write_text(json.dumps(config))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "admin.key").write_text("secret")
    (tmp_path / "keys" / "admin.key").chmod(0o600)
    for name in ("logs/service.log", "lock", ".draft"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "plaudit.toml").write_text(f'overlap = 2\nstore_url = "{store.url}"\n[[filters]]\nname = "a"\n')
    key = {"project_id": project.id, "created_at": NOW}
    store.add(
        SnapshotRecord(id="snp_1", folder=str(snapshot), sha256="s", counts={}, lineage={}, **key),
        Run(id="run_1", step="ppo", key="k", turn=1, state=RunState.DONE, config=config, outputs={"all": [str(run), "x"]},
            folder=str(run), **key),
        Checkpoint(id="ckp_1", kind=CheckpointKind.POLICY, folder=str(run / "checkpoint"), sha256=made.id, base="b", **key),
    )  # fmt: skip
    with store.write() as tx:
        govern.audit(tx, project.id, "ann", "admin", "run", "run_1", {}, {"folder": str(run)}, NOW)
    return tmp_path


@pytest.fixture
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backups") / "b.tar"


@pytest.fixture
def elsewhere(out: Path) -> Path:
    return out.parent / "again"


def opened(home: Path) -> Store:
    return open_store(f"sqlite:///{home / 'store.sqlite'}")


def test_a_home_comes_back_in_another_place(store: Store, home: Path, out: Path, elsewhere: Path) -> None:
    made = back_up(store, home, out, NOW)
    assert out.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in out.parent.iterdir()] == ["b.tar"]
    assert restore(out, elsewhere) == made
    assert (made.tables, made.outside) == (contents(store), ())
    files = {path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*") if path.is_file()}
    assert files == {
        "store.sqlite", "plaudit.toml", "keys/admin.key", "runs/r/config.json", "runs/r/checkpoint/weights",
        "runs/r/checkpoint/manifest.json", "snapshots/s/rows", "snapshots/s/manifest.json",
    }  # fmt: skip
    again = opened(elsewhere)
    run, was = again.get(Run, "run_1"), store.get(Run, "run_1")
    assert run.config == {**was.config, "snapshot": str(elsewhere / "snapshots" / "s")}  # and the prompt as it was
    assert json.loads((elsewhere / "runs" / "r" / "config.json").read_text()) == run.config
    assert run.outputs == {"all": [str(elsewhere / "runs" / "r"), "x"]}
    artifacts.verify(Path(again.get(SnapshotRecord, "snp_1").folder), "snapshot")
    checkpoint = again.get(Checkpoint, "ckp_1")
    assert artifacts.verify(Path(checkpoint.folder), "checkpoint").id == checkpoint.sha256
    assert Path(checkpoint.folder).is_relative_to(elsewhere)
    assert again.find(AuditEntry) == store.find(AuditEntry)  # a chain is not rewritten
    govern.verify_audit(again, "prj_default")
    again.close()
    assert (elsewhere / "keys" / "admin.key").stat().st_mode & 0o777 == 0o600
    assert (elsewhere / "plaudit.toml").read_text() == 'overlap = 2\n[[filters]]\nname = "a"\n'


@pytest.mark.slow
def test_rows_come_back_into_another_database(
    store: Store, home: Path, out: Path, elsewhere: Path, postgres_url: str
) -> None:
    back_up(store, home, out, NOW)
    restore(out, elsewhere, postgres_url)
    assert not (elsewhere / "store.sqlite").exists()
    assert (elsewhere / "plaudit.toml").read_text().splitlines()[:2] == [f'store_url = "{postgres_url}"', "overlap = 2"]
    target = open_store(postgres_url)
    assert target.get(Run, "run_1").folder == str(elsewhere / "runs" / "r")
    target.close()
    with pytest.raises(Conflict, match="copy into an empty database"):
        restore(out, out.parent / "third", postgres_url)
    assert not (out.parent / "third").exists()


def test_a_backup_under_writes_is_one_moment(store: Store, home: Path, out: Path, elsewhere: Path, chat) -> None:
    """Each write adds a question and its end in one transaction; whatever was acknowledged before the backup began is in it."""
    stop, before = threading.Event(), []

    def crowd() -> None:
        while not stop.is_set():
            asked = chat(answers=None)
            store.add(Person(id=new_id(Person), project_id="prj_default", name=asked.id, created_at=NOW))
            before.append(asked.id)

    thread = threading.Thread(target=crowd)
    thread.start()
    try:
        while len(before) < 5:
            assert thread.is_alive()
        acknowledged = list(before)
        back_up(store, home, out, NOW)
    finally:
        stop.set()
        thread.join()
    restore(out, elsewhere)
    again = opened(elsewhere)
    asked = {row.id for row in again.find(Interaction)}
    named = {row.name for row in again.find(Person)}
    again.close()
    assert set(acknowledged) <= named <= asked  # a person is written after the question
    assert len(asked - named) <= 1


def test_what_waits_in_the_spool_is_not_lost_between_it_and_the_rows(
    store: Store, home: Path, out: Path, elsewhere: Path, monkeypatch
) -> None:
    spool = Spool(home / "spool")
    spool.append([Entry((Person(id="per_1", project_id="prj_default", name="a", created_at=NOW),))])
    save = module.save_rows

    def save_and_catch_up(*arguments):
        saved = save(*arguments)
        spool.replay(store)  # the store is back at the worst moment
        spool.clear()
        return saved

    monkeypatch.setattr(module, "save_rows", save_and_catch_up)
    back_up(store, home, out, NOW)
    restore(out, elsewhere)
    again = opened(elsewhere)
    assert again.count(Person) == 0
    assert Spool(elsewhere / "spool").replay(again) == 1
    assert again.get(Person, "per_1").name == "a"
    again.close()


def test_folders_outside_of_the_home_are_named(store: Store, home: Path, out: Path) -> None:
    far = out.parent / "far"
    far.mkdir()
    for number, folder in enumerate((far, out.parent / "gone")):
        store.add(
            Checkpoint(id=f"ckp_far{number}", project_id="prj_default", kind=CheckpointKind.POLICY, folder=str(folder), sha256="f",
                       base="b", created_at=NOW)
        )  # fmt: skip
    assert back_up(store, home, out, NOW).outside == (str(far),)


def test_a_large_file_is_not_held_in_memory_and_one_that_shrinks_is_refused(
    store: Store, home: Path, out: Path, elsewhere: Path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", 100)
    back_up(store, home, out, NOW)
    restore(out, elsewhere)
    weights = "runs/r/checkpoint/weights"
    assert (elsewhere / weights).read_bytes() == (home / weights).read_bytes()
    fstat = os.fstat

    def longer(descriptor: int) -> os.stat_result:
        there = fstat(descriptor)
        return os.stat_result((*there[:6], there.st_size + 1, *there[7:])) if there.st_size == 3000 else there

    monkeypatch.setattr(os, "fstat", longer)
    with pytest.raises(Unavailable, match="weights became shorter while it was read"):
        back_up(store, home, out.with_name("c.tar"), NOW)
    assert sorted(path.name for path in out.parent.iterdir()) == ["again", "b.tar"]


def members(file: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(file) as tar:
        for about in tar:
            found = tar.extractfile(about)
            yield about, found.read() if found else b""


def rewritten(file: Path, change) -> Path:
    """The backup with each member as `change` gives it, None for left out."""
    other = file.with_name("other.tar")
    with tarfile.open(other, "w") as tar:
        for about, content in members(file):
            changed = change(about, content)
            if changed is not None:
                about.size = len(changed)
                tar.addfile(about, io.BytesIO(changed))
    return other


def renamed(about: tarfile.TarInfo, content: bytes) -> bytes:
    about.name = "home/../../etc/passwd" if about.name.endswith("weights") else about.name
    return content


BROKEN = {
    "cut off": (lambda a, c: None if a.name == "backup.json" else c, Corrupt, "has no backup.json"),
    "changed": (lambda a, c: b"X" + c[1:] if a.name.endswith("weights") else c, Corrupt, "first in 'home/runs/r/checkpoint/weights'"),
    "a file less": (lambda a, c: None if a.name.endswith("weights") else c, Corrupt, "first in 'home/runs/r/checkpoint/weights'"),
    "out of its folder": (renamed, BadInput, r"holds 'home/\.\./\.\./etc/passwd'"),
    "newer": (lambda a, c: c.replace(b'"version": 1', b'"version": 2') if a.name == "backup.json" else c, BadInput, "format 2"),
    "unreadable": (lambda a, c: b"{" if a.name == "backup.json" else c, Corrupt, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)  # it is about the file
def test_only_an_intact_backup_comes_back(store: Store, home: Path, out: Path, elsewhere: Path) -> None:
    back_up(store, home, out, NOW)
    for change, error, said in BROKEN.values():
        with pytest.raises(error, match=said):
            restore(rewritten(out, change), elsewhere)
        assert sorted(path.name for path in out.parent.iterdir()) == ["b.tar", "other.tar"]  # nothing half done is left
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Corrupt, match=r"cannot be read to its end|has no backup\.json"):
        restore(out, elsewhere)
    out.write_bytes(b"not a tar " * 1000)
    with pytest.raises(Corrupt, match="cannot be read to its end"):
        restore(out, elsewhere)
    with pytest.raises(NotFound):
        restore(out.with_name("none.tar"), elsewhere)


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_nothing_is_written_over(store: Store, home: Path, out: Path, elsewhere: Path) -> None:
    back_up(store, home, out, NOW)
    with pytest.raises(Conflict, match="exists; give the backup a name of its own"):
        back_up(store, home, out, NOW)
    with pytest.raises(Conflict, match="is not empty"):
        restore(out, home)
    elsewhere.mkdir()
    restore(out, elsewhere)  # an empty folder will do
    assert (elsewhere / "store.sqlite").exists()
    assert store.count(Completion) == 0
