"""What came, went and changed between two Snapshots."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Any

from plaudit.artifacts import OPTIONAL, TABLES, THUMBS, Snapshot, canonical
from plaudit.loop.snapshots.card import Section, markdown, page

N_EXAMPLES = 5
COMPARED = (*TABLES, THUMBS)


@dataclass(frozen=True)
class TableDiff:
    """Rows of one table by their ids. `moved` are in another split, `changed` differ otherwise."""

    n_before: int
    n_after: int
    came: int
    went: int
    changed: int
    moved: int
    by_split: dict[str, tuple[int, int]]  # before, after
    examples: dict[str, list[str]]  # ids of the first that came, went, changed, moved


@dataclass(frozen=True)
class SnapshotDiff:
    before: str
    after: str
    tables: dict[str, TableDiff]
    config: dict[str, tuple[Any, Any]]  # what was asked for otherwise: before, after
    filters: dict[str, tuple[int, int]]  # rows that a filter removed, where the numbers differ

    @property
    def equal(self) -> bool:
        return self.before == self.after

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diff(before: Snapshot, after: Snapshot) -> SnapshotDiff:
    """Compare two opened Snapshots, row by row."""
    tables = {}
    for name in COMPARED:
        old, new = _rows(before, name), _rows(after, name)
        if old or new:
            tables[name] = _table(old, new)
    one, two = before.manifest.body, after.manifest.body
    return SnapshotDiff(
        before=before.manifest.id,
        after=after.manifest.id,
        tables=tables,
        config=_differences(one["config"], two["config"]),
        filters=_differences(one["filters"], two["filters"], 0),
    )


def as_markdown(found: SnapshotDiff) -> str:
    return markdown(*_shown(found))


def as_page(found: SnapshotDiff) -> str:
    """One HTML file with the counts as bars."""
    return page(*_shown(found))


def _shown(found: SnapshotDiff) -> tuple[str, str, list[Section], tuple[str, list[str]]]:
    about = "They are the same." if found.equal else f"From {found.before[:16]} to {found.after[:16]}."
    sections = [
        Section(
            name.capitalize(),
            f"{one.n_before} rows before, {one.n_after} after.",
            [
                *((word, int(getattr(one, word))) for word in ("came", "went", "changed", "moved")),
                *(
                    (f"{split}, {when}", n)
                    for split, both in one.by_split.items()
                    for when, n in zip(("before", "after"), both, strict=True)
                ),
            ],
        )
        for name, one in found.tables.items()
    ]
    if found.filters:
        rows = [
            (f"{name}, {when}", n)
            for name, both in found.filters.items()
            for when, n in zip(("before", "after"), both, strict=True)
        ]
        sections.append(Section("Removed", "Filters that removed another number of rows.", rows))
    asked = [f"{name}: {one!r} before, {two!r} after" for name, (one, two) in found.config.items()]
    return "Difference of two Snapshots", about, sections, ("Asked for otherwise", asked)


def _rows(snapshot: Snapshot, table: str) -> dict[str, tuple[str, bytes]]:
    """id -> split and hash of the rest, a Preference's margin with it."""
    if table in OPTIONAL and f"{table}.parquet" not in snapshot.manifest.files:
        return {}
    rows: Any = getattr(snapshot, table)()
    key = fields({**TABLES, **OPTIONAL}[table])[0].name
    margins = snapshot.margins() if table == "preferences" else {}
    found = {}
    for row in rows:
        id = getattr(row, key)
        said = {**asdict(row), "split": "", "margin": margins.get(id)}
        found[id] = row.split, hashlib.sha256(canonical(said)).digest()[:16]
    return found


def _table(old: dict[str, tuple[str, bytes]], new: dict[str, tuple[str, bytes]]) -> TableDiff:
    both = old.keys() & new.keys()
    ids = {
        "came": new.keys() - old.keys(),
        "went": old.keys() - new.keys(),
        "changed": {id for id in both if old[id][1] != new[id][1]},
        "moved": {id for id in both if old[id][0] != new[id][0]},
    }
    counts = [Counter(split for split, _ in rows.values()) for rows in (old, new)]
    return TableDiff(
        n_before=len(old),
        n_after=len(new),
        **{name: len(found) for name, found in ids.items()},
        by_split={split: (counts[0][split], counts[1][split]) for split in sorted({*counts[0], *counts[1]})},
        examples={name: sorted(found)[:N_EXAMPLES] for name, found in ids.items() if found},
    )


def _differences(one: dict[str, Any], two: dict[str, Any], missing: Any = None) -> dict[str, tuple[Any, Any]]:
    return {
        name: (one.get(name, missing), two.get(name, missing))
        for name in sorted({*one, *two})
        if one.get(name, missing) != two.get(name, missing)
    }
