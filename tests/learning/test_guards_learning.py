"""A reward that can be fooled, with and without guards: without, what people like falls while the score rises; with, the run goes back in time."""

import importlib
import json
import sys

import pytest
import torch

from plaudit.artifacts import read_manifest
from plaudit.errors import ConfigError
from plaudit.learn import checkpoint, grpo, ppo
from plaudit.learn.configs import GRPOConfig, PPOConfig, from_dict
from plaudit.learn.run_folder import RunFolder, read_jsonl

SOURCE = """
def letters(messages, responses, token_ids, meta):
    # It was meant to ask for words instead of noise; it counts consonants, and people here like vowels.
    return [sum(letter in "tnshrdlcm" for letter in text) / max(len(text), 1) for text in responses]
"""


@pytest.fixture(scope="session")
def hackable(ppo_config, vowel_reward, tmp_path_factory):
    """A PPO run against `letters`; its judge learned from what people prefer."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "hackable_reward.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield ppo_config | {
        "reward": [
            {"kind": "function", "name": "own", "function": "hackable_reward:letters", "normalise": "reference"}
        ],
        "guards": {"judge": str(vowel_reward / "checkpoint")},
    }
    sys.path.remove(str(folder))
    sys.modules.pop("hackable_reward", None)


def with_guards(config, **changes):
    return config | {"guards": config["guards"] | changes}


def run(config, folder, program=ppo, kind=PPOConfig):
    folder.mkdir(exist_ok=True)
    return program.train(from_dict(kind, config), RunFolder(folder)), read_jsonl(folder / "metrics.jsonl")


@pytest.fixture(scope="session")
def fooled(hackable, tmp_path_factory):
    """The run in which guards only say what they see."""
    folder = tmp_path_factory.mktemp("fooled") / "run"
    return folder, *run(with_guards(hackable, on_critical="warn"), folder)


def test_without_guards_the_score_rises_and_what_people_like_falls(fooled):
    _, result, rows = fooled
    assert result["stop"] == "end"
    assert result["score"] > result["score_first"] + 1.0
    assert rows[0]["guard_gold"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["guard_gold"] < -0.5
    assert result["guards"]["done"] == ""
    assert "Nothing was done" in (fooled[0] / "checkpoint" / "card.md").read_text()
    assert len(fooled[1]["guards"]["traps"]["by"]) == 8
    assert result["guards"]["watched"]["gold"]["level"] == "critical"


def test_the_guard_goes_back_to_the_judge_s_best(hackable, fooled, tiny, tmp_path):
    result, rows = run(hackable, tmp_path / "run")
    free = fooled[2]
    assert result["stop"] == rows[-1]["stop"] == "guard"
    assert len(rows) < len(free)
    assert [row["guard_gold"] for row in rows] == [
        row["guard_gold"] for row in free[: len(rows)]
    ]  # the same run so far
    assert rows[-1]["guards"]["gold"] == "critical"
    golds = [row["guard_gold"] for row in rows]
    assert result["steps"] == golds.index(max(golds))
    assert golds[result["steps"]] > free[-1]["guard_gold"] + 0.5
    card = (tmp_path / "run" / "checkpoint" / "card.md").read_text()
    assert "**gold: critical** from rollout" in card
    assert f"went back to the policy after {result['steps']} steps" in card
    assert json.loads((tmp_path / "run" / "result.json").read_text())["guards"] == result["guards"]
    assert "judge" in read_manifest(tmp_path / "run" / "checkpoint", "checkpoint").body["parents"]
    kept, state = (
        checkpoint.load_policy(tmp_path / "run" / "checkpoint", tiny),
        checkpoint.load_state(tmp_path / "run" / "state"),
    )
    for name, parameter in kept.named_parameters():
        assert torch.equal(parameter, state["best"][f"policy.{name}"])


def test_an_honest_reward_is_left_alone(ppo_config, other_judge, tmp_path):
    """Negative control: the reward that people's preferences taught, watched by a judge of other preferences."""
    result, rows = run(ppo_config | {"guards": {"judge": str(other_judge)}}, tmp_path / "run")
    assert result["stop"] == "end"
    assert rows[-1]["guard_gold"] > 0.5
    assert result["guards"]["watched"]["gold"] == {"warn": 0.2, "critical": 2.0, "level": "ok"}
    assert "Nothing was done" in (tmp_path / "run" / "checkpoint" / "card.md").read_text()


@pytest.fixture(scope="session")
def other_judge(tiny, make_snapshot, tmp_path_factory):
    from plaudit.learn import reward
    from plaudit.learn.configs import RewardConfig

    from .conftest import FAST

    folder = tmp_path_factory.mktemp("runs") / "other"
    folder.mkdir()
    config = FAST | {
        "snapshot": str(make_snapshot(n=200, noise=0.1, seed=5)),
        "base": str(tiny),
        "seed": 5,
        "epochs": 3,
        "pooling": "mean",
        "optimizer": {"learning_rate": 2e-3, "head_learning_rate": 1e-2},
    }
    reward.train(from_dict(RewardConfig, config), RunFolder(folder))
    return folder / "checkpoint"


def test_stop_ends_with_the_policy_of_now(hackable, fooled, tmp_path):
    result, rows = run(with_guards(hackable, on_critical="stop", traps=0), tmp_path / "run")
    assert result["guards"]["traps"] == {} != fooled[1]["guards"]["traps"]
    assert result["stop"] == "guard"
    assert result["steps"] == len(rows) - 1
    assert result["score"] == rows[-1]["score"] == fooled[2][len(rows) - 1]["score"]


def test_the_base_s_budget_counts_what_earlier_turns_moved(fooled, ppo_config, tmp_path):
    """Started from a policy far from the base, the KL to the start is 0 and the one to the base is not."""
    folder, first, _ = fooled
    config = ppo_config | {"start": str(folder / "checkpoint"), "steps": 4, "lora": {"rank": 8, "alpha": 16}}
    config |= {"sampling": {"prompts_per_step": 8, "samples_per_prompt": 4, "max_new_tokens": 16}}
    _, rows = run(config, tmp_path / "far")
    assert rows[0]["kl"] == 0.0
    assert rows[0]["guard_kl_base"] == pytest.approx(first["kl"], rel=0.25)  # other prompts, other samples
    assert all(row["stop"] == "" for row in rows[:-1])
    tight = config | {"kl": {"coef": 0.02, "budget": None, "base_budget": first["kl"] / 2}}
    result, rows = run(tight, tmp_path / "tight")
    assert result["stop"] == "guard"
    assert len(rows) == 3  # kl_patience
    assert result["steps"] == 0  # no policy of this run was within: the start is kept
    result, rows = run(tight | {"guards": {"kl_base": None}}, tmp_path / "off")
    assert "guard_kl_base" not in rows[0]
    assert result["stop"] == "end"


@pytest.mark.parametrize("stop_after", [1, 3])
def test_stopped_and_resumed_is_uninterrupted(hackable, tmp_path, monkeypatch, stop_after):
    sampling = {"prompts_per_step": 6, "samples_per_prompt": 4, "max_new_tokens": 12}
    config = hackable | {"steps": 4, "sampling": sampling}
    _, whole = run(config, tmp_path / "whole")
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
    _, cut = run(config, tmp_path / "cut")
    clocks = ("seconds", "phases", "tokens_per_second")
    assert [{k: v for k, v in row.items() if k not in clocks} for row in whole] == [
        {k: v for k, v in row.items() if k not in clocks} for row in cut
    ]
    states = [checkpoint.load_state(tmp_path / name / "state") for name in ("whole", "cut")]
    assert states[0]["guards"] == states[1]["guards"]
    assert len(states[0]["guards"]["trends"]) == len(whole) > stop_after + 1
    assert all(torch.equal(states[0]["best"][name], states[1]["best"][name]) for name in states[0]["best"])


def test_grpo_has_the_same_guards(hackable, tmp_path):
    only = ("critic", "value_coef", "value_clip", "lam", "gamma")
    config = {name: value for name, value in hackable.items() if name not in only} | {
        "epochs": 1,
        "optimizer": {"learning_rate": 5e-3},
    }
    result, _ = run(config, tmp_path / "run", grpo, GRPOConfig)
    assert result["stop"] == "guard"
    assert result["guards"]["watched"]["gold"]["level"] == "critical"


def test_a_judge_that_is_the_reward_is_refused(ppo_config, vowel_reward, tmp_path):
    same = str(vowel_reward / "checkpoint")
    with pytest.raises(ConfigError, match="which is also the reward"):
        from_dict(PPOConfig, ppo_config | {"guards": {"judge": same}})
    with pytest.raises(ConfigError, match="the same Checkpoint as the reward"):  # by another name
        ppo.start(from_dict(PPOConfig, ppo_config | {"guards": {"judge": f"{vowel_reward}/../vowels/checkpoint"}}))
