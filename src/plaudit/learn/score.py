"""`score`: measure given responses. What evaluation and monitoring run, so that no service needs torch.

Input lines: {"id"?: any, "messages": [...], "response": text or "responses": [texts], "finished"?: bool or [bools], "by_policy"?: bool or
[bools]}; a response that did not end by itself (`finished` false) gets no EOS, one that the policy did not write (`by_policy` false) no kl. Or
pairs of chosen and rejected answers (pairs_file.py), which are two responses each:
result.json then says how often chosen scores higher, by slice, and rejected.jsonl which lines could not be read.
RUN_DIR/scores.jsonl has one line for each response, in the input's order:

    id, index       the input's id (its line number where it has none), which of its responses (of a pair: 0 chosen, 1 rejected)
    n_tokens        response tokens, EOS included
    score           reward model, in units of the reference's spread, mean 0 there          (measure `score`)
    score_sd        disagreement of an ensemble's members, each in units of its own spread
    criteria        {criterion: raw score}, of a model with a head for each
    nll             base model, nats per token                                               (measure `nll`)
    kl              sum over tokens of log p_policy - log p_base: k1 where the policy wrote it   (measure `kl`)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plaudit.artifacts import write_atomic
from plaudit.errors import BadInput, NotFound
from plaudit.learn import checkpoint, pairs_file
from plaudit.learn.configs import ScoreConfig
from plaudit.learn.losses import kl_k1
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.pairs_file import Pair, Rejected
from plaudit.learn.policies import choose_dtype, load_base
from plaudit.learn.readers import Readers, Texts
from plaudit.learn.rewards import RewardModel, criterion_scores, member_scores, score_responses
from plaudit.learn.rollout import MIN_PREFIX, common_prefix
from plaudit.learn.run_folder import Clock, RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer, from_text, pack, response_logprobs, run_trunk

BLOCK = 64  # input lines between two writes; a killed run repeats at most these


def measure(config: ScoreConfig, run: RunFolder) -> dict[str, Any]:
    """Write scores.jsonl and result.json; returns the latter: n, mean of each measure over responses, and of pairs the accuracy with its
    interval, `pairs` (figures), `slices`, `categories`, `people` (validation.report)."""
    output = run.folder / "scores.jsonl"
    pairs: list[Pair] = []
    rejected: list[Rejected] = []
    if pairs_file.holds_pairs(Path(config.inputs)):
        pairs, rejected = pairs_file.read_pairs(Path(config.inputs))
        write_atomic(run.folder / "rejected.jsonl", "".join(json.dumps(vars(one)) + "\n" for one in rejected))
        rows = [as_input(pair) for pair in pairs]
    else:
        rows = read_inputs(Path(config.inputs))
    base = Path(config.base)
    decoder, tokenizer = load_base(config.base, 0, choose_dtype(config.compute)), ChatTokenizer.load(base)
    readers = Readers([Path(other) for other in config.bases], base, decoder.dtype, config.compute.micro_tokens)
    reward = checkpoint.load_reward(Path(config.reward), base, decoder, readers) if config.reward else None
    policy = checkpoint.load_policy(Path(config.policy), base) if config.policy else None
    done = resume(output, run, rows)
    n_blocks = -(-len(rows) // BLOCK)
    for at in range(done, len(rows), BLOCK):
        clock = Clock()
        part = rows[at : at + BLOCK]
        lines = measure_block(config, decoder, tokenizer, reward, policy, part)
        with output.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        run.log(at // BLOCK + 1, n_blocks, "score", clock.total, n=len(lines))
    lines = read_jsonl(output)
    result: dict[str, Any] = {"program": "score", "n": len(lines)}
    for name in config.measures:
        found = [line[name] for line in lines if name in line]
        result[name] = sum(found) / max(len(found), 1)
    if pairs:
        result |= {"n_pairs": len(pairs), "n_rejected": len(rejected), "rejected": pairs_file.reasons(rejected)}
    if pairs and reward is not None:
        from plaudit.learn import validation  # scipy: half a second that a monitor's scoring need not pay

        scores = np.array([line["score"] for line in lines]).reshape(-1, 2)
        checked = validation.report((scores[:, 0] - scores[:, 1]) * reward.sd, pairs)
        result |= {"accuracy": checked["valid"]["accuracy"], "pairs": checked.pop("valid"), **checked}
    run.write_result(result)
    return result


def read_inputs(path: Path) -> list[dict[str, Any]]:
    """Input rows with `id`, `messages`, `responses`, `finished`, `by_policy` filled in. Raises NotFound, BadInput naming the line."""
    if not path.is_file():
        raise NotFound(f"{path} does not exist; `inputs` names a JSONL file of conversations.")
    rows = []
    for number, line in enumerate(path.read_text().split("\n"), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            responses = [raw["response"]] if "response" in raw else list(raw["responses"])
            if not all(isinstance(text, str) for text in responses):
                raise ValueError("responses must be texts")
            flags = {name: _flags(raw, name, len(responses)) for name in ("finished", "by_policy")}
            rows.append({"id": raw.get("id", number), "messages": raw["messages"], "responses": responses, **flags})
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f'{path} line {number} cannot be scored ({error!r}); it needs "messages" and "response" or "responses".'
            ) from error
    return rows


def _flags(raw: dict[str, Any], name: str, n: int) -> list[bool]:
    said = raw.get(name, True)
    flags = [said] * n if isinstance(said, bool) else list(said)
    if len(flags) != n:
        raise ValueError(f"`{name}` must be one for all responses or one for each")
    return flags


def as_input(pair: Pair) -> dict[str, Any]:
    return {
        "id": pair.preference_id,
        "messages": pair.messages,
        "responses": [pair.chosen, pair.rejected],
        "finished": [pair.chosen_finished, pair.rejected_finished],
        "by_policy": [True, True],
    }


def resume(output: Path, run: RunFolder, rows: list[dict[str, Any]]) -> int:
    """Input rows that a killed run has finished, in whole blocks; cuts what comes after them."""
    written = len(read_jsonl(output))
    done, n_lines = 0, 0
    for at in range(0, len(rows), BLOCK):
        size = sum(len(row["responses"]) for row in rows[at : at + BLOCK])
        if n_lines + size > written:
            break
        done, n_lines = min(at + BLOCK, len(rows)), n_lines + size
    kept = output.read_text().splitlines(keepends=True)[:n_lines] if output.is_file() else []
    output.write_text("".join(kept))
    run.resume_metrics(-(-done // BLOCK))
    return done


def measure_block(
    config: ScoreConfig,
    decoder: Decoder,
    tokenizer: ChatTokenizer,
    reward: RewardModel | None,
    policy: Adapter | None,
    rows: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """One line for each response of these rows; the layers that base, policy and reward model share run once."""
    data = from_text(
        tokenizer,
        [row["messages"] for row in rows],
        [row["responses"] for row in rows],
        [row["finished"] for row in rows],
        config.max_prompt_tokens,
        config.max_response_tokens,
    )
    longest = max(
        len(data.prompt_ids[group]) + len(ids) for group, ids in zip(data.group, data.response_ids, strict=True)
    )
    if longest > decoder.config.max_positions:
        raise BadInput(
            f"A prompt with its response has {longest} tokens, {config.base} reads at most {decoder.config.max_positions}; "
            "lower max_prompt_tokens or max_response_tokens."
        )
    texts = Texts(*([row[name] for row in rows] for name in ("messages", "responses", "finished")))
    depth = decoder.trunk_depth(min([part.first_layer for part in (reward, policy) if part is not None], default=0))
    common = _common(data.prompt_ids)
    trunk = run_trunk(decoder, data, depth, config.compute.micro_tokens, common=common) if depth else None
    packs = pack(data, None, config.compute.micro_tokens, common=common)
    own = [i for i, said in enumerate(said for row in rows for said in row["by_policy"]) if said]
    lengths = data.lengths()
    columns: dict[str, torch.Tensor] = {}
    criteria: dict[str, torch.Tensor] = {}
    if reward is not None:
        columns["score"] = score_responses(reward, packs, trunk, texts) / reward.sd
        if reward.members:
            columns["score_sd"] = member_scores(reward, packs, trunk, texts).std(dim=0)
        criteria = criterion_scores(reward, packs, trunk, texts)
    nll = "nll" in config.measures
    if nll or (policy is not None and own):
        mine = pack(data, own, config.compute.micro_tokens, common=common) if own else []
        base, _, _ = response_logprobs(decoder, None, packs if nll else mine, trunk)
        if nll:
            columns["nll"] = -base.sum(dim=1) / lengths
        if policy is not None and own:
            logprobs, _, _ = response_logprobs(decoder, policy, mine, trunk)
            n, longest = logprobs.shape  # up to the last own response, as wide as the longest of them
            columns["kl"] = torch.zeros(data.n)
            columns["kl"][:n] = kl_k1(logprobs, base[:n, :longest]).sum(dim=1)
    lines: list[dict[str, Any]] = []
    for row in rows:
        for index in range(len(row["responses"])):
            i = len(lines)
            line: dict[str, Any] = {"id": row["id"], "index": index, "n_tokens": int(lengths[i])}
            line |= {name: float(x[i]) for name, x in columns.items() if name != "kl" or row["by_policy"][index]}
            if criteria:
                line["criteria"] = {name: float(x[i]) for name, x in criteria.items()}
            lines.append(line)
    return lines


def _common(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with, where each has more and sharing them is worth a mask."""
    shortest = min(map(len, prompts))
    shared = min(common_prefix(prompts[0], ids) for ids in prompts)
    shared = min(shared, shortest - 1)
    return shared if len(prompts) > 1 and shared >= MIN_PREFIX else 0
