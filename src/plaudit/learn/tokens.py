"""From messages to token ids, and from sampled ids to the tensors a pass needs. Masks come from lengths, never from pad ids.

Groups: one prompt and the responses to it. `pack` lays a prompt and its responses into one row: the prompt once, then the responses
one after another, each attending to the prompt and to itself only, positions continuing from the prompt's length. That equals one
padded row per response (a test holds it to 2e-6) and computes the prompt once.

Shapes: B rows of a pack, T columns, N responses, n responses of a pack, R response tokens, D width, V vocabulary,
S tokens of the flat table (every prompt once, then every response). True in a mask means: counts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.errors import BadInput, NotFound
from plaudit.learn.nets import Decoder, Deltas

# --- text to ids ------------------------------------------------------------------------------------------------------------


class ChatTokenizer:
    """A fast tokenizer with its chat template, read from a Hugging Face folder without importing transformers."""

    def __init__(self, tokenizer: Any, template: str, named: Mapping[str, str]) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self.named = dict(named)  # bos_token, eos_token, ... -> text
        self.eos_id: int | None = tokenizer.token_to_id(named["eos_token"]) if "eos_token" in named else None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        self._template = environment.from_string(template) if template else None

    @staticmethod
    def load(folder: Path) -> ChatTokenizer:
        """Raises NotFound where the folder has no tokenizer.json (a slow tokenizer has to be converted first)."""
        from tokenizers import Tokenizer

        if not (folder / "tokenizer.json").is_file():
            raise NotFound(f"{folder} has no tokenizer.json; a base model needs a fast tokenizer beside its weights.")
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        named: dict[str, str] = {}
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = config.get(key)
            if value:
                named[key] = value["content"] if isinstance(value, dict) else value
        return ChatTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), read_template(folder), named)

    def text(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The rendered conversation, ready for the assistant's answer; `variables` are the template's too. Raises BadInput where it refuses."""
        import jinja2

        if self._template is None:
            raise BadInput("This base model has no chat template; it cannot answer conversations.")
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, **(self.named | variables)
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise BadInput(f"The chat template refuses these messages: {error}.") from error

    def render(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Prompt ids of a conversation, the generation prompt included."""
        return self.ids_of_text(self.text(messages))

    def ids_of_text(self, rendered: str) -> list[int]:
        """Ids of a rendered conversation, its special tokens as such."""
        ids: list[int] = self._tokenizer.encode(rendered, add_special_tokens=False).ids
        return ids

    @property
    def highest_id(self) -> int:
        """The largest id that the tokenizer can give."""
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return max(ids.values())

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text: what looks like a special token in it stays text, so nobody can write an EOS."""
        with self._lock:
            self._tokenizer.encode_special_tokens = True
            try:
                ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            finally:
                self._tokenizer.encode_special_tokens = False
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token(self, index: int) -> str:
        """The text of one token, special ones included."""
        return self.decode([index], skip_special=False)


# What tokenizers and templates differ about: turns, case, digits, spaces, scripts, an emoji.
SPECIMEN = (
    {"role": "user", "content": "Hello! Order #4711 hasn't arrived -- où est-il?  谢谢 🙂"},
    {"role": "assistant", "content": "I'm sorry.\n\tLet me look: 12.50 EUR."},
    {"role": "user", "content": "OK"},
)


def specimen(tokenizer: ChatTokenizer) -> list[tuple[int, str]]:
    """(id, text) of each token of a fixed conversation: what a Checkpoint keeps, so that a mismatch can be shown without the old tokenizer.

    Templates that print the date print the same one always; one that refuses the conversation is passed by.
    """
    try:
        ids = tokenizer.ids_of_text(
            tokenizer.text(SPECIMEN, strftime_now=lambda _: "2000-01-01", date_string="2000-01-01")
        )
    except BadInput:
        ids = tokenizer.encode("\n".join(message["content"] for message in SPECIMEN))
    return [(token, tokenizer.token(token)) for token in ids]


def _refuse(message: str) -> str:
    import jinja2

    raise jinja2.TemplateError(message)


def read_template(folder: Path) -> str:
    """The Jinja text of a folder's chat template; empty where it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    config = folder / "tokenizer_config.json"
    template = json.loads(config.read_text()).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else ""


def render(tokenizer: ChatTokenizer, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """`tokenizer.render`, as a function."""
    return tokenizer.render(messages)


# --- rollouts and packs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rollout:
    """G prompts and N responses to them, as ids. A finished response ends in its stop token, which counts and is trained."""

    prompt_ids: list[list[int]]  # G, one for each group
    response_ids: list[list[int]]  # N
    group: list[int]  # N: which prompt a response answers
    finished: list[bool]  # N: True = ended by a stop token, False = truncated

    def __post_init__(self) -> None:
        if not len(self.response_ids) == len(self.group) == len(self.finished):
            raise BadInput(
                f"A rollout of {len(self.response_ids)} responses has {len(self.group)} groups and {len(self.finished)} ends."
            )
        if any(not ids for ids in self.prompt_ids) or any(not ids for ids in self.response_ids):
            raise BadInput("A rollout holds an empty prompt or an empty response; leave such rows out.")

    @property
    def n(self) -> int:
        return len(self.response_ids)

    def lengths(self) -> Tensor:
        """(N,) response tokens, stop token included."""
        return torch.tensor([len(ids) for ids in self.response_ids], dtype=torch.long)

    def counts(self) -> Tensor:
        """(N, R) True where a response has a token."""
        lengths = self.lengths()
        return torch.arange(int(lengths.max())) < lengths[:, None]


def from_text(
    tokenizer: ChatTokenizer,
    prompts: Sequence[Sequence[Mapping[str, Any]]],
    responses: Sequence[Sequence[str]],
    finished: Sequence[Sequence[bool]] | None = None,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
) -> Rollout:
    """Encode text once: responses[g] answer prompts[g]; EOS is appended where a response finished (all, if not told).

    A prompt over its limit loses its oldest tokens; a response over its limit loses its end and is not finished then.
    """
    prompt_ids, response_ids, group, ends = [], [], [], []
    for g, (messages, texts) in enumerate(zip(prompts, responses, strict=True)):
        ids = tokenizer.render(messages)
        prompt_ids.append(ids[-max_prompt_tokens:] if max_prompt_tokens else ids)
        for i, text in enumerate(texts):
            end = True if finished is None else finished[g][i]
            answer = tokenizer.encode(text)
            if end and tokenizer.eos_id is not None:
                answer = [*answer, tokenizer.eos_id]
            if max_response_tokens and len(answer) > max_response_tokens:
                answer, end = answer[:max_response_tokens], False
            response_ids.append(answer)
            group.append(g)
            ends.append(end)
    return Rollout(prompt_ids, response_ids, group, ends)


def fitted(rollout: Rollout, max_positions: int) -> Rollout:
    """Responses that reach beyond a model's positions lose their end, and are not finished then. Raises BadInput on a prompt without room."""
    room = [max_positions - len(ids) for ids in rollout.prompt_ids]
    if min(room) < 1:
        raise BadInput(
            f"A prompt has {max_positions - min(room)} tokens, the model {max_positions} positions; lower max_prompt_tokens to leave room for "
            "a response."
        )
    whole = [len(ids) <= room[group] for group, ids in zip(rollout.group, rollout.response_ids, strict=True)]
    return Rollout(
        rollout.prompt_ids,
        [ids[: room[group]] for group, ids in zip(rollout.group, rollout.response_ids, strict=True)],
        rollout.group,
        [end and fits for end, fits in zip(rollout.finished, whole, strict=True)],
    )


@dataclass(frozen=True)
class Pack:
    """One micro-batch: rows that hold a prompt and some of its responses, and where their tokens lie."""

    ids: Tensor  # (B, T) long
    positions: Tensor  # (B, T) long
    mask: Tensor  # (B, T, T) bool
    source: Tensor  # (B, T) long: place in the flat table, -1 for padding
    response: Tensor  # (n,) long: index in the rollout
    row: Tensor  # (n,) long: the row it lies in
    predict: Tensor  # (n, R) long: column whose hidden state predicts the token (checklist 11)
    column: Tensor  # (n, R) long: column of the token itself
    targets: Tensor  # (n, R) long
    counts: Tensor  # (n, R) bool

    @property
    def last(self) -> Tensor:
        """(n,) column of each response's last real token: where its score is read (checklist 8)."""
        return self.column.gather(1, self.counts.sum(1, keepdim=True) - 1).squeeze(1)


JOINED_TOKENS = 256  # of groups in a row: attention costs the square of a row, and a longer one saves little more
# A row to be: its tokens, and the groups whose prompt and (some) responses lie in it.
Layout = tuple[int, list[tuple[int, list[int]]]]


def pack(
    rollout: Rollout,
    responses: Sequence[int] | None = None,
    token_budget: int = 4096,
    share_prefix: bool = True,
    row_tokens: int = 1024,
    common: int = 0,
) -> list[Pack]:
    """Lay responses (all, or those named) into micro-batches of at most `token_budget` tokens, padding included, and one row at least.

    Rows of similar length go together. With `share_prefix` a group's responses follow their prompt in one row, up to `row_tokens`.
    Where all prompts begin with the same `common` tokens (and have more), a row lays these once and several groups behind them.
    The same arguments give the same packs, so old and new log-probs come from the same products.
    """
    chosen = range(rollout.n) if responses is None else responses
    by_group: dict[int, list[int]] = {}
    for index in chosen:
        by_group.setdefault(rollout.group[index], []).append(index)
    rows: list[Layout] = []
    for group, members in by_group.items():
        prompt = len(rollout.prompt_ids[group])
        tokens, row = prompt, list[int]()
        for index in members:
            length = len(rollout.response_ids[index])
            if row and (not share_prefix or tokens + length > row_tokens):
                rows.append((tokens, [(group, row)]))
                tokens, row = prompt, []
            row = [*row, index]
            tokens += length
        rows.append((tokens, [(group, row)]))
    rows.sort(key=lambda entry: (-entry[0], entry[1]))
    if common:
        rows = _joined(rows, common)
    packs, batch = [], list[Layout]()
    places = _places(rollout)
    for entry in rows:
        if batch and (len(batch) + 1) * batch[0][0] > token_budget:
            packs.append(_pack_rows(rollout, batch, places, common))
            batch = []
        batch.append(entry)
    if batch:
        packs.append(_pack_rows(rollout, batch, places, common))
    return packs


def _joined(rows: Sequence[Layout], common: int) -> list[Layout]:
    """Rows that share their first `common` tokens, one behind the other to rows of about JOINED_TOKENS and of nearly one length.

    `rows` come longest first; each goes where there is least (LPT scheduling, Graham 1969).
    """
    own = sum(tokens - common for tokens, _ in rows)
    a_row = max(1, (JOINED_TOKENS - common) * len(rows) // own)  # groups of mean length that fit
    joined: list[Layout] = [(common, []) for _ in range(-(-len(rows) // a_row))]
    for tokens, parts in rows:
        least = min(range(len(joined)), key=lambda place: joined[place][0])
        joined[least] = (joined[least][0] + tokens - common, joined[least][1] + parts)
    return sorted(joined, key=lambda entry: (-entry[0], entry[1]))


def _places(rollout: Rollout) -> tuple[list[int], list[int]]:
    """Where each prompt and each response starts in the flat table."""
    starts, at = [], 0
    for ids in (*rollout.prompt_ids, *rollout.response_ids):
        starts.append(at)
        at += len(ids)
    return starts[: len(rollout.prompt_ids)], starts[len(rollout.prompt_ids) :]


def _pack_rows(rollout: Rollout, rows: Sequence[Layout], places: tuple[list[int], list[int]], common: int) -> Pack:
    width = max(tokens for tokens, _ in rows)
    members = [index for _, parts in rows for _, row in parts for index in row]
    longest = max(len(rollout.response_ids[index]) for index in members)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    source = torch.full_like(ids, -1)
    owner = torch.full_like(ids, -1)  # 0 what all prompts share, 1.. groups, -1 padding
    segment = torch.zeros_like(ids)  # 0 prompt, 1.. responses of the group
    predict = torch.zeros(len(members), longest, dtype=torch.long)
    column, targets = torch.zeros_like(predict), torch.zeros_like(predict)
    counts = torch.zeros_like(predict, dtype=torch.bool)
    row_of, i = [], 0
    for b, (_, parts) in enumerate(rows):
        start = 0
        for g, (group, row) in enumerate(parts, start=1):
            prompt = rollout.prompt_ids[group]
            p, skip = len(prompt), common if g > 1 else 0
            here = slice(start, start + p - skip)
            ids[b, here] = torch.tensor(prompt[skip:])
            positions[b, here] = torch.arange(skip, p)
            source[b, here] = torch.arange(skip, p) + places[0][group]
            start += p - skip
            owner[b, here], end = g, start - 1
            for s, index in enumerate(row, start=1):
                response = torch.tensor(rollout.response_ids[index])
                r = len(response)
                here = slice(start, start + r)
                ids[b, here], owner[b, here], segment[b, here] = response, g, s
                positions[b, here] = torch.arange(p, p + r)
                source[b, here] = torch.arange(r) + places[1][index]
                targets[i, :r], counts[i, :r] = response, True
                column[i, :r] = torch.arange(start, start + r)
                predict[i, :r] = column[i, :r] - 1
                predict[i, 0] = end
                row_of.append(b)
                start, i = start + r, i + 1
    owner[:, :common] = 0
    source[:, :common] = torch.arange(common)  # in the first prompt's place, whichever groups a row holds
    # Padding attends to padding before it, so that no softmax is over nothing.
    own = (segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
    same = (owner[:, None, :] == owner[:, :, None]) & own
    if common:
        same |= (owner[:, None, :] == 0) & (owner[:, :, None] > 0)
    mask = same & torch.ones(width, width, dtype=torch.bool).tril()
    return Pack(
        ids, positions, mask, source, torch.tensor(members), torch.tensor(row_of), predict, column, targets, counts
    )


# --- passes -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trunk:
    """Hidden states after the first `layer` layers for every token of a rollout's flat table. No gradient."""

    layer: int
    hidden: Tensor  # (S, D)


@torch.no_grad()
def run_trunk(
    decoder: Decoder,
    rollout: Rollout,
    layer: int,
    token_budget: int = 4096,
    responses: Sequence[int] | None = None,
    common: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> Trunk:
    """Run the frozen lower trunk once; every later pass of any adapter with first_layer >= layer starts from it.

    Of all responses and their prompts, or of those named; the table is 0 where nothing was run. What reads the trunk must be packed with
    the same `common`. `tell` hears micro-batches done, of all.

    A decoder that cannot run layers apart gives a trunk of layer 0, from which every pass starts at the bottom.
    """
    layer = decoder.trunk_depth(layer)
    size = sum(map(len, rollout.prompt_ids)) + sum(map(len, rollout.response_ids))
    flat: Tensor | None = None
    packs = pack(rollout, responses, token_budget, common=common)
    for number, batch in enumerate(packs, start=1):
        hidden = decoder.run_layers(decoder.embed(batch.ids), batch.positions, batch.mask, 0, layer, None)
        real = batch.source >= 0
        flat = hidden.new_zeros(size, *hidden.shape[2:]) if flat is None else flat
        flat[batch.source[real]] = hidden[real]
        if tell is not None:
            tell(number, len(packs))
    assert flat is not None  # a rollout holds a response
    return Trunk(layer, flat)


def hidden_states(decoder: Decoder, adapter: Deltas | None, batch: Pack, trunk: Trunk | None = None) -> Tensor:
    """(B, T, D) after the last layer and the final norm; from `trunk` where given, else from the embedding.

    Raises BadInput where the trunk reaches into layers that the adapter changes.
    """
    first = getattr(adapter, "first_layer", 0) if adapter is not None else decoder.config.n_layers
    if trunk is None:
        start, hidden = 0, decoder.embed(batch.ids)
    elif trunk.layer > first:
        raise BadInput(f"The trunk was run to layer {trunk.layer}, but the adapter changes layers from {first} on.")
    else:
        start, hidden = trunk.layer, trunk.hidden[batch.source.clamp(min=0)]
    hidden = decoder.run_layers(hidden, batch.positions, batch.mask, start, decoder.config.n_layers, adapter)
    return decoder.final(hidden)


def at_predict(hidden: Tensor, batch: Pack) -> Tensor:
    """(B, T, D) -> (n, R, D): the states that predict each response token (log-probs and values)."""
    return hidden[batch.row[:, None], batch.predict]


def at_tokens(hidden: Tensor, batch: Pack) -> Tensor:
    """(B, T, D) -> (n, R, D): the states of the response tokens themselves (mean pooling)."""
    return hidden[batch.row[:, None], batch.column]


def at_last(hidden: Tensor, batch: Pack) -> Tensor:
    """(B, T, D) -> (n, D): the state of each response's last real token (the score)."""
    return hidden[batch.row, batch.last]


def logprobs_at(
    decoder: Decoder, hidden: Tensor, batch: Pack, temperature: float = 1.0, want_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Normed hidden states (B, T, D) -> log-probs (n, R) fp32 of the response tokens, 0 where none; entropy likewise, without gradient.

    Logits exist only at response positions, and only a block of rows at a time. A head that is trained gives, bit for bit, the numbers
    of the same head frozen: a policy with weights of its own starts at its reference exactly.
    """
    states = at_predict(hidden, batch)[batch.counts]  # (M, D)
    targets = batch.targets[batch.counts]
    head = decoder.frozen_head()
    if head is None:
        picked, entropy = _by_trained_head(decoder, states, targets, temperature, want_entropy)
    else:
        picked, entropy = _TokenLogProbs.apply(states, head, targets, temperature, want_entropy)  # type: ignore[no-untyped-call]
    out = picked.new_zeros(batch.counts.shape).masked_scatter(batch.counts, picked)
    if not want_entropy:
        return out, None
    return out, entropy.new_zeros(batch.counts.shape).masked_scatter(batch.counts, entropy)


def response_logprobs(
    decoder: Decoder,
    adapter: Deltas | None,
    packs: Sequence[Pack],
    trunk: Trunk | None = None,
    temperature: float = 1.0,
    want_entropy: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probs (N, R), counts (N, R) and entropy (N, R) or None, assembled over `packs` in rollout order, without gradient.

    N is one more than the largest response index in the packs; rows that no pack holds count nowhere.
    """
    n = 1 + max(int(batch.response.max()) for batch in packs)
    longest = max(batch.counts.shape[1] for batch in packs)
    out, counts = torch.zeros(n, longest), torch.zeros(n, longest, dtype=torch.bool)
    entropies = torch.zeros(n, longest) if want_entropy else None
    with torch.no_grad():
        for batch in packs:
            hidden = hidden_states(decoder, adapter, batch, trunk)
            values, entropy = logprobs_at(decoder, hidden, batch, temperature, want_entropy)
            width = batch.counts.shape[1]
            out[batch.response, :width] = values
            counts[batch.response, :width] = batch.counts
            if entropies is not None and entropy is not None:
                entropies[batch.response, :width] = entropy
    return out, counts, entropies


def _by_trained_head(
    decoder: Decoder, states: Tensor, targets: Tensor, temperature: float, want_entropy: bool
) -> tuple[Tensor, Tensor]:
    """What _TokenLogProbs gives, in the same blocks, where the head is no frozen matrix: autograd keeps the logits."""
    picked, entropy = [], []
    for start in range(0, len(states), _TokenLogProbs.BLOCK):
        here = slice(start, start + _TokenLogProbs.BLOCK)
        logits = decoder.logits(states[here])
        if temperature != 1.0:
            logits = logits / temperature
        log_z = logits.logsumexp(-1, keepdim=True)
        picked.append((logits.gather(1, targets[here, None]) - log_z).squeeze(1))
        if want_entropy:
            log_p = (logits - log_z).detach()
            entropy.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(picked), torch.cat(entropy) if entropy else states.new_zeros(len(states), dtype=torch.float32)


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(h W^T / t)[target] for a frozen head W, in blocks, the gradient formed on the way.

    d log p(target) / d h = (W[target] - sum_v p(v) W[v]) / t needs the probabilities while they are there, so the backward pass
    neither keeps nor recomputes (M, V) numbers. Source of the idea: Liger-Kernel's fused linear cross-entropy.
    """

    BLOCK = 256

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, targets: Tensor, temperature: float, want_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        need = ctx.needs_input_grad[0]
        picked = torch.empty(len(states), dtype=torch.float32)
        entropy = torch.zeros(len(states), dtype=torch.float32)
        gradient = torch.empty_like(states) if need else None
        for start in range(0, len(states), _TokenLogProbs.BLOCK):
            here = slice(start, start + _TokenLogProbs.BLOCK)
            logits = F.linear(states[here], head).float()
            if temperature != 1.0:
                logits /= temperature
            log_z = logits.logsumexp(-1, keepdim=True)
            picked[here] = (logits.gather(1, targets[here, None]) - log_z).squeeze(1)
            if not (need or want_entropy):
                continue
            log_p = logits.sub_(log_z)
            p = log_p.exp() if want_entropy else log_p.exp_()
            if want_entropy:
                entropy[here] = -(p * log_p).sum(-1)
            if gradient is not None:
                gradient[here] = (head[targets[here]] - p.to(head.dtype) @ head) / temperature
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy)
        return picked, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0][:, None].to(gradient.dtype) * gradient, None, None, None, None
