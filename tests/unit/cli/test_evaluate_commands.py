"""`plaudit evaluate` beyond run and show, on a home with the Fake upstream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plaudit.cli.evaluate import evaluate
from plaudit.domain import (
    Checkpoint,
    CheckpointKind,
    Comparison,
    Evaluation,
    EvaluationItem,
    ResponseText,
    new_id,
    utc_now,
)
from plaudit.errors import BadInput, NotFound
from plaudit.loop import annotate, govern, judges, planning, release
from plaudit.store.database import Store, open_store

P = "prj_default"


@pytest.fixture
def store(tmp_path: Path, with_schema: Any) -> Any:
    opened = open_store(with_schema(tmp_path / "store.sqlite"))
    govern.ensure_project(opened, utc_now())
    release.register_base(opened, P, "base", "fake:", utc_now())
    yield opened
    opened.close()


def run(home: Path, *words: str) -> str:
    return (
        CliRunner()
        .invoke(evaluate, [*words, "--home", str(home)], catch_exceptions=False, standalone_mode=False)
        .output
    )


def test_suites_and_suite(store: Store, tmp_path: Path) -> None:
    listed = CliRunner().invoke(evaluate, ["suites", "--json"], catch_exceptions=False).output
    assert {"harmful", "canary"} <= {one["name"] for one in json.loads(listed)["suites"]}
    file = tmp_path / "mine.csv"
    file.write_text("Behavior,Kind\nfirst,x\nsecond,y\n")
    columns = json.dumps({"prompt": "Behavior", "slice": "Kind", "expect": {"lacks": "."}, "name": "mine"})
    words = ("suite", str(file), "--model", "base", "--against", "other", "--columns", columns)
    found = json.loads(run(tmp_path, *words, "--json", "--out", str(tmp_path / "rows.jsonl")))
    assert (found["suite"], found["n"], set(found["slices"])) == ("mine", 2, {"x", "y"})
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    assert "mine" in run(tmp_path, *words)
    assert store.count(Evaluation) == 0, "the base is no Checkpoint of ours"
    with pytest.raises(BadInput, match="not JSON"):
        run(tmp_path, *words[:4], "--columns", "{")


def test_leaderboard_of_a_file_and_of_what_people_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="Nobody has compared"):
        run(tmp_path, "leaderboard")
    file = tmp_path / "matches.csv"
    file.write_text("first,second,outcome,prompt\na,b,1,p\nb,a,0,q\na,b,0.5,r\n")
    found = json.loads(run(tmp_path, "leaderboard", str(file), "--json"))
    assert [(one["name"], one["rank"], one["n"]) for one in found["standings"]] == [("a", 1, 3), ("b", 2, 3)]
    assert "a" in run(tmp_path, "leaderboard", str(file))
    file.write_text("first,second\na,b\n")
    with pytest.raises(BadInput, match="Row 1"):
        run(tmp_path, "leaderboard", str(file))
    plan(store)
    who = govern.person(store, P, "Ann", utc_now()).id
    while (loan := annotate.lend(store, P, who, 60, utc_now())) is not None:
        choice = store.get(Comparison, loan.comparison.id).response_ids[0]
        body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": choice, "seconds": 3.0}
        annotate.answer(store, P, who, body, utc_now())
    found = json.loads(run(tmp_path, "leaderboard", "--json"))
    assert (found["n"], found["standings"][0]["name"]) == (3, "candidate"), "two that were judged, one of equal texts"


def plan(store: Store) -> Checkpoint:
    made = Checkpoint(
        id=new_id(Checkpoint),
        project_id=P,
        kind=CheckpointKind.POLICY,
        folder="f",
        sha256="0" * 64,
        base="tiny",
        created_at=utc_now(),
    )
    store.add(
        made,
        release.Release(
            id=new_id(release.Release),
            project_id=P,
            checkpoint_id=made.id,
            model="candidate",
            upstream="fake:",
            created_at=utc_now(),
            state_at=utc_now(),
        ),
    )
    items = [
        EvaluationItem(messages=({"role": "user", "content": f"q{i}"},), family="f", first=ResponseText(f"a{i}"),
                       second=ResponseText("a2" if i == 2 else "b"), first_checkpoint_id=made.id, second_checkpoint_id=None)
        for i in range(3)
    ]  # fmt: skip
    planning.plan_evaluation(store, P, items, batch="b", overlap=1, now=utc_now())
    return made


def test_judge(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(store)
    monkeypatch.setattr(judges, "ask", lambda *given: [judges.Judgement(1.0, 0.5)] * 3)
    found = json.loads(run(tmp_path, "judge", "b", "--model", "gpt", "--json"))
    assert (found["win_rate"]["mean"], found["consistent"]["mean"]) == (0.75, 0.0)
    kept = store.first(Evaluation, checkpoint_id=made.id)
    assert kept is not None
    assert (kept.suite, kept.gate) == ("judge gpt", None)
    assert "80 % power" in run(tmp_path, "judge", "b", "--model", "gpt")
    for words in ((), ("--model", "m", "--reward", "r")):
        with pytest.raises(BadInput, match="not both"):
            run(tmp_path, "judge", "b", *words)
