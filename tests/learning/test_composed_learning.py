"""A composed reward trains: your own function beside rules, and a resumed run goes on with the reference's normaliser bit for bit."""

import importlib
import json
import sys

import pytest
import torch

from plaudit.artifacts import read_manifest
from plaudit.errors import TrainingStopped
from plaudit.learn import checkpoint, ppo
from plaudit.learn.configs import PPOConfig, from_dict
from plaudit.learn.run_folder import RunFolder, read_jsonl

SOURCE = """
def vowels(messages, responses, token_ids, meta):
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in responses]

def broken(messages, responses, token_ids, meta):
    return [float("nan")] * len(responses)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"composed_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


def run(config, folder):
    folder.mkdir(exist_ok=True)
    return ppo.train(from_dict(PPOConfig, config), RunFolder(folder))


def terms(module, weight=1.0):
    return [
        {"kind": "function", "name": "own", "function": f"{module}:vowels", "weight": weight, "normalise": "reference"},
        {"kind": "regex", "name": "shouts", "pattern": "[A-Z]", "weight": -0.25},
    ]


def test_your_own_function_is_learned_and_every_term_is_told_apart(ppo_config, module, tmp_path):
    result = run(ppo_config | {"reward": terms(module)}, tmp_path / "run")
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["term_own"] == pytest.approx(0, abs=1e-5)  # these samples are the reference's own
    assert rows[-1]["term_own"] > 1.5
    for row in rows:
        assert row["score"] == pytest.approx(row["term_own"] - 0.25 * row["term_shouts"], abs=1e-4)
    lineage = json.loads((tmp_path / "run" / "result.json").read_text())["reward"]
    assert lineage == result["reward"]
    assert [len(term.get("source_sha256", "")) for term in lineage["terms"]] == [64, 0]
    body = read_manifest(tmp_path / "run" / "checkpoint", "checkpoint").body
    assert "reward" not in body["parents"]
    assert body["learnt_from"] == lineage  # a policy says itself what it was taught by


def test_a_turned_weight_teaches_the_opposite(ppo_config, module, tmp_path):
    run(ppo_config | {"reward": terms(module, weight=-1.0)}, tmp_path / "run")
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["term_own"] < -0.8


def test_nan_stops_the_run_with_the_sample(ppo_config, module, tmp_path):
    with pytest.raises(TrainingStopped, match=r"broken gave nan for response 0, .* to 'tell me"):
        run(ppo_config | {"reward": f"{module}:broken"}, tmp_path / "run")


@pytest.mark.parametrize("stop_after", [1, 2])
def test_stopped_and_resumed_is_uninterrupted(ppo_config, module, tmp_path, monkeypatch, stop_after):
    sampling = {"prompts_per_step": 4, "samples_per_prompt": 3, "max_new_tokens": 10}
    config = ppo_config | {"steps": 3, "sampling": sampling, "reward": terms(module)}
    run(config, tmp_path / "whole")
    log = RunFolder.log

    def killed(self, step, *rest, **named):
        row = log(self, step, *rest, **named)
        if step == stop_after + 1:
            raise KeyboardInterrupt  # after the step's work, before its state is saved
        return row

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "cut")
    run(config, tmp_path / "cut")
    states = [checkpoint.load_state(tmp_path / name / "state") for name in ("whole", "cut")]
    assert states[0]["reward"] == states[1]["reward"]
    assert states[0]["reward"]["normaliser"]["own"][1] > 0
    assert all(torch.equal(states[0]["trained"][name], states[1]["trained"][name]) for name in states[0]["trained"])
