"""Run configs: what is accepted round-trips, what is wrong is named, and importing them loads no torch."""

import json
import subprocess
import sys

import pytest

from plaudit.errors import ConfigError
from plaudit.learn.configs import (
    PROGRAMS,
    TERMS,
    BestOfConfig,
    DPOConfig,
    FunctionTerm,
    GRPOConfig,
    LoraConfig,
    ModelTerm,
    PPOConfig,
    RewardConfig,
    ScoreConfig,
    SFTConfig,
    describe,
    from_dict,
    function_names,
    reward_terms,
    to_dict,
    with_newest,
)

REQUIRED = {
    "reward": {"snapshot": "s", "base": "b"},
    "sft": {"snapshot": "s", "base": "b"},
    "dpo": {"snapshot": "s", "base": "b"},
    "ppo": {"snapshot": "s", "base": "b", "reward": "r"},
    "grpo": {"snapshot": "s", "base": "b", "reward": "r"},
    "best_of": {"snapshot": "s", "base": "b", "reward": "r"},
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
        (PPOConfig, {"lora": 3}, ["PPOConfig.lora", "object"]),
        (GRPOConfig, {"baseline": "leave_one"}, ["baseline", "'leave_one_out'"]),
        (GRPOConfig, {"sampling": {"samples_per_prompt": 1}}, ["samples_per_prompt is 1", "'batch'"]),
        (GRPOConfig, {"clip": 0.1}, ["GRPOConfig.clip is 0.1", "on-policy"]),
        (GRPOConfig, {"dual_clip": 3.0}, ["dual_clip", "on-policy"]),
        (GRPOConfig, {"target_approx_kl": 0.1}, ["target_approx_kl", "on-policy"]),
        (GRPOConfig, {"truncation": "bootstrap"}, ["truncation", "none, penalty, mask"]),
        (GRPOConfig, {"optimizer": {"head_learning_rate": 0.5}}, ["GRPOConfig.optimizer", "no head"]),
        (GRPOConfig, {"steps": 0}, ["steps", "1 or above"]),
        (BestOfConfig, {"inputs": "i"}, ["'s'", "'i'", "exactly one"]),
        (BestOfConfig, {"snapshot": ""}, ["exactly one"]),
        (BestOfConfig, {"snapshot": "", "inputs": "i", "split": "test"}, ["split", "no splits"]),
        (BestOfConfig, {"n": 0}, ["n is 0", "1 or above"]),
        (BestOfConfig, {"temperature": 0}, ["temperature", "above 0"]),
        (RewardConfig, {"lora": {"targets": "q_proj"}}, ["targets", "list"]),
        (RewardConfig, {"lora": {"targets": ["query"]}}, ["query", "q_proj"]),
        (RewardConfig, {"batch_pairs": 0}, ["batch_pairs", "1 or above"]),
        (RewardConfig, {"optimizer": {"warmup_fraction": 1.0}}, ["warmup_fraction", "1.0"]),
        (RewardConfig, {"snapshot": ""}, ["snapshot", "preferences", "exactly one"]),
        (RewardConfig, {"preferences": "p"}, ["snapshot", "preferences", "exactly one"]),
        (RewardConfig, {"valid_preferences": "v"}, ["valid_preferences", "splits of its own"]),
        (RewardConfig, {"valid_fraction": 0.2}, ["valid_fraction", "0.2"]),
        (RewardConfig, {"snapshot": "", "preferences": "p", "valid_fraction": 1.0}, ["valid_fraction", "[0, 1)"]),
        (RewardConfig, {"heads": [{"criterion": "a"}, {"criterion": "a"}]}, ["heads", "twice"]),
        (RewardConfig, {"heads": [{"criterion": "a", "weight": 0}]}, ["heads", "weight 0"]),
        (RewardConfig, {"heads": [{"criterion": ""}]}, ["HeadConfig.criterion"]),
        (RewardConfig, {"heads": [{"criterion": "a"}], "criterion": "a"}, ["criterion", "leave it out"]),
        (RewardConfig, {"members": 0}, ["members", "1 or above"]),
        (RewardConfig, {"members_share": "body"}, ["members_share", "no ensemble"]),
        (RewardConfig, {"bootstrap": False}, ["bootstrap", "no ensemble"]),
        (RewardConfig, {"members": 2, "lora": None}, ["lora is null", "'body'"]),
        (RewardConfig, {"validation": {"points_per_epoch": 0}}, ["points_per_epoch", "1 or above"]),
        (RewardConfig, {"validation": {"trap_prompts": -1}}, ["trap_prompts", "0 or above"]),
        (SFTConfig, {"optimizer": {"head_learning_rate": 0.5}}, ["head_learning_rate", "no head"]),
        (SFTConfig, {"source": "all"}, ["source", "demonstrations"]),
        (DPOConfig, {"beta": 0}, ["beta", "above 0"]),
        (DPOConfig, {"label_smoothing": 0.5}, ["label_smoothing", "0.5"]),
        (DPOConfig, {"valid_fraction": 1}, ["valid_fraction", "[0, 1)"]),
        (DPOConfig, {"preferences": "p"}, ["snapshot and preferences are both set"]),
        (DPOConfig, {"snapshot": ""}, ["'dpo'", "nothing to read"]),
        (DPOConfig, {"snapshot": "", "unpaired": "u"}, ["nothing to read"]),
        (DPOConfig, {"unpaired": "u"}, ["unpaired", "only the loss 'kto' reads it"]),
        (DPOConfig, {"desirable_weight": 2}, ["desirable_weight", "'kto'"]),
        (DPOConfig, {"loss": "kto", "undesirable_weight": -1}, ["undesirable_weight", "0 or above"]),
        (DPOConfig, {"valid_preferences": "v"}, ["valid_preferences", "its own splits"]),
        (DPOConfig, {"snapshot": "", "unpaired": "u", "loss": "kto", "criterion": "c"}, ["criterion", "'c'"]),
        (DPOConfig, {"optimizer": {"head_learning_rate": 0.5}}, ["head_learning_rate", "no head"]),
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


def test_what_one_epoch_refuses_acts_with_more():
    more = REQUIRED["grpo"] | {"clip": 0.1, "dual_clip": 3.0, "target_approx_kl": 0.1}
    assert from_dict(GRPOConfig, more | {"epochs": 2}).clip == 0.1
    assert from_dict(GRPOConfig, more | {"minibatches": 2}).dual_clip == 3.0
    assert from_dict(GRPOConfig, REQUIRED["grpo"] | {"baseline": "batch", "sampling": {"samples_per_prompt": 1}})


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


# --- the reward of an on-policy program -------------------------------------------------------------------------------------


def ppo_with(reward):
    return from_dict(PPOConfig, {"snapshot": "s", "base": "b", "reward": reward})


EACH_KIND = [
    {"kind": "model", "name": "judge", "checkpoints": ["a", "b"], "combine": "mean_minus_sd", "sd_coef": 2},
    {"kind": "regex", "name": "digits", "pattern": r"\d+", "whole": True},
    {"kind": "json", "name": "valid", "keys": ["a"]},
    {"kind": "length", "name": "short", "high": 20, "unit": "words"},
    {"kind": "repetition", "name": "loops", "n": 3, "weight": 0},
    {"kind": "block_list", "name": "banned", "phrases": ["as an AI"], "clip": 3},
    {"kind": "require", "name": "thanks", "phrases": ["thank you"], "whole_words": False},
    {"kind": "function", "name": "own", "function": "mypkg.rewards:polite", "normalise": "reference"},
    {"kind": "http", "name": "remote", "url": "https://host:8000/score?v=1", "token_variable": "TOKEN"},
]


def test_a_list_of_terms_survives_json():
    config = ppo_with(EACH_KIND)
    assert [type(term) for term in config.reward] == list(TERMS.values())
    assert from_dict(PPOConfig, json.loads(json.dumps(to_dict(config)))) == config
    for term, raw in zip(to_dict(config)["reward"], EACH_KIND, strict=True):
        assert raw.items() <= term.items()


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("mypkg.rewards:polite", FunctionTerm(name="function", function="mypkg.rewards:polite")),
        ("rewards:f", FunctionTerm(name="function", function="rewards:f")),
        ("runs/a:b", ModelTerm(name="model", checkpoints=("runs/a:b",))),
        ("./a:b", ModelTerm(name="model", checkpoints=("./a:b",))),
        ("checkpoint", ModelTerm(name="model", checkpoints=("checkpoint",))),
    ],
)
def test_a_text_is_one_term_of_weight_1(text, term):
    assert reward_terms(ppo_with(text).reward) == (term,)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (3, ["PPOConfig.reward is 3", "list"]),
        ([], ["PPOConfig.reward", "empty list"]),
        (["runs/a"], ["PPOConfig.reward[0]", "object with a kind"]),
        ([EACH_KIND[1], {"name": "x"}], ["PPOConfig.reward[1]", "'kind'", "regex"]),
        ([{"kind": "regexp", "name": "x"}], ["PPOConfig.reward[0].kind", "'regexp'", "did you mean 'regex'"]),
        ([{"kind": ["regex"], "name": "x"}], ["PPOConfig.reward[0].kind", "['regex']"]),
        (
            [{"kind": "regex", "name": "x", "patern": "a"}],
            ["PPOConfig.reward[0]", "'patern'", "did you mean 'pattern'"],
        ),
        ([{"kind": "regex", "name": "x"}], ["PPOConfig.reward[0]", "required field 'pattern'"]),
        ([{"kind": "json"}], ["required field 'name'"]),
        ([{"kind": "json", "name": "x", "weight": "1"}], ["PPOConfig.reward[0].weight", "float"]),
        ([{"kind": "json", "name": "x", "keys": "a"}], ["PPOConfig.reward[0].keys", "list"]),
        ([{"kind": "json", "name": "x", "keys": [1]}], ["PPOConfig.reward[0].keys[0]", "str"]),
        ([{"kind": "json", "name": "x", "weight": float("nan")}], ["weight", "finite"]),
        ([{"kind": "json", "name": "My term"}], ["JsonTerm.name", "'My term'"]),
        ([{"kind": "json", "name": "x", "clip": 0}], ["clip", "above 0"]),
        ([{"kind": "json", "name": "x", "normalise": "refrence"}], ["normalise", "did you mean 'reference'"]),
        ([{"kind": "json", "name": "x"}, {"kind": "length", "name": "x", "low": 1}], ["two terms named 'x'"]),
        ([{"kind": "json", "name": "x", "weight": 0}], ["weight 0 in all"]),
        ([{"kind": "model", "name": "x", "checkpoints": []}], ["checkpoints", "at least one"]),
        ([{"kind": "model", "name": "x", "checkpoints": ["a", "a"]}], ["checkpoints", "once"]),
        ([{"kind": "model", "name": "x", "checkpoints": ["a", "b"], "combine": "min"}], ["combine", "'minimum'"]),
        ([{"kind": "model", "name": "x", "checkpoints": ["a", "b"], "sd_coef": 2}], ["sd_coef", "only mean_minus_sd"]),
        ([{**EACH_KIND[0], "sd_coef": 0}], ["sd_coef", "above 0"]),
        ([{"kind": "length", "name": "x"}], ["neither low nor high"]),
        ([{"kind": "length", "name": "x", "low": 5, "high": 4}], ["high", "at least low"]),
        ([{"kind": "length", "name": "x", "low": 5, "scale": 0}], ["scale", "above 0"]),
        ([{"kind": "repetition", "name": "x", "n": 0}], ["RepetitionTerm.n", "1 or above"]),
        ([{"kind": "block_list", "name": "x", "phrases": []}], ["phrases"]),
        ([{"kind": "require", "name": "x", "phrases": ["a", " "]}], ["phrases", "none empty"]),
        ([{"kind": "function", "name": "x", "function": "polite"}], ["'polite'", "package.module:function"]),
        ([{"kind": "function", "name": "x", "function": "a:b", "timeout_s": 0}], ["timeout_s", "above 0"]),
        ([{"kind": "http", "name": "x", "url": "host/score"}], ["'host/score'", "https://"]),
        ([{"kind": "http", "name": "x", "url": "http://a", "attempts": 0}], ["attempts", "1 or above"]),
        ([{"kind": "http", "name": "x", "url": "http://a", "pause_s": 0}], ["pause_s", "above 0"]),
    ],
    ids=str,
)
def test_a_wrong_term_is_named(raw, words):
    with pytest.raises(ConfigError) as refusal:
        ppo_with(raw)
    for word in words:
        assert word in refusal.value.message


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ConfigError) as refusal:
        ppo_with([{"kind": "http", "name": "x", "url": "https://me:s3cret@host/score"}])
    assert "token_variable" in refusal.value.message
    assert "s3cret" not in refusal.value.message


def test_newest_stands_for_a_folder_wherever_a_model_term_names_it():
    people = {"kind": "model", "name": "people", "checkpoints": ["/old", "newest"]}
    own = {"kind": "function", "name": "own", "function": "b.c:f"}
    assert with_newest([people, own], "/new") == [people | {"checkpoints": ["/old", "/new"]}, own]
    assert with_newest("newest", "/new") == "/new"
    for other in ("/old", "a:f", [own], [{"kind": "model", "checkpoints": "wrong"}], None):
        assert with_newest(other, "/new") == other
    assert function_names([own, people, own | {"function": "a:f"}, "wrong"]) == ["a:f", "b.c:f"]
    assert function_names("a:f") == ["a:f"]
    assert function_names("/a/folder") == function_names(None) == []
