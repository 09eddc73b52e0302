"""Where a policy program starts: a base in its dtype, and a fresh adapter, a policy Checkpoint, or weights of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from plaudit.artifacts import read_manifest
from plaudit.errors import BadInput, ConfigError
from plaudit.learn import checkpoint, decoders, distributed
from plaudit.learn.configs import ComputeConfig, LoraConfig
from plaudit.learn.nets import Adapter, Decoder, Shape, pick_dtype
from plaudit.learn.tokens import ChatTokenizer


@dataclass(frozen=True)
class Policy:
    """What is trained: an adapter over a frozen decoder, or the decoder's own upper layers."""

    decoder: Decoder
    adapter: Adapter | None  # None: full weights

    def trained(self) -> dict[str, nn.Parameter]:
        module = self.decoder if self.adapter is None else self.adapter
        return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class Start:
    """What an online run starts from. Of an adapter all three decoders are one; full weights have a copy of what they train."""

    base: Decoder  # frozen: what reward models, judge and the KL to the base stand on
    reference: Policy  # frozen: the base, or the Checkpoint that the run started from
    policy: Policy


def choose_dtype(compute: ComputeConfig) -> torch.dtype:
    """The dtype that the config names, or the faster one here."""
    match compute.dtype:
        case "auto":
            return distributed.from_first(pick_dtype)  # machines that share a run may differ in what is faster
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16


def full_dtype(compute: ComputeConfig) -> torch.dtype:
    """float32, the only one that full weights are trained in. Raises ConfigError for bf16, where small updates are rounded away."""
    if compute.dtype == "bfloat16":
        raise ConfigError(
            "compute.dtype is 'bfloat16' with full weights (lora null); train them in float32, or use LoRA."
        )
    return torch.float32


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


def load_online(
    base: str, start: str, lora: LoraConfig | None, first_layer: int, seed: int, compute: ComputeConfig
) -> Start:
    """Base, reference and policy, which compute the same function now. Raises ConfigError where `start` changes what the run leaves frozen."""
    if lora is not None:
        decoder, adapter = load_start(base, start, lora, first_layer, seed, compute)
        frozen = copy.deepcopy(adapter).requires_grad_(False) if start else None
        return Start(decoder, Policy(decoder, frozen), Policy(decoder, adapter))
    decoder = load_base(base, first_layer, full_dtype(compute))
    reference = _full_start(decoder, Path(base), Path(start)) if start else decoder
    kept = _frozen_weights(reference, first_layer)
    for name, weight in _frozen_weights(decoder, first_layer).items():
        if not torch.equal(kept[name], weight):
            raise ConfigError(
                f"first_layer is {first_layer}, but {start} changed {name}, which is frozen then; lower first_layer, to 0 at the least."
            )
    return Start(decoder, Policy(reference, None), Policy(own_weights(reference, first_layer), None))


def _full_start(decoder: Decoder, base: Path, start: Path) -> Decoder:
    """A policy Checkpoint on this base as weights: its own, or the base with its adapter added."""
    if read_manifest(start, "checkpoint").body["adapter"] is None:
        return checkpoint.load_full_policy(start, base, decoder.dtype)
    return decoder.folded(checkpoint.load_policy(start, base))


def own_weights(decoder: Decoder, first_layer: int) -> Decoder:
    """A copy of the decoder whose weights from `first_layer` on are its own and ask for gradients; the others are shared."""
    shared = [*_frozen_weights(decoder, first_layer).values(), *decoder.buffers()]
    own: Decoder = copy.deepcopy(decoder, {id(tensor): tensor for tensor in shared})
    for parameter in full_weights(own, first_layer):
        parameter.requires_grad_(True)
    return own


def _frozen_weights(decoder: Decoder, first_layer: int) -> dict[str, nn.Parameter]:
    trained = {id(parameter) for parameter in full_weights(decoder, first_layer)}
    return {name: parameter for name, parameter in decoder.named_parameters() if id(parameter) not in trained}


def full_weights(decoder: Decoder, first_layer: int) -> list[nn.Parameter]:
    """What a full fine-tune from `first_layer` on trains: those layers, the final norm, the head; all there is if `first_layer` is 0.

    The embedding feeds the frozen trunk, so above 0 it stays, and with it a head that is tied to it. Raises BadInput where the decoder
    has no weights of our own to save (the plain path).
    """
    decoder.hf_names()
    if first_layer == 0:
        return list(decoder.parameters())
    layers = [decoder.layer(index) for index in range(first_layer, decoder.config.n_layers)]
    upper = [parameter for layer in layers for parameter in layer.parameters()]
    head = [] if decoder.head is decoder.embedding else [decoder.get_parameter("head")]
    return [*upper, decoder.norm, *head]
