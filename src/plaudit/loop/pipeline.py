"""The loop's turn: STEPS in order, each a Run that is done once per key, so that the same call resumes after a crash anywhere.

    preferences -> snapshot -> reward -> policy -> candidate -> questions -> measures -> verdict      (then people approve, and users decide)

A step is a function of the turn and of what the steps before it gave; what it gives is kept in its Run. The key hashes the code version, the
turn's config and those outputs. A step that waits for people says so, and the next call asks again. Two runners cannot take one step: the
second gets a Conflict while the first one's lease lives.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from plaudit import artifacts, backends
from plaudit.domain import (
    Checkpoint,
    CheckpointKind,
    Experiment,
    Json,
    Message,
    Release,
    Run,
    RunState,
    SnapshotRecord,
    utc_now,
)
from plaudit.errors import BadInput, Conflict, NotFound, PlauditError, Refused
from plaudit.learn.configs import NEWEST_CHECKPOINT, with_newest
from plaudit.loop import (
    annotate,
    evaluate,
    experiment,
    gates,
    judges,
    licences,
    monitor,
    planning,
    programs,
    registry,
    release,
    serving,
    snapshot,
    suites,
    train,
)
from plaudit.loop.asking import Asking
from plaudit.loop.gates import GateRules
from plaudit.loop.snapshots.pool import Curation
from plaudit.settings import Settings
from plaudit.store import monitoring
from plaudit.store.database import Store


@dataclass(frozen=True)
class TurnConfig:
    """What a turn does; part of every step's key."""

    reward: Json = field(
        default_factory=dict, metadata={"help": "Fields of learn's RewardConfig, without snapshot and base."}
    )
    ppo: Json = field(
        default_factory=dict,
        metadata={
            "help": "Fields of PPOConfig, without snapshot and base. `reward` is this turn's reward model, or terms of which one names it: "
            "the Checkpoint `newest`."
        },
    )
    seed: int = field(default=0, metadata={"help": "Of the split, of both trainings, of the sampled answers."})
    held_out: str = field(
        default="", metadata={"help": "JSONL of {messages, family}; empty: the Snapshot's test prompts."}
    )
    n_prompts: int = field(default=120, metadata={"help": "Held-out prompts that are answered and judged."})
    max_tokens: int = field(default=40, metadata={"help": "Of each answer that is judged."})
    temperature: float = field(default=0.7, metadata={"help": "Of each answer that is judged."})
    gate: Json = field(
        default_factory=dict, metadata={"help": "Fields of gates.GateRules that differ from their default."}
    )
    suites: tuple[Any, ...] = field(
        default=(),
        metadata={"help": "Suites that candidate and base are asked too: paths, names, or objects of columns."},
    )
    conditions: tuple[Any, ...] = field(
        default=(),
        metadata={"help": "Conditions of the gate beside its rules: {name, figure, use, at_least, at_most}."},
    )
    snapshot: Json = field(
        default_factory=dict,
        metadata={"help": "Filters of the Snapshot: options of `plaudit snapshot freeze` with underscores."},
    )

    def __post_init__(self) -> None:
        for name, value in (("n_prompts", self.n_prompts), ("max_tokens", self.max_tokens)):
            if value < 1:
                raise BadInput(f"TurnConfig.{name} is {value}; give at least 1.")
        if "reward" in self.ppo and with_newest(self.ppo["reward"], "") == self.ppo["reward"]:
            raise BadInput(
                "No term of TurnConfig.ppo's reward names the Checkpoint 'newest', so this turn's reward model would be trained for "
                "nothing; add a term of kind 'model' with checkpoints ['newest'] (weight 0 only measures it)."
            )
        if self.ppo.get("lora", {}) is None:
            raise BadInput(
                "TurnConfig.ppo sets lora to null, but a turn offers its candidate as an adapter beside the base; leave it out, and train full "
                "weights with `plaudit train ppo`."
            )
        valid = [spec.name for spec in fields(GateRules)]
        for name in self.gate:
            if name not in valid:
                raise BadInput(f"{name!r} is not a gate rule; valid are {', '.join(valid)}.")
        curation_of(self.snapshot)
        for source in self.suites:
            suites.parse_source(source)
        gates.parse(self.conditions)


def curation_of(given: Json) -> Curation:
    """The filters of a turn's file. Raises BadInput."""
    valid = [spec.name for spec in fields(Curation)]
    for name in given:
        if name not in valid:
            raise BadInput(f"TurnConfig.snapshot sets {name!r}, which is no filter; valid are {', '.join(valid)}.")
    fitting: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}
    return Curation(**fitting)


@dataclass(frozen=True)
class Turn:
    """One pass: where everything is. `home` holds snapshots/ and runs/; `base` is the prepared base model folder."""

    store: Store
    project_id: str
    number: int
    config: TurnConfig
    home: Path
    base: Path
    upstream: str
    overlap: int = 3
    owner: str = field(default_factory=train.new_owner)
    on_progress: Callable[[str, Json], None] | None = None  # (step, line of metrics)
    program: tuple[str, ...] = train.PROGRAM
    asking: Asking = planning.AS_IT_IS

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    def tell(self, step: str) -> Callable[[Json], None] | None:
        listener = self.on_progress
        return (lambda line: listener(step, line)) if listener is not None else None


@dataclass(frozen=True)
class Wait:
    """A step that cannot go on before people have acted."""

    reason: str


@dataclass(frozen=True)
class TurnReport:
    """`waiting` says for what; None where the turn is complete."""

    number: int
    outputs: Mapping[str, Json]
    waiting: str | None = None


@dataclass(frozen=True)
class Due:
    yes: bool
    turn: int
    reasons: tuple[str, ...]  # why, or why not


Outputs = Mapping[str, Json]
Step = Callable[[Turn, Outputs], "Json | Wait"]


# --- the steps ---------------------------------------------------------------------------------------------------------


def conclude_preferences(turn: Turn, done: Outputs) -> Json:  # noqa: ARG001  the first step has nothing before it
    """Annotations to Preferences."""
    report = annotate.aggregate(turn.store, turn.project_id, now=utc_now())
    return {"n_preferences": report.n_preferences, "n_votes": report.n_votes, "method": str(report.method)}


def freeze_snapshot(turn: Turn, done: Outputs) -> Json:  # noqa: ARG001  it reads the Preferences from the store
    """Preferences to a Snapshot."""
    folder = turn.home / "snapshots"
    record, _ = snapshot.freeze(
        turn.store,
        turn.project_id,
        folder,
        seed=turn.config.seed,
        curation=curation_of(turn.config.snapshot),
        base_licence=licences.base_licence(turn.base),
        now=utc_now(),
    )
    return {"snapshot_id": record.id, "folder": record.folder, "sha256": record.sha256}


def train_reward(turn: Turn, done: Outputs) -> Json:
    """Snapshot to a reward Checkpoint."""
    config = {
        "seed": turn.config.seed,
        **turn.config.reward,
        "snapshot": done["snapshot"]["folder"],
        "base": str(turn.base),
    }
    return _train(turn, "reward", config, {"snapshot_sha256": done["snapshot"]["sha256"]})


def train_policy(turn: Turn, done: Outputs) -> Json:
    """Reward Checkpoint to a policy Checkpoint, from the base: the KL budget holds for the whole way, however many turns there were.

    The Checkpoint is the whole reward, or the terms of it that ask for the `newest`.
    """
    config = {
        "seed": turn.config.seed,
        **turn.config.ppo,
        "snapshot": done["snapshot"]["folder"],
        "base": str(turn.base),
        "reward": with_newest(turn.config.ppo.get("reward", NEWEST_CHECKPOINT), done["reward"]["folder"]),
    }
    parent = done["reward"]["checkpoint_id"]
    return _train(turn, "ppo", config, {"snapshot_sha256": done["snapshot"]["sha256"], "parent_id": parent})


def offer_candidate(turn: Turn, done: Outputs) -> Json:
    """Policy Checkpoint to a candidate Release that the upstream can serve."""
    made = done["policy"]
    model = f"turn-{turn.number}-{made['checkpoint_id'][-6:]}"
    offered = release.create_candidate(
        turn.store, turn.project_id, made["checkpoint_id"], model, turn.upstream, utc_now()
    )
    backends.load_adapter(turn.upstream, offered.model, made["folder"])
    return {"release_id": offered.id, "model": offered.model}


def ask_questions(turn: Turn, done: Outputs) -> Json:
    """Answers of candidate and base to held-out prompts, put to annotators blind; and both on the safety suite."""
    base = _base_release(turn)
    prompts = held_out_prompts(turn.config, Path(done["snapshot"]["folder"]))
    sampling = {"max_tokens": turn.config.max_tokens, "temperature": turn.config.temperature, "seed": turn.config.seed}
    model, checkpoint_id = done["candidate"]["model"], done["policy"]["checkpoint_id"]
    batch = f"turn-{turn.number}-{checkpoint_id}"
    try:
        evaluate.stored_items(turn.store, turn.project_id, batch)  # a crash came after they were asked
    except NotFound:
        items = evaluate.sample_pairs(
            turn.upstream, model, base.model, prompts, sampling, candidate_checkpoint_id=checkpoint_id
        )
        planning.plan_evaluation(
            turn.store, turn.project_id, items, batch=batch, overlap=turn.overlap, asking=turn.asking, now=utc_now()
        )
    safety = evaluate.safety_suite(turn.upstream, model, base.model, sampling)
    folder = turn.home / "evaluations" / batch
    return {"batch": batch, "safety": safety, "suites": ask_suites(turn, folder, model, base.model, sampling)}


def ask_suites(turn: Turn, folder: Path, model: str, base: str, sampling: Json) -> Json:
    """The config's suites put to both models: figures by suite, each with the file of the rows behind it."""
    loaded = [suites.load(suites.parse_source(source)) for source in turn.config.suites]
    names = [suite.name for suite in loaded]
    if len(set(names)) < len(names):
        raise BadInput(f"Two suites of the turn have the same name ({', '.join(names)}); give each a name of its own.")
    found = {}
    for suite in loaded:
        mine, theirs = (suites.ask(turn.upstream, each, suite, sampling) for each in (model, base))
        file = folder / f"{suite.name}.jsonl"
        rows = suites.rows(suite, mine, theirs)
        artifacts.write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        found[suite.name] = {**suites.figures(suite, mine, theirs), "rows": str(file)}
    return found


def measure_answers(turn: Turn, done: Outputs) -> Json:
    """KL of the candidate's answers to the base, and how readable the base finds both."""
    items = evaluate.stored_items(turn.store, turn.project_id, done["questions"]["batch"])
    config = {"base": str(turn.base), "policy": done["policy"]["folder"], "measures": ["nll", "kl"]}
    name = f"turn-{turn.number}-evaluation"
    run = score(
        turn.store, turn.project_id, turn.home, name, evaluate.score_rows(items), config, turn.owner, turn.program
    )
    return {"run_id": run.id}


def reach_verdict(turn: Turn, done: Outputs) -> Json | Wait:
    """Votes and measures to an Evaluation with the gate's verdict."""
    batch = done["questions"]["batch"]
    votes = annotate.evaluation_votes(turn.store, turn.project_id, batch)
    n_open = sum(not one.closed for one in votes)
    if n_open:
        return Wait(f"{n_open} of {len(votes)} evaluation comparisons are not judged yet")
    items = evaluate.stored_items(turn.store, turn.project_id, batch)
    said = [evaluate.Votes(one.wins, one.ties + one.both_bad + int(one.identical), one.losses) for one in votes]
    scores = train.read_scores(turn.store.get(Run, done["measures"]["run_id"]))
    figures = evaluate.judge(items, said, scores, done["questions"]["safety"], turn.config.seed)
    figures |= {"suites": done["questions"].get("suites", {}), "rows": f"evaluation batch {batch}"}
    result = gates.gate(figures, GateRules(**turn.config.gate), gates.parse(turn.config.conditions))
    made = evaluate.record_evaluation(
        turn.store, turn.project_id, done["policy"]["checkpoint_id"], batch, figures, result, utc_now()
    )
    return {"evaluation_id": made.id, "gate": str(result.verdict), "reasons": list(result.reasons)}


# name -> (function, steps whose outputs it reads: they are part of its key). run_training keeps its own Run, so those two have no second.
STEPS: tuple[tuple[str, Step, tuple[str, ...]], ...] = (
    ("preferences", conclude_preferences, ()),
    ("snapshot", freeze_snapshot, ("preferences",)),
    ("reward", train_reward, ("snapshot",)),
    ("policy", train_policy, ("snapshot", "reward")),
    ("candidate", offer_candidate, ("policy",)),
    ("questions", ask_questions, ("snapshot", "policy", "candidate")),
    ("measures", measure_answers, ("policy", "questions")),
    ("verdict", reach_verdict, ("policy", "questions", "measures")),
)
FIRST, LAST = f"turn.{STEPS[0][0]}", f"turn.{STEPS[-1][0]}"


# --- the runner --------------------------------------------------------------------------------------------------------


def run_turn(turn: Turn, until: str | None = None) -> TurnReport:
    """Every step that is not done yet, in order, until the end (or the step `until`, done too) or until people must act. Raises what a
    step raises, BadInput for an unknown step; call again to resume."""
    names = [name for name, _, _ in STEPS]
    if until is not None and until not in names:
        raise BadInput(f"There is no step {until!r} in a turn; its steps are {', '.join(names)}.")
    return _run(turn, STEPS if until is None else STEPS[: names.index(until) + 1], {})


def evaluate_checkpoint(turn: Turn, checkpoint_id: str) -> TurnReport:
    """The steps from `candidate` on for a policy Checkpoint that is there; held-out prompts of the config's file or the newest Snapshot."""
    made = release.verified_checkpoint(turn.store, checkpoint_id, CheckpointKind.POLICY)
    newest = turn.store.first(SnapshotRecord, project_id=turn.project_id)
    done = {
        "policy": {"checkpoint_id": made.id, "folder": made.folder, "sha256": made.sha256},
        "snapshot": {"folder": newest.folder if newest else ""},
    }
    first = next(place for place, (name, _, _) in enumerate(STEPS) if name == "candidate")
    return _run(turn, STEPS[first:], done)


def _run(turn: Turn, steps: Sequence[tuple[str, Step, tuple[str, ...]]], outputs: dict[str, Json]) -> TurnReport:
    for name, act, needs in steps:
        made = _do(turn, name, act, {need: outputs[need] for need in needs})
        if isinstance(made, Wait):
            return TurnReport(turn.number, outputs, made.reason)
        outputs[name] = made
    return TurnReport(turn.number, outputs)


def run_when_due(turn: Turn, min_new_preferences: int, until: str | None = None) -> TurnReport:
    """`require_due`, then `run_turn`. Raises Conflict where `turn` is not the next one."""
    found = require_due(turn.store, turn.project_id, min_new_preferences)
    if found.turn != turn.number:
        raise Conflict(f"Turn {turn.number} is not the next one; it is turn {found.turn}.")
    return run_turn(turn, until)


def require_due(store: Store, project_id: str, min_new_preferences: int) -> Due:
    """Conclude Preferences from the answers that are there, then `due`; Refused with the reasons where it is not."""
    annotate.aggregate(store, project_id, now=utc_now())
    found = due(store, project_id, min_new_preferences)
    if not found.yes:
        raise Refused(f"The loop is not due: {'; '.join(found.reasons)}.", found.reasons)
    return found


def next_turn(store: Store, project_id: str) -> int:
    """The unfinished turn, else the one after the last; 1 at first."""
    started = store.find(Run, project_id=project_id, step=FIRST, state=RunState.DONE)
    if not started:
        return 1
    number = max(run.turn for run in started)
    finished = store.find(Run, project_id=project_id, step=LAST, state=RunState.DONE, turn=number)
    return number + 1 if finished else number


def due(store: Store, project_id: str, min_new_preferences: int) -> Due:
    """Whether a turn should run now: one is unfinished, or enough Preferences are new since the last began; never while an alert blocks."""
    number = next_turn(store, project_id)
    blocking = [alert for alert in monitor.open_alerts(store, project_id) if alert.blocking]
    if blocking:
        return Due(
            False, number, tuple(f"alert {alert.rule} blocks retraining ({alert.message})" for alert in blocking)
        )
    runs = store.find(Run, project_id=project_id, step=FIRST, state=RunState.DONE)
    if any(run.turn == number for run in runs):
        return Due(True, number, (f"turn {number} is unfinished",))
    last = max((run.finished_at for run in runs if run.finished_at is not None), default=None)
    with store.read() as tx:
        n_new = monitoring.new_preferences(tx, project_id, last)
    since = f"since turn {number - 1}" if number > 1 else "so far"
    if n_new < min_new_preferences:
        missing = min_new_preferences - n_new
        return Due(
            False, number, (f"{n_new} new Preferences {since}, {min_new_preferences} are needed ({missing} more)",)
        )
    return Due(True, number, (f"{n_new} new Preferences {since}",))


def score(
    store: Store,
    project_id: str,
    home: Path,
    name: str,
    rows: Sequence[Json],
    config: Json,
    owner: str,
    program: programs.Program = train.PROGRAM,
) -> Run:
    """`learn score` over input lines as a Run, keyed by what they hold. `config`: fields of ScoreConfig without `inputs`."""
    digest = artifacts.sha256_of(list(rows))
    file = home / "inputs" / f"{name}-{digest[:12]}.jsonl"
    artifacts.write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    full, inputs = {**config, "inputs": str(file)}, {"rows_sha256": digest}
    return train.run_training(
        store, project_id, "score", full, inputs, home / "runs", None, None, utc_now(), owner=owner, program=program
    )


def judge_by_reward(turn: Turn, batch: str, reward_id: str) -> list[judges.Judgement]:
    """A reward model's verdicts on an evaluation batch. Raises Refused where a policy of the batch learned from it: what was maximised cannot
    judge; NotFound, Corrupt, BadInput (no reward Checkpoint)."""
    reward = release.verified_checkpoint(turn.store, reward_id, CheckpointKind.REWARD)
    items = evaluate.stored_items(turn.store, turn.project_id, batch)
    policies = {id for item in items for id in (item.first_checkpoint_id, item.second_checkpoint_id) if id}
    for policy in sorted(policies):
        if reward.id in {node.id for node in registry.lineage(turn.store, turn.project_id, policy)}:
            reasons = [f"{policy} was trained on {reward.id}"]
            raise Refused(f"{reward.id} may not judge {batch}: {reasons[0]}; take a held-out reward model.", reasons)
    config = {"base": str(turn.base), "reward": reward.folder, "measures": ["score"]}
    rows = evaluate.score_rows(items)
    run = score(turn.store, turn.project_id, turn.home, f"judge-{batch}", rows, config, turn.owner, turn.program)
    return judges.by_scores(train.read_scores(run), len(items))


# --- acting on an experiment -------------------------------------------------------------------------------------------


def guard(store: Store, project_id: str, now: datetime) -> tuple[experiment.Look, bool] | None:
    """Look at every running experiment, roll its candidate back where a guardrail says so, and end a pilot that is over. (look, rolled back)
    of the one that was rolled back, else of everybody's, else of a segment's; None without one."""
    config = serving.serving_config(store, project_id)
    running = [one.experiment for one in (config.everybody, *config.narrower) if one.experiment is not None]
    looks = [_guard(store, project_id, one, now) for one in running]
    return next((one for one in looks if one[1]), looks[0] if looks else None)


def _guard(store: Store, project_id: str, running: Experiment, now: datetime) -> tuple[experiment.Look, bool]:
    found = experiment.look(store, running.id, now)
    if found.verdict == "roll_back":
        why = "; ".join(found.reasons)
        release.roll_back(store, project_id, release.SYSTEM, why, now, running.candidate_id, release.SYSTEM)
        return found, True
    if over := found.figures.get("pilot", {}).get("over"):
        experiment.stop(store, project_id, running.id, release.SYSTEM, over, now, release.SYSTEM)
    return found, False


def promote(store: Store, project_id: str, release_id: str, by: str, now: datetime) -> Release:
    """A fresh look, then `release.promote`. Raises what that raises."""
    guard(store, project_id, now)
    return release.promote(store, project_id, release_id, by, now)


# --- inside ------------------------------------------------------------------------------------------------------------


def turn_of(
    settings: Settings,
    store: Store,
    project_id: str,
    on_progress: Callable[[str, Json], None] | None = None,
    number: int | None = None,
    forbidden_models: Sequence[str] = (),
) -> Turn:
    """The next turn of a home (or `number`), with what `plaudit up` left there; `forbidden_models` beside those of the settings and the
    turn's file. Raises NotFound before the base model is prepared."""
    config = read_config(settings.home)
    forbidden = (*settings.never_learnt, *forbidden_models, *config.snapshot.get("forbidden_models", ()))
    if forbidden:
        config = replace(config, snapshot={**config.snapshot, "forbidden_models": sorted(set(forbidden))})
    return Turn(
        store=store,
        project_id=project_id,
        number=next_turn(store, project_id) if number is None else number,
        config=config,
        home=settings.home,
        base=base_folder(settings.home),
        upstream=release.live(store, project_id).upstream,
        overlap=settings.overlap,
        asking=Asking(settings.treatments, tuple(forbidden)),
        on_progress=on_progress,
    )


def read_config(home: Path) -> TurnConfig:
    """HOME/turn.json, or the defaults. Raises BadInput for an unknown name or something that is not JSON."""
    file = home / "turn.json"
    if not file.is_file():
        return TurnConfig()
    try:
        raw = json.loads(file.read_text())
    except ValueError as error:
        raise BadInput(f"{file} is not JSON ({error}); correct it.") from error
    valid = [spec.name for spec in fields(TurnConfig)]
    for name in raw:
        if name not in valid:
            raise BadInput(f"{file} sets {name!r}, which a turn does not know; valid are {', '.join(valid)}.")
    return TurnConfig(**raw)


def base_folder(home: Path) -> Path:
    """The prepared base model of a home, as `plaudit up` remembered it. Raises NotFound."""
    file = home / "base.json"
    if not file.is_file():
        raise NotFound(f"{file} does not exist: no base model is prepared here yet; start `plaudit up` once.")
    return Path(json.loads(file.read_text())["folder"])


def held_out_prompts(config: TurnConfig, frozen: Path) -> list[tuple[Sequence[Message], str]]:
    """Prompts that nothing was trained on, drawn by the seed: of the config's file, else the Snapshot's test split."""
    if config.held_out:
        file = Path(config.held_out)
        if not file.is_file():
            raise BadInput(
                f"TurnConfig.held_out is {config.held_out!r}, which is no file; give a JSONL file of prompts."
            )
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        found = [(row["messages"], str(row["family"])) for row in rows]
    else:
        found = [(list(row.messages), row.family) for row in artifacts.open_snapshot(frozen).prompts("test")]
    if not found:
        raise BadInput("There is no held-out prompt; give TurnConfig.held_out a JSONL file of {messages, family}.")
    drawn = sorted(found, key=lambda prompt: artifacts.sha256_of([config.seed, prompt[0]]))
    return drawn[: config.n_prompts]


def _do(turn: Turn, name: str, act: Step, inputs: Outputs) -> Json | Wait:
    if name in ("reward", "policy"):
        return act(turn, inputs)
    step, config = f"turn.{name}", asdict(turn.config)
    facts = {"turn": turn.number, **inputs}
    key = train.run_key(step, config, facts)
    run = train.claim(turn.store, turn.project_id, step, key, config, facts, turn.owner, utc_now(), turn.number)
    if run.state == RunState.DONE:
        return run.outputs
    try:
        with _kept(turn.store, run):
            made = act(turn, inputs)
    except PlauditError as error:
        train.fail(turn.store, run, error.message, utc_now())
        raise
    except BaseException:
        train.give_back(turn.store, run, utc_now())
        raise
    if isinstance(made, Wait):
        train.give_back(turn.store, run, utc_now())
        return made
    train.finish(turn.store, run, made, utc_now())
    return made


@contextmanager
def _kept(store: Store, run: Run) -> Iterator[None]:
    """Renew the lease while a step works in this thread; where it was lost, `finish` refuses."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(train.LEASE.total_seconds() / 3):
            try:
                train.renew(store, run, utc_now())
            except PlauditError:
                return

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _train(turn: Turn, step: Literal["reward", "ppo"], config: Json, inputs: Json) -> Json:
    run = train.run_training(
        turn.store,
        turn.project_id,
        step,
        config,
        inputs,
        turn.runs,
        None,
        turn.tell(step),
        utc_now(),
        turn=turn.number,
        program=turn.program,
        owner=turn.owner,
    )
    checkpoint = turn.store.get(Checkpoint, run.outputs["checkpoint_id"])
    return {"checkpoint_id": checkpoint.id, "folder": checkpoint.folder, "sha256": checkpoint.sha256}


def _base_release(turn: Turn) -> Release:
    found = turn.store.find(Release, project_id=turn.project_id, checkpoint_id=None)
    if not found:
        raise NotFound("No release serves the base model; start `plaudit up` once.")
    return found[-1]
