"""The list of runs and the page of one: what stands in store and folder is on them, in every state."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
from datetime import timedelta
from pathlib import Path

import pytest

from plaudit.domain import DEFAULT_PROJECT, Checkpoint, CheckpointKind, RunState, new_id, utc_now
from plaudit.web.pages import runs

from .conftest import line


@pytest.fixture
def ada(console):
    return console.person("Ada", "operator")


def finished(console, folder: Path):
    """A run that made a Checkpoint with a card."""
    checkpoint = Checkpoint(
        id=new_id(Checkpoint),
        project_id=DEFAULT_PROJECT,
        kind=CheckpointKind.REWARD,
        folder=str(folder / "checkpoint"),
        sha256="5ha",
        base="b",
        created_at=utc_now(),
    )
    console.store.add(checkpoint)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "manifest.json").write_text("{}")
    (folder / "checkpoint" / "card.md").write_text("# A reward Checkpoint\n\n- kl: 0.5\n\n![accuracy](accuracy.svg)\n")
    (folder / "checkpoint" / "accuracy.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    result = {"program": "ppo", "valid": {"accuracy": {"mean": 0.64, "low": 0.6, "high": 0.68}}, "stop": "end"}
    return console.run(
        folder=folder,
        state=RunState.DONE,
        finished_at=utc_now(),
        inputs={"snapshot_sha256": "5na"},
        outputs={"checkpoint_id": checkpoint.id, "result": result},
    )


def test_no_run_yet_says_what_makes_one(ada) -> None:
    assert "plaudit loop run" in ada.get("/runs").text
    assert ada.get("/runs?as=json").json() == {"runs": []}


def test_the_list_has_learn_programs_with_their_last_figures_and_on_request_all_steps(
    console, ada, folder: Path
) -> None:
    ppo, other = console.run(folder=folder), console.run("turn.snapshot")
    rows = ada.get("/runs?as=json").json()["runs"]
    assert [(row["id"], row["at"], row["figures"]) for row in rows] == [(ppo.id, "ppo 3/10", "score 0.3, kl 0.03")]
    text = ada.get("/runs").text
    assert f'href="/runs/{ppo.id}"' in text
    assert 'data-refresh="2000"' in text  # something runs
    assert other.id in ada.get("/runs?steps=all").text
    assert other.id not in text


def test_the_list_goes_on_where_a_page_ends(console, ada, monkeypatch) -> None:
    monkeypatch.setattr(runs, "PER_PAGE", 2)
    made = [console.run(state=RunState.DONE) for _ in range(3)]
    first = ada.get("/runs")
    assert f'href="?before={made[1].id}"' in first.text
    assert "data-refresh" not in first.text  # all are over
    rows = ada.get(f"/runs?before={made[1].id}&as=json").json()["runs"]
    assert [row["id"] for row in rows] == [made[0].id]


def test_a_running_run_shows_its_curves_and_the_time_left(console, ada, folder: Path) -> None:
    held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    (folder / "progress.json").write_text(json.dumps({"phase": "sample", "step": 2, "of": 8}))
    text = ada.get(f"/runs/{console.run(folder=folder).id}").text
    os.close(held)
    wait = re.search(r'data-refresh="(\d+)"', text)
    assert wait is not None
    assert int(wait[1]) >= runs.REFRESH_MS
    assert "3.5 s left" in text  # 7 steps of half a second
    assert "sample 2 of 8" in text
    assert "score in the phase ppo: 0.1 at step 1, 0.3 at step 3, between 0.1 and 0.3." in text
    assert text.count('<path class="line"') == 4  # score, kl; n, eos_fraction below the fold
    assert "kl.coef" in text


def test_numbers_are_one_click_away(console, ada, folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(json.loads(line(4, score=0.4)) | {"phases": {"sample": 1.5}}) + "\n")
    run = console.run(folder=folder)
    table = list(csv.DictReader(io.StringIO(ada.get(f"/runs/{run.id}?table=metrics&as=csv").text)))
    assert [row["score"] for row in table] == ["0.1", "0.2", "0.3", "0.4"]
    assert table[-1]["phases.sample"] == "1.5"
    lines = ada.get(f"/runs/{run.id}?as=json").json()["metrics"]
    assert lines[3]["phases"] == {"sample": 1.5}
    figures = ada.get(f"/runs/{run.id}?table=figures&as=json").json()["figures"]
    score = next(row for row in figures if row["figure"] == "score")
    assert score == {
        "phase": "ppo",
        "figure": "score",
        "first": 0.1,
        "last": 0.4,
        "least": 0.1,
        "greatest": 0.4,
        "n": 4,
    }
    assert ada.get(f"/runs/{run.id}?table=other&as=csv").status_code == 404


def test_a_long_run_is_drawn_from_its_end_and_says_so(console, ada, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(runs, "MOST_BYTES", 250)
    run = console.run(folder=folder)
    text = ada.get(f"/runs/{run.id}").text
    assert "these are its last 2 lines" in text
    assert "step 2 to 10" in text
    assert len(ada.get(f"/runs/{run.id}?as=json").json()["metrics"]) == 3


def test_a_finished_run_shows_result_lineage_and_card(console, ada, folder: Path) -> None:
    run = finished(console, folder)
    text = ada.get(f"/runs/{run.id}").text
    assert "data-refresh" not in text
    for part in (
        "0.64 [0.6, 0.68]",
        "snapshot_sha256",
        "5na",
        "5ha",
        run.key,
        "<h3>A reward Checkpoint</h3>",
        "reward Checkpoint",
    ):
        assert part in text, part
    assert f'src="/runs/{run.id}/card/accuracy.svg"' in text
    answer = ada.get(f"/runs/{run.id}/card/accuracy.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in answer.headers["content-security-policy"]
    for wrong in ("manifest.json", "..%2Fconfig.json", "other.svg", "%2e%2e"):
        assert ada.get(f"/runs/{run.id}/card/{wrong}").status_code == 404, wrong


def test_what_is_missing_is_said(console, ada, tmp_path: Path) -> None:
    past = utc_now() - timedelta(minutes=5)
    for run, said in (
        (console.run("turn.snapshot", state=RunState.DONE), "runs no learn program"),
        (console.run(state=RunState.QUEUED, folder=tmp_path / "none"), "the worker takes queued runs"),
        (console.run(state=RunState.FAILED, folder=tmp_path / "gone", error="The disk is <full>."), "is no run folder"),
        (console.run(folder=tmp_path / "gone", lease_expires_at=past), "No sign of life"),
    ):
        answer = ada.get(f"/runs/{run.id}")
        assert answer.status_code == 200
        assert said in answer.text
    assert "The disk is &lt;full&gt;." in ada.get("/runs").text
    assert ada.get("/runs/run_0").status_code == 404


def test_what_a_run_says_is_text(console, ada, folder: Path) -> None:
    evil = "<script>alert(1)</script>"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "of": 1, "phase": evil, "seconds": 1, evil: 1.0}) + "\n")
        file.write(json.dumps({"step": 2, "of": 2, "phase": evil, "seconds": 1, evil: 2.0}) + "\n")
    run = console.run(folder=folder, inputs={evil: evil}, config={evil: evil})
    text = ada.get(f"/runs/{run.id}").text
    assert "&lt;script&gt;alert(1)" in text
    assert evil not in text
