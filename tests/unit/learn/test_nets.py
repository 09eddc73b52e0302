"""The decoder against transformers' own implementations, LoRA against merged weights, and what is refused."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from plaudit.errors import BadInput, NotFound
from plaudit.learn import base_models
from plaudit.learn.nets import TARGETS, Adapter, Decoder, DecoderConfig, ScalarHead, pick_dtype


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("nets"))


@pytest.fixture(scope="module")
def decoder(base):
    return Decoder.load(base, torch.float32)


@torch.no_grad()
def run(decoder, ids, adapter=None):
    length = ids.shape[1]
    mask = torch.ones(len(ids), length, length, dtype=torch.bool).tril()
    positions = torch.arange(length).expand(len(ids), length)
    hidden = decoder.run_layers(decoder.embed(ids), positions, mask, 0, decoder.config.n_layers, adapter)
    return decoder.logits(decoder.final(hidden))


def random_adapter(config, **options):
    adapter = Adapter(config, **{"rank": 4, "alpha": 8, "seed": 1} | options)
    generator = torch.Generator().manual_seed(2)
    for b in adapter.b.values():
        b.data.normal_(0, 0.1, generator=generator)
    return adapter


def ids_of(config, rows=2, length=19):
    return torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(3))


def test_tiny_logits_equal_transformers(base, decoder):
    from transformers import AutoModelForCausalLM

    ids = ids_of(decoder.config)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)(ids).logits
    torch.testing.assert_close(run(decoder, ids), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama-tied-bias", "llama3-rope", "mistral", "qwen2", "qwen3"])
def test_other_architectures_equal_transformers(name, tmp_path):
    import transformers as tr

    shape = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 5,
    }  # fmt: skip
    kind, config = {
        "llama-tied-bias": (
            tr.LlamaForCausalLM,
            tr.LlamaConfig(**shape, tie_word_embeddings=True, attention_bias=True),
        ),
        # wavelengths on all three sides of the ramp: turns within 16 tokens are 2.5, .25 and below
        "llama3-rope": (
            tr.LlamaForCausalLM,
            tr.LlamaConfig(
                **shape,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 100.0,
                    "factor": 8.0,
                    "low_freq_factor": 0.2,
                    "high_freq_factor": 2.0,
                    "original_max_position_embeddings": 16,
                },
            ),
        ),
        "mistral": (tr.MistralForCausalLM, tr.MistralConfig(**shape, head_dim=16, sliding_window=32)),
        "qwen2": (tr.Qwen2ForCausalLM, tr.Qwen2Config(**shape, tie_word_embeddings=True)),
        "qwen3": (tr.Qwen3ForCausalLM, tr.Qwen3Config(**shape, head_dim=16)),
    }[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at constants that hide a mix-up
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(str(tmp_path))
    ours = Decoder.load(tmp_path, torch.float32)
    ids = ids_of(ours.config, length=24)
    with torch.no_grad():
        torch.testing.assert_close(run(ours, ids), model(ids).logits, atol=1e-4, rtol=0)
    assert ours.config.stop_ids == (5,)
    assert ours.config.max_positions == (32 if name == "mistral" else 64)


@pytest.mark.slow
def test_smollm2_logits_equal_transformers(tmp_path):
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    folder = base_models.prepare("smollm2", tmp_path)
    ids = ids_of(DecoderConfig.read(folder), rows=1, length=24)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)(ids).logits
    torch.testing.assert_close(run(Decoder.load(folder, torch.float32), ids), theirs, atol=1e-4, rtol=1e-5)


def test_an_adapter_starts_as_the_identity(decoder):
    ids = ids_of(decoder.config)
    assert torch.equal(run(decoder, ids, Adapter(decoder.config, 4, 8)), run(decoder, ids))


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "up_proj"), ("v_proj", "down_proj", "o_proj")])
def test_an_adapter_equals_merged_weights(base, decoder, targets, tmp_path):
    """W + alpha / rank * B A written into the weights by Hugging Face's names, read again."""
    from safetensors.torch import load_file, save_file

    adapter = random_adapter(decoder.config, first_layer=1, targets=targets)
    folder = tmp_path / "merged"
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    for key in adapter.a:
        layer, target = key.split(":")
        room = "self_attn" if target in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        weights[f"model.layers.{layer}.{room}.{target}.weight"] += 8 / 4 * adapter.b[key].data @ adapter.a[key].data
    save_file(weights, folder / "model.safetensors")
    ids = ids_of(decoder.config)
    expected = run(Decoder.load(folder, torch.float32), ids)
    torch.testing.assert_close(run(decoder, ids, adapter), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(run(decoder.folded(adapter), ids), expected, atol=1e-4, rtol=0)
    assert (expected - run(decoder, ids)).abs().max() > 0.1


def test_first_layer_leaves_lower_layers_alone_and_shared(decoder):
    adapter = random_adapter(decoder.config, first_layer=3)
    assert sorted({int(key.split(":")[0]) for key in adapter.a}) == [3]
    folded = decoder.folded(adapter)
    assert folded.layer(2) is decoder.layer(2)
    assert folded.embedding is decoder.embedding
    assert not torch.equal(folded.layer(3).qkv, decoder.layer(3).qkv)


def test_adapters_of_one_seed_are_equal(decoder):
    one, same, other = (Adapter(decoder.config, 4, 8, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one.a[key], same.a[key]) for key in one.a)
    assert not torch.equal(one.a["0:q_proj"], other.a["0:q_proj"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"targets": ("lm_head",)}, "lm_head"),
        ({"first_layer": 4}, "4 layers"),
        ({"rank": 0}, "rank 0"),
        ({"targets": ()}, "targets"),
    ],
)
def test_impossible_adapters_are_refused(decoder, options, word):
    with pytest.raises(BadInput, match=word):
        Adapter(decoder.config, **{"rank": 4, "alpha": 8} | options)


def test_folding_into_bf16_is_refused(base):
    decoder = Decoder.load(base, torch.bfloat16)
    with pytest.raises(BadInput, match="fp32"):
        decoder.folded(Adapter(decoder.config, 4, 8))


def test_an_adapter_is_folded_in_on_the_way_to_sampling(decoder):
    """The same logits as folding first; layers below the adapter keep sharing what is not laid out anew."""
    adapter = Adapter(decoder.config, 4, 8, first_layer=2, seed=1)
    for b in adapter.b.values():
        b.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    x = torch.randn(5, 7, decoder.config.d_model, generator=torch.Generator().manual_seed(2))
    positions, mask = torch.arange(7).expand(5, 7), torch.ones(5, 7, 7, dtype=torch.bool).tril()

    def logits(one):
        return one.logits(one.final(one.run_layers(x, positions, mask, 0, decoder.config.n_layers, None)))

    together = decoder.for_sampling(adapter)
    torch.testing.assert_close(logits(together), logits(decoder.folded(adapter)), atol=2e-5, rtol=1e-5)
    assert (logits(together) - logits(decoder.for_sampling())).abs().max() > 0.01
    assert together.layer(1).qkv is decoder.layer(1).qkv
    assert together.layer(2).qkv is not decoder.layer(2).qkv


def test_weights_laid_out_for_sampling_give_the_same(decoder):
    ids = ids_of(decoder.config, rows=5)
    sampling = decoder.for_sampling()
    torch.testing.assert_close(run(sampling, ids), run(decoder, ids), atol=1e-4, rtol=0)
    adapter = random_adapter(decoder.config)
    torch.testing.assert_close(run(sampling, ids, adapter), run(decoder, ids, adapter), atol=1e-4, rtol=0)
    assert sampling.embedding is decoder.embedding
    assert sampling.layer(0).qkv is decoder.layer(0).qkv
    if torch.backends.mkldnn.is_available():
        assert sampling.head.is_mkldnn
        assert sampling.for_sampling() is sampling


def test_bf16_is_near_fp32(base, decoder):
    ids = ids_of(decoder.config)
    near = run(Decoder.load(base, torch.bfloat16), ids)
    assert near.dtype == torch.float32
    difference = (near - run(decoder, ids)).abs()
    assert 0 < difference.mean() < 0.1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"intermediate_size": 130}, "shape"),
        ({"num_hidden_layers": 5}, "model.layers.4"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(base, tmp_path, change, word):
    folder = tmp_path / "changed"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=word):
        Decoder.load(folder, torch.float32)


def test_missing_files_are_named(tmp_path, base):
    with pytest.raises(NotFound, match=r"config\.json"):
        Decoder.load(tmp_path, torch.float32)
    shutil.copy(base / "config.json", tmp_path)
    with pytest.raises(NotFound, match=r"model\.safetensors"):
        Decoder.load(tmp_path, torch.float32)


def test_a_scalar_head_starts_with_the_spread_of_its_paper():
    """Weights N(0, 1/sqrt(D+1)): over 4096 of them the spread is within 5 % of that."""
    head = ScalarHead(4096, seed=0)
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(4097), rel=0.05)
    hidden = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    out = head(hidden)
    assert (out.shape, out.dtype) == ((3,), torch.float32)
    torch.testing.assert_close(out, hidden.float() @ head.weight)


def test_pick_dtype_is_measured_once():
    assert pick_dtype() in (torch.float32, torch.bfloat16)
    assert pick_dtype.cache_info().misses == 1
