"""The project's own suites and conditions in a turn, and a reward model as judge: only one that no judged policy learned from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from plaudit import artifacts
from plaudit.domain import Checkpoint, CheckpointKind, EvaluationItem, Project, ResponseText, new_id
from plaudit.errors import BadInput, Refused
from plaudit.loop import gates, judges, pipeline, planning, train
from plaudit.loop.pipeline import Turn, TurnConfig
from plaudit.store.database import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def turn(store: Store, project: Project, home: Path, **config: Any) -> Turn:
    return Turn(store, project.id, 1, TurnConfig(**config), home, home / "base", "fake:")


def test_a_turn_asks_its_suites_and_its_gate_reads_them(store: Store, project: Project, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "p", "expect": "answer"}\n{"prompt": "q", "expect": {"words": ["zebra"]}}\n')
    condition = {"name": "own suite", "figure": "suites.own.candidate", "at_most": 0.6}
    made = turn(store, project, tmp_path, suites=[str(own), "canary"], conditions=[condition])
    found = pipeline.ask_suites(made, tmp_path / "evaluations" / "b", "a", "b", {"max_tokens": 5, "seed": 0})
    assert list(found) == ["own", "canary"]
    assert found["own"]["candidate"]["mean"] == 0.5  # the Fake answers, and not with a zebra
    rows = [json.loads(line) for line in Path(found["own"]["rows"]).read_text().splitlines()]
    assert [row["candidate"]["failed"] for row in rows] == [False, True]
    bound = gates.parse(made.config.conditions)
    verdict = gates._bounded(bound[0], {"suites": found})
    assert (verdict.passed, verdict.rows) == (True, found["own"]["rows"])


def test_a_turn_without_suites_asks_nothing_more(store: Store, project: Project, tmp_path: Path) -> None:
    assert pipeline.ask_suites(turn(store, project, tmp_path), tmp_path / "e", "a", "b", {}) == {}
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"suites": [{"path": "x", "promt": "y"}]}, "did you mean 'prompt'"),
        ({"conditions": [{"name": "c", "figure": "score", "at_least": 0}]}, "no figure for its gate"),
    ],
)
def test_the_config_is_checked_at_once(config: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        TurnConfig(**config)


def test_two_suites_of_one_name(store: Store, project: Project, tmp_path: Path) -> None:
    made = turn(store, project, tmp_path, suites=["canary", {"path": "format", "name": "canary"}])
    with pytest.raises(BadInput, match="same name"):
        pipeline.ask_suites(made, tmp_path, "a", "b", {})


def test_the_reward_that_trained_a_policy_may_not_judge_it(
    store: Store, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checkpoint(kind: CheckpointKind, parent: str | None = None) -> Checkpoint:
        path = artifacts.new_folder(tmp_path, new_id(Checkpoint))
        (path / "w").write_text(path.name)
        sha256 = artifacts.finish(path, "checkpoint", {"checkpoint_kind": str(kind)}).id
        made = Checkpoint(
            id=path.name,
            project_id=project.id,
            kind=kind,
            folder=str(path),
            sha256=sha256,
            base="tiny",
            parent_id=parent,
            created_at=NOW,
        )
        store.add(made)
        return made

    trained, held_out = checkpoint(CheckpointKind.REWARD), checkpoint(CheckpointKind.REWARD)
    policy = checkpoint(CheckpointKind.POLICY, trained.id)
    items = [
        EvaluationItem(messages=({"role": "user", "content": f"q{i}"},), family="f", first=ResponseText(f"a{i}"),
                       second=ResponseText(f"b{i}"), first_checkpoint_id=policy.id, second_checkpoint_id=None)
        for i in range(2)
    ]  # fmt: skip
    planning.plan_evaluation(store, project.id, items, batch="b", now=NOW)
    made = turn(store, project, tmp_path)
    with pytest.raises(Refused, match=f"{policy.id} was trained on {trained.id}; take a held-out"):
        pipeline.judge_by_reward(made, "b", trained.id)
    asked: list[Any] = []
    scores = [{"id": i, "index": k, "score": float(k == i)} for i in range(2) for k in range(2)]
    monkeypatch.setattr(pipeline, "score", lambda *given: asked.append(given))
    monkeypatch.setattr(train, "read_scores", lambda run: scores)
    assert pipeline.judge_by_reward(made, "b", held_out.id) == [judges.Judgement(1, 1), judges.Judgement(0, 0)]
    assert asked[0][5]["reward"] == held_out.folder
