"""`plaudit demo --tiny` from an empty folder to its report, as a person runs it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plaudit import simulate
from plaudit.artifacts import open_snapshot
from plaudit.demo_steps.plan import TINY

pytestmark = pytest.mark.timeout(1200)
SEEDS = (0, 1, 2)
KEYS = {
    *("seconds", "peak_memory_bytes", "agreement", "reward_model", "hidden_preference", "win_rate", "readability"),
    *("kl", "kl_budget", "gate", "gate_reasons", "canary", "promoted", "rolled_back", "extra"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a demo has run whose gate passed.

    People act at the same time, so no two demos are alike even with one seed, and now and then a candidate of the toy model is rightly refused
    (docs/log.md counts how often). Three refusals in a row are a broken loop.
    """
    for seed in SEEDS:
        home = tmp_path_factory.mktemp("demo") / "home"
        done = subprocess.run(demo(home, seed), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert said == json.loads((home / "summary.json").read_text())
        if said["gate"] == "pass":
            break
    return home


def demo(home: Path, seed: int) -> list[str]:
    return [sys.executable, "-m", "plaudit.cli", "demo", "--tiny", "--seed", str(seed), "--home", str(home), "--json"]


@pytest.fixture(scope="module")
def summary(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "summary.json").read_text())
    return found


def test_summary_holds_every_figure(summary: dict[str, Any]) -> None:
    assert set(summary) == KEYS
    assert set(summary["agreement"]) == {"raw", "ac1", "alpha"}
    assert {"accuracy", "bag_of_words", "length_only", "difference", "n"} == set(summary["reward_model"])
    assert {"mean", "low", "high"} <= set(summary["reward_model"]["difference"])
    assert set(summary["hidden_preference"]) == {"base", "candidate", "difference", "headroom_fraction"}
    assert {"mean", "low", "high", "n"} == set(summary["hidden_preference"]["difference"]) == set(summary["win_rate"])
    assert summary["hidden_preference"]["headroom_fraction"] is None  # without --baselines
    assert summary["win_rate"]["n"] >= 100
    assert 0 < summary["peak_memory_bytes"] < 6e9
    groups = summary["extra"]["reward_model"]["groups"]
    assert [row["name"] for row in groups] == ["new", "returning"]
    assert sum(row["n_pairs"] for row in groups) >= summary["reward_model"]["n"]  # ties too
    steps = summary["extra"]["steps"]
    assert len(steps) == 13
    assert summary["seconds"] == pytest.approx(sum(step["seconds"] for step in steps))


def test_the_policy_became_better_and_the_gate_saw_it(summary: dict[str, Any]) -> None:
    assert summary["gate"] == "pass", summary["gate_reasons"]
    assert summary["win_rate"]["low"] > 0.5
    assert summary["hidden_preference"]["difference"]["mean"] > 0
    assert 0 < summary["kl"] < 8


def test_release_needs_people_and_evidence(summary: dict[str, Any]) -> None:
    outcomes = [entry["outcome"] for entry in summary["extra"]["ledger"]]
    assert any(outcome.startswith("refused:") and "nobody has approved it" in outcome for outcome in outcomes)
    assert summary["canary"]["decision"] in ("promote", "hold")  # a better candidate is not rolled back for harm
    assert min(summary["extra"]["canary"]["n_users"].values()) >= 200
    if summary["canary"]["decision"] == "promote":
        assert any("needs a second person" in outcome for outcome in outcomes)
        assert summary["promoted"]
        assert summary["extra"]["served"] == {"candidate": True, "base_again": True}
    assert summary["rolled_back"]


def test_an_alert_fired_and_resolved_and_the_loop_waited_for_new_preferences(summary: dict[str, Any]) -> None:
    states = [event["state"] for event in summary["extra"]["alerts"]["events"] if event["rule"] == "satisfaction_fell"]
    assert states[:2] == ["fired", "resolved"]
    refused, started = summary["extra"]["due"]
    assert not refused["started"]
    assert "new Preferences" in refused["reasons"][0] or "blocks retraining" in refused["reasons"][0]
    assert started["started"]
    assert summary["extra"]["n_snapshots"] == 2


def test_no_held_out_prompt_entered_a_snapshot(home: Path) -> None:
    held_out = {prompt.text for prompt in simulate.load_prompts(TINY.people) if prompt.pool == "held-out"}
    folders = [path.parent for path in (home / "snapshots").glob("*/manifest.json")]
    assert folders
    for folder in folders:
        frozen = open_snapshot(folder)
        rows = [*frozen.preferences(), *frozen.prompts(), *frozen.demonstrations()]
        entered = {message["content"] for row in rows for message in row.messages}
        assert entered
        assert not entered & held_out


def test_the_store_holds_no_hidden_figure_and_no_truth_about_the_crowd(home: Path, summary: dict[str, Any]) -> None:
    with sqlite3.connect(home / "store.sqlite") as connection:
        everything = "\n".join(connection.iterdump())
    assert "annotator-01" in everything  # the dump is what we think it is
    behaviours = {person.behaviour for person in simulate.crowd("standard", 0).annotators} - {
        "left",
        "careful",
        "noisy",
    }
    for word in (*behaviours, "utility", "hidden_preference"):
        assert word not in everything
    for utility in ("users", "guideline"):
        figures = summary["extra"]["utilities"][utility]
        for figure in (figures["base"], figures["candidate"], figures["difference"]["mean"]):
            assert f"{figure:.6f}".rstrip("0") not in everything


def test_the_same_command_again_repeats_nothing(home: Path, summary: dict[str, Any]) -> None:
    def runs() -> list[Any]:
        with sqlite3.connect(home / "store.sqlite") as connection:
            mine = "select id, attempt, finished_at from runs where step not in ('score') order by id"
            return connection.execute(mine).fetchall()

    before = runs()
    seed = json.loads((home / "demo.json").read_text())["config"]["seed"]
    done = subprocess.run(demo(home, seed), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout.splitlines()[-1])
    assert runs() == before
    for name in ("win_rate", "hidden_preference", "reward_model", "agreement", "kl", "canary", "promoted"):
        assert again[name] == summary[name], name


def test_a_home_holds_one_demo(home: Path) -> None:
    command = [sys.executable, "-m", "plaudit.cli", "demo", "--tiny", "--seed", "7", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--fresh or another --home" in done.stderr
    assert "Traceback" not in done.stderr
