"""Checkpoints (what training hands over) and training state (what lets it go on after a kill).

A policy is a LoRA adapter in PEFT's layout, so that peft and vLLM load it too; a reward model is an adapter, or the layers that were
trained in full, with its head and the spread of its scores. The manifest's body says which base, tokenizer and chat template it
belongs to, and loading refuses any other.

    checkpoint/  adapter_config.json adapter_model.safetensors | model.safetensors     head.safetensors (reward)
                 value_head.safetensors (policy, optional)     card.md (reward: *.svg) manifest.json
                 heads.safetensors (reward: one for each criterion, of which head is the weighted sum)
                 member-K/ (ensembles: heads of each member, and its adapter where they share no body)
    state/       <counter>-<sha256 of the bytes, 16 digits>.pt    the last two
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit import artifacts
from plaudit.errors import BadInput, Corrupt
from plaudit.learn import distributed
from plaudit.learn.base_models import PREPARED, BaseIdentity, identity
from plaudit.learn.decoders import read_config
from plaudit.learn.nets import Adapter, Decoder, ScalarHead, Shape
from plaudit.learn.readers import Reader, Readers, belongs
from plaudit.learn.rewards import RewardModel
from plaudit.learn.tokens import ChatTokenizer, specimen

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FULL_WEIGHTS, HEAD, VALUE_HEAD = "model.safetensors", "head.safetensors", "value_head.safetensors"
HEADS = "heads.safetensors"  # of a reward model with a head for each criterion
GENERATIONS = 2

# --- Checkpoints ------------------------------------------------------------------------------------------------------------


def save_policy(
    folder: Path,
    adapter: Adapter,
    base: Path,
    parents: Mapping[str, str],
    metrics: Mapping[str, Any],
    value_head: ScalarHead | None = None,
    card: str = "",
    learnt_from: Mapping[str, Any] | None = None,
    pictures: Mapping[str, str] | None = None,
) -> artifacts.Manifest:
    """Write and finish a policy Checkpoint. `parents` maps a role to the folder it came from; finished ones are recorded by id. `card`
    follows the facts in card.md, `pictures` (name -> SVG) lie beside it; `learnt_from` is the lineage of the reward (ComposedReward.lineage)."""
    artifacts.new_folder(folder.parent, folder.name)
    known = identity(base)
    write_adapter(folder, adapter, known.spec)
    if value_head is not None:
        _save(folder / VALUE_HEAD, dict(value_head.state_dict()))
    _draw(folder, pictures)
    return _finish(folder, "policy", base, known, _shape(adapter), parents, metrics, _lesson(learnt_from), card)


def save_full_policy(
    folder: Path,
    decoder: Decoder,
    base: Path,
    parents: Mapping[str, str],
    metrics: Mapping[str, Any],
    value_head: ScalarHead | None = None,
    card: str = "",
    learnt_from: Mapping[str, Any] | None = None,
    pictures: Mapping[str, str] | None = None,
) -> artifacts.Manifest:
    """Write and finish a policy with weights of its own: a Hugging Face folder, itself a base for whatever asks for one."""
    artifacts.new_folder(folder.parent, folder.name)
    known = identity(base)
    for path in base.iterdir():
        ours = path.name in (PREPARED, artifacts.MANIFEST) or path.name.endswith(".safetensors.index.json")
        if path.suffix in (".json", ".jinja", ".model", ".txt") and not ours:
            artifacts.write_atomic(folder / path.name, path.read_bytes())
    _save(folder / FULL_WEIGHTS, decoder.hf_names())
    spec = f"{known.spec}-{artifacts.sha256_file(folder / FULL_WEIGHTS)[:8]}"
    artifacts.write_atomic(folder / PREPARED, json.dumps({"spec": spec, "license": known.license}, indent=1) + "\n")
    if value_head is not None:
        _save(folder / VALUE_HEAD, dict(value_head.state_dict()))
    _draw(folder, pictures)
    return _finish(folder, "policy", base, known, None, parents, metrics, _lesson(learnt_from), card)


def _draw(folder: Path, pictures: Mapping[str, str] | None) -> None:
    for name, picture in (pictures or {}).items():
        artifacts.write_atomic(folder / name, picture)


def _lesson(learnt_from: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if learnt_from is None else {"learnt_from": dict(learnt_from)}


def save_reward(
    folder: Path,
    model: RewardModel,
    base: Path,
    parents: Mapping[str, str],
    metrics: Mapping[str, Any],
    card: str = "",
    pictures: Mapping[str, str] | None = None,
) -> artifacts.Manifest:
    """Write and finish a reward Checkpoint: adapter or fully trained layers, heads, pooling and normalisation.

    An ensemble has a folder for each member: its heads, and its adapter where members do not share one body; of a member on another base
    the manifest says which. `card` follows the facts in card.md, `pictures` (name -> SVG) lie beside it.
    """
    artifacts.new_folder(folder.parent, folder.name)
    known = identity(base)
    members = model.members or (model,)
    shared = len({id(member.adapter) for member in members}) == 1
    for name, member in _places(members):
        if not shared or member is members[0]:
            stands_on = known if member.reader is None else identity(member.reader.folder)
            _save_body(folder if shared else folder / name, member, stands_on)
        _save(folder / name / HEAD, dict(member.head.state_dict()))
        if member.heads:
            states = {criterion: head.state_dict() for criterion, head in member.heads.items()}
            _save(
                folder / name / HEADS,
                {f"{c}.{key}": part for c, state in states.items() for key, part in state.items()},
            )
    extra = {
        "pooling": model.pooling,
        "first_layer": model.first_layer,
        "read_layer": model.read_layer,
        "sd": model.sd,
        "members": [{"folder": name, "sd": member.sd, **_elsewhere(member)} for name, member in _places(model.members)],
    }
    _draw(folder, pictures)
    shape = None if model.adapter is None else _shape(model.adapter)
    return _finish(folder, "reward", base, known, shape, parents, metrics, {"reward": extra}, card)


def _elsewhere(member: RewardModel) -> dict[str, Any]:
    """What the manifest says of a member on another base; nothing of the others."""
    if member.reader is None:
        return {}
    return {"stands_on": _facts(member.reader.folder), "read_layer": member.read_layer}


def _places(members: Sequence[RewardModel]) -> list[tuple[str, RewardModel]]:
    """The folder of each member inside its Checkpoint; one model alone lies at the top."""
    return [("" if len(members) == 1 else f"member-{k}", member) for k, member in enumerate(members)]


def _save_body(folder: Path, model: RewardModel, base: BaseIdentity) -> None:
    if model.adapter is not None:
        write_adapter(folder, model.adapter, base.spec)
    else:
        _save(folder / FULL_WEIGHTS, _trained_weights(model.decoder, model.first_layer, model.read_layer))


def load_policy(folder: Path, base: Path) -> Adapter:
    """Verify and read a policy's adapter. Raises NotFound, Corrupt, BadInput (not a policy, or made for another base or tokenizer)."""
    said = artifacts.read_manifest(folder, "checkpoint").body
    if said["checkpoint_kind"] == "policy" and said["adapter"] is None:
        raise BadInput(
            f"{folder} is a policy with weights of its own, not an adapter on {base.name}; give the folder itself as the base."
        )
    _open(folder, "policy", base)
    return read_adapter(folder, read_config(base))


def load_full_policy(folder: Path, base: Path, dtype: torch.dtype) -> Decoder:
    """Verify and read a policy with weights of its own that was trained from this base. Raises as load_policy does."""
    _open(folder, "policy", base)
    return Decoder.load(folder, dtype)


def load_value_head(folder: Path, base: Path) -> ScalarHead | None:
    """The value head that a policy was trained with, where it was kept."""
    _open(folder, "policy", base)
    if not (folder / VALUE_HEAD).is_file():
        return None
    return _load_head(folder / VALUE_HEAD)


def load_reward(folder: Path, base: Path, decoder: Decoder, readers: Readers | None = None) -> RewardModel:
    """Verify and read a reward model; it shares `decoder` (the base) where it is an adapter. It, or a member, may stand on another base that
    `readers` find. Raises as load_policy does."""
    manifest = artifacts.verify(folder, "checkpoint")
    _check_kind(folder, manifest, "reward")
    said = manifest.body["reward"]
    own = _stand(folder, manifest.body, base, decoder, readers)
    shared = _load_body(folder, *own[:2])

    def read(place: Path, about: Mapping[str, Any]) -> RewardModel:
        there = _stand(place, about["stands_on"], base, decoder, readers) if "stands_on" in about else own
        body = shared or _load_body(place, *there[:2])
        if body is None:
            raise Corrupt(
                f"{place} has neither {ADAPTER_WEIGHTS} nor {FULL_WEIGHTS}; restore the folder from a backup."
            )
        head, heads = _load_head(place / HEAD), _load_heads(place / HEADS)
        for one in (head, *heads.values()):
            one.requires_grad_(False)
        return RewardModel(
            *body,
            head,
            said["pooling"],
            said["first_layer"],
            about["sd"],
            read_layer=about.get("read_layer", said["read_layer"]),
            heads=heads,
            reader=there[2],
        )

    members = tuple(read(folder / one["folder"], one) for one in said.get("members", []))
    return replace(members[0], sd=said["sd"], members=members) if members else read(folder, {"sd": said["sd"]})


Stand = tuple[
    Path, Decoder, Reader | None
]  # a base: its folder, its decoder, and who reads it where it is not the program's


def _stand(place: Path, said: Mapping[str, Any], base: Path, decoder: Decoder, readers: Readers | None) -> Stand:
    """The base that these facts of a manifest describe: the program's own, or one that `readers` find. Raises BadInput where it is neither."""
    if not belongs(said, identity(base)):
        found = readers.find(said) if readers is not None else None
        if found is not None:
            return found.folder, found.decoder, found
    _check_base(place, said, base, "load it with that base, or name that base in `bases`")
    return base, decoder, None


def _load_body(folder: Path, base: Path, decoder: Decoder) -> tuple[Decoder, Adapter | None] | None:
    """What a reward model's head reads: the base with an adapter, or a decoder of its own; None where the folder holds neither."""
    if (folder / ADAPTER_WEIGHTS).is_file():
        return decoder, read_adapter(folder, decoder.config).requires_grad_(False)
    if not (folder / FULL_WEIGHTS).is_file():
        return None
    own = Decoder.load(base, decoder.dtype)
    own.fill(_load(folder / FULL_WEIGHTS))
    return own, None


def write_adapter(folder: Path, adapter: Adapter, base: str) -> None:
    """PEFT's two files. Names: https://huggingface.co/docs/peft/developer_guides/checkpoint"""
    weights: dict[str, Tensor] = {}
    for key, linear in adapter.places.items():
        at = f"base_model.model.{linear.path}"
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
        "fan_in_fan_out": adapter.config.transposed,
        "target_modules": list(adapter.targets),
        "layers_to_transform": list(range(adapter.first_layer, adapter.config.n_layers)),
        "inference_mode": True,
    }
    artifacts.write_atomic(folder / ADAPTER_CONFIG, json.dumps(config, indent=1) + "\n")


@torch.no_grad()
def write_weights(folder: Path, decoder: Decoder, adapter: Adapter | None) -> None:
    """Put these weights, fp32 and with the adapter added, in the place of those in a Hugging Face folder; a reader sees the old or the new."""
    weights = {name: weight.float() for name, weight in decoder.hf_names().items()}
    for key, linear in (adapter.places if adapter is not None else {}).items():
        assert adapter is not None
        name = f"{linear.path}.weight"
        weights[name] = weights[name] + adapter.scale * adapter.b[key].float() @ adapter.a[key].float()
    (folder / PREPARED).unlink(missing_ok=True)  # what it says of the weights is no longer so
    _save(folder / FULL_WEIGHTS, weights)
    for path in folder.glob("*.safetensors*"):
        if path.name != FULL_WEIGHTS:  # shards of the weights that were there before, and their index
            path.unlink()


def read_adapter(folder: Path, config: Shape) -> Adapter:
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
            ("fan_in_fan_out", config.transposed),
            ("modules_to_save", None),
            ("rank_pattern", {}),
            ("alpha_pattern", {}),
        )
        if raw.get(name) not in (None, default)
    ]
    if refused:
        raise BadInput(f"{path} sets {', '.join(refused)}, which is not supported; train a plain LoRA.")
    weights = _load(folder / ADAPTER_WEIGHTS)
    places = {
        linear.path: (layer, target)
        for layer in range(config.n_layers)
        for target, linear in config.linears(layer).items()
    }
    found: dict[tuple[str, str], Tensor] = {}  # (path, A or B)
    for name, weight in weights.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if match is None or match[1] not in places:
            layer = re.search(r"\.(\d+)\.", name)
            if match is not None and layer is not None and int(layer[1]) >= config.n_layers:
                raise BadInput(f"{folder} adapts layer {layer[1]}, but this base has {config.n_layers}.")
            raise BadInput(
                f"{folder / ADAPTER_WEIGHTS} holds {name!r}, which is not a LoRA weight of this base's layers."
            )
        found[match[1], match[2]] = weight
    if not found:
        raise BadInput(f"{folder / ADAPTER_WEIGHTS} is empty; it adapts no layer.")
    used = [places[path] for path, _ in found]
    adapter = Adapter(
        config,
        int(raw["r"]),
        raw["lora_alpha"],
        min(layer for layer, _ in used),
        sorted({target for _, target in used}),
    )
    for side, parameters in (("A", adapter.a), ("B", adapter.b)):
        for key, parameter in parameters.items():
            at = adapter.places[key].path
            given = found.get((at, side))
            if given is None:  # PEFT may adapt single layers: the others are the base's, which B = 0 says
                if side == "A":
                    continue
                given = torch.zeros_like(parameter)
            if given.shape != parameter.shape:
                raise BadInput(
                    f"{folder} has a LoRA weight of shape {tuple(given.shape)} for {at}, this base needs "
                    f"{tuple(parameter.shape)}; it was trained on another model."
                )
            parameter.data.copy_(given)
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
    base_folder: Path,
    base: BaseIdentity,
    shape: dict[str, Any] | None,
    parents: Mapping[str, str],
    metrics: Mapping[str, Any],
    extra: Mapping[str, Any],
    card: str = "",
) -> artifacts.Manifest:
    lineage = {role: _id_of(place) for role, place in parents.items() if place}
    body = {
        "checkpoint_kind": kind,
        **_facts(base_folder),
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
        *(["", card] if card else []),
    ]
    artifacts.write_atomic(folder / "card.md", "\n".join(lines) + "\n")
    return artifacts.finish(folder, "checkpoint", body)


def _facts(base: Path) -> dict[str, Any]:
    """What a manifest says of a base, to know it again and to show where another one differs."""
    known = identity(base)
    return {
        "base": {"spec": known.spec, "sha256": known.sha256},
        "tokenizer_sha256": known.tokenizer_sha256,
        "template_sha256": known.template_sha256,
        "specimen": json.dumps(specimen(ChatTokenizer.load(base)), ensure_ascii=False),
    }


def _id_of(place: str) -> str:
    folder = Path(place)
    return artifacts.read_manifest(folder).id if (folder / artifacts.MANIFEST).is_file() else folder.name


def _open(folder: Path, kind: str, base: Path) -> artifacts.Manifest:
    manifest = artifacts.verify(folder, "checkpoint")
    _check_kind(folder, manifest, kind)
    _check_base(folder, manifest.body, base)
    return manifest


def _check_kind(folder: Path, manifest: artifacts.Manifest, kind: str) -> None:
    if manifest.body["checkpoint_kind"] != kind:
        raise BadInput(f"{folder} is a {manifest.body['checkpoint_kind']} Checkpoint, not a {kind}.")


def _check_base(
    folder: Path, body: Mapping[str, Any], base: Path, remedy: str = "load it with the base it was trained on"
) -> None:
    here = identity(base)
    for what, theirs, ours in (
        ("base model", body["base"]["sha256"], here.sha256),
        ("tokenizer", body["tokenizer_sha256"], here.tokenizer_sha256),
        ("chat template", body["template_sha256"], here.template_sha256),
    ):
        if theirs != ours:
            raise BadInput(
                f"{folder} was trained with another {what} ({body['base']['spec']}, {theirs[:12]}) than {base} has "
                f"({ours[:12]}){_first_difference(body, base)}; {remedy}."
            )


def _first_difference(body: Mapping[str, Any], base: Path) -> str:
    """Where the base renders the specimen conversation in other tokens than the Checkpoint's own did; empty where it does not."""
    if "specimen" not in body:  # a Checkpoint from before it was kept
        return ""
    theirs = [(token, text) for token, text in json.loads(body["specimen"])]
    for place, (one, other) in enumerate(zip_longest(theirs, specimen(ChatTokenizer.load(base)))):
        if one != other:
            there, here = ("its end" if t is None else f"{t[1]!r} (id {t[0]})" for t in (one, other))
            return f": token {place} of the specimen conversation is {there} there and {here} here"
    return ""


def _trained_weights(decoder: Decoder, first_layer: int, read_layer: int) -> dict[str, Tensor]:
    def trained(name: str) -> bool:
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        # The layer after the last one read lends its norm, which may have been trained too.
        return first_layer <= int(layer[1]) <= read_layer if layer else first_layer == 0 or name == "model.norm.weight"

    return {name: weight.contiguous() for name, weight in decoder.hf_names().items() if trained(name)}


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
    return _head(_load(path))


def _load_heads(path: Path) -> dict[str, ScalarHead]:
    """Heads by criterion; none where there is no such file."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in (_load(path) if path.is_file() else {}).items():
        criterion, _, key = name.rpartition(".")
        parts.setdefault(criterion, {})[key] = tensor
    return {criterion: _head(state) for criterion, state in parts.items()}


def _head(state: Mapping[str, Tensor]) -> ScalarHead:
    head = ScalarHead(len(state["weight"]))
    head.load_state_dict(dict(state))
    return head


# --- training state ---------------------------------------------------------------------------------------------------------


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a generation of training state (tensors and plain values) and keep the last two. A kill at any moment leaves one whole.

    Of several processes the first writes: their states are equal.
    """
    if not distributed.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):  # of a save that was killed
        left.unlink()
    generations = _generations(folder)
    counter = generations[-1][0] + 1 if generations else 1
    half = folder / f".{counter:08d}.tmp"
    try:
        with half.open("wb") as file:  # straight to the disk: full weights with their optimizer are gigabytes
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        half.unlink(missing_ok=True)  # a disk that was full is not left so
        raise
    half.replace(folder / f"{counter:08d}-{artifacts.sha256_file(half)[:16]}.pt")
    place = os.open(folder, os.O_RDONLY)
    os.fsync(place)  # the name is on the disk before an older generation goes
    os.close(place)
    for _, path in generations[: -(GENERATIONS - 1)]:
        path.unlink()


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest generation that is whole, or None where training has not saved one. Raises Corrupt where none is readable.

    Its tensors stay in the file, which is mapped: memory holds what is read of them.
    """
    generations = _generations(folder)
    for _, path in reversed(generations):
        if artifacts.sha256_file(path)[:16] == path.stem.split("-")[1]:
            state: dict[str, Any] = torch.load(path, weights_only=True, mmap=True)
            return state
    if generations:
        raise Corrupt(f"No saved state in {folder} is whole; delete the folder to start this run again.")
    return None


def set_aside(folder: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of fp32 weights in a mapped file without a name, which ends with them: the system may leave them on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [weight.numel() for weight in weights.values()]
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp") as file:
        flat = torch.from_file(file.name, shared=True, size=sum(sizes), dtype=torch.float32)
    parts = zip(weights.items(), torch.split(flat, sizes), strict=True)
    return {name: place.view(weight.shape).copy_(weight) for (name, weight), place in parts}


def _generations(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.stem.split("-")[0]), path) for path in folder.glob("*-*.pt"))
