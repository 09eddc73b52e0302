"""A whole turn with the real programs on the tiny model: policy server, reward training, PPO, questions, KL, gate; then its traffic is scored."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plaudit import artifacts, backends
from plaudit.domain import (
    DEFAULT_PROJECT,
    Checkpoint,
    CompletionStatus,
    Evaluation,
    Interaction,
    Project,
    Release,
    Response,
    ResponseText,
    TrainingUse,
    utc_now,
)
from plaudit.loop import annotate, collect, govern, pipeline, planning, release, worker
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store

pytestmark = pytest.mark.slow
N = 40
LEARN = {"lora": {"rank": 4, "alpha": 8.0}, "compute": {"dtype": "float32"}}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    command = [sys.executable, "-m", "plaudit.learn", "prepare", "tiny", str(tmp_path / "cache")]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])


@pytest.fixture
def url(base: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "plaudit.policy_server", "--base", str(base), "--name", "tiny", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready ")
    yield line.split()[1]
    process.terminate()
    process.wait(60)
    process.stdout.close()


def serve(
    store: Store, project: Project, url: str, model: str, checkpoint_id: str | None, first: int = 0
) -> list[Interaction]:
    """N turns, answered by the policy server, two samples each; the first is what the user saw."""
    asked = [[{"role": "user", "content": f"question {first + i}"}] for i in range(N)]
    answers = backends.sample(url, model, asked, n=2, max_tokens=24, temperature=1.0, seed=first)
    made = []
    for i, (messages, answer) in enumerate(zip(asked, answers, strict=True)):
        interaction = collect.begin_interaction(
            project,
            messages=messages,
            actor=f"user-{i}",
            conversation_id=None,
            family=f"family {first + i}",
            training_use=TrainingUse.ALLOWED,
            attributes={},
            sampling={},
            assignment=None,
            config_version=1,
            now=utc_now(),
        )
        shown = answer.choices[0]
        completion, responses = collect.finish_interaction(
            interaction,
            texts=[ResponseText(shown.text or "-", shown.finish_reason)],
            status=CompletionStatus.OK,
            model=model,
            checkpoint_id=checkpoint_id,
            prompt_tokens=1,
            completion_tokens=1,
            first_token_ms=1.0,
            latency_ms=1.0,
            error=None,
            now=utc_now(),
        )
        store.add(interaction, completion, *responses)
        made.append((interaction, ResponseText(answer.choices[1].text or "-", answer.choices[1].finish_reason)))
    if checkpoint_id is None:
        extra = {interaction.id: [other] for interaction, other in made}
        planning.plan_comparisons(
            store, project.id, [one for one, _ in made], extra, model=model, batch="b", now=utc_now()
        )
    return [one for one, _ in made]


def work(store: Store, project_id: str) -> None:
    """Three people who like answers with many e's."""
    for name in ("ann", "bob", "cid"):
        who = govern.person(store, project_id, name, utc_now()).id
        while (loan := annotate.lend(store, project_id, who, 60, utc_now())) is not None:
            best = max(loan.responses, key=lambda response: response.text.count("e") / (1 + len(response.text)))
            body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": best.id, "seconds": 2.0}
            annotate.answer(store, project_id, who, body, utc_now())


def test_a_turn_with_the_real_programs(tmp_path: Path, base: Path, url: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "base.json").write_text(json.dumps({"spec": "tiny", "cache": "c", "folder": str(base)}))
    held_out = home / "held-out.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"held out {i}"}], "family": f"h{i}"} for i in range(12)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    turn = {
        "held_out": str(held_out),
        "n_prompts": 12,
        "max_tokens": 24,
        "reward": {**LEARN, "baselines": False, "batch_pairs": 8},
        "ppo": {
            **LEARN,
            "reward": [
                {"kind": "model", "name": "people", "checkpoints": ["newest"]},
                {"kind": "regex", "name": "letters", "pattern": "^[a-z]", "weight": 0.1},
            ],
            "steps": 2,
            "sampling": {"prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 16},
        },
    }
    (home / "turn.json").write_text(json.dumps(turn))
    settings = Settings(home=home)
    store = open_store(settings.database_url)
    project = govern.ensure_project(store, utc_now())
    assert project.id == DEFAULT_PROJECT
    live = release.register_base(store, project.id, "tiny", url, utc_now())
    serve(store, project, url, "tiny", None)
    work(store, project.id)

    heard: list[str] = []
    going = pipeline.turn_of(settings, store, project.id, on_progress=lambda step, line: heard.append(step))
    report = pipeline.run_turn(going)
    assert report.waiting is not None
    work(store, project.id)
    report = pipeline.run_turn(going)
    assert report.waiting is None
    assert {"reward", "ppo"} == set(heard)
    taught = artifacts.read_manifest(Path(report.outputs["policy"]["folder"]), "checkpoint").body["learnt_from"]
    assert [term["name"] for term in taught["terms"]] == ["people", "letters"]
    assert taught["terms"][0]["checkpoints"] == [report.outputs["reward"]["sha256"]]
    evaluation = store.get(Evaluation, report.outputs["verdict"]["evaluation_id"])
    assert evaluation.figures["win_rate"]["n"] == 12
    assert evaluation.figures["kl"]["n"] == 12
    assert evaluation.figures["nll"]["base"]["mean"] > 0
    assert set(evaluation.figures["safety"]) == {"over_refusal", "harmful", "personal_data"}
    assert live.id != report.outputs["candidate"]["release_id"]

    # the candidate's own traffic: scored by the new reward model, with its KL to the base
    policy = store.get(Checkpoint, report.outputs["policy"]["checkpoint_id"])
    offered = store.get(Release, report.outputs["candidate"]["release_id"])
    serve(store, project, url, offered.model, policy.id, first=1000)
    measured = worker.monitor_once(settings, store, project.id, "worker", force=True)
    by_metric = {row.metric: row for row in measured if not row.labels}
    assert by_metric["score_mean"].n == settings.monitor_sample
    assert 0 < by_metric["kl_mean"].n <= N
    assert store.count(Response, checkpoint_id=policy.id) == N + 12
    store.close()
