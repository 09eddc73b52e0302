"""Prompts and minibatches of PPO; the checklist and learning itself are in tests/learning."""

from types import SimpleNamespace

import pytest
import torch

from plaudit.artifacts import PreferenceRow, PromptRow, write_snapshot
from plaudit.errors import BadInput
from plaudit.learn import base_models, ppo
from plaudit.learn.configs import PPOConfig, from_dict
from plaudit.learn.tokens import ChatTokenizer, Rollout


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ChatTokenizer.load(base_models.prepare("tiny", tmp_path_factory.mktemp("bases")))


@pytest.fixture
def snapshot(tmp_path):
    asked = [({"role": "user", "content": text},) for text in ("one", "two", "two", "three", "held out")]
    prompts = [PromptRow(f"q{i}", "f", "test" if i == 4 else "train", messages) for i, messages in enumerate(asked)]
    preferences = [PreferenceRow("p", "c", "o", "f", "train", asked[0], "a", "b", 1.0, 1.0, "annotation")]
    return write_snapshot(tmp_path, preferences, [], prompts, {}, {}).folder


def config(snapshot, **changes):
    return from_dict(PPOConfig, {"snapshot": str(snapshot), "base": "b", "reward": "r"} | changes)


def test_prompts_are_the_training_split_s_each_once(snapshot, tokenizer):
    got = ppo.read_prompts(config(snapshot, sampling={"prompts_per_step": 3}), tokenizer)
    expected = [tokenizer.render([{"role": "user", "content": text}]) for text in ("one", "two", "three")]
    assert sorted(got) == sorted(expected)
    only = config(snapshot, sampling={"prompts_per_step": 1, "prompts": "preferences", "max_prompt_tokens": 3})
    assert ppo.read_prompts(only, tokenizer) == [expected[0][-3:]]  # the oldest tokens go, the question's end stays
    with pytest.raises(BadInput, match="3 different training prompts, one step takes 12"):
        ppo.read_prompts(config(snapshot), tokenizer)


def learner(**changes):
    return SimpleNamespace(
        config=config("s", **changes),
        prompts=[[i] for i in range(10)],
        order=[],
        generator=torch.Generator().manual_seed(0),
    )


def test_a_pass_takes_no_prompt_twice_and_passes_differ():
    some = learner(sampling={"prompts_per_step": 4})
    first, second, third, fourth = (ppo.next_prompts(some) for _ in range(4))
    for one, other in ((first, second), (third, fourth)):
        assert len({ids[0] for ids in one + other}) == 8
    assert (first, second) != (third, fourth)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_minibatches_hold_whole_groups_once(n):
    rollout = Rollout([[1, 2]] * 5, [[3] * (1 + i % 4) for i in range(15)], [i // 3 for i in range(15)], [True] * 15)
    parts = ppo.split(learner(minibatches=n, sampling={"prompts_per_step": 5}), rollout)
    members = [sorted(int(i) for batch in part for i in batch.response) for part in parts]
    assert len(parts) == n
    assert sorted(i for part in members for i in part) == list(range(15))
    for part in members:
        assert all({3 * (i // 3), 3 * (i // 3) + 1, 3 * (i // 3) + 2} <= set(part) for i in part)
