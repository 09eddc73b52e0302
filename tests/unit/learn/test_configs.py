"""Run configs: what is accepted round-trips, what is wrong is named, and importing them loads no torch."""

import json
import subprocess
import sys

import pytest

from plaudit.errors import ConfigError
from plaudit.learn.configs import (
    PROGRAMS,
    LoraConfig,
    PPOConfig,
    RewardConfig,
    ScoreConfig,
    SFTConfig,
    describe,
    from_dict,
    to_dict,
)

REQUIRED = {
    "reward": {"snapshot": "s", "base": "b"},
    "sft": {"snapshot": "s", "base": "b"},
    "ppo": {"snapshot": "s", "base": "b", "reward": "r"},
    "score": {"inputs": "i", "base": "b", "reward": "r"},
}


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_configs_survive_json(program):
    config = from_dict(PROGRAMS[program], REQUIRED[program])
    assert from_dict(PROGRAMS[program], json.loads(json.dumps(to_dict(config)))) == config


def test_nested_fields_are_read_and_converted():
    config = from_dict(
        PPOConfig,
        REQUIRED["ppo"]
        | {"lora": {"rank": 4.0, "targets": ["q_proj"]}, "kl": {"budget": None, "coef": 1}, "optimizer": {"beta2": 0}},
    )
    assert config.lora == LoraConfig(rank=4, targets=("q_proj",))
    assert config.kl.budget is None
    assert isinstance(config.kl.coef, float)
    assert from_dict(RewardConfig, REQUIRED["reward"] | {"lora": None}).lora is None


@pytest.mark.parametrize(
    ("kind", "raw", "words"),
    [
        (PPOConfig, {"minibatch": 2}, ["'minibatch'", "did you mean 'minibatches'"]),
        (PPOConfig, {"kl": {"cof": 0.1}}, ["PPOConfig.kl", "'coef'"]),
        (PPOConfig, {"kl": 3}, ["PPOConfig.kl", "object"]),
        (PPOConfig, {"epochs": 1.5}, ["PPOConfig.epochs", "1.5", "int"]),
        (PPOConfig, {"epochs": True}, ["PPOConfig.epochs", "int"]),
        (PPOConfig, {"entropy": 1}, ["PPOConfig.entropy", "bool"]),
        (PPOConfig, {"truncation": "bootstrp"}, ["truncation", "'bootstrap'"]),
        (PPOConfig, {"dual_clip": 0.9}, ["dual_clip", "0.9", "above 1"]),
        (PPOConfig, {"kl": {"coef": 0, "target": 6}}, ["target", "coef"]),
        (PPOConfig, {"minibatches": 13}, ["minibatches", "12"]),
        (PPOConfig, {"lora": None}, ["lora"]),
        (RewardConfig, {"lora": {"targets": "q_proj"}}, ["targets", "list"]),
        (RewardConfig, {"lora": {"targets": ["query"]}}, ["query", "q_proj"]),
        (RewardConfig, {"batch_pairs": 0}, ["batch_pairs", "1 or above"]),
        (RewardConfig, {"optimizer": {"warmup_fraction": 1.0}}, ["warmup_fraction", "1.0"]),
        (SFTConfig, {"optimizer": {"head_learning_rate": 0.5}}, ["head_learning_rate", "no head"]),
        (SFTConfig, {"source": "all"}, ["source", "demonstrations"]),
        (ScoreConfig, {"measures": ["score", "kl"]}, ["'kl'", "policy"]),
        (ScoreConfig, {"measures": ["nll"]}, ["reward", "nothing else reads"]),
        (ScoreConfig, {"measures": []}, ["measures", "at least one"]),
    ],
)
def test_a_wrong_field_is_named(kind, raw, words):
    program = next(name for name, found in PROGRAMS.items() if found is kind)
    with pytest.raises(ConfigError) as refusal:
        from_dict(kind, REQUIRED[program] | raw)
    for word in words:
        assert word in refusal.value.message


def test_a_missing_required_field_is_named():
    with pytest.raises(ConfigError, match="required field 'reward'"):
        from_dict(PPOConfig, {"snapshot": "s", "base": "b"})


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_every_field_is_documented(program):
    rows = describe(PROGRAMS[program])
    assert {"optimizer.learning_rate", "base"} & {name for name, _, _ in rows}
    for name, text, _ in rows:
        assert len(text) >= 5, name
    assert {name: default for name, _, default in rows}["base"] is ...


def test_configs_import_no_torch():
    code = "import sys, plaudit.learn.configs; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
