"""Preparing base models: same bytes everywhere, no half folder, transformers reads what we write."""

from __future__ import annotations

import json

import pytest
import torch

from plaudit.errors import BadInput, NotFound, Unavailable
from plaudit.learn import base_models
from plaudit.learn.base_models import identity, prepare
from plaudit.learn.nets import Decoder
from plaudit.learn.rollout import Sampling, generate
from plaudit.learn.tokens import ChatTokenizer

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Grüße — 1234 €, <|end|> and\n\ttabs"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "why?"},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return prepare("tiny", tmp_path_factory.mktemp("base"))


def test_tiny_is_the_same_everywhere(tiny, tmp_path):
    assert identity(prepare("tiny", tmp_path)) == identity(tiny)
    assert identity(tiny).spec == "tiny"


def test_preparing_twice_makes_nothing_new(tiny):
    before = {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()}
    assert prepare("tiny", tiny.parent) == tiny
    assert {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()} == before
    assert not [path for path in tiny.parent.iterdir() if path.name.startswith(".")]


def test_a_half_made_folder_is_made_again(tmp_path):
    folder = prepare("tiny", tmp_path)
    good = identity(folder)
    (folder / base_models.PREPARED).unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    assert identity(prepare("tiny", tmp_path)) == good
    Decoder.load(folder, torch.float32)


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    def broken(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(base_models, "_make_tiny", broken)
    with pytest.raises(RuntimeError, match="killed"):
        prepare("tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_transformers_reads_the_tokenizer_alike(tiny):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(str(tiny)), ChatTokenizer.load(tiny)
    assert theirs.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"] == ours.render(CHAT)
    assert theirs.eos_token_id == ours.eos_id == 256


def test_tiny_tokens_are_bytes(tiny):
    tokenizer = ChatTokenizer.load(tiny)
    text = "".join(map(chr, range(1, 256))) + "€ 😀"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_tiny_writes_mostly_letters_and_ends(tiny):
    decoder, tokenizer = Decoder.load(tiny, torch.float32), ChatTokenizer.load(tiny)
    prompts = [tokenizer.render([{"role": "user", "content": f"question {i}"}]) for i in range(8)]
    rollout = generate(decoder, prompts, 8, Sampling(40, seed=5)).rollout
    text = "".join(tokenizer.decode(ids) for ids in rollout.response_ids)
    readable = sum(letter.islower() or letter in " .," for letter in text) / len(text)
    assert readable > 0.85
    assert 0.2 < sum(rollout.finished) / rollout.n < 0.95
    assert len(set(map(tuple, rollout.response_ids))) > 60


def test_a_folder_is_taken_as_it_is(tiny, tmp_path):
    assert prepare(str(tiny), tmp_path) == tiny
    assert list(tmp_path.iterdir()) == []


def test_identity_follows_every_part(tiny, tmp_path):
    import shutil

    known = identity(tiny)
    for name, part in (
        ("config.json", "sha256"),
        ("tokenizer.json", "tokenizer_sha256"),
        ("chat_template.jinja", "template_sha256"),
    ):
        folder = tmp_path / name
        shutil.copytree(tiny, folder)
        (folder / base_models.PREPARED).unlink()
        (folder / name).write_text((folder / name).read_text() + " ")
        assert getattr(identity(folder), part) != getattr(known, part)


@pytest.mark.parametrize("spec", ["smollm3", "", "no/such/folder", "/nowhere"])
def test_an_unknown_spec_is_refused(spec, tmp_path):
    with pytest.raises(BadInput, match="smollm2, tiny, a folder"):
        prepare(spec, tmp_path)


def test_an_unreachable_hub_is_a_sentence(tmp_path, monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(Unavailable, match=r"acme/model.*local folder"):
        prepare("acme/model", tmp_path)


def test_missing_weights_package_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(base_models, "SMOLLM2_PACKAGE", "no_such_package")
    with pytest.raises(NotFound, match=r"weights\.txt"):
        prepare("smollm2", tmp_path)


def test_a_gguf_tensor_of_another_architecture_is_named():
    with pytest.raises(BadInput, match=r"blk\.0\.ffn_gate_inp"):
        base_models._hf_name("blk.0.ffn_gate_inp.weight.extra")


@pytest.mark.slow
def test_smollm2_answers(tmp_path):
    pytest.importorskip("gguf")
    from transformers import AutoTokenizer

    folder = prepare("smollm2", tmp_path)
    tokenizer = ChatTokenizer.load(folder)
    assert AutoTokenizer.from_pretrained(str(folder)).apply_chat_template(CHAT, add_generation_prompt=True)[
        "input_ids"
    ] == tokenizer.render(CHAT)
    prompt = tokenizer.render([{"role": "user", "content": "What is the capital of France?"}])
    rollout = generate(Decoder.load(folder, torch.float32), [prompt], 1, Sampling(24, temperature=0)).rollout
    assert "Paris" in tokenizer.decode(rollout.response_ids[0])
    assert rollout.finished == [True]
    note = json.loads((folder / base_models.PREPARED).read_text())
    assert note["license"] == "apache-2.0"
