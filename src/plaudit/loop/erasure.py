"""Erasure: what one user said and was told goes, and what was built from it is named; retention does the same to all that is old enough.

At once: the rows become tombstones, files of the home that quote the user lose those lines, and the Snapshots that hold the user's rows and
the Checkpoints that learned from them (through any number of runs) are marked tainted. After `purge_days` those lose their content, and
only their manifests stay; weights that a Release may still serve wait until it does not. `compact` then rewrites the store's file, because
a deleted row's bytes lie in it until then.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from plaudit.artifacts import MANIFEST, row_ids, unpublish, write_atomic
from plaudit.domain import (
    Checkpoint,
    Erasure,
    ErasureReason,
    Json,
    Release,
    ReleaseState,
    Run,
    RunState,
    SnapshotRecord,
    new_id,
)
from plaudit.errors import BadInput, NotFound
from plaudit.formats import files
from plaudit.loop import copies, govern, serving
from plaudit.loop.feedback_tokens import actor_sha256
from plaudit.loop.prompts import text_of
from plaudit.store import erasure as stored
from plaudit.store import spool
from plaudit.store.database import Store
from plaudit.store.erasure import Traces

QUOTABLE = frozenset(
    {".jsonl", ".json", ".csv", ".md", ".html", ".txt", ".log"}
)  # files of the home that may hold somebody's words
LATE = timedelta(hours=1)  # after an erasure, within which an answer that was still being written has come
LEAST_CHARS = 12  # of a text that is looked for in files: "yes" is everybody's
ROW_ID = re.compile(rb"\b(?:int|res|prf|dem|fdb)_[0-9a-z]+")
log = logging.getLogger("plaudit.erasure")
INPUTS = "inputs"  # folder of what `learn score` was given
SPOOL = "spool"  # its entries are emptied where they stand
SNAPSHOTS = "snapshots"
OURS = frozenset({"keys", SPOOL})  # folders of the home that are not searched for words
LINES = frozenset({".jsonl", ".csv", ".log"})  # of QUOTABLE: a line can go without the others
PACKED = frozenset({".gz", ".zst"})
# What stays of the folder of a run that saw what was erased: what it was asked to do, and figures.
FIGURES = frozenset({"config.json", "config.resolved.json", "metrics.jsonl", "result.json", "lock"})
SERVING = (ReleaseState.CANDIDATE, ReleaseState.SHADOW, ReleaseState.CANARY, ReleaseState.LIVE)


def erase_user(
    store: Store, home: Path, project_id: str, actor: str, by: str, purge_days: float, now: datetime
) -> Erasure:
    """Erase one user. Raises NotFound where nothing is kept of them."""
    done = _erase(store, home, project_id, actor, now, by, timedelta(days=purge_days), now)
    if done is None:
        raise NotFound(f"Nothing is kept of a user {actor!r} in this project; check the pseudonym.")
    return done


def retain(store: Store, home: Path, project_id: str, retention_days: float, now: datetime) -> Erasure | None:
    """Erase what began more than `retention_days` ago, and purge the Snapshots frozen before then; None where there is nothing. What
    learned from it stays untainted: age is no wish to be forgotten."""
    until = now - timedelta(days=retention_days)
    done = _erase(store, home, project_id, None, until, "the setting retention_days", timedelta(0), now)
    for record in store.find(SnapshotRecord, project_id=project_id, purged_at=None):
        if record.created_at < until and _purge_snapshot(record):
            store.change(SnapshotRecord, record.id, purged_at=now)
    for path in (home / INPUTS).glob("*"):  # what was scored then
        if path.stat().st_mtime < until.timestamp():
            path.unlink()
    return done


def purge(store: Store, project_id: str, now: datetime, at_once: bool = False) -> list[str]:
    """Remove the content of what is tainted and due (or all of it, `at_once`); the ids that lost theirs. What a Release may still serve
    keeps its weights, and its erasure stays open, until another Release has taken its place."""
    purged: list[str] = []
    _empty_late_answers(store, project_id, now)
    for erasure in store.find(Erasure, project_id=project_id, purged_at=None):
        if erasure.purge_at > now and not at_once:
            continue
        offered = store.find(Release, project_id=project_id, state=SERVING)
        served = {one.checkpoint_id for one in [*offered, *serving.held_out_on(store, project_id)]}
        frozen = store.find(SnapshotRecord, id=erasure.snapshot_ids, purged_at=None)
        emptied = [record.id for record in frozen if _purge_snapshot(record)]
        for id in emptied:
            store.change(SnapshotRecord, id, purged_at=now)
        purged += emptied
        checkpoints = store.find(Checkpoint, id=erasure.checkpoint_ids, purged_at=None)
        for checkpoint in checkpoints:
            if checkpoint.id not in served:
                _purge_folder(Path(checkpoint.folder))
                store.change(Checkpoint, checkpoint.id, purged_at=now)
                purged.append(checkpoint.id)
        _purge_runs(store, project_id, erasure)
        if len(emptied) == len(frozen) and all(checkpoint.id not in served for checkpoint in checkpoints):
            store.change(Erasure, erasure.id, purged_at=now)
    return purged


def _empty_late_answers(store: Store, project_id: str, now: datetime) -> None:
    fresh = [one.id for one in store.find(Erasure, project_id=project_id) if now - one.created_at < LATE]
    if not fresh:
        return
    with store.read() as tx:
        late = stored.late_answers(tx, project_id, fresh)
    if late:
        with store.write() as tx:
            stored.empty_answers(tx, late)


def compact(store: Store, project_id: str, now: datetime) -> bool:
    """Rewrite the store's file where an erasure has freed bytes in it; whether it was needed and is done."""
    waiting = store.find(Erasure, project_id=project_id, compacted_at=None)
    if not waiting or not store.compact():
        return False
    for erasure in waiting:
        store.change(Erasure, erasure.id, compacted_at=now)
    return True


def shown(erasure: Erasure) -> Json:
    """What is said of an erasure over HTTP and on the command line."""
    return {
        "id": erasure.id,
        "reason": str(erasure.reason),
        "erased": erasure.counts,
        "tainted": {"snapshots": list(erasure.snapshot_ids), "checkpoints": list(erasure.checkpoint_ids)},
        "purge_at": erasure.purge_at.isoformat(),
        "compacted": erasure.compacted_at is not None,
        "purged": erasure.purged_at is not None,
    }


# --- the act -----------------------------------------------------------------------------------------------------------


def _erase(
    store: Store,
    home: Path,
    project_id: str,
    actor: str | None,
    until: datetime,
    by: str,
    purge_after: timedelta,
    now: datetime,
) -> Erasure | None:
    """Lineage first, from folders and without a lock; then all rows in one transaction. A Snapshot that appears in between begins it anew."""
    n_spooled = 0
    while True:
        with store.read() as tx:
            found = stored.traces(tx, project_id, actor, until)
            records = tx.find(SnapshotRecord, project_id=project_id)
        n_spooled += spool.forget(home / SPOOL, project_id, actor, [one.id for one in found.asked]) if actor else 0
        if found.empty and not n_spooled:
            return None
        snapshot_ids = _snapshots_with(records, found) if actor is not None else []
        tainted = _learned_from(store, project_id, [one for one in records if one.id in snapshot_ids])
        erasure = Erasure(
            id=new_id(Erasure),
            project_id=project_id,
            reason=ErasureReason.AGE if actor is None else ErasureReason.USER,
            actor_sha256=actor_sha256(project_id, actor),
            until=until,
            by=by,
            counts={},
            snapshot_ids=tuple(snapshot_ids),
            checkpoint_ids=tuple(tainted),
            created_at=now,
            purge_at=now + purge_after,
        )
        with store.write() as tx:
            if tx.count(SnapshotRecord, project_id=project_id) != len(records):
                continue
            found = stored.traces(tx, project_id, actor, until)  # with what came since
            counts = {"interactions": len(found.asked), "feedback": len(found.said), "outcomes": found.n_outcomes}
            counts["comparisons"] = len(found.comparison_ids)
            counts |= {"waiting in the spool": n_spooled} if n_spooled else {}
            erasure = replace(erasure, counts=counts)
            stored.empty(tx, project_id, erasure.id, found, actor)
            for kind, ids in ((SnapshotRecord, snapshot_ids), (Checkpoint, tainted)):
                for id in ids:
                    tx.change(kind, id, tainted_at=now)
            tx.add(erasure)
            after = {**counts, "snapshots": snapshot_ids, "checkpoints": tainted}
            govern.audit(tx, project_id, by, "system", f"erase.{erasure.reason}", erasure.id, {}, after, now)
        if actor is not None:
            _unquote(home, found, _running_folders(store, project_id))
        return erasure


# --- lineage -----------------------------------------------------------------------------------------------------------


def _snapshots_with(records: Sequence[SnapshotRecord], found: Traces) -> list[str]:
    """Which Snapshots hold a row of what was found. A prompt that somebody else asked in the same words is theirs as well, and stays."""
    spoken = {one.id.partition("_")[2] for one in found.said}
    prompts = {f"pmt_{one.prompt_sha256[:20]}" for one in found.asked if one.prompt_sha256 not in found.shared_prompts}
    holding = []
    for record in records:
        if record.purged_at is not None:  # it holds nothing any more, and what it led to is tainted already
            continue
        ids = row_ids(Path(record.folder))
        words = ids["preferences"] | ids["demonstrations"]
        if (
            ids["preferences"] & found.preference_ids
            or ids["prompts"] & prompts
            or any(id.split("_")[1] in spoken for id in words)  # prf_X, prf_X_1 and dem_X come from fdb_X
        ):
            holding.append(record.id)
    return holding


def _learned_from(store: Store, project_id: str, snapshots: Sequence[SnapshotRecord]) -> list[str]:
    """Ids of Checkpoints whose run names one of these Snapshots, or a Checkpoint that does, to any depth."""
    names = {name for one in snapshots for name in (one.id, one.folder, one.sha256)}
    runs = {run.id: run for run in store.find(Run, project_id=project_id)} if names else {}
    left = store.find(Checkpoint, project_id=project_id) if names else []
    tainted: list[str] = []
    while True:
        found = [
            one for one in left if one.parent_id in names or (one.run_id in runs and _names(runs[one.run_id], names))
        ]
        if not found:
            return sorted(tainted)
        tainted += [one.id for one in found]
        names |= {name for one in found for name in (one.id, one.folder, one.sha256)}
        left = [one for one in left if one not in found]


def _names(run: Run, names: set[str]) -> bool:
    return any(text in names for text in _strings([run.inputs, run.config]))


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


# --- files -------------------------------------------------------------------------------------------------------------


def _quotes(found: Traces) -> Callable[[bytes], bool]:
    """Whether bytes betray the user: an id of their rows, or their own words, as text or as JSON writes it."""
    words = {text_of(message) for one in found.asked for message in one.messages if message.get("role") == "user"}
    words |= {str(one.value["text"]) for one in found.said if one.value.get("text")}
    texts: set[bytes] = set()
    for text in words:
        if len(text) >= LEAST_CHARS:
            texts |= {text.encode(), *(json.dumps(text, ensure_ascii=plain)[1:-1].encode() for plain in (True, False))}
    spoken = [one.id.partition("_")[2] for one in found.said]
    rows = {
        *found.preference_ids,
        *(f"{kind}_{id}" for id in spoken for kind in ("prf", "dem", "fdb")),
    }  # as exports name them
    ids = {id.encode() for id in (*(one.id for one in found.asked), *found.response_ids, *rows)}

    def quotes(data: bytes) -> bool:
        return not ids.isdisjoint(ROW_ID.findall(data)) or any(text in data for text in texts)

    return quotes


def _unquote(home: Path, found: Traces, spared: Sequence[Path]) -> None:
    """Remove the lines that quote the user from line files, and other files that do altogether. Finished folders (with a manifest) are left
    to `purge`, `spared` ones to the program that works in them."""
    quotes = _quotes(found)
    finished = {path.parent for path in home.rglob(MANIFEST)}
    exported = {Path(one.place) for one in copies.remembered(home / SNAPSHOTS) if not one.whole}
    for path in sorted({*home.rglob("*"), *exported}):
        inside = path.is_relative_to(home)
        kind = _kind(path)
        if not path.is_file() or (inside and path.relative_to(home).parts[0] in OURS):
            continue
        if path not in exported and kind not in QUOTABLE:
            continue
        if any(parent in finished or parent in spared for parent in path.parents):
            continue
        _unquote_file(path, quotes, by_line=kind in LINES or (path in exported and kind not in QUOTABLE))


def _kind(path: Path) -> str:
    """The suffix, of a packed file that of what is in it."""
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def _unquote_file(path: Path, quotes: Callable[[bytes], bool], by_line: bool) -> None:
    try:
        betrays = any(quotes(line) for _, line in files.read_lines(path)) if by_line else quotes(files.read_bytes(path))
    except BadInput as error:
        log.warning("%s is not searched: nobody can unpack it (%s).", path, error)
        return
    if not betrays:
        return
    if not by_line:
        path.unlink()
        return
    kept = (line for _, line in files.read_lines(path) if not quotes(line))
    if path.suffix in PACKED:
        with files.written(path) as file:
            for line in kept:
                file.write(line.decode(errors="replace"))
    elif path.suffix == ".log":
        path.write_bytes(b"".join(kept))  # in place: somebody may be appending to it
    else:
        write_atomic(path, b"".join(kept))


def _running_folders(store: Store, project_id: str) -> list[Path]:
    running = store.find(Run, project_id=project_id, state=RunState.RUNNING)
    return [Path(run.folder) for run in running if run.folder]


def _purge_runs(store: Store, project_id: str, erasure: Erasure) -> None:
    """Empty the folders of runs that read something tainted, but for figures and for Checkpoints, which have their own time."""
    tainted: list[SnapshotRecord | Checkpoint] = [
        *store.find(SnapshotRecord, id=erasure.snapshot_ids),
        *store.find(Checkpoint, id=erasure.checkpoint_ids),
    ]
    names = {name for one in tainted for name in (one.id, one.folder, one.sha256)}
    for run in store.find(Run, project_id=project_id):
        if run.folder is None or run.state == RunState.RUNNING or not _names(run, names):
            continue
        for path in Path(run.folder).glob("*"):
            if path.is_dir() and not (path / MANIFEST).exists():
                shutil.rmtree(path)
            elif path.is_file() and path.name not in FIGURES:
                path.unlink()


def _purge_snapshot(record: SnapshotRecord) -> bool:
    """The folder, and the copies of it at other addresses; False where one of those cannot be reached now."""
    folder = Path(record.folder)
    _purge_folder(folder)
    for one in copies.remembered(folder.parent):
        if one.whole and one.snapshot == record.sha256:
            try:
                unpublish(one.place)
            except (OSError, BadInput) as error:
                log.warning("The copy of Snapshot %s at %s is not purged yet (%s).", record.id, one.place, error)
                return False
    return True


def _purge_folder(folder: Path) -> None:
    """Everything but the manifest."""
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MANIFEST:
            path.unlink()
