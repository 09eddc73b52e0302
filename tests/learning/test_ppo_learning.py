"""PPO raises a known reward on the tiny policy in seconds and holds its KL; with the sign turned it does the opposite."""

import json

import pytest
import torch

from plaudit.artifacts import read_manifest
from plaudit.errors import BadInput, ConfigError
from plaudit.learn import checkpoint, ppo
from plaudit.learn.configs import PPOConfig, from_dict
from plaudit.learn.nets import Decoder
from plaudit.learn.rollout import Sampling, generate
from plaudit.learn.run_folder import RunFolder, read_jsonl
from plaudit.learn.tokens import ChatTokenizer


def run(config, folder):
    folder.mkdir(exist_ok=True)
    return ppo.train(from_dict(PPOConfig, config), RunFolder(folder))


def vowel_share_of(tiny, adapter):
    """The hidden rule itself, on prompts that no run has seen."""
    decoder, tokenizer = Decoder.load(tiny, torch.float32), ChatTokenizer.load(tiny)
    prompts = [tokenizer.render([{"role": "user", "content": f"new {i}"}]) for i in range(8)]
    made = generate(decoder, prompts, 16, Sampling(16, seed=99), adapter)
    text = "".join(tokenizer.decode(ids) for ids in made.rollout.response_ids)
    return sum(letter in "aeiou" for letter in text) / len(text)


@pytest.fixture(scope="session")
def finished(ppo_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo") / "run"
    return folder, run(ppo_config, folder)


def test_a_known_reward_rises_and_so_does_what_people_like(finished, tiny):
    folder, result = finished
    assert result["stop"] == "end"
    assert result["score"] > result["score_first"] + 0.7
    adapter = checkpoint.load_policy(folder / "checkpoint", tiny)
    assert vowel_share_of(tiny, adapter) > vowel_share_of(tiny, None) + 0.05
    rows = read_jsonl(folder / "metrics.jsonl")
    assert rows[0]["kl"] == 0.0
    assert all(row["kl_k3"] >= 0 for row in rows)
    assert result["curve"][-1]["kl"] == result["kl"] == rows[-1]["kl"]
    assert rows[-1]["stop"] == "end"
    assert json.loads((folder / "result.json").read_text()) == result
    body = read_manifest(folder / "checkpoint", "checkpoint").body
    assert body["checkpoint_kind"] == "policy"
    assert set(body["parents"]) == {"snapshot", "reward"}
    assert checkpoint.load_value_head(folder / "checkpoint", tiny) is not None


def test_a_wrong_sign_fails(ppo_config, tiny, tmp_path):
    """Negative control: the same run against minus the reward ends below where it began, by the reward and by the rule."""
    minus = {"kind": "model", "name": "minus", "checkpoints": [ppo_config["reward"]], "weight": -1.0}
    result = run(ppo_config | {"reward": [minus]}, tmp_path / "run")
    assert -result["score"] < -result["score_first"] - 0.5
    adapter = checkpoint.load_policy(tmp_path / "run" / "checkpoint", tiny)
    assert vowel_share_of(tiny, adapter) < vowel_share_of(tiny, None)


def test_the_kl_budget_is_held(ppo_config, finished, tmp_path):
    budget = finished[1]["kl"] / 4
    result = run(ppo_config | {"kl": {"coef": 0.0, "budget": budget}}, tmp_path / "run")
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert result["stop"] == "budget"
    assert result["kl"] <= budget < rows[-1]["kl"]
    assert result["steps"] == len(rows) - 2  # the last rollout was over; the one before it measured what is kept
    assert result["kl"] == rows[-2]["kl"]
    state = checkpoint.load_state(tmp_path / "run" / "state")
    assert all(torch.equal(state["trained"][name], state["kept"][name]) for name in state["kept"])


def test_a_stronger_penalty_keeps_the_policy_nearer(ppo_config, finished, tmp_path):
    strong = run(ppo_config | {"kl": {"coef": 1.0, "budget": None}}, tmp_path / "run")
    assert strong["kl"] < 0.5 * finished[1]["kl"]


def test_two_seeded_runs_are_identical_and_seeds_matter(ppo_config, tmp_path):
    config = ppo_config | {"steps": 2}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(config | {"seed": seed}, tmp_path / name)
    a, b, c = ((tmp_path / name / "checkpoint" / "adapter_model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_a_critic_that_starts_from_the_reward_knows_at_once_what_the_head_must_learn(ppo_config, finished, tmp_path):
    result = run(ppo_config | {"critic": "reward"}, tmp_path / "run")
    first, plain = (read_jsonl(folder / "metrics.jsonl")[0] for folder in (tmp_path / "run", finished[0]))
    assert first["score"] == plain["score"]  # the same rollout
    assert first["explained_variance"] > 0.25 > plain["explained_variance"] + 0.2
    assert result["score"] > result["score_first"] + 0.7


def test_what_does_not_fit_together_is_refused(ppo_config, finished, tmp_path):
    with pytest.raises(BadInput, match=r"\d+ different training prompts, one step takes 41"):
        ppo.start(from_dict(PPOConfig, ppo_config | {"sampling": {"prompts_per_step": 41}}))
    policy = str(finished[0] / "checkpoint")
    with pytest.raises(ConfigError, match="rank 4 where it has 8"):
        ppo.start(from_dict(PPOConfig, ppo_config | {"start": policy, "lora": {"rank": 4, "alpha": 16}}))
    with pytest.raises(BadInput, match="policy Checkpoint, not a reward"):
        ppo.start(from_dict(PPOConfig, ppo_config | {"reward": policy}))
    rule = {"kind": "length", "name": "short", "low": 2, "high": 8}
    with pytest.raises(ConfigError, match="no term of the reward is a model"):
        ppo.start(from_dict(PPOConfig, ppo_config | {"critic": "reward", "reward": [rule]}))
    with pytest.raises(ConfigError, match="first_layer is 4"):
        ppo.start(from_dict(PPOConfig, ppo_config | {"first_layer": 4}))
