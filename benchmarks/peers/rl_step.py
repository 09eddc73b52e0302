"""One reinforcement-learning step, Plaudit and TRL in turns on the same prompts and the same generated tokens: train_rloo.py, train_ppo.py.

Each system runs as its users run it, in a process of its own: it samples (timed), then all train on Plaudit's samples. Every prompt has
exactly --prompt-tokens tokens and every response all its --new-tokens: the base is given no stop token. RLOO's reward is a function of
the ids, the same in both. PPO has a reward model of the base's size on each side (Plaudit's an adapter trained for an update, TRL's a
fresh head; what they say does not matter here); TRL's value model is a second network of that size, ours a head on the policy.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import turns
from peers.turns import Json, System

SENTENCES = 12  # of made-up text for a prompt
STOPS = ("generation_config.json",)  # files of a base that name stop tokens and nothing else that is needed
REWARD_PAIRS = 4


def run(description: str, algorithm: str) -> None:
    """The whole benchmark `rloo` or `ppo`: options, measurement, report."""
    parser = turns.parser(description)
    add = parser.add_argument
    add("--weights", choices=("full", "lora"), default="lora", help="what is trained, on both sides")
    add("--frozen", type=int, default=0, metavar="N", help="also Plaudit with its N lowest layers frozen, opt-in")
    add("--stock", action="store_true", help="also TRL with its defaults for dtype and gradient checkpointing")
    add(
        "--micro",
        type=int,
        default=8,
        help="rows of TRL's micro-batches, and as many tokens in Plaudit's; 0: all at once",
    )
    add("--prompts", type=int, default={"rloo": 4, "ppo": 32}[algorithm], help="different prompts in a step")
    add("--samples", type=int, default={"rloo": 8, "ppo": 1}[algorithm], help="responses to each")
    add("--prompt-tokens", type=int, default=96)
    add("--new-tokens", type=int, default=64)
    add("--epochs", type=int, default={"rloo": 1, "ppo": 4}[algorithm], help="passes over a rollout (ppo)")
    options = parser.parse_args()
    options.algorithm = algorithm
    rows = options.prompts * options.samples
    options.micro = min(options.micro, rows)
    if options.micro and rows % options.micro:
        parser.error(f"--micro {options.micro} does not divide the {rows} rows of a step; TRL would leave some out.")
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    base = endless_base(options, folder / "base")
    dtype, threads = turns.choose(options, full_weights=options.weights == "full")
    prompts = read_prompts(options, base)
    workload = {
        "algorithm": options.algorithm,
        "weights": options.weights,
        "base": options.base,
        "prompts": options.prompts,
        "samples": options.samples,
        "tokens": [options.prompt_tokens, options.new_tokens],
        "epochs": options.epochs,
        "dtype": dtype,
        "threads": threads,
    }
    log = turns.log_file(options.log)
    turns.say(f"{json.dumps(workload)}; what the systems print goes to {log}")
    job = {
        "base": str(base),
        "threads": threads,
        "seed": options.seed,
        "weights": options.weights,
        "prompts": options.prompts,
        "samples": options.samples,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "epochs": options.epochs,
        "micro": options.micro,
        "learning_rate": 1e-6 if options.weights == "full" else 1e-5,  # the step's cost is measured, nothing is learnt
        "steps": options.warmup + options.steps,
    }
    ours, theirs = [], []
    if options.only != "trl":
        ours = plaudit_systems(options, job | {"dtype": dtype["plaudit"]}, prompts, folder, log)
    if options.only != "plaudit":
        theirs = trl_systems(options, job | {"dtype": dtype["trl"]}, folder, log)
    rows: dict[str, list[Json]] = {system.name: [] for system in (*ours, *theirs)}
    rng = random.Random(options.seed)
    ids = [render(base, messages)[-options.prompt_tokens :] for messages in prompts]
    with turns.running([*ours, *theirs]):
        for step in range(job["steps"]):
            heard = {system.name: system.step() for system in ours}
            message = {"prompts": rng.sample(ids, options.prompts)}
            if ours:
                message = {name: heard[ours[0].name][name] for name in ("prompts", "responses")}
                check_sizes(message, options)
            heard |= {system.name: system.step(**message) for system in theirs}
            turns.say(f"step {step}: " + ", ".join(f"{name} {row['seconds']:.2f} s" for name, row in heard.items()))
            for name, row in heard.items():
                rows[name] += [row] if step >= options.warmup else []
        about = {system.name: system.ready for system in (*ours, *theirs)}
    n_tokens = options.prompts * options.samples * options.new_tokens
    systems: dict[str, Json] = {
        name: turns.steps_of(found, n_tokens) | turns.about_system(about[name], found) for name, found in rows.items()
    }
    systems = turns.merged(systems, options.merge, workload)
    turns.report(f"train_{options.algorithm}", workload, systems, ratios=turns.ratios(systems))


def check_sizes(message: Json, options: argparse.Namespace) -> None:
    """Exits where a prompt or a response has another length than both sides were told."""
    found = {len(ids) for ids in message["prompts"]}, {len(ids) for ids in message["responses"]}
    if found != ({options.prompt_tokens}, {options.new_tokens}):
        turns.fail(f"The rollout has prompts of {found[0]} and responses of {found[1]} tokens.")


# --- what is measured on ----------------------------------------------------------------------------------------------------


def endless_base(options: argparse.Namespace, folder: Path) -> Path:
    """The prepared base without a stop token, so that every response has the same length in every system."""
    from plaudit.learn import base_models

    prepared = base_models.prepare(options.base, options.cache)
    folder.mkdir(parents=True)
    for path in prepared.iterdir():
        if path.name not in ("config.json", *STOPS):
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((prepared / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    # Plaudit compares its decoder with transformers' once for a base; here, not in the process whose memory is measured.
    subprocess.run(
        [sys.executable, "-c", "import sys, torch, pathlib; from plaudit.learn import decoders\n"
         "decoders.load(pathlib.Path(sys.argv[1]), torch.float32)", str(folder)],
        check=True,
    )  # fmt: skip
    return folder


def render(base: Path, messages: Sequence[Json]) -> list[int]:
    from plaudit.learn.tokens import ChatTokenizer

    return ChatTokenizer.load(base).render(messages)


def read_prompts(options: argparse.Namespace, base: Path) -> list[list[Json]]:
    """Different conversations of at least --prompt-tokens tokens: enough for every step, or as many as there are."""
    from plaudit.learn.pairs_file import read_pairs
    from plaudit.learn.tokens import ChatTokenizer

    wanted = options.prompts * (options.warmup + options.steps + 1)
    tokenizer = ChatTokenizer.load(base)
    found: list[list[Json]] = []
    path = options.data / "hh-harmless" / "comparisons.jsonl.gz" if options.data else None
    if path is not None and path.is_file():
        rows, _ = read_pairs(path)
        different = {json.dumps(row.messages): [dict(message) for message in row.messages] for row in rows}
        for messages in different.values():
            if len(found) < wanted and len(tokenizer.render(messages)) >= options.prompt_tokens:
                found.append(messages)
    if len(found) < options.prompts:
        turns.say(f"{options.data} has no prompts that are long enough; the prompts are made up.")
        found = [[{"role": "user", "content": made_up(i)}] for i in range(wanted)]
    return found


def made_up(number: int) -> str:
    """A long question, another one for each number."""
    rng = random.Random(number)
    things = "order parcel invoice password account printer train ticket recipe garden letter phone".split()
    acts = "cancel return repair find change move pay send explain check".split()
    asked = [
        f"How do I {rng.choice(acts)} my {rng.choice(things)} number {rng.randrange(1000)}?" for _ in range(SENTENCES)
    ]
    return " ".join(asked)


# --- the systems ------------------------------------------------------------------------------------------------------------


def plaudit_systems(
    options: argparse.Namespace, job: Json, prompts: Sequence[Sequence[Json]], folder: Path, log: Path
) -> list[System]:
    """Plaudit, and with --frozen a second one."""
    from plaudit.artifacts import PromptRow, write_snapshot

    rows = [PromptRow(f"p{i}", f"p{i}", "train", tuple(messages)) for i, messages in enumerate(prompts)]
    (folder / "snapshots").mkdir()
    snapshot = write_snapshot(folder / "snapshots", [], [], rows, {}, {}).folder
    program = {"rloo": "grpo", "ppo": "ppo"}[options.algorithm]
    systems = []
    for first_layer in {0: None, options.frozen: None}:
        name = f"plaudit frozen {first_layer}" if first_layer else "plaudit"
        run = folder / name.replace(" ", "-")
        run.mkdir()
        reward: list[Json] = [{"kind": "function", "name": "distinct", "function": "peers.turns:distinct"}]
        if program == "ppo":
            reward[0]["weight"] = 0.0  # it only shows the tokens
            checkpoint = reward_checkpoint(job, first_layer, folder / f"reward-{first_layer}")
            reward.append({"kind": "model", "name": "model", "checkpoints": [checkpoint]})
        config = rl_config(options, job, str(snapshot), reward, first_layer)
        (run / "config.json").write_text(json.dumps(config))
        ours = job | {"program": program, "folder": str(run)}
        systems.append(System(name, sys.executable, "worker_plaudit.py", ours, log))
    return systems


def rl_config(options: argparse.Namespace, job: Json, snapshot: str, reward: list[Json], first_layer: int) -> Json:
    """What `python -m plaudit.learn` reads: its defaults, but for what the workload says and for early ends."""
    config: Json = {
        "snapshot": snapshot,
        "base": job["base"],
        "reward": reward,
        "seed": job["seed"],
        "first_layer": first_layer,
        "steps": job["steps"] + 1,  # the last one is never asked for
        "sampling": {
            "prompts_per_step": options.prompts,
            "samples_per_prompt": options.samples,
            "max_new_tokens": options.new_tokens,
            "max_prompt_tokens": options.prompt_tokens,
        },
        "kl": {"coef": 0.05, "budget": None},
        "truncation": "none",
        "optimizer": {"learning_rate": job["learning_rate"]},
        "compute": {
            "dtype": job["dtype"],
            "threads": job["threads"],
            "micro_tokens": (options.micro or options.prompts * options.samples)  # as many as the peer's
            * (options.prompt_tokens + options.new_tokens),
        },
    }
    if options.weights == "full":
        config["lora"] = None
    if options.algorithm == "ppo":
        config |= {"epochs": options.epochs, "minibatches": 1, "target_approx_kl": None}
    return config


def reward_checkpoint(job: Json, first_layer: int, run: Path) -> str:
    """A reward Checkpoint on this base, trained for an update or two."""
    run.mkdir()
    lines = [
        {"prompt": made_up(i), "chosen": f"Yes, and number {i} is easy.", "rejected": f"No. {i}"}
        for i in range(REWARD_PAIRS)
    ]
    (run / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "base": job["base"],
        "preferences": str(run / "pairs.jsonl"),
        "valid_fraction": 0,
        "first_layer": first_layer,
        "baselines": False,
        "validation": None,
        "compute": {"dtype": job["dtype"], "threads": job["threads"]},
    }
    (run / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "plaudit.learn", "reward", str(run)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        turns.fail(f"No reward model: {done.stderr[-2000:]}")
    return str(run / "checkpoint")


def trl_systems(options: argparse.Namespace, job: Json, folder: Path, log: Path) -> list[System]:
    """TRL helped, and with --stock as it comes."""
    python = turns.environment(options.peers, {"rloo": turns.TRL, "ppo": turns.TRL_WITH_PPO}[options.algorithm])
    systems = []
    for name, stock in (("trl helped", False), ("trl stock", True))[: 1 + options.stock]:
        run = folder / name.replace(" ", "-")
        theirs: dict[str, Any] = job | {"program": options.algorithm, "stock": stock, "folder": str(run)}
        systems.append(System(name, python, "worker_trl.py", theirs, log))
    return systems
