"""The step-0 doctor: facts that hold exactly before the first update of a right PPO, checked on every run. Each stops the run.

They catch, in one second, the usual ways in which PPO is quietly wrong: another temperature or mask in one of the passes, dropout,
log-probabilities taken from the sampler, a reference that is not what the policy started from, a score on padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from plaudit.errors import TrainingStopped
from plaudit.learn.advantages import last_index


def check_start_is_reference(logprobs: Tensor, reference: Tensor, mask: Tensor) -> None:
    """Before any update policy and reference are the same function: their log-probs are equal bit for bit (checklist 6, 7).   (B, T)"""
    difference = torch.where(mask, (logprobs - reference).abs(), torch.zeros_like(logprobs))
    worst = float(difference.max())
    if worst != 0.0:
        row, position = divmod(int(difference.argmax()), mask.shape[1])
        raise TrainingStopped(
            f"KL at step 0 is not 0: policy and reference differ by {worst:.3g} nats at token {position} of response {row}; "
            "the passes do not compute the same function (adapter, temperature, masks or dtype)."
        )


def check_first_ratio(max_ratio_error: float, step: int) -> None:
    """The first minibatch of a rollout is trained on log-probs from the very graph that gave the old ones: ratio exactly 1 (checklist 6)."""
    if max_ratio_error != 0.0:
        raise TrainingStopped(
            f"The first ratio of step {step} is off 1 by {max_ratio_error:.3g}; old and new log-probs must come from the same "
            "graph with the same micro-batches."
        )


def check_masks(mask: Tensor, lengths: list[int]) -> None:
    """Masks count exactly the response tokens, EOS included, from the left, whatever the ids are (checklist 1, 3).   (B, T)"""
    expected = torch.arange(mask.shape[1])[None, :] < torch.tensor(lengths)[:, None]
    if not torch.equal(mask.cpu(), expected):
        row = int((mask.cpu() != expected).any(dim=1).nonzero()[0])
        raise TrainingStopped(
            f"The mask of response {row} counts {int(mask[row].sum())} tokens, the response has {lengths[row]}."
        )


def check_score_position(rewards: Tensor, penalties: Tensor, scores: Tensor, mask: Tensor) -> None:
    """Rewards minus KL penalties are the score on the last real token and 0 elsewhere (checklist 8).   (B, T), (B, T), (B,), (B, T)"""
    rest = rewards - penalties
    rows = torch.arange(len(scores))
    last = last_index(mask)
    if not torch.allclose(rest[rows, last], scores, atol=1e-4):
        raise TrainingStopped("A score is not on the last real token of its response.")
    rest = rest.clone()
    rest[rows, last] = 0.0
    if float(rest.abs().max()) > 1e-4:
        raise TrainingStopped("A reward lies on a token that is neither a KL penalty nor the last of its response.")


def check_trainable(module: nn.Module, trained: list[nn.Parameter], dtype: torch.dtype) -> None:
    """Only what the optimizer holds asks for gradients, and the weights have the dtype that was asked for (checklist 15)."""
    held = {id(parameter) for parameter in trained}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise TrainingStopped(f"{name} asks for gradients but no optimizer trains it.")
        if not parameter.requires_grad and parameter.dtype != dtype:
            raise TrainingStopped(f"{name} is {parameter.dtype}, the run asked for {dtype}.")


def check_off(module: nn.Module) -> None:
    """No dropout anywhere (checklist 4): a module with p > 0 in training mode makes every ratio random."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Dropout) and part.p > 0 and part.training:
            raise TrainingStopped(f"{name} drops out with p = {part.p}; PPO needs the same function in every pass.")


def check_first_preferences(worst_ratio: float, loss: float, expected: float) -> None:
    """Before any update of an offline run policy and reference are the same function: every log-ratio is 0, bit for bit, and the loss is
    what its closed form gives there (ln 2 for DPO, whatever the labels)."""
    if worst_ratio != 0.0:
        raise TrainingStopped(
            f"Policy and reference differ by {worst_ratio:.3g} nats before the first update; the passes do not compute the same "
            "function (adapter, masks or dtype)."
        )
    if abs(loss - expected) > 1e-5 * max(expected, 1.0):
        raise TrainingStopped(f"The first loss is {loss:.6f}; with policy = reference it must be {expected:.6f}.")


def check_finite(loss: float, update: int, rows: list[str]) -> None:
    """Raises TrainingStopped naming the batch whose loss is not a number; nothing was updated, the last saved state stays."""
    if not math.isfinite(loss):
        raise TrainingStopped(
            f"The loss of update {update} is {loss} (rows {_some(rows)}); lower the learning rate or look at these rows."
        )


@contextmanager
def naming(rows: list[str]) -> Iterator[None]:
    """What stops an update of these rows says which they are: a loss may be a number whose gradient is none."""
    try:
        yield
    except TrainingStopped as error:
        raise TrainingStopped(f"{error.message} Its rows are {_some(rows)}.") from error


def _some(rows: list[str]) -> str:
    return ", ".join(rows[:8]) + (" ..." if len(rows) > 8 else "")
