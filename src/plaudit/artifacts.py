"""The folders that cross the border between service and training: Snapshot, Checkpoint and run folder.

A folder is finished when its `manifest.json` exists: the manifest is written last, through a temporary name and an fsync, and names
every other file with its sha256 and size. `verify` reads every byte again. A Snapshot's `id` is the sha256 of its canonical rows and
config, so the same inputs give the same id on any machine, while the file hashes (Parquet writers differ) stand beside it.

    snapshot/    preferences.parquet  demonstrations.parquet  prompts.parquet  manifest.json
    checkpoint/  adapter_model.safetensors adapter_config.json (PEFT) or model.safetensors, head.safetensors, card.md, manifest.json
    run/         config.json  metrics.jsonl  state/  checkpoint/

Local folders only so far; object storage by fsspec URI comes with the snapshot issue.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from plaudit.errors import BadInput, Conflict, Corrupt, NotFound

MANIFEST = "manifest.json"
FORMAT_VERSION = 1

Message = dict[str, Any]  # {"role": "user", "content": "..."}


@dataclass(frozen=True)
class PreferenceRow:
    """One Preference as training reads it: `chosen` beats `rejected` with `probability` (0.5..1) after `messages`."""

    preference_id: str
    comparison_id: str
    criterion: str
    family: str  # prompt family: no family is in two splits
    split: str  # train | valid | test
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    probability: float
    weight: float  # effective number of votes
    source: str  # annotation | edit | choice | import
    chosen_finished: bool = True  # False: cut off at the token limit, so training appends no end token
    rejected_finished: bool = True


@dataclass(frozen=True)
class DemonstrationRow:
    """A prompt and a response that a person approved."""

    demonstration_id: str
    family: str
    split: str
    messages: tuple[Message, ...]
    response: str
    source: str


@dataclass(frozen=True)
class PromptRow:
    """A prompt that reinforcement learning may sample from."""

    prompt_id: str
    family: str
    split: str
    messages: tuple[Message, ...]


Row = TypeVar("Row", PreferenceRow, DemonstrationRow, PromptRow)
TABLES: dict[str, type] = {"preferences": PreferenceRow, "demonstrations": DemonstrationRow, "prompts": PromptRow}


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a finished folder says of itself. `body` holds what only this kind of folder has (counts, filters, lineage, config)."""

    kind: str  # snapshot | checkpoint
    id: str  # sha256 over content; see the module docstring
    files: dict[str, FileEntry]
    body: dict[str, Any]
    version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def canonical(value: Any) -> bytes:
    """The one byte form that is hashed: JSON, sorted keys, no spaces, UTF-8. Floats print as Python's shortest repr."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of(value: Any) -> str:
    """sha256 (hex) of a JSON-able value's canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_rows(rows: Iterable[Any]) -> str:
    """Order-free hash of dataclass rows: sha256 over their sorted canonical hashes."""
    digests = sorted(hashlib.sha256(canonical(asdict(row))).digest() for row in rows)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old bytes or the new, never half, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finish(folder: Path, kind: str, body: Mapping[str, Any], content_id: str | None = None) -> Manifest:
    """Hash every file below `folder` and write the manifest, which declares the folder finished.

    `content_id` is given by kinds whose identity is not their bytes (Snapshots); else the id is the hash of the file hashes and body.
    Hidden files are not part of a finished folder.
    """
    if (folder / MANIFEST).exists():
        raise Conflict(f"{folder} is already finished; a {kind} folder is never written twice.")
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    files: dict[str, FileEntry] = {}
    for name in names:
        path = folder / name
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[name] = FileEntry(sha256=sha256_file(path), size_bytes=path.stat().st_size)
    identity = content_id or sha256_of({"files": {k: v.sha256 for k, v in files.items()}, "body": dict(body)})
    manifest = Manifest(kind=kind, id=identity, files=files, body=dict(body))
    write_atomic(folder / MANIFEST, manifest.to_json())
    return manifest


def read_manifest(folder: Path, kind: str | None = None) -> Manifest:
    """The manifest without checking the files. Raises NotFound (no manifest), Corrupt (unreadable), BadInput (another kind or a newer version)."""
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFound(f"{folder} has no {MANIFEST}: it is not a finished {kind or 'artifact'} folder.")
    try:
        raw = json.loads(path.read_text())
        files = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        manifest = Manifest(kind=raw["kind"], id=raw["id"], files=files, body=raw["body"], version=raw["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} cannot be read as a manifest ({error}); restore the folder from a backup.") from error
    if kind is not None and manifest.kind != kind:
        raise BadInput(f"{folder} holds a {manifest.kind}, not a {kind}.")
    if manifest.version > FORMAT_VERSION:
        raise BadInput(
            f"{folder} was written by a newer Plaudit (format {manifest.version}, this one reads up to {FORMAT_VERSION}); upgrade."
        )
    return manifest


def verify(folder: Path, kind: str | None = None) -> Manifest:
    """Read every byte again and compare. Raises Corrupt naming the file that is missing or changed."""
    manifest = read_manifest(folder, kind)
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise Corrupt(f"{path} is missing although the manifest names it; restore the folder from a backup.")
        if sha256_file(path) != entry.sha256:
            raise Corrupt(
                f"{path} is not the file that was written (its sha256 differs); restore the folder from a backup."
            )
    return manifest


def new_folder(parent: Path, name: str) -> Path:
    """An empty folder to fill. A left-over without a manifest is an interrupted attempt and is removed."""
    folder = parent / name
    if (folder / MANIFEST).exists():
        raise Conflict(f"{folder} is already finished.")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


# --- Snapshots --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """An opened Snapshot folder."""

    folder: Path
    manifest: Manifest

    def preferences(self, split: str | None = None) -> list[PreferenceRow]:
        return [row for row in _read_table(self.folder, "preferences", PreferenceRow) if split in (None, row.split)]

    def demonstrations(self, split: str | None = None) -> list[DemonstrationRow]:
        return [
            row for row in _read_table(self.folder, "demonstrations", DemonstrationRow) if split in (None, row.split)
        ]

    def prompts(self, split: str | None = None) -> list[PromptRow]:
        return [row for row in _read_table(self.folder, "prompts", PromptRow) if split in (None, row.split)]


def write_snapshot(
    parent: Path,
    preferences: Sequence[PreferenceRow],
    demonstrations: Sequence[DemonstrationRow],
    prompts: Sequence[PromptRow],
    config: Mapping[str, Any],
    body: Mapping[str, Any],
) -> Snapshot:
    """Freeze rows into `parent/<id[:16]>`; returns the existing folder where the same rows and config were frozen before.

    `config` belongs to the identity (filters, aggregation, split seed); `body` does not (counts for people, lineage, code version).
    """
    tables: dict[str, Sequence[Any]] = {
        "preferences": preferences,
        "demonstrations": demonstrations,
        "prompts": prompts,
    }
    identity = sha256_of({"tables": {name: hash_rows(rows) for name, rows in tables.items()}, "config": dict(config)})
    target = parent / identity[:16]
    if (target / MANIFEST).exists():
        return open_snapshot(target)
    folder = new_folder(parent, f".building-{identity[:16]}")
    for name, rows in tables.items():
        _write_table(folder, name, rows)
    counts = {name: len(rows) for name, rows in tables.items()}
    finish(folder, "snapshot", {**body, "config": dict(config), "counts": counts}, content_id=identity)
    if target.exists():
        shutil.rmtree(target)
    folder.replace(target)
    _fsync_folder(parent)
    return open_snapshot(target)


def open_snapshot(folder: Path) -> Snapshot:
    """Verify a Snapshot folder byte by byte and open it. Raises NotFound, Corrupt, BadInput."""
    return Snapshot(folder=folder, manifest=verify(folder, "snapshot"))


def _write_table(folder: Path, name: str, rows: Sequence[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = TABLES[name]
    columns: dict[str, Any] = {}
    ordered = sorted((asdict(row) for row in rows), key=canonical)
    for field in fields(kind):
        values = [row[field.name] for row in ordered]
        if field.name == "messages":
            columns[field.name] = pa.array([canonical(list(value)).decode() for value in values], pa.string())
        elif field.name in ("probability", "weight"):
            columns[field.name] = pa.array(values, pa.float64())
        elif field.name.endswith("_finished"):
            columns[field.name] = pa.array(values, pa.bool_())
        else:
            columns[field.name] = pa.array(values, pa.string())
    pq.write_table(pa.table(columns), folder / f"{name}.parquet", compression="zstd")


def _read_table(folder: Path, name: str, kind: type[Row]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    for raw in pq.read_table(folder / f"{name}.parquet").to_pylist():
        raw["messages"] = tuple(json.loads(raw["messages"]))
        yield kind(**raw)
