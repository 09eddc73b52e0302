"""Steps 5 to 10: the turn's own pipeline (Preferences, Snapshot, reward model, PPO, questions, verdict), step by step, and, after the gate,
the hidden figures and the baselines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from plaudit import backends, simulate
from plaudit.artifacts import seed_of, write_atomic
from plaudit.demo_steps import gather
from plaudit.demo_steps.gather import Tell
from plaudit.demo_steps.house import OWNER, Demo, once
from plaudit.demo_steps.plan import ppo_config, reward_config, sft_config
from plaudit.domain import Checkpoint, Evaluation, EvaluationItem, Json, Message, Release, Run, SnapshotRecord, utc_now
from plaudit.loop import annotate, evaluate, pipeline, train
from plaudit.loop.pipeline import Turn, TurnConfig, TurnReport
from plaudit.openai_protocol import Answer
from plaudit.stats.intervals import paired_difference


@dataclass(frozen=True)
class Trained:
    """A finished training Run."""

    run: Run
    checkpoint: Checkpoint
    result: Json  # result.json with its curves

    @property
    def folder(self) -> Path:
        return Path(self.checkpoint.folder).absolute()


@dataclass(frozen=True)
class Judged:
    """What step 9 found."""

    release: Release
    evaluation: Evaluation
    batch: str


def configure(demo: Demo) -> None:
    """HOME/turn.json and the held-out prompts: what this turn and every later one do, also those of `plaudit loop run`."""
    pool = demo.pool("held-out")
    file = demo.settings.home / "held-out.jsonl"
    rows = [{"messages": prompt.messages, "family": prompt.family} for prompt in pool]
    write_atomic(file, "".join(json.dumps(row) + "\n" for row in rows))
    plan, options = demo.options.plan, demo.options
    config = TurnConfig(
        reward=reward_config(options),
        ppo=ppo_config(options),
        seed=options.seed,
        held_out=str(file),
        n_prompts=min(plan.n_evaluation, len(pool)),
        max_tokens=plan.max_tokens,
        temperature=plan.temperature,
        snapshot={"group_by": [gather.GROUP]},
    )
    write_atomic(demo.settings.home / "turn.json", json.dumps(asdict(config), indent=1) + "\n")


def run_until(demo: Demo, step: str | None, tell: Tell) -> TurnReport:
    """The demo's turn up to a step of `pipeline.STEPS`; what is done already is not done again."""
    turn = Turn(
        store=demo.store,
        project_id=demo.project_id,
        number=1,
        config=pipeline.read_config(demo.settings.home),
        home=demo.settings.home,
        base=demo.base,
        upstream=demo.settings.policy_url,
        overlap=demo.settings.overlap,
        owner=OWNER,
        on_progress=lambda _, row: tell(row["step"], row["of"]),
    )
    return pipeline.run_turn(turn, step)


def agree(demo: Demo, tell: Tell) -> Json:
    """Step 5: votes become Preferences. The report of how annotators agree is taken now, before later turns add answers."""
    run_until(demo, "preferences", tell)

    def report() -> Json:
        found = annotate.aggregate(demo.store, demo.project_id, batch=gather.TURN, now=utc_now())
        plain: Json = json.loads(json.dumps(asdict(found)))
        return plain

    return once(demo, "agree", report)


def freeze(demo: Demo, tell: Tell) -> SnapshotRecord:
    """Step 6."""
    return demo.store.get(SnapshotRecord, run_until(demo, "snapshot", tell).outputs["snapshot"]["snapshot_id"])


def train_reward(demo: Demo, tell: Tell) -> Trained:
    """Step 7."""
    return _trained(demo, run_until(demo, "reward", tell).outputs["reward"]["checkpoint_id"])


def train_policy(demo: Demo, tell: Tell) -> Trained:
    """Step 8."""
    return _trained(demo, run_until(demo, "policy", tell).outputs["policy"]["checkpoint_id"])


def _trained(demo: Demo, checkpoint_id: str) -> Trained:
    checkpoint = demo.store.get(Checkpoint, checkpoint_id)
    run = demo.store.get(Run, str(checkpoint.run_id))
    return Trained(run, checkpoint, json.loads((Path(str(run.folder)) / "result.json").read_text()))


def judge(demo: Demo, tell: Tell) -> Judged:
    """Step 9: answers of candidate and base to held-out prompts, blind judges over HTTP, measures, the safety suite, the gate."""
    run_until(demo, "questions", tell)
    with ThreadPoolExecutor(1) as pool:  # while the answers are measured, which is another process
        judged = pool.submit(gather.work_off, demo, demo.crowd, tell)
        run_until(demo, "measures", lambda done, of: None)  # noqa: ARG005  the bar is the judges'
        judged.result()
    done = run_until(demo, None, tell).outputs
    return Judged(
        demo.store.get(Release, done["candidate"]["release_id"]),
        demo.store.get(Evaluation, done["verdict"]["evaluation_id"]),
        done["questions"]["batch"],
    )


def sampling(demo: Demo) -> dict[str, Any]:
    """The decoding of every answer that is compared."""
    plan = demo.options.plan
    return {"max_tokens": plan.max_tokens, "temperature": plan.temperature, "concurrency": plan.concurrency}


# --- the hidden figures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hidden:
    """Utilities of simulated people for answers to the held-out prompts, one number per prompt."""

    users: tuple[float, ...]
    guideline: tuple[float, ...]

    @staticmethod
    def of(demo: Demo, conversations: Sequence[Sequence[Message]], texts: Sequence[str]) -> Hidden:
        """Averaged over held-out users: people who took no other part in the demo."""
        people = [f"held-out-user-{at:03d}" for at in range(demo.options.plan.n_hidden_users)]
        users, guideline = simulate.hidden_utilities(demo.population, people, conversations, texts)
        return Hidden(tuple(users), tuple(guideline))


def compare(candidate: Sequence[float], base: Sequence[float]) -> Json:
    """{base, candidate, difference}: means, and the difference paired by prompt with its interval."""
    difference = paired_difference(candidate, base).to_dict()
    return {"base": mean(base), "candidate": mean(candidate), "difference": difference}


def hidden_figures(demo: Demo, judged: Judged) -> dict[str, Any]:
    """Step 10, after the gate: {users, guideline} figures and the utilities behind them. Only the report ever holds them."""
    items = evaluate.stored_items(demo.store, demo.project_id, judged.batch)
    conversations = [item.messages for item in items]
    candidate = Hidden.of(demo, conversations, [item.first.text for item in items])
    base = Hidden.of(demo, conversations, [item.second.text for item in items])
    return {
        "users": compare(candidate.users, base.users),
        "guideline": compare(candidate.guideline, base.guideline),
        "candidate": candidate,
        "base": base,
        "items": items,
    }


# --- baselines -----------------------------------------------------------------------------------------------------------


def baselines(demo: Demo, record: SnapshotRecord, reward: Trained, hidden: Mapping[str, Any], tell: Tell) -> Json:
    """What simpler uses of the same data reach on the same prompts: {rows, headroom}. The hidden utility chooses in best-of-16 alone,
    which is no method but the ceiling."""
    items: list[EvaluationItem] = hidden["items"]
    base_model = items[0].second_model
    conversations = [list(item.messages) for item in items]
    url = demo.settings.policy_url
    base_utility: Hidden = hidden["base"]

    def draw(model: str, asked: Sequence[Sequence[Message]], n: int, nth: int) -> list[Answer]:
        progress: Callable[[int], None] = lambda count: tell(count, len(asked))  # noqa: E731
        seed = seed_of(demo.options.seed, nth)  # each baseline draws independently of the evaluation and of the others
        return backends.sample(url, model, asked, n, progress=progress, seed=seed, **sampling(demo))

    def row(label: str, texts: Sequence[str]) -> Json:
        utility = Hidden.of(demo, conversations, texts).users
        figures = compare(utility, base_utility.users)
        return {
            "label": label,
            "utility": figures["candidate"],
            "difference": figures["difference"],
            "under_ppo": compare(hidden["candidate"].users, utility)["difference"],
            "words": mean(len(text.split()) for text in texts),
        }

    system = {"role": "system", "content": demo.options.plan.system_prompt}
    prompted = draw(base_model, [[system, *asked] for asked in conversations], 1, 1)
    several = draw(base_model, conversations, 16, 2)
    four = [[choice.text for choice in answer.choices[:4]] for answer in several]
    rows = [
        {
            "id": place,
            "messages": conversations[place],
            "responses": texts,
            "finished": [choice.finish_reason == "stop" for choice in several[place].choices[:4]],
        }
        for place, texts in enumerate(four)
    ]
    config = {"base": str(demo.base), "reward": str(reward.folder), "measures": ["score"]}
    scores = train.read_scores(
        pipeline.score(demo.store, demo.project_id, demo.settings.home, "best-of-4", rows, config, OWNER)
    )
    by_prompt: dict[int, dict[int, float]] = {}
    for line in scores:
        by_prompt.setdefault(line["id"], {})[line["index"]] = line["score"]
    best = [texts[max(by_prompt[place], key=by_prompt[place].__getitem__)] for place, texts in enumerate(four)]
    imitator = train_sft(demo, record, tell)
    backends.load_adapter(url, "sft", str(imitator.folder))
    imitated = draw("sft", conversations, 1, 3)
    backends.unload_adapter(url, "sft")
    ceiling = [
        max(choices, key=lambda text, asked=asked: Hidden.of(demo, [asked], [text]).users[0])  # type: ignore[misc]
        for asked, choices in zip(conversations, ([c.text for c in one.choices] for one in several), strict=True)
    ]
    top = row("best of 16 by the hidden utility", ceiling)
    gain = hidden["users"]["candidate"] - hidden["users"]["base"]
    room = top["utility"] - hidden["users"]["base"]
    found = {
        "rows": [
            row("PPO", [item.first.text for item in items]),
            row("one-line system prompt", [answer.choices[0].text for answer in prompted]),
            row("best of 4 by the reward model", best),
            row("SFT on the chosen answers", [answer.choices[0].text for answer in imitated]),
            top,
        ],
        "headroom_fraction": gain / room if room > 0 else None,
    }
    return {**found, "says": say_baselines(found)}


def train_sft(demo: Demo, record: SnapshotRecord, tell: Tell) -> Trained:
    """The chosen answers of the same Preferences, imitated."""
    config = sft_config(demo.options, Path(record.folder).absolute(), demo.base)
    run = train.run_training(
        demo.store,
        demo.project_id,
        "sft",
        config,
        {"snapshot_id": record.id},
        demo.settings.home / "runs",
        None,
        lambda row: tell(row["step"], row["of"]),
        utc_now(),
        owner=OWNER,
    )
    return _trained(demo, run.outputs["checkpoint_id"])


def say_baselines(found: Json) -> str:
    """How PPO stands to each, by the paired interval; where it loses it says so."""
    groups: dict[str, list[str]] = {"above": [], "below": [], "not distinguishable from": []}
    for row in found["rows"][1:-1]:
        gap = row["under_ppo"]
        where = "above" if gap["low"] > 0 else "below" if gap["high"] < 0 else "not distinguishable from"
        groups[where].append(row["label"])
    said = [f"{where} {' and '.join(names)}" for where, names in groups.items() if names]
    return (
        f"By simulated users' utility PPO is {'; '.join(said)}. Best of 4 costs four answers and a scoring for each one shown; "
        "best of 16 by the hidden utility is a ceiling, no method."
    )
