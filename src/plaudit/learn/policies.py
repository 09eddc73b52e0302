"""Where a policy program starts: a base in its dtype, and a fresh adapter or a policy Checkpoint's."""

from __future__ import annotations

from pathlib import Path

import torch

from plaudit.errors import BadInput, ConfigError
from plaudit.learn import checkpoint, decoders
from plaudit.learn.configs import ComputeConfig, LoraConfig
from plaudit.learn.nets import Adapter, Decoder, Shape, pick_dtype
from plaudit.learn.tokens import ChatTokenizer


def choose_dtype(compute: ComputeConfig) -> torch.dtype:
    """The dtype that the config names, or the faster one here."""
    match compute.dtype:
        case "auto":
            return pick_dtype()
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16


def check_vocabulary(base: Path, shape: Shape) -> None:
    """Raises BadInput where the tokenizer gives ids that the model has no embedding for."""
    highest = ChatTokenizer.load(base).highest_id
    if highest >= shape.vocab_size:
        raise BadInput(
            f"The tokenizer of {base} gives ids up to {highest}, its model has {shape.vocab_size} embeddings; "
            "it belongs to another model."
        )


def load_base(base: str, first_layer: int, dtype: torch.dtype) -> Decoder:
    """The base's decoder. Raises ConfigError where first_layer leaves nothing to train, BadInput where the tokenizer is not the model's."""
    decoder = decoders.load(Path(base), dtype)
    check_vocabulary(Path(base), decoder.config)
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
