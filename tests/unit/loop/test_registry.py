"""Versions, lineage down to the people's answers, and bytes that changed under the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from plaudit import artifacts
from plaudit.domain import (
    Annotation,
    Approval,
    Checkpoint,
    CheckpointKind,
    Decision,
    Evaluation,
    GateVerdict,
    Interaction,
    Preference,
    Project,
    Release,
    ReleaseState,
    ResponseText,
    Run,
    SnapshotRecord,
    new_id,
)
from plaudit.errors import NotFound
from plaudit.loop import annotate, govern, planning, registry, release
from plaudit.loop.snapshot import freeze
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
N = 8


@dataclass
class Made:
    snapshot: SnapshotRecord
    reward: Checkpoint
    policy: Checkpoint
    release: Release
    approval: Approval


def checkpoint(store: Store, folder: Path, kind: CheckpointKind, config: dict[str, Any], **inputs: Any) -> Checkpoint:
    """As a run of training leaves it."""
    path = artifacts.new_folder(folder, new_id(Checkpoint))
    (path / "weights.bin").write_text(path.name)
    sha256 = artifacts.finish(path, "checkpoint", {"checkpoint_kind": str(kind)}).id
    run = Run(
        id=new_id(Run),
        project_id="prj_default",
        step=str(kind),
        key=path.name,
        turn=1,
        config=config,
        inputs=inputs,
        created_at=NOW,
    )
    made = Checkpoint(
        id=path.name, project_id="prj_default", kind=kind, folder=str(path), sha256=sha256, base="tiny", run_id=run.id,
        parent_id=inputs.get("parent_id"), created_at=NOW,
    )  # fmt: skip
    store.add(run, made)
    return made


@pytest.fixture
def made(store: Store, project: Project, chat: Callable[..., Interaction], tmp_path: Path) -> Made:
    """A turn's leavings: N comparisons with two answers each, a Snapshot, a reward model, a policy, a candidate."""
    asked = [chat(f"question {i}", (f"answer {i}",), family=f"family {i}") for i in range(N)]
    other = {one.id: [ResponseText(f"second {one.id}")] for one in asked}
    planning.plan_comparisons(store, project.id, asked, other, model="base", batch="b", overlap=2, now=NOW)
    for name in ("Ann", "Bob"):
        who = govern.person(store, project.id, name, NOW).id
        while (loan := annotate.lend(store, project.id, who, 60, NOW)) is not None:
            choice = loan.comparison.response_ids[0]
            body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": choice, "seconds": 3.0}
            annotate.answer(store, project.id, who, body, NOW)
    annotate.aggregate(store, project.id, now=NOW)
    record, _ = freeze(store, project.id, tmp_path / "snapshots", seed=0, now=NOW)
    runs = tmp_path / "runs"
    reward = checkpoint(store, runs, CheckpointKind.REWARD, {"snapshot": record.folder})
    checkpoint(store, runs, CheckpointKind.REWARD, {"snapshot": "/elsewhere"})  # of another line
    policy = checkpoint(store, runs, CheckpointKind.POLICY, {}, snapshot_sha256=record.sha256, parent_id=reward.id)
    release.register_base(store, project.id, "base", "fake:", NOW)
    offered = release.create_candidate(store, project.id, policy.id, "turn-1", "fake:", NOW)
    approval = govern.approve(store, project.id, offered.id, "canary", "Ann", Decision.APPROVE, "read", NOW)
    return Made(record, reward, policy, offered, approval)


def test_versions_are_numbered_by_kind_and_keep_what_the_gate_said(store: Store, project: Project, made: Made) -> None:
    def judged(gate: GateVerdict | None) -> None:
        row = Evaluation(
            id=new_id(Evaluation),
            project_id=project.id,
            checkpoint_id=made.policy.id,
            against_id=None,
            suite="s",
            figures={},
            gate=gate,
            created_at=NOW,
        )
        store.add(row)

    assert [one.name for one in registry.versions(store, project.id)] == ["reward/1", "reward/2", "policy/1"]
    assert registry.version(store, project.id, "policy/1").evaluation is None
    judged(GateVerdict.FAIL)
    judged(GateVerdict.PASS)
    judged(None)  # a suite without a gate says nothing about it
    found = registry.version(store, project.id, made.policy.sha256[:8])
    assert found.evaluation is not None
    assert (found.evaluation.gate, found.releases, found.checkpoint) == (GateVerdict.PASS, (made.release,), made.policy)
    assert found.to_dict()["gate"] == "pass"


def test_aliases_follow_the_ledger(store: Store, project: Project, made: Made) -> None:
    named = registry.aliases(store, project.id)
    assert named["champion"] is not None
    assert (named["champion"].model, named["challenger"]) == ("base", None)
    with pytest.raises(NotFound, match="base model, which has no version"):
        registry.version(store, project.id, "champion")
    with pytest.raises(NotFound, match="no version 'challenger'"):
        registry.version(store, project.id, "challenger")
    store.change(Release, made.release.id, state=ReleaseState.CANARY)
    assert registry.version(store, project.id, "challenger").aliases == ("challenger",)
    assert registry.version(store, project.id, made.release.id).name == "policy/1"


def test_lineage_from_a_release_down_to_the_answers(store: Store, project: Project, made: Made) -> None:
    nodes = {node.id: node for node in registry.lineage(store, project.id, made.release.id, rows=True)}
    assert made.approval.id in nodes[made.release.id].rests_on
    assert made.policy.id in nodes[made.release.id].rests_on
    assert set(nodes[made.policy.id].rests_on) == {made.policy.run_id, made.reward.id, made.snapshot.id}
    assert set(nodes[made.reward.id].rests_on) == {made.reward.run_id, made.snapshot.id}
    assert {node.kind for node in nodes.values()} == {"release", "approval", "checkpoint", "run", "snapshot", "preference", "annotation"}  # fmt: skip
    assert sum(node.kind == "checkpoint" for node in nodes.values()) == 2, "not the other line's"
    below = [nodes[id] for id in nodes[made.snapshot.id].rests_on]
    assert {node.id for node in below} == {one.id for one in store.find(Preference)}
    answers = {id for node in below for id in node.rests_on}
    assert answers == {one.id for one in store.find(Annotation)}
    assert len(answers) == 2 * N


def test_lineage_in_numbers(store: Store, project: Project, made: Made) -> None:
    nodes = registry.lineage(store, project.id, "policy/1")
    frozen = next(node for node in nodes if node.kind == "snapshot")
    counts = {name: frozen.facts[f"n_{name}"] for name in ("preferences", "annotations", "annotators")}
    assert counts == {"preferences": N, "annotations": 2 * N, "annotators": 2}
    assert frozen.rests_on == ()


def test_changed_bytes_are_found_and_named(store: Store, project: Project, made: Made) -> None:
    assert registry.problems(registry.verify(store, project.id)) == []
    (Path(made.reward.folder) / "weights.bin").write_text("other")
    (Path(made.snapshot.folder) / "preferences.parquet").unlink()
    assert {one.id for one in registry.problems(registry.verify(store, project.id, "policy/1"))} == {made.reward.id, made.snapshot.id}  # fmt: skip
    assert registry.problems(registry.verify(store, project.id, "reward/2")) == []
    nodes = registry.lineage(store, project.id, "policy/1")
    assert "problem" in next(node for node in nodes if node.kind == "snapshot").facts


def test_another_folder_in_its_place_is_found(store: Store, project: Project, made: Made) -> None:
    """Whole in itself, but not what was registered."""
    store.change(SnapshotRecord, made.snapshot.id, sha256="f" * 64)
    store.change(Checkpoint, made.policy.id, folder=made.reward.folder)
    found = registry.problems(registry.verify(store, project.id))
    assert {one.id for one in found} == {made.snapshot.id, made.policy.id}
    assert all("registered" in str(one.problem) for one in found)


def test_what_was_purged_is_not_missed(store: Store, project: Project, made: Made) -> None:
    store.change(SnapshotRecord, made.snapshot.id, purged_at=NOW)
    assert made.snapshot.id not in {one.id for one in registry.verify(store, project.id)}
    frozen = next(node for node in registry.lineage(store, project.id, "policy/1") if node.kind == "snapshot")
    assert frozen.facts["purged"] is True


def test_the_lineages_of_all_are_those_of_each_and_cost_no_more_for_many(
    store: Store, project: Project, made: Made, tmp_path: Path
) -> None:
    asked: list[str] = []
    sa.event.listen(store._engine, "before_cursor_execute", lambda *given: asked.append(given[2]))

    def told() -> list[list[registry.Node]]:
        asked.clear()
        return registry.lineages(store, project.id)

    names = [one.name for one in registry.versions(store, project.id)]
    assert told() == [registry.lineage(store, project.id, name, read=False) for name in names]
    told()
    few = len(asked)
    for _ in range(3):
        checkpoint(store, tmp_path / "more", CheckpointKind.POLICY, {}, parent_id=made.policy.id)
    assert len(told()) == len(names) + 3
    assert len(asked) == few
