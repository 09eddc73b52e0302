"""`best_of`: sample n responses to each prompt and keep the one that the reward scores highest. No weights change.

What a policy could gain from this reward at a small KL, and a source of responses to imitate (sft). The distribution of the best of n has
KL <= ln n - (n-1)/n to the policy that samples (Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy").

RUN_DIR/best.jsonl has one line for each prompt, in the input's order:

    id, messages    the prompt's (its line number where a file gives none)
    response        text of the best one; finished: it ended by itself; n_tokens: EOS included
    score           its score; scores: those of all n, in the order sampled; index: its place among them
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.artifacts import open_snapshot, write_atomic
from plaudit.errors import BadInput, NotFound
from plaudit.learn import checkpoint
from plaudit.learn.composed import ComposedReward
from plaudit.learn.configs import BestOfConfig
from plaudit.learn.experience import Prompt, run_trunks, sample
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.policies import choose_dtype, load_base
from plaudit.learn.readers import Readers
from plaudit.learn.rollout import Sampling
from plaudit.learn.run_folder import Clock, RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer, pack

ROWS = 128  # responses between two writes; a killed run repeats at most these


@dataclass(frozen=True)
class Sampler:
    """What a block needs; only the reward's normaliser changes."""

    config: BestOfConfig
    decoder: Decoder
    policy: Adapter | None
    reward: ComposedReward
    tokenizer: ChatTokenizer


def select(config: BestOfConfig, run: RunFolder) -> dict[str, Any]:
    """Write best.jsonl and result.json; returns the latter. Raises NotFound, BadInput on prompts; PlauditErrors where parts do not fit."""
    output, base = run.folder / "best.jsonl", Path(config.base)
    prompts = read_prompts(config)
    decoder, tokenizer = load_base(config.base, 0, choose_dtype(config.compute)), ChatTokenizer.load(base)
    policy = checkpoint.load_policy(Path(config.policy), base) if config.policy else None
    readers = Readers([Path(other) for other in config.bases], base, decoder.dtype, config.compute.micro_tokens)
    reward = ComposedReward.load(config.reward, base, decoder, tokenizer, readers=readers)
    sampler = Sampler(config, decoder, policy, reward, tokenizer)
    size = max(1, ROWS // config.n)
    n_blocks = -(-len(prompts) // size)
    for block in range(resume(output, run, reward), n_blocks):
        clock = Clock(run)
        lines = keep_best(sampler, prompts[block * size : (block + 1) * size], block)
        with output.open("a") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        best, mean = _mean_se([line["score"] for line in lines]), _mean_se([_mean(line["scores"]) for line in lines])
        n = len(lines) * config.n
        run.log(block + 1, n_blocks, "best_of", clock.total, score=best[0], score_mean=mean[0], n=n)
        state = {"blocks": block + 1, "lines": block * size + len(lines), "reward": reward.state()}
        checkpoint.save_state(run.state, state)
    result = summarise(config, read_jsonl(output)) | {"reward": reward.lineage()}
    run.write_result(result)
    return result


def read_prompts(config: BestOfConfig) -> list[dict[str, Any]]:
    """Rows with `id` and `messages`. Raises NotFound, BadInput naming the line, or where there is no prompt at all."""
    if config.snapshot:
        rows = [
            {"id": row.prompt_id, "messages": list(row.messages)}
            for row in open_snapshot(Path(config.snapshot)).prompts(config.split)
        ]
    else:
        rows = _read_file(Path(config.inputs))
    if not rows:
        place = f"the {config.split} split of {config.snapshot}" if config.snapshot else config.inputs
        raise BadInput(f"There is no prompt in {place}; name another split, Snapshot or file.")
    return rows


def _read_file(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise NotFound(f"{path} does not exist; `inputs` names a JSONL file of prompts.")
    rows = []
    for number, line in enumerate(path.read_text().split("\n"), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            messages = raw["messages"]
            if not messages or not all(isinstance(message, dict) for message in messages):
                raise ValueError("messages must be a list of objects, not empty")
            rows.append({"id": raw.get("id", number), "messages": messages})
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f'{path} line {number} is no prompt ({error!r}); it needs "messages".') from error
    return rows


def resume(output: Path, run: RunFolder, reward: ComposedReward) -> int:
    """Blocks that a killed run has finished; lines and metrics after them are cut off."""
    state = checkpoint.load_state(run.state) or {"blocks": 0, "lines": 0}
    if "reward" in state:
        reward.restore(state["reward"])
    kept = read_jsonl(output)[: state["lines"]]
    write_atomic(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    run.resume_metrics(state["blocks"])
    blocks: int = state["blocks"]
    return blocks


def keep_best(sampler: Sampler, rows: Sequence[dict[str, Any]], block: int) -> list[dict[str, Any]]:
    """One line of best.jsonl for each of these prompts; of equal scores the one sampled first."""
    config, tokenizer = sampler.config, sampler.tokenizer
    prompts = [
        Prompt(tuple(row["messages"]), tokenizer.render(row["messages"])[-config.max_prompt_tokens :]) for row in rows
    ]
    choice = Sampling(config.max_new_tokens, config.temperature, seed=config.seed * 1_000_003 + block)
    sampled = sample(sampler.decoder, sampler.policy, prompts, config.n, choice)
    micro_tokens = config.compute.micro_tokens
    trunks = run_trunks(sampler.decoder, sampled, sampler.reward.depths, micro_tokens)
    packs = pack(sampled, None, micro_tokens)
    total = sampler.reward.score(sampled, packs, trunks, [prompt.messages for prompt in prompts]).total.tolist()
    lines = []
    for g, row in enumerate(rows):
        here = range(g * config.n, (g + 1) * config.n)
        scores = [total[i] - config.missing_eos_penalty * (not sampled.finished[i]) for i in here]
        index = scores.index(max(scores))
        ids = sampled.response_ids[here[index]]
        lines.append(
            {
                "id": row["id"],
                "messages": row["messages"],
                "response": tokenizer.decode(ids),
                "finished": sampled.finished[here[index]],
                "n_tokens": len(ids),
                "score": scores[index],
                "scores": scores,
                "index": index,
            }
        )
    return lines


def summarise(config: BestOfConfig, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over prompts with their standard errors: of the best, of one sample, of the gain; and the best of fewer, from the same samples."""
    (best, best_se), (mean, mean_se) = (
        _mean_se(values) for values in ([line["score"] for line in lines], [_mean(line["scores"]) for line in lines])
    )
    gain, gain_se = _mean_se([line["score"] - _mean(line["scores"]) for line in lines])
    sizes = sorted({*(2**i for i in range(config.n.bit_length())), config.n})
    curve = [
        {
            "n": k,
            "score": _mean([expected_best(line["scores"], k) for line in lines]),
            "kl_bound": kl_bound(k),
        }
        for k in sizes
    ]
    return {
        "program": "best_of",
        "n": config.n,
        "n_prompts": len(lines),
        "score": best,
        "score_se": best_se,
        "score_mean": mean,
        "score_mean_se": mean_se,
        "gain": gain,
        "gain_se": gain_se,
        "kl_bound": kl_bound(config.n),
        "curve": curve,
    }


def kl_bound(n: int) -> float:
    """ln n - (n-1)/n nats: the most that the best of n responses is away from the policy that samples."""
    return math.log(n) - (n - 1) / n


def expected_best(scores: Sequence[float], k: int) -> float:
    """Mean of the maximum over all subsets of k of these n scores: an unbiased estimate of the best of k.

    The i-th smallest is the maximum of C(i-1, k-1) of the C(n, k) subsets.
    """
    n = len(scores)
    return sum(
        score * (math.comb(i - 1, k - 1) / math.comb(n, k)) for i, score in enumerate(sorted(scores), start=1) if i >= k
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; 0 for one value."""
    n, mean = len(values), _mean(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n * max(n - 1, 1)))
