"""What each training program accepts: frozen dataclasses, standard library only (anyone may import this module; it loads no torch).

A run folder's `config.json` holds the fields of one of these. `from_dict` refuses unknown names (with the nearest valid one), wrong types
and values out of range; `to_dict` gives back the resolved config, which the program saves. **Every accepted field acts or raises.**
Each field carries its meaning, unit and the source of its default in `metadata["doc"]`; `describe` lists them for documentation.

Sources: [HF] Huang et al. 2024, "The N+ implementation details of RLHF with PPO" (summarize_from_feedback_details); [Z] Ziegler et al. 2019;
[S] Schulman et al. 2017; [L] LoRA, Hu et al. 2021; [own] measured on SmolLM2-135M by this project (docs/log.md).
"""

from plaudit.learn.configs.fields import describe, from_dict, to_dict
from plaudit.learn.configs.online import (
    BestOfConfig,
    GRPOConfig,
    Guard,
    GuardsConfig,
    KLConfig,
    Limits,
    OnlineConfig,
    PPOConfig,
    RolloutConfig,
    SamplingConfig,
)
from plaudit.learn.configs.parts import ComputeConfig, LoraConfig, OptimizerConfig
from plaudit.learn.configs.programs import PROGRAMS
from plaudit.learn.configs.rewards import (
    NEWEST_CHECKPOINT,
    TERMS,
    BlockListTerm,
    FunctionTerm,
    HttpTerm,
    JsonTerm,
    LengthTerm,
    ModelTerm,
    RegexTerm,
    RepetitionTerm,
    RequireTerm,
    Reward,
    Term,
    function_names,
    reward_terms,
    with_newest,
)
from plaudit.learn.configs.score import ScoreConfig
from plaudit.learn.configs.supervised import DPOConfig, HeadConfig, RewardConfig, SFTConfig, SourceConfig

__all__ = [
    "NEWEST_CHECKPOINT",
    "PROGRAMS",
    "TERMS",
    "BestOfConfig",
    "BlockListTerm",
    "ComputeConfig",
    "DPOConfig",
    "FunctionTerm",
    "GRPOConfig",
    "Guard",
    "GuardsConfig",
    "HeadConfig",
    "HttpTerm",
    "JsonTerm",
    "KLConfig",
    "LengthTerm",
    "Limits",
    "LoraConfig",
    "ModelTerm",
    "OnlineConfig",
    "OptimizerConfig",
    "PPOConfig",
    "RegexTerm",
    "RepetitionTerm",
    "RequireTerm",
    "Reward",
    "RewardConfig",
    "RolloutConfig",
    "SFTConfig",
    "SamplingConfig",
    "ScoreConfig",
    "SourceConfig",
    "Term",
    "describe",
    "from_dict",
    "function_names",
    "reward_terms",
    "to_dict",
    "with_newest",
]
