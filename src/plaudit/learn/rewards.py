"""From responses to scores: a reward model as plain functions on packs. A score is the model's output; a reward is what RL sums (advantages.py).

A model may be an ensemble: K members in one, each with a head and mostly an adapter of its own; its score is their mean. A head may be the
weighted sum of one head per criterion. Both are linear, so whoever wants one number needs to know of neither.

The model reads the very ids that were sampled (checklist 2), on the same base as the policy, so hidden states of the frozen trunk are
shared. A model or a member that stands on another base has a `reader` and reads their text (readers.py).
Shapes: n responses of a pack, N of a rollout, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from plaudit.learn.nets import Adapter, Decoder, ScalarHead, rms_norm
from plaudit.learn.readers import Reader, Texts
from plaudit.learn.tokens import Pack, Trunk, at_last, at_predict, at_tokens

Pooling = Literal["last", "mean", "both"]


@dataclass(frozen=True)
class RewardModel:
    """A decoder with a scalar head. `sd` is the spread of its scores on reference completions, where their mean is 0.

    Of an ensemble, `adapter` and `head` are the first member's; read it through score_responses and member_scores.
    """

    decoder: Decoder
    adapter: Adapter | None  # None: the decoder's own weights were trained
    head: ScalarHead
    pooling: Pooling
    first_layer: int  # layers below are the base's
    sd: float = 1.0
    read_layer: int = field(kw_only=True)  # the head reads the hidden state after this many layers
    heads: Mapping[str, ScalarHead] = field(
        default_factory=dict, kw_only=True
    )  # by criterion; `head` is their weighted sum
    members: tuple[RewardModel, ...] = field(
        default=(), kw_only=True
    )  # an ensemble's, each with an sd of its own; else empty
    reader: Reader | None = field(default=None, kw_only=True)  # the base it stands on, where that is not the program's

    @property
    def reads_ids(self) -> bool:
        """Whether it, or a member, stands on the program's base and so wants a trunk of it."""
        return any(member.reader is None for member in self.members or (self,))

    @property
    def reads_text(self) -> bool:
        """Whether it, or a member, stands on another base."""
        return any(member.reader is not None for member in self.members or (self,))


def features(hidden: Tensor) -> Tensor:
    """States scaled to root mean square 1, so that head, learning rate and value clip mean the same on every base.   (..., D) -> (..., D) fp32"""
    return F.rms_norm(hidden.float(), (hidden.shape[-1],))


def read_states(model: RewardModel, batch: Pack, trunk: Trunk | None) -> Tensor:
    """What the head reads: hidden states after `read_layer` layers under the norm that the next layer (or the head) would apply.

    -> (B, T, D). Channels of a residual stream differ in size by orders of magnitude; that norm's weights are the model's own remedy.
    """
    decoder = model.decoder
    if trunk is None:
        start, hidden = 0, decoder.embed(batch.ids)
    else:
        assert trunk.layer <= model.first_layer
        start, hidden = trunk.layer, trunk.hidden[batch.source.clamp(min=0)]
    hidden = decoder.run_layers(hidden, batch.positions, batch.mask, start, model.read_layer, model.adapter)
    return normed(decoder, hidden, model.read_layer)


def normed(decoder: Decoder, hidden: Tensor, layer: int) -> Tensor:
    """Hidden states after so many layers, under the norm that the next one (or the head) would apply.   (..., D) -> (..., D)"""
    if layer == decoder.config.n_layers:
        return decoder.final(hidden)
    return rms_norm(hidden, decoder.layer(layer).input_norm, decoder.config.rms_eps)


def pooled(model: RewardModel, batch: Pack, trunk: Trunk | None) -> Tensor:
    """What the head reads of each response.   -> (n, D), or (n, 2 D) for `both`; fp32, with gradient where the caller records it

    `last` is the last real token (EOS where the response finished), `mean` the average over all response tokens, `both` one beside
    the other: the end says whether it is whole, the mean what it is about.
    """
    hidden = read_states(model, batch, trunk)
    parts = []
    if model.pooling in ("last", "both"):
        parts.append(features(at_last(hidden, batch)))
    if model.pooling in ("mean", "both"):
        weights = batch.counts.float() / batch.counts.sum(dim=1, keepdim=True)
        parts.append((features(at_tokens(hidden, batch)) * weights[..., None]).sum(dim=1))
    return torch.cat(parts, dim=-1)


def head_width(pooling: Pooling, d_model: int) -> int:
    """Numbers that a reward head reads of one response."""
    return d_model * (2 if pooling == "both" else 1)


def pack_scores(model: RewardModel, batch: Pack, trunk: Trunk | None) -> Tensor:
    """Raw scores of one pack, with gradient where the caller records it.   -> (n,) fp32"""
    return _scalars(model.head, pooled(model, batch, trunk))


@torch.no_grad()
def score_responses(
    model: RewardModel, packs: Sequence[Pack], trunk: Trunk | None, texts: Texts | None = None
) -> Tensor:
    """Raw scores in rollout order, of an ensemble the members' mean.   packs of N responses -> (N,) fp32

    Divide by `model.sd` for units of the reference's spread. `texts` are the same responses, for a model that `reads_text`.
    """
    return _scores_by_head(model, packs, trunk, texts, lambda member: [member.head])[:, 0].mean(dim=0)


@torch.no_grad()
def member_scores(model: RewardModel, packs: Sequence[Pack], trunk: Trunk | None, texts: Texts | None = None) -> Tensor:
    """Each member's scores, in units of its own spread on the reference.   packs of N responses -> (K, N) fp32, K = 1 without members

    Their standard deviation over K is the ensemble's disagreement (Coste et al. 2023).
    """
    spread = torch.tensor([member.sd for member in model.members or (model,)])
    return _scores_by_head(model, packs, trunk, texts, lambda member: [member.head])[:, 0] / spread[:, None]


@torch.no_grad()
def criterion_scores(
    model: RewardModel, packs: Sequence[Pack], trunk: Trunk | None, texts: Texts | None = None
) -> dict[str, Tensor]:
    """Raw scores by criterion, of an ensemble the members' mean; empty where the model has one head for all.   -> (N,) fp32 each"""
    names = list((model.members or (model,))[0].heads)
    if not names:
        return {}
    found = _scores_by_head(model, packs, trunk, texts, lambda member: [member.heads[name] for name in names])
    means = found.mean(dim=0)
    return dict(zip(names, means, strict=True))


def _scores_by_head(
    model: RewardModel,
    packs: Sequence[Pack],
    trunk: Trunk | None,
    texts: Texts | None,
    heads: Callable[[RewardModel], Sequence[ScalarHead]],
) -> Tensor:
    """(K, heads, N): members that share a body (decoder and adapter) read its states once."""
    members = model.members or (model,)
    n = 1 + max(int(batch.response.max()) for batch in packs)
    scores = torch.zeros(len(members), len(heads(members[0])), n)
    for reader in {id(member.reader): member.reader for member in members}.values():
        below = trunk if reader is None else None
        for batch in packs if reader is None else _read_text(reader, texts, packs):
            states: dict[tuple[int, int], Tensor] = {}
            for k, member in enumerate(members):
                if member.reader is not reader:
                    continue
                body = (id(member.decoder), id(member.adapter))
                if body not in states:
                    states[body] = pooled(member, batch, below)
                for h, head in enumerate(heads(member)):
                    scores[k, h, batch.response] = _scalars(head, states[body])
    return scores


def _read_text(reader: Reader, texts: Texts | None, packs: Sequence[Pack]) -> list[Pack]:
    """The responses of these packs, in the reader's tokens."""
    assert texts is not None, "a model of another base needs the responses' text"
    return reader.packs(texts, torch.cat([batch.response for batch in packs]).tolist())


@torch.no_grad()
def prefix_scores(model: RewardModel, packs: Sequence[Pack], trunk: Trunk | None) -> Tensor:
    """What each response would score if it ended at each of its tokens, of an ensemble the members' mean.   -> (N, R) fp32, 0 where none"""
    members = model.members or (model,)
    n, width = 1 + max(int(batch.response.max()) for batch in packs), max(batch.counts.shape[1] for batch in packs)
    scores = torch.zeros(n, width)
    for batch in packs:
        counts = batch.counts.float()
        for member in members:
            states = features(at_tokens(read_states(member, batch, trunk), batch)) * counts[..., None]
            so_far = states.cumsum(dim=1) / counts.cumsum(dim=1).clamp(min=1)[..., None]
            parts = {"last": [states], "mean": [so_far], "both": [states, so_far]}[member.pooling]
            found = _scalars(member.head, torch.cat(parts, dim=-1)) * counts
            scores[batch.response, : counts.shape[1]] += found / len(members)
    return scores


def token_values(head: ScalarHead, hidden: Tensor, batch: Pack, detach: bool) -> Tensor:
    """Values from the positions that predict the tokens: the same slice as the log-probs (checklist 11).   (B, T, D) -> (n, R) fp32"""
    states = features(at_predict(hidden, batch))
    return _scalars(head, states.detach() if detach else states)


def end_values(head: ScalarHead, hidden: Tensor, batch: Pack) -> Tensor:
    """V(s_T): the value after each response's last token, for bootstrapping truncated ones.   (B, T, D) -> (n,) fp32"""
    return _scalars(head, features(at_last(hidden, batch)))


def _scalars(head: ScalarHead, states: Tensor) -> Tensor:
    scalars: Tensor = head(states)
    return scalars
