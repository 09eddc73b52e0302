"""A reward model as a LlamaForSequenceClassification with one label, whose logit is the score in units of the reference's spread.

Hugging Face's classifier is `score.weight @ norm(x)` at the last token, without a bias. Ours is `(u . h / rms(h) + b) / sd`, h the normed
state. Two more layers close the gap. Their attention is zero; their MLP is linear, because a gate with weight 0 and bias GATE multiplies
by the constant silu(GATE) = GATE:

    A  x + REACH * h               the norm after it sees h / rms(h), for x has vanished beside it
    B  channel 0 += LIFT * s       s = (u . h / rms(h) + b) / sd, the score
       channel 1 += LIFT * STEADY  so large that the last norm divides by the same number whatever s is
    score.weight                   picks channel 0 and takes that number out

The error is that of what has vanished: below 1e-5 for scores up to 10, in fp32. In float16 the sizes overflow; in bfloat16 they fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import BadInput
from plaudit.learn.nets import Decoder
from plaudit.learn.plain import PlainDecoder
from plaudit.learn.rewards import RewardModel

GATE = 30.0  # silu(30) is 30 in fp32
REACH = 1e9
LIFT, STEADY = 3e15, 3e3  # their product's square must be below 3.4e38


def convert(model: RewardModel, folder: Path, base: Path, pad_id: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, weights) of the classifier; `folder` is named in errors. Of an ensemble, whose members must share one body, it gives
    their mean. Raises BadInput where it would not score the same."""
    decoder, members = model.decoder, model.members or (model,)
    if model.pooling != "last":
        raise BadInput(
            f"{folder} pools {model.pooling!r}, and AutoModelForSequenceClassification reads the last token only, not knowing "
            "where a response begins; train with pooling 'last' to export it."
        )
    if isinstance(decoder, PlainDecoder) or decoder.config.qk_norm:
        raise BadInput(
            f"{folder} stands on {base}, which cannot be written as a llama; only reward models on llama, mistral and qwen2 "
            "bases are exported."
        )
    if model.adapter is not None:
        decoder = decoder.folded(model.adapter)
    c = decoder.config
    if c.d_ff < c.d_model or c.d_model < 2:
        raise BadInput(
            f"{base} has an MLP of {c.d_ff} for a width of {c.d_model}; the export needs at least that width."
        )
    config = _config(decoder, json.loads((base / "config.json").read_text()), model.read_layer, pad_id)
    above = model.read_layer == c.n_layers
    norm = decoder.norm.data if above else decoder.layer(model.read_layer).input_norm.data
    weight = torch.stack([member.head.weight.data for member in members]).mean(dim=0) / model.sd
    bias = float(torch.stack([member.head.bias.data for member in members]).mean()) / model.sd
    return config, _body(decoder, model.read_layer) | _scorer(decoder, model.read_layer, norm, weight, bias)


def pad_of(base: Path, stop_ids: Sequence[int]) -> int:
    """A special token that never ends a response: the classifier reads the last token that is not padding, and EOS must count.

    Raises BadInput where there is none.
    """
    said = (
        json.loads((base / "tokenizer_config.json").read_text()) if (base / "tokenizer_config.json").is_file() else {}
    )
    texts = [said.get(f"{role}_token") for role in ("pad", "unk", "bos")]
    named = [text["content"] if isinstance(text, dict) else text for text in texts]
    added = json.loads((base / "tokenizer.json").read_text()).get("added_tokens", [])
    special = {token["content"]: int(token["id"]) for token in added if token["special"]}
    for token in (special[text] for text in [*named, *special] if text in special):
        if token not in stop_ids:
            return token
    raise BadInput(f"Every special token of {base} ends a response; a classifier needs one that can pad.")


def _config(decoder: Decoder, raw: dict[str, Any], read_layer: int, pad_id: int) -> dict[str, Any]:
    c = decoder.config
    kept = ("rope_parameters", "rope_scaling", "bos_token_id", "eos_token_id", "initializer_range")
    return {
        "architectures": ["LlamaForSequenceClassification"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": read_layer + 2,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_positions,
        "rms_norm_eps": c.rms_eps,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": False,
        "attention_bias": c.qkv_bias or c.o_bias,
        "mlp_bias": True,
        "num_labels": 1,
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "pad_token_id": pad_id,
        "dtype": "float32",
        **{name: raw[name] for name in kept if name in raw},
    }


def _body(decoder: Decoder, read_layer: int) -> dict[str, Tensor]:
    """The layers below the head under their own names, with biases of 0 where a llama that has biases wants them."""
    c = decoder.config
    weights = {
        name: weight.float()
        for name, weight in decoder.hf_names().items()
        if name == "model.embed_tokens.weight"
        or (name.startswith("model.layers.") and int(name.split(".")[2]) < read_layer)
    }
    for layer in range(read_layer):
        for target, linear in c.linears(layer).items():
            if c.qkv_bias or c.o_bias or target in ("gate_proj", "up_proj", "down_proj"):
                weights.setdefault(f"{linear.path}.bias", torch.zeros(linear.width_out))
    return weights


def _scorer(decoder: Decoder, read_layer: int, norm: Tensor, weight: Tensor, bias: float) -> dict[str, Tensor]:
    """Layers A and B and what comes after them; see the top of this file."""
    c = decoder.config
    out: dict[str, Tensor] = {}
    one = torch.ones(c.d_model)
    for layer, mlp_norm in ((read_layer, norm.float()), (read_layer + 1, one)):
        at = f"model.layers.{layer}"
        out[f"{at}.input_layernorm.weight"], out[f"{at}.post_attention_layernorm.weight"] = one, mlp_norm
        for target in c.linears(0):
            path = f"{at}.{'mlp' if target in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{target}"
            out[f"{path}.weight"] = torch.zeros(c.width_out(target), c.width_in(target))
            if "mlp" in path or c.qkv_bias or c.o_bias:
                out[f"{path}.bias"] = torch.zeros(c.width_out(target))
        out[f"{at}.mlp.gate_proj.bias"].fill_(GATE)
    channels = torch.arange(c.d_model)
    a, b = (f"model.layers.{layer}.mlp" for layer in (read_layer, read_layer + 1))
    out[f"{a}.up_proj.weight"][channels, channels] = 1.0
    out[f"{a}.down_proj.weight"][channels, channels] = REACH / GATE
    out[f"{b}.up_proj.weight"][0], out[f"{b}.up_proj.bias"][:2] = weight, torch.tensor([bias, 1.0])
    out[f"{b}.down_proj.weight"][0, 0] = LIFT / GATE
    out[f"{b}.down_proj.weight"][1, 1] = LIFT * STEADY / GATE
    out["model.norm.weight"] = one
    out["score.weight"] = torch.zeros(1, c.d_model)
    out["score.weight"][0, 0] = STEADY / math.sqrt(c.d_model)
    return {name: part.clone() for name, part in out.items()}  # safetensors wants no two names for one tensor
