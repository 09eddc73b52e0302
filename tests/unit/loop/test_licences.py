from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from plaudit import artifacts
from plaudit.domain import (
    AuditEntry,
    Checkpoint,
    CheckpointKind,
    Interaction,
    LicenceOf,
    Project,
    Release,
    Role,
    Run,
    RunState,
    SnapshotRecord,
    TrainingUse,
    new_id,
)
from plaudit.errors import BadInput, Conflict, Forbidden, NotFound, Refused
from plaudit.formats.records import Record
from plaudit.loop import annotate, collect, govern, imports, licences, release
from plaudit.loop.snapshot import freeze
from plaudit.loop.snapshots.pool import Curation
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]


def bought(n: int, models: tuple[str, ...] = ()) -> Iterator[Record]:
    for i in range(n):
        asked = ({"role": "user", "content": f"bought question {i}"},)
        yield Record(id=f"r{i}", messages=asked, responses=(f"good {i}", f"bad {i}"), ranks=(1, 2), models=models)


def take_in(store: Store, project: Project, n: int = 6, models: tuple[str, ...] = ()) -> None:
    imports.take_in(store, project.id, bought(n, models), name="hh", training_use=TrainingUse.ALLOWED, now=NOW)
    annotate.aggregate(store, project.id, now=NOW)


def liked(store: Store, interaction: Interaction) -> None:
    body = {"interaction_id": interaction.id, "kind": "thumb", "value": True}
    collect.record_feedback(store, interaction.project_id, body, None, NOW)


def offered(store: Store, project: Project, folder: Path, record: SnapshotRecord) -> Release:
    """A candidate whose reward model was trained on the Snapshot."""
    made: list[Checkpoint] = []
    for kind, inputs in ((CheckpointKind.REWARD, {"snapshot_sha256": record.sha256}), (CheckpointKind.POLICY, {})):
        run = Run(
            id=new_id(Run), project_id=project.id, step=str(kind), key=new_id(Run), turn=1, state=RunState.DONE, inputs=inputs,
            config={"reward": made[0].folder} if made else {}, created_at=NOW,
        )  # fmt: skip
        path = artifacts.new_folder(folder, run.id)
        manifest = artifacts.finish(path, "checkpoint", {"checkpoint_kind": str(kind), "license": "apache-2.0"})
        made.append(
            Checkpoint(
                id=new_id(Checkpoint), project_id=project.id, kind=kind, folder=str(path), sha256=manifest.id, base="b", run_id=run.id,
                created_at=NOW,
            )
        )  # fmt: skip
        store.add(run, made[-1])
    return release.create_candidate(store, project.id, made[-1].id, "candidate", "http://here/v1", NOW)


def against(store: Store, found: Release) -> list[str]:
    with store.read() as tx:
        return licences.reasons_against(tx, tx.get(Checkpoint, found.checkpoint_id or ""))


def test_each_row_says_by_what_right_it_is_there(store: Store, project: Project, chat: Chat, tmp_path: Path) -> None:
    release.register_base(store, project.id, "base", "http://here/v1", NOW)
    liked(store, chat("ours", ("an answer of the base model",)))
    take_in(store, project, models=("gpt-9", "gpt-9"))
    licences.declare(store, project.id, LicenceOf.IMPORT, "hh", "mit", TrainingUse.ALLOWED, "ada", NOW)
    record, snapshot = freeze(store, project.id, tmp_path / "snapshots", base_licence="apache-2.0", now=NOW)
    said = snapshot.provenance()
    (thumb,), rows = snapshot.thumbs(), snapshot.preferences()
    assert len(rows) == 6
    ours, theirs = said[thumb.thumb_id], said[rows[0].preference_id]
    assert (ours.consent, ours.imported, ours.licence) == ("allowed", "", "first party")
    assert (ours.models, ours.model_licences, ours.terms) == ("base", "apache-2.0", "allowed")
    assert (theirs.imported, theirs.licence, theirs.models) == ("hh", "mit", "gpt-9")
    assert (theirs.model_licences, theirs.terms) == ("unknown", "unknown")
    assert said.keys() == {thumb.thumb_id, *(r.preference_id for r in rows), *(p.prompt_id for p in snapshot.prompts())}
    assert record.lineage["rights"]["models"] == {"apache-2.0": 1, "unknown": 6}
    assert record.lineage["rights"]["declared"] == {"import": ["hh"], "model": ["gpt-9"]}
    assert "Nobody has said the licence" in (snapshot.folder / "card.md").read_text()
    # What is said later makes another Snapshot: the old one keeps saying what was known then.
    licences.declare(store, project.id, LicenceOf.MODEL, "gpt-*", "proprietary", TrainingUse.ALLOWED, "ada", NOW)
    later, again = freeze(store, project.id, tmp_path / "snapshots", base_licence="apache-2.0", now=NOW)
    assert later.sha256 != record.sha256
    assert "Nobody has said the licence" not in (again.folder / "card.md").read_text()


@pytest.mark.parametrize("subject", LicenceOf)
def test_what_terms_forbid_never_enters_and_is_counted(
    store: Store, project: Project, chat: Chat, tmp_path: Path, subject: LicenceOf
) -> None:
    liked(store, chat("ours", ("ours",)))
    take_in(store, project, models=("gpt-9", "gpt-9"))
    name = "hh" if subject is LicenceOf.IMPORT else "gpt-*"
    licences.declare(store, project.id, subject, name, "proprietary", TrainingUse.DENIED, "ada", NOW)
    record, snapshot = freeze(store, project.id, tmp_path, now=NOW)
    assert snapshot.preferences() == []
    assert len(snapshot.thumbs()) == 1
    assert record.counts["filters"]["preferences: terms of the upstream forbid training"] == 6


def test_a_release_waits_until_somebody_says_the_licence_of_what_it_learnt_from(
    store: Store, project: Project, tmp_path: Path
) -> None:
    take_in(store, project)
    record, _ = freeze(store, project.id, tmp_path / "snapshots", now=NOW)
    candidate = offered(store, project, tmp_path, record)
    (reason,) = against(store, candidate)
    assert record.id in reason
    assert "`plaudit snapshot licence import hh LICENCE`" in reason
    with pytest.raises(Refused) as refused:
        release.to_canary(store, project.id, candidate.id, "op", NOW)
    assert reason in refused.value.reasons
    licences.declare(store, project.id, LicenceOf.IMPORT, "hh", "mit", TrainingUse.UNKNOWN, "ada", NOW)
    assert against(store, candidate) == []
    licences.declare(store, project.id, LicenceOf.IMPORT, "hh", "mit", TrainingUse.DENIED, "ada", NOW)
    assert "forbid training" in against(store, candidate)[0]


def test_who_may_answers_for_what_nobody_knows_and_for_nothing_else(
    store: Store, project: Project, tmp_path: Path
) -> None:
    take_in(store, project)
    record, _ = freeze(store, project.id, tmp_path / "snapshots", now=NOW)
    candidate = offered(store, project, tmp_path, record)
    govern.create_key(store, project.id, "a", [Role.ADMIN], "root", now=NOW)
    govern.create_key(store, project.id, "b", [Role.OPERATOR], "op", now=NOW)
    with pytest.raises(Forbidden, match="a licence"):
        licences.override(store, project.id, candidate.id, "op", "we own it", NOW)
    with pytest.raises(BadInput):
        licences.override(store, project.id, candidate.id, "root", " ", NOW)
    licences.override(store, project.id, candidate.id, "root", "we own it", NOW)

    def reasons() -> list[str]:
        with store.read() as tx:
            return release.reasons_against(tx, candidate, release.ReleaseState.CANARY, NOW)

    assert not any("licence" in reason for reason in reasons())
    govern.create_key(store, project.id, "c", [Role.APPROVER], "root", now=NOW)
    govern.approve(store, project.id, candidate.id, "canary", "root", "approve", "yes", NOW)
    assert any("answered for its licences" in reason for reason in reasons())
    licences.declare(store, project.id, LicenceOf.IMPORT, "hh", "x", TrainingUse.DENIED, "ada", NOW)
    assert any("forbid training" in reason for reason in reasons())  # that was not known then
    with pytest.raises(NotFound):
        licences.override(store, project.id, "rel_none", "root", "so", NOW)
    licences.declare(store, project.id, LicenceOf.IMPORT, "hh", "mit", TrainingUse.ALLOWED, "ada", NOW)
    with pytest.raises(Conflict, match="nothing to override"):
        licences.override(store, project.id, candidate.id, "root", "so", NOW)


def test_saying_the_same_again_changes_nothing_and_every_word_is_on_the_log(store: Store, project: Project) -> None:
    said = [
        licences.declare(store, project.id, LicenceOf.MODEL, "m", licence, TrainingUse.ALLOWED, "ada", NOW)
        for licence in ("mit", "mit", "bsd")
    ]
    assert said[0] == said[1] != said[2]
    entries = store.find(AuditEntry, project_id=project.id, action="licence.model")
    assert [entry.after["licence"] for entry in entries] == ["mit", "bsd"]
    with store.read() as tx:
        assert licences.rights(tx, project.id).of_model("m") == "bsd"
    longest = "x" * licences.MAX_CHARS
    licences.declare(store, project.id, LicenceOf.MODEL, longest, longest, TrainingUse.ALLOWED, "ada", NOW)
    for name, licence in (("m", " "), ("m", longest + "x"), (longest + "x", "mit"), ("", "mit")):
        with pytest.raises(BadInput):
            licences.declare(store, project.id, LicenceOf.MODEL, name, licence, TrainingUse.ALLOWED, "ada", NOW)


def test_the_name_itself_beats_a_pattern(store: Store, project: Project) -> None:
    licences.declare(store, project.id, LicenceOf.MODEL, "gpt-oss", "apache-2.0", TrainingUse.ALLOWED, "ada", NOW)
    licences.declare(store, project.id, LicenceOf.MODEL, "gpt-*", "proprietary", TrainingUse.DENIED, "ada", NOW)
    with store.read() as tx:
        rights = licences.rights(tx, project.id)
    assert (rights.terms("", ("gpt-oss",)), rights.terms("", ("gpt-9",))) == ("allowed", "denied")
    assert rights.terms("", ("gpt-oss", "other")) == "unknown"
    # What a person has said of a model that a Release offers goes before what its folder says.
    offered = replace(rights, own={"gpt-oss": "mit", "ours": "mit"})
    assert [offered.of_model(name) for name in ("gpt-oss", "ours", "other")] == ["apache-2.0", "mit", "unknown"]


def test_curation_of_before_is_as_it_was() -> None:
    """Frozen: a new field would give every Snapshot another id."""
    assert sorted(Curation().to_json()) == [
        "contradictions", "evaluation_fraction", "forbidden_models", "languages", "max_chars", "max_per_annotator", "max_per_user",
        "min_chars", "min_probability", "near_duplicates", "personal_data", "stratify_by", "without",
    ]  # fmt: skip
