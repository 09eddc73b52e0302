"""A reward model on real pairs, Plaudit and TRL's RewardTrainer 1.16.0 in turns, update by update: pairs per second and held-out accuracy.

    python benchmarks/train_reward.py --data DIR [--weights full|lora] [--seeds 3]      whole epochs; TRL's take over an hour
    python benchmarks/train_reward.py --data DIR --steps 40                              speed alone, on as many updates

DIR holds hh-harmless/comparisons.jsonl.gz; without it the pairs are made up and only the speed means something. Seed s holds out the
prompt families of fold s mod --folds and trains one epoch on the rest. Both sides get the same token ids (TRL as chosen_ids and
rejected_ids), pairs per update, learning rate and its schedule, Adam constants and centring; no pair is left out. TRL pads each random
batch of 8; Plaudit sorts by length within its buckets and runs a pair's common prompt once. `pairs_per_s` is pairs over seconds, both
summed over all updates after the warm-up; reading and tokenizing, the held-out rows and saving are outside of it.

Accuracy: ties half; the held-out rows of all seeds together, intervals over prompt families; differences are paired. The bag of words
is fitted on the same rows. A run with --only trl can be joined with --merge. Prints one line for each 10 updates, one JSON object last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers import rl_step, turns
from peers.turns import Json, System

from plaudit.learn import baselines, validation
from plaudit.learn.pairs_file import Pair, read_pairs, read_row

MADE_UP = 400


@dataclass(frozen=True)
class Split:
    """Rows of one seed, and what both sides read of them."""

    seed: int
    train: list[Pair]
    held_out: list[Pair]
    folder: Path

    def file(self, name: str) -> str:
        return str(self.folder / name)


def main() -> None:
    parser = turns.parser(__doc__ or "")
    add = parser.add_argument
    add("--weights", choices=("full", "lora"), default="full", help="what is trained, on both sides")
    add("--seeds", type=int, default=1, help="--seed and the ones after it")
    add("--folds", type=int, default=5)
    add("--batch-pairs", type=int, default=8)
    add("--max-prompt-tokens", type=int, default=512)
    add("--max-response-tokens", type=int, default=512)
    add("--learning-rate", type=float, help="default: 1e-5 for full weights, 2e-4 for lora")
    add("--stock", action="store_true", help="also TRL with its own dtype and gradient checkpointing")
    parser.set_defaults(steps=0)
    options = parser.parse_args()
    options.learning_rate = options.learning_rate or {"full": 1e-5, "lora": 2e-4}[options.weights]
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    from plaudit.learn import base_models

    base = base_models.prepare(options.base, options.cache)
    dtype, threads = turns.choose(options, full_weights=options.weights == "full")
    pairs, real = read(options)
    workload = {
        "base": options.base,
        "data": "hh-harmless" if real else "made up",
        "weights": options.weights,
        "pairs": len(pairs),
        "updates": options.steps or "epoch",
        "batch_pairs": options.batch_pairs,
        "limits": [options.max_prompt_tokens, options.max_response_tokens],
        "learning_rate": options.learning_rate,
        "folds": options.folds,
        "seeds": list(range(options.seed, options.seed + options.seeds)),
        "dtype": dtype,
        "threads": threads,
    }
    log = turns.log_file(options.log)
    turns.say(f"{json.dumps(workload)}; what the systems print goes to {log}")
    steps: dict[str, list[Json]] = {}
    gaps: dict[str, list[list[float]]] = {}
    about: dict[str, Json] = {}
    splits = [split(options, pairs, base, seed, folder / f"seed-{seed}") for seed in workload["seeds"]]
    for part in splits:
        rows, found, about = one_seed(options, part, base, dtype, threads, log)
        for name in rows:
            steps.setdefault(name, []).extend(rows[name])
            gaps.setdefault(name, []).append(found[name])
    systems = {name: figures(rows) | turns.about_system(about[name], rows) for name, rows in steps.items()}
    for name, entry in systems.items():
        entry["gaps"] = [[round(gap, 5) for gap in one] for one in gaps[name]]
    systems = turns.merged(systems, options.merge, workload)
    accuracy = judged(systems, splits)
    for entry in systems.values():
        entry["gaps"] = entry["gaps"] if options.only else "left out; --only keeps them for --merge"
    speed = {
        f"{mine} / {theirs}": round(systems[mine]["pairs_per_s"] / systems[theirs]["pairs_per_s"], 3)
        for mine in systems
        for theirs in systems
        if mine == "plaudit" != theirs
    }
    turns.report("train_reward", workload, systems, pairs_per_s_ratios=speed, accuracy=accuracy)


def read(options: argparse.Namespace) -> tuple[list[Pair], bool]:
    """(pairs, whether people wrote them)."""
    path = options.data / "hh-harmless" / "comparisons.jsonl.gz" if options.data else None
    if path is not None and path.is_file():
        rows, rejected = read_pairs(path)
        turns.say(f"{len(rows)} pairs, {len(rejected)} lines left out (their prompts differ, or the like)")
        return rows, True
    turns.say("No --data with hh-harmless: the pairs are made up, and the accuracy says nothing.")
    rng = random.Random(0)
    made = []
    for i in range(MADE_UP):
        prompt = rl_step.made_up(i)[: rng.randrange(60, 700)]
        answers = {"chosen": rl_step.made_up(2 * i)[: rng.randrange(20, 400)], "rejected": rl_step.made_up(3 * i)[:150]}
        made.append(read_row({"prompt": prompt, **answers, "id": f"row-{i}"}, f"row-{i}"))
    return made, False


# --- one seed ---------------------------------------------------------------------------------------------------------------


def split(options: argparse.Namespace, pairs: Sequence[Pair], base: Path, seed: int, folder: Path) -> Split:
    """This seed's fold, written for both sides. With --steps the training rows are cut to as many updates, and few are held out."""
    folder.mkdir()
    fold = [int.from_bytes(hashlib.sha256(row.family.encode()).digest()[:4], "big") % options.folds for row in pairs]
    train = [row for row, place in zip(pairs, fold, strict=True) if place != seed % options.folds]
    held_out = [row for row, place in zip(pairs, fold, strict=True) if place == seed % options.folds]
    if options.steps:
        random.Random(seed).shuffle(train)
        train = train[: (options.warmup + options.steps) * options.batch_pairs]
        held_out = held_out[: 2 * options.batch_pairs]
    part = Split(seed, train, held_out, folder)
    for name, rows in (("train", train), ("held_out", held_out)):
        plain = [
            {
                "prompt": [dict(message) for message in row.messages],
                "chosen": [{"role": "assistant", "content": row.chosen}],
                "rejected": [{"role": "assistant", "content": row.rejected}],
                "id": row.preference_id,
                "family": row.family,
            }
            for row in rows
        ]
        Path(part.file(f"{name}.jsonl")).write_text("".join(json.dumps(line) + "\n" for line in plain))
        ids = token_ids(options, rows, base)
        Path(part.file(f"{name}.ids.jsonl")).write_text("".join(json.dumps(line) + "\n" for line in ids))
    return part


def token_ids(options: argparse.Namespace, rows: Sequence[Pair], base: Path) -> list[Json]:
    """The ids that Plaudit makes of these rows, as TRL takes them: prompt and answer in one."""
    from plaudit.learn.tokens import ChatTokenizer, from_text

    data = from_text(
        ChatTokenizer.load(base),
        [row.messages for row in rows],
        [[row.chosen, row.rejected] for row in rows],
        max_prompt_tokens=options.max_prompt_tokens,
        max_response_tokens=options.max_response_tokens,
    )
    whole = [data.prompt_ids[group] + ids for group, ids in zip(data.group, data.response_ids, strict=True)]
    return [{"chosen_ids": whole[i], "rejected_ids": whole[i + 1]} for i in range(0, len(whole), 2)]


def one_seed(
    options: argparse.Namespace, part: Split, base: Path, dtype: dict[str, str], threads: int, log: Path
) -> tuple[dict[str, list[Json]], dict[str, list[float]], dict[str, Json]]:
    """(measured updates, score gaps of the held-out pairs, what was loaded) of each system."""
    job = {
        "program": "reward",
        "base": str(base),
        "threads": threads,
        "seed": part.seed,
        "weights": options.weights,
        "batch_pairs": options.batch_pairs,
        "learning_rate": options.learning_rate,
        "train": part.file("train.ids.jsonl"),
        "held_out": part.file("held_out.ids.jsonl"),
    }
    systems: list[System] = []
    if options.only != "trl":
        run = write_run(options, part, base, dtype["plaudit"], threads)
        ours = job | {"folder": str(run), "dtype": dtype["plaudit"]}
        systems.append(System("plaudit", sys.executable, "worker_plaudit.py", ours, log))
    if options.only != "plaudit":
        python = turns.environment(options.peers, turns.TRL)
        for name, stock in (("trl helped", False), ("trl stock", True))[: 1 + options.stock]:
            theirs = job | {"folder": part.file(name), "dtype": dtype["trl"], "stock": stock}
            systems.append(System(name, python, "worker_trl.py", theirs, log))
    rows, ends = take_turns(systems, part, options.warmup)
    gaps = {
        name: plaudit_gaps(part, base, dtype["plaudit"], threads) if name == "plaudit" else end["gaps"]
        for name, end in ends.items()
    }
    return rows, gaps, {system.name: system.ready for system in systems}


def take_turns(systems: Sequence[System], part: Split, warmup: int) -> tuple[dict[str, list[Json]], dict[str, Json]]:
    """Update by update until every system has finished; (measured updates, what each said at its end)."""
    rows: dict[str, list[Json]] = {system.name: [] for system in systems}
    ends: dict[str, Json] = {}
    with turns.running(systems):
        while len(ends) < len(systems):
            for system in systems:
                if system.name in ends:
                    continue
                heard = system.step()
                if heard.get("finished"):
                    if heard.get("code"):
                        turns.fail(f"{system.name} ended with code {heard['code']}; see {system.log}.")
                    ends[system.name] = heard
                else:
                    rows[system.name].append(heard)
            longest = max(len(found) for found in rows.values())
            if longest % 10 == 0:
                done = ", ".join(f"{name} {sum(row['seconds'] for row in found):.1f} s" for name, found in rows.items())
                turns.say(f"seed {part.seed}, update {longest}: {done}")
    return {name: found[warmup:] for name, found in rows.items()}, ends


def write_run(options: argparse.Namespace, part: Split, base: Path, dtype: str, threads: int) -> Path:
    """Plaudit's run folder: its defaults, but for what both sides share."""
    run = part.folder / "plaudit"
    run.mkdir()
    config: Json = {
        "base": str(base),
        "preferences": part.file("train.jsonl"),
        "valid_preferences": part.file("held_out.jsonl"),
        "seed": part.seed,
        "batch_pairs": options.batch_pairs,
        "max_prompt_tokens": options.max_prompt_tokens,
        "max_response_tokens": options.max_response_tokens,
        "baselines": False,
        "validation": None,
        "optimizer": {"learning_rate": options.learning_rate},
        "compute": {"dtype": dtype, "threads": threads, "save_every": 1_000_000},
    }
    if options.weights == "full":
        config["lora"] = None
    (run / "config.json").write_text(json.dumps(config))
    return run


def plaudit_gaps(part: Split, base: Path, dtype: str, threads: int) -> list[float]:
    """Score(chosen) - score(rejected) of each held-out pair, by `python -m plaudit.learn score`."""
    run = part.folder / "score"
    run.mkdir()
    config = {
        "inputs": part.file("held_out.jsonl"),
        "base": str(base),
        "reward": str(part.folder / "plaudit" / "checkpoint"),
        "measures": ["score"],
        "max_prompt_tokens": json.loads((part.folder / "plaudit" / "config.json").read_text())["max_prompt_tokens"],
        "compute": {"dtype": dtype, "threads": threads},
    }
    (run / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "plaudit.learn", "score", str(run)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        turns.fail(f"The held-out pairs cannot be scored: {done.stderr[-2000:]}")
    scores = [json.loads(line)["score"] for line in (run / "scores.jsonl").read_text().splitlines()]
    return [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]


# --- figures ----------------------------------------------------------------------------------------------------------------


def figures(rows: Sequence[Json]) -> Json:
    """Of one system, over all seeds."""
    seconds, pairs = sum(row["seconds"] for row in rows), sum(row["pairs"] for row in rows)
    return {
        "pairs_per_s": round(pairs / seconds, 4),
        "pairs": pairs,
        "updates": len(rows),
        "seconds_of_an_update": turns.spread([row["seconds"] for row in rows]),
        "phases_s": turns.by_phase([row["phases"] for row in rows]),
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
    }


def judged(systems: dict[str, Json], splits: Sequence[Split]) -> Json:
    """Accuracy of each system and of the bag of words on the same held-out rows, and paired differences."""
    rows = [row for part in splits for row in part.held_out]
    logits = {name: np.array([gap for one in entry["gaps"] for gap in one]) for name, entry in systems.items()}
    guesses = []
    for part in splits:
        fitted = baselines.bag_of_words(validation.as_pairs(part.train, False))
        guesses.append(fitted(validation.as_pairs(part.held_out, False)) - 0.5)
    logits["bag of words"] = np.concatenate(guesses)
    out: Json = {name: validation.accuracy(found, rows) | {"rows": len(rows)} for name, found in logits.items()}
    out["paired"] = {
        f"plaudit - {other}": validation.difference(logits["plaudit"], found, rows)
        for other, found in logits.items()
        if "plaudit" in logits and other != "plaudit"
    }
    return out


if __name__ == "__main__":
    main()
