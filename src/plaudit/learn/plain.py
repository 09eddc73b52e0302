"""The plain path: any Hugging Face causal LM, run by transformers' own code behind nets.Decoder's seam. Right, not fast.

What nets.Decoder reads (llama-shaped models) is quick; everything else runs here: rows are unpacked to one right-padded row for each
response, layers are never split, and sampling goes by batches of equal prompt length through `past_key_values`. Adapters are added to the
outputs of the blocks' linear layers by forward hooks, so switching one off gives the reference, as on the fast path.

Left out: full fine-tuning, a shared frozen trunk, reading a hidden state below the top. Each is refused in one sentence, except the trunk:
`first_layer` then only says where the adapter begins.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit.errors import BadInput, NotFound
from plaudit.learn.nets import Adapter, Decoder, Deltas, Layer, Linear, Shape, read_stop_ids

if TYPE_CHECKING:
    from plaudit.learn.rollout import Row

# Each is held to transformers' own logits, with and without an adapter, by tests/unit/learn/test_plain.py.
TESTED = ("GPT2LMHeadModel", "GPTNeoXForCausalLM", "PhiForCausalLM", "Gemma2ForCausalLM")


@dataclass(frozen=True)
class PlainConfig(Shape):
    """The shape of any causal LM, read off the modules that transformers builds for it."""

    architecture: str
    blocks: tuple[Mapping[str, Linear], ...]  # of each layer: its linear layers by their name inside the block

    def linears(self, layer: int) -> Mapping[str, Linear]:
        return self.blocks[layer]

    def targets_of(self, product: str) -> tuple[str, ...]:
        return (product,)


def read_config(folder: Path) -> PlainConfig:
    """The shape of the model in `folder`, without its weights. Raises NotFound (no transformers), BadInput (not a causal LM it knows)."""
    transformers = _transformers(folder)
    with _quiet(transformers), _readable(folder), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_config(config)
    return _shape(model, folder)


class PlainDecoder(Decoder):
    """transformers' model as a Decoder: the programs ask nothing else of it (nets.Decoder names what that is)."""

    config: PlainConfig  # type: ignore[assignment]  # a Shape, as every program uses it; the fast path's details do not exist here

    def __init__(self, model: Any, folder: Path, dtype: torch.dtype) -> None:
        """Raises BadInput where logits cannot be had from the last hidden state alone."""
        nn.Module.__init__(self)
        self.config, self.dtype = _shape(model, folder), dtype
        self.model = model.to(dtype).eval().requires_grad_(False)
        self._running = _Running()
        self._always: Adapter | None = None  # `folded`
        modules = dict(self.model.named_modules())
        for layer, block in enumerate(self.config.blocks):
            for target, linear in block.items():
                modules[linear.path].register_forward_hook(partial(_add_delta, self._running, layer, target))
        self._given, self._head_linear = self._find_head(folder)

    @staticmethod
    def load(folder: Path, dtype: torch.dtype) -> PlainDecoder:
        """Read a Hugging Face folder. Raises NotFound (no transformers), BadInput (unknown, incomplete)."""
        transformers = _transformers(folder)
        with _quiet(transformers), _readable(folder):
            # eager: the attention as each architecture spells it out itself, soft caps and windows included.
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=dtype, attn_implementation="eager", local_files_only=True, output_loading_info=True
            )
        missing = sorted(found["missing_keys"])
        if missing:
            raise BadInput(f"{folder} lacks the weight {missing[0]!r} (and {len(missing) - 1} more); it is incomplete.")
        return PlainDecoder(model, folder, dtype)

    # --- what programs ask for ----------------------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) ids as they are: the model embeds them itself, so `hidden` below the first layer means ids here."""
        return ids

    def trunk_depth(self, layer: int) -> int:  # noqa: ARG002
        """0: layers are not run apart from one another."""
        return 0

    def run_layers(
        self, hidden: Tensor, positions: Tensor, mask: Tensor, first: int, last: int, adapter: Deltas | None
    ) -> Tensor:
        """Normed states after the last layer: ids (B, T), positions (B, T), mask (B, T, T) or (B, 1, T, T) -> (B, T, D).

        Raises BadInput where less than all layers is asked for.
        """
        if first == last == 0:
            return hidden
        if (first, last) != (0, self.config.n_layers):
            self._refuse(f"layers {first} to {last} alone cannot be run; set read_layer to 0")
        ids, attends, row, column = unpack(hidden, positions, mask[:, 0] if mask.dim() == 4 else mask)
        out = self.run(ids, adapter, attention_mask=attends).last_hidden_state
        states: Tensor = out[row, column]
        return states

    def run(self, ids: Tensor, adapter: Deltas | None, **options: Any) -> Any:
        """One pass of the model below its head, ids (N, S); returns what transformers returns."""
        if isinstance(adapter, Adapter) and not isinstance(adapter.config, PlainConfig):
            raise BadInput(
                "An adapter that was read for the fast path cannot run on the plain one; load it for this base."
            )
        self._running.deltas = self._always if adapter is None else adapter
        try:
            return self.model.base_model(input_ids=ids, **({"use_cache": False} | options))
        finally:
            self._running.deltas = None

    def final(self, hidden: Tensor) -> Tensor:
        """What comes out of the model's last layer is normed already."""
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own head, soft caps and scales included: (..., D) -> (..., V) fp32."""
        if self._head_linear:
            weight: Tensor = self.model.get_output_embeddings().weight
            return F.linear(hidden, weight).float()
        out: Tensor = self._given(hidden.reshape(1, -1, hidden.shape[-1]))
        return out.view(*hidden.shape[:-1], -1).float()

    def frozen_head(self) -> Tensor | None:
        weight: Tensor | None = self.model.get_output_embeddings().weight if self._head_linear else None
        return weight

    def folded(self, adapter: Adapter) -> PlainDecoder:
        """This model with the adapter always on; nothing is copied."""
        together = copy.copy(self)
        together.__dict__["_always"] = adapter  # not a submodule: modules are shared with this one
        return together

    def for_sampling(self, adapter: Adapter | None = None) -> PlainDecoder:
        return self if adapter is None else self.folded(adapter)

    # --- what it does not have ----------------------------------------------------------------------------------------------

    def layer(self, index: int) -> Layer:
        self._refuse(f"layer {index} cannot be taken out of it; train an adapter (lora) and leave read_layer at 0")
        raise AssertionError

    def hf_names(self) -> dict[str, Tensor]:
        self._refuse(
            "its weights can be neither trained in full nor handed over; train an adapter (lora), which a server takes by rollout.adapters"
        )
        raise AssertionError

    def _refuse(self, why: str) -> None:
        raise BadInput(f"A {self.config.architecture} runs on the plain path (transformers), where {why}.")

    # --- the head -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _find_head(self, folder: Path) -> tuple[Any, bool]:
        """(states -> logits by the model's own forward, whether that is one matrix). Raises BadInput where it needs more than the states."""
        ids = torch.arange(5, 11).remainder(self.config.vocab_size)[None]
        below = self.run(ids, None)
        states, expected = below.last_hidden_state, self.model(input_ids=ids, use_cache=False).logits
        given = _Head(self.model, below)
        tolerance = 1e-4 if self.dtype == torch.float32 else 5e-2
        if states.shape[-1] != self.config.d_model or not torch.allclose(given(states), expected, tolerance, tolerance):
            raise BadInput(
                f"{folder} ({self.config.architecture}) forms its logits from more than its last hidden state; "
                "Plaudit cannot train such a model."
            )
        weight = getattr(self.model.get_output_embeddings(), "weight", None)
        one_matrix = weight is not None and torch.allclose(F.linear(states, weight), expected, tolerance, tolerance)
        return given, one_matrix


@dataclass
class _Running:
    """The adapter of the pass that is under way; hooks of shared modules read it."""

    deltas: Deltas | None = None


def _add_delta(running: _Running, layer: int, target: str, _: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
    delta = None if running.deltas is None else running.deltas.delta(layer, target, inputs[0])
    return out if delta is None else out + delta


class _Head:
    """A model's forward with the states given: the layers are replaced by something that returns them, the code above is the model's own."""

    def __init__(self, model: Any, template: Any) -> None:
        self.template = template
        self.states: Tensor = template.last_hidden_state
        self.shell = copy.copy(model)
        self.shell._modules = dict(model._modules) | {model.base_model_prefix: _Layers(self)}

    def __call__(self, states: Tensor) -> Tensor:
        """(1, S, D) -> (1, S, V)"""
        self.states = states
        logits: Tensor = self.shell(input_ids=torch.zeros(states.shape[:2], dtype=torch.long), use_cache=False).logits
        return logits


class _Layers(nn.Module):
    def __init__(self, head: _Head) -> None:
        super().__init__()
        self.__dict__["head"] = head  # not a submodule

    def forward(self, *_: Any, **__: Any) -> Any:
        template = self.__dict__["head"].template
        return type(template)(**(dict(template) | {"last_hidden_state": self.__dict__["head"].states}))


# --- rows -------------------------------------------------------------------------------------------------------------------


def unpack(ids: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed rows as one right-padded row for each sequence in them.

    ids (B, T), positions (B, T), mask (B, T, T) -> ids (N, S), attends (N, S) 1 = a token, and (B, T) each: row and column where a
    packed token lies now. A sequence is what a last token, one that no later token attends to, attends to; equal ones are run once.
    Raises BadInput where positions do not count a sequence's tokens.
    """
    rows: dict[tuple[int, ...], int] = {}
    row, column = torch.zeros_like(ids), torch.zeros_like(ids)
    for b in range(len(ids)):
        seen_later = mask[b].tril(-1).any(dim=0)  # (T,)
        placed = torch.zeros(ids.shape[1], dtype=torch.bool)
        for end in (~seen_later).nonzero().flatten().tolist():
            columns = mask[b, end].nonzero().flatten()
            count = torch.arange(len(columns))
            if not torch.equal(positions[b, columns], count):
                if positions[b, columns].any():
                    raise BadInput("On the plain path the positions of a sequence must count its tokens from 0.")
                continue  # padding
            index = rows.setdefault(tuple(ids[b, columns].tolist()), len(rows))
            fresh = ~placed[columns]
            row[b, columns[fresh]], column[b, columns[fresh]] = index, count[fresh]
            placed[columns] = True
    longest = max(map(len, rows))
    out, attends = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
    for sequence, index in rows.items():
        out[index, : len(sequence)] = torch.tensor(sequence)
        attends[index, : len(sequence)] = 1
    return out, attends, row, column


# --- sampling ---------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Cohort:
    """Rows that were admitted together with prompts of one length and one adapter: no padding, one cache."""

    rows: list[Row]
    adapter: Adapter | None
    past: Any  # transformers' cache; None where the model keeps none, then every step runs the whole text


class PlainCache:
    """What rollout.DecodeLoop needs of a cache, by `past_key_values`. Rows of equal prompt length share their steps."""

    def __init__(self, decoder: PlainDecoder) -> None:
        self.decoder = decoder
        self._cohorts: list[_Cohort] = []

    def prefill(self, rows: Sequence[Row], active: int) -> tuple[list[Row], Tensor]:  # noqa: ARG002
        """(rows in the order they are kept, normed state after each prompt (n, D))."""
        alike: dict[tuple[Adapter | None, int], list[Row]] = {}
        for row in rows:
            alike.setdefault((row.adapter, len(row.prompt_ids)), []).append(row)
        ordered: list[Row] = []
        states: list[Tensor] = []
        for (adapter, _), members in alike.items():
            prompts = list(dict.fromkeys(tuple(row.prompt_ids) for row in members))
            out = self.decoder.run(torch.tensor(prompts), adapter, use_cache=True)
            owner = torch.tensor([prompts.index(tuple(row.prompt_ids)) for row in members])
            past = getattr(out, "past_key_values", None)
            if past is not None:
                past.batch_select_indices(owner)
            self._cohorts.append(_Cohort(members, adapter, past))
            states.append(out.last_hidden_state[owner, -1])
            ordered += members
        return ordered, torch.cat(states)

    def step(self, rows: Sequence[Row]) -> Tensor:
        """Normed state after each row's newest token, in the order of `rows`.   -> (n, D)"""
        place = {row: i for i, row in enumerate(rows)}
        states = torch.empty(len(rows), self.decoder.config.d_model, dtype=self.decoder.dtype)
        for cohort in self._cohorts:
            if cohort.past is None:
                whole = torch.tensor([[*row.prompt_ids, *row.ids] for row in cohort.rows])
                out = self.decoder.run(whole, cohort.adapter)
            else:
                newest = torch.tensor([row.ids[-1:] for row in cohort.rows])
                out = self.decoder.run(newest, cohort.adapter, past_key_values=cohort.past, use_cache=True)
            states[[place[row] for row in cohort.rows]] = out.last_hidden_state[:, -1]
        return states

    def reorder(self, order: Sequence[int]) -> None:  # noqa: ARG002
        """Let go of rows that have ended."""
        for cohort in self._cohorts:
            alive = [i for i, row in enumerate(cohort.rows) if row.end is None]
            if len(alive) == len(cohort.rows):
                continue
            cohort.rows = [cohort.rows[i] for i in alive]
            if cohort.past is not None and alive:
                cohort.past.batch_select_indices(torch.tensor(alive))
        self._cohorts = [cohort for cohort in self._cohorts if cohort.rows]

    def forget(self, adapter: Adapter | None) -> None:
        """Nothing of an adapter is kept beyond its rows."""


# --- reading ----------------------------------------------------------------------------------------------------------------


def installed() -> bool:
    return importlib.util.find_spec("transformers") is not None


def _transformers(folder: Path) -> Any:
    if not installed():
        raise NotFound(
            f"{folder} needs transformers, which is not installed; run `pip install 'plaudit[hf]'`, or use a llama-shaped base."
        )
    import transformers

    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its progress bars and hints: stderr belongs to the program."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError, ImportError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"transformers cannot read {folder} as a causal language model: {first}") from error


def _shape(model: Any, folder: Path) -> PlainConfig:
    """Raises BadInput where the blocks are not to be found."""
    text = model.config.get_text_config()
    architecture, n_layers = type(model).__name__, int(text.num_hidden_layers)
    if model.base_model is model:
        raise BadInput(
            f"{folder} ({architecture}) has no layers apart from its head; Plaudit cannot train such a model."
        )
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not found:
        raise BadInput(
            f"{folder} ({architecture}) has no list of {n_layers} layers; Plaudit cannot train such a model."
        )
    path, stack = found[0]
    blocks = tuple(dict(_linears(block, f"{path}.{index}")) for index, block in enumerate(stack))
    if not any(blocks):
        raise BadInput(f"The layers of {folder} ({architecture}) hold no linear layer that an adapter could change.")
    embeddings: Tensor = model.get_input_embeddings().weight
    return PlainConfig(
        vocab_size=embeddings.shape[0],
        d_model=int(text.hidden_size),
        n_layers=n_layers,
        max_positions=int(getattr(text, "max_position_embeddings", None) or 2048),
        stop_ids=read_stop_ids(folder, {"eos_token_id": text.eos_token_id}),
        architecture=architecture,
        blocks=blocks,
        transposed=any(type(module).__name__ == "Conv1D" for module in stack.modules()),
    )


def _linears(block: nn.Module, path: str) -> Iterable[tuple[str, Linear]]:
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            yield name, Linear(f"{path}.{name}", module.in_features, module.out_features)
        elif type(module).__name__ == "Conv1D":  # transformers' own: a linear layer whose weight lies as (in, out)
            width_in, width_out = module.get_parameter("weight").shape
            yield name, Linear(f"{path}.{name}", width_in, width_out)
