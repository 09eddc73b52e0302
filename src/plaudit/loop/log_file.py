"""Import of what an application logged before it knew us: Interactions with their feedback, one a line, in one go and only once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from plaudit.artifacts import sha256_of
from plaudit.domain import Json
from plaudit.errors import PlauditError
from plaudit.formats.files import Rejected, read_items
from plaudit.loop import collect
from plaudit.store.database import Store

IMPORT_BATCH = 200  # lines to a transaction


@dataclass(frozen=True)
class ImportedLog:
    n_recorded: int
    n_replayed: int
    n_feedback: int
    rejected: tuple[Rejected, ...]


def import_file(store: Store, project_id: str, path: Path, now: datetime) -> ImportedLog:
    """Log every line of a JSONL file: {messages, responses, ..., feedback?: [{kind, value, ...}]}. A line's hash is its idempotency key where
    it has none, so the same file may be imported twice. A bad line, or feedback in it, is turned away with its number; the rest goes in.
    Feedback happened when its interaction did, where it does not say. Raises NotFound, BadInput (no such file)."""
    logged = replayed = spoken = 0
    rejected: list[Rejected] = []
    lines = read_items(path)
    while batch := list(islice(lines, IMPORT_BATCH)):
        sound: list[tuple[int, Json, list[Any]]] = []
        for number, line in batch:
            if isinstance(line, dict) and isinstance(line.get("feedback", []), list):
                body = {name: value for name, value in line.items() if name != "feedback"}
                body.setdefault("idempotency_key", f"line:{sha256_of(line)}")
                sound.append((number, body, line.get("feedback", [])))
            else:
                why = str(line) if isinstance(line, ValueError) else "it is no object with a list as its feedback"
                rejected.append(Rejected(str(path), number, why))
        results = collect.log_interactions(store, project_id, [body for _, body, _ in sound], now)
        said: list[tuple[int, Json]] = []
        for (number, body, feedback), result in zip(sound, results, strict=True):
            if isinstance(result, PlauditError):
                rejected.append(Rejected(str(path), number, result.message))
                continue
            logged, replayed = logged + (not result.replayed), replayed + result.replayed
            for nth, one in enumerate(feedback):
                own = {"interaction_id": result.interaction.id, "idempotency_key": f"{body['idempotency_key']}/{nth}"}
                when = {"at": result.interaction.created_at.isoformat()}
                said.append((number, {**when, **one, **own} if isinstance(one, dict) else one))
        for (number, _), recorded in zip(
            said, collect.record_feedbacks(store, project_id, [one for _, one in said], now), strict=True
        ):
            if isinstance(recorded, PlauditError):
                rejected.append(Rejected(str(path), number, f"feedback: {recorded.message}"))
            else:
                spoken += recorded.status != "replayed"
    return ImportedLog(logged, replayed, spoken, tuple(rejected))
