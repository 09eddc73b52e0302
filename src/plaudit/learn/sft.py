"""`sft`: next-token loss on responses only, on Demonstrations, on the chosen side of Preferences, or both.

metrics.jsonl: phase `train` (loss in nats per response token, learning_rate, gradient_norm, tokens, epoch), phase `validate` (loss, epoch, n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plaudit.artifacts import Message, open_snapshot
from plaudit.errors import BadInput
from plaudit.learn import distributed, losses
from plaudit.learn.batches import Batcher, group_lengths
from plaudit.learn.configs import SFTConfig
from plaudit.learn.doctor import check_finite, naming
from plaudit.learn.epochs import Figures, Training, begin, load_policy, run_epochs, write_checkpoint
from plaudit.learn.policies import Policy
from plaudit.learn.run_folder import Clock, RunFolder
from plaudit.learn.tokens import ChatTokenizer, from_text, hidden_states, logprobs_at, response_logprobs

Row = tuple[tuple[Message, ...], str]


def train(config: SFTConfig, run: RunFolder) -> dict[str, Any]:
    """Train and write the policy Checkpoint; returns result.json's content. Raises BadInput where there is nothing to imitate."""
    clock = Clock(run)
    rows, held_out = read_rows(config, ("train",)), read_rows(config, ("valid", "test"))
    if not rows:
        raise BadInput(
            f"{config.snapshot} has no training rows for source {config.source!r}; freeze a Snapshot that has."
        )
    tokenizer = ChatTokenizer.load(Path(config.base))
    with clock.phase("load"):
        policy = load_policy(config)
    with clock.phase("trunk"):
        tell = clock.tell("trunk")
        data = encode(tokenizer, rows, config, policy, tell)
        test = encode(tokenizer, held_out, config, policy, tell) if held_out else None
    training = begin(config, policy, group_lengths(data.data))

    def validate() -> Figures:
        assert test is not None
        return {"loss": mean_nll(policy, test), "n": test.data.n}

    run_epochs(
        training,
        run,
        step=lambda: update(training, data, rows),
        validate=validate if test else None,
        save_every=config.compute.save_every,
    )
    result = {
        "program": "sft",
        "n_train": len(rows),
        "curve": training.curve,
        "loss": training.curve[-1]["loss"] if training.curve else None,
        "seconds": round(clock.total, 3),
        "phases": clock.rounded(),
    }
    run.write_result(result)
    write_checkpoint(config, run, policy, {"snapshot": config.snapshot}, result, {"loss": result["loss"]})
    return result


def read_rows(config: SFTConfig, splits: Sequence[str]) -> list[Row]:
    """(messages, response) of the configured source, each different pair once, in an order that does not depend on the file's."""
    snapshot = open_snapshot(Path(config.snapshot))
    rows: list[Row] = []
    if config.source in ("demonstrations", "both"):
        rows += [(row.messages, row.response) for row in snapshot.demonstrations() if row.split in splits]
    if config.source in ("chosen", "both"):
        # A tie has no better side: it teaches nothing here.
        rows += [
            (row.messages, row.chosen)
            for row in snapshot.preferences()
            if row.split in splits and row.probability != 0.5
        ]
    if config.turns == "all":
        rows = [turn for row in rows for turn in turns_of(*row)]
    return list({repr(row): row for row in sorted(rows, key=repr)}.values())


def turns_of(messages: tuple[Message, ...], response: str) -> list[Row]:
    """Every assistant message of a conversation as a row of its own, the response last.

    Rows of their own, and not spans of one long row: the template renders each prompt as it will when the policy is asked, and some
    templates write earlier turns differently.
    """
    earlier = [
        (messages[:at], str(message["content"]))
        for at, message in enumerate(messages)
        if at and message["role"] == "assistant" and str(message["content"]).strip()
    ]
    return [*earlier, (messages, response)]


def encode(
    tokenizer: ChatTokenizer,
    rows: Sequence[Row],
    config: SFTConfig,
    policy: Policy,
    tell: Callable[[int, int], None],
) -> Batcher:
    data = from_text(
        tokenizer,
        [messages for messages, _ in rows],
        [(response,) for _, response in rows],
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    return Batcher(policy.decoder, data, config.first_layer, config.compute.micro_tokens, config.packing, tell)


def update(training: Training, data: Batcher, rows: Sequence[Row]) -> dict[str, float | int]:
    """One optimizer step: the mean over all response tokens of the batch, whatever the micro-batches and processes."""
    packs, trunk, _ = data.packs(distributed.share(training.batch))
    n_tokens = int(distributed.total(sum(int(batch.counts.sum()) for batch in packs))[0])
    decoder, adapter = training.policy.decoder, training.policy.adapter
    total = 0.0
    for batch in packs:
        logprobs, _ = logprobs_at(decoder, hidden_states(decoder, adapter, batch, trunk), batch)
        loss = losses.nll(logprobs, batch.counts, n_tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    (total,) = distributed.total(total)
    check_finite(total, training.update + 1, [repr(rows[item][1][:40]) for item in training.batch])
    with naming([repr(rows[item][1][:40]) for item in training.batch]):
        norm, rate = training.adam.step(training.update, training.n_updates)
    return {"loss": total, "learning_rate": rate, "gradient_norm": norm, "tokens": n_tokens}


def mean_nll(policy: Policy, data: Batcher) -> float:
    """Nats per response token over all of `data`, without gradient."""
    total, n_tokens = 0.0, 0
    for groups in data.blocks():
        packs, trunk, _ = data.packs(distributed.share(groups))
        if packs:
            logprobs, counts, _ = response_logprobs(policy.decoder, policy.adapter, packs, trunk)
            total -= float(losses.masked_sum(logprobs, counts))
            n_tokens += int(counts.sum())
    total, n = distributed.total(total, n_tokens)
    return total / n
