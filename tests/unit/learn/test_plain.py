"""Any causal LM through transformers: our rows, adapters and cache against the model's own forward on plain unpadded texts."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from plaudit.errors import BadInput, NotFound
from plaudit.learn import base_models, checkpoint, decoders, plain
from plaudit.learn.nets import Adapter, Decoder
from plaudit.learn.plain import PlainDecoder, unpack
from plaudit.learn.rollout import DecodeLoop, Row, Sampling, generate
from plaudit.learn.tokens import Rollout, hidden_states, logprobs_at, pack, response_logprobs, run_trunk

tr = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": 256}
WIDE = SHAPE | {"intermediate_size": 48, "max_position_embeddings": 64}
CONFIGS = {
    "GPT2LMHeadModel": lambda: tr.GPT2Config(
        vocab_size=261, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=256, bos_token_id=256
    ),
    "GPTNeoXForCausalLM": lambda: tr.GPTNeoXConfig(**WIDE),
    "PhiForCausalLM": lambda: tr.PhiConfig(**WIDE),
    # a soft cap on attention and on logits, and a window of 8 tokens: three things that a careless path loses
    "Gemma2ForCausalLM": lambda: tr.Gemma2Config(
        **WIDE, num_key_value_heads=2, head_dim=8, sliding_window=8, attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0, query_pre_attn_scalar=8, pad_token_id=0, bos_token_id=1,
    ),
}  # fmt: skip
STOPS = list(range(0, 261, 9))
DATA = Rollout(
    [[1, 2, 3, 4, 5, 6, 7], [9, 8]], [[10, 11], [20], [30, 31, 32, 33], list(range(40, 56))], [0, 0, 1, 1], [True] * 4
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder for each architecture: random weights (norms and biases too), the tiny model's tokenizer."""
    tiny = base_models.prepare("tiny", tmp_path_factory.mktemp("tiny"))
    made = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        model = getattr(tr, name)(config()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
        model.save_pretrained(str(folder))
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tiny / file, folder)
        made[name] = folder
    return made


@pytest.fixture(params=plain.TESTED)
def base(request, bases):
    return bases[request.param]


def oracle(folder):
    return tr.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager").eval()


def random_adapter(config, **options):
    adapter = Adapter(config, **{"rank": 3, "alpha": 6, "seed": 1} | options)
    generator = torch.Generator().manual_seed(2)
    for b in adapter.b.values():
        b.data.normal_(0, 0.2, generator=generator)
    return adapter


@torch.no_grad()
def merge(model, adapter):
    """The oracle of an adapter: alpha / rank * B A added to the very weights."""
    modules = dict(model.named_modules())
    for key, linear in adapter.places.items():
        delta = adapter.alpha / adapter.rank * adapter.b[key] @ adapter.a[key]
        module = modules[linear.path]
        module.weight += delta if isinstance(module, torch.nn.Linear) else delta.T
    return model


@torch.no_grad()
def expected_logprobs(model):
    """One text at a time, unpadded."""
    out = []
    for group, response in zip(DATA.group, DATA.response_ids, strict=True):
        prompt = DATA.prompt_ids[group]
        log_p = model(torch.tensor([prompt + response])).logits[0].float().log_softmax(-1)
        out.append([float(log_p[len(prompt) + i - 1, token]) for i, token in enumerate(response)])
    return out


def ours(decoder, adapter, **options):
    logprobs, counts, _ = response_logprobs(decoder, adapter, pack(DATA, **options))
    return [row[mask].tolist() for row, mask in zip(logprobs, counts, strict=True)]


def flat(rows):
    return torch.tensor([value for row in rows for value in row])


def test_logprobs_equal_transformers(base):
    """With the prompt shared, in rows of their own, and with an adapter: 1e-5 in fp32."""
    decoder = decoders.load(base, torch.float32)
    assert isinstance(decoder, PlainDecoder)
    adapter = random_adapter(decoder.config)
    want = flat(expected_logprobs(oracle(base)))
    assert (flat(ours(decoder, None)) - want).abs().max() < 1e-5
    assert (flat(ours(decoder, None, share_prefix=False)) - want).abs().max() < 1e-5
    changed = flat(expected_logprobs(merge(oracle(base), adapter)))
    assert (changed - want).abs().max() > 0.05
    assert (flat(ours(decoder, adapter)) - changed).abs().max() < 2e-5
    assert (flat(ours(decoder.folded(adapter), None)) - changed).abs().max() < 2e-5
    assert torch.equal(
        flat(ours(decoder, None)), flat(ours(decoder, Adapter(decoder.config, 3, 6)))
    )  # off = fresh = base


def test_gradients_of_the_adapter_equal_those_of_the_weights(base):
    """d loss / d (B A) through the merged weight: dB = scale * dW A^T."""
    decoder = decoders.load(base, torch.float32)
    adapter = random_adapter(decoder.config)
    model = merge(oracle(base), adapter).requires_grad_(True)
    total = torch.zeros(())
    for group, response in zip(DATA.group, DATA.response_ids, strict=True):
        prompt = DATA.prompt_ids[group]
        log_p = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        total = total + sum(log_p[len(prompt) + i - 1, token] for i, token in enumerate(response))
    total.backward()
    for batch in pack(DATA, token_budget=20):
        logprobs_at(decoder, hidden_states(decoder, adapter, batch), batch)[0].sum().backward()
    modules = dict(model.named_modules())
    for key, linear in adapter.places.items():
        module = modules[linear.path]
        dw = module.weight.grad if isinstance(module, torch.nn.Linear) else module.weight.grad.T
        want = adapter.scale * dw @ adapter.a[key].T
        torch.testing.assert_close(
            adapter.b[key].grad, want, atol=2e-3 * float(want.detach().abs().max()) + 1e-5, rtol=0
        )


def test_sampling_with_the_cache_equals_whole_texts(base):
    """The model's own log-prob of every sampled token; rows end, join and have adapters of their own."""
    decoder = decoders.load(base, torch.float32)
    adapters = [random_adapter(decoder.config, seed=7), None]
    prompts = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16, 17]]
    out = generate(decoder, prompts, 3, Sampling(14, seed=3), [adapters[0], None, adapters[0]], STOPS, max_rows=4)
    models = [merge(oracle(base), adapters[0]), oracle(base), None]
    assert any(out.rollout.finished)
    for i, ids in enumerate(out.rollout.response_ids):
        group = out.rollout.group[i]
        with torch.no_grad():
            log_p = models[group % 2](torch.tensor([prompts[group] + ids])).logits[0].log_softmax(-1)
        at = len(prompts[group]) - 1
        want = torch.tensor([float(log_p[at + k, token]) for k, token in enumerate(ids)])
        assert (torch.tensor(out.logprobs[i]) - want).abs().max() < 1e-4
    alone = generate(decoder, prompts, 3, Sampling(14, seed=3), [adapters[0], None, adapters[0]], STOPS, max_rows=1)
    assert alone.rollout == out.rollout  # what is sampled does not depend on the batch


def test_rows_that_nobody_waits_for_leave(bases):
    loop = DecodeLoop(decoders.load(bases["GPT2LMHeadModel"], torch.float32), [])
    rows = [Row([1, 2], Sampling(9, seed=1), key=i) for i in range(3)]
    loop.admit(rows)
    loop.drop(lambda row: row is rows[1])
    loop.step()
    assert ([len(row.ids) for row in rows], loop.rows) == ([2, 1, 2], [rows[0], rows[2]])
    loop.drop(lambda row: True)
    assert loop.step() == []


def test_a_model_without_a_cache_samples_the_same(bases, monkeypatch):
    decoder = decoders.load(bases["PhiForCausalLM"], torch.float32)
    cached = generate(decoder, [[1, 2, 3]], 2, Sampling(6, seed=1)).rollout
    run = PlainDecoder.run

    def forgetful(self, ids, adapter, **options):
        assert "past_key_values" not in options
        out = run(self, ids, adapter)
        assert out.past_key_values is None
        return out

    monkeypatch.setattr(PlainDecoder, "run", forgetful)
    assert generate(decoder, [[1, 2, 3]], 2, Sampling(6, seed=1)).rollout == cached


def test_an_adapter_survives_the_disk_in_pefts_names(base, tmp_path):
    decoder = decoders.load(base, torch.float32)
    adapter = random_adapter(decoder.config, first_layer=1)
    assert {key.split(":")[0] for key in adapter.a} == {"1"}
    checkpoint.save_policy(tmp_path / "c", adapter, base, {}, {})
    again = checkpoint.load_policy(tmp_path / "c", base)
    assert again.first_layer == 1
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in adapter.state_dict().items())
    said = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert said["fan_in_fan_out"] == ("GPT2" in decoder.config.architecture)
    assert set(said["target_modules"]) == set(decoder.config.targets)


def test_targets_are_ends_of_names(bases):
    config = plain.read_config(bases["PhiForCausalLM"])
    assert Adapter(config, 2, 4, targets=("q_proj", "v_proj")).targets == ("self_attn.q_proj", "self_attn.v_proj")
    with pytest.raises(BadInput, match=r"gate_proj.*choose from self_attn\.q_proj"):
        Adapter(config, 2, 4, targets=("gate_proj",))


def test_the_trunk_starts_at_the_bottom(bases):
    decoder = decoders.load(bases["GPT2LMHeadModel"], torch.float32)
    adapter = random_adapter(decoder.config, first_layer=1)
    trunk = run_trunk(decoder, DATA, 1)
    assert trunk.layer == 0
    with_trunk = response_logprobs(decoder, adapter, pack(DATA), trunk)[0]
    assert torch.equal(with_trunk, response_logprobs(decoder, adapter, pack(DATA))[0])


def test_what_is_not_there_is_said(bases, monkeypatch, tmp_path):
    folder = bases["GPT2LMHeadModel"]
    decoder = decoders.load(folder, torch.float32)
    batch = pack(DATA)[0]
    with pytest.raises(BadInput, match=r"GPT2LMHeadModel.*read_layer to 0"):
        decoder.run_layers(decoder.embed(batch.ids), batch.positions, batch.mask, 0, 1, None)
    for ask in (lambda: decoder.layer(0), decoder.hf_names):
        with pytest.raises(BadInput, match="train an adapter"):
            ask()
    tiny = base_models.prepare("tiny", tmp_path)
    with pytest.raises(BadInput, match="fast path"):
        hidden_states(decoder, Adapter(Decoder.load(tiny, torch.float32).config, 2, 4), batch)
    monkeypatch.setattr(plain, "installed", lambda: False)
    for read in (lambda: decoders.load(folder, torch.float32), lambda: decoders.read_config(folder)):
        with pytest.raises(NotFound, match=r"GPT2LMHeadModel.*plaudit\[hf\]"):
            read()


def test_folders_that_do_not_fit_are_refused(bases, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(bases["PhiForCausalLM"], folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layers.1.mlp.fc1" not in k},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.fc1"):
        decoders.load(folder, torch.float32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Nobody"], "model_type": "nobody"}))
    with pytest.raises(BadInput, match="nobody"):
        decoders.load(folder, torch.float32)


def test_unpacking_follows_the_mask():
    """Prompt [1 2], responses [3] and [4 5] behind it, one column of padding; then two conversations side by side."""
    (batch,) = pack(Rollout([[1, 2], [6]], [[3], [4, 5], [7, 8]], [0, 0, 1], [True] * 3), token_budget=64)
    ids, attends, row, column = unpack(batch.ids, batch.positions, batch.mask)
    texts = [line[keep.bool()].tolist() for line, keep in zip(ids, attends, strict=True)]
    assert texts == [[1, 2, 3], [1, 2, 4, 5], [6, 7, 8]]
    real = batch.source >= 0
    assert torch.equal(ids[row, column][real], batch.ids[real])
    beside = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).bool().tril()[None]
    ids, _, row, column = unpack(torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[0, 1, 0, 1, 2]]), beside)
    assert ids.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert (row.tolist(), column.tolist()) == ([[0, 0, 1, 1, 1]], [[0, 1, 0, 1, 2]])
    with pytest.raises(BadInput, match="positions"):
        unpack(torch.tensor([[1, 2]]), torch.tensor([[3, 4]]), torch.ones(1, 2, 2).bool().tril())
