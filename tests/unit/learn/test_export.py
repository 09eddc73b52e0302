"""What leaves the house: loaded by transformers (and peft), equal to what we compute."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit.errors import BadInput, Conflict, Corrupt
from plaudit.learn import base_models, checkpoint, decoders
from plaudit.learn.export import export
from plaudit.learn.nets import Adapter, Decoder, ScalarHead
from plaudit.learn.rewards import RewardModel, score_responses
from plaudit.learn.tokens import ChatTokenizer, Rollout, from_text, pack, response_logprobs

tr = pytest.importorskip("transformers")

TALK = [[{"role": "user", "content": "Hi there"}], [{"role": "user", "content": "Where is my order?"}]]
ANSWERS = [["Hello.", "Go away"], ["On its way, it comes on Monday.", "No"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def decoder(base):
    return Decoder.load(base, torch.float32)


@pytest.fixture
def policy(base, decoder, tmp_path):
    adapter = make_adapter(decoder)
    checkpoint.save_policy(tmp_path / "policy", adapter, base, {}, {"kl": 1.5})
    return tmp_path / "policy", adapter


def make_adapter(decoder, **options):
    adapter = Adapter(decoder.config, **{"rank": 4, "alpha": 8, "first_layer": 2, "seed": 1} | options)
    generator = torch.Generator().manual_seed(3)
    for b in adapter.b.values():
        b.data.normal_(0, 0.1, generator=generator)
    return adapter


@torch.no_grad()
def their_logprobs(model, data: Rollout):
    out = []
    for group, response in zip(data.group, data.response_ids, strict=True):
        prompt = data.prompt_ids[group]
        log_p = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        out.append(sum(float(log_p[len(prompt) + i - 1, token]) for i, token in enumerate(response)))
    return torch.tensor(out)


def test_a_merged_policy_is_a_model_of_its_own(policy, base, decoder, tmp_path):
    folder, adapter = policy
    summary = export(folder, base, "merged", tmp_path / "out")
    assert (summary["kind"], summary["form"]) == ("policy", "merged")
    model = tr.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), dtype=torch.float32).eval()
    data = from_text(ChatTokenizer.load(base), TALK, ANSWERS)
    ours = response_logprobs(decoder, adapter, pack(data))[0].sum(dim=1)
    torch.testing.assert_close(their_logprobs(model, data), ours, atol=1e-3, rtol=0)
    assert (ours - response_logprobs(decoder, None, pack(data))[0].sum(dim=1)).abs().max() > 0.5
    tokenizer = tr.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    ids = tokenizer.apply_chat_template(TALK[0], add_generation_prompt=True)["input_ids"]
    assert ids == data.prompt_ids[0]
    assert model.generation_config.eos_token_id == 256
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "kl: 1.5" in card
    assert not {"prepared.json", "manifest.json"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert isinstance(decoders.load(tmp_path / "out", torch.float32), Decoder)  # and a base for us


def test_an_adapter_for_peft_and_vllm(policy, base, tmp_path):
    folder, adapter = policy
    summary = export(folder, base, "peft", tmp_path / "out")
    assert "--max-lora-rank 8" in summary["how"]
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"
    assert torch.equal(weights[key], adapter.a["2:q_proj"].detach())
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(base)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / "config.json").exists()


def test_peft_itself_reads_it(policy, base, decoder, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed; the adapter's names are compared instead")
    folder, adapter = policy
    export(folder, base, "peft", tmp_path / "out")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out"), dtype=torch.float32).eval()
    data = from_text(ChatTokenizer.load(base), TALK, ANSWERS)
    ours = response_logprobs(decoder, adapter, pack(data))[0].sum(dim=1)
    torch.testing.assert_close(their_logprobs(model, data), ours, atol=1e-3, rtol=0)


def test_shards_and_short_names_are_merged_too(base, tmp_path):
    """gpt2 as its first uploads lie: two files, names without `transformer.`, weights as (in, out)."""
    torch.manual_seed(0)
    config = tr.GPT2Config(
        vocab_size=261, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=256, bos_token_id=1
    )
    folder = tmp_path / "gpt2"
    tr.GPT2LMHeadModel(config).save_pretrained(str(folder))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / file, folder)
    weights = {name.removeprefix("transformer."): w for name, w in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    shards = [{n: w for n, w in weights.items() if n.startswith("h.0") == first} for first in (True, False)]
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"model-{i}.safetensors", {"format": "pt"})
    names = {name: f"model-{i}.safetensors" for i, shard in enumerate(shards) for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "LICENSE").write_text("do what you like")
    decoder = decoders.load(folder, torch.float32)
    adapter = make_adapter(decoder, first_layer=0)
    checkpoint.save_policy(tmp_path / "p", adapter, folder, {}, {})
    export(tmp_path / "p", folder, "merged", tmp_path / "out")
    model = tr.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), dtype=torch.float32).eval()
    data = Rollout([[1, 2, 3]], [[4, 5, 6], [7]], [0, 0], [True, True])
    ours = response_logprobs(decoder, adapter, pack(data))[0].sum(dim=1)
    torch.testing.assert_close(their_logprobs(model, data), ours, atol=1e-4, rtol=0)
    assert (tmp_path / "out" / "LICENSE").read_text() == "do what you like"


def test_a_policy_with_weights_of_its_own(base, decoder, tmp_path):
    own = Decoder.load(base, torch.float32)
    own.norm.data.add_(0.5)
    checkpoint.save_full_policy(tmp_path / "p", own, base, {}, {})
    export(tmp_path / "p", base, "merged", tmp_path / "out")
    assert torch.equal(decoders.load(tmp_path / "out", torch.float32).norm, own.norm)
    with pytest.raises(BadInput, match="--as merged"):
        export(tmp_path / "p", base, "peft", tmp_path / "adapter")


# --- reward models ----------------------------------------------------------------------------------------------------------


def make_reward(decoder, adapter=None, **options):
    head = ScalarHead(64, seed=3)
    head.weight.data.mul_(2)
    head.bias.data.fill_(0.7)
    settings = {"pooling": "last", "first_layer": 2, "sd": 1.9, "read_layer": 4} | options
    return RewardModel(decoder, make_adapter(decoder) if adapter is None else adapter, head, **settings)


def classify(folder, data: Rollout, dtype=torch.float32):
    """All responses in one right-padded batch, as a reward server would; padded with what the folder says."""
    model = tr.AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=dtype).eval()
    pad = tr.AutoTokenizer.from_pretrained(str(folder)).pad_token_id
    assert pad == model.config.pad_token_id
    rows = [data.prompt_ids[g] + ids for g, ids in zip(data.group, data.response_ids, strict=True)]
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    for row, line in zip(rows, ids, strict=True):
        line[: len(row)] = torch.tensor(row)
    with torch.no_grad():
        return model(ids, attention_mask=(ids != pad).long()).logits[:, 0]


@pytest.mark.parametrize("read_layer", [4, 3])
def test_a_reward_model_scores_the_same_as_a_classifier(base, decoder, tmp_path, read_layer):
    """Bias, spread and the head's own norm included; the last token is EOS, and one response was cut off."""
    model = make_reward(decoder, read_layer=read_layer)
    checkpoint.save_reward(tmp_path / "r", model, base, {}, {})
    summary = export(tmp_path / "r", base, "merged", tmp_path / "out")
    assert "add_generation_prompt" in summary["how"]
    data = from_text(ChatTokenizer.load(base), TALK, ANSWERS, [[True, True], [False, True]])
    ours = score_responses(model, pack(data), None) / model.sd
    assert ours.std() > 0.2
    torch.testing.assert_close(classify(tmp_path / "out", data), ours, atol=2e-5, rtol=0)
    assert (classify(tmp_path / "out", data, torch.bfloat16).float() - ours).abs().max() < 0.2
    tokenizer = tr.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    ids = tokenizer.apply_chat_template(TALK[0], add_generation_prompt=True)["input_ids"]
    assert ids == data.prompt_ids[0]


def test_an_ensemble_that_shares_a_body_is_one_head(base, decoder, tmp_path):
    adapter = make_adapter(decoder)
    members = tuple(make_reward(decoder, adapter) for _ in range(3))
    for k, member in enumerate(members):
        member.head.weight.data.add_(0.1 * k)
        member.head.bias.data.fill_(k)
    model = RewardModel(decoder, adapter, members[0].head, "last", 2, 1.3, read_layer=4, members=members)
    checkpoint.save_reward(tmp_path / "r", model, base, {}, {})
    export(tmp_path / "r", base, "merged", tmp_path / "out")
    data = from_text(ChatTokenizer.load(base), TALK, ANSWERS)
    ours = score_responses(model, pack(data), None) / 1.3
    torch.testing.assert_close(classify(tmp_path / "out", data), ours, atol=2e-5, rtol=0)


def test_a_fully_trained_reward_model_on_qwen2(base, tmp_path):
    """Biases on q, k, v and none on o, which a llama cannot have: they become 0."""
    torch.manual_seed(0)
    folder = tmp_path / "qwen2"
    config = tr.Qwen2Config(
        vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=256, tie_word_embeddings=True,
    )  # fmt: skip
    model = tr.Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(str(folder))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / file, folder)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(said | {"pad_token": said["eos_token"]})
    )  # as many bases do
    own = Decoder.load(folder, torch.float32)
    own.layer(2).gate_up.data.mul_(1.1)
    head = ScalarHead(32, seed=1)
    reward = RewardModel(own, None, head, "last", 2, 0.8, read_layer=3)
    checkpoint.save_reward(tmp_path / "r", reward, folder, {}, {})
    export(tmp_path / "r", folder, "merged", tmp_path / "out")
    data = from_text(ChatTokenizer.load(base), TALK, ANSWERS)
    ours = score_responses(reward, pack(data), None) / 0.8
    torch.testing.assert_close(classify(tmp_path / "out", data), ours, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "word"), [({"pooling": "mean"}, "pooling 'last'"), ({"pooling": "both"}, "pools 'both'")]
)
def test_reward_models_that_a_classifier_cannot_be_are_refused(base, decoder, tmp_path, options, word):
    model = make_reward(decoder, **options)
    if options["pooling"] == "both":
        model = RewardModel(decoder, model.adapter, ScalarHead(128), "both", 2, 1.0, read_layer=4)
    checkpoint.save_reward(tmp_path / "r", model, base, {}, {})
    with pytest.raises(BadInput, match=word):
        export(tmp_path / "r", base, "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["r"]  # nothing half-written stays


def test_what_does_not_fit_is_refused_before_anything_is_written(policy, base, decoder, tmp_path):
    folder, _ = policy
    (tmp_path / "there").mkdir()
    with pytest.raises(Conflict, match="there"):
        export(folder, base, "merged", tmp_path / "there")
    checkpoint.save_reward(tmp_path / "r", make_reward(decoder), base, {}, {})
    with pytest.raises(BadInput, match=r"reward Checkpoint.*merged"):
        export(tmp_path / "r", base, "peft", tmp_path / "out")
    checkpoint.save_policy(tmp_path / "wide", make_adapter(decoder, rank=600), base, {}, {})
    with pytest.raises(BadInput, match="rank is 600"):
        export(tmp_path / "wide", base, "peft", tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(base, other)
    raw = json.loads((other / "tokenizer.json").read_text())
    raw["added_tokens"].append(raw["added_tokens"][0] | {"id": 261, "content": "<|more|>"})
    (other / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(BadInput, match="another model"):
        export(folder, other, "merged", tmp_path / "out")
    (folder / "adapter_model.safetensors").write_bytes(b"gone")
    with pytest.raises(Corrupt, match="adapter_model"):
        export(folder, base, "merged", tmp_path / "out")
