"""Sampling: one decode loop with a key-value cache, used by training (`generate`) and by the policy server (`DecodeLoop`).

Prefill happens once for every unique prompt, the tokens that all prompts begin with (the system prompt) once for all; samples of one
prompt share it, and a server keeps what it has seen last (`prompt_bytes`). Rows that finish leave the batch at once, new ones join
between steps. A row's numbers come from (seed, row, step), so what is sampled does not depend on the batch it is in. Sampling is a search
in cumulative sums: `torch.multinomial` is slow on a CPU where the vocabulary is large.

Shapes: N active rows, S cached tokens, L layers, G key-value heads, H heads, hd head width, V vocabulary, P prompts of a prefill.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakSet

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from plaudit.errors import BadInput
from plaudit.learn.nets import Adapter, Decoder, Deltas
from plaudit.learn.plain import PlainCache, PlainDecoder
from plaudit.learn.prompt_cache import PromptCache
from plaudit.learn.tokens import Rollout

PREFILL_TOKENS = 2048  # of one prefill pass, padding included
BLOCK = 256  # tokens of the vocabulary in one first-level sum
MIN_PREFIX = 8  # shorter common beginnings are not worth a pass of their own


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. Training uses temperature alone (checklist 5); everything else is for serving."""

    max_new_tokens: int
    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int = 0  # 0 = all
    top_p: float = 1.0
    seed: int = 0
    logprobs: int | None = None  # report log-probs and this many alternatives
    processed: bool = False  # of the distribution that was sampled from; else the model's own, at temperature 1
    presence_penalty: float = 0.0  # taken from the logit of every token that the response holds already
    frequency_penalty: float = 0.0  # the same, once for each time
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    stop_ids: tuple[int, ...] = ()  # end the response besides the model's own
    ignore_stop: bool = False  # the model's own stop tokens do not end it

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise BadInput(
                f"{self} cannot be sampled: max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1, top_k >= 0."
            )


@dataclass(eq=False)
class Row:
    """One response in the making. `end` is None while it runs, then "stop" (a stop token, which is the last id) or "length"."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    key: int  # which random numbers: rows of equal (seed, key) and prompt are equal
    adapter: Adapter | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(
        default_factory=list
    )  # of the sampling distribution; of the model where Sampling.logprobs asks
    top: list[list[tuple[int, float]]] = field(default_factory=list)  # alternatives, where asked
    end: str | None = None


@dataclass(frozen=True)
class Generated:
    rollout: Rollout
    logprobs: list[list[float]]  # N, each as long as the response; under the sampling temperature


class DecodeLoop:
    """Continuous batching: `admit` rows, `step` until `rows` is empty. Not thread-safe; one thread owns it.

    `prompt_bytes` bounds the keys and values that are kept of prompts for when they are asked again (fast path only). 0 keeps none, which
    is what training wants: its adapter changes between two calls.
    """

    def __init__(self, decoder: Decoder, stop_ids: Sequence[int] | None = None, prompt_bytes: int = 0) -> None:
        self.decoder = decoder.for_sampling()
        self.stop_ids = frozenset(decoder.config.stop_ids if stop_ids is None else stop_ids)
        self.rows: list[Row] = []
        self._cache = (
            PlainCache(self.decoder)
            if isinstance(self.decoder, PlainDecoder)
            else FastCache(self.decoder, prompt_bytes)
        )

    @torch.inference_mode()
    def admit(self, rows: Sequence[Row]) -> list[Row]:
        """Prefill and sample each row's first token; returns them all (some may have ended). Raises BadInput on a prompt without room."""
        limit = self.decoder.config.max_positions
        for row in rows:
            if not row.prompt_ids or len(row.prompt_ids) + row.sampling.max_new_tokens > limit:
                raise BadInput(
                    f"A prompt of {len(row.prompt_ids)} tokens and {row.sampling.max_new_tokens} new ones do not fit "
                    f"the model's {limit} positions; shorten the prompt or ask for fewer tokens."
                )
        if not rows:
            return []
        ordered, states = self._cache.prefill(rows, len(self.rows))
        self.rows += ordered
        self._choose(ordered, states)
        self._compact()
        return list(rows)

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """One more token for every active row; returns the rows that advanced. Ended rows leave `rows`."""
        rows = list(self.rows)
        if not rows:
            return []
        self._choose(rows, self._cache.step(rows))
        self._compact()
        return rows

    @torch.inference_mode()
    def drop(self, gone: Callable[[Row], bool]) -> None:
        """Take rows out that nobody waits for."""
        for row in self.rows:
            if gone(row):
                row.end = "dropped"
        self._compact()

    def forget(self, adapter: Adapter | None = None) -> None:
        """Forget what is cached of an adapter's prompts (after unloading it)."""
        self._cache.forget(adapter)

    def _choose(self, rows: Sequence[Row], hidden: Tensor) -> None:
        """Sample a token for each row from its normed hidden state (n, D) and note ends."""
        logits = self.decoder.logits(hidden)
        asked = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None]
        raw = logits[asked].log_softmax(-1)  # a copy: sampling overwrites the logits
        for i, row in enumerate(rows):
            _shift(logits[i], row.ids, row.sampling)
        uniforms = uniform(
            [row.sampling.seed for row in rows], [row.key for row in rows], [len(row.ids) for row in rows]
        )
        ids, logprobs = sample(logits, uniforms, [row.sampling for row in rows])
        for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            if token in row.sampling.stop_ids or (token in self.stop_ids and not row.sampling.ignore_stop):
                row.end = "stop"
            elif len(row.ids) >= row.sampling.max_new_tokens:
                row.end = "length"
        for log_p, i in zip(raw, asked, strict=True):
            row = rows[i]
            if row.sampling.processed:
                log_p = (logits[i] / logits[i].sum()).log()  # noqa: PLW2901
            row.logprobs[-1] = float(log_p[row.ids[-1]])
            best = log_p.topk(row.sampling.logprobs or 0)
            row.top.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))

    def _compact(self) -> None:
        """Fill the places of ended rows from behind."""
        alive = [i for i, row in enumerate(self.rows) if row.end is None]
        n = len(alive)
        order = list(range(n))
        for hole, mover in zip(sorted(set(range(n)) - set(alive)), (i for i in alive if i >= n), strict=True):
            order[hole] = mover
        self._cache.reorder(order)
        self.rows = [self.rows[i] for i in order]


class FastCache:
    """Keys and values of all rows in one tensor, those of what their prompts begin with, and those of the prompts seen last."""

    def __init__(self, decoder: Decoder, prompt_bytes: int = 0) -> None:
        self.decoder = decoder
        self.prompts = PromptCache(prompt_bytes)
        self._lengths = torch.zeros(0, dtype=torch.long)  # (capacity,) cached tokens of each row
        self._cache = torch.zeros(0)  # (L, 2, capacity, G, S, hd)
        self._prefix: dict[Adapter | None, tuple[list[int], Tensor]] = {}  # ids and (L, 2, G, prefix, hd)
        self._last_prompt: dict[Adapter | None, Sequence[int]] = {}
        self._unloaded: WeakSet[Adapter] = WeakSet()  # their last rows still run; nothing more is kept for them

    def prefill(self, rows: Sequence[Row], active: int) -> tuple[list[Row], Tensor]:
        """Put rows behind the `active` ones: (rows in the order they are kept, normed state after each prompt (n, D))."""
        need = max(len(row.prompt_ids) + row.sampling.max_new_tokens for row in rows)
        self._reserve(active + len(rows), need, active)
        by_prompt: dict[tuple[Adapter | None, tuple[int, ...]], list[Row]] = {}
        for row in rows:
            by_prompt.setdefault((row.adapter, tuple(row.prompt_ids)), []).append(row)
        ordered: list[Row] = []
        states: list[Tensor] = []

        def put(owners: Sequence[Row], state: Tensor, *parts: tuple[int, Tensor]) -> None:
            """These rows come next, their cached tokens from `first` on being (L, 2, n or 1, G, S, hd)."""
            start = active + len(ordered)
            here = slice(start, start + len(owners))
            for first, keys_values in parts:
                self._cache[:, :, here, :, first : first + keys_values.shape[4]] = keys_values
            self._lengths[here] = torch.tensor([len(row.prompt_ids) for row in owners])
            states.append(state)
            ordered.extend(owners)

        for adapter in {adapter: None for adapter, _ in by_prompt}:
            unseen: list[tuple[int, ...]] = []
            for ids in sorted((ids for a, ids in by_prompt if a is adapter), key=lambda ids: (len(ids), ids)):
                seen = self.prompts.get(adapter, ids)
                if seen is None:
                    unseen.append(ids)
                    continue
                owners = by_prompt[adapter, ids]
                parts = (0, seen.prefix[:, :, None]), (seen.prefix.shape[3], seen.rest[:, :, None])
                put(owners, seen.state.expand(len(owners), -1), *parts)
            to_keep = adapter not in self._unloaded
            if unseen and to_keep:
                self._learn_prefix(adapter, unseen)
            while unseen:
                chunk = unseen[-max(1, PREFILL_TOKENS // len(unseen[-1])) :]
                del unseen[-len(chunk) :]
                hidden, cache, prefix = self._prefill(adapter, chunk)
                for p, ids in enumerate(chunk if to_keep else ()):
                    self.prompts.put(adapter, ids, hidden[p], prefix, cache[:, :, p, :, prefix.shape[3] : len(ids)])
                owned = [(p, row) for p, ids in enumerate(chunk) for row in by_prompt[adapter, ids]]
                at = torch.tensor([p for p, _ in owned])
                put([row for _, row in owned], hidden[at], (0, cache[:, :, at]))
        return ordered, torch.cat(states)

    def step(self, rows: Sequence[Row]) -> Tensor:
        """Normed state after each row's newest token.   -> (N, D)"""
        n, c = len(rows), self.decoder.config
        lengths = self._lengths[:n]
        size = int(lengths.max()) + 1
        ids = torch.tensor([row.ids[-1] for row in rows])
        cos, sin = self.decoder.angles(lengths[:, None])
        hidden = self.decoder.embed(ids[:, None])  # (N, 1, D)
        mask = (torch.arange(size) <= lengths[:, None])[:, None, None, :]  # (N, 1, 1, S)
        deltas = _row_deltas([row.adapter for row in rows])
        every = torch.arange(n)
        for layer in range(c.n_layers):
            q, k, v = self.decoder.attention_inputs(layer, hidden, cos, sin, deltas)
            keys, values = self._cache[layer, 0, :n], self._cache[layer, 1, :n]
            keys[every, :, lengths] = k[:, 0]
            values[every, :, lengths] = v[:, 0]
            context = F.scaled_dot_product_attention(
                q.transpose(1, 2), keys[:, :, :size], values[:, :, :size], attn_mask=mask, enable_gqa=True
            )
            hidden = self.decoder.after_attention(layer, hidden, context.transpose(1, 2).flatten(2), deltas)
        lengths += 1
        return self.decoder.final(hidden[:, 0])

    def reorder(self, order: Sequence[int]) -> None:
        """Row i is from now on what row order[i] was; order[i] >= i, so nothing is overwritten that is still needed."""
        for place, mover in enumerate(order):
            if place != mover:
                length = int(self._lengths[mover])
                self._cache[:, :, place, :, :length] = self._cache[:, :, mover, :, :length]
                self._lengths[place] = length

    def forget(self, adapter: Adapter | None) -> None:
        self._prefix.pop(adapter, None)
        self._last_prompt.pop(adapter, None)
        self.prompts.forget(adapter)
        if adapter is not None:
            self._unloaded.add(adapter)

    def _reserve(self, n: int, tokens: int, active: int) -> None:
        """Room for n rows of `tokens`; an empty loop starts small again, so that one long prompt does not hold memory for ever."""
        c = self.decoder.config
        have_rows, have_tokens = (self._cache.shape[2], self._cache.shape[4]) if self._cache.dim() == 6 else (0, 0)
        if n <= have_rows and tokens <= have_tokens and (active or have_tokens <= 4 * tokens):
            return
        if active:  # grows by half at least: rows that come one by one must not copy the cache each time
            n = max(n, have_rows if n <= have_rows else have_rows * 3 // 2)
            tokens = max(tokens, have_tokens)
        tokens = -(-tokens // 64) * 64
        fresh = torch.zeros(c.n_layers, 2, n, c.n_kv_heads, tokens, c.head_dim, dtype=self.decoder.dtype)
        lengths = torch.zeros(n, dtype=torch.long)
        if active:
            used = int(self._lengths[:active].max())
            fresh[:, :, :active, :, :used] = self._cache[:, :, :active, :, :used]
            lengths[:active] = self._lengths[:active]
        self._cache, self._lengths = fresh, lengths

    def _learn_prefix(self, adapter: Adapter | None, prompts: Sequence[tuple[int, ...]]) -> None:
        """Keep the cache of what these prompts (and the last one seen) all begin with, where it is longer than what is kept."""
        seen = [*prompts, *([self._last_prompt[adapter]] if adapter in self._last_prompt else [])]
        self._last_prompt[adapter] = prompts[-1]
        if len(set(map(tuple, seen))) < 2:
            return
        length = min(common_prefix(seen[0], ids) for ids in seen[1:])
        length = min(length, min(map(len, prompts)) - 1)
        kept = self._prefix.get(adapter)
        useful = min(common_prefix(kept[0], ids) for ids in prompts) if kept else 0
        if length >= max(MIN_PREFIX, useful + 1):
            ids = list(seen[0][:length])
            _, cache, _ = self._prefill(adapter, [tuple(ids)])
            self._prefix[adapter] = (ids, cache[:, :, 0].clone())

    def _prefill(self, adapter: Adapter | None, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """Normed hidden state after each prompt (P, D), its keys and values (L, 2, P, G, longest, hd), and of these the ones that were
        there already, the same for all (L, 2, G, skip, hd)."""
        c, decoder = self.decoder.config, self.decoder
        kept_ids, kept = self._prefix.get(adapter, ([], self._nothing()))
        skip = min(*(common_prefix(kept_ids, ids) for ids in prompts), min(map(len, prompts)) - 1)
        skip = skip if skip >= MIN_PREFIX else 0
        longest, p = max(map(len, prompts)), len(prompts)
        rest = longest - skip
        ids = torch.zeros(p, rest, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt) - skip] = torch.tensor(prompt[skip:])
        positions = torch.arange(skip, longest).expand(p, rest)
        # Right padding: what lies behind a prompt's end is never looked at, so a causal mask is enough.
        mask = torch.ones(rest, longest, dtype=torch.bool).tril(skip)
        cache = torch.empty(c.n_layers, 2, p, c.n_kv_heads, longest, c.head_dim, dtype=decoder.dtype)
        cos, sin = decoder.angles(positions)
        hidden = decoder.embed(ids)
        for layer in range(c.n_layers):
            q, k, v = decoder.attention_inputs(layer, hidden, cos, sin, adapter)
            keys, values = cache[layer, 0], cache[layer, 1]
            if skip:
                keys[:, :, :skip], values[:, :, :skip] = kept[layer, 0, :, :skip], kept[layer, 1, :, :skip]
            keys[:, :, skip:], values[:, :, skip:] = k.transpose(1, 2), v.transpose(1, 2)
            context = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask, enable_gqa=True)
            hidden = decoder.after_attention(layer, hidden, context.transpose(1, 2).flatten(2), adapter)
        last = torch.tensor([len(prompt) - skip - 1 for prompt in prompts])
        return decoder.final(hidden[torch.arange(p), last]), cache, kept[:, :, :, :skip]

    def _nothing(self) -> Tensor:
        """Keys and values of no token."""
        c = self.decoder.config
        return torch.empty(c.n_layers, 2, c.n_kv_heads, 0, c.head_dim, dtype=self.decoder.dtype)


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    n: int,
    sampling: Sampling,
    adapter: Adapter | Sequence[Adapter | None] | None = None,
    stop_ids: Sequence[int] | None = None,
    max_rows: int = 128,
    on_token: Callable[[Row], None] | None = None,
    places: Sequence[int] | None = None,
) -> Generated:
    """n samples for each prompt, in order; `adapter` is one for all or one for each prompt.

    Row i of the result answers prompt i // n and depends on (weights, prompt, sampling.seed, i) only. `places` are the prompts' numbers
    where they are part of a longer list, 0, 1, ... if not told: the rows are then those that the whole list would give. A wide batch is quick;
    `max_rows` bounds memory.
    """
    adapters = [adapter] * len(prompts) if adapter is None or isinstance(adapter, Adapter) else list(adapter)
    rows = [
        Row(list(prompt), sampling, key=(places[g] if places is not None else g) * n + i, adapter=adapters[g])
        for g, prompt in enumerate(prompts)
        for i in range(n)
    ]
    loop = DecodeLoop(decoder, stop_ids)
    waiting = list(rows)
    while waiting or loop.rows:
        room = max_rows - len(loop.rows)
        advanced: list[Row] = []
        if waiting and room >= min(len(waiting), max(1, max_rows // 4)):  # prefill in groups, not one by one
            advanced = loop.admit(waiting[:room])
            del waiting[:room]
        advanced += loop.step()
        if on_token is not None:
            for row in advanced:
                on_token(row)
    rollout = Rollout(
        prompt_ids=[list(prompt) for prompt in prompts],
        response_ids=[row.ids for row in rows],
        group=[g for g in range(len(prompts)) for _ in range(n)],
        finished=[row.end == "stop" for row in rows],
    )
    return Generated(rollout, [row.logprobs for row in rows])


def sample(logits: Tensor, uniforms: Tensor, sampling: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """Tokens (N,) and their log-probs (N,) under each row's own distribution, from logits (N, V), which become its weights, not normed.

    `uniforms` (N,) fp64 in [0, 1): the token is where the cumulative probability passes it. Sums in two levels, blocks first, the
    running sums in fp64: a running fp32 sum over 49,152 tokens loses the rare ones.
    """
    n, v = logits.shape
    for i, s in enumerate(sampling):
        if s.temperature > 0 and (s.top_k or s.top_p < 1):
            _truncate(logits[i], s)
    temperature = torch.tensor([s.temperature if s.temperature > 0 else 1.0 for s in sampling])
    greedy = [i for i, s in enumerate(sampling) if s.temperature == 0]
    likeliest = logits[greedy].argmax(
        -1
    )  # of these rows alone: where the largest number lies costs ten times what it is
    weights = logits.sub_(logits.amax(dim=-1, keepdim=True)).div_(temperature[:, None]).exp_()
    if v % BLOCK:
        weights = F.pad(weights, (0, BLOCK - v % BLOCK))
    blocks = weights.view(n, -1, BLOCK)
    sums = blocks.sum(-1).double().cumsum(-1)  # (N, V / BLOCK)
    total = sums[:, -1]
    goal = (uniforms * total)[:, None] * (1.0 - 1e-12)  # never the total itself
    block = torch.searchsorted(sums, goal, right=True).clamp_(max=sums.shape[1] - 1)  # (N, 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    share = ((goal - before) / (sums.gather(1, block) - before)).clamp(0.0, 1.0 - 1e-9)
    inner = blocks[torch.arange(n), block.squeeze(1)].double().cumsum(-1)  # (N, BLOCK)
    place = torch.searchsorted(inner, share * inner[:, -1:], right=True).clamp_(max=BLOCK - 1)
    ids = (block * BLOCK + place).squeeze(1)
    ids[greedy] = likeliest
    logprobs = weights.gather(1, ids[:, None]).squeeze(1).double().log() - total.log()
    return ids, logprobs


def _shift(logits: Tensor, ids: Sequence[int], sampling: Sampling) -> None:
    """Penalties and biases of OpenAI's protocol on the logits (V,) of a response that holds `ids`, in place."""
    if ids and (sampling.presence_penalty or sampling.frequency_penalty):
        times = Counter(ids)
        logits[list(times)] -= sampling.presence_penalty + sampling.frequency_penalty * torch.tensor([*times.values()])
    for token, bias in sampling.logit_bias:
        logits[token] += bias


def _truncate(logits: Tensor, sampling: Sampling) -> None:
    """Set all but the top_k, then all outside the smallest set of mass >= top_p, to -inf; (V,) in place."""
    ordered, order = (logits / sampling.temperature).sort(descending=True)
    if sampling.top_k:
        ordered[sampling.top_k :] = -torch.inf
    mass = ordered.softmax(-1)
    ordered[mass.cumsum(-1) - mass >= sampling.top_p] = -torch.inf
    logits[order[ordered == -torch.inf]] = -torch.inf


def uniform(seeds: Sequence[int], keys: Sequence[int], steps: Sequence[int]) -> Tensor:
    """(N,) fp64 in [0, 1) from (seed, row, step), each row on its own: three rounds of SplitMix64 (Steele et al. 2014)."""
    x = _words(seeds)
    with np.errstate(over="ignore"):
        for part in (keys, steps):
            x = _mix(x + np.uint64(0x9E3779B97F4A7C15)) ^ _words(part)
        x = _mix(x + np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((x >> np.uint64(11)).astype(np.float64) * 2.0**-53)


Words = NDArray[np.uint64]


def _words(values: Sequence[int]) -> Words:
    return np.array([value & 0xFFFFFFFFFFFFFFFF for value in values], dtype=np.uint64)


def _mix(x: Words) -> Words:
    x = np.bitwise_xor(x, x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = np.bitwise_xor(x, x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: Words = np.bitwise_xor(x, x >> np.uint64(31))
    return mixed


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


class _RowDeltas:
    """Several adapters in one batch: the base product runs once for all rows, each adapter's addition on its own rows."""

    def __init__(self, adapters: Sequence[Adapter | None]) -> None:
        places: dict[Adapter, list[int]] = {}
        for index, adapter in enumerate(adapters):
            if adapter is not None:
                places.setdefault(adapter, []).append(index)
        self.parts = [(adapter, torch.tensor(rows)) for adapter, rows in places.items()]

    def delta(self, layer: int, product: str, x: Tensor) -> Tensor | None:
        out: Tensor | None = None
        for adapter, rows in self.parts:
            part = adapter.delta(layer, product, x[rows])
            if part is not None:
                out = x.new_zeros(x.shape[0], *part.shape[1:]) if out is None else out
                out[rows] = part
        return out


def _row_deltas(adapters: Sequence[Adapter | None]) -> Deltas | None:
    different = set(adapters)
    return adapters[0] if len(different) == 1 else _RowDeltas(adapters)
