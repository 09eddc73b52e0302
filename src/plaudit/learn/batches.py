"""Supervised data on its way to the model: batches of similar length, and the frozen trunk run once for all epochs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plaudit.learn.nets import Decoder
from plaudit.learn.tokens import Pack, Rollout, Trunk, pack, run_trunk

TRUNK_CACHE_BYTES = 1 << 30  # hidden states of a split are kept up to this size, else run again for each batch
BUCKET = 8  # batches that are sorted by length together
WHOLE_ROW = 1 << 30  # responses to one prompt never leave its row: a pairwise loss needs both sides at once


def length_buckets(lengths: Sequence[int], size: int, generator: torch.Generator) -> list[list[int]]:
    """A random order of items in batches of similar length: shuffle, sort within BUCKET batches, shuffle the batches."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    out: list[list[int]] = []
    for at in range(0, len(order), BUCKET * size):
        bucket = sorted(order[at : at + BUCKET * size], key=lambda item: lengths[item])
        out += [bucket[start : start + size] for start in range(0, len(bucket), size)]
    return [out[i] for i in torch.randperm(len(out), generator=generator).tolist()]


def group_lengths(data: Rollout) -> list[int]:
    """Tokens of each group: its prompt once and all its responses.   -> G"""
    lengths = [len(ids) for ids in data.prompt_ids]
    for group, ids in zip(data.group, data.response_ids, strict=True):
        lengths[group] += len(ids)
    return lengths


class Batcher:
    """Packs of some groups of `data` with the frozen trunk below them.

    The trunk of the whole split is kept where it fits TRUNK_CACHE_BYTES; larger splits run it again for each batch.
    """

    def __init__(self, decoder: Decoder, data: Rollout, first_layer: int, token_budget: int) -> None:
        self.decoder, self.data, self.first_layer, self.token_budget = decoder, data, first_layer, token_budget
        self._members: list[list[int]] = [[] for _ in data.prompt_ids]
        for index, group in enumerate(data.group):
            self._members[group].append(index)
        size = sum(group_lengths(data)) * decoder.config.d_model * decoder.dtype.itemsize
        fits = first_layer > 0 and size <= TRUNK_CACHE_BYTES
        self._trunk = run_trunk(decoder, data, first_layer, token_budget) if fits else None

    def packs(self, groups: Sequence[int]) -> tuple[list[Pack], Trunk | None, Tensor]:
        """(micro-batches, their trunk, index in `data` of each pack's response number)."""
        chosen = [index for group in groups for index in self._members[group]]
        if self.first_layer == 0 or self._trunk is not None:
            packs = pack(self.data, chosen, self.token_budget, row_tokens=WHOLE_ROW)
            return packs, self._trunk, torch.arange(self.data.n)
        place = {group: i for i, group in enumerate(groups)}
        part = Rollout(
            [self.data.prompt_ids[group] for group in groups],
            [self.data.response_ids[index] for index in chosen],
            [place[self.data.group[index]] for index in chosen],
            [self.data.finished[index] for index in chosen],
        )
        packs = pack(part, None, self.token_budget, row_tokens=WHOLE_ROW)
        return packs, run_trunk(self.decoder, part, self.first_layer, self.token_budget), torch.tensor(chosen)

    def blocks(self, groups: Sequence[int] | None = None, size: int = 64) -> list[Sequence[int]]:
        """Groups (all, if not told) in order, in blocks whose trunk fits in memory."""
        chosen = range(len(self.data.prompt_ids)) if groups is None else groups
        step = len(chosen) if self.first_layer == 0 or self._trunk is not None else size
        return [chosen[at : at + step] for at in range(0, len(chosen), step)]


@torch.no_grad()
def extend_trunk(decoder: Decoder, data: Rollout, trunk: Trunk | None, layer: int, token_budget: int) -> Trunk:
    """The trunk at `layer`, from a shallower one where there is one: two models that freeze different depths share what both freeze."""
    if trunk is None or trunk.layer == 0:
        return run_trunk(decoder, data, layer, token_budget)
    flat = torch.zeros_like(trunk.hidden)
    for batch in pack(data, token_budget=token_budget):
        hidden = trunk.hidden[batch.source.clamp(min=0)]
        hidden = decoder.run_layers(hidden, batch.positions, batch.mask, trunk.layer, layer, None)
        real = batch.source >= 0
        flat[batch.source[real]] = hidden[real]
    return Trunk(layer, flat)
