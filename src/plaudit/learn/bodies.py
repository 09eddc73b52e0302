"""What a reward run trains: bodies, each a decoder with an adapter and heads; made on their bases, saved and restored.

One body carries M members' heads for C criteria: 1 x 1 as a rule; C heads where `heads` names criteria; an ensemble of K members is K
bodies one after another on the same trunk, or one body with K x C heads. Where `other_bases` are named, bodies stand on them in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plaudit.errors import ConfigError
from plaudit.learn import checkpoint, distributed
from plaudit.learn.base_models import identity
from plaudit.learn.configs import RewardConfig
from plaudit.learn.doctor import check_off, check_trainable
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.optimizer import AdamW
from plaudit.learn.policies import choose_dtype, load_base
from plaudit.learn.questions import Questions
from plaudit.learn.readers import Reader
from plaudit.learn.rewards import RewardModel, head_width
from plaudit.learn.run_folder import RunFolder
from plaudit.learn.tokens import ChatTokenizer

SEED_STEP = 1000  # between the seeds of two members


@dataclass
class Body:
    """A decoder with what is trained on it. `heads` holds M x C heads, member by member."""

    members: list[int]
    decoder: Decoder
    adapter: Adapter | None
    heads: nn.ModuleList
    adam: AdamW
    model: RewardModel  # how a head reads this body; its own head is the first one
    stand: int = 0  # which of the bases: 0 is `base`, then `other_bases`
    update: int = 0
    seen: list[float] = field(
        default_factory=lambda: [0.0, 0.0, 0.0]
    )  # pairs, right ones, loss x pairs since the last point

    @property
    def module(self) -> nn.Module:
        """What is trained: the heads, and the adapter or the decoder's upper layers."""
        return nn.ModuleDict({"body": self.adapter or self.decoder, "heads": self.heads})

    def trained(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.module.named_parameters() if p.requires_grad}

    def scores(self, states: Tensor) -> Tensor:
        """(k, D) -> (k, M, C)"""
        found = torch.stack([head(states) for head in self.heads], dim=1)
        return found.view(len(states), len(self.members), -1)


def load_bases(config: RewardConfig) -> list[Reader]:
    """`base`, then `other_bases`. Raises as load_decoder does; ConfigError where one is named twice."""
    bases = [
        Reader(Path(base), ChatTokenizer.load(Path(base)), load_decoder(config, base), config.compute.micro_tokens)
        for base in (config.base, *config.other_bases)
    ]
    known = [identity(base.folder) for base in bases] if config.other_bases else []
    for b, one in enumerate(known):
        if one in known[:b]:
            raise ConfigError(
                f"RewardConfig.other_bases names {bases[b].folder}, which is {bases[known.index(one)].folder} again; members on one base "
                "need it named once."
            )
    return bases


def bases_of(bases: Sequence[Reader], data: Sequence[Questions]) -> list[dict[str, Any]]:
    """Which bases, and what each had to cut, in its own tokens."""
    return [{"spec": identity(base.folder).spec, "cut": asked.cut} for base, asked in zip(bases, data, strict=True)]


def start_all(config: RewardConfig, bases: Sequence[Reader]) -> list[Body]:
    """All members: a body each, on the bases in turn, or one body."""
    if config.members_share == "body":
        return [start(config, bases[0].decoder, list(range(config.members)))]
    bodies = []
    for member in range(config.members):
        stand = member % len(bases)
        body = start(config, bases[stand].decoder, [member])
        reader = bases[stand] if stand else None
        bodies.append(replace(body, stand=stand, model=replace(body.model, reader=reader)))
    return bodies


def load_decoder(config: RewardConfig, base: str = "") -> Decoder:
    """The base, or another one. Raises ConfigError for a layer it lacks, and for full training in bf16, where small updates would be rounded away."""
    if config.lora is None and config.compute.dtype == "bfloat16":
        raise ConfigError(
            "compute.dtype is 'bfloat16' with full weights (lora null); train them in float32, or use LoRA."
        )
    base = base or config.base
    decoder = load_base(base, config.first_layer, _dtype(config))
    if config.read_layer > decoder.config.n_layers:
        raise ConfigError(
            f"RewardConfig.read_layer is {config.read_layer}, but {base} has {decoder.config.n_layers} layers; 0 means all of them."
        )
    return decoder


def _dtype(config: RewardConfig) -> torch.dtype:
    return torch.float32 if config.lora is None else choose_dtype(config.compute)


def start(config: RewardConfig, decoder: Decoder, members: list[int]) -> Body:
    """Fresh weights and optimizer for these members."""
    read_layer = config.read_layer or decoder.config.n_layers
    adapter = None
    if config.lora is not None:
        adapter = Adapter(
            decoder.config,
            config.lora.rank,
            config.lora.alpha,
            config.first_layer,
            config.lora.targets,
            seed=config.seed + SEED_STEP * members[0],
        )
    else:
        upper = [decoder.layer(index) for index in range(config.first_layer, read_layer)]
        for parameter in (p for layer in upper for p in layer.parameters()):
            parameter.requires_grad_(True)
        if config.first_layer == 0:
            decoder.embedding.requires_grad_(True)
    width = head_width(config.pooling, decoder.config.d_model)
    seeds = [config.seed + SEED_STEP * m + c for m in members for c in range(max(1, len(config.heads)))]
    heads = [ScalarHead(width, seed=seed) for seed in seeds]
    trained = nn.ModuleList(heads)
    body = [p for p in (adapter or decoder).parameters() if p.requires_grad]
    check_trainable(nn.ModuleList([decoder, trained]), [*body, *trained.parameters()], _dtype(config))
    check_off(decoder)
    model = RewardModel(decoder, adapter, heads[0], config.pooling, config.first_layer, read_layer=read_layer)
    return Body(members, decoder, adapter, trained, AdamW(config.optimizer, body, list(trained.parameters())), model)


def save(bodies: list[Body], now: int, curve: list[dict[str, Any]], run: RunFolder) -> None:
    """What `restore` needs: the bodies that are done, and all of the one that is being trained."""
    body = bodies[now]
    checkpoint.save_state(
        run.state,
        {
            "done": [one.trained() for one in bodies[:now]],
            "updates": [one.update for one in bodies],
            "trained": body.trained(),
            "optimizer": body.adam.state(),
            "seen": body.seen,
            "curve": curve,
        },
    )


def restore(bodies: list[Body], run: RunFolder) -> tuple[int, list[dict[str, Any]]] | None:
    """Continue from the last saved state: (the body to go on with, the curve so far); None where there is no state."""
    state = checkpoint.load_state(run.state)
    if state is None:
        for body in bodies:
            distributed.level(body.trained().values())
        return None
    now = len(state["done"])
    for body, trained in zip(bodies, [*state["done"], state["trained"]], strict=False):
        for name, tensor in body.trained().items():
            tensor.copy_(trained[name])
    for body, updates in zip(bodies, state["updates"], strict=True):
        body.update = updates
    bodies[now].adam.load(state["optimizer"])
    bodies[now].seen = state["seen"]
    return now, state["curve"]
