"""Passes over fixed data: what `sft` and `dpo` share. The policy that is trained, the order of its batches, its state, its Checkpoint.

A policy is trained as an adapter, or in full (`lora: null`). The second is saved as a Hugging Face folder with weights of its own: it
serves as `base` wherever one is asked for, and is refused as an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plaudit.learn import checkpoint, distributed, doctor, policy_card
from plaudit.learn.batches import length_buckets
from plaudit.learn.configs import DPOConfig, SFTConfig
from plaudit.learn.optimizer import AdamW
from plaudit.learn.policies import Policy, full_dtype, full_weights, load_base, load_start
from plaudit.learn.run_folder import Clock, RunFolder

Figures = dict[str, Any]


@dataclass
class Training:
    """Everything that changes while training; what `state/` holds. Items of similar `lengths` share batches."""

    policy: Policy
    adam: AdamW
    generator: torch.Generator
    lengths: Sequence[int]
    batch_size: int
    epochs: int
    update: int = 0
    order: list[list[int]] = field(default_factory=list)  # this epoch's batches of items
    curve: list[Figures] = field(default_factory=list)

    @property
    def per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    @property
    def n_updates(self) -> int:
        return self.per_epoch * self.epochs

    @property
    def batch(self) -> list[int]:
        """The items of the update to come."""
        return self.order[self.update % self.per_epoch]

    def advance(self) -> None:
        """Count an update; a new epoch has a new order."""
        self.update += 1
        if self.update % self.per_epoch == 0 and self.update < self.n_updates:
            self.shuffle()

    def shuffle(self) -> None:
        self.order = length_buckets(self.lengths, self.batch_size, self.generator)


def load_policy(config: SFTConfig | DPOConfig) -> Policy:
    """The policy to train, as the run starts from it. Raises ConfigError for full weights in bf16."""
    torch.manual_seed(config.seed)
    if config.lora is not None:
        decoder, adapter = load_start(
            config.base, config.start, config.lora, config.first_layer, config.seed, config.compute
        )
        policy = Policy(decoder, adapter)
    else:
        decoder = load_base(config.base, config.first_layer, full_dtype(config.compute))
        if config.start:
            decoder = decoder.folded(checkpoint.load_policy(Path(config.start), Path(config.base)))
        for parameter in full_weights(decoder, config.first_layer):
            parameter.requires_grad_(True)
        policy = Policy(decoder, None)
    parts = [policy.decoder] if policy.adapter is None else [policy.decoder, policy.adapter]
    doctor.check_trainable(nn.ModuleList(parts), list(policy.trained().values()), policy.decoder.dtype)
    doctor.check_off(policy.decoder)
    return policy


def begin(config: SFTConfig | DPOConfig, policy: Policy, lengths: Sequence[int]) -> Training:
    """Update 0, the first epoch's order drawn. Packed rows waste nothing on different lengths, so batches are random then."""
    lengths = [0] * len(lengths) if config.packing else lengths
    adam = AdamW(config.optimizer, list(policy.trained().values()), [])
    generator = torch.Generator().manual_seed(config.seed)
    training = Training(policy, adam, generator, lengths, config.batch_size, config.epochs)
    training.shuffle()
    return training


def run_epochs(
    training: Training,
    run: RunFolder,
    step: Callable[[], Figures],
    validate: Callable[[], Figures] | None,
    save_every: int,
    validate_every: int = 0,
) -> None:
    """All updates that are left. `step` trains on `training.batch`; `validate` measures held-out rows after each epoch, or as often as told.

    Raises TrainingStopped on a figure that is not finite: the last saved state stays.
    """
    restore(training, run)
    run.resume_metrics(training.update)
    every, n = validate_every or training.per_epoch, training.n_updates
    while training.update < n:
        clock = Clock()
        figures = step()
        training.advance()
        epoch, last = -(-training.update // training.per_epoch), training.update == n
        run.log(training.update, n, "train", clock.total, epoch=epoch, **figures)
        if validate is not None and (training.update % every == 0 or last):
            clock = Clock()
            point = {"epoch": epoch, **validate()}
            training.curve.append({"update": training.update, **point})
            run.log(training.update, n, "validate", clock.total, **point)
        if training.update % save_every == 0 or last:
            save(training, run)


def save(training: Training, run: RunFolder) -> None:
    trained: dict[str, Tensor] = {name: parameter.data for name, parameter in training.policy.trained().items()}
    checkpoint.save_state(
        run.state,
        {
            "update": training.update,
            "trained": trained,
            "optimizer": training.adam.state(),
            "generator": training.generator.get_state(),
            "order": training.order,
            "curve": training.curve,
        },
    )


def restore(training: Training, run: RunFolder) -> None:
    """Continue from the last saved state, if there is one; all processes from the same weights."""
    state = checkpoint.load_state(run.state)
    if state is None:
        distributed.level(training.policy.trained().values())
        return
    for name, parameter in training.policy.trained().items():
        parameter.data.copy_(state["trained"][name])
    training.adam.load(state["optimizer"])
    training.generator.set_state(state["generator"])
    training.update, training.order, training.curve = state["update"], state["order"], state["curve"]


def write_checkpoint(
    config: SFTConfig | DPOConfig,
    run: RunFolder,
    policy: Policy,
    parents: Mapping[str, str],
    result: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """The policy Checkpoint with its card, its manifest last."""
    if not distributed.is_first():
        return
    base, lineage = Path(config.base), {**parents, "start": config.start}
    card, pictures = policy_card.write(result, config)
    if policy.adapter is None:
        checkpoint.save_full_policy(
            run.checkpoint, policy.decoder, base, lineage, metrics, card=card, pictures=pictures
        )
    else:
        checkpoint.save_policy(run.checkpoint, policy.adapter, base, lineage, metrics, card=card, pictures=pictures)
