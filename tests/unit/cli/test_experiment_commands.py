"""`plaudit experiment start` with everything that can be declared, and what reads and ends it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from plaudit.cli.main import plaudit
from plaudit.domain import DEFAULT_PROJECT, Experiment, ExperimentState, Release, ReleaseState, utc_now
from plaudit.errors import BadInput
from plaudit.loop import govern, pilots
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
