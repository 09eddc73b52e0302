from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from plaudit.artifacts import publish
from plaudit.domain import (
    AuditEntry,
    Checkpoint,
    CheckpointKind,
    Comparison,
    Erasure,
    Experiment,
    ExperimentState,
    Feedback,
    Interaction,
    Outcome,
    Project,
    Purpose,
    Release,
    Response,
    Run,
    RunState,
    SnapshotRecord,
    new_id,
)
from plaudit.errors import Corrupt, NotFound
from plaudit.formats import label_studio, trl
from plaudit.formats.files import read_lines
from plaudit.loop import collect, copies, erasure, outcomes, release, snapshot
from plaudit.loop.exports import snapshot_records
from plaudit.store.database import Store
from plaudit.store.spool import REFUSED, Entry, Spool

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Chat = Callable[..., Interaction]
SECRETS = ("my cat is called Zerberus", "Zerberus is a fine name", "call her Persephone", "ada@example.org")
KEPT = "where do I find the settings"


def bytes_of(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def quoting(home: Path, text: str) -> set[str]:
    return {name for name, data in bytes_of(home).items() if text.encode() in data}


def say(store: Store, interaction: Interaction, kind: str, value: Any, **more: Any) -> Feedback:
    body = {"interaction_id": interaction.id, "kind": kind, "value": value, **more}
    return collect.record_feedback(store, interaction.project_id, body, None, NOW).feedback


@pytest.fixture
def lived_in(store: Store, project: Project, chat: Chat, tmp_path: Path) -> Path:
    """A home in which Ada left her words wherever words go, and Bob too. Returns it."""
    home = tmp_path
    first = chat(
        SECRETS[0], (SECRETS[1],), actor=SECRETS[3], conversation_id=f"c-{SECRETS[3]}", attributes={"mail": SECRETS[3]}
    )
    say(store, first, "edit", SECRETS[2])
    say(store, first, "thumb", True)
    bobs = chat(KEPT, ("In the menu.",), actor="bob")
    say(store, bobs, "comment", SECRETS[0], user=SECRETS[3])
    say(store, bobs, "edit", "In the menu, on top.")
    outcomes.record(store, project.id, [{"user": SECRETS[3], "name": "paid", "value": 3, "at": NOW.isoformat()}], NOW)
    held_out = chat(f"{SECRETS[0]}, and yours?", actor=SECRETS[3])
    question = Comparison(
        id=new_id(Comparison), project_id=project.id, interaction_id=None, purpose=Purpose.EVALUATION, messages=held_out.messages,
        family="f", response_ids=("res_e",), created_at=NOW,
    )  # fmt: skip
    answer = Response(
        id="res_e", project_id=project.id, interaction_id=None, idx=0, text=SECRETS[1], finish_reason="stop", origin="evaluated",
        model="m", created_at=NOW,
    )  # fmt: skip
    store.add(question, answer)
    (home / "inputs").mkdir()
    lines = [
        {"id": "res_e", "response": "x"},
        {"id": "res_bob", "messages": [{"content": KEPT}]},
        {"messages": SECRETS[0]},
    ]
    (home / "inputs" / "monitor.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (home / "report.html").write_text(f"<p>{SECRETS[0]}</p>")
    return home


def trained(store: Store, project: Project, home: Path, name: str, **inputs: str) -> Checkpoint:
    """A finished Run with its Checkpoint, as a learn program leaves them."""
    folder = home / "runs" / name
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "manifest.json").write_text("{}")
    (folder / "checkpoint" / "model.safetensors").write_text(SECRETS[0])
    (folder / "metrics.jsonl").write_text('{"loss": 1}\n')
    (folder / "state").mkdir()
    (folder / "state" / "rows.bin").write_text(SECRETS[0])
    run = Run(
        id=new_id(Run), project_id=project.id, step="dpo", key=name, turn=0, state=RunState.DONE, inputs=inputs, folder=str(folder),
        created_at=NOW,
    )  # fmt: skip
    made = Checkpoint(
        id=new_id(Checkpoint), project_id=project.id, kind=CheckpointKind.POLICY, folder=str(folder / "checkpoint"), sha256=name,
        base="b", run_id=run.id, created_at=NOW,
    )  # fmt: skip
    store.add(run, made)
    return made


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)  # its file is searched
def test_an_erased_user_is_found_nowhere_and_what_learned_from_them_is_named(
    store: Store, project: Project, lived_in: Path
) -> None:
    home = lived_in
    record, folder = snapshot.freeze(store, project.id, home / "snapshots", now=NOW)
    first = trained(store, project, home, "first", snapshot_sha256=record.sha256)
    second = trained(store, project, home, "second", start=first.folder)
    apart = trained(store, project, home, "apart", snapshot_sha256="another")
    for secret in SECRETS:
        assert any("sqlite" in name for name in quoting(home, secret)), secret  # else the search below shows nothing

    done = erasure.erase_user(store, home, project.id, SECRETS[3], "test", 30, NOW)
    assert done.counts == {"interactions": 2, "feedback": 3, "outcomes": 1, "comparisons": 1}
    assert (done.snapshot_ids, set(done.checkpoint_ids)) == ((record.id,), {first.id, second.id})
    assert store.get(SnapshotRecord, record.id).tainted_at == NOW
    assert store.get(Checkpoint, second.id).tainted_at == NOW
    assert store.get(Checkpoint, apart.id).tainted_at is None
    assert not (home / "report.html").exists()
    assert [json.loads(line)["id"] for line in (home / "inputs" / "monitor.jsonl").read_text().splitlines()] == [
        "res_bob"
    ]

    assert erasure.purge(store, project.id, NOW + timedelta(days=29)) == []
    later = NOW + timedelta(days=31)
    (home / "runs" / "apart" / "checkpoint" / "model.safetensors").write_text("weights of its own")
    (home / "runs" / "apart" / "state" / "rows.bin").write_text("state of its own")
    assert set(erasure.purge(store, project.id, later)) == {record.id, first.id, second.id}
    assert [path.name for path in folder.folder.iterdir()] == ["manifest.json"]
    assert {path.name for path in (home / "runs" / "second").iterdir()} == {"metrics.jsonl", "checkpoint"}
    assert (home / "runs" / "apart" / "state").exists()
    assert store.get(Erasure, done.id).purged_at == later

    assert any("sqlite" in name for name in quoting(home, SECRETS[0]))  # freed, and still in the file
    assert erasure.compact(store, project.id, later)
    for secret in SECRETS:
        assert quoting(home, secret) == set(), secret
    assert quoting(home, KEPT)
    assert quoting(home, "In the menu, on top.")


def test_tombstones_keep_figures_and_nothing_that_leads_back(store: Store, project: Project, lived_in: Path) -> None:
    before = store.find(Interaction, actor=SECRETS[3])[0]
    done = erasure.erase_user(store, lived_in, project.id, SECRETS[3], "test", 30, NOW)
    tomb = store.get(Interaction, before.id)
    assert (tomb.actor, tomb.erasure_id, tomb.training_use) == (done.id, done.id, "denied")
    assert (tomb.created_at, tomb.turn, tomb.served_release_id) == (
        before.created_at,
        before.turn,
        before.served_release_id,
    )
    thumbs = [one for one in store.find(Feedback, interaction_id=before.id) if one.kind == "thumb"]
    assert [(one.value, one.actor, one.retracted, one.natural_key) for one in thumbs] == [
        ({"up": True}, done.id, True, None)
    ]
    assert store.find(Outcome)[0].actor == done.id
    assert SECRETS[3] not in json.dumps([vars(one) for one in store.find(AuditEntry)], default=str)
    with pytest.raises(NotFound, match="was erased"):
        say(store, before, "thumb", True)
    with pytest.raises(NotFound, match="Nothing is kept"):
        erasure.erase_user(store, lived_in, project.id, SECRETS[3], "test", 30, NOW)
    late = Response(
        id="res_late", project_id=project.id, interaction_id=before.id, idx=0, text="too late", finish_reason=None, origin="served",
        model="m", created_at=NOW,
    )  # fmt: skip
    store.add(late)  # the generation was still going on
    erasure.purge(store, project.id, NOW)
    assert store.get(Response, late.id).text == ""


def test_what_bob_asked_in_the_same_words_is_bobs(store: Store, project: Project, chat: Chat, tmp_path: Path) -> None:
    chat(KEPT, actor="ada")
    same = chat(KEPT, actor="bob")
    record, _ = snapshot.freeze(store, project.id, tmp_path / "snapshots", now=NOW)
    done = erasure.erase_user(store, tmp_path, project.id, "ada", "test", 30, NOW)
    assert done.snapshot_ids == ()
    assert store.get(Interaction, same.id) == same
    assert erasure.erase_user(store, tmp_path, project.id, "bob", "test", 30, NOW).snapshot_ids == (record.id,)


def test_a_snapshot_that_is_frozen_in_the_midst_of_an_erasure_is_found_too(
    store: Store, project: Project, lived_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SnapshotRecord] = []
    look = erasure._learned_from

    def slowly(*given: Any) -> list[str]:
        if not made:  # after the Snapshots were read, before the rows go
            made.append(snapshot.freeze(store, project.id, lived_in / "snapshots", now=NOW)[0])
        return look(*given)

    monkeypatch.setattr(erasure, "_learned_from", slowly)
    done = erasure.erase_user(store, lived_in, project.id, SECRETS[3], "op", 30, NOW)
    assert done.snapshot_ids == (made[0].id,)
    assert store.get(SnapshotRecord, made[0].id).tainted_at == NOW


def test_weights_that_users_meet_wait_for_another_release(store: Store, project: Project, lived_in: Path) -> None:
    record, _ = snapshot.freeze(store, project.id, lived_in / "snapshots", now=NOW)
    made = trained(store, project, lived_in, "live", snapshot_sha256=record.sha256)
    live = Release(
        id=new_id(Release), project_id=project.id, checkpoint_id=made.id, model="m", upstream="u", state="live", created_at=NOW,
        state_at=NOW,
    )  # fmt: skip
    store.add(live)
    erasure.erase_user(store, lived_in, project.id, SECRETS[3], "test", 0, NOW)
    assert erasure.purge(store, project.id, NOW) == [record.id]
    assert (Path(made.folder) / "model.safetensors").exists()
    store.change(Release, live.id, state="retired")
    store.add(replace(live, id="rel_next", checkpoint_id=None))
    promoted = Experiment(
        id="exp_1", project_id=project.id, candidate_id="rel_next", control_id=live.id, salt="s", stages=(0.5,), rules={},
        created_at=NOW, state=ExperimentState.PROMOTED, holdout=0.02,
    )  # fmt: skip
    store.add(promoted)
    assert erasure.purge(store, project.id, NOW) == []  # the holdout is still answered by it
    store.change(Experiment, promoted.id, holdout=0.0)
    assert erasure.purge(store, project.id, NOW) == [made.id]
    assert not (Path(made.folder) / "model.safetensors").exists()
    with pytest.raises(Corrupt, match="purged after an erasure"):
        release.verified_checkpoint(store, made.id)


def test_retention_erases_what_is_old_enough_each_user_apart(
    store: Store, project: Project, chat: Chat, tmp_path: Path
) -> None:
    old = [chat(f"an old question {n}", actor=f"u{n % 2}", now=NOW - timedelta(days=40)) for n in range(3)]
    new = chat("a new question", actor="u0", now=NOW - timedelta(days=2))
    frozen, folder = snapshot.freeze(store, project.id, tmp_path / "snapshots", now=NOW - timedelta(days=35))
    assert erasure.retain(store, tmp_path, project.id, 50, NOW) is None
    done = erasure.retain(store, tmp_path, project.id, 30, NOW)
    assert done is not None
    assert (done.counts["interactions"], done.reason, done.actor_sha256) == (3, "age", None)
    actors = [store.get(Interaction, one.id).actor for one in old]
    assert actors[0] == actors[2] != actors[1]
    assert store.get(Interaction, new.id) == new
    assert store.get(SnapshotRecord, frozen.id).tainted_at is None
    assert store.get(SnapshotRecord, frozen.id).purged_at == NOW
    assert [path.name for path in folder.folder.iterdir()] == ["manifest.json"]
    assert erasure.retain(store, tmp_path, project.id, 30, NOW) is None


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)  # its file is searched
def test_an_erased_user_is_found_in_no_spool_no_export_and_no_copy(
    store: Store, project: Project, lived_in: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home, away = lived_in, tmp_path_factory.mktemp("away")
    record, frozen = snapshot.freeze(store, project.id, home / "snapshots", now=NOW)
    for file in (away / "rows.jsonl", away / "rows.jsonl.gz", away / "rows.zst", home / "rows.jsonl.zst"):
        trl.write(snapshot_records(frozen.folder), file, kind="completion")
        copies.of_file(frozen.folder, record.sha256, file, NOW)
    label_studio.write(snapshot_records(frozen.folder), away / "one.json")
    copies.of_file(frozen.folder, record.sha256, away / "one.json", NOW)
    (away / "elsewhere.jsonl").write_text(SECRETS[0])  # written by somebody else
    address = publish(frozen.folder, (away / "bucket").as_uri())
    copies.of_folder(frozen.folder, record.sha256, address, NOW)
    waiting = Spool(home / "spool")  # of a service that runs
    theirs, bobs = (
        collect.begin_interaction(
            project, messages=[{"role": "user", "content": text}], actor=who, conversation_id=None, family=None,
            training_use="allowed", attributes={}, sampling={}, assignment=None, config_version=1, now=NOW,
        )
        for who, text in ((SECRETS[3], f"{SECRETS[0]}!"), ("bob", f"{KEPT}?"))
    )  # fmt: skip
    answer = Response(
        id="res_w", project_id=project.id, interaction_id=theirs.id, idx=0, text=SECRETS[1], finish_reason="stop", origin="served",
        model="m", created_at=NOW,
    )  # fmt: skip
    for row in (theirs, answer, bobs):
        waiting.append([Entry((row,))])
    refused = next((home / "spool").glob("spool-*")).read_bytes()
    (home / "spool" / REFUSED).write_bytes(refused)
    everywhere = {"rows.jsonl", "one.json", "elsewhere.jsonl", f"bucket/{frozen.folder.name}/demonstrations.parquet"}
    assert everywhere <= quoting(away, SECRETS[2]) | quoting(away, SECRETS[0])  # else the search below shows nothing

    done = erasure.erase_user(store, home, project.id, SECRETS[3], "test", 0, NOW)
    assert done.counts["waiting in the spool"] == 4
    for file in (away / "rows.jsonl", away / "rows.jsonl.gz", away / "rows.zst", home / "rows.jsonl.zst"):
        lines = [line for _, line in read_lines(file)]
        assert {json.loads(line)["completion"][0]["content"] for line in lines} == {"In the menu, on top."}, file
    assert not (away / "one.json").exists()
    assert not any(quoting(home / "spool", secret) for secret in SECRETS)
    assert (home / "spool" / REFUSED).stat().st_size == len(refused)

    assert record.id in erasure.purge(store, project.id, NOW)
    assert [path.name for path in (away / "bucket").rglob("*") if path.is_file()] == ["manifest.json"]
    waiting.replay(store)
    assert store.find(Interaction, actor="bob", id=bobs.id) == [bobs]
    assert store.find(Interaction, id=theirs.id) == store.find(Response, id="res_w") == []
    waiting.clear()
    erasure.compact(store, project.id, NOW)
    for secret in SECRETS:
        assert quoting(home, secret) == set(), secret
        assert quoting(away, secret) <= {"elsewhere.jsonl"}, secret


def test_a_user_who_is_only_in_the_spool_is_erased_and_a_copy_out_of_reach_is_tried_again(
    store: Store, project: Project, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(KEPT, actor="ada")
    record, frozen = snapshot.freeze(store, project.id, tmp_path / "snapshots", now=NOW)
    copies.of_folder(frozen.folder, record.sha256, "memory://gone", NOW)
    done = erasure.erase_user(store, tmp_path, project.id, "ada", "test", 0, NOW)

    def away(uri: str) -> None:
        raise OSError(f"{uri} does not answer")

    monkeypatch.setattr(erasure, "unpublish", away)
    assert erasure.purge(store, project.id, NOW) == []
    assert store.get(Erasure, done.id).purged_at is None
    monkeypatch.undo()
    assert erasure.purge(store, project.id, NOW) == [record.id]
    assert store.get(Erasure, done.id).purged_at == NOW

    waiting = Spool(tmp_path / "spool")
    late = Interaction(
        id=new_id(Interaction), project_id=project.id, conversation_id="c", turn=1, actor="eve", messages=(), family="f",
        prompt_sha256="0", source="gateway", release_id=None, served_release_id=None, created_at=NOW,
    )  # fmt: skip
    waiting.append([Entry((late,))])
    waiting.close()
    only = erasure.erase_user(store, tmp_path, project.id, "eve", "test", 0, NOW)
    assert only.counts["waiting in the spool"] == 1
    with pytest.raises(NotFound):
        erasure.erase_user(store, tmp_path, project.id, "eve", "test", 0, NOW)
