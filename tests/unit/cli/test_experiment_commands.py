"""`plaudit experiment start` with everything that can be declared, and what reads and ends it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from plaudit.cli.main import plaudit
from plaudit.domain import (
    DEFAULT_PROJECT,
    Experiment,
    ExperimentState,
    Interaction,
    InteractionSource,
    Release,
    ReleaseState,
    utc_now,
)
from plaudit.errors import BadInput
from plaudit.loop import govern, outcomes, pilots
from plaudit.settings import Settings
from plaudit.store.database import open_store


def test_an_experiment_is_declared_looked_at_and_stopped(tmp_path: Path) -> None:
    store, now = open_store(Settings(home=tmp_path).database_url), utc_now()
    govern.ensure_project(store, now)
    for state, segment in (("live", ""), ("live", "plan=pro"), ("canary", "plan=pro"), ("candidate", "")):
        row = Release(
            id=f"rel_{state}_{segment}", project_id=DEFAULT_PROJECT, checkpoint_id=None, model="m", upstream="fake:",
            state=ReleaseState(state), created_at=now, state_at=now, segment=segment,
        )  # fmt: skip
        store.add(row)
    (tmp_path / "users.txt").write_text("ada\nbob\n\n")

    def run(*words: str) -> str:
        done = CliRunner().invoke(plaudit, [*words, "--home", str(tmp_path)])
        assert done.exit_code == 0, done.output + str(done.exception)
        return done.stdout

    (tmp_path / "nobody.txt").write_text("\n  \n")
    words = ["experiment", "start", "--users", str(tmp_path / "nobody.txt"), "--home", str(tmp_path)]
    refused = CliRunner().invoke(plaudit, words).exception
    assert isinstance(refused, BadInput)
    assert "list of a pilot's users is empty" in str(refused)
    assert store.find(Experiment) == []
    said = run(
        "experiment", "start", "--stages", "0.5", "--metric", "outcome:a:b:goal:up", "--margin", "outcome:a:b=0.5",
        "--only", "staff=true", "--users", str(tmp_path / "users.txt"), "--until", "2026-03-01", "--cap", "5",
        "--completion-price", "0.6", "--holdout", "0.02", "--layer", "tone",
    )  # fmt: skip
    assert "50.0% of users of plan=pro whom the pilot admits" in said
    (made,) = store.find(Experiment)
    assert (made.candidate_id, made.control_id) == ("rel_canary_plan=pro", "rel_live_plan=pro")
    assert made.metrics == ({"name": "outcome:a:b", "role": "goal", "better": "up", "margin": 0.5},)
    assert made.pilot == {
        "segments": ["staff=true"],
        "users": sorted(pilots.named(["ada", "bob"])),
        "ends_at": "2026-03-01T00:00:00+00:00",
        "cap": 5.0,
        "prompt_price": 0.0,
        "completion_price": 0.6,
    }
    assert (made.holdout, made.salt) == (0.02, f"{DEFAULT_PROJECT}/tone")
    shown = run("experiment", "look")
    assert "outcome:a:b goal waiting: bounds need 200 users in each arm with a value" in shown
    assert "pilot: has cost 0 of 5 (0 tokens), until 2026-03-01T00:00" in shown
    looked = json.loads(run("experiment", "look", "--json"))
    assert looked["metrics"][0]["state"] == "waiting"
    assert looked["pilot"]["over"].startswith("the pilot was to end")
    assert "stopped" in run("experiment", "stop", made.id)
    assert store.get(Experiment, made.id).state == ExperimentState.STOPPED
    assert "rel_candidate_" in run("release", "scope", "rel_candidate_", "lang=de")
    rows = {row["id"]: row["segment"] for row in json.loads(run("release", "list", "--json"))["releases"]}
    assert rows["rel_candidate_"] == "lang=de"
    store.close()


def test_declared_metrics_are_rehearsed_from_the_store(tmp_path: Path) -> None:
    store, now = open_store(Settings(home=tmp_path).database_url), utc_now()
    govern.ensure_project(store, now)
    sold = np.random.default_rng(1).normal(10, 2, (40, 2))
    for i in range(40):
        row = Interaction(
            id=f"int_{i}", project_id=DEFAULT_PROJECT, conversation_id=f"c{i}", turn=1, actor=f"u{i}", messages=(),
            family="f", prompt_sha256="", source=InteractionSource.GATEWAY, release_id=None, served_release_id=None,
            experiment_id=None, arm=None, stage=None, assignment_probability=None, created_at=now - timedelta(hours=40 - i),
        )  # fmt: skip
        store.add(row)
    for days, values in ((90, sold[:, 0]), (0, sold.sum(axis=1))):
        at = (now - timedelta(days=days)).isoformat()
        rows = [{"user": f"u{i}", "name": "sold", "value": float(value), "at": at} for i, value in enumerate(values)]
        outcomes.record(store, DEFAULT_PROJECT, rows, now)
    store.close()
    words = ["--metric", "outcome:sold:goal:up", "--runs", "3", "--home", str(tmp_path)]

    def run(name: str, *more: str):
        return CliRunner().invoke(plaudit, ["experiment", name, *words, *more])

    asked = ("--effect", "outcome:sold=1.5", "--max-users", "1000", "--users-per-day", "100", "--stages", "0.5")
    said = run("simulate", *asked)
    assert said.exit_code == 0, said.output + str(said.exception)
    same, harm, gain = said.stdout.split(": promote ")[1:]
    assert "outcome:sold goal (+0): met in 0%" in same
    assert "outcome:sold goal (-1.5): met in 0%" in harm
    assert "outcome:sold goal (+1.5): met in 100%" in gain
    assert gain.count("a z-test read once needs") == 1
    found = json.loads(run("simulate", *asked, "--json").stdout)
    assert found["effects"]["gain"]["metrics"][0]["variance_fraction"] < 0.9
    assert (found["traffic"]["users_per_day"], found["effects"]["harm"]["factor"]) == (100, 1)
    assert isinstance(run("simulate").exception, BadInput)  # by how much?
    refused = run("simulate", *asked, "--feedback-rate", "0.2").exception
    assert "only --users-per-day can be said" in str(refused)
    dealt = run("aa", "--looks", "2")
    assert "goal outcome:sold met at any look: 0.0%" in dealt.stdout
    assert json.loads(run("aa", "--looks", "2", "--json").stdout)["false_goals"].keys() == {"outcome:sold"}
