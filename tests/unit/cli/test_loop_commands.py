"""The commands of training, evaluation, release, experiment, monitor and loop on a home with a Fake upstream; learn is not launched."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from plaudit import artifacts
from plaudit.cli.evaluate import evaluate
from plaudit.cli.experiment import experiment
from plaudit.cli.loop import loop
from plaudit.cli.monitor import monitor
from plaudit.cli.release import release
from plaudit.cli.train import train
from plaudit.domain import (
    Checkpoint,
    CheckpointKind,
    CompletionStatus,
    Evaluation,
    Experiment,
    GateVerdict,
    Project,
    Release,
    ReleaseState,
    ResponseText,
    Run,
    RunState,
    SnapshotRecord,
    new_id,
    utc_now,
)
from plaudit.errors import BadInput, NotFound, Refused
from plaudit.loop import collect, govern
from plaudit.loop import release as release_stage
from plaudit.store.database import Store, open_store

NOW = utc_now()


@pytest.fixture
def store(tmp_path: Path, with_schema: Any) -> Any:
    opened = open_store(with_schema(tmp_path / "store.sqlite"))
    project = govern.ensure_project(opened, NOW)
    for name in ("ada", "bo"):
        govern.person(opened, project.id, name, NOW)
    release_stage.register_base(opened, project.id, "base", "fake:", NOW)
    (tmp_path / "base.json").write_text(json.dumps({"spec": "tiny", "cache": "c", "folder": str(tmp_path / "tiny")}))
    yield opened
    opened.close()


def run(command: Any, home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments, "--home", str(home)])


def good(command: Any, home: Path, *arguments: str) -> str:
    result = run(command, home, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def candidate(store: Store, home: Path) -> Release:
    path = artifacts.new_folder(home, "checkpoint-1")
    (path / "weights").write_text("w")
    manifest = artifacts.finish(path, "checkpoint", {})
    project = store.find(Project)[0].id
    made = Checkpoint(
        id=new_id(Checkpoint),
        project_id=project,
        kind=CheckpointKind.POLICY,
        folder=str(path),
        sha256=manifest.id,
        base="tiny",
        created_at=NOW,
    )
    store.add(made)
    figures = {"conditions": [{"passed": True, "text": "win rate 0.7 is fine"}]}
    store.add(
        Evaluation(
            id=new_id(Evaluation),
            project_id=project,
            checkpoint_id=made.id,
            against_id=None,
            suite="s",
            figures=figures,
            gate=GateVerdict.PASS,
            created_at=NOW,
        )
    )
    return release_stage.create_candidate(store, project, made.id, "candidate", "fake:", NOW)


def test_a_release_goes_from_approval_to_live_and_back_by_commands(store: Store, tmp_path: Path) -> None:
    offered = candidate(store, tmp_path)
    refused = run(release, tmp_path, "canary", offered.id)
    assert isinstance(refused.exception, Refused)
    good(release, tmp_path, "refuse", offered.id, "--stage", "canary", "--person", "ada", "--reason", "wait")
    assert "ada refused it" in str(run(release, tmp_path, "canary", offered.id).exception)
    good(release, tmp_path, "approve", offered.id, "--stage", "canary", "--person", "ada", "--reason", "fine")
    assert "is canary" in good(release, tmp_path, "canary", offered.id, "--by", "op")
    assert "10.0% of all users in each arm" in good(experiment, tmp_path, "start", "--rule", "goal_margin=0.2")
    running = store.find(Experiment)[0]
    assert running.rules["goal_margin"] == 0.2
    assert ": hold" in good(experiment, tmp_path, "look")
    assert json.loads(good(experiment, tmp_path, "look", "--json"))["verdict"] == "hold"
    assert "needs 20 users" in str(run(experiment, tmp_path, "advance").exception)
    good(release, tmp_path, "approve", offered.id, "--stage", "live", "--person", "bo", "--reason", "fine")
    assert "says hold" in str(run(release, tmp_path, "promote", offered.id).exception)
    assert "(base) is live" in good(release, tmp_path, "rollback", "--reason", "enough")
    listed = json.loads(good(release, tmp_path, "list", "--json"))["releases"]
    assert [row["state"] for row in listed] == ["live", "rolled_back"]
    assert listed[1]["approvals"] == ["ada: refuse canary", "ada: approve canary", "bo: approve live"]
    assert offered.id in good(release, tmp_path, "list")
    assert "whole; the last one is" in good(release, tmp_path, "log")


def test_wrong_words_to_an_experiment_are_one_sentence(store: Store, tmp_path: Path) -> None:
    assert isinstance(run(experiment, tmp_path, "start").exception, NotFound)
    assert isinstance(run(experiment, tmp_path, "look").exception, NotFound)
    store.change(Release, candidate(store, tmp_path).id, state=ReleaseState.CANARY)
    for arguments, match in (
        (("--rule", "nonsense=1"), "not an experiment rule"),
        (("--stages", "x"), "give a number"),
    ):
        error = run(experiment, tmp_path, "start", *arguments).exception
        assert isinstance(error, BadInput)
        assert match in str(error)


def test_evaluations_are_shown_with_their_conditions(store: Store, tmp_path: Path) -> None:
    assert isinstance(run(evaluate, tmp_path, "show").exception, NotFound)
    assert isinstance(run(evaluate, tmp_path, "run").exception, NotFound)
    candidate(store, tmp_path)
    assert "win rate 0.7 is fine" in good(evaluate, tmp_path, "show")
    assert json.loads(good(evaluate, tmp_path, "show", "--json"))["gate"] == "pass"


def test_training_needs_a_snapshot_and_can_be_left_to_the_worker(store: Store, tmp_path: Path) -> None:
    assert "no Snapshot yet" in str(run(train, tmp_path, "reward").exception)
    project = store.find(Project)[0].id
    frozen = SnapshotRecord(
        id=new_id(SnapshotRecord), project_id=project, folder="/snap", sha256="s", counts={}, lineage={}, created_at=NOW
    )
    store.add(frozen)
    assert "no reward Checkpoint yet" in str(run(train, tmp_path, "ppo").exception)
    config = tmp_path / "reward.json"
    config.write_text('{"epochs": 2}')
    assert "is queued" in good(train, tmp_path, "reward", "--config", str(config), "--queue")
    good(train, tmp_path, "reward", "--config", str(config), "--queue")
    left = store.find(Run)
    assert [(one.step, one.state) for one in left] == [("reward", RunState.QUEUED)]
    assert left[0].config == {"epochs": 2, "snapshot": "/snap", "base": str(tmp_path / "tiny")}
    assert left[0].inputs == {"snapshot_id": frozen.id}
    assert left[0].id in good(train, tmp_path, "list")
    config.write_text("[1]")
    assert "holds no JSON object" in str(run(train, tmp_path, "reward", "--config", str(config)).exception)


def test_monitoring_by_commands(store: Store, tmp_path: Path) -> None:
    assert "nothing to measure" in good(monitor, tmp_path, "run")
    project = store.find(Project)[0]
    for i in range(5):
        at = utc_now() - timedelta(minutes=1)
        asked = collect.begin_interaction(
            project,
            messages=[{"role": "user", "content": "hi"}],
            actor=f"u{i}",
            conversation_id=None,
            family=None,
            training_use=None,
            attributes={},
            sampling={},
            assignment=None,
            config_version=1,
            now=at,
        )
        done, answers = collect.finish_interaction(
            asked,
            texts=[ResponseText("yes")],
            status=CompletionStatus.OK,
            model="base",
            checkpoint_id=None,
            prompt_tokens=1,
            completion_tokens=1,
            first_token_ms=1.0,
            latency_ms=1.0,
            error=None,
            now=at,
        )
        store.add(asked, done, *answers)
    measured = json.loads(good(monitor, tmp_path, "run", "--json"))["measurements"]
    assert {"feedback_rate", "error_rate", "length_mean"} <= {row["metric"] for row in measured}
    assert "error_rate" in good(monitor, tmp_path, "show")
    assert "feedback_rate" not in good(monitor, tmp_path, "show", "--metric", "error_rate")
    assert "Nothing fires" in good(monitor, tmp_path, "alerts", "--all")
    assert json.loads(good(monitor, tmp_path, "alerts", "--json")) == {"alerts": []}
    rules = CliRunner().invoke(monitor, ["rules"])
    assert "floor" in rules.output
    assert "ceiling" in rules.output


def test_the_loop_says_why_it_is_not_due(store: Store, tmp_path: Path) -> None:
    (tmp_path / "base.json").unlink()  # the reason comes before what else may be missing
    assert "Turn 1 is not due: 0 new Preferences so far, 100 are needed (100 more)." in good(loop, tmp_path, "status")
    error = run(loop, tmp_path, "run", "--when-due").exception
    assert isinstance(error, Refused)
    assert error.reasons == ("0 new Preferences so far, 100 are needed (100 more)",)
    assert json.loads(good(loop, tmp_path, "status", "--json"))["due"] is False
