"""A Snapshot's rows as Records, for the writers of other people's formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from plaudit.artifacts import open_snapshot
from plaudit.formats.records import Record


def snapshot_records(folder: Path, split: str = "") -> Iterator[Record]:
    """Preferences, then Demonstrations of a Snapshot (of one split, or all), verified first. Raises NotFound, Corrupt."""
    snapshot = open_snapshot(folder)
    for row in snapshot.preferences():
        if split in ("", row.split):
            yield Record(
                id=row.preference_id,
                messages=row.messages,
                responses=(row.chosen, row.rejected),
                ranks=(1, 2),
                probability=row.probability,
                weight=row.weight,
                criterion=row.criterion,
                meta={"source": row.source, "family": row.family, "split": row.split},
            )
    for approved in snapshot.demonstrations():
        if split in ("", approved.split):
            yield Record(
                id=approved.demonstration_id,
                messages=approved.messages,
                responses=(approved.response,),
                meta={"source": approved.source, "family": approved.family, "split": approved.split},
            )
