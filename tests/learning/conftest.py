"""A small world for learning tests: the tiny base, and Snapshots in which people like vowels."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from plaudit.artifacts import DemonstrationRow, PreferenceRow, PromptRow, write_snapshot
from plaudit.learn import base_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return base_models.prepare("tiny", tmp_path_factory.mktemp("bases"))


def vowel_share(text: str) -> float:
    """The hidden rule."""
    return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


def write_text(rng: random.Random, length: int) -> str:
    vowels = rng.uniform(0.1, 0.7)
    return "".join(rng.choice("aeiou" if rng.random() < vowels else "tnshrdlcm ") for _ in range(length))


@pytest.fixture(scope="session")
def make_snapshot(tmp_path_factory):
    """make_snapshot(n, noise, sign): n Preferences of which a share `noise` is turned round; sign -1 prefers consonants."""

    def make(n: int = 120, noise: float = 0.1, sign: int = 1, seed: int = 0, soft: float = 0.9) -> Path:
        rng = random.Random(seed)
        preferences, demonstrations, prompts = [], [], []
        for index in range(n):
            messages = ({"role": "user", "content": f"say {index % 40}"},)
            split = ("train", "train", "train", "valid")[index % 4]
            first, second = (write_text(rng, rng.randint(8, 24)) for _ in range(2))
            better = sign * vowel_share(first) > sign * vowel_share(second)
            if split == "train" and rng.random() < noise:
                better = not better
            chosen, rejected = (first, second) if better else (second, first)
            names = {"family": f"f{index}", "split": split, "messages": messages}
            preferences.append(
                PreferenceRow(
                    preference_id=f"p{index}", comparison_id=f"c{index}", criterion="overall", chosen=chosen,
                    rejected=rejected, probability=soft, weight=1.0 + index % 3, source="annotation", **names
                )
            )  # fmt: skip
            demonstrations.append(
                DemonstrationRow(demonstration_id=f"d{index}", response="a e i o u " * 2, source="edit", **names)
            )
            asked = {"messages": ({"role": "user", "content": f"tell me {index % 40}"},)}
            prompts.append(PromptRow(prompt_id=f"q{index}", **(names | asked)))
        parent = tmp_path_factory.mktemp("snapshots")
        return write_snapshot(parent, preferences, demonstrations, prompts, {"seed": seed}, {}).folder

    return make


@pytest.fixture
def new_run(tmp_path):
    """new_run(name, config): a run folder with its config.json."""

    def make(name: str, config: dict) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


FAST = {"compute": {"threads": 2, "dtype": "float32"}, "first_layer": 1, "lora": {"rank": 8, "alpha": 16}}


@pytest.fixture(scope="session")
def vowel_reward(tiny, make_snapshot, tmp_path_factory) -> Path:
    """A finished reward run (folder) that learnt to like vowels from noisy comparisons."""
    from plaudit.learn import reward
    from plaudit.learn.configs import RewardConfig, from_dict
    from plaudit.learn.run_folder import RunFolder

    folder = tmp_path_factory.mktemp("runs") / "vowels"
    folder.mkdir()
    config = FAST | {
        "snapshot": str(make_snapshot(n=200, noise=0.1)),
        "base": str(tiny),
        "epochs": 3,
        "pooling": "mean",
        "optimizer": {"learning_rate": 2e-3, "head_learning_rate": 1e-2},
    }
    reward.train(from_dict(RewardConfig, config), RunFolder(folder))
    return folder


@pytest.fixture(scope="session")
def ppo_config(tiny, make_snapshot, vowel_reward) -> dict:
    """A PPO run of seconds against `vowel_reward`."""
    return FAST | {
        "snapshot": str(make_snapshot(n=60)),
        "base": str(tiny),
        "reward": str(vowel_reward / "checkpoint"),
        "steps": 12,
        "epochs": 2,
        "lam": 1.0,
        "truncation": "none",
        "target_approx_kl": None,
        "sampling": {"prompts_per_step": 8, "samples_per_prompt": 8, "max_new_tokens": 16},
        "optimizer": {"learning_rate": 5e-3, "head_learning_rate": 1e-2},
        "kl": {"coef": 0.02, "budget": None},
    }
