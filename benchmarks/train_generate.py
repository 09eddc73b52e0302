"""Generation: 32 samples x 64 new tokens, Plaudit's decode loop and transformers' `model.generate` in turns, and the floor of this machine.

    python benchmarks/train_generate.py [--data DIR] [--prompts 4 --samples 8 --prompt-tokens 96 --new-tokens 64]

The floor is a roofline count: for each product, attention and the sampling the larger of FLOPs over the machine's FLOP/s and bytes over
its bytes/s, added up. Both rates are measured in every round, beside the generations (a 2048 x 2048 product in the same dtype; reading
and copying 256 MB), and the best of all rounds counts, so the floor is a low one. It takes what any exact decoder of fp32 or bf16 weights
with a cache must do: the prompts once, then for every new token all weights once, each row's own keys and values, the logits written and
read. Nothing is overlapped and no cache holds the weights from one step to the next.
Prints one line a round and one JSON object last.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peers import rl_step, turns
from peers.turns import Json, System


def main() -> None:
    parser = turns.parser(__doc__ or "")
    add = parser.add_argument
    add("--prompts", type=int, default=4, help="different prompts")
    add("--samples", type=int, default=8, help="responses to each")
    add("--prompt-tokens", type=int, default=96)
    add("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        base = rl_step.endless_base(options, Path(folder) / "base")
        dtype, threads = turns.choose(options)
        conversations = rl_step.read_prompts(options, base)
        ids = [rl_step.render(base, messages)[-options.prompt_tokens :] for messages in conversations]
        workload = {
            "base": options.base,
            "prompts": options.prompts,
            "samples": options.samples,
            "tokens": [options.prompt_tokens, options.new_tokens],
            "dtype": dtype,
            "threads": threads,
        }
        log = turns.log_file(options.log)
        turns.say(f"{json.dumps(workload)}; what the systems print goes to {log}")
        job = {
            "program": "generate",
            "base": str(base),
            "threads": threads,
            "samples": options.samples,
            "new_tokens": options.new_tokens,
            "stock": False,
        }
        systems = [System("rates", sys.executable, "worker_plaudit.py", job | mine(dtype, "plaudit", "rates"), log)]
        if options.only != "trl":
            systems.append(System("plaudit", sys.executable, "worker_plaudit.py", job | mine(dtype, "plaudit"), log))
        if options.only != "plaudit":
            python = turns.environment(options.peers, turns.TRL)
            systems.append(System("transformers", python, "worker_trl.py", job | mine(dtype, "trl"), log))
        rows = rounds(systems, ids, options.warmup, options.steps, options.prompts, options.seed)
        rates = rows.pop("rates")
        about = {system.name: system.ready for system in systems}
        n_tokens = options.prompts * options.samples * options.new_tokens
        wrong = {name for name, found in rows.items() for row in found if row["new_tokens"] != n_tokens}
        if wrong:
            turns.fail(f"{', '.join(sorted(wrong))} did not generate {n_tokens} tokens in every round.")
        found: dict[str, Json] = {
            name: turns.steps_of(steps, n_tokens) | turns.about_system(about[name], steps)
            for name, steps in rows.items()
        }
        found = turns.merged(found, options.merge, workload)
        best = {name: max(row[name] for row in rates) for name in ("flop_per_s", "bytes_per_s")}
        width = {"float32": 4, "bfloat16": 2}[dtype["plaudit"]]
        parts = floor(base, options.prompts, options.samples, options.prompt_tokens, options.new_tokens, width, best)
        least = sum(parts.values())
        turns.report(
            "train_generate",
            workload,
            found,
            ratios=turns.ratios(found),
            rates={name: round(value / 1e9, 1) for name, value in best.items()} | {"unit": "1e9 per second"},
            floor_s=round(least, 4),
            floor_parts_s={name: round(value, 4) for name, value in parts.items()},
            over_floor={name: round(entry["seconds"]["median"] / least, 3) for name, entry in found.items()},
        )


def mine(dtype: dict[str, str], side: str, program: str = "generate") -> Json:
    return {"dtype": dtype[side], "program": program}


def rounds(
    systems: Sequence[System], ids: Sequence[Sequence[int]], warmup: int, steps: int, n_prompts: int, seed: int
) -> dict[str, list[Json]]:
    """Measured figures of each system by round; in one round all have the same prompts."""
    rng = random.Random(seed)
    rows: dict[str, list[Json]] = {system.name: [] for system in systems}
    with turns.running(systems):
        for step in range(warmup + steps):
            prompts = rng.sample(list(ids), n_prompts)
            heard = {system.name: system.step(prompts=prompts, seed=seed + step) for system in systems}
            turns.say(f"round {step}: " + ", ".join(f"{name} {row['seconds']:.2f} s" for name, row in heard.items()))
            for name, row in heard.items():
                rows[name] += [row] if step >= warmup else []
    return rows


def floor(base: Path, p: int, n: int, t: int, r: int, width: int, rates: Json) -> dict[str, float]:
    """Least seconds by part. p prompts of t tokens, n samples of each, r new tokens, `width` bytes of a number.

    The first new token comes from the prompt's pass, so there are r - 1 steps of p * n rows.
    """
    from plaudit.learn.nets import DecoderConfig

    c = DecoderConfig.read(base)
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    products = [(c.d_model, q + 2 * kv), (q, c.d_model), (c.d_model, 2 * c.d_ff), (c.d_ff, c.d_model)]
    rows = p * n

    def seconds(flops: float, n_bytes: float) -> float:
        return float(max(flops / rates["flop_per_s"], n_bytes / rates["bytes_per_s"]))

    def layers(tokens: int) -> float:
        """All products of all layers for this many tokens at once."""
        return c.n_layers * sum(seconds(2 * tokens * a * b, width * a * b) for a, b in products)

    prompt_attention = seconds(4 * p * q * t * (t + 1) / 2, 2 * p * kv * t * width)
    steps = range(1, r)
    return {
        "prefill": layers(p * t) + c.n_layers * prompt_attention,
        "decode_products": len(steps) * layers(rows),
        "decode_attention": sum(
            c.n_layers * seconds(4 * rows * q * (t + step), 2 * rows * kv * (t + step) * width) for step in steps
        ),
        "head": seconds(2 * p * c.d_model * c.vocab_size, width * c.d_model * c.vocab_size)
        + len(steps) * seconds(2 * rows * c.d_model * c.vocab_size, width * c.d_model * c.vocab_size),
        "logits": r * seconds(0, 2 * rows * c.vocab_size * width),
    }


if __name__ == "__main__":
    main()
