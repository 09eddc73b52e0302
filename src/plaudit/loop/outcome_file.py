"""Import of a file of Outcomes: CSV with a header, or JSON Lines. The same one again changes nothing, so a file may be imported twice."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from plaudit.errors import BadInput, PlauditError
from plaudit.formats.files import Rejected, read_items, read_lines
from plaudit.loop.outcomes import COLUMNS, record
from plaudit.store.database import Store

BATCH = 1000  # rows to a transaction


@dataclass(frozen=True)
class Imported:
    n_recorded: int
    n_replayed: int
    rejected: tuple[Rejected, ...]


def import_file(store: Store, project_id: str, path: Path, now: datetime) -> Imported:
    """Record every row of a CSV (with a header) or JSON Lines file, packed or not. A bad row is turned away with its line; the good ones go
    in. Raises NotFound, BadInput (no file of outcomes at all)."""
    n_recorded = n_replayed = 0
    rejected: list[Rejected] = []
    batch: list[tuple[int, Any]] = []

    def send() -> None:
        nonlocal n_recorded, n_replayed
        results = record(store, project_id, [row for _, row in batch], now)
        for (line, _), result in zip(batch, results, strict=True):
            if isinstance(result, PlauditError):
                rejected.append(Rejected(str(path), line, result.message))
            elif result.replayed:
                n_replayed += 1
            else:
                n_recorded += 1
        batch.clear()

    for line, row in _rows(path):
        if isinstance(row, ValueError):
            rejected.append(Rejected(str(path), line, str(row)))
            continue
        batch.append((line, row))
        if len(batch) == BATCH:
            send()
    if batch:
        send()
    return Imported(n_recorded, n_replayed, tuple(rejected))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, object or ValueError) of each row."""
    if ".csv" not in path.suffixes:
        yield from read_items(path)
        return
    header: list[str] | None = None
    for line, raw in read_lines(path):
        try:
            (cells,) = csv.reader(io.StringIO(raw.decode("utf-8-sig")))
        except (ValueError, csv.Error) as error:
            yield line, ValueError(f"it is no row of a CSV file in UTF-8 ({error})")
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if not set(COLUMNS[:4]) <= set(header) <= set(COLUMNS):
                raise BadInput(
                    f"{path} has the columns {', '.join(header)}; it needs user, name, value, at and may have key."
                )
        elif len(cells) != len(header):
            yield line, ValueError(f"it has {len(cells)} cells, the header {len(header)}")
        else:
            row: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
            try:
                yield line, {**row, "value": float(row["value"])} if "value" in row else row
            except ValueError:
                yield line, row  # the sentence about a value that is no number is the reader's
