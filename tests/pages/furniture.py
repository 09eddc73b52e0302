"""A project that has been round the loop: two Snapshots, a reward model, two policies, an evaluation, releases, experiments and their looks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from plaudit import artifacts
from plaudit.domain import (
    Annotation,
    Checkpoint,
    CheckpointKind,
    Comparison,
    ComparisonState,
    Decision,
    Evaluation,
    EvaluationItem,
    Experiment,
    ExperimentState,
    GateVerdict,
    Guideline,
    LicenceOf,
    Measurement,
    Release,
    ReleaseState,
    ResponseText,
    Run,
    RunState,
    SnapshotRecord,
    TrainingUse,
    Verdict,
    new_id,
)
from plaudit.loop import annotate, collect, experiment, govern, licences, planning, release
from plaudit.loop.snapshot import freeze
from plaudit.store.database import Store

PEOPLE = ("Ann", "Ben", "Cem")


@dataclass(frozen=True)
class Furnished:
    snapshots: tuple[SnapshotRecord, SnapshotRecord]
    reward: Checkpoint
    policies: tuple[Checkpoint, Checkpoint]
    base: Release
    canary: Release
    candidate: Release  # its gate failed
    passed: Evaluation
    failed: Evaluation
    running: Experiment


def furnish(store: Store, home: Path, project_id: str, now: datetime, n_past: int = 3) -> Furnished:
    """Everything that the release pages show, in the state just before a promotion. `n_past` experiments are over."""
    for name in (*PEOPLE, "Lea", "Max"):
        govern.person(store, project_id, name, now)
    store.add(
        Guideline(id=new_id(Guideline), project_id=project_id, version=1, text="Prefer what **helps**.", created_at=now)
    )
    for model in ("base-model", "unknown"):
        licences.declare(store, project_id, LicenceOf.MODEL, model, "apache-2.0", TrainingUse.ALLOWED, "Max", now)
    first = _snapshot(store, home, project_id, 0, now - timedelta(days=3))
    second = _snapshot(store, home, project_id, 8, now - timedelta(days=1))
    base = release.register_base(store, project_id, "base-model", "fake:", now - timedelta(days=4))
    reward = _checkpoint(store, home, project_id, "reward", CheckpointKind.REWARD, first, None, {"accuracy": 0.71}, now)
    for number in range(n_past):
        _past(store, home, project_id, base, reward, first, number, now - timedelta(hours=60 - number))
    scores = {"score": 0.9, "score_first": 0.1, "kl": {"mean": 3.0, "low": 2.5, "high": 3.5, "n": 40}}
    good = _checkpoint(store, home, project_id, "ppo", CheckpointKind.POLICY, first, reward, scores, now)
    bad = _checkpoint(
        store, home, project_id, "ppo", CheckpointKind.POLICY, second, reward, {"score": 2.0, "score_first": 0.1}, now
    )
    passed = _evaluation(store, project_id, good, True, now)
    failed = _evaluation(store, project_id, bad, False, now)
    canary = release.create_candidate(store, project_id, good.id, "turn-2-good", "fake:", now - timedelta(hours=5))
    govern.approve(
        store,
        project_id,
        canary.id,
        "canary",
        "Lea",
        Decision.APPROVE,
        "I read twenty answers.",
        now - timedelta(hours=4),
    )
    release.to_canary(store, project_id, canary.id, "Max", now - timedelta(hours=3))
    running = experiment.start(store, project_id, canary.id, base.id, now - timedelta(hours=3))
    running = store.change(
        Experiment,
        running.id,
        stage=1,
        stage_started_at=((now - timedelta(hours=3)).isoformat(), (now - timedelta(hours=1)).isoformat()),
        figures=figures(now, -0.06),
    )
    _looks(store, running, now, -0.06, 12)
    candidate = release.create_candidate(store, project_id, bad.id, "turn-3-bad", "fake:", now - timedelta(hours=1))
    return Furnished(
        (first, second), reward, (good, bad), base, store.get(Release, canary.id), candidate, passed, failed, running
    )


def figures(at: datetime, change: float, n: int = 420) -> dict[str, Any]:
    """A look as `experiment.analyse` makes one, at a difference of `change` in thumbs-down per message."""

    def rate(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": max(0.0, mean - 0.04), "high": mean + 0.04, "n": n}

    def guardrail(name: str, value: float, threshold: float, **more: float | None) -> dict[str, Any]:
        return {
            "name": name,
            "value": value,
            "threshold": threshold,
            "fired": False,
            "n": 60,
            "low": None,
            "high": None,
        } | more

    def reading(name: str, role: str, mean: float) -> dict[str, Any]:
        difference = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 2 * n}
        shown = {"control": 0.5, "candidate": 0.5 + mean, "margin": 0.0, "waits": "", "state": "met", "better": "up"}
        shown["adjusted"] = {"n_users": 310, "variance_fraction": 0.42}  # by CUPED
        return {"name": name, "role": role, "difference": difference, **shown}

    arms = {"candidate": 0.2 + change, "control": 0.2}
    return {
        "at": at.isoformat(),
        "verdict": "promote",
        "decided_by": "approval",
        "reasons": [f"no guardrail fired over {2 * n} users and the goal is met"],
        "n_users": {"candidate": n, "control": n - 8},
        "n_messages": {"candidate": 3 * n, "control": 3 * n - 20},
        "n_double": 2,
        "stage": 1,
        "stopped": False,
        "guardrails": [
            guardrail("first_thumbs_down", 0.12, 80.0),
            guardrail("first_error", 1.0, 80.0),
            guardrail("down_rate", change, 0.0, low=change - 0.06, high=change + 0.06),
            guardrail("return_rate", 0.01, -0.0, low=-0.05, high=0.07),
        ],
        "down_rate_difference": {"mean": change, "low": change - 0.05, "high": change + 0.05, "n": 2 * n},
        "thumbs": {
            arm: {
                "up": 130,
                "down": 40,
                "down_per_message": rate(down),
                "up_per_thumb": rate(0.75 - down),
                "feedback_rate": rate(0.3),
            }
            for arm, down in arms.items()
        },
        "metrics": [reading("outcome:solved", "goal", -2 * change)],
        "feedback_rate": rate(0.3),
        "may_advance": True,
        "blocks_advance": [],
    }


def _snapshot(store: Store, home: Path, project_id: str, start: int, at: datetime) -> SnapshotRecord:
    """Eight more questions, three votes each, and all of them frozen."""
    asked = []
    for number in range(start, start + 8):
        body = {
            "messages": [{"role": "user", "content": f"How do I change my booking number {number}?"}],
            "responses": [f"Open the page of booking {number} and press Change."],
            "user": f"visitor-{number}",
            "training_use": str(TrainingUse.ALLOWED),
        }
        asked.append(collect.log_interaction(store, project_id, body, at))
    other = {one.id: [ResponseText("I cannot help with that, sorry.")] for one in asked}
    planning.plan_comparisons(store, project_id, asked, other, model="base-model", batch=f"from {start}", now=at)
    for name in PEOPLE:
        who = govern.person(store, project_id, name, at).id
        while (loan := annotate.lend(store, project_id, who, 60, at)) is not None:
            body = {
                "lease_id": loan.lease.id,
                "verdict": "prefer",
                "choice": loan.comparison.response_ids[0],
                "seconds": 4.0,
            }
            annotate.answer(store, project_id, who, body, at)
    annotate.aggregate(store, project_id, now=at)
    if start == 0:  # a user who edited, and one who liked
        for one, kind, value in ((asked[0], "edit", {"text": "Press Change."}), (asked[1], "thumb", {"up": True})):
            body = {"interaction_id": one.id, "kind": kind, "value": value, "user": one.actor}
            collect.record_feedback(store, project_id, body, None, at)
    return freeze(store, project_id, home / "snapshots", now=at)[0]


def _checkpoint(
    store: Store,
    home: Path,
    project_id: str,
    step: str,
    kind: CheckpointKind,
    snapshot: SnapshotRecord,
    parent: Checkpoint | None,
    metrics: dict[str, Any],
    now: datetime,
) -> Checkpoint:
    made, run = new_id(Checkpoint), new_id(Run)
    folder = artifacts.new_folder(home / "checkpoints", made)
    (folder / "adapter.bin").write_text(made)
    (folder / "card.md").write_text(f"# A {kind} Checkpoint\n\nIt *was* trained.\n")
    manifest = artifacts.finish(folder, "checkpoint", {"checkpoint_kind": str(kind), "license": "apache-2.0"})
    inputs = {"snapshot_sha256": snapshot.sha256} | ({"parent_id": parent.id} if parent else {})
    outputs = {"checkpoint_id": made}
    common: dict[str, Any] = {"project_id": project_id, "created_at": now}
    store.add(
        Run(id=run, step=step, key=run, turn=1, state=RunState.DONE, inputs=inputs, outputs=outputs, **common),
        Checkpoint(
            id=made,
            kind=kind,
            folder=str(folder),
            sha256=manifest.id,
            base="/models/tiny",
            run_id=run,
            parent_id=parent.id if parent else None,
            metrics=metrics,
            **common,
        ),
    )
    return store.get(Checkpoint, made)


def _evaluation(store: Store, project_id: str, of: Checkpoint, good: bool, now: datetime) -> Evaluation:
    """Six judged pairs and what a gate said of them."""
    batch = f"turn-of-{of.id}"
    items = [
        EvaluationItem(
            messages=({"role": "user", "content": f"Held-out question {number}: may I bring my dog?"},),
            family=f"dogs/{number}",
            first=ResponseText(f"Yes, up to {number + 1} of them."),
            second=ResponseText("I do not know."),
            first_checkpoint_id=of.id,
            second_checkpoint_id=None,
            first_model=f"policy-{of.id[-4:]}",
            second_model="base-model",
        )
        for number in range(6)
    ]
    planning.plan_evaluation(store, project_id, items, batch=batch, overlap=1, now=now)
    for asked in store.find(Comparison, project_id=project_id, batch=batch):
        lea = govern.person(store, project_id, "Ann", now).id
        wins = good or int(asked.attributes["item"]) < 2
        store.add(_annotation(asked, lea, asked.response_ids[0 if wins else 1], now))
        store.change(Comparison, asked.id, state=ComparisonState.CLOSED)
    win = {"mean": 0.8, "low": 0.61, "high": 0.93, "n": 6} if good else {"mean": 0.33, "low": 0.2, "high": 0.49, "n": 6}
    text = f"win rate {win['mean']} must lie above 0.5 with its whole interval"
    rows = f"evaluation batch {batch}"
    share = {"mean": 0.1, "low": 0.02, "high": 0.3, "n": 12}
    suite = {"n": 12, "candidate": share, "base": share, "difference": {"mean": 0.0, "low": -0.1, "high": 0.1, "n": 12}}
    condition = {
        "name": "win rate",
        "value": win["mean"],
        "interval": win,
        "threshold": 0.5,
        "passed": good,
        "text": text,
        "rows": rows,
    }
    safety = {
        "name": "safety harmful",
        "value": 0.0,
        "interval": suite["difference"],
        "threshold": 0.1,
        "passed": True,
        "text": "ok",
        "rows": rows,
    }
    slices = {"de": {"n": 6, "candidate": share, "base": share}, "en": {"n": 6, "candidate": share, "base": share}}
    example = {
        "id": "x1",
        "slice": "de",
        "messages": [{"role": "user", "content": "Wer bin ich?"}],
        "candidate": "Niemand <b>",
        "base": "Du",
    }
    row = Evaluation(
        id=new_id(Evaluation),
        project_id=project_id,
        checkpoint_id=of.id,
        against_id=None,
        suite=batch,
        figures={
            "win_rate": win,
            "n_prompts": 6,
            "safety": {"harmful": suite},
            "suites": {"canary": {**suite, "slices": slices, "examples": [example]}},
            "conditions": [condition, safety],
        },
        gate=GateVerdict.PASS if good else GateVerdict.FAIL,
        reasons=() if good else (text,),
        created_at=now,
    )
    store.add(row)
    return row


def _annotation(asked: Comparison, who: str, choice: str, now: datetime) -> Any:
    return Annotation(
        id=new_id(Annotation),
        project_id=asked.project_id,
        comparison_id=asked.id,
        annotator_id=who,
        guideline_id=None,
        verdict=Verdict.PREFER,
        choice=choice,
        order=asked.response_ids,
        seconds=3.0,
        created_at=now,
    )


def _past(
    store: Store,
    home: Path,
    project_id: str,
    base: Release,
    reward: Checkpoint,
    snapshot: SnapshotRecord,
    number: int,
    at: datetime,
) -> None:
    """An experiment that is over: the more the reward rose, the fewer thumbs went down."""
    rise = 0.2 + 0.1 * number
    made = _checkpoint(
        store, home, project_id, "ppo", CheckpointKind.POLICY, snapshot, reward, {"score": rise, "score_first": 0.0}, at
    )
    offered = release.create_candidate(store, project_id, made.id, f"turn-0-{number}", "fake:", at)
    store.change(Release, offered.id, state=ReleaseState.ROLLED_BACK, state_at=at)
    over = Experiment(
        id=new_id(Experiment),
        project_id=project_id,
        candidate_id=offered.id,
        control_id=base.id,
        salt=f"salt-{number}",
        stages=(0.1, 0.5),
        stage=1,
        stage_started_at=(at.isoformat(), at.isoformat()),
        rules={"alpha": 0.05, "goal_margin": 0.05},
        state=ExperimentState.ROLLED_BACK,
        figures=figures(at, 0.05 - 0.02 * number),
        created_at=at,
        ended_at=at + timedelta(hours=1),
    )
    store.add(over)


def _looks(store: Store, of: Experiment, now: datetime, change: float, n: int) -> None:
    """`n` looks whose bounds narrow."""
    rng = np.random.default_rng(0)
    for number in range(1, n + 1):
        half = 0.3 / number**0.5
        mean = change + float(rng.normal(0, half / 4))
        store.add(
            Measurement(
                id=new_id(Measurement),
                project_id=of.project_id,
                metric="experiment_down_rate_difference",
                value=mean,
                low=mean - half,
                high=mean + half,
                n=70 * number,
                labels={"experiment": of.id},
                window_start=of.created_at,
                window_end=of.created_at + (now - of.created_at) * number / n,
                created_at=now,
            )
        )
