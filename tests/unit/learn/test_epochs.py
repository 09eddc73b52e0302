"""What is trained and in what order, and the two kinds of Checkpoint it becomes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from plaudit.errors import BadInput, ConfigError
from plaudit.learn import base_models, checkpoint, epochs, policies
from plaudit.learn.configs import SFTConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.run_folder import RunFolder
from plaudit.learn.tokens import ChatTokenizer, Rollout, pack, response_logprobs

DATA = Rollout([[97, 98, 99], [100]], [[101, 102, 256], [103]], [0, 1], [True, False])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def tied(tiny, tmp_path_factory):
    """The tiny base with its head tied to the embedding."""
    decoder = Decoder.load(tiny, torch.float32)
    folder = tmp_path_factory.mktemp("bases") / "tied"
    checkpoint.save_full_policy(folder, decoder, tiny, {}, {})
    raw = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(raw))
    weights = {name: weight for name, weight in decoder.hf_names().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def config(base, **other):
    raw = {"snapshot": "s", "base": str(base), "compute": {"dtype": "float32"}, "batch_size": 4, "epochs": 3}
    return from_dict(SFTConfig, raw | other)


def logprobs(decoder, adapter=None):
    return response_logprobs(decoder, adapter, pack(DATA))[0]


def test_every_epoch_holds_everything_in_a_new_order(tiny):
    settings = config(tiny)
    training = epochs.begin(settings, epochs.load_policy(settings), lengths=list(range(10)))
    assert (training.per_epoch, training.n_updates) == (3, 9)
    seen = []
    while training.update < training.n_updates:
        seen.append(training.batch)
        training.advance()
    passes = [[item for batch in seen[at : at + 3] for item in batch] for at in (0, 3, 6)]
    assert all(sorted(items) == list(range(10)) for items in passes)
    assert passes[0] != passes[1] != passes[2]


def test_batches_are_of_similar_length_unless_rows_are_packed(tiny):
    lengths = [7 * i % 64 for i in range(64)]
    spread = {}
    for packing in (False, True):
        settings = config(tiny, packing=packing)
        order = epochs.begin(settings, epochs.load_policy(settings), lengths).order
        spread[packing] = sum(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in order) / 16
    assert spread[False] < 15 < 30 < spread[True]  # of 63; four at random spread over about 38


@pytest.mark.parametrize("first_layer", [0, 2])
def test_full_weights_train_what_nothing_frozen_needs(tiny, tied, first_layer):
    for base, head_is_tied in ((tiny, False), (tied, True)):
        policy = epochs.load_policy(config(base, lora=None, first_layer=first_layer))
        names = set(policy.trained())
        assert ("embedding" in names) == (first_layer == 0)
        assert ("head" in names) == (not head_is_tied)
        assert "norm" in names
        assert {int(name.split(".")[1]) for name in names if name.startswith("layers.")} == set(range(first_layer, 4))


def test_full_weights_want_float32(tiny):
    with pytest.raises(ConfigError, match="bfloat16"):
        epochs.load_policy(config(tiny, lora=None, compute={"dtype": "bfloat16"}))


def test_full_weights_may_start_from_an_adapter(tiny, tmp_path):
    settings = config(tiny)
    _, adapter = policies.load_start(str(tiny), "", settings.lora, 1, 0, settings.compute)
    for b in adapter.b.values():
        b.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    checkpoint.save_policy(tmp_path / "lora", adapter, tiny, {}, {})
    policy = epochs.load_policy(config(tiny, lora=None, start=str(tmp_path / "lora"), first_layer=2))
    expected = logprobs(Decoder.load(tiny, torch.float32), adapter)
    torch.testing.assert_close(logprobs(policy.decoder), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logprobs(Decoder.load(tiny, torch.float32)), expected, atol=1e-3)
    assert policy.trained()["layers.2.qkv"].requires_grad


def test_a_full_policy_is_a_base_and_no_adapter(tiny, tmp_path):
    settings = config(tiny, lora=None, first_layer=2)
    policy = epochs.load_policy(settings)
    for parameter in policy.trained().values():
        parameter.data.mul_(1.1)
    folder = tmp_path / "run" / "checkpoint"
    result = {"program": "sft", "n_train": 3, "curve": []}
    epochs.write_checkpoint(settings, RunFolder(tmp_path / "run"), policy, {}, result, {"loss": 1.0})
    assert base_models.prepare(str(folder), tmp_path) == folder
    again = Decoder.load(folder, torch.float32)
    torch.testing.assert_close(logprobs(again), logprobs(policy.decoder))
    assert all(torch.equal(saved, policy.decoder.hf_names()[name]) for name, saved in again.hf_names().items())
    assert ChatTokenizer.load(folder).eos_id == 256
    known, old = base_models.identity(folder), base_models.identity(tiny)
    assert known.sha256 != old.sha256
    assert (known.template_sha256, known.license) == (old.template_sha256, old.license)
    assert known.spec.startswith("tiny-")
    # LoRA on top of it is a policy of *that* base.
    _, adapter = policies.load_start(str(folder), "", config(tiny).lora, 0, 0, settings.compute)
    checkpoint.save_policy(tmp_path / "top", adapter, folder, {}, {})
    checkpoint.load_policy(tmp_path / "top", folder)
    with pytest.raises(BadInput, match="another base model"):
        checkpoint.load_policy(tmp_path / "top", tiny)
    with pytest.raises(BadInput, match="give the folder itself as the base"):
        checkpoint.load_policy(folder, tiny)
