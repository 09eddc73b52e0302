from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from plaudit.cli.annotate import annotate
from plaudit.cli.options import open_home
from plaudit.cli.snapshot import snapshot
from plaudit.domain import Comparison, Guideline, ResponseText, SnapshotRecord, utc_now
from plaudit.errors import BadInput, Corrupt, NotFound
from plaudit.loop import annotate as stage
from plaudit.loop import collect, govern, planning, release

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
    planning.plan_comparisons(store, project, interactions, extra, model="m", batch="b", overlap=3, now=utc_now())
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


def test_snapshots_are_filtered_compared_published_and_rebuilt(home, tmp_path) -> None:
    run(annotate, home, "aggregate")
    canaries = tmp_path / "canaries.jsonl"
    canaries.write_text('"question 0"\n{"prompt": "question 1"}\n[{"role": "user", "content": "question 2"}]\n')
    plain = json.loads(run(snapshot, home, "freeze", "--json"))
    options = ["--personal-data", "email=redact", "--max-chars", "10000", "--languages", "en"]
    address = f"file://{tmp_path}/bucket"
    asked = json.loads(run(snapshot, home, "freeze", "--json", *options, "--to", address))
    fetched = CliRunner().invoke(snapshot, ["fetch", asked["address"], str(tmp_path / "copy")]).output.strip()
    assert asked["sha256"] in CliRunner().invoke(snapshot, ["verify", fetched]).output
    held = json.loads(run(snapshot, home, "freeze", "--json", "--canaries", str(canaries), "--seed", "1"))
    removed = held["counts"]["filters"].get("prompts: held out by an evaluation", 0)
    assert sum(held["counts"]["prompts"].values()) == N_QUESTIONS - removed

    picture = tmp_path / "diff.html"
    found = CliRunner().invoke(snapshot, ["diff", plain["folder"], asked["address"], "--json", "--out", str(picture)])
    compared = json.loads(found.output)
    assert compared["tables"]["preferences"]["came"] == 0
    assert set(compared["config"]) == {"curation"}
    assert "<svg" in picture.read_text()
    assert "| went | 0 |" in CliRunner().invoke(snapshot, ["diff", plain["folder"], fetched]).output

    again = json.loads(run(snapshot, home, "rebuild", asked["folder"], "--json"))
    assert (again["sha256"], again["diff"]["config"]) == (asked["sha256"], {})
    purged = next(iter((tmp_path / "copy").iterdir()))
    (purged / "preferences.parquet").unlink()
    assert json.loads(run(snapshot, home, "rebuild", str(purged), "--json"))["diff"] is None
    refused = CliRunner().invoke(snapshot, ["rebuild", held["folder"], "--home", str(home.settings.home)])
    assert isinstance(refused.exception, BadInput)


@pytest.mark.parametrize("line", ["{", "3", '{"prompt": 3}', ""])
def test_a_file_of_canaries_that_holds_none_is_refused(home, tmp_path, line: str) -> None:
    file = tmp_path / "canaries.jsonl"
    file.write_text(f"{line}\n")
    options = ["freeze", "--canaries", str(file), "--home", str(home.settings.home)]
    assert isinstance(CliRunner().invoke(snapshot, options).exception, BadInput | NotFound)
    options = ["freeze", "--personal-data", "email", "--home", str(home.settings.home)]
    assert isinstance(CliRunner().invoke(snapshot, options).exception, BadInput)
