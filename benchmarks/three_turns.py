"""Three turns of the loop in a row on the tiny base: does each turn's policy please the hidden preference more, and how far from the base is it?

    python benchmarks/three_turns.py [--seeds 1] [--seed 0] [--turns 3] [--prompts 60]

The real loop (`loop.pipeline.run_turn`) with the real programs and a policy server; only the people are simulated: eight of the demo's crowd
(six careful, two noisy), who follow a guideline that no other part sees. Turn 1 asks about the base's answers, each later turn
about those of the turn's policy before it, so the third learns from feedback about the second's. Older Preferences are replayed: a
Snapshot holds all of them, and the reward model reads them with the declared weight of their source. Every policy starts from the base, whose
KL budget therefore holds for the whole way.

Prints a line a turn and one JSON object last. Of each turn: what the new answers were about, Preferences in the Snapshot and those of earlier turns
among them, `hidden` (the guideline's mean utility, 0..1, of the candidate's answers to held-out prompts, and of the base's, with the standard
error of the paired difference), what the crowd said of both, and `kl` (nats per answer, candidate to the original base). Figures of simulated
people on a toy model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit import artifacts, backends, simulate
from plaudit.domain import (
    Checkpoint,
    CompletionStatus,
    Evaluation,
    EvaluationItem,
    Interaction,
    Project,
    ResponseText,
    TrainingUse,
    utc_now,
)
from plaudit.loop import annotate, collect, evaluate, govern, pipeline, planning, release
from plaudit.loop.pipeline import Turn, TurnConfig
from plaudit.settings import Settings
from plaudit.store.database import Store, open_store

TOKENS = 16
CROWD = [20.0] * 6 + [8.0] * 2  # log-odds for a difference of 1 in utility: the careful and the noisy of simulate.crowd
SOURCES = [{"source": "annotation", "weight": 1.0}, {"source": "edit", "weight": 0.5}]
REWARD = {
    "lora": {"rank": 8, "alpha": 16.0},
    "pooling": "both",
    "epochs": 4,
    "max_prompt_tokens": 64,
    "max_response_tokens": TOKENS,
    "optimizer": {"learning_rate": 3e-3, "head_learning_rate": 1e-2},
    "source_weights": SOURCES,
    "compute": {"save_every": 5},
}
PPO: dict[str, Any] = {
    "lora": {"rank": 8, "alpha": 16.0},
    "steps": 10,
    "epochs": 2,
    "minibatches": 2,
    "lam": 1.0,
    "sampling": {"prompts_per_step": 16, "samples_per_prompt": 4, "max_new_tokens": TOKENS, "max_prompt_tokens": 64},
    "optimizer": {"learning_rate": 1e-3},
    "kl": {"coef": 0.2, "budget": 6.0},
    "truncation": "none",
}


@dataclass(frozen=True)
class World:
    """One loop and the people around it."""

    store: Store
    project: Project
    home: Path
    base: Path
    url: str
    population: simulate.Population
    seed: int


@contextmanager
def serving(base: Path) -> Iterator[str]:
    """A policy server on the base; its address."""
    command = [sys.executable, "-m", "plaudit.policy_server", "--base", str(base), "--name", "tiny", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.startswith("ready "):
            sys.exit(f"The policy server did not start: {line!r}")
        yield line.split()[1]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def ask(world: World, turn: int, model: str, checkpoint_id: str | None, prompts: list[simulate.Prompt]) -> None:
    """Users ask `model`; a second sample of each answer makes a training Comparison."""
    conversations = [prompt.messages for prompt in prompts]
    drawn = backends.sample(
        world.url, model, conversations, n=2, max_tokens=TOKENS, temperature=1.0, seed=1000 * world.seed + turn
    )
    asked: list[Interaction] = []
    extra: dict[str, list[ResponseText]] = {}
    for i, (prompt, answer) in enumerate(zip(prompts, drawn, strict=True)):
        interaction = collect.begin_interaction(
            world.project,
            messages=prompt.messages,
            actor=f"user-{turn}-{i}",
            conversation_id=None,
            family=prompt.family,
            training_use=TrainingUse.ALLOWED,
            attributes={},
            sampling={},
            assignment=None,
            config_version=1,
            now=utc_now(),
        )
        shown, other = (ResponseText(one.text or "-", one.finish_reason) for one in answer.choices)
        completion, responses = collect.finish_interaction(
            interaction,
            texts=[shown],
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
        world.store.add(interaction, completion, *responses)
        asked.append(interaction)
        extra[interaction.id] = [other]
    planning.plan_comparisons(
        world.store,
        world.project.id,
        asked,
        extra,
        model=model,
        checkpoint_id=checkpoint_id,
        batch=f"traffic-{turn}",
        now=utc_now(),
    )


def work(world: World) -> None:
    """The crowd answers everything that is open."""
    for number, sharpness in enumerate(CROWD):
        who = govern.person(world.store, world.project.id, f"annotator {number}", utc_now()).id
        while (loan := annotate.lend(world.store, world.project.id, who, 60, utc_now())) is not None:
            luck = random.Random(f"{world.seed}/{number}/{loan.comparison.id}")
            messages = list(loan.comparison.messages)
            liked = [world.population.guideline_utility(messages, one.text) for one in loan.responses[:2]]
            first = luck.random() < 1 / (1 + math.exp(-sharpness * (liked[0] - liked[1])))
            choice = loan.responses[0 if first else 1].id
            body = {"lease_id": loan.lease.id, "verdict": "prefer", "choice": choice, "seconds": 5.0}
            annotate.answer(world.store, world.project.id, who, body, utc_now())


def one_turn(
    world: World, number: int, model: str, checkpoint_id: str | None, prompts: list[simulate.Prompt]
) -> dict[str, Any]:
    """Traffic about `model`, then the loop's turn to its verdict; returns its row."""
    started = time.perf_counter()
    before = {row.preference_id for row in _preferences(world, number - 1)}
    ask(world, number, model, checkpoint_id, prompts)
    work(world)
    config = TurnConfig(
        reward=REWARD,
        ppo=PPO,
        seed=world.seed,
        held_out=str(world.home / "held-out.jsonl"),
        max_tokens=TOKENS,
        temperature=1.0,
    )
    turn = Turn(world.store, world.project.id, number, config, world.home, world.base, world.url)
    report = pipeline.run_turn(turn)
    while report.waiting is not None:
        work(world)
        report = pipeline.run_turn(turn)
    (world.home / f"turn-{number}.json").write_text(json.dumps(report.outputs["snapshot"]))
    made = report.outputs["policy"]
    said = world.store.get(Evaluation, report.outputs["verdict"]["evaluation_id"]).figures
    items = evaluate.stored_items(world.store, world.project.id, report.outputs["questions"]["batch"])
    now = _preferences(world, number)
    return {
        "turn": number,
        "about": model,
        "model": report.outputs["candidate"]["model"],
        "checkpoint_id": made["checkpoint_id"],
        "n_preferences": len(now),
        "n_replayed": sum(row.preference_id in before for row in now),
        **_hidden(world, items),
        "win_rate": said["win_rate"]["mean"],
        "kl": said["kl"]["mean"],
        "gate": report.outputs["verdict"]["gate"],
        "ppo": {
            name: world.store.get(Checkpoint, made["checkpoint_id"]).metrics[name] for name in ("kl", "stop", "steps")
        },
        "seconds": round(time.perf_counter() - started, 1),
    }


def _hidden(world: World, items: list[EvaluationItem]) -> dict[str, float]:
    """Mean utility of the candidate's and of the base's answers, and the standard error of the paired difference."""
    like = world.population.guideline_utility
    mine = [like(list(item.messages), item.first.text) for item in items]
    theirs = [like(list(item.messages), item.second.text) for item in items]
    gains = [one - other for one, other in zip(mine, theirs, strict=True)]
    return {
        "hidden": statistics.mean(mine),
        "hidden_base": statistics.mean(theirs),
        "hidden_gain_se": statistics.stdev(gains) / len(gains) ** 0.5,
    }


def _preferences(world: World, number: int) -> list[artifacts.PreferenceRow]:
    """Rows of a turn's Snapshot; none before the first."""
    note = world.home / f"turn-{number}.json"
    return artifacts.open_snapshot(Path(json.loads(note.read_text())["folder"])).preferences() if number else []


def one_seed(seed: int, n_turns: int, n_prompts: int) -> list[dict[str, Any]]:
    """The rows of one loop from an empty home on."""
    with tempfile.TemporaryDirectory(prefix="plaudit-turns-") as folder:
        home = Path(folder)
        prepare = [sys.executable, "-m", "plaudit.learn", "prepare", "tiny", str(home / "cache")]
        done = subprocess.run(prepare, check=True, capture_output=True, text=True)
        base = Path(done.stdout.strip().splitlines()[-1])
        prompts = simulate.load_prompts("bytes")
        held_out = [prompt for prompt in prompts if prompt.pool == "held-out"][:n_prompts]
        lines = [json.dumps({"messages": prompt.messages, "family": prompt.family}) for prompt in held_out]
        (home / "held-out.jsonl").write_text("\n".join(lines) + "\n")
        training = [prompt for prompt in prompts if prompt.pool == "training"]
        random.Random(seed).shuffle(training)
        store = open_store(Settings(home=home).database_url)
        project = govern.ensure_project(store, utc_now())
        rows: list[dict[str, Any]] = []
        with serving(base) as url:
            release.register_base(store, project.id, "tiny", url, utc_now())
            world = World(store, project, home, base, url, simulate.load_population("bytes"), seed)
            model, checkpoint_id = "tiny", None
            for number in range(1, n_turns + 1):
                size = len(training) // n_turns
                row = one_turn(world, number, model, checkpoint_id, training[(number - 1) * size : number * size])
                model, checkpoint_id = row["model"], row["checkpoint_id"]
                rows.append(row)
                gain = f"{row['hidden'] - row['hidden_base']:+.3f} +- {row['hidden_gain_se']:.3f}"
                print(
                    f"seed {seed}  turn {number}  about {row['about']:16} {row['n_preferences']} Preferences, {row['n_replayed']} replayed  "
                    f"hidden {row['hidden']:.3f} ({gain})  KL to the base {row['kl']:.2f}  {row['gate']}",
                    flush=True,
                )
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=60, help="held-out prompts that are answered and judged")
    parser.add_argument("--data", help="accepted for uniformity; this benchmark reads no data")
    parser.add_argument("--steps", type=int, default=PPO["steps"], help="rollouts of PPO in a turn")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    PPO["steps"] = arguments.steps
    runs = [
        one_seed(seed, arguments.turns, arguments.prompts)
        for seed in range(arguments.seed, arguments.seed + arguments.seeds)
    ]
    mean = [
        {name: statistics.mean(rows[k][name] for rows in runs) for name in ("hidden", "hidden_base", "win_rate", "kl")}
        for k in range(arguments.turns)
    ]
    shown = {"hardware": platform.machine(), "python": platform.python_version(), "n_seeds": arguments.seeds}
    print(json.dumps({**shown, "sources": SOURCES, "turns": mean, "runs": runs}))


if __name__ == "__main__":
    main()
