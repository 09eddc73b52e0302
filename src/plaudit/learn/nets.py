"""A lean decoder for llama-shaped models, LoRA beside it, and scalar heads. Read weights, run layers, nothing else.

Supported: llama (SmolLM included), mistral, qwen2, qwen3; other architectures run through plain.py. Weights come from a Hugging Face
folder's safetensors; q, k, v and gate, up are stored as one matrix each, so that a layer is four products. Left out on purpose: dropout
(checklist 4: off everywhere), gradient checkpointing (dear at this size), a KV cache (rollout.py owns it), rope scaling other than llama3's.

Shapes: B rows, T positions, S keys, D model width, H heads, G key-value heads, V vocabulary, r LoRA rank.
Weights of the base are frozen parameters in `dtype`; adapters and heads are fp32 masters, cast at use.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit.errors import BadInput, NotFound

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The product a target belongs to: the targets of one product read the same input and their outputs lie side by side.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}


@dataclass(frozen=True)
class Linear:
    """A linear layer that an adapter may change."""

    path: str  # its module's name in Hugging Face's model
    width_in: int
    width_out: int


@dataclass(frozen=True)
class Shape:
    """What programs and adapters must know of a model, whichever decoder runs it."""

    vocab_size: int
    d_model: int
    n_layers: int
    max_positions: int  # tokens of prompt and response together
    stop_ids: tuple[int, ...]  # ids that end a response; generation_config.json's where it names them
    transposed: bool  # weights lie as (in, out): GPT-2's Conv1D, PEFT's fan_in_fan_out

    def linears(self, layer: int) -> Mapping[str, Linear]:
        """The linear layers of one block, by the name that a LoRA config gives them."""
        raise NotImplementedError

    def targets_of(self, product: str) -> tuple[str, ...]:
        """The targets that one product computes, their outputs side by side."""
        raise NotImplementedError

    @property
    def targets(self) -> tuple[str, ...]:
        """Every target that some layer has, in order."""
        return tuple(dict.fromkeys(target for layer in range(self.n_layers) for target in self.linears(layer)))


@dataclass(frozen=True)
class Llama3Rope:
    """The rotary frequencies of Llama 3.1 and later: long wavelengths are stretched by `factor`, short ones kept, between them a ramp."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def scaled(self, inverse: Tensor) -> Tensor:
        """(hd / 2,) -> (hd / 2,). Source: transformers, _compute_llama3_parameters."""
        turns = self.original_max_positions * inverse / (2 * math.pi)  # whole turns within the trained context
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = ramp.clamp(0.0, 1.0)
        return kept * inverse + (1 - kept) * inverse / self.factor


@dataclass(frozen=True)
class DecoderConfig(Shape):
    """The shape of a llama-shaped model, read from a Hugging Face config.json. A sliding window counts as the limit of positions."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float
    rms_eps: float
    tied: bool
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool  # qwen3: queries and keys are normed for each head before they turn
    llama3_rope: Llama3Rope | None

    @staticmethod
    def read(folder: Path) -> DecoderConfig:
        """From `folder/config.json`. Raises NotFound (no file), BadInput (another architecture, scaled rope)."""
        path = folder / "config.json"
        if not path.is_file():
            raise NotFound(
                f"{path} is missing; a base model is a Hugging Face folder with config.json and safetensors."
            )
        raw: dict[str, Any] = json.loads(path.read_text())
        architecture = (raw.get("architectures") or ["unknown"])[0]
        if architecture not in ARCHITECTURES:
            raise BadInput(f"{folder} is a {architecture}; supported are {', '.join(ARCHITECTURES)}.")
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise BadInput(
                f"{folder} uses {kind!r} rope scaling; supported are the plain rotary embedding and llama3's."
            )
        if raw.get("mlp_bias"):
            raise BadInput(f"{folder} has biases in its MLP (mlp_bias), which is not supported.")
        if raw.get("hidden_act", "silu") != "silu":
            raise BadInput(f"{folder} uses the activation {raw['hidden_act']!r}; only silu is supported.")
        bias = bool(raw.get("attention_bias", False))
        heads, width = int(raw["num_attention_heads"]), int(raw["hidden_size"])
        slides = raw.get("use_sliding_window", not architecture.startswith("Qwen"))
        window = raw.get("sliding_window") if slides else None
        limit = int(raw.get("max_position_embeddings", 2048))
        return DecoderConfig(
            vocab_size=int(raw["vocab_size"]),
            d_model=width,
            n_layers=int(raw["num_hidden_layers"]),
            n_heads=heads,
            n_kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or width // heads),
            d_ff=int(raw["intermediate_size"]),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
            rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=bias or architecture == "Qwen2ForCausalLM",
            o_bias=bias and architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM"),
            qk_norm=architecture == "Qwen3ForCausalLM",
            llama3_rope=Llama3Rope(
                float(rope["factor"]),
                float(rope["low_freq_factor"]),
                float(rope["high_freq_factor"]),
                int(rope["original_max_position_embeddings"]),
            )
            if kind == "llama3"
            else None,
            max_positions=min(limit, int(window)) if window else limit,
            stop_ids=read_stop_ids(folder, raw),
            transposed=False,
        )

    def linears(self, layer: int) -> Mapping[str, Linear]:
        room = dict.fromkeys(PRODUCTS["gate_up"] + PRODUCTS["down"], "mlp")
        return {
            target: Linear(
                f"model.layers.{layer}.{room.get(target, 'self_attn')}.{target}",
                self.width_in(target),
                self.width_out(target),
            )
            for target in TARGETS
        }

    def targets_of(self, product: str) -> tuple[str, ...]:
        return PRODUCTS[product]

    def inverse_frequencies(self) -> Tensor:
        """(hd / 2,) radians that each pair of channels turns from one position to the next."""
        inverse = self.rope_theta ** -(torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)
        return inverse if self.llama3_rope is None else self.llama3_rope.scaled(inverse)

    def width_in(self, target: str) -> int:
        match target:
            case "o_proj":
                return self.n_heads * self.head_dim
            case "down_proj":
                return self.d_ff
            case _:
                return self.d_model

    def width_out(self, target: str) -> int:
        match target:
            case "q_proj":
                return self.n_heads * self.head_dim
            case "k_proj" | "v_proj":
                return self.n_kv_heads * self.head_dim
            case "gate_proj" | "up_proj":
                return self.d_ff
            case _:
                return self.d_model


def read_stop_ids(folder: Path, raw: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a response: of generation_config.json where it names them, else of config.json, whose content `raw` is."""
    generation = folder / "generation_config.json"
    said = json.loads(generation.read_text()).get("eos_token_id") if generation.is_file() else None
    stop = raw.get("eos_token_id") if said is None else said
    return () if stop is None else tuple(stop) if isinstance(stop, list) else (stop,)


class Deltas(Protocol):
    """What a product asks for: the low-rank addition to its output, or None. Adapter is one; rollout's per-row mixture the other."""

    def delta(self, layer: int, product: str, x: Tensor) -> Tensor | None: ...


class Layer(nn.Module):
    """The weights of one layer, products fused."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()

        def frozen(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)

        c = config
        width_qkv = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
        self.input_norm, self.mlp_norm = frozen(c.d_model), frozen(c.d_model)
        self.qkv = frozen(width_qkv, c.d_model)
        self.qkv_bias = frozen(width_qkv) if c.qkv_bias else None
        self.q_norm = frozen(c.head_dim) if c.qk_norm else None
        self.k_norm = frozen(c.head_dim) if c.qk_norm else None
        self.o = frozen(c.d_model, c.n_heads * c.head_dim)
        self.o_bias = frozen(c.d_model) if c.o_bias else None
        self.gate_up = frozen(2 * c.d_ff, c.d_model)
        self.down = frozen(c.d_model, c.d_ff)

    def weight(self, product: str) -> Tensor:
        weight: Tensor = getattr(self, product)
        return weight

    def replaced(self, weights: Mapping[str, Tensor]) -> Layer:
        """This layer with some products' weights exchanged; the others are shared."""
        copy = Layer.__new__(Layer)
        nn.Module.__init__(copy)
        for name in ("input_norm", "mlp_norm", "q_norm", "k_norm", "qkv_bias", "o_bias", *PRODUCTS):
            setattr(copy, name, weights.get(name, getattr(self, name)))
        return copy


class Decoder(nn.Module):
    """Embedding, layers, final norm, head. Frozen by default; `requires_grad_(True)` makes it a full fine-tune.

    What programs may ask of any decoder, plain.PlainDecoder too: `config` as a Shape, `embed`, `run_layers` from the bottom to the top,
    `final`, `logits`, `frozen_head`, `trunk_depth`, `folded`, `for_sampling`.
    """

    cos: Tensor
    sin: Tensor
    head: Tensor  # the embedding where tied

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.d_model, dtype=dtype), requires_grad=False)
        self.layers = nn.ModuleList(Layer(config, dtype) for _ in range(config.n_layers))
        self.norm = nn.Parameter(torch.empty(config.d_model, dtype=dtype), requires_grad=False)
        self.head = (
            self.embedding
            if config.tied
            else nn.Parameter(torch.empty(config.vocab_size, config.d_model, dtype=dtype), requires_grad=False)
        )
        positions = torch.arange(config.max_positions, dtype=torch.float32)
        angles = torch.outer(positions, config.inverse_frequencies()).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (max_positions, head_dim)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @staticmethod
    def load(folder: Path, dtype: torch.dtype) -> Decoder:
        """Read a Hugging Face folder. Raises NotFound (files missing), BadInput (unsupported, or weights that do not fit)."""
        config = DecoderConfig.read(folder)
        decoder = Decoder(config, dtype)
        missing = decoder.fill(_read_safetensors(folder))
        if missing:
            raise BadInput(f"{folder} lacks the weight {missing[0]!r} (and {len(missing) - 1} more); it is incomplete.")
        return decoder

    def hf_names(self) -> dict[str, Tensor]:
        """Hugging Face's name -> a view into our (fused) parameter. Reading gives weights to save, `copy_` loads them."""
        c = self.config
        names: dict[str, Tensor] = {
            "model.embed_tokens.weight": self.embedding.data,
            "model.norm.weight": self.norm.data,
        }
        if not c.tied:
            names["lm_head.weight"] = self.head.data
        for index in range(c.n_layers):
            layer = self.layer(index)
            at = f"model.layers.{index}"
            names[f"{at}.input_layernorm.weight"] = layer.input_norm.data
            names[f"{at}.post_attention_layernorm.weight"] = layer.mlp_norm.data
            if layer.q_norm is not None and layer.k_norm is not None:
                names[f"{at}.self_attn.q_norm.weight"] = layer.q_norm.data
                names[f"{at}.self_attn.k_norm.weight"] = layer.k_norm.data
            linears = c.linears(index)
            for product, targets in PRODUCTS.items():
                widths = [c.width_out(target) for target in targets]
                for target, part in zip(targets, torch.split(layer.weight(product).data, widths), strict=True):
                    names[f"{linears[target].path}.weight"] = part
                bias = getattr(layer, f"{product}_bias", None)
                if bias is not None:
                    for target, part in zip(targets, torch.split(bias.data, widths), strict=True):
                        names[f"{linears[target].path}.bias"] = part
        return names

    def fill(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Copy weights by Hugging Face name; returns the names that were not there. Raises BadInput on another shape."""
        missing = []
        for name, place in self.hf_names().items():
            if name not in weights:
                missing.append(name)
                continue
            if weights[name].shape != place.shape:
                raise BadInput(f"{name} has shape {tuple(weights[name].shape)}, the config says {tuple(place.shape)}.")
            place.copy_(weights[name])
        return missing

    def layer(self, index: int) -> Layer:
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D)."""
        return F.embedding(ids, self.embedding)

    def attention_inputs(
        self, layer: int, hidden: Tensor, cos: Tensor, sin: Tensor, deltas: Deltas | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) and (B, T, 1, head_dim) angles -> rotated q (B, T, H, hd), k (B, T, G, hd), and v (B, T, G, hd)."""
        c, w = self.config, self.layer(layer)
        x = rms_norm(hidden, w.input_norm, c.rms_eps)
        qkv = _product(w, layer, "qkv", x, deltas).view(*x.shape[:-1], c.n_heads + 2 * c.n_kv_heads, c.head_dim)
        qk, v = torch.split(qkv, [c.n_heads + c.n_kv_heads, c.n_kv_heads], dim=-2)
        if w.q_norm is not None and w.k_norm is not None:
            q, k = torch.split(qk, [c.n_heads, c.n_kv_heads], dim=-2)
            qk = torch.cat((rms_norm(q, w.q_norm, c.rms_eps), rms_norm(k, w.k_norm, c.rms_eps)), dim=-2)
        left, right = qk.chunk(2, dim=-1)
        qk = qk * cos + torch.cat((-right, left), dim=-1) * sin
        q, k = torch.split(qk, [c.n_heads, c.n_kv_heads], dim=-2)
        return q, k, v

    def after_attention(self, layer: int, hidden: Tensor, context: Tensor, deltas: Deltas | None) -> Tensor:
        """Residual after attention: hidden (B, T, D), context (B, T, H * hd) -> (B, T, D), MLP included."""
        w = self.layer(layer)
        hidden = hidden + _product(w, layer, "o", context, deltas)
        x = rms_norm(hidden, w.mlp_norm, self.config.rms_eps)
        gate, up = _product(w, layer, "gate_up", x, deltas).chunk(2, dim=-1)
        return hidden + _product(w, layer, "down", F.silu(gate) * up, deltas)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) positions -> cos, sin (B, T, 1, head_dim) in the decoder's dtype."""
        cos, sin = self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)
        return cos.to(self.dtype), sin.to(self.dtype)

    def run_layers(
        self, hidden: Tensor, positions: Tensor, mask: Tensor, first: int, last: int, adapter: Deltas | None
    ) -> Tensor:
        """Hidden states after layers [first, last): hidden (B, T, D), positions (B, T), mask (B, T, T) or (B, 1, T, T), True = attend."""
        c = self.config
        mask = mask.unsqueeze(1) if mask.dim() == 3 else mask
        cos, sin = self.angles(positions)
        for layer in range(first, last):
            q, k, v = self.attention_inputs(layer, hidden, cos, sin, adapter)
            context = F.scaled_dot_product_attention(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                attn_mask=mask,
                enable_gqa=c.n_kv_heads != c.n_heads,
            )
            hidden = self.after_attention(layer, hidden, context.transpose(1, 2).flatten(2), adapter)
        return hidden

    def final(self, hidden: Tensor) -> Tensor:
        """The final norm, (..., D) -> (..., D)."""
        return rms_norm(hidden, self.norm, self.config.rms_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Head over normed hidden states, (..., D) -> (..., V) fp32."""
        return _linear(hidden, self.head, None).float()

    def frozen_head(self) -> Tensor | None:
        """(V, D) where logits are this frozen matrix times the normed states, so that a loss may form its gradient on the way; else None."""
        return None if self.head.requires_grad else self.head

    def trunk_depth(self, layer: int) -> int:
        """How many of the lowest `layer` frozen layers can be run once and shared: all of them."""
        return layer

    def folded(self, adapter: Adapter) -> Decoder:
        """A decoder with the adapter added into its weights; everything the adapter leaves alone is shared, not copied.

        Sampling with one adapter for all rows costs as much as the base then. Equal to running the adapter up to rounding, so
        fp32 only (in bf16 small deltas would be lost).
        """
        if self.dtype != torch.float32:
            raise BadInput(f"An adapter can be folded into fp32 weights only, not {self.dtype}.")
        layers = []
        for index in range(self.config.n_layers):
            layer = self.layer(index)
            if index >= adapter.first_layer:
                folded = {product: adapter.fold(index, product, layer.weight(product)) for product in PRODUCTS}
                layer = layer.replaced(
                    {name: nn.Parameter(weight, requires_grad=False) for name, weight in folded.items()}
                )
            layers.append(layer)
        return self._replaced(layers, self.head)

    @torch.no_grad()
    def for_sampling(self, adapter: Adapter | None = None) -> Decoder:
        """A decoder for inference only, whose widest products have their weights laid out for oneDNN; the rest is shared. An adapter is
        folded in on the way, layer by layer, so that no weight lies there twice (`folded` says when that may be).

        With the 16 to 64 rows of a decode step, MKL's fp32 product with the head runs at half of what oneDNN reaches with packed
        weights (gate and up: three quarters). Costs a copy of those weights, 325 MB for SmolLM2-135M.
        """
        packs = self.dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if not packs or self.head.is_mkldnn:
            return self if adapter is None else self.folded(adapter)
        layers = []
        for index in range(self.config.n_layers):
            layer, weights = self.layer(index), dict[str, Tensor]()
            if adapter is not None and index >= adapter.first_layer:
                weights = {product: adapter.fold(index, product, layer.weight(product)) for product in PRODUCTS}
            layers.append(layer.replaced(weights | {"gate_up": _packed(weights.get("gate_up", layer.gate_up))}))
        return self._replaced(layers, _packed(self.head))

    def _replaced(self, layers: Iterable[Layer], head: Tensor) -> Decoder:
        copy = Decoder.__new__(Decoder)
        nn.Module.__init__(copy)
        copy.config, copy.dtype = self.config, self.dtype
        copy.embedding, copy.norm, copy.head = self.embedding, self.norm, head
        copy.register_buffer("cos", self.cos, persistent=False)
        copy.register_buffer("sin", self.sin, persistent=False)
        copy.layers = nn.ModuleList(layers)
        return copy


class Adapter(nn.Module):
    """LoRA (Hu et al. 2021): W x + alpha / rank * B A x, for layers >= first_layer. B starts at zero, so it starts as the identity.

    first_layer = K > 0 freezes the lower trunk: layers below K are the base's, so their hidden states can be computed once and
    shared by policy, reference, reward and value passes and by all epochs. It changes the function that can be learned.
    """

    def __init__(
        self,
        config: Shape,
        rank: int,
        alpha: float,
        first_layer: int = 0,
        targets: Iterable[str] = TARGETS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.targets = _chosen(config, tuple(targets))
        if not 0 <= first_layer < config.n_layers or rank < 1:
            raise BadInput(
                f"LoRA of rank {rank} from layer {first_layer} does not fit a model of {config.n_layers} layers; "
                "rank is at least 1 and first_layer below the number of layers."
            )
        self.config, self.rank, self.alpha, self.first_layer = config, rank, float(alpha), first_layer
        self.scale = alpha / rank
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        self.places: dict[str, Linear] = {}  # key of `a` and `b` -> the layer it changes
        for layer in range(first_layer, config.n_layers):
            linears = config.linears(layer)
            for target in (target for target in self.targets if target in linears):
                key, linear = _key(layer, target), linears[target]
                # Kaiming-uniform with a = sqrt(5), as PEFT: bound 1 / sqrt(fan_in).
                bound = 1 / math.sqrt(linear.width_in)
                a = torch.empty(rank, linear.width_in).uniform_(-bound, bound, generator=generator)
                self.a[key] = nn.Parameter(a)
                self.b[key] = nn.Parameter(torch.zeros(linear.width_out, rank))
                self.places[key] = linear

    def delta(self, layer: int, product: str, x: Tensor) -> Tensor | None:
        """x (..., in) -> the addition to the product's output (..., out), or None where this adapter has none."""
        beside = self.config.targets_of(product)
        targets = [target for target in beside if _key(layer, target) in self.places]
        if not targets:
            return None
        keys = [_key(layer, target) for target in targets]
        down = self.a[keys[0]] if len(keys) == 1 else torch.cat([self.a[key] for key in keys])
        low = F.linear(x, down.to(x.dtype)) * self.scale  # (..., r * targets)
        parts = dict(zip(targets, torch.split(low, self.rank, dim=-1), strict=True))
        out = [
            F.linear(parts[target], self.b[_key(layer, target)].to(x.dtype))
            if target in parts
            else x.new_zeros(*x.shape[:-1], self.config.linears(layer)[target].width_out)
            for target in beside
        ]
        return out[0] if len(out) == 1 else torch.cat(out, dim=-1)

    @torch.no_grad()
    def fold(self, layer: int, product: str, weight: Tensor) -> Tensor:
        """The product's (fused) weight with this adapter added; the same tensor where it has nothing to add."""
        beside = self.config.targets_of(product)
        if not any(_key(layer, target) in self.places for target in beside):
            return weight
        weight = weight.clone()
        linears = self.config.linears(layer)
        for target, part in zip(beside, torch.split(weight, [linears[t].width_out for t in beside]), strict=True):
            key = _key(layer, target)
            if key in self.places:
                part.addmm_(self.b[key].to(part.dtype), self.a[key].to(part.dtype), alpha=self.scale)
        return weight


def _key(layer: int, target: str) -> str:
    return f"{layer}:{target.replace('.', '/')}"  # a parameter's name must not hold a point


def _chosen(config: Shape, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The model's linear layers that `targets` name, in the model's order; the seven of a llama mean all of any model.

    A name may be the end of a longer one, as in PEFT: q_proj is self_attn.q_proj. Raises BadInput on a name that is not there.
    """
    known = config.targets
    if set(targets) == set(TARGETS):
        return known
    found = {target: [name for name in known if f".{name}".endswith(f".{target}")] for target in targets}
    unknown = sorted(target for target, names in found.items() if not names)
    if unknown or not targets:
        raise BadInput(f"Unknown LoRA targets {unknown}; choose from {', '.join(known)}.")
    named = {name for names in found.values() for name in names}
    return tuple(name for name in known if name in named)


class ScalarHead(nn.Module):
    """A linear map to one number: reward or value. Weights N(0, 1/sqrt(width+1)) (Stiennon et al. 2020), bias 0, fp32."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        std = 1 / math.sqrt(width + 1)
        self.weight = nn.Parameter(torch.empty(width).normal_(0.0, std, generator=generator))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...) fp32."""
        return hidden.float() @ self.weight + self.bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, the division in fp32 as Hugging Face does."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=eps).to(x.dtype) * weight


@cache
def pick_dtype() -> torch.dtype:
    """bf16 where a product of a layer's size is faster in it than in fp32 here, else fp32. Takes under .3 s, measured once a process."""
    operands = {
        dtype: (torch.ones(64, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = dict.fromkeys(operands, math.inf)
    for _ in range(
        20
    ):  # in turns, so that a busy moment falls on both; the first call builds the kernel and is never the best
        for dtype, (x, w) in operands.items():
            start = time.perf_counter()
            F.linear(x, w)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else torch.float32


def _product(weights: Layer, layer: int, product: str, x: Tensor, deltas: Deltas | None) -> Tensor:
    bias = getattr(weights, f"{product}_bias", None)
    out = _linear(x, weights.weight(product), bias)
    delta = None if deltas is None else deltas.delta(layer, product, x)
    return out if delta is None else out + delta


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.is_mkldnn:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 64)  # laid out for about 64 rows
    return packed


def _read_safetensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    )
    weights: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise NotFound(f"{folder / name} is missing; a base model needs its weights as safetensors.")
        weights.update(load_file(folder / name))
    return weights
