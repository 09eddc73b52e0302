"""`dpo`: a policy straight from logged feedback. DPO and IPO read pairs, KTO reads single answers; nothing is sampled, no reward model.

The loss reads one number of each response, its log-ratio: the sum over its tokens of log policy - log reference. The reference is what
the run starts from; its log-probs are computed once, before the first update, in the very batches of the first epoch. So the first loss
has a closed form (ln 2 for DPO), which the doctor checks on every run. Chosen and rejected lie in one row behind their shared prompt.

metrics.jsonl: phases `train` and `validate` (what each figure means and what is normal: docs/training.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from plaudit.artifacts import Message, PreferenceRow, open_snapshot, write_atomic
from plaudit.errors import BadInput
from plaudit.learn import checkpoint, distributed, losses
from plaudit.learn.batches import Batcher, group_lengths
from plaudit.learn.configs import DPOConfig
from plaudit.learn.doctor import check_finite, check_first_preferences, naming
from plaudit.learn.epochs import Figures, Training, begin, load_policy, run_epochs, write_checkpoint
from plaudit.learn.pairs_file import Rejected, read_split
from plaudit.learn.policies import Policy
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.thumbs_file import Thumb, read_thumbs
from plaudit.learn.tokens import ChatTokenizer, Pack, Trunk, from_text, hidden_states, logprobs_at
from plaudit.stats import intervals

Side = Literal["train", "valid"]


@dataclass(frozen=True)
class Row:
    """What one term of the loss reads: a pair (chosen, rejected), or for KTO one answer."""

    name: str
    family: str
    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    finished: tuple[bool, ...]
    probability: float  # that chosen is preferred, or that the answer is liked
    weight: float


@dataclass(frozen=True)
class Responses:
    """Encoded responses and their reference log-probs, side by side in a flat table; filled before the first update."""

    batcher: Batcher
    starts: Tensor  # (N,) where a response begins in the table
    reference: Tensor  # (tokens of all responses,) fp32

    @staticmethod
    def of(batcher: Batcher) -> Responses:
        ends = batcher.data.lengths().cumsum(0)
        return Responses(batcher, ends - batcher.data.lengths(), torch.zeros(int(ends[-1])))

    def places(self, index: Tensor, width: int) -> Tensor:
        """Responses (n,) -> (n, width) places of their tokens; past a response's end they mean nothing."""
        return (self.starts[index][:, None] + torch.arange(width)).clamp(max=len(self.reference) - 1)


@dataclass(frozen=True)
class Data:
    """One split. KTO also needs each prompt with the response to another one, for its reference point."""

    rows: list[Row]
    responses: Responses  # row i is group i
    mismatched: Responses | None
    probability: Tensor  # (rows,) after smoothing
    weights: Tensor  # (rows,) mean 1


class Tally:
    """What the micro-batches of a batch, or a split, gave: tensors by name, without gradient.

    Of rows (m,): `rows` (their indices), `loss`, `lead` (log-ratio of chosen above rejected, or above KTO's reference point).
    Of responses (n,): `ratio` (log-ratios), `side` (1 chosen or liked, -1 rejected or disliked, 0 undecided), `kl`.
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}
        self.nll = 0.0  # of the chosen or liked ones, summed over tokens

    def add(self, **parts: Tensor) -> None:
        for name, part in parts.items():
            self.parts.setdefault(name, []).append(part.detach())

    def gather(self) -> None:
        """Of this process's rows make those of all."""
        found = distributed.gathered([(name, part) for name, parts in self.parts.items() for part in parts])
        self.parts = {}
        for name, part in found:
            self.parts.setdefault(name, []).append(part)
        (self.nll,) = distributed.total(self.nll)

    def cat(self, name: str) -> Tensor:
        return torch.cat(self.parts[name])


def train(config: DPOConfig, run: RunFolder) -> dict[str, Any]:
    """Train and write the policy Checkpoint; returns result.json's content. Raises PlauditErrors (see errors.py) a user can fix."""
    clock = Clock(run)
    rows, held_out, rejected = read_rows(config)
    write_atomic(run.folder / "rejected.jsonl", "".join(json.dumps(asdict(entry)) + "\n" for entry in rejected))
    tokenizer = ChatTokenizer.load(Path(config.base))
    with clock.phase("load"):
        policy = load_policy(config)
    with clock.phase("trunk"):
        tell = clock.tell("trunk")
        data = encode(tokenizer, rows, rows, config, policy, tell)
        test = encode(tokenizer, held_out, rows, config, policy, tell) if held_out else None
    training = begin(config, policy, group_lengths(data.responses.batcher.data))
    with clock.phase("reference"):
        fill_references(training, data, test, run)

    def validate() -> Figures:
        assert test is not None
        return measure(policy, config, test)[0]

    run_epochs(
        training,
        run,
        step=lambda: update(training, config, data),
        validate=validate if test else None,
        save_every=config.compute.save_every,
        validate_every=config.validate_every,
    )
    with clock.phase("validate"):
        valid = {**training.curve[-1], "accuracy_interval": accuracy_interval(policy, config, test)} if test else None
    liked = sum(row.probability > 0.5 for row in rows)
    result = {
        "program": "dpo",
        "n_train": len(rows),
        "n_valid": len(held_out),
        "n_rejected": len(rejected),
        "curve": training.curve,
        "valid": valid,
        **({"n_liked": liked, "n_disliked": len(rows) - liked} if config.loss == "kto" else {}),
        "seconds": round(clock.total, 3),
        "phases": clock.rounded(),
    }
    run.write_result(result)
    metrics = {"loss": config.loss, "accuracy": valid["accuracy"] if valid else None}
    write_checkpoint(config, run, policy, {"snapshot": config.snapshot}, result, metrics)
    return result


# --- data -------------------------------------------------------------------------------------------------------------------


def read_rows(config: DPOConfig) -> tuple[list[Row], list[Row], list[Rejected]]:
    """(training rows, held-out rows, rejected lines). Raises BadInput where nothing, or for KTO only one kind of label, is left."""
    pairs: list[PreferenceRow] = []
    thumbs: list[Thumb] = []
    rejected: list[Rejected] = []
    if config.snapshot:
        pairs += open_snapshot(Path(config.snapshot)).preferences()
    if config.preferences:
        chosen, held_out, rejected = read_split(config.preferences, config.valid_preferences, config.valid_fraction)
        pairs += [*chosen, *held_out]
    if config.unpaired:
        thumbs, more = read_thumbs(Path(config.unpaired), config.valid_fraction)
        rejected = [*rejected, *more]
    pairs = [row for row in pairs if config.criterion in ("", row.criterion)]
    out: dict[Side, list[Row]] = {"train": [], "valid": []}
    for pair in pairs:
        if config.soft_labels or pair.probability != 0.5:
            p = pair.probability if config.soft_labels else float(pair.probability > 0.5)
            out["train" if pair.split == "train" else "valid"] += rows_of(pair, p, config)
    for one in thumbs:
        texts, ends = (one.response,), (one.finished,)
        row = Row(one.name, one.family, one.messages, texts, ends, float(one.up), one.weight)
        out["train" if one.split == "train" else "valid"].append(row)
    source = ", ".join(filter(None, (config.snapshot, config.preferences, config.unpaired)))
    if not out["train"]:
        raise BadInput(
            f"{source} has nothing to train on"
            + (f" for the criterion {config.criterion!r}" if config.criterion else "")
            + "; collect more feedback, or look at rejected.jsonl."
        )
    kinds = {row.probability > 0.5 for row in out["train"] if row.probability != 0.5}
    if config.loss == "kto" and len(kinds) < 2:
        raise BadInput(
            f"{source} holds only {'liked' if kinds == {True} else 'disliked'} answers to train on; KTO weighs one kind against "
            "the other, so give both."
        )
    return out["train"], out["valid"], rejected


def rows_of(pair: PreferenceRow, probability: float, config: DPOConfig) -> list[Row]:
    """The pair as it is; for KTO its two answers, each by itself."""
    texts, ends = (pair.chosen, pair.rejected), (pair.chosen_finished, pair.rejected_finished)
    if config.loss != "kto":
        return [Row(pair.preference_id, pair.family, pair.messages, texts, ends, probability, pair.weight)]
    return [
        Row(f"{pair.preference_id} {side}", pair.family, pair.messages, (text,), (end,), p, pair.weight)
        for side, text, end, p in (
            ("chosen", texts[0], ends[0], probability),
            ("rejected", texts[1], ends[1], 1 - probability),
        )
    ]


def encode(
    tokenizer: ChatTokenizer,
    rows: list[Row],
    pool: Sequence[Row],
    config: DPOConfig,
    policy: Policy,
    tell: Callable[[int, int], None],
) -> Data:
    """Row i as group i; a pair's responses are 2i (chosen) and 2i + 1 (rejected). KTO's mismatched responses come from `pool`."""

    def batcher(responses: Sequence[tuple[str, ...]], finished: Sequence[tuple[bool, ...]]) -> Batcher:
        data = from_text(
            tokenizer,
            [row.messages for row in rows],
            responses,
            finished,
            max_prompt_tokens=config.max_prompt_tokens,
            max_response_tokens=config.max_response_tokens,
        )
        return Batcher(policy.decoder, data, config.first_layer, config.compute.micro_tokens, config.packing, tell)

    mismatched = None
    if config.loss == "kto":
        others = partners(rows, pool, config.seed)
        mismatched = Responses.of(batcher([row.responses for row in others], [row.finished for row in others]))
    smoothing = config.label_smoothing
    probability = torch.tensor([row.probability for row in rows], dtype=torch.float32)
    weights = torch.tensor([row.weight if config.use_weights else 1.0 for row in rows], dtype=torch.float32)
    return Data(
        rows,
        Responses.of(batcher([row.responses for row in rows], [row.finished for row in rows])),
        mismatched,
        (1 - smoothing) * probability + smoothing * (1 - probability),
        weights / weights.mean(),
    )


def partners(rows: Sequence[Row], pool: Sequence[Row], seed: int) -> list[Row]:
    """For each row one of `pool` with a different prompt, by going round it in random order. Raises BadInput where it has one prompt only."""
    if all(row.messages == pool[0].messages for row in pool):
        raise BadInput(
            f"All {len(pool)} answers to train on are to one prompt; KTO compares with responses to other prompts, so give more."
        )
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    out = []
    for start, row in enumerate(rows):
        circle = (pool[order[(start + step) % len(pool)]] for step in range(len(pool)))
        out.append(next(other for other in circle if other.messages != row.messages))
    return out


# --- log-ratios -------------------------------------------------------------------------------------------------------------


def passes(policy: Policy, responses: Responses, groups: Sequence[int]) -> Iterator[tuple[Pack, Tensor, Tensor]]:
    """For each micro-batch of these groups: the pack, its responses' indices (n,), and the policy's log-probs (n, R)."""
    packs, trunk, names = responses.batcher.packs(groups)
    for batch in packs:
        yield batch, names[batch.response], token_logprobs(policy, batch, trunk)


def token_logprobs(policy: Policy, batch: Pack, trunk: Trunk | None) -> Tensor:
    hidden = hidden_states(policy.decoder, policy.adapter, batch, trunk)
    return logprobs_at(policy.decoder, hidden, batch)[0]


@torch.no_grad()
def fill_references(training: Training, data: Data, test: Data | None, run: RunFolder) -> None:
    """The starting policy's log-probs of every response, read from `reference/` where an earlier start of this run wrote them.

    In the batches in which they will be used first, because another layout rounds differently.
    """
    parts = {"train": data.responses, "train_mismatched": data.mismatched}
    parts |= {"valid": test.responses, "valid_mismatched": test.mismatched} if test else {}
    folder, known = run.folder / "reference", checkpoint.load_state(run.folder / "reference")
    if known is not None and known["processes"] != distributed.size():
        known = None  # other shares are other layouts
    for name, part in parts.items():
        if part is None:
            continue
        if known is not None:
            part.reference.copy_(known[name])
            continue
        blocks = training.order if name.startswith("train") else part.batcher.blocks()
        for groups in blocks:
            for batch, index, logprobs in passes(training.policy, part, distributed.share(groups)):
                part.reference[part.places(index, logprobs.shape[1])[batch.counts]] = logprobs[batch.counts]
        part.reference.copy_(distributed.assembled(part.reference, part.reference.shape))
    if known is None:
        tables = {name: part.reference for name, part in parts.items() if part is not None}
        checkpoint.save_state(folder, {**tables, "processes": distributed.size()})


def log_ratios(
    config: DPOConfig, responses: Responses, batch: Pack, index: Tensor, logprobs: Tensor
) -> tuple[Tensor, Tensor]:
    """(log policy - log reference of each response (n,): its sum over tokens, or mean where length-normalised; k3 of the data (n,)).

    k3 over tokens that the *reference* sampled estimates KL(reference || policy), in nats per response, and is never negative.
    """
    reference = responses.reference[responses.places(index, logprobs.shape[1])]
    zero = torch.zeros_like(logprobs)
    ratio = torch.where(batch.counts, logprobs - reference, zero).sum(1)
    kl = torch.where(batch.counts, losses.kl_k3(reference, logprobs.detach()), zero).sum(1)
    return ratio / batch.counts.sum(1) if config.length_normalised else ratio, kl


@torch.no_grad()
def reference_point(policy: Policy, config: DPOConfig, data: Data, blocks: Sequence[Sequence[int]]) -> Tensor:
    """KTO's KL estimate over these rows, 0 for the other losses."""
    if data.mismatched is None:
        return torch.zeros(())
    ratios = [
        log_ratios(config, data.mismatched, batch, index, logprobs)[0]
        for groups in blocks
        for batch, index, logprobs in passes(policy, data.mismatched, distributed.share(groups))
    ]
    return losses.kto_reference_point(torch.cat(distributed.gathered(ratios)))


# --- one batch --------------------------------------------------------------------------------------------------------------


def terms(
    policy: Policy, config: DPOConfig, data: Data, groups: Sequence[int], point: Tensor, tally: Tally
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each micro-batch of this process's share of these rows: (which rows (m,), their losses (m,), nll of its chosen or liked
    responses, summed)."""
    for batch, index, logprobs in passes(policy, data.responses, distributed.share(groups)):
        ratio, kl = log_ratios(config, data.responses, batch, index, logprobs)
        if config.loss == "kto":
            rows, lead, p = index, ratio - point, data.probability[index]
            loss = losses.kto(ratio, point, p, config.beta, config.desirable_weight, config.undesirable_weight)
            side = torch.sign(p - 0.5)
        else:
            order = index.argsort()  # both sides of a pair lie in one pack
            rows, pairs = index[order][::2] // 2, ratio[order].view(-1, 2)
            lead, p = pairs[:, 0] - pairs[:, 1], data.probability[rows]
            pairwise = losses.dpo if config.loss == "dpo" else losses.ipo
            loss = pairwise(pairs[:, 0], pairs[:, 1], config.beta, p)
            side = 1.0 - 2.0 * (index % 2)
        nll = losses.nll(logprobs, batch.counts & (side > 0)[:, None], 1.0)
        tally.add(rows=rows, loss=loss, lead=lead, ratio=ratio, side=side, kl=kl)
        tally.nll += float(nll.detach())
        yield rows, loss, nll


def update(training: Training, config: DPOConfig, data: Data) -> Figures:
    """One optimizer step on the weighted mean over the batch's rows, whatever the micro-batches and processes."""
    groups, tally = training.batch, Tally()
    share = data.weights / data.weights[groups].sum()
    n_tokens = chosen_tokens(config, data, groups)
    point = reference_point(training.policy, config, data, [groups])
    for rows, loss, nll in terms(training.policy, config, data, groups, point, tally):
        total = (share[rows] * loss).sum()
        total = total + config.nll_coef / n_tokens * nll if config.nll_coef else total
        total.backward()  # type: ignore[no-untyped-call]
    tally.gather()
    found = figures(config, data, tally, point, n_tokens)
    check_finite(found["loss"], training.update + 1, [data.rows[group].name for group in groups])
    if training.update == 0:
        worst = max(float(ratio.abs().max()) for ratio in (tally.cat("ratio"), point))
        check_first_preferences(worst, found["loss"], first_loss(config, data, groups))
    with naming([data.rows[group].name for group in groups]):
        norm, rate = training.adam.step(training.update, training.n_updates)
    return {**found, "learning_rate": rate, "gradient_norm": norm, "rows": len(groups)}


def chosen_tokens(config: DPOConfig, data: Data, groups: Sequence[int]) -> int:
    """Tokens of the chosen or liked responses of these rows, 1 where there are none (it is divided by)."""
    ids = data.responses.batcher.data.response_ids
    chosen = [g for g in groups if data.probability[g] > 0.5] if config.loss == "kto" else [2 * g for g in groups]
    return max(1, sum(len(ids[index]) for index in chosen))


@torch.no_grad()
def measure(policy: Policy, config: DPOConfig, data: Data) -> tuple[Figures, Tally]:
    """A whole split, without gradient."""
    blocks, tally = data.responses.batcher.blocks(), Tally()
    point = reference_point(policy, config, data, blocks)
    for groups in blocks:
        for _ in terms(policy, config, data, groups, point, tally):
            pass
    tally.gather()
    n_tokens = chosen_tokens(config, data, range(len(data.rows)))
    return {**figures(config, data, tally, point, n_tokens), "n": len(data.rows)}, tally


def first_loss(config: DPOConfig, data: Data, groups: Sequence[int]) -> float:
    """What the loss of these rows is where policy = reference, in closed form."""
    p, weights = data.probability[groups].double(), data.weights[groups].double()
    match config.loss:
        case "dpo":
            expected = torch.full_like(p, math.log(2))
        case "ipo":
            expected = ((2 * p - 1) / (2 * config.beta)) ** 2
        case "kto":
            expected = (p * config.desirable_weight + (1 - p) * config.undesirable_weight) / 2
    return float((weights * expected).sum() / weights.sum())


def figures(config: DPOConfig, data: Data, tally: Tally, point: Tensor, n_tokens: int) -> Figures:
    """Means over a batch or a split. What a batch has none of (answers of one kind, rows with a majority) is left out."""
    weights = data.weights[tally.cat("rows")]
    right, decided = hits(data, tally)
    rewards, side = config.beta * tally.cat("ratio"), tally.cat("side")
    chosen, rejected = rewards[side > 0], rewards[side < 0]
    out: Figures = {
        "loss": float((weights * tally.cat("loss")).sum() / weights.sum()),
        "kl": float(tally.cat("kl").mean()),
    }
    if decided.any():
        out["accuracy"] = float(right[decided].mean())
    if len(chosen):
        out["reward_chosen"], out["nll"] = float(chosen.mean()), tally.nll / n_tokens
    if len(rejected):
        out["reward_rejected"] = float(rejected.mean())
    if len(chosen) and len(rejected):
        out["margin"] = float(chosen.mean() - rejected.mean())
    if config.loss == "kto":
        out["reference_point"] = float(point)
    return out


def hits(data: Data, tally: Tally) -> tuple[Tensor, Tensor]:
    """(1 the policy agrees with the majority, 0 it does not, .5 it does not say; whether there is a majority), each (m,)"""
    wanted = data.probability[tally.cat("rows")] - 0.5
    return 0.5 + 0.5 * torch.sign(tally.cat("lead")) * torch.sign(wanted), wanted != 0


def accuracy_interval(policy: Policy, config: DPOConfig, data: Data) -> dict[str, Any] | None:
    """Held-out accuracy with its 95 % interval over prompt families; None where fewer than two families have a majority."""
    _, tally = measure(policy, config, data)
    right, decided = hits(data, tally)
    families = [data.rows[row].family for row in tally.cat("rows")[decided].tolist()]
    if len(set(families)) < 2:
        return None
    return intervals.mean_interval(right[decided].double().numpy(), families).to_dict()
