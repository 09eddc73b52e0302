"""`sft`: next-token loss on responses only, on Demonstrations, on the chosen side of Preferences, or both.

metrics.jsonl: phase `train` (loss in nats per response token, learning_rate, gradient_norm, tokens, epoch), phase `validate` (loss, epoch, n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from plaudit.artifacts import Message, open_snapshot
from plaudit.errors import BadInput
from plaudit.learn import checkpoint, losses
from plaudit.learn.batches import Batcher, group_lengths, length_buckets
from plaudit.learn.configs import SFTConfig
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.optimizer import AdamW
from plaudit.learn.policies import load_start
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.tokens import ChatTokenizer, from_text, hidden_states, logprobs_at, response_logprobs


@dataclass
class Training:
    """Everything that changes while training; what `state/` holds."""

    decoder: Decoder
    adapter: Adapter
    adam: AdamW
    generator: torch.Generator
    update: int = 0
    order: list[list[int]] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


def read_rows(config: SFTConfig, splits: Sequence[str]) -> list[tuple[tuple[Message, ...], str]]:
    """(messages, response) of the configured source, each different pair once, in an order that does not depend on the file's."""
    snapshot = open_snapshot(Path(config.snapshot))
    rows: list[tuple[tuple[Message, ...], str]] = []
    if config.source in ("demonstrations", "both"):
        rows += [(row.messages, row.response) for row in snapshot.demonstrations() if row.split in splits]
    if config.source in ("chosen", "both"):
        # A tie has no better side: it teaches nothing here.
        rows += [
            (row.messages, row.chosen)
            for row in snapshot.preferences()
            if row.split in splits and row.probability != 0.5
        ]
    return list({repr(row): row for row in sorted(rows, key=repr)}.values())


def train(config: SFTConfig, run: RunFolder) -> dict[str, Any]:
    """Train and write the policy Checkpoint; returns result.json's content. Raises BadInput where there is nothing to imitate."""
    clock = Clock()
    torch.manual_seed(config.seed)
    rows, held_out = read_rows(config, ("train",)), read_rows(config, ("valid", "test"))
    if not rows:
        raise BadInput(
            f"{config.snapshot} has no training rows for source {config.source!r}; freeze a Snapshot that has."
        )
    tokenizer = ChatTokenizer.load(Path(config.base))
    decoder, adapter = load_start(
        config.base, config.start, config.lora, config.first_layer, config.seed, config.compute
    )
    adam = AdamW(config.optimizer, list(adapter.parameters()), [])
    training = Training(decoder, adapter, adam, torch.Generator().manual_seed(config.seed))
    data = encode(tokenizer, rows, config, decoder)
    test = encode(tokenizer, held_out, config, decoder) if held_out else None
    per_epoch = -(-len(rows) // config.batch_size)
    n_updates = per_epoch * config.epochs
    restore(training, run)
    run.resume_metrics(training.update)
    while training.update < n_updates:
        step_clock = Clock()
        if training.update % per_epoch == 0:
            training.order = length_buckets(group_lengths(data.data), config.batch_size, training.generator)
        groups = training.order[training.update % per_epoch]
        figures = update(training, data, groups, n_updates)
        training.update += 1
        epoch = -(-training.update // per_epoch)
        run.log(training.update, n_updates, "train", step_clock.total, epoch=epoch, **figures)
        if training.update % per_epoch == 0 and test is not None:
            step_clock = Clock()
            point = {"epoch": epoch, "loss": mean_nll(training, test), "n": test.data.n}
            training.curve.append(point)
            run.log(training.update, n_updates, "validate", step_clock.total, **point)
        if training.update % config.compute.save_every == 0 or training.update == n_updates:
            save(training, run)
    return finish(config, run, training, len(rows), clock)


def encode(
    tokenizer: ChatTokenizer, rows: Sequence[tuple[tuple[Message, ...], str]], config: SFTConfig, decoder: Decoder
) -> Batcher:
    data = from_text(
        tokenizer,
        [messages for messages, _ in rows],
        [(response,) for _, response in rows],
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    return Batcher(decoder, data, config.first_layer, config.compute.micro_tokens)


def update(training: Training, data: Batcher, groups: Sequence[int], n_updates: int) -> dict[str, float | int]:
    """One optimizer step: the mean over all response tokens of the batch, whatever the micro-batches."""
    packs, trunk, _ = data.packs(groups)
    n_tokens = sum(int(batch.counts.sum()) for batch in packs)
    total = 0.0
    for batch in packs:
        hidden = hidden_states(training.decoder, training.adapter, batch, trunk)
        logprobs, _ = logprobs_at(training.decoder, hidden, batch)
        loss = losses.nll(logprobs, batch.counts, n_tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    norm, rate = training.adam.step(training.update, n_updates)
    return {"loss": total, "learning_rate": rate, "gradient_norm": norm, "tokens": n_tokens}


def mean_nll(training: Training, data: Batcher) -> float:
    """Nats per response token over all of `data`, without gradient."""
    total, n_tokens = 0.0, 0
    for groups in data.blocks():
        packs, trunk, _ = data.packs(groups)
        logprobs, counts, _ = response_logprobs(training.decoder, training.adapter, packs, trunk)
        total -= float(losses.masked_sum(logprobs, counts))
        n_tokens += int(counts.sum())
    return total / n_tokens


def save(training: Training, run: RunFolder) -> None:
    checkpoint.save_state(
        run.state,
        {
            "update": training.update,
            "trained": training.adapter.state_dict(),
            "optimizer": training.adam.state(),
            "generator": training.generator.get_state(),
            "order": training.order,
            "curve": training.curve,
        },
    )


def restore(training: Training, run: RunFolder) -> None:
    """Continue from the last saved state, if there is one."""
    state = checkpoint.load_state(run.state)
    if state is None:
        return
    training.adapter.load_state_dict(state["trained"])
    training.adam.load(state["optimizer"])
    training.generator.set_state(state["generator"])
    training.update, training.order, training.curve = state["update"], state["order"], state["curve"]


def finish(config: SFTConfig, run: RunFolder, training: Training, n_rows: int, clock: Clock) -> dict[str, Any]:
    """result.json, then the Checkpoint, its manifest last."""
    result = {
        "program": "sft",
        "n_train": n_rows,
        "curve": training.curve,
        "loss": training.curve[-1]["loss"] if training.curve else None,
        "seconds": round(clock.total, 3),
    }
    run.write_result(result)
    checkpoint.save_policy(
        run.checkpoint,
        training.adapter,
        Path(config.base),
        parents={"snapshot": config.snapshot, "start": config.start},
        metrics={"loss": result["loss"]},
    )
    return result
