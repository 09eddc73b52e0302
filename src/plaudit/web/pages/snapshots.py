"""Snapshots: what models were trained on; one of them with its card, samples and lineage, two of them compared, one row back to its people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from plaudit import artifacts
from plaudit.domain import Json, Message, Run, RunState, SnapshotRecord
from plaudit.errors import BadInput, Conflict, NotFound, PlauditError
from plaudit.loop import registry as ledger
from plaudit.loop.registry import Node
from plaudit.loop.snapshots import diff as differences
from plaudit.loop.snapshots import samples
from plaudit.loop.snapshots.card import Section
from plaudit.loop.snapshots.diff import SnapshotDiff
from plaudit.loop.snapshots.samples import Origin
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages import markdown
from plaudit.web.pages.graph import graph
from plaudit.web.pages.registry import box, counted, kept
from plaudit.web.pages.shell import Column, Table, answer
from plaudit.web.sign_in import signed_in

SAMPLED = 4  # rows of a table on the page
FOLLOWED = ("preferences", "demonstrations", "thumbs")  # tables whose rows lead back to somebody
LISTED = (
    Column("short", "Snapshot", "brief", href="/snapshots/{sha256}"),
    Column("kept", "Kept", "brief"),
    Column("preferences", "Preferences", "number"),
    Column("demonstrations", "Demonstrations", "number"),
    Column("prompts", "Prompts", "number"),
    Column("thumbs", "Thumbs", "number"),
    Column("removed", "Removed", "number"),
    Column("trained", "Trained on it", "number"),
    Column("created_at", "Frozen", "moment"),
    Column("sha256", "sha256", "words"),
)
REMOVED = (
    Column("filter", "Filter", "words"),
    Column("n", "Rows", "number"),
    Column("examples", "Some of them", "words"),
)
SPLITS = (
    Column("table", "Table", "brief"),
    Column("split", "Split", "brief"),
    Column("n", "Rows", "number"),
)
SAID = (
    Column("who", "Who", "brief"),
    Column("what", "Said", "brief"),
    Column("guideline_version", "Under guideline", "number"),
    Column("seconds", "Took", "duration"),
    Column("reasons", "Because", "words"),
    Column("at", "When", "moment"),
)
CHANGES = (
    Column("table", "Table", "brief"),
    Column("n_before", "Before", "number"),
    Column("n_after", "After", "number"),
    Column("came", "Came", "number"),
    Column("went", "Went", "number"),
    Column("changed", "Changed", "number"),
    Column("moved", "Moved to another split", "number"),
)
EXAMPLES = (
    Column("table", "Table", "brief"),
    Column("what", "What", "brief"),
    Column("row", "Row", "brief", href="/snapshots/{sha256}/{table}/{row}"),
)


@dataclass(frozen=True)
class Sample:
    """One row as the page shows it: the prompt, then its answers by name."""

    id: str
    split: str
    prompt: str
    answers: tuple[tuple[str, str], ...]
    note: str


@dataclass(frozen=True)
class Look:
    """Everything that the page of one Snapshot shows."""

    record: SnapshotRecord
    kept: str
    body: Json
    sections: tuple[Section, ...]
    gaps: tuple[str, ...]
    samples: tuple[Sample, ...]
    missing: str  # why there are no rows to show
    picture: Markup
    filters: tuple[Json, ...]
    splits: tuple[Json, ...]


# --- pages -------------------------------------------------------------------------------------------------------------


async def snapshots(request: Request) -> Response:
    """GET /snapshots."""
    door = door_of(request)
    rows = await door.run(_listed, door.store, signed_in(request).project_id)
    empty = "No snapshot yet. `plaudit snapshot freeze` freezes what may be trained on; every turn begins with one."
    return answer(request, "snapshots.html", [Table("snapshots", "Snapshots", LISTED, rows, empty)])


async def snapshot(request: Request) -> Response:
    """GET /snapshots/{sha256}; `?rows=` chooses the table that samples are from, `?seed=` draws others."""
    door, project_id = door_of(request), signed_in(request).project_id
    table, seed = request.query_params.get("rows", FOLLOWED[0]), _seed(request.query_params.get("seed", "0"))
    if table not in samples.READABLE:
        raise BadInput(f"rows is {table!r}; choose from: {', '.join(samples.READABLE)}.")
    look = await door.run(_look, door.store, project_id, request.path_params["sha256"], table, seed)
    tables = [
        Table("splits", "Rows by table and split", SPLITS, look.splits, "Its record has no counts."),
        Table("removed", "Removed by filters", REMOVED, look.filters, "No filter removed a row."),
    ]
    return answer(
        request,
        "snapshot.html",
        tables,
        look=look,
        record=look.record,
        rows=table,
        readable=samples.READABLE,
        followed=table in FOLLOWED,
        seed=seed,
    )


async def row(request: Request) -> Response:
    """GET /snapshots/{sha256}/{table}/{row_id}: a row, and who made it."""
    door, project_id, asked = door_of(request), signed_in(request).project_id, request.path_params
    record, raw, origin = await door.run(_row, door.store, project_id, asked["sha256"], asked["table"], asked["row_id"])
    said = [vars(one) for one in origin.said] if origin else []
    table = Table("said", "Who said what", SAID, said, "The store holds no judgement of it any more.")
    return answer(
        request,
        "row.html",
        [table],
        record=record,
        one=_shown(asked["table"], raw),
        raw=raw,
        origin=origin,
        guidelines=[(one, markdown.render(one.text)) for one in origin.guidelines] if origin else [],
    )


async def diff(request: Request) -> Response:
    """GET /snapshots/diff?a=&b=: what came, went and changed from a to b; without them, the choice."""
    door, project_id = door_of(request), signed_in(request).project_id
    a, b = request.query_params.get("a", ""), request.query_params.get("b", "")
    records = await door.run(_records, door.store, project_id)
    if not a or not b:
        tables = _compared(None, "")
        return answer(request, "diff.html", tables, records=records, a=a, b=b, found=None, drawn=[])
    one, two, found = await door.run(_diff, door.store, project_id, a, b)
    return answer(
        request,
        "diff.html",
        _compared(found, two.sha256),
        records=records,
        a=one.sha256,
        b=two.sha256,
        found=found,
        drawn=_bars(found),
    )


# --- reading -----------------------------------------------------------------------------------------------------------


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise BadInput(f"seed is {text!r}; give a whole number from 0.")
    return int(text)


def _records(store: Store, project_id: str) -> list[SnapshotRecord]:
    return store.find(SnapshotRecord, project_id=project_id, descending=True)


def _found(store: Store, project_id: str, sha256: str) -> SnapshotRecord:
    """By its sha256 or the 16 characters that name its folder."""
    known = store.find(SnapshotRecord, project_id=project_id)
    found = next((one for one in known if one.sha256 == sha256 or one.sha256[:16] == sha256), None)
    if found is None:
        raise NotFound(f"There is no snapshot {sha256[:70]!r} in this project.")
    return found


def _listed(store: Store, project_id: str) -> list[Json]:
    with store.read() as tx:
        records = tx.find(SnapshotRecord, project_id=project_id, descending=True)
        runs = tx.find(Run, project_id=project_id, state=RunState.DONE)
    given = [json.dumps([one.inputs, one.config]) for one in runs if one.outputs.get("checkpoint_id")]
    return [
        {
            "sha256": one.sha256,
            "short": one.sha256[:16],
            "kept": kept(one),
            **{table: _total(one.counts, table) for table in ("preferences", "demonstrations", "prompts", "thumbs")},
            "removed": sum(one.counts.get("filters", {}).values()),
            "trained": sum(
                any(json.dumps(name) in said for name in (one.id, one.folder, one.sha256)) for said in given
            ),
            "created_at": one.created_at,
        }
        for one in records
    ]


def _total(counts: Json, table: str) -> int | None:
    return sum(counts[table].values()) if table in counts else None


def _look(store: Store, project_id: str, sha256: str, table: str, seed: int) -> Look:
    record = _found(store, project_id, sha256)
    folder = Path(record.folder)
    body: Json = {}
    shown: tuple[Sample, ...] = ()
    missing = ""
    try:
        body = artifacts.read_manifest(folder, "snapshot").body
        if record.purged_at is None:
            shown = tuple(_shown(table, raw) for raw in samples.sample(folder, table, SAMPLED, seed))
        else:
            missing = "Its rows were purged after an erasure; what they were counts for stays."
    except PlauditError as error:  # its folder is gone or spoilt: the record still tells
        missing = error.message
    card = folder / "card.md"
    sections, gaps = read_card(card.read_text(encoding="utf-8")) if card.is_file() else ([], [])
    filters, examples = record.counts.get("filters", {}), body.get("examples", {})
    return Look(
        record=record,
        kept=kept(record),
        body=body,
        sections=tuple(sections),
        gaps=tuple(gaps),
        samples=shown,
        missing=missing,
        picture=_lineage(store, project_id, record),
        filters=tuple(
            {"filter": name, "n": n, "examples": ", ".join(examples.get(name, ()))} for name, n in filters.items()
        ),
        splits=tuple(
            {"table": name, "split": split, "n": n}
            for name, counts in record.counts.items()
            if name != "filters"
            for split, n in counts.items()
        ),
    )


def read_card(text: str) -> tuple[list[Section], list[str]]:
    """The sections and the known gaps of a card.md, as `loop.snapshots.card` writes them."""
    sections, gaps = [], []
    for part in text.split("\n## ")[1:]:
        title, _, rest = part.partition("\n")
        lines = [line for line in rest.split("\n") if line.strip()]
        cells = [
            line[2:-2].replace("\\|", "\0").split(" | ")
            for line in lines
            if line.startswith("| ") and line.endswith(" |")
        ]
        rows = [
            (cell[0].replace("\0", "|"), int(cell[1]))
            for cell in cells
            if len(cell) == 2 and cell[1].lstrip("-").isdecimal()
        ]
        if rows:
            sections.append(Section(title, lines[0], rows))
        else:
            gaps += [line[2:] for line in lines if line.startswith("- ")]
    return sections, gaps


def _lineage(store: Store, project_id: str, record: SnapshotRecord) -> Markup:
    """From the releases of what was trained on it, down to what it was made from."""
    nodes: dict[str, Node] = {}
    for mine in ledger.lineages(store, project_id):
        if any(node.id == record.id for node in mine):
            nodes |= {node.id: node for node in _above(mine, record.id)}
    below = counted(record)
    frozen = Node(
        record.id, "snapshot", {"sha256": record.sha256}, tuple(one.id for one in below if one.kind != "guideline")
    )
    shown = [*nodes.values(), frozen, *below]
    about = "The lineage of this Snapshot: releases and checkpoints that rest on it above, what it was made from below."
    return graph([box(node) for node in shown], about)


def _above(nodes: Sequence[Node], id: str) -> list[Node]:
    """The releases, checkpoints and runs from which a way leads down to `id`."""
    reached = {id}
    for _ in nodes:
        reached |= {node.id for node in nodes if reached & set(node.rests_on)}
    return [node for node in nodes if node.id in reached and node.kind in ("release", "checkpoint", "run")]


def _row(
    store: Store, project_id: str, sha256: str, table: str, row_id: str
) -> tuple[SnapshotRecord, Json, Origin | None]:
    """The row, and where it comes from as far as the store still knows."""
    record = _found(store, project_id, sha256)
    if record.purged_at is not None:
        raise Conflict(f"The rows of snapshot {record.sha256[:16]} were purged after an erasure.")
    raw = samples.row(Path(record.folder), table, row_id)
    try:
        return record, raw, samples.origin(store, project_id, table, row_id)
    except NotFound:
        return record, raw, None


def _shown(table: str, raw: Json) -> Sample:
    names = [name for name in ("chosen", "rejected", "response") if name in raw]
    facts = [str(raw.get("source", "")), f"family {raw['family']}"]
    if "probability" in raw:
        facts.insert(0, f"chosen is better with {raw['probability']:.0%}".replace("%", " %"))
    if "up" in raw:
        facts.insert(0, "thumbs up" if raw["up"] else "thumbs down")
    return Sample(
        id=raw[samples.id_column(table)],
        split=raw["split"],
        prompt=_prompt(raw["messages"]),
        answers=tuple((name, raw[name]) for name in names),
        note=", ".join(fact for fact in facts if fact),
    )


def _prompt(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n".join(f"{one.get('role')}: {one.get('content') or ''}" for one in messages)


# --- two of them -------------------------------------------------------------------------------------------------------


def _diff(store: Store, project_id: str, a: str, b: str) -> tuple[SnapshotRecord, SnapshotRecord, SnapshotDiff]:
    one, two = _found(store, project_id, a), _found(store, project_id, b)
    for record in (one, two):
        if record.purged_at is not None:
            raise Conflict(f"The rows of snapshot {record.sha256[:16]} were purged, so it cannot be compared.")
    opened = [artifacts.open_snapshot(Path(record.folder)) for record in (one, two)]
    return one, two, differences.diff(*opened)


def _compared(found: SnapshotDiff | None, after: str) -> list[Table]:
    tables: Mapping[str, Any] = found.tables if found else {}
    changes = [
        {"table": name}
        | {key: getattr(one, key) for key in ("n_before", "n_after", "came", "went", "changed", "moved")}
        for name, one in tables.items()
    ]
    before = found.before if found else ""
    examples = [
        {"table": name, "what": what, "row": id, "sha256": before if what == "went" else after}
        for name, one in tables.items()
        for what, ids in one.examples.items()
        for id in ids
    ]
    return [
        Table("changes", "Rows", CHANGES, changes, "Choose two snapshots."),
        Table("examples", "The first of each", EXAMPLES, examples, "No row differs."),
    ]


def _bars(found: SnapshotDiff) -> list[Section]:
    """What came and went, and rows by split before and after, of each table."""
    drawn = []
    for name, one in found.tables.items():
        rows = [(word, int(getattr(one, word))) for word in ("came", "went", "changed", "moved")]
        for split, both in one.by_split.items():
            rows += [(f"{split}, before", both[0]), (f"{split}, after", both[1])]
        drawn.append(Section(name.capitalize(), f"{one.n_before} rows before, {one.n_after} after.", rows))
    if found.filters:
        rows = [
            (f"{name}, {when}", n)
            for name, both in found.filters.items()
            for when, n in zip(("before", "after"), both, strict=True)
        ]
        drawn.append(Section("Removed", "Filters that removed another number of rows.", rows))
    return drawn
