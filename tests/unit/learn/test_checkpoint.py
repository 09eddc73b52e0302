"""Checkpoints survive the way to disk and back, in PEFT's names, and refuse what they were not made for; state survives a torn write."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit import artifacts
from plaudit.errors import BadInput, Conflict, Corrupt, NotFound
from plaudit.learn import base_models, checkpoint
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.rewards import RewardModel, criterion_scores, member_scores, score_responses
from plaudit.learn.tokens import ChatTokenizer, Rollout, pack, specimen

DATA = Rollout([[1, 2, 3], [4, 5]], [[10, 11], [20], [30, 31, 32]], [0, 0, 1], [True, False, True])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def decoder(base):
    return Decoder.load(base, torch.float32)


def make_adapter(decoder, **options):
    adapter = Adapter(decoder.config, **{"rank": 4, "alpha": 8, "first_layer": 2, "seed": 1} | options)
    for b in adapter.b.values():
        b.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(b)))
    return adapter


@pytest.fixture
def policy(base, decoder, tmp_path):
    adapter = make_adapter(decoder)
    manifest = checkpoint.save_policy(
        tmp_path / "policy", adapter, base, {"snapshot": "", "start": "x/abc"}, {"kl": 1.5}
    )
    return tmp_path / "policy", adapter, manifest


def changed_base(base, tmp_path, name):
    folder = tmp_path / f"other-{name}"
    shutil.copytree(base, folder)
    (folder / base_models.PREPARED).unlink()
    path = folder / name
    if name.endswith(".safetensors"):
        weights = load_file(path)
        weights["model.norm.weight"][0] += 1
        save_file(weights, path)
    else:
        path.write_text(path.read_text() + " ")
    return folder


def test_a_policy_comes_back(policy, base):
    folder, adapter, _ = policy
    again = checkpoint.load_policy(folder, base)
    assert (again.rank, again.alpha, again.first_layer, again.targets) == (4, 8.0, 2, adapter.targets)
    for (name, one), (other_name, other) in zip(adapter.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)


def test_the_files_are_pefts(policy):
    """Names as PEFT 0.x writes them for a llama with layers_to_transform."""
    folder, _, _ = policy
    weights = load_file(folder / "adapter_model.safetensors")
    assert len(weights) == 2 * 2 * 7
    assert weights["base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"].shape == (4, 64)
    assert weights["base_model.model.model.layers.3.mlp.down_proj.lora_B.weight"].shape == (64, 4)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["layers_to_transform"]) == (
        "LORA",
        4,
        8,
        [2, 3],
    )


def test_the_manifest_says_where_it_belongs(policy, base):
    _, _, manifest = policy
    known = base_models.identity(base)
    assert manifest.body.pop("specimen").startswith('[[259, "<|user|>"], [72, "H"]')
    assert manifest.body == {
        "checkpoint_kind": "policy",
        "base": {"spec": "tiny", "sha256": known.sha256},
        "tokenizer_sha256": known.tokenizer_sha256,
        "template_sha256": known.template_sha256,
        "adapter": {
            "rank": 4,
            "alpha": 8.0,
            "first_layer": 2,
            "targets": list(Adapter(Decoder.load(base, torch.float32).config, 1, 1).targets),
        },
        "parents": {"start": "abc"},
        "metrics": {"kl": 1.5},
        "license": "apache-2.0",
    }


def test_finished_parents_are_named_by_id(policy, base, decoder, tmp_path):
    folder, _, manifest = policy
    child = checkpoint.save_policy(tmp_path / "child", make_adapter(decoder), base, {"start": str(folder)}, {})
    assert child.body["parents"] == {"start": manifest.id}


@pytest.mark.parametrize(
    ("name", "what"),
    [("model.safetensors", "base model"), ("tokenizer.json", "tokenizer"), ("chat_template.jinja", "chat template")],
)
def test_another_base_is_refused(policy, base, tmp_path, name, what):
    with pytest.raises(BadInput, match=f"another {what}"):
        checkpoint.load_policy(policy[0], changed_base(base, tmp_path, name))


def test_the_first_differing_token_is_named(policy, base, tmp_path):
    """Token 0 is the user's tag, 1 the H of Hello: another template changes the first, another vocabulary the second."""
    folder = changed_base(base, tmp_path, "chat_template.jinja")
    template = folder / "chat_template.jinja"
    template.write_text("<|system|>" + base_models.TINY_TEMPLATE)
    with pytest.raises(
        BadInput,
        match=r"another chat template.*token 0 .* is '<\|user\|>' \(id 259\) there and '<\|system\|>' \(id 258\) here",
    ):
        checkpoint.load_policy(policy[0], folder)
    template.write_text(
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    )
    with pytest.raises(BadInput, match=r"is '<\|assistant\|>' \(id 260\) there and its end here"):
        checkpoint.load_policy(policy[0], folder)
    shutil.copy(base / "chat_template.jinja", template)
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    vocabulary["H"], vocabulary["J"] = vocabulary["J"], vocabulary["H"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(BadInput, match=r"another tokenizer.*token 1 .* is 'H' \(id 72\) there and 'H' \(id 74\) here"):
        checkpoint.load_policy(policy[0], folder)


def test_a_date_in_the_template_is_no_difference(base, tmp_path):
    folder = changed_base(base, tmp_path, "chat_template.jinja")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %f') }}" + base_models.TINY_TEMPLATE)
    tokenizer = ChatTokenizer.load(folder)
    assert specimen(tokenizer) == specimen(tokenizer)
    assert tokenizer.decode([token for token, _ in specimen(tokenizer)][:10]) == "2000-01-01"


def test_a_base_without_template_still_shows_its_tokens(base, tmp_path):
    folder = changed_base(base, tmp_path, "tokenizer.json")
    (folder / "chat_template.jinja").unlink()
    assert [text for _, text in specimen(ChatTokenizer.load(folder))][:5] == list("Hello")


def test_a_changed_byte_is_found(policy, base):
    path = policy[0] / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="adapter_model"):
        checkpoint.load_policy(policy[0], base)


def test_kinds_are_not_mixed_up_and_folders_written_once(policy, base, decoder):
    with pytest.raises(BadInput, match="policy Checkpoint, not a reward"):
        checkpoint.load_reward(policy[0], base, decoder)
    with pytest.raises(Conflict):
        checkpoint.save_policy(policy[0], make_adapter(decoder), base, {}, {})


def test_an_unfinished_folder_is_no_checkpoint(policy, base):
    (policy[0] / artifacts.MANIFEST).unlink()
    with pytest.raises(NotFound, match="not a finished"):
        checkpoint.load_policy(policy[0], base)


def test_a_value_head_comes_back(base, decoder, tmp_path):
    head = ScalarHead(64, seed=3)
    checkpoint.save_policy(tmp_path / "p", make_adapter(decoder), base, {}, {}, value_head=head)
    again = checkpoint.load_value_head(tmp_path / "p", base)
    assert torch.equal(again.weight, head.weight)
    checkpoint.save_policy(tmp_path / "q", make_adapter(decoder), base, {}, {})
    assert checkpoint.load_value_head(tmp_path / "q", base) is None


def test_a_reward_adapter_scores_alike(base, decoder, tmp_path):
    head = ScalarHead(64, seed=3)
    head.bias.data.fill_(0.7)
    model = RewardModel(decoder, make_adapter(decoder), head, "mean", 2, 1.9, read_layer=3)
    checkpoint.save_reward(tmp_path / "r", model, base, {}, {"accuracy": None})
    again = checkpoint.load_reward(tmp_path / "r", base, decoder)
    assert (again.pooling, again.first_layer, again.read_layer, again.sd) == ("mean", 2, 3, 1.9)
    assert again.decoder is decoder
    assert not any(p.requires_grad for p in [*again.adapter.parameters(), *again.head.parameters()])
    assert torch.equal(score_responses(again, pack(DATA), None), score_responses(model, pack(DATA), None))


def test_a_fully_trained_reward_model_scores_alike(base, decoder, tmp_path):
    trained = Decoder.load(base, torch.float32)
    for name, weight in trained.hf_names().items():
        if name.startswith("model.layers.3") or name == "model.norm.weight":
            weight.add_(0.1)
    model = RewardModel(trained, None, ScalarHead(64, seed=3), "last", 3, 1.0, read_layer=4)
    checkpoint.save_reward(tmp_path / "r", model, base, {}, {})
    kept = load_file(tmp_path / "r" / "model.safetensors")
    assert {name.split(".")[2] for name in kept if "layers" in name} == {"3"}  # what was frozen is the base's
    again = checkpoint.load_reward(tmp_path / "r", base, decoder)
    assert torch.equal(score_responses(again, pack(DATA), None), score_responses(model, pack(DATA), None))


@pytest.mark.parametrize("shared", [False, True])
def test_an_ensemble_with_heads_comes_back_whole(base, decoder, tmp_path, shared):
    adapters = [make_adapter(decoder, seed=1)] * 2 if shared else [make_adapter(decoder, seed=seed) for seed in (1, 2)]
    members = tuple(
        RewardModel(
            decoder, adapter, ScalarHead(64, seed=k), "mean", 2, 0.5 + k, read_layer=4,
            heads={"kind.ly": ScalarHead(64, seed=10 + k), "brief": ScalarHead(64, seed=20 + k)},
        )
        for k, adapter in enumerate(adapters)
    )  # fmt: skip
    checkpoint.save_reward(tmp_path / "r", replace(members[0], sd=1.9, members=members), base, {}, {})
    assert (tmp_path / "r" / "adapter_model.safetensors").is_file() == shared
    assert (tmp_path / "r" / "member-1" / "adapter_model.safetensors").is_file() != shared
    again = checkpoint.load_reward(tmp_path / "r", base, decoder)
    assert again.sd == 1.9
    assert [member.sd for member in again.members] == [0.5, 1.5]
    assert (again.members[0].adapter is again.members[1].adapter) == shared
    whole = replace(members[0], members=members)
    assert torch.equal(member_scores(again, pack(DATA), None), member_scores(whole, pack(DATA), None))
    for name, scores in criterion_scores(again, pack(DATA), None).items():
        assert torch.equal(scores, criterion_scores(whole, pack(DATA), None)[name])
    assert set(again.members[1].heads) == {"kind.ly", "brief"}
    assert not any(p.requires_grad for head in again.members[1].heads.values() for p in head.parameters())


def test_a_card_and_its_pictures_are_part_of_the_folder(base, decoder, tmp_path):
    model = RewardModel(decoder, make_adapter(decoder), ScalarHead(64), "last", 2, 1.0, read_layer=4)
    manifest = checkpoint.save_reward(
        tmp_path / "r", model, base, {}, {}, card="## Held out", pictures={"a.svg": "<svg/>"}
    )
    assert {"card.md", "a.svg"} <= manifest.files.keys()
    assert (tmp_path / "r" / "card.md").read_text().rstrip().endswith("## Held out")


def test_an_adapter_of_single_layers_reads_as_the_identity_elsewhere(policy, decoder):
    folder, adapter, _ = policy
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layers.3.self_attn.q_proj" not in k}, folder / "adapter_model.safetensors"
    )
    again = checkpoint.read_adapter(folder, decoder.config)
    assert again.b["3:q_proj"].abs().max() == 0
    assert torch.equal(again.b["2:q_proj"], adapter.b["2:q_proj"])


@pytest.mark.parametrize(
    "option", [{"use_rslora": True}, {"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 2}}]
)
def test_kinds_of_lora_that_are_not_applied_are_refused(policy, decoder, option):
    path = policy[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | option))
    with pytest.raises(BadInput, match=next(iter(option))):
        checkpoint.read_adapter(policy[0], decoder.config)


def test_adapters_of_other_models_are_refused(policy, decoder, tmp_path):
    path = policy[0] / "adapter_model.safetensors"
    weights = load_file(path)
    for change, word in (
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, "lm_head"),
        ({"base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)}, "shape"),
        ({"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64)}, "layer 9"),
    ):
        save_file(weights | change, path)
        with pytest.raises(BadInput, match=word):
            checkpoint.read_adapter(policy[0], decoder.config)
    with pytest.raises(BadInput, match="no adapter"):
        checkpoint.read_adapter(tmp_path, decoder.config)


STATE = {
    "step": 3,
    "weights": {"a": torch.arange(4.0)},
    "order": [1, 2],
    "generator": torch.Generator().manual_seed(1).get_state(),
}


def test_state_comes_back_and_two_generations_are_kept(tmp_path):
    assert checkpoint.load_state(tmp_path) is None
    for step in range(4):
        checkpoint.save_state(tmp_path, STATE | {"step": step})
    assert len(list(tmp_path.iterdir())) == 2
    state = checkpoint.load_state(tmp_path)
    assert (state["step"], state["order"]) == (3, [1, 2])
    assert torch.equal(state["weights"]["a"], STATE["weights"]["a"])
    assert torch.equal(state["generator"], STATE["generator"])


@pytest.mark.parametrize("damage", [b"", None])
def test_a_torn_state_falls_back_to_the_one_before(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save_state(tmp_path, STATE | {"step": step})
    newest = sorted(tmp_path.iterdir())[-1]
    data = newest.read_bytes()
    newest.write_bytes(data[: len(data) // 2] if damage is None else damage)
    assert checkpoint.load_state(tmp_path)["step"] == 1
    checkpoint.save_state(tmp_path, STATE | {"step": 5})
    assert checkpoint.load_state(tmp_path)["step"] == 5


def test_no_readable_state_is_said(tmp_path):
    checkpoint.save_state(tmp_path, STATE)
    next(tmp_path.iterdir()).write_bytes(b"gone")
    with pytest.raises(Corrupt, match="delete the folder"):
        checkpoint.load_state(tmp_path)


def test_a_disk_that_fills_up_costs_neither_the_last_state_nor_its_space(tmp_path, monkeypatch):
    checkpoint.save_state(tmp_path, {"step": 1})
    save = torch.save

    def full(state, file):
        save(state, file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_state(tmp_path, {"step": 2})
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    assert checkpoint.load_state(tmp_path) == {"step": 1}
    (tmp_path / ".00000007.tmp").write_bytes(b"half")  # a kill leaves one; the next save takes it away
    checkpoint.save_state(tmp_path, {"step": 2})
    assert not list(tmp_path.glob(".*"))
