"""AdamW over an adapter (or full weights) and scalar heads, its schedule, and one guarded update.

Our own forty lines instead of torch.optim: the first optimizer of a process there imports the compiler (2-6 s and 200 MB), and our state
is plain tensors and numbers, which load without unpickling code. Equal to torch.optim.AdamW (a test holds it to that).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plaudit.errors import TrainingStopped
from plaudit.learn import distributed
from plaudit.learn.configs import OptimizerConfig


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) and one peak rate for each parameter."""

    def __init__(self, config: OptimizerConfig, body: Sequence[nn.Parameter], heads: Sequence[nn.Parameter]) -> None:
        """`body` (adapter or weights) learns at learning_rate, `heads` (fresh scalar heads) at head_learning_rate."""
        self.config = config
        self.parameters = [*body, *heads]
        self.peaks = [config.learning_rate] * len(body) + [config.head_learning_rate] * len(heads)
        self.steps = 0
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, update: int, updates: int) -> tuple[float, float]:
        """Add up the processes' gradients, clip, update at the schedule's rates, clear.

        Returns (gradient norm before clipping, rate of the body).

        Raises TrainingStopped on a gradient that is not finite; weights and moments are untouched then.
        """
        c = self.config
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        distributed.add_up(gradients)
        norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
        if not math.isfinite(norm):
            raise TrainingStopped(f"The gradient of update {update} is not finite ({norm}); lower the learning rate.")
        if norm > c.max_grad_norm:
            gradients = list(torch._foreach_mul(gradients, c.max_grad_norm / norm))
        self.steps += 1
        torch._foreach_lerp_(self.first, gradients, 1 - c.beta1)
        torch._foreach_mul_(self.second, c.beta2)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - c.beta2)
        factor = rate_factor(c, update, updates)
        bias1, bias2 = 1 - c.beta1**self.steps, math.sqrt(1 - c.beta2**self.steps)
        for parameter, first, second, peak in zip(self.parameters, self.first, self.second, self.peaks, strict=True):
            rate = peak * factor
            parameter.mul_(1 - rate * c.weight_decay)
            parameter.addcdiv_(first, second.sqrt().div_(bias2).add_(c.adam_eps), value=-rate / bias1)
        self.clear()
        return norm, c.learning_rate * factor

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on; tensors are copies."""
        return {
            "steps": self.steps,
            "first": [m.clone() for m in self.first],
            "second": [v.clone() for v in self.second],
        }

    def load(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        pairs: list[tuple[list[Tensor], list[Tensor]]] = [(self.first, state["first"]), (self.second, state["second"])]
        for mine, saved in pairs:
            for tensor, value in zip(mine, saved, strict=True):
                tensor.copy_(value)


def rate_factor(config: OptimizerConfig, update: int, updates: int) -> float:
    """Share of the peak rate for update 0, 1, ... updates-1: climbs over the warm-up, then falls linearly to 0 after the last."""
    warmup = round(config.warmup_fraction * updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    return 1.0 if config.schedule == "constant" else (updates - update) / max(updates - warmup, 1)
