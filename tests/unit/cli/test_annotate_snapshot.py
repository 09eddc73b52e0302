from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from plaudit.cli.annotate import annotate
from plaudit.cli.options import open_home
from plaudit.cli.snapshot import snapshot
from plaudit.domain import Comparison, Guideline, ResponseText, SnapshotRecord, utc_now
from plaudit.errors import Corrupt
from plaudit.loop import annotate as stage
from plaudit.loop import collect, govern, release

N_QUESTIONS, NAMES = 12, ("Ann", "Bea", "Cyd")


@pytest.fixture
def home(tmp_path):
    """A home in which three people agree that the longer of two answers to each question is better."""
    opened = open_home(tmp_path / "home")
    store, project = opened.store, opened.project_id
    interactions = [
        collect.log_interaction(
            store,
            project,
            {
                "messages": [{"role": "user", "content": f"question {n}"}],
                "responses": ["short"],
                "training_use": "allowed",
            },
            utc_now(),
        )
        for n in range(N_QUESTIONS)
    ]
    extra = {one.id: [ResponseText(f"a much longer answer {one.id}")] for one in interactions}
    stage.plan_comparisons(store, project, interactions, extra, model="m", batch="b", overlap=3, now=utc_now())
    for name in NAMES:
        person = govern.person(store, project, name, utc_now())
        while loan := stage.lend(store, project, person.id, 60, utc_now()):
            longest = max(loan.responses, key=lambda response: len(response.text))
            body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": longest.id, "seconds": 4}
            stage.answer(store, project, person.id, body, utc_now())
    yield opened
    store.close()


def run(group, home, *arguments: str) -> str:
    result = CliRunner().invoke(group, [*arguments, "--home", str(home.settings.home)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_answers_become_preferences_and_these_a_folder_that_verifies(home) -> None:
    report = json.loads(run(annotate, home, "aggregate", "--json"))
    assert (report["n_preferences"], report["n_votes"]) == (N_QUESTIONS, 3 * N_QUESTIONS)
    assert report["agreement"]["raw"]["mean"] == 1.0
    shown = run(annotate, home, "aggregate")
    assert f"{N_QUESTIONS} Preferences (0 new or changed)" in shown
    assert "raw 1.00" in shown
    assert all(name in shown for name in NAMES)

    frozen = json.loads(run(snapshot, home, "freeze", "--json"))
    assert sum(frozen["counts"]["preferences"].values()) == N_QUESTIONS
    assert home.store.get(SnapshotRecord, frozen["id"]).sha256 == frozen["sha256"]
    assert frozen["folder"].startswith(str(home.settings.home / "snapshots"))
    assert frozen["id"] in run(snapshot, home, "list")
    verified = CliRunner().invoke(snapshot, ["verify", frozen["folder"]])
    assert frozen["sha256"] in verified.output
    with open(f"{frozen['folder']}/preferences.parquet", "ab") as file:
        file.write(b"x")
    assert isinstance(CliRunner().invoke(snapshot, ["verify", frozen["folder"]]).exception, Corrupt)


def test_questions_about_traffic_are_planned(home) -> None:
    store, project = home.store, home.project_id
    live = release.register_base(store, project, "m", "fake:", utc_now())
    for n in range(3):
        body = {"messages": [{"role": "user", "content": f"q{n}"}], "responses": ["r"], "training_use": "allowed"}
        collect.log_interaction(store, project, body | {"release_id": live.id}, utc_now())
    made = json.loads(run(annotate, home, "plan", "--n", "2", "--batch", "mine", "--json"))
    stored = store.find(Comparison, batch="mine")
    assert sorted(made["comparisons"]) == [one.id for one in stored]
    assert [one.overlap for one in stored] == [3, 3]  # the setting
    said = run(annotate, home, "plan", "--overlap", "1")
    assert "1 comparisons wait in batch traffic, each for 1 annotators." in said


def test_a_guideline_has_versions(home, tmp_path) -> None:
    file = tmp_path / "guideline.md"
    for text, version in (("Be kind.", 1), ("Be kind.", 1), ("Be brief.", 2)):
        file.write_text(text)
        assert f"version {version}" in run(annotate, home, "guideline", str(file))
    assert [one.text for one in home.store.find(Guideline)] == ["Be kind.", "Be brief."]
