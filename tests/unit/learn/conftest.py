"""A second base beside the tiny one: other weights, a layer fewer, and a tokenizer whose ids, lengths and template differ."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit.learn import base_models


def make_other_base(tiny: Path) -> Path:
    """`other`, beside the tiny base."""
    folder = tiny.with_name("other")
    shutil.copytree(tiny, folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    names = {number: name for name, number in vocabulary.items()}
    for number, pair in ((250, ["o", "o"]), (251, ["t", "h"])):  # in the place of bytes that no text here has
        del vocabulary[names[number]]
        vocabulary["".join(pair)] = number
        raw["model"]["merges"].append(pair)
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    (folder / "chat_template.jinja").write_text("<|system|>Be kind.<|end|>" + base_models.TINY_TEMPLATE)
    generator = torch.Generator().manual_seed(7)
    weights = {
        name: weight + 0.05 * torch.randn(weight.shape, generator=generator) * weight.std()
        for name, weight in load_file(folder / "model.safetensors").items()
        if not re.match(r"model\.layers\.3\.", name)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shape = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / base_models.PREPARED).write_text(json.dumps({"spec": "other", "license": "apache-2.0"}))
    return folder


@pytest.fixture(scope="session")
def two_bases(tmp_path_factory) -> tuple[Path, Path]:
    """(tiny, other), side by side in one cache."""
    tiny = base_models.prepare("tiny", tmp_path_factory.mktemp("two"))
    return tiny, make_other_base(tiny)
