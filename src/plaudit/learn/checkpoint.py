"""Checkpoints (what training hands over) and training state (what lets it go on after a kill).

A policy is a LoRA adapter in PEFT's layout, so that peft and vLLM load it too; a reward model is an adapter, or the layers that were
trained in full, with its head and the spread of its scores. The manifest's body says which base, tokenizer and chat template it
belongs to, and loading refuses any other.

    checkpoint/  adapter_config.json adapter_model.safetensors | model.safetensors     head.safetensors (reward)
                 value_head.safetensors (policy, optional)     card.md                 manifest.json
    state/       <counter>-<sha256 of the bytes, 16 digits>.pt    the last two
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit import artifacts
from plaudit.errors import BadInput, Corrupt
from plaudit.learn.base_models import BaseIdentity, identity
from plaudit.learn.nets import PRODUCTS, Adapter, Decoder, DecoderConfig, ScalarHead
from plaudit.learn.rewards import RewardModel

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FULL_WEIGHTS, HEAD, VALUE_HEAD = "model.safetensors", "head.safetensors", "value_head.safetensors"
GENERATIONS = 2

# --- Checkpoints ------------------------------------------------------------------------------------------------------------


def save_policy(
    folder: Path,
    adapter: Adapter,
    base: Path,
    parents: Mapping[str, str],
    metrics: Mapping[str, Any],
    value_head: ScalarHead | None = None,
) -> artifacts.Manifest:
    """Write and finish a policy Checkpoint. `parents` maps a role to the folder it came from; finished ones are recorded by id."""
    artifacts.new_folder(folder.parent, folder.name)
    known = identity(base)
    write_adapter(folder, adapter, known.spec)
    if value_head is not None:
        _save(folder / VALUE_HEAD, dict(value_head.state_dict()))
    return _finish(folder, "policy", known, _shape(adapter), parents, metrics, {})


def save_reward(
    folder: Path, model: RewardModel, base: Path, parents: Mapping[str, str], metrics: Mapping[str, Any]
) -> artifacts.Manifest:
    """Write and finish a reward Checkpoint: adapter or fully trained layers, head, pooling and normalisation."""
    artifacts.new_folder(folder.parent, folder.name)
    known = identity(base)
    if model.adapter is not None:
        write_adapter(folder, model.adapter, known.spec)
    else:
        _save(folder / FULL_WEIGHTS, _trained_weights(model.decoder, model.first_layer, model.read_layer))
    _save(folder / HEAD, dict(model.head.state_dict()))
    extra = {
        "pooling": model.pooling,
        "first_layer": model.first_layer,
        "read_layer": model.read_layer,
        "sd": model.sd,
    }
    shape = None if model.adapter is None else _shape(model.adapter)
    return _finish(folder, "reward", known, shape, parents, metrics, {"reward": extra})


def load_policy(folder: Path, base: Path) -> Adapter:
    """Verify and read a policy's adapter. Raises NotFound, Corrupt, BadInput (not a policy, or made for another base or tokenizer)."""
    _open(folder, "policy", base)
    return read_adapter(folder, DecoderConfig.read(base))


def load_value_head(folder: Path, base: Path) -> ScalarHead | None:
    """The value head that a policy was trained with, where it was kept."""
    _open(folder, "policy", base)
    if not (folder / VALUE_HEAD).is_file():
        return None
    return _load_head(folder / VALUE_HEAD)


def load_reward(folder: Path, base: Path, decoder: Decoder) -> RewardModel:
    """Verify and read a reward model; it shares `decoder` (the base) where it is an adapter. Raises as load_policy does."""
    manifest = _open(folder, "reward", base)
    said = manifest.body["reward"]
    adapter = None
    if (folder / ADAPTER_WEIGHTS).is_file():
        adapter = read_adapter(folder, decoder.config).requires_grad_(False)
    else:
        decoder = Decoder.load(base, decoder.dtype)
        decoder.fill(_load(folder / FULL_WEIGHTS))
    head = _load_head(folder / HEAD).requires_grad_(False)
    return RewardModel(
        decoder, adapter, head, said["pooling"], said["first_layer"], said["sd"], read_layer=said["read_layer"]
    )


def write_adapter(folder: Path, adapter: Adapter, base: str) -> None:
    """PEFT's two files. Names: https://huggingface.co/docs/peft/developer_guides/checkpoint"""
    weights: dict[str, Tensor] = {}
    for key in adapter.a:
        layer, target = key.split(":")
        at = f"base_model.model.model.layers.{layer}.{_room(target)}.{target}"
        weights[f"{at}.lora_A.weight"] = adapter.a[key].detach().float().contiguous()
        weights[f"{at}.lora_B.weight"] = adapter.b[key].detach().float().contiguous()
    _save(folder / ADAPTER_WEIGHTS, weights)
    alpha = int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": list(adapter.targets),
        "layers_to_transform": list(range(adapter.first_layer, adapter.config.n_layers)),
        "inference_mode": True,
    }
    artifacts.write_atomic(folder / ADAPTER_CONFIG, json.dumps(config, indent=1) + "\n")


def read_adapter(folder: Path, config: DecoderConfig) -> Adapter:
    """A PEFT adapter folder, ours or another's. Raises BadInput on what we do not apply (rsLoRA, DoRA, biases, other modules)."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise BadInput(f"{folder} holds no adapter ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}).")
    raw = json.loads(path.read_text())
    refused = [
        name
        for name, default in (
            ("use_rslora", False),
            ("use_dora", False),
            ("bias", "none"),
            ("fan_in_fan_out", False),
            ("modules_to_save", None),
            ("rank_pattern", {}),
            ("alpha_pattern", {}),
        )
        if raw.get(name) not in (None, default)
    ]
    if refused:
        raise BadInput(f"{path} sets {', '.join(refused)}, which is not supported; train a plain LoRA.")
    weights = _load(folder / ADAPTER_WEIGHTS)
    found: dict[tuple[int, str, str], Tensor] = {}
    for name, weight in weights.items():
        match = re.fullmatch(r"base_model\.model\.model\.layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])\.weight", name)
        if match is None:
            raise BadInput(f"{folder / ADAPTER_WEIGHTS} holds {name!r}, which is not a LoRA weight of a llama layer.")
        found[int(match[1]), match[2], match[3]] = weight
    targets = sorted({target for _, target, _ in found})
    adapter = Adapter(config, int(raw["r"]), raw["lora_alpha"], min(layer for layer, _, _ in found), targets)
    for side, parameters in (("A", adapter.a), ("B", adapter.b)):
        for key, parameter in parameters.items():
            layer, target = key.split(":")
            given = found.pop((int(layer), target, side), None)
            if given is None:  # PEFT may adapt single layers: the others are the base's, which B = 0 says
                if side == "A":
                    continue
                given = torch.zeros_like(parameter)
            if given.shape != parameter.shape:
                raise BadInput(
                    f"{folder} has a {target} of shape {tuple(given.shape)} in layer {layer}, this base needs "
                    f"{tuple(parameter.shape)}; it was trained on another model."
                )
            parameter.data.copy_(given)
    if found:
        raise BadInput(f"{folder} adapts layer {max(found)[0]}, but this base has {config.n_layers}.")
    return adapter


def _shape(adapter: Adapter) -> dict[str, Any]:
    return {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "first_layer": adapter.first_layer,
        "targets": list(adapter.targets),
    }


def _finish(
    folder: Path,
    kind: str,
    base: BaseIdentity,
    shape: dict[str, Any] | None,
    parents: Mapping[str, str],
    metrics: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> artifacts.Manifest:
    lineage = {role: _id_of(place) for role, place in parents.items() if place}
    body = {
        "checkpoint_kind": kind,
        "base": {"spec": base.spec, "sha256": base.sha256},
        "tokenizer_sha256": base.tokenizer_sha256,
        "template_sha256": base.template_sha256,
        "adapter": shape,
        "parents": lineage,
        "metrics": dict(metrics),
        "license": base.license,
        **extra,
    }
    lines = [
        f"# A {kind} Checkpoint",
        "",
        f"Trained with Plaudit on the base model {base.spec} (weights {base.sha256[:16]}, licence {base.license}).",
        "",
        *(f"- {role}: {place}" for role, place in lineage.items()),
        *(f"- {name}: {value}" for name, value in metrics.items()),
        "",
        "manifest.json names base, tokenizer and chat template by sha256; it is refused with any other.",
    ]
    artifacts.write_atomic(folder / "card.md", "\n".join(lines) + "\n")
    return artifacts.finish(folder, "checkpoint", body)


def _id_of(place: str) -> str:
    folder = Path(place)
    return artifacts.read_manifest(folder).id if (folder / artifacts.MANIFEST).is_file() else folder.name


def _open(folder: Path, kind: str, base: Path) -> artifacts.Manifest:
    manifest = artifacts.verify(folder, "checkpoint")
    body, here = manifest.body, identity(base)
    if body["checkpoint_kind"] != kind:
        raise BadInput(f"{folder} is a {body['checkpoint_kind']} Checkpoint, not a {kind}.")
    for what, theirs, ours in (
        ("base model", body["base"]["sha256"], here.sha256),
        ("tokenizer", body["tokenizer_sha256"], here.tokenizer_sha256),
        ("chat template", body["template_sha256"], here.template_sha256),
    ):
        if theirs != ours:
            raise BadInput(
                f"{folder} was trained with another {what} ({body['base']['spec']}, {theirs[:12]}) than {base} has "
                f"({ours[:12]}); load it with the base it was trained on."
            )
    return manifest


def _trained_weights(decoder: Decoder, first_layer: int, read_layer: int) -> dict[str, Tensor]:
    def trained(name: str) -> bool:
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        # The layer after the last one read lends its norm, which may have been trained too.
        return first_layer <= int(layer[1]) <= read_layer if layer else first_layer == 0 or name == "model.norm.weight"

    return {name: weight.contiguous() for name, weight in decoder.hf_names().items() if trained(name)}


def _room(target: str) -> str:
    return "mlp" if target in PRODUCTS["gate_up"] + PRODUCTS["down"] else "self_attn"


def _save(path: Path, weights: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    artifacts.write_atomic(
        path, save({name: weight.contiguous() for name, weight in weights.items()}, {"format": "pt"})
    )


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = load_file(path)
    return weights


def _load_head(path: Path) -> ScalarHead:
    state = _load(path)
    head = ScalarHead(len(state["weight"]))
    head.load_state_dict(state)
    return head


# --- training state ---------------------------------------------------------------------------------------------------------


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a generation of training state (tensors and plain values) and keep the last two. A kill at any moment leaves one whole."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    generations = _generations(folder)
    counter = generations[-1][0] + 1 if generations else 1
    artifacts.write_atomic(folder / f"{counter:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt", data)
    for _, path in generations[: -(GENERATIONS - 1)]:
        path.unlink()


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest generation that is whole, or None where training has not saved one. Raises Corrupt where none is readable."""
    generations = _generations(folder)
    for _, path in reversed(generations):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] == path.stem.split("-")[1]:
            state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
            return state
    if generations:
        raise Corrupt(f"No saved state in {folder} is whole; delete the folder to start this run again.")
    return None


def _generations(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.stem.split("-")[0]), path) for path in folder.glob("*-*.pt"))
