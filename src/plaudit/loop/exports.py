"""A Snapshot's rows as Records, for the writers of other people's formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from plaudit.artifacts import THUMBS, DemonstrationRow, PreferenceRow, ThumbRow, open_snapshot
from plaudit.formats.records import Record


def snapshot_records(folder: Path, split: str = "") -> Iterator[Record]:
    """Preferences, Demonstrations, then thumbs of a Snapshot (of one split, or all), verified first. Raises NotFound, Corrupt."""
    snapshot, only = open_snapshot(folder), split or None
    margins = snapshot.margins()
    for row in snapshot.each("preferences", only):
        yield Record(
            id=row.preference_id,
            messages=row.messages,
            responses=(row.chosen, row.rejected),
            ranks=(1, 2),
            probability=row.probability,
            weight=row.weight,
            margin=margins.get(row.preference_id),
            criterion=row.criterion,
            meta=_meta(row, chosen_cut_off=not row.chosen_finished, rejected_cut_off=not row.rejected_finished),
        )
    for approved in snapshot.each("demonstrations", only):
        yield Record(
            id=approved.demonstration_id,
            messages=approved.messages,
            responses=(approved.response,),
            meta=_meta(approved),
        )
    for thumb in snapshot.each(THUMBS, only):
        yield Record(
            id=thumb.thumb_id,
            messages=thumb.messages,
            responses=(thumb.response,),
            label=thumb.up,
            meta=_meta(thumb, cut_off=not thumb.response_finished),
        )


def _meta(row: PreferenceRow | DemonstrationRow | ThumbRow, **marks: bool) -> dict[str, str]:
    """Where a row came from, and the marks that it bears."""
    told = {"source": row.source, "family": row.family, "split": row.split}
    return told | {name: "true" for name, borne in marks.items() if borne}
