"""Registry: every Checkpoint as a version, and the lineage of one as a graph, from its releases down to how many people said what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from plaudit import artifacts
from plaudit.domain import Json, Release, SnapshotRecord
from plaudit.errors import NotFound, PlauditError
from plaudit.loop import registry as ledger
from plaudit.loop.registry import Node, Version
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages import markdown, words
from plaudit.web.pages.graph import Box, graph
from plaudit.web.pages.shell import Column, Table, answer
from plaudit.web.sign_in import signed_in

LISTED = (
    Column("version", "Version", "brief", href="/registry/{checkpoint_id}"),
    Column("aliases", "Aliases", "brief"),
    Column("gate", "Gate", "state"),
    Column("releases", "Offered as", "words"),
    Column("kept", "Kept", "brief"),
    Column("base", "Base", "brief"),
    Column("sha256", "sha256", "brief"),
    Column("created_at", "Made", "moment"),
    Column("checkpoint_id", "Checkpoint", "brief"),
)
LINEAGE = (
    Column("kind", "What", "brief"),
    Column("name", "Which", "brief"),
    Column("id", "Id", "brief"),
    Column("facts", "Facts", "words"),
    Column("rests_on", "Rests on", "words"),
)
FIGURES = (
    Column("figure", "Figure", "brief"),
    Column("value", "Value", "words"),
)
# Where the page of each kind of node is.
PAGES: Mapping[str, str] = {
    "release": "/releases/{id}",
    "evaluation": "/evaluations/{id}",
    "checkpoint": "/registry/{id}",
    "run": "/runs/{id}",
    "snapshot": "/snapshots/{sha256}",
}


@dataclass(frozen=True)
class Look:
    """Everything that the page of one version shows."""

    version: Version
    picture: Markup
    lineage: tuple[Json, ...]
    figures: tuple[Json, ...]
    card: Markup | None


# --- pages -------------------------------------------------------------------------------------------------------------


async def registry(request: Request) -> Response:
    """GET /registry: the versions, and the lineage of the champion, else of the challenger, else of the newest."""
    door, project_id = door_of(request), signed_in(request).project_id
    versions, aliases, chosen, picture = await door.run(_listed, door.store, project_id)
    empty = "No version yet: a Checkpoint appears here when a training run ends. `plaudit train` and `plaudit loop run` make some."
    table = Table("versions", "Versions", LISTED, [_row(one) for one in reversed(versions)], empty)
    return answer(request, "registry.html", [table], aliases=aliases, chosen=chosen, picture=picture)


async def version(request: Request) -> Response:
    """GET /registry/{checkpoint_id}."""
    door, project_id = door_of(request), signed_in(request).project_id
    look = await door.run(_look, door.store, project_id, request.path_params["checkpoint_id"])
    tables = [
        Table("lineage", "Lineage", LINEAGE, look.lineage, ""),
        Table("figures", "Figures of its training", FIGURES, look.figures, "Its run kept no figure."),
    ]
    return answer(request, "version.html", tables, look=look, made=look.version.checkpoint)


# --- reading -----------------------------------------------------------------------------------------------------------


def _listed(
    store: Store, project_id: str
) -> tuple[list[Version], dict[str, Release | None], Version | None, Markup | str]:
    versions, aliases = ledger.versions(store, project_id), ledger.aliases(store, project_id)
    offered = [one for one in versions if one.releases]
    named = [one for alias in ledger.ALIASES for one in versions if alias in one.aliases]
    chosen = next(iter(named or offered[::-1] or versions[::-1]), None)
    if chosen is None:
        return versions, aliases, None, ""
    return versions, aliases, chosen, _drawn(chosen, _nodes(store, project_id, chosen))


def _row(one: Version) -> Json:
    made = one.checkpoint
    return {
        "version": one.name,
        "checkpoint_id": made.id,
        "aliases": ", ".join(one.aliases),
        "gate": one.evaluation.gate if one.evaluation else None,
        "releases": ", ".join(f"{release.model} ({release.state})".replace("_", " ") for release in one.releases),
        "kept": kept(made),
        "base": Path(made.base).name,
        "sha256": made.sha256[:12],
        "created_at": made.created_at,
    }


def kept(thing: Any) -> str:
    """What an erasure has done to a Checkpoint or to a Snapshot's record."""
    if thing.purged_at is not None:
        return f"purged {thing.purged_at:%Y-%m-%d}"
    return "tainted: it holds what was erased since" if thing.tainted_at is not None else "whole"


def _look(store: Store, project_id: str, checkpoint_id: str) -> Look:
    found = next((one for one in ledger.versions(store, project_id) if one.checkpoint.id == checkpoint_id), None)
    if found is None:
        raise NotFound(f"There is no version with the checkpoint {checkpoint_id!r} in this project.")
    nodes = _nodes(store, project_id, found)
    card = Path(found.checkpoint.folder) / "card.md"
    pictures = f"/runs/{found.checkpoint.run_id}/card/" if found.checkpoint.run_id else ""
    return Look(
        version=found,
        picture=_drawn(found, nodes),
        lineage=tuple(_lineage_row(one) for one in nodes),
        figures=tuple(
            {"figure": name, "value": words.number(value)} for name, value in _flat(found.checkpoint.metrics)
        ),
        card=markdown.render(card.read_text(), pictures=pictures) if card.is_file() else None,
    )


def _nodes(store: Store, project_id: str, found: Version) -> list[Node]:
    """The version's lineage, where each Snapshot rests on counts of what it was made from, as its record and its manifest say."""
    records = {one.id: one for one in store.find(SnapshotRecord, project_id=project_id)}
    nodes: list[Node] = []
    for node in ledger.lineage(store, project_id, found.checkpoint.id, read=False):
        below = counted(records[node.id]) if node.kind == "snapshot" else []
        nodes.append(
            Node(
                node.id, node.kind, node.facts, (*node.rests_on, *(one.id for one in below if one.kind != "guideline"))
            )
        )
        nodes += below
    return nodes


def counted(record: SnapshotRecord) -> list[Node]:
    """What a Snapshot rests on, as counts: conclusions by method, votes of annotators, interactions by consent, guideline versions."""
    said = record.lineage
    try:
        counts = artifacts.read_manifest(Path(record.folder)).body.get("counts", {})
    except PlauditError:  # its folder was moved: the record still tells
        counts = {}
    nodes = []
    guidelines = [f"version {number}" for number in said.get("guideline_versions", ())]
    votes = counts.get("votes")
    for method, n in said.get("conclusions", {}).items():
        asked = method.startswith("annotation")
        made_of = "votes" if asked and votes else "interactions"
        nodes.append(
            Node(f"{record.id}/{method}", "preferences", {"n": n, "method": method}, (f"{record.id}/{made_of}",))
        )
    if votes:
        below = (f"{record.id}/guideline",) if guidelines else ()
        nodes.append(Node(f"{record.id}/votes", "annotations", {"n": votes}, below))
    if said.get("interactions"):
        nodes.append(Node(f"{record.id}/interactions", "interactions", dict(said["interactions"]), ()))
    if guidelines:
        nodes.append(Node(f"{record.id}/guideline", "guideline", {"versions": guidelines}, ()))
    return nodes


# --- drawing -----------------------------------------------------------------------------------------------------------


def _drawn(found: Version, nodes: Sequence[Node]) -> Markup:
    counts = f"{len(nodes)} things, from its releases above to what people said below; the table of its lineage has them as words."
    return graph([box(one) for one in nodes], f"The lineage of {found.name}: {counts}")


def box(node: Node) -> Box:
    """A node of a lineage as a box with a link to its page."""
    href = PAGES.get(node.kind, "").format(id=node.id, sha256=node.facts.get("sha256", ""))
    return Box(node.id, _title(node), _name(node), href, node.rests_on)


def _title(node: Node) -> str:
    facts = node.facts
    match node.kind:
        case "checkpoint":
            return f"{facts['kind']} checkpoint"
        case "approval":
            return f"{facts['decision']} {facts['stage']}"
        case "release":
            return f"release, {facts['state']}".replace("_", " ")
        case "evaluation":
            return f"evaluation, {facts['gate']}" if facts.get("gate") else "evaluation"
        case "run":
            return f"{facts['step']} run"
        case _:
            return node.kind


def _name(node: Node) -> str:
    facts = node.facts
    match node.kind:
        case "checkpoint" | "snapshot":
            return str(facts["sha256"])[:16]
        case "approval":
            return str(facts["person"])
        case "release":
            return str(facts["model"])
        case "evaluation":
            return str(facts["suite"])
        case "run":
            return f"turn {facts['turn']}"
        case "preferences":
            return f"{facts['n']:,} by {facts['method'].partition('/')[2] or facts['method']}"
        case "annotations":
            return f"{facts['n']:,} votes"
        case "interactions":
            return ", ".join(f"{n:,} {use}" for use, n in facts.items())
        case "guideline":
            return ", ".join(facts["versions"])
        case _:
            return node.id


def _lineage_row(node: Node) -> Json:
    facts = ", ".join(
        f"{name} {words.number(value)}"
        for name, value in node.facts.items()
        if not isinstance(value, dict | list | tuple)
    )
    return {
        "kind": _title(node),
        "name": _name(node),
        "id": node.id,
        "facts": facts,
        "rests_on": ", ".join(node.rests_on),
    }


def _flat(metrics: Json, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every figure; an interval is one."""
    rows: list[tuple[str, Any]] = []
    for name, part in metrics.items():
        if isinstance(part, dict) and {"mean", "low", "high"} <= set(part):
            mean, low, high = (words.number(part[key]) for key in ("mean", "low", "high"))
            rows.append((prefix + name, f"{mean} [{low}, {high}] (n = {words.number(part.get('n'))})"))
        elif isinstance(part, dict):
            rows += _flat(part, f"{prefix}{name}.")
        elif isinstance(part, int | float | str) and part != "":
            rows.append((prefix + name, part))
    return rows
