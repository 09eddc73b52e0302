"""Where a policy program starts: a base in its dtype, and a fresh adapter or a policy Checkpoint's."""

from __future__ import annotations

from pathlib import Path

import torch

from plaudit.errors import ConfigError
from plaudit.learn import checkpoint
from plaudit.learn.configs import ComputeConfig, LoraConfig
from plaudit.learn.nets import Adapter, Decoder, pick_dtype


def choose_dtype(compute: ComputeConfig) -> torch.dtype:
    """The dtype that the config names, or the faster one here."""
    match compute.dtype:
        case "auto":
            return pick_dtype()
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16


def load_base(base: str, first_layer: int, dtype: torch.dtype) -> Decoder:
    """The base's decoder. Raises ConfigError where first_layer leaves nothing to train."""
    decoder = Decoder.load(Path(base), dtype)
    if first_layer >= decoder.config.n_layers:
        raise ConfigError(
            f"first_layer is {first_layer}, but {base} has {decoder.config.n_layers} layers; it must be below that."
        )
    return decoder


def load_start(
    base: str, start: str, lora: LoraConfig, first_layer: int, seed: int, compute: ComputeConfig
) -> tuple[Decoder, Adapter]:
    """Decoder and trainable adapter. Raises ConfigError where the starting Checkpoint's adapter has another shape than the config."""
    decoder = load_base(base, first_layer, choose_dtype(compute))
    adapter = Adapter(decoder.config, lora.rank, lora.alpha, first_layer, lora.targets, seed=seed)
    if start:
        found = checkpoint.load_policy(Path(start), Path(base))
        shapes = [(a.rank, a.alpha, a.first_layer, a.targets) for a in (adapter, found)]
        if shapes[0] != shapes[1]:
            names = ("rank", "alpha", "first_layer", "targets")
            wrong = [f"{n} {x!r} where it has {y!r}" for n, x, y in zip(names, *shapes, strict=True) if x != y]
            raise ConfigError(f"The config asks for {', '.join(wrong)}: {start} must be continued with its own shape.")
        adapter.load_state_dict(found.state_dict())
    return decoder, adapter
