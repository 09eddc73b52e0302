"""What several programs share: adapter, optimizer, layout of the work."""

# ruff: noqa: RUF009  (`option` is dataclasses.field with its documentation, not a shared mutable default)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from plaudit.errors import ConfigError
from plaudit.learn.configs.fields import check, nearest, option

Dtype = Literal["auto", "float32", "bfloat16"]
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapter on the layers that are trained."""

    rank: int = option(16, "rank of the update A B; 8 to 64 are usual [L]")
    alpha: float = option(32.0, "the update is scaled by alpha / rank; twice the rank keeps the usual scale of 2 [L]")
    targets: tuple[str, ...] = option(
        LINEAR_LAYERS, "linear layers of a block that are adapted; all of them by default"
    )

    def __post_init__(self) -> None:
        check(self, "rank", self.rank >= 1, "at least 1")
        check(self, "alpha", self.alpha > 0, "above 0")
        check(self, "targets", len(self.targets) > 0, "at least one layer name")
        for target in self.targets:
            if target not in LINEAR_LAYERS:
                raise ConfigError(f"LoraConfig.targets names {target!r}, {nearest(target, LINEAR_LAYERS)}.")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and a linear decay to 0."""

    learning_rate: float = option(2e-4, "peak rate of the adapter (full weights want about a tenth of it) [own]")
    head_learning_rate: float = option(
        1e-3, "peak rate of a fresh scalar head (reward or value), which starts from noise [own]"
    )
    weight_decay: float = option(0.0, "decoupled, on all trained weights; 0 as in [HF]")
    warmup_fraction: float = option(0.1, "share of all updates over which the rate climbs from 0 to its peak")
    schedule: Literal["linear", "constant"] = option("linear", "after warm-up: linear to 0, or constant")
    max_grad_norm: float = option(1.0, "the gradient of one update is scaled down to this norm")
    adam_eps: float = option(1e-5, "1e-5 as in [HF], not torch's 1e-8")
    beta1: float = option(0.9, "decay of Adam's first moment")
    beta2: float = option(
        0.95, "decay of Adam's second moment; .95 because runs are short (as in GPT-3, Brown et al. 2020)"
    )

    def __post_init__(self) -> None:
        for name in ("learning_rate", "head_learning_rate", "max_grad_norm", "adam_eps"):
            check(self, name, getattr(self, name) > 0, "above 0")
        check(self, "weight_decay", self.weight_decay >= 0, "0 or above")
        for name in ("warmup_fraction", "beta1", "beta2"):
            check(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")


@dataclass(frozen=True)
class ComputeConfig:
    """How the work is laid out on this machine; changes speed and memory, and results only by rounding."""

    dtype: Dtype = option(
        "auto", "weights and activations; auto measures a small product both ways and takes the faster"
    )
    threads: int = option(0, "torch threads; 0 is one for each physical core")
    micro_tokens: int = option(
        2048, "tokens (with padding) of one forward pass; bounds memory, gradients do not depend on it"
    )
    save_every: int = option(1, "updates between two saved states; a killed run repeats at most this many")

    def __post_init__(self) -> None:
        check(self, "threads", self.threads >= 0, "0 or above")
        check(self, "micro_tokens", self.micro_tokens >= 1, "at least 1")
        check(self, "save_every", self.save_every >= 1, "at least 1")


def no_head(config: Any, program: str) -> None:
    rate = config.optimizer.head_learning_rate
    if rate != OptimizerConfig().head_learning_rate:
        raise ConfigError(
            f"{type(config).__name__}.optimizer.head_learning_rate is {rate}, but {program} trains no head; "
            "set learning_rate instead."
        )
