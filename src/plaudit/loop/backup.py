"""A whole installation in one tar file, taken while it runs, and brought back into an empty home.

    home/spool/...    rows that waited on the disk while the store was away
    store.sqlite      every row as of one moment, whatever database they are from
    home/...          the rest of the home: Snapshots, runs with their Checkpoints, keys, plaudit.toml; not the logs
    backup.json       the last: counts and hashes of every table and every file; a file without it is no backup

In that order, so that nothing falls between: a spooled row may be in both (its id is its key), and every folder that a row names was
finished before the row was written. Not in it: the cache of base models, and folders outside of the home, which `outside` lists.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from plaudit import artifacts
from plaudit.domain import Checkpoint, Json, Run, SnapshotRecord
from plaudit.errors import BadInput, Conflict, Corrupt, NotFound, Unavailable
from plaudit.store.copy import TableContent, copy_rows, save_rows
from plaudit.store.database import Store, open_store

FORMAT = 1
MANIFEST, ROWS, HOME = "backup.json", "store.sqlite", "home"
SPOOL = "spool"
LEFT_OUT = frozenset({"lock", "logs", ROWS, f"{ROWS}-wal", f"{ROWS}-shm"})  # at the top of a home
WHOLE_BYTES = 64_000_000  # a file up to this size is read at once, so that it may change meanwhile
# Where a row says where something lies. Nothing of what people said or of the audit log is looked at.
PLACES: Mapping[type, tuple[str, ...]] = {
    SnapshotRecord: ("folder",),
    Checkpoint: ("folder",),
    Run: ("folder", "config", "inputs", "outputs"),
}


@dataclass(frozen=True)
class Backup:
    """What a backup file holds."""

    made_at: str
    home: str  # where it was taken
    tables: dict[str, TableContent]
    files: dict[str, artifacts.FileEntry]  # by their name in the tar
    outside: tuple[str, ...]  # folders that rows name and that are not in it
    version: int = FORMAT

    @property
    def n_rows(self) -> int:
        return sum(table.n_rows for table in self.tables.values())


def back_up(store: Store, home: Path, out: Path, now: datetime) -> Backup:
    """Write the backup of a home and its store to the new file `out`, which only its owner may read: keys are in it.

    Raises Conflict where `out` exists, Unavailable where a large file changes while it is read.
    """
    if out.exists():
        raise Conflict(f"{out} exists; give the backup a name of its own.")
    home = home.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    files: dict[str, artifacts.FileEntry] = {}
    with _temporary(out) as part, tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        rows = Path(folder, ROWS)
        with part.open("xb") as raw:
            os.fchmod(raw.fileno(), 0o600)
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
                _pack_all(tar, files, home, _below(home / SPOOL, store))
                tables = save_rows(store, rows)
                _pack(tar, files, ROWS, rows)
                _pack_all(tar, files, home, (path for path in _below(home, store) if _top(path, home) != SPOOL))
                made = Backup(now.isoformat(), str(home), tables, files, _outside(store, home))
                text = json.dumps(asdict(made), indent=1, sort_keys=True, ensure_ascii=False).encode()
                about = tarfile.TarInfo(MANIFEST)
                about.size, about.mode = len(text), 0o600
                tar.addfile(about, io.BytesIO(text))
            raw.flush()
            os.fsync(raw.fileno())
        part.rename(out)
    return made


def restore(file: Path, home: Path, store_url: str | None = None) -> Backup:
    """Bring a backup into the empty or missing folder `home`, its rows into SQLite there, or into the empty database at `store_url`.

    What names a path in the old home names the same one in the new. All is checked against the hashes of the backup before anything is
    in its place. Raises NotFound (no such file), Conflict (the home or the database has something in it), Corrupt (cut off or changed),
    BadInput (no backup, or one of a newer Plaudit).
    """
    home = home.absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise Conflict(f"{home} is not empty; give a new folder as --home.")
    home.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(home) as folder:
        folder.mkdir(mode=0o700)
        made = _unpack(file, folder)
        new = folder / HOME
        new.mkdir(mode=0o700, exist_ok=True)
        _point_to(new / "plaudit.toml", store_url)
        _move_run_files(new, made.home, str(home))
        (folder / ROWS).rename(new / ROWS)
        rows = open_store(f"sqlite:///{new / ROWS}")
        try:
            _move_rows(rows, made.home, str(home))
            if store_url is not None:
                target = open_store(store_url)
                try:
                    copy_rows(rows, target)
                finally:
                    target.close()
        finally:
            rows.close()
        if store_url is not None:
            (new / ROWS).unlink()
        if home.exists():
            home.rmdir()
        new.rename(home)
    return made


# --- packing -------------------------------------------------------------------------------------------------------------


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name beside `target`, on the same disk; whatever is left there at the end goes."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


def _below(folder: Path, store: Store) -> Iterator[Path]:
    """Files in order of name, also behind links; hidden ones are drafts of ours, and the store is packed in its own way."""
    own = [Path(f"{store.file}{ending}") for ending in ("", "-wal", "-shm")] if store.file else []
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (path for name in sorted(names) if (path := Path(place, name)) not in own and name[0] != ".")
        seen.add(real)


def _top(path: Path, home: Path) -> str:
    return path.relative_to(home).parts[0]


def _pack_all(tar: tarfile.TarFile, files: dict[str, artifacts.FileEntry], home: Path, paths: Iterator[Path]) -> None:
    for path in paths:
        if _top(path, home) not in LEFT_OUT and path.is_file():
            _pack(tar, files, f"{HOME}/{path.relative_to(home).as_posix()}", path)


def _pack(tar: tarfile.TarFile, files: dict[str, artifacts.FileEntry], name: str, path: Path) -> None:
    try:
        opened = path.open("rb")
    except FileNotFoundError:  # a file that a program replaced or took away meanwhile
        return
    with opened:
        there = os.fstat(opened.fileno())
        about = tarfile.TarInfo(name)
        about.size, about.mode, about.mtime = there.st_size, there.st_mode & 0o777, there.st_mtime
        content: IO[bytes] = opened
        if there.st_size <= WHOLE_BYTES:
            whole = opened.read()
            about.size, content = len(whole), io.BytesIO(whole)
        hashing = _Hashing(content)
        try:
            tar.addfile(about, hashing)
        except OSError as error:
            if error.errno is not None:  # a full disk, not a short file
                raise
            raise Unavailable(f"{path} became shorter while it was read; try again in a moment.") from error
    files[name] = artifacts.FileEntry(hashing.sha256.hexdigest(), about.size)


class _Hashing:
    """Reads through, and knows the sha256 of what was read."""

    def __init__(self, opened: IO[bytes]) -> None:
        self._opened = opened
        self.sha256 = hashlib.sha256()

    def read(self, n_bytes: int = -1) -> bytes:
        part = self._opened.read(n_bytes)
        self.sha256.update(part)
        return part


def _outside(store: Store, home: Path) -> tuple[str, ...]:
    """Folders that rows name, that exist, and that are not below the home."""
    rows: list[Any] = []
    for kind in PLACES:
        rows += store.find(kind)
    named = {str(row.folder) for row in rows if row.folder is not None}
    return tuple(sorted(one for one in named if not Path(one).is_relative_to(home) and Path(one).exists()))


# --- unpacking -----------------------------------------------------------------------------------------------------------


def _unpack(file: Path, folder: Path) -> Backup:
    """Every file of the backup below `folder`, each as its hash says."""
    if not file.is_file():
        raise NotFound(f"There is no file {file}.")
    found: dict[str, artifacts.FileEntry] = {}
    made: Backup | None = None
    try:
        with tarfile.open(file, mode="r:*") as tar:
            for about in tar:
                content = tar.extractfile(about) if about.isreg() else None
                name = PurePosixPath(about.name)
                if content is None or name.is_absolute() or ".." in name.parts or made is not None:
                    raise BadInput(
                        f"{file} holds {about.name!r}, which no backup of ours does; give a file of `plaudit backup`."
                    )
                if about.name == MANIFEST:
                    made = _manifest(file, content.read())
                else:
                    found[about.name] = _write(folder / name, content, about.mode)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Corrupt(f"{file} cannot be read to its end ({error}); take another backup.") from error
    if made is None:
        raise Corrupt(f"{file} has no {MANIFEST}: it is no backup, or was cut off; take another one.")
    differing = sorted(name for name in found.keys() | made.files.keys() if found.get(name) != made.files.get(name))
    if differing:
        raise Corrupt(f"{file} is not what was written, first in {differing[0]!r}; take another backup.")
    return made


def _manifest(file: Path, text: bytes) -> Backup:
    try:
        said = json.loads(text)
        version = int(said["version"])
        if version > FORMAT:
            raise BadInput(
                f"{file} was written by a newer Plaudit (format {version}, this one reads {FORMAT}); upgrade."
            )
        return Backup(
            made_at=said["made_at"],
            home=said["home"],
            tables={name: TableContent(**table) for name, table in said["tables"].items()},
            files={name: artifacts.FileEntry(**entry) for name, entry in said["files"].items()},
            outside=tuple(said["outside"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"The {MANIFEST} in {file} cannot be read ({error}); take another backup.") from error


def _write(path: Path, content: IO[bytes], mode: int) -> artifacts.FileEntry:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    hashing = _Hashing(content)
    n_bytes = 0
    with path.open("xb") as written:
        os.fchmod(written.fileno(), mode & 0o777)
        while part := hashing.read(1 << 20):
            n_bytes += written.write(part)
        written.flush()
        os.fsync(written.fileno())
    return artifacts.FileEntry(hashing.sha256.hexdigest(), n_bytes)


# --- a new place ---------------------------------------------------------------------------------------------------------


def _point_to(toml: Path, store_url: str | None) -> None:
    """Let the restored plaudit.toml name the store in which the rows are."""
    lines = toml.read_text().splitlines() if toml.exists() else []
    kept = [line for line in lines if not re.match(r"\s*store_url\s*=", line)]
    named = [] if store_url is None else [f"store_url = {json.dumps(store_url)}"]
    if named + kept != lines:
        artifacts.write_atomic(toml, "\n".join([*named, *kept, ""]))


def _move_rows(rows: Store, before: str, after: str) -> None:
    if before == after:
        return
    with rows.write() as tx:
        for kind, columns in PLACES.items():
            found: Sequence[Any] = tx.find(kind)
            for row in found:
                was = {name: getattr(row, name) for name in columns}
                now = {name: _moved(value, before, after) for name, value in was.items()}
                if now != was:
                    tx.change(kind, row.id, **now)


def _move_run_files(home: Path, before: str, after: str) -> None:
    """The configs beside the runs, so that a run that is continued or looked at finds its inputs."""
    for file in home.glob("runs/*/config*.json") if before != after else ():
        said: Json = json.loads(file.read_text())
        if (moved := _moved(said, before, after)) != said:
            artifacts.write_atomic(file, json.dumps(moved, indent=1, sort_keys=True))


def _moved(value: Any, before: str, after: str) -> Any:
    """The value with paths in the folder `before` turned into those in `after`."""
    if isinstance(value, str) and (value == before or value.startswith(before + "/")):
        return after + value[len(before) :]
    if isinstance(value, dict):
        return {name: _moved(one, before, after) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(one, before, after) for one in value)
    return value
