"""Supervised data on its way to the model: batches of similar length, rows filled up, and the frozen trunk run once for all epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plaudit.errors import BadInput
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


def side_by_side(rows: Sequence[Pack], token_budget: int) -> list[Pack]:
    """Fill up the rows of longer conversations with shorter ones, then batch: micro-batches of at most `token_budget` tokens, one row at least.

    `rows` hold one row each, without padding. First fit by falling length (Johnson 1974), and no row grows beyond the longest, so
    attention does not get dearer. What lies in one row sees nothing of its neighbours: the mask has one block for each, positions
    start again (a test holds log-probs to those of one row each).
    """
    longest = max(batch.ids.shape[1] for batch in rows)
    bins: list[list[Pack]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda batch: -batch.ids.shape[1]):
        width = row.ids.shape[1]
        place = next((i for i, free in enumerate(room) if free >= width), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(longest)
        bins[place].append(row)
        room[place] -= width
    size = max(1, token_budget // longest)
    return [_joined(bins[at : at + size]) for at in range(0, len(bins), size)]


def _joined(bins: Sequence[Sequence[Pack]]) -> Pack:
    """One row for each bin, its packs one after another."""
    width = max(sum(part.ids.shape[1] for part in parts) for parts in bins)
    n = sum(len(part.response) for parts in bins for part in parts)
    longest = max(part.counts.shape[1] for parts in bins for part in parts)
    ids = torch.zeros(len(bins), width, dtype=torch.long)
    positions, source = torch.zeros_like(ids), torch.full_like(ids, -1)
    mask = torch.eye(width, dtype=torch.bool).repeat(len(bins), 1, 1)  # padding sees itself: no softmax over nothing
    row = torch.zeros(n, dtype=torch.long)
    predict, column, targets = (torch.zeros(n, longest, dtype=torch.long) for _ in range(3))
    counts = torch.zeros(n, longest, dtype=torch.bool)
    at = 0
    for b, parts in enumerate(bins):
        start = 0
        for part in parts:
            end = start + part.ids.shape[1]
            ids[b, start:end], positions[b, start:end] = part.ids[0], part.positions[0]
            source[b, start:end], mask[b, start:end, start:end] = part.source[0], part.mask[0]
            here, columns = slice(at, at + len(part.response)), slice(0, part.counts.shape[1])
            row[here] = b
            counts[here, columns], targets[here, columns] = part.counts, part.targets
            predict[here, columns] = torch.where(part.counts, part.predict + start, 0)
            column[here, columns] = torch.where(part.counts, part.column + start, 0)
            start, at = end, here.stop
    responses = torch.cat([part.response for parts in bins for part in parts])
    return Pack(ids, positions, mask, source, responses, row, predict, column, targets, counts)


class Batcher:
    """Packs of some groups of `data` with the frozen trunk below them.

    The trunk of the whole split is kept where it fits TRUNK_CACHE_BYTES; larger splits run it again for each batch.
    """

    def __init__(
        self,
        decoder: Decoder,
        data: Rollout,
        first_layer: int,
        token_budget: int,
        packing: bool = False,
        tell: Callable[[int, int], None] | None = None,
    ) -> None:
        """`tell` hears how far the trunk is. Raises BadInput where a conversation is longer than the model's positions."""
        self.decoder, self.data, self.first_layer, self.token_budget = decoder, data, first_layer, token_budget
        self.packing = packing
        longest = max(
            len(data.prompt_ids[group]) + len(ids) for group, ids in zip(data.group, data.response_ids, strict=True)
        )
        if longest > decoder.config.max_positions:
            raise BadInput(
                f"A prompt with its response has {longest} tokens, the model has {decoder.config.max_positions} positions; "
                "lower max_prompt_tokens or max_response_tokens."
            )
        self._members: list[list[int]] = [[] for _ in data.prompt_ids]
        for index, group in enumerate(data.group):
            self._members[group].append(index)
        size = sum(group_lengths(data)) * decoder.config.d_model * decoder.dtype.itemsize
        fits = first_layer > 0 and size <= TRUNK_CACHE_BYTES
        self._trunk = run_trunk(decoder, data, first_layer, token_budget, tell=tell) if fits else None

    def packs(self, groups: Sequence[int]) -> tuple[list[Pack], Trunk | None, Tensor]:
        """(micro-batches, their trunk, index in `data` of each pack's response number). No groups, no micro-batches."""
        if not groups:
            return [], None, torch.zeros(0, dtype=torch.long)
        chosen = [index for group in groups for index in self._members[group]]
        if self.first_layer == 0 or self._trunk is not None:
            return self._lay_out(self.data, chosen), self._trunk, torch.arange(self.data.n)
        place = {group: i for i, group in enumerate(groups)}
        part = Rollout(
            [self.data.prompt_ids[group] for group in groups],
            [self.data.response_ids[index] for index in chosen],
            [place[self.data.group[index]] for index in chosen],
            [self.data.finished[index] for index in chosen],
        )
        trunk = run_trunk(self.decoder, part, self.first_layer, self.token_budget)
        return self._lay_out(part, None), trunk, torch.tensor(chosen)

    def _lay_out(self, data: Rollout, chosen: Sequence[int] | None) -> list[Pack]:
        if not self.packing:
            return pack(data, chosen, self.token_budget, row_tokens=WHOLE_ROW)
        return side_by_side(pack(data, chosen, 1, row_tokens=WHOLE_ROW), self.token_budget)

    def blocks(self, groups: Sequence[int] | None = None, size: int = 64) -> list[Sequence[int]]:
        """Groups (all, if not told) in order, in blocks whose trunk fits in memory."""
        chosen = range(len(self.data.prompt_ids)) if groups is None else groups
        step = len(chosen) if self.first_layer == 0 or self._trunk is not None else size
        return [chosen[at : at + step] for at in range(0, len(chosen), step)]


@torch.no_grad()
def extend_trunk(
    decoder: Decoder,
    data: Rollout,
    trunk: Trunk | None,
    layer: int,
    token_budget: int,
    responses: Sequence[int] | None = None,
) -> Trunk:
    """The trunk at `layer`, from a shallower one where there is one: two models that freeze different depths share what both freeze."""
    if trunk is None or trunk.layer == 0:
        return run_trunk(decoder, data, layer, token_budget, responses)
    flat = torch.zeros_like(trunk.hidden)
    for batch in pack(data, responses, token_budget):
        hidden = trunk.hidden[batch.source.clamp(min=0)]
        hidden = decoder.run_layers(hidden, batch.positions, batch.mask, trunk.layer, layer, None)
        real = batch.source >= 0
        flat[batch.source[real]] = hidden[real]
    return Trunk(layer, flat)
