"""A whole turn with the Fake backend, people who answer in-process, and a stand-in for the learn programs; crashes between any two steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from plaudit import backends
from plaudit.domain import (
    Alert,
    AlertState,
    Assignment,
    Checkpoint,
    Comparison,
    CompletionStatus,
    Evaluation,
    Experiment,
    ExperimentState,
    GateVerdict,
    Interaction,
    Preference,
    Project,
    Purpose,
    Release,
    ReleaseState,
    Response,
    ResponseText,
    Run,
    RunState,
    TrainingUse,
    new_id,
    utc_now,
)
from plaudit.errors import BadInput, Conflict, NotFound, Refused, TrainingStopped
from plaudit.loop import annotate, experiment, govern, live_questions, pipeline, planning, release, train
from plaudit.loop.pipeline import Turn, TurnConfig
from plaudit.settings import Settings
from plaudit.store.database import Store

# Like python -m plaudit.learn: a Checkpoint for reward and ppo, scores for score; `fail` in its config ends it once.
PROGRAM = """
import json, pathlib, sys
from plaudit import artifacts
program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
config = json.loads((folder / "config.json").read_text())
if config.get("seed") == 13 and not (folder / "failed").exists():
    (folder / "failed").touch(); sys.exit(1)
if program == "score":
    with open(folder / "scores.jsonl", "w") as out:
        for row in map(json.loads, open(config["inputs"])):
            for index in range(len(row.get("responses", [1]))):
                line = {"id": row["id"], "index": index, "n_tokens": 5, "nll": 1.0, "kl": 0.5, "score": 0.1}
                out.write(json.dumps(line) + "\\n")
else:
    assert pathlib.Path(config["snapshot"], "manifest.json").is_file()
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint" / "weights").write_text(program)
    artifacts.finish(folder / "checkpoint", "checkpoint", {"checkpoint_kind": "reward" if program == "reward" else "policy"})
(folder / "result.json").write_text("{}")
with open(folder / "metrics.jsonl", "a") as f: f.write(json.dumps({"step": 1, "of": 1, "phase": program, "seconds": 0}) + "\\n")
"""
Make = Callable[..., Turn]


@pytest.fixture
def make(store: Store, project: Project, chat: Callable[..., Interaction], tmp_path: Path) -> Make:
    """make(number=1, ...) -> a Turn over a store in which twenty comparisons have been answered."""
    release.register_base(store, project.id, "base", "fake:", utc_now())
    script, held_out = tmp_path / "program.py", tmp_path / "held-out.jsonl"
    script.write_text(PROGRAM)
    rows = [{"messages": [{"role": "user", "content": f"held out {i}"}], "family": f"h{i}"} for i in range(30)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TurnConfig(held_out=str(held_out), n_prompts=6, gate={"min_prompts": 5})
    answered(store, project, chat, 20)

    def turn(number: int = 1, **changes: Any) -> Turn:
        return Turn(
            store=store,
            project_id=project.id,
            number=number,
            config=replace(config, **changes),
            home=tmp_path,
            base=tmp_path / "base",
            upstream="fake:",
            program=(sys.executable, str(script)),
        )

    return turn


def answered(store: Store, project: Project, chat: Callable[..., Interaction], n: int, first: int = 0) -> None:
    asked = [chat(question=f"question {i}", family=f"f{i}", actor=f"u{i}") for i in range(first, first + n)]
    extra = {one.id: [ResponseText("Another answer.")] for one in asked}
    planning.plan_comparisons(store, project.id, asked, extra, model="base", batch=f"b{first}", now=utc_now())
    work(store, project, lambda comparison: comparison.response_ids[0])


def work(store: Store, project: Project, choose: Callable[[Comparison], str]) -> None:
    """Three people answer everything that is open."""
    for name in ("ann", "bob", "cid"):
        who = govern.person(store, project.id, name, utc_now()).id
        while (loan := annotate.lend(store, project.id, who, 60, utc_now())) is not None:
            body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": choose(loan.comparison), "seconds": 2.0}
            annotate.answer(store, project.id, who, body, utc_now())


def test_a_turn_goes_from_answers_to_a_judged_candidate(store: Store, project: Project, make: Make) -> None:
    heard: list[str] = []
    turn = replace(make(), on_progress=lambda step, line: heard.append(f"{step} {line['step']}"))
    report = pipeline.run_turn(turn)
    assert report.waiting == "6 of 6 evaluation comparisons are not judged yet"
    assert set(report.outputs) == {name for name, _, _ in pipeline.STEPS} - {"verdict"}
    assert heard == ["reward 1", "ppo 1"]
    work(store, project, lambda comparison: comparison.response_ids[0])
    report = pipeline.run_turn(turn)
    assert report.waiting is None
    evaluation = store.get(Evaluation, report.outputs["verdict"]["evaluation_id"])
    assert evaluation.figures["win_rate"]["mean"] == 1.0
    assert evaluation.figures["kl"]["mean"] == 0.5
    assert evaluation.checkpoint_id == report.outputs["policy"]["checkpoint_id"]
    assert report.outputs["verdict"]["gate"] == str(evaluation.gate)
    policy = store.get(Checkpoint, evaluation.checkpoint_id)
    assert policy.parent_id == report.outputs["reward"]["checkpoint_id"]
    offered = store.get(Release, report.outputs["candidate"]["release_id"])
    assert (offered.state, offered.checkpoint_id) == (ReleaseState.CANDIDATE, policy.id)
    assert pipeline.run_turn(turn) == report  # nothing is done twice
    assert store.count(Evaluation) == 1
    assert store.count(Comparison, purpose=Purpose.EVALUATION) == 6


def test_a_turn_s_policy_may_learn_from_terms_of_which_one_is_its_reward_model(store: Store, make: Make) -> None:
    polite = {"kind": "regex", "name": "polite", "pattern": "please", "weight": 0.2}
    people = {"kind": "model", "name": "people", "checkpoints": ["newest", "/other"]}
    report = pipeline.run_turn(make(ppo={"reward": [people, polite]}), until="policy")
    (run,) = store.find(Run, step="ppo")
    folder = report.outputs["reward"]["folder"]
    assert run.config["reward"] == [{**people, "checkpoints": [folder, "/other"]}, polite]
    assert store.get(Checkpoint, report.outputs["policy"]["checkpoint_id"]).parent_id == run.inputs["parent_id"]
    for useless in ([polite], "mine:own", "/some/checkpoint"):
        with pytest.raises(BadInput, match="this turn's reward model would be trained for nothing"):
            TurnConfig(ppo={"reward": useless})
    with pytest.raises(BadInput, match="as an adapter beside the base"):
        TurnConfig(ppo={"lora": None})


def test_a_turn_may_stop_after_a_step_and_go_on(store: Store, make: Make) -> None:
    turn = make()
    report = pipeline.run_turn(turn, until="snapshot")
    assert (set(report.outputs), report.waiting) == ({"preferences", "snapshot"}, None)
    assert store.count(Checkpoint) == 0
    assert pipeline.next_turn(store, turn.project_id) == 1
    assert pipeline.run_turn(turn).outputs["snapshot"] == report.outputs["snapshot"]
    with pytest.raises(BadInput, match="no step 'snap' in a turn; its steps are preferences, snapshot"):
        pipeline.run_turn(turn, until="snap")


QUICK = ("questions",)  # the other crash points are among the slow tests


@pytest.mark.parametrize(
    "crash", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n, _, _ in pipeline.STEPS]
)
def test_a_crash_in_any_step_is_resumed_without_repeating_the_others(
    crash: str, store: Store, project: Project, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[str, int] = {}

    def counted(name: str, act: pipeline.Step) -> pipeline.Step:
        def step(turn: Turn, done: pipeline.Outputs) -> Any:
            counts[name] = counts.get(name, 0) + 1
            made = act(turn, done)
            if name == crash and counts[name] == 1:
                raise SystemExit  # after its work, before its Run is done: the worst moment
            return made

        return step

    monkeypatch.setattr(pipeline, "STEPS", tuple((n, counted(n, act), needs) for n, act, needs in pipeline.STEPS))
    turn = make()
    for _ in range(2):
        try:
            pipeline.run_turn(turn)
        except SystemExit:
            pipeline.run_turn(replace(turn, owner="another process"))
        work(store, project, lambda comparison: comparison.response_ids[0])
    assert pipeline.run_turn(turn).waiting is None
    # training steps are asked again but keep their own Run; `verdict` waits once for people
    quick = {n: c for n, c in counts.items() if n not in ("reward", "policy", "verdict")}
    assert quick == {n: 1 + (n == crash) for n in quick}
    assert store.count(Checkpoint) == 2
    assert store.count(Release) == 2
    assert store.count(Comparison, purpose=Purpose.EVALUATION) == 6
    assert all(run.state == RunState.DONE for run in store.find(Run))


def test_a_failed_step_keeps_its_sentence_and_may_be_tried_again(store: Store, make: Make) -> None:
    turn = make(seed=13)
    with pytest.raises(TrainingStopped, match="exit code 1"):
        pipeline.run_turn(turn)
    failed = next(run for run in store.find(Run) if run.state == RunState.FAILED)
    assert failed.step == "reward"
    assert failed.error is not None
    with pytest.raises(TrainingStopped):
        pipeline.run_turn(turn)  # the policy's program fails once too
    assert pipeline.run_turn(turn).waiting is not None


def test_two_runners_cannot_take_one_step(store: Store, project: Project, make: Make) -> None:
    turn = make()
    facts = {"turn": 1}
    key = train.run_key("turn.preferences", pipeline.asdict(turn.config), facts)
    train.claim(store, project.id, "turn.preferences", key, {}, facts, "other", utc_now())
    with pytest.raises(Conflict, match="is being done by other"):
        pipeline.run_turn(turn)


def test_another_config_makes_other_runs(store: Store, make: Make) -> None:
    first = pipeline.run_turn(make())
    second = pipeline.run_turn(make(reward={"epochs": 2}))
    assert first.outputs["reward"]["checkpoint_id"] != second.outputs["reward"]["checkpoint_id"]
    assert first.outputs["snapshot"]["sha256"] == second.outputs["snapshot"]["sha256"]


def test_the_loop_is_due_by_new_preferences_and_never_while_an_alert_blocks(
    store: Store, project: Project, make: Make, chat: Callable[..., Interaction]
) -> None:
    assert pipeline.due(store, project.id, 10) == pipeline.Due(
        False, 1, ("0 new Preferences so far, 10 are needed (10 more)",)
    )
    annotate.aggregate(store, project.id, now=utc_now())
    assert pipeline.due(store, project.id, 20).yes
    with pytest.raises(Refused) as error:
        pipeline.run_when_due(make(), 21)
    assert error.value.reasons == ("20 new Preferences so far, 21 are needed (1 more)",)
    alert = alert_of(project)
    store.add(alert)
    refused = pipeline.due(store, project.id, 10)
    assert (refused.yes, refused.reasons) == (False, ("alert r blocks retraining (m)",))
    store.change(Alert, alert.id, blocking=False)
    turn = make()
    assert pipeline.run_when_due(turn, 20).waiting is not None
    assert pipeline.due(store, project.id, 20) == pipeline.Due(True, 1, ("turn 1 is unfinished",))
    store.change(Alert, alert.id, blocking=True)
    assert not pipeline.due(store, project.id, 20).yes  # not even an unfinished one
    store.change(Alert, alert.id, state=AlertState.RESOLVED)
    work(store, project, lambda comparison: comparison.response_ids[0])
    pipeline.run_when_due(turn, 20)
    assert pipeline.due(store, project.id, 10) == pipeline.Due(
        False, 2, ("0 new Preferences since turn 1, 10 are needed (10 more)",)
    )
    with pytest.raises(Refused):
        pipeline.run_when_due(turn, 10)
    answered(store, project, chat, 10, first=100)
    annotate.aggregate(store, project.id, now=utc_now())
    assert store.count(Preference) == 30
    assert pipeline.due(store, project.id, 10).turn == 2
    with pytest.raises(Conflict, match="it is turn 2"):
        pipeline.run_when_due(turn, 10)


def alert_of(project: Project, **more: Any) -> Alert:
    return Alert(
        id=new_id(Alert),
        project_id=project.id,
        rule="r",
        state=AlertState.FIRING,
        severity="critical",
        blocking=True,
        value=0,
        threshold=0,
        message="m",
        opened_at=utc_now(),
        **more,
    )


def test_held_out_prompts_come_from_the_file_or_the_test_split(make: Make, store: Store) -> None:
    turn = make()
    report = pipeline.run_turn(turn)
    frozen = Path(report.outputs["snapshot"]["folder"])
    from_file = pipeline.held_out_prompts(turn.config, frozen)
    assert len(from_file) == 6
    assert from_file == pipeline.held_out_prompts(turn.config, frozen)
    assert {family for _, family in from_file} != {f"h{i}" for i in range(6)}  # drawn, not the first ones
    from_split = pipeline.held_out_prompts(replace(turn.config, held_out=""), frozen)
    families = {row.family for row in pipeline.artifacts.open_snapshot(frozen).prompts("train")}
    assert from_split
    assert not families & {family for _, family in from_split}
    with pytest.raises(BadInput, match="no file"):
        pipeline.held_out_prompts(replace(turn.config, held_out="/nowhere"), frozen)


def test_a_home_names_its_base_and_its_turn(tmp_path: Path, store: Store, project: Project) -> None:
    with pytest.raises(NotFound, match="plaudit up"):
        pipeline.base_folder(tmp_path)
    (tmp_path / "base.json").write_text(json.dumps({"spec": "tiny", "cache": "c", "folder": str(tmp_path / "tiny")}))
    assert pipeline.read_config(tmp_path) == TurnConfig()
    (tmp_path / "turn.json").write_text(json.dumps({"seed": 4, "gate": {"kl_budget": 3.0}}))
    release.register_base(store, project.id, "base", "fake:", utc_now())
    turn = pipeline.turn_of(Settings(home=tmp_path, overlap=5), store, project.id)
    assert (turn.number, turn.config.seed, turn.overlap, turn.base) == (1, 4, 5, tmp_path / "tiny")
    for text, match in (('{"sed": 1}', "'sed'"), ("{", "not JSON"), ('{"gate": {"kl": 1}}', "'kl' is not a gate rule")):
        (tmp_path / "turn.json").write_text(text)
        with pytest.raises(BadInput, match=match):
            pipeline.read_config(tmp_path)


# --- guarding ----------------------------------------------------------------------------------------------------------


def test_the_guard_rolls_a_harmful_canary_back_and_leaves_others(
    store: Store, project: Project, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = release.register_base(store, project.id, "base", "fake:", now)
    assert pipeline.guard(store, project.id, now) is None
    offered = Release(
        id="rel_c",
        project_id=project.id,
        checkpoint_id="ckp",
        model="c",
        upstream="fake:",
        state=ReleaseState.CANARY,
        created_at=now,
        state_at=now,
    )
    store.add(offered)
    running = experiment.start(store, project.id, offered.id, base.id, now)
    found = pipeline.guard(store, project.id, now)
    assert found is not None
    assert (found[0].verdict, found[1]) == ("hold", False)
    bad = experiment.Look("roll_back", ("guardrail down_rate: +0.2",), {})
    monkeypatch.setattr(experiment, "look", lambda *_: bad)
    assert pipeline.guard(store, project.id, now + timedelta(seconds=1)) == (bad, True)
    assert store.get(Release, offered.id).state == ReleaseState.ROLLED_BACK
    assert store.get(Experiment, running.id).state == ExperimentState.ROLLED_BACK
    assert release.live(store, project.id).id == base.id
    assert pipeline.guard(store, project.id, now) is None


def test_the_verdict_decides_whether_the_candidate_may_meet_users(store: Store, project: Project, make: Make) -> None:
    """Fake answers are alike in every respect; losing every vote must fail the gate, and a failed gate keeps the candidate from users."""
    turn = make()
    pipeline.run_turn(turn)
    work(store, project, lambda comparison: comparison.response_ids[1])
    report = pipeline.run_turn(turn)
    assert report.outputs["verdict"]["gate"] == GateVerdict.FAIL
    govern.approve(
        store,
        project.id,
        report.outputs["candidate"]["release_id"],
        "canary",
        "ann",
        govern.Decision.APPROVE,
        "so what",
        utc_now(),
    )
    with pytest.raises(Refused, match=r"win rate 0\.000"):
        release.to_canary(store, project.id, report.outputs["candidate"]["release_id"], "op", utc_now())


def test_traffic_is_asked_about_once_and_as_it_was_answered(
    store: Store, project: Project, chat: Callable[..., Interaction], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = release.register_base(store, project.id, "base", "fake:", utc_now())
    used = {"temperature": 0.4, "max_tokens": 7, "seed": 3, "n": 2, "stream": True, "model": "plaudit", "top_p": None}
    served = {"assignment": Assignment(live.id), "sampling": used}
    good = [chat(question=f"question {i}", **served) for i in range(5)]
    chat(question="not to be trained on", **(served | {"training_use": TrainingUse.UNKNOWN}))
    chat(question="broken", **served, status=CompletionStatus.ERROR)
    chat(question="of another release", **(served | {"assignment": Assignment("rel_other")}))
    sent: list[dict[str, Any]] = []
    real = backends.complete_many

    def spy(url: str, requests: list[dict[str, Any]], **more: Any) -> Any:
        sent.extend(requests)
        return real(url, requests, **more)

    monkeypatch.setattr(backends, "complete_many", spy)
    first = live_questions.plan_traffic(store, project.id, 3, batch="b", overlap=2, now=utc_now())
    assert (len(first.comparisons), first.skipped) == (3, {})
    assert {(one.purpose, one.overlap, one.batch) for one in first.comparisons} == {(Purpose.TRAINING, 2, "b")}
    for request in sent:
        assert {name: request[name] for name in ("temperature", "max_tokens", "n", "model")} == {
            "temperature": 0.4, "max_tokens": 7, "n": 1, "model": "base",
        }  # fmt: skip
        assert "top_p" not in request
    assert 3 not in {request["seed"] for request in sent}
    assert len({request["seed"] for request in sent}) == 3
    one = first.comparisons[0]
    shown, second = (store.get(Response, id) for id in one.response_ids)
    assert (shown.origin, second.origin, second.interaction_id) == ("served", "sampled", one.interaction_id)
    rest = live_questions.plan_traffic(store, project.id, 50, batch="b", overlap=2, now=utc_now())
    about = [one.interaction_id for one in (*first.comparisons, *rest.comparisons)]
    assert sorted(about) == sorted(one.id for one in good)
    assert live_questions.plan_traffic(store, project.id, 50, batch="c", overlap=2, now=utc_now()).comparisons == ()
    with pytest.raises(BadInput, match="n is 0"):
        live_questions.plan_traffic(store, project.id, 0, batch="b", overlap=2, now=utc_now())
