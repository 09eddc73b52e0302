"""The programs and the config of each."""

from __future__ import annotations

from plaudit.learn.configs.online import BestOfConfig, GRPOConfig, PPOConfig
from plaudit.learn.configs.score import ScoreConfig
from plaudit.learn.configs.supervised import DPOConfig, RewardConfig, SFTConfig

Config = RewardConfig | SFTConfig | DPOConfig | PPOConfig | GRPOConfig | BestOfConfig | ScoreConfig
PROGRAMS: dict[str, type[Config]] = {
    "reward": RewardConfig,
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "best_of": BestOfConfig,
    "score": ScoreConfig,
}
