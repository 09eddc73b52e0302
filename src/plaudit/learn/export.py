"""A Checkpoint as other programs load it: PEFT's two files, or a whole Hugging Face folder.

    policy   peft     adapter, tokenizer, chat template            peft, vLLM --lora-modules
    policy   merged   the base with the adapter added              transformers, vLLM, llama.cpp's converter
    reward   merged   a classifier with one label (classifier.py)  AutoModelForSequenceClassification
                      of members with bodies of their own one each, in member-K/

Beside the weights lie a card (README.md) and the base's licence. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit import artifacts
from plaudit.errors import BadInput, Conflict
from plaudit.learn import base_models, checkpoint, classifier, decoders, model_card
from plaudit.learn.nets import Adapter, Shape
from plaudit.learn.policies import check_vocabulary
from plaudit.learn.readers import Readers
from plaudit.learn.rewards import RewardModel

FORMS = ("peft", "merged")
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank accepts
INDEX = "model.safetensors.index.json"
TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat_template")
LOADS_CLASSIFIER = (
    "AutoModelForSequenceClassification.from_pretrained(PATH, dtype=torch.float32)(ids).logits[:, 0], where ids are the chat "
    "template's with add_generation_prompt, then the response's, then EOS where it ended by itself; never float16"
)
Summary = dict[str, Any]


def export(folder: Path, base: Path, form: str, out: Path, evaluation: dict[str, Any] | None = None) -> Summary:
    """Write `out`; returns what it is. `evaluation`: what a gate saw, for the card (model_card.py). Raises Conflict (it exists), NotFound,
    Corrupt, BadInput (another base, a form that cannot hold it)."""
    manifest = artifacts.verify(folder, "checkpoint")
    if out.exists():
        raise Conflict(f"{out} exists already; give another --out, or remove it.")
    kind, full = str(manifest.body["checkpoint_kind"]), manifest.body["adapter"] is None
    source = folder if kind == "policy" and full else base
    shape = decoders.read_config(source)
    check_vocabulary(source, shape)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    building.mkdir()
    try:
        match kind, form:
            case "policy", "peft":
                how = _peft(folder, base, building, full)
            case "policy", "merged":
                how = _merged(folder, source, building, shape, full)
            case "reward", "merged":
                how = _reward(folder, base, building)
            case _:
                raise BadInput(
                    f"{folder} is a {kind} Checkpoint, which cannot be exported as {form!r}; its head is no part of an adapter, "
                    "so use --as merged."
                )
        _write_card(folder, building, manifest, form, how, evaluation)
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {"checkpoint": manifest.id, "kind": kind, "form": form, "folder": str(out), "how": how}


def _peft(folder: Path, base: Path, out: Path, full: bool) -> str:
    if full:
        raise BadInput(f"{folder} has weights of its own and no adapter; export it --as merged.")
    adapter = checkpoint.load_policy(folder, base)
    rank = next((rank for rank in VLLM_RANKS if rank >= adapter.rank), None)
    if rank is None:
        raise BadInput(
            f"The adapter's rank is {adapter.rank}, vLLM serves up to {VLLM_RANKS[-1]}; export it --as merged."
        )
    spec = base_models.identity(base).spec
    name = spec if "/" in spec and not Path(spec).exists() else str(base.resolve())
    checkpoint.write_adapter(out, adapter, name)
    _copy(base, out, TOKENIZER)
    return f"vllm serve {name} --enable-lora --max-lora-rank {rank} --lora-modules policy=PATH"


def _merged(folder: Path, source: Path, out: Path, shape: Shape, full: bool) -> str:
    adapter = None if full else checkpoint.load_policy(folder, source)
    _copy(source, out, ("",))
    if not (out / "generation_config.json").is_file():
        raw = json.loads((source / "config.json").read_text())
        said = {name: raw[name] for name in ("bos_token_id", "pad_token_id") if raw.get(name) is not None}
        stop = list(shape.stop_ids)
        said |= {"eos_token_id": stop[0] if len(stop) == 1 else stop} if stop else {}
        artifacts.write_atomic(out / "generation_config.json", json.dumps(said, indent=1) + "\n")
    _add_adapter(source, out, adapter)
    return "AutoModelForCausalLM.from_pretrained(PATH), vllm serve PATH"


def _add_adapter(source: Path, out: Path, adapter: Adapter | None) -> None:
    """The base's weight files, one after another, with W + alpha / rank * B A where the adapter has something to add."""
    from safetensors.torch import load_file, save_file

    index = source / INDEX
    files = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    )
    waiting = dict(adapter.places) if adapter is not None else {}
    for name in files:
        if not waiting:
            shutil.copy(source / name, out / name)
            continue
        weights: dict[str, Tensor] = load_file(source / name)
        assert adapter is not None
        for key, linear in list(waiting.items()):
            # Old files name the layers without the model's prefix: h.0 for transformer.h.0.
            names = (f"{linear.path}.weight", f"{linear.path.partition('.')[2]}.weight")
            place = next((place for place in names if place in weights), None)
            if place is not None:
                weights[place] = _added(weights[place], adapter, key)
                del waiting[key]
        save_file(weights, out / name, metadata={"format": "pt"})
    if waiting:
        lost = next(iter(waiting.values())).path
        raise BadInput(
            f"{source} has no weight {lost!r} in its files; the adapter cannot be merged into them, export it --as peft."
        )


@torch.no_grad()
def _added(weight: Tensor, adapter: Adapter, key: str) -> Tensor:
    delta = adapter.scale * adapter.b[key] @ adapter.a[key]
    together: Tensor = weight.float() + (delta.T if adapter.config.transposed else delta)
    return together.to(weight.dtype)


def _reward(folder: Path, base: Path, out: Path) -> str:
    decoder = decoders.load(base, torch.float32)
    readers = Readers((), base, torch.float32, 1)  # micro_tokens: nothing is read here
    model = checkpoint.load_reward(folder, base, decoder, readers)
    if len({id(member.adapter) for member in model.members}) < 2:
        _classifier(model, folder, base if model.reader is None else model.reader.folder, out)
        return LOADS_CLASSIFIER
    for k, member in enumerate(model.members):
        place = out / f"member-{k}"
        place.mkdir()
        stands_on = base if member.reader is None else member.reader.folder
        _classifier(replace(member, sd=model.sd), folder, stands_on, place)
    return (
        f"the mean of the logits of member-0 to member-{len(model.members) - 1}, each {LOADS_CLASSIFIER}; each with the tokenizer in its own "
        "folder"
    )


def _classifier(model: RewardModel, folder: Path, base: Path, out: Path) -> None:
    """One model with its base's tokenizer."""
    from safetensors.torch import save_file

    pad_id = classifier.pad_of(base, model.decoder.config.stop_ids)
    config, weights = classifier.convert(model, folder, base, pad_id)
    _copy(base, out, TOKENIZER)
    _pad_with(out, base, pad_id)
    artifacts.write_atomic(out / "config.json", json.dumps(config, indent=1) + "\n")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def _pad_with(out: Path, base: Path, pad_id: int) -> None:
    added = json.loads((base / "tokenizer.json").read_text())["added_tokens"]
    path = out / "tokenizer_config.json"
    said = json.loads(path.read_text()) if path.is_file() else {}
    said["pad_token"] = next(token["content"] for token in added if token["id"] == pad_id)
    artifacts.write_atomic(path, json.dumps(said, indent=1) + "\n")


def _copy(base: Path, out: Path, beginnings: tuple[str, ...]) -> None:
    """The base's files with one of these beginnings, and its licence; never weights, nor what is ours."""
    for path in sorted(base.iterdir()):
        text = path.suffix in (".json", ".jinja", ".model", ".txt") and path.name.startswith(beginnings)
        ours = path.name in (base_models.PREPARED, artifacts.MANIFEST)
        if path.is_file() and not ours and (text or path.name.upper().startswith(model_card.LICENCES)):
            shutil.copy(path, out / path.name)


def _write_card(
    folder: Path, out: Path, manifest: artifacts.Manifest, form: str, how: str, evaluation: dict[str, Any] | None
) -> None:
    """README.md, and the pictures that it shows."""
    text = model_card.readme(manifest, (folder / "card.md").read_text(), form, how, evaluation)
    artifacts.write_atomic(out / "README.md", text)
    for name in manifest.files:
        if name.endswith(".svg"):
            shutil.copy(folder / name, out / name)
