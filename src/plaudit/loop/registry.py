"""Registry: every Checkpoint as a version, what offers it, where it came from down to the annotations, and whether its bytes are still right.

Read only, and derived: the ledger (`release.py`) is the truth. A version's number counts the Checkpoints of its kind, oldest first; nothing is
ever deleted from the store, so it stays. The aliases are protected because nobody sets them: `champion` is what is live, `challenger` the
canary, and each moves only with a Release, which needs its gate, its approvals by two people and the role of an operator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from plaudit import artifacts
from plaudit.domain import (
    Annotation,
    Approval,
    Checkpoint,
    Evaluation,
    Json,
    Release,
    ReleaseState,
    Run,
    SnapshotRecord,
)
from plaudit.errors import NotFound, PlauditError
from plaudit.loop.release import verified_checkpoint
from plaudit.store.database import Store

ALIASES = {"champion": ReleaseState.LIVE, "challenger": ReleaseState.CANARY}
_CHUNK = 500


@dataclass(frozen=True)
class Version:
    """A Checkpoint with what the ledger says of it. `name` is kind/number; `evaluation` the newest that a gate judged."""

    name: str
    checkpoint: Checkpoint
    releases: tuple[Release, ...]  # oldest first
    aliases: tuple[str, ...]
    evaluation: Evaluation | None

    def to_dict(self) -> Json:
        made = self.checkpoint
        return {
            "version": self.name,
            "checkpoint_id": made.id,
            "kind": str(made.kind),
            "sha256": made.sha256,
            "folder": made.folder,
            "base": made.base,
            "run_id": made.run_id,
            "parent_id": made.parent_id,
            "created_at": made.created_at.isoformat(),
            "tainted": made.tainted_at is not None,
            "purged": made.purged_at is not None,
            "gate": str(self.evaluation.gate) if self.evaluation else None,
            "evaluation_id": self.evaluation.id if self.evaluation else None,
            "releases": [{"id": one.id, "state": str(one.state), "model": one.model} for one in self.releases],
            "aliases": list(self.aliases),
            "metrics": made.metrics,
        }


@dataclass(frozen=True)
class Node:
    """One thing that a version rests on. `rests_on` names the nodes below it."""

    id: str
    kind: str
    facts: Json
    rests_on: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One artifact after reading every byte of it; `problem` None: it is what was registered."""

    id: str
    kind: str
    sha256: str
    problem: str | None


def versions(store: Store, project_id: str) -> list[Version]:
    """Every Checkpoint, oldest first."""
    with store.read() as tx:
        made = tx.find(Checkpoint, project_id=project_id)
        releases = tx.find(Release, project_id=project_id)
        judged = [one for one in tx.find(Evaluation, project_id=project_id) if one.gate is not None]
    found: list[Version] = []
    for checkpoint in made:
        mine = tuple(one for one in releases if one.checkpoint_id == checkpoint.id)
        found.append(
            Version(
                name=f"{checkpoint.kind}/{1 + sum(one.checkpoint.kind == checkpoint.kind for one in found)}",
                checkpoint=checkpoint,
                releases=mine,
                aliases=tuple(alias for alias, state in ALIASES.items() if any(one.state == state for one in mine)),
                evaluation=next((one for one in reversed(judged) if one.checkpoint_id == checkpoint.id), None),
            )
        )
    return found


def aliases(store: Store, project_id: str) -> dict[str, Release | None]:
    """What each alias names now; the champion may be the base model, which has no version."""
    with store.read() as tx:
        return {
            alias: tx.first(Release, project_id=project_id, state=state, segment="") for alias, state in ALIASES.items()
        }


def version(store: Store, project_id: str, name: str) -> Version:
    """By kind/number, alias, id of a Checkpoint or of a Release, or the start of a sha256 (8 characters or more). Raises NotFound."""
    known = versions(store, project_id)
    for one in known:
        exact = {one.name, one.checkpoint.id, *one.aliases, *(release.id for release in one.releases)}
        if name in exact or (len(name) >= 8 and one.checkpoint.sha256.startswith(name)):
            return one
    if any(one is not None and name in (alias, one.id) for alias, one in aliases(store, project_id).items()):
        raise NotFound(f"{name} is the base model, which has no version: nothing was trained for it.")
    shown = ", ".join(one.name for one in known[-5:]) or "none yet"
    raise NotFound(f"The registry has no version {name!r}; the newest are {shown} (`plaudit registry list`).")


# --- lineage -----------------------------------------------------------------------------------------------------------


def lineage(store: Store, project_id: str, name: str, rows: bool = False, read: bool = True) -> list[Node]:
    """What a version rests on, itself first: releases, approvals, evaluations, runs, Snapshots, and of each Snapshot its Preferences and their
    Annotations, as counts or (`rows`) one by one; without `read` no Snapshot's folder is opened, as a page wants it. Raises NotFound."""
    top = version(store, project_id, name)
    return _below(
        _ledger(store, project_id), top, lambda record: _snapshot(store, record, rows) if read else [_closed(record)]
    )


def lineages(store: Store, project_id: str) -> list[list[Node]]:
    """Of every version what `lineage` says without opening a folder, oldest first, the store read once for all of them."""
    known = _ledger(store, project_id)
    return [_below(known, top, lambda record: [_closed(record)]) for top in versions(store, project_id)]


@dataclass(frozen=True)
class _Ledger:
    """What the lineage of any version of a project is told from."""

    checkpoints: list[Checkpoint]
    snapshots: list[SnapshotRecord]
    runs: dict[str, Run]
    approvals: list[Approval]
    evaluations: list[Evaluation]


def _ledger(store: Store, project_id: str) -> _Ledger:
    with store.read() as tx:
        return _Ledger(
            tx.find(Checkpoint, project_id=project_id),
            tx.find(SnapshotRecord, project_id=project_id),
            {one.id: one for one in tx.find(Run, project_id=project_id)},
            tx.find(Approval, project_id=project_id),
            tx.find(Evaluation, project_id=project_id),
        )


def _below(known: _Ledger, top: Version, told: Callable[[SnapshotRecord], list[Node]]) -> list[Node]:
    """`told`: a Snapshot with what it rests on."""
    evaluations = [one for one in known.evaluations if one.checkpoint_id == top.checkpoint.id]
    nodes: list[Node] = []
    for release in top.releases:
        given = tuple(one.id for one in known.approvals if one.release_id == release.id)
        state = {"state": str(release.state), "model": release.model}
        nodes.append(Node(release.id, "release", state, (top.checkpoint.id, *given, *(e.id for e in evaluations))))
        nodes += [
            Node(one.id, "approval", {"stage": one.stage, "person": one.person, "decision": str(one.decision)}, ())
            for one in known.approvals
            if one.id in given
        ]
    nodes += [Node(one.id, "evaluation", {"suite": one.suite, "gate": one.gate}, ()) for one in evaluations]
    waiting: list[Checkpoint] = [top.checkpoint]
    seen: set[str] = set()
    while waiting:
        made = waiting.pop(0)
        if made.id in seen:
            continue
        seen.add(made.id)
        run = known.runs.get(made.run_id or "")
        parents = [one for one in known.checkpoints if one.id != made.id and _names(run, made, one)]
        frozen = [one for one in known.snapshots if _names(run, made, one)]
        facts = {"kind": str(made.kind), "sha256": made.sha256, "base": made.base}
        below = (*(one.id for one in parents), *(one.id for one in frozen))
        nodes.append(Node(made.id, "checkpoint", facts, (run.id, *below) if run else below))
        if run is not None:
            nodes.append(Node(run.id, "run", {"step": run.step, "turn": run.turn, "key": run.key}, below))
        for record in frozen:
            if record.id not in seen:
                seen.add(record.id)
                nodes += told(record)
        waiting += parents
    return nodes


def _names(run: Run | None, made: Checkpoint, other: Checkpoint | SnapshotRecord) -> bool:
    """Whether `made` is the child of `other`, or its run was given it: by id, folder or sha256."""
    if other.id == made.parent_id:
        return True
    return run is not None and given(run, other)


def given(run: Run, other: Checkpoint | SnapshotRecord) -> bool:
    """Whether a Run was given it: by id, folder or sha256."""
    said = json.dumps([run.inputs, run.config])
    return any(json.dumps(name) in said for name in (other.id, other.folder, other.sha256))


def _closed(record: SnapshotRecord) -> Node:
    """A Snapshot as its record tells it."""
    return Node(record.id, "snapshot", {"sha256": record.sha256, "lineage": record.lineage}, ())


def _snapshot(store: Store, record: SnapshotRecord, rows: bool) -> list[Node]:
    """A Snapshot, and the Annotations that its Preferences were concluded from. Its folder is read as it is; `verify` checks it."""
    facts = _closed(record).facts
    if record.purged_at is not None:
        return [Node(record.id, "snapshot", {**facts, "purged": True}, ())]
    try:
        kept = artifacts.open_snapshot(Path(record.folder)).preferences()
    except PlauditError as error:
        return [Node(record.id, "snapshot", {**facts, "problem": error.message}, ())]
    asked = sorted({row.comparison_id for row in kept if row.comparison_id})
    said: list[Annotation] = []
    for start in range(0, len(asked), _CHUNK):
        said += store.find(Annotation, comparison_id=asked[start : start + _CHUNK])
    by_question: dict[str, list[Annotation]] = {}
    for one in said:
        by_question.setdefault(one.comparison_id, []).append(one)
    facts = facts | {
        "n_preferences": len(kept),
        "n_comparisons": len(asked),
        "n_annotations": len(said),
        "n_annotators": len({one.annotator_id for one in said}),
    }
    if not rows:
        return [Node(record.id, "snapshot", facts, ())]
    below = [
        Node(
            row.preference_id,
            "preference",
            {"comparison_id": row.comparison_id, "source": row.source, "split": row.split},
            tuple(one.id for one in by_question.get(row.comparison_id, ())),
        )
        for row in kept
    ]
    leaves = [
        Node(one.id, "annotation", {"annotator_id": one.annotator_id, "verdict": str(one.verdict)}, ()) for one in said
    ]
    return [Node(record.id, "snapshot", facts, tuple(node.id for node in below)), *below, *leaves]


# --- verification ------------------------------------------------------------------------------------------------------


def verify(store: Store, project_id: str, name: str | None = None) -> list[Finding]:
    """Read every byte of each Checkpoint and Snapshot that is registered (with `name`: that the version rests on). What was purged after an
    erasure is left out: its content is gone on purpose. Raises NotFound."""
    wanted = {node.id for node in lineage(store, project_id, name)} if name else None
    found = [
        Finding(made.id, str(made.kind), made.sha256, _problem_of_checkpoint(store, made))
        for made in store.find(Checkpoint, project_id=project_id, purged_at=None)
        if wanted is None or made.id in wanted
    ]
    return found + [
        Finding(record.id, "snapshot", record.sha256, _problem_of_snapshot(record))
        for record in store.find(SnapshotRecord, project_id=project_id, purged_at=None)
        if wanted is None or record.id in wanted
    ]


def _problem_of_checkpoint(store: Store, made: Checkpoint) -> str | None:
    try:
        verified_checkpoint(store, made.id)
    except (PlauditError, OSError) as error:
        return str(error)
    return None


def _problem_of_snapshot(record: SnapshotRecord) -> str | None:
    try:
        manifest = artifacts.verify(Path(record.folder), "snapshot")
    except (PlauditError, OSError) as error:
        return str(error)
    if manifest.id != record.sha256:
        return f"{record.folder} holds snapshot {manifest.id[:12]}, {record.sha256[:12]} was registered"
    return None


def problems(findings: Sequence[Finding]) -> list[Finding]:
    """Those that are not what was registered."""
    return [one for one in findings if one.problem is not None]
