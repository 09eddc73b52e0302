"""The self-check: what it proves, what it does when it fails, and that it runs once for each base."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from plaudit.learn import base_models, checkpoint, decoders, nets, plain
from plaudit.learn.nets import Adapter, Decoder, DecoderConfig
from plaudit.learn.plain import PlainConfig, PlainDecoder

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return base_models.prepare("tiny", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def base(tiny, tmp_path):
    """The tiny model as a folder of somebody's own."""
    folder = tmp_path / "own"
    shutil.copytree(tiny, folder)
    (folder / base_models.PREPARED).unlink()
    return folder


@pytest.fixture
def wrong(monkeypatch):
    """A fast path that forgets the last norm: still fluent, no longer the model."""
    monkeypatch.setattr(Decoder, "final", lambda self, hidden: hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_fast_path_is_kept_and_remembered(base, dtype, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "plaudit.learn")
    assert type(decoders.load(base, dtype)) is Decoder
    assert "agree" in caplog.text
    note = json.loads((base / decoders.VERDICTS).read_text())
    assert note["verdicts"] == {str(dtype).removeprefix("torch."): "fast"}
    assert note["base"] == base_models.identity(base).sha256
    monkeypatch.setattr(decoders, "largest_difference", lambda *_: pytest.fail("checked twice"))
    assert type(decoders.load(base, dtype)) is Decoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_fast_path_falls_back_and_says_how_wrong(base, dtype, wrong, caplog, monkeypatch):
    decoder = decoders.load(base, dtype)
    assert isinstance(decoder, PlainDecoder)
    assert "differs from transformers by" in caplog.text
    assert isinstance(decoders.read_config(base), PlainConfig)
    adapter = Adapter(decoder.config, 2, 4)
    checkpoint.save_policy(base.parent / "c", adapter, base, {}, {})
    again = checkpoint.load_policy(base.parent / "c", base)  # the same path, so that the hooks find its names
    assert again.places == adapter.places
    monkeypatch.undo()
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    assert isinstance(decoders.load(base, other), PlainDecoder)  # one path for a base


def test_the_difference_is_what_it_says(base):
    """An embedding row that one decoder has doubled; and itself against itself."""
    one, other = Decoder.load(base, torch.float32), Decoder.load(base, torch.float32)
    assert decoders.largest_difference(one, other) == 0
    other.head.data.mul_(2)  # every logit doubles: the difference is the largest logit, half the second's
    biggest = decoders.largest_difference(one, other)
    assert 0.5 < biggest < 0.5 * 10
    other.head.data.fill_(torch.nan)
    assert decoders.largest_difference(other, one) == float("inf")


def test_another_base_in_the_same_folder_is_checked_again(base, wrong, caplog):
    assert isinstance(decoders.load(base, torch.float32), PlainDecoder)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    assert isinstance(decoders.read_config(base), DecoderConfig)
    caplog.clear()
    decoders.load(base, torch.float32)
    assert "differs" in caplog.text


def test_without_transformers_it_is_said_once_and_made_up_for_later(base, monkeypatch, caplog):
    monkeypatch.setattr(plain, "installed", lambda: False)
    assert type(decoders.load(base, torch.float32)) is Decoder
    assert "unchecked" in caplog.text
    assert "extra hf" in caplog.text
    caplog.clear()
    decoders.load(base, torch.float32)
    assert caplog.text == ""
    monkeypatch.setattr(plain, "installed", lambda: True)
    assert decoders.check(base, Decoder.load(base, torch.float32)) == "fast"


def test_what_our_own_tests_compare_is_not_checked_and_checkpoints_stay_whole(tiny, base, monkeypatch):
    monkeypatch.setattr(decoders, "largest_difference", lambda *_: 0.0)
    decoders.load(tiny, torch.float32)
    assert not (tiny / decoders.VERDICTS).exists()
    (base / "manifest.json").write_text("{}")
    decoders.load(base, torch.float32)
    assert not (base / decoders.VERDICTS).exists()


@pytest.mark.parametrize(("path", "names"), [("fast", nets.ARCHITECTURES), ("plain", plain.TESTED)])
def test_tested_architectures_are_on_the_page(path, names):
    page = Path(__file__).parents[3] / "docs" / "models.md"
    (row,) = (line for line in page.read_text().splitlines() if line.startswith(f"| {path} |"))
    assert sorted(re.findall(r"`(\w+)`", row.split("|")[3])) == sorted(names)
