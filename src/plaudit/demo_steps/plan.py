"""What the demo does and how much of it: two plans of sizes and training settings, and the twins that change one thing each.

Gate thresholds and alert rules are not here; both plans and every twin meet the same ones, and the same rules of the ramp (below).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from plaudit.artifacts import sha256_of
from plaudit.domain import Json
from plaudit.errors import ConfigError
from plaudit.learn.configs import (
    ComputeConfig,
    KLConfig,
    LoraConfig,
    OptimizerConfig,
    PPOConfig,
    RewardConfig,
    SamplingConfig,
    SFTConfig,
    SourceConfig,
    to_dict,
)

STAGES = (0.1, 0.5)  # share of all users in each arm
MIN_STAGE_USERS = 5  # in each arm before the ramp goes on
# In thumbs-down per message. The gate has shown that the candidate is better; what 400 to 700 users can show beside it is that none is harmed.
GOAL_MARGIN = 0.1
MIN_NEW_PREFERENCES = 50
MONITOR_INTERVAL_S = 1.0
MONITOR_SAMPLE = 24  # scored answers of a measurement: the scorer shares two cores with everything else
OVERLAP = 3

TWINS: Mapping[str, str] = MappingProxyType(
    {
        "shuffled-labels": (
            "every annotator keeps opinions that have nothing to do with what the answers say, and users' thumbs are not learned from."
        ),
        "spammers-only": "all twelve annotators answer at random, and users' thumbs are not learned from.",
        "equal-candidate": "PPO learns at a rate of 1e-30, which moves no weight, so the candidate is the base.",
        "hackable-reward": (
            "the annotators of the training comparisons like what only looks good (long words; the tiny model's: consonants) and "
            "users' thumbs are not learned from, so the reward model can be hacked by looks; those who judge the evaluation are the standard crowd."
        ),
    }
)


@dataclass(frozen=True)
class DemoPlan:
    """Sizes, sampling and training settings of one demo."""

    name: str
    base: str
    people: str
    n_users: int = field(metadata={"help": "Users of the training pool who ask, one question each."})
    n_evaluation: int = field(metadata={"help": "Held-out prompts that candidate and base answer."})
    max_tokens: int
    first_visits: int = field(metadata={"help": "Visits at the first stage of the ramp, before the first look."})
    visits_per_look: int
    most_visits: int = field(metadata={"help": "The canary is held where nothing is decided by then."})
    visits_per_mood: int = field(metadata={"help": "Visits between two looks at the alerts, angry or calm."})
    n_next: int = field(metadata={"help": "Comparisons of the next turn."})
    system_prompt: str = field(metadata={"help": "The one-line baseline, written from the annotators' guideline."})
    reward: RewardConfig
    ppo: PPOConfig
    sft: SFTConfig
    temperature: float = 0.7
    demand: float = field(
        default=0.45, metadata={"help": "Utility at which a simulated user's thumb is as likely up as down."}
    )
    denied_fraction: float = 0.05
    concurrency: int = 128
    n_hidden_users: int = 40
    n_examples: int = 20


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    home: Path
    tiny: bool = False
    seed: int = 0
    baselines: bool = False
    twin: str | None = None
    people: str | None = None
    prompts: str | None = None

    def __post_init__(self) -> None:
        if self.twin is not None and self.twin not in TWINS:
            raise ConfigError(f"Twin {self.twin!r} is unknown; choose from: {', '.join(TWINS)}.")

    @property
    def plan(self) -> DemoPlan:
        return TINY if self.tiny else FULL

    def identity(self) -> Json:
        """What makes two demos the same: one home holds one. `baselines` adds steps and changes none."""
        plan = self.plan
        return {
            "plan": plan.name,
            "seed": self.seed,
            "twin": self.twin,
            "people": _content(self.people) or plan.people,
            "prompts": _content(self.prompts) or plan.people,
            "settings": sha256_of({"reward": to_dict(plan.reward), "ppo": to_dict(plan.ppo), "n": plan.n_users}),
        }


def _content(path: str | None) -> str | None:
    """A file is known by what it holds."""
    if path is None:
        return None
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no file {path!r}; give a Python file of people or a file of prompts.")
    return f"{file.name} {sha256_of(file.read_text())[:12]}"


def reward_config(options: Options) -> Json:
    """Fields of RewardConfig, without what the turn fills in."""
    config = _without(to_dict(options.plan.reward), "snapshot", "base", "seed")
    if options.twin in ("shuffled-labels", "spammers-only", "hackable-reward"):
        config["source_weights"] = []  # honest thumbs would teach what people like after all
    return config


def ppo_config(options: Options) -> Json:
    """Fields of PPOConfig, without what the turn fills in."""
    config = _without(to_dict(options.plan.ppo), "snapshot", "base", "reward", "seed")
    if options.twin == "equal-candidate":
        # Not a tiny KL budget: the estimate of a step's KL is noisy and may be below zero, and then training would go on.
        config["optimizer"]["learning_rate"] = config["optimizer"]["head_learning_rate"] = 1e-30
    return config


def sft_config(options: Options, snapshot: Path, base: Path) -> Json:
    return {**to_dict(options.plan.sft), "snapshot": str(snapshot), "base": str(base), "seed": options.seed}


def _without(config: Json, *names: str) -> Json:
    return {name: value for name, value in config.items() if name not in names}


def _given(**values: Any) -> dict[str, Any]:
    """Fields that the run fills in; configs refuse to be built without them."""
    return {"snapshot": "-", "base": "-", **values}


FULL = DemoPlan(
    name="full",
    base="smollm2",
    people="support",
    n_users=220,
    n_evaluation=104,
    max_tokens=28,
    first_visits=100,
    visits_per_look=104,
    most_visits=700,
    visits_per_mood=52,
    n_next=70,
    system_prompt=(
        "You answer customers. Say what to do about exactly what was asked, in two or three whole sentences, without symbols or links."
    ),
    reward=RewardConfig(
        **_given(
            lora=LoraConfig(rank=16, alpha=32.0),
            first_layer=20,
            read_layer=24,
            pooling="both",
            probe=True,
            epochs=1,
            batch_pairs=16,
            max_prompt_tokens=128,
            max_response_tokens=28,
            source_weights=(SourceConfig(source="thumb", weight=1.0),),
            optimizer=OptimizerConfig(learning_rate=1e-4, head_learning_rate=1e-5),
        )
    ),
    ppo=PPOConfig(
        **_given(
            reward="-",
            lora=LoraConfig(rank=16, alpha=32.0),
            first_layer=24,
            steps=5,
            sampling=SamplingConfig(
                prompts_per_step=12, samples_per_prompt=4, max_new_tokens=28, max_prompt_tokens=128, temperature=0.7
            ),
            kl=KLConfig(coef=0.1, budget=8.0),
            epochs=2,
            minibatches=2,
            critic="reward",
            lam=0.95,
            truncation="none",
            target_approx_kl=None,
            optimizer=OptimizerConfig(learning_rate=1.8e-3, head_learning_rate=3e-3, schedule="constant"),
        )
    ),
    demand=0.5,
    sft=SFTConfig(
        **_given(
            source="chosen",
            lora=LoraConfig(rank=16, alpha=32.0),
            first_layer=22,
            epochs=2,
            max_prompt_tokens=128,
            max_response_tokens=28,
        )
    ),
)
TINY = DemoPlan(
    name="tiny",
    base="tiny",
    people="bytes",
    n_users=180,
    n_evaluation=208,
    max_tokens=16,
    first_visits=70,
    visits_per_look=120,
    most_visits=800,
    visits_per_mood=52,
    n_next=70,
    system_prompt="aeiou",
    temperature=1.0,
    demand=0.55,
    concurrency=48,
    reward=RewardConfig(
        **_given(
            lora=LoraConfig(rank=8, alpha=16.0),
            first_layer=0,
            pooling="mean",
            epochs=4,
            batch_pairs=16,
            max_prompt_tokens=64,
            max_response_tokens=16,
            source_weights=(SourceConfig(source="thumb", weight=1.0),),
            optimizer=OptimizerConfig(learning_rate=3e-3, head_learning_rate=1e-2),
            compute=ComputeConfig(save_every=5),
        )
    ),
    ppo=PPOConfig(
        **_given(
            reward="-",
            lora=LoraConfig(rank=8, alpha=16.0),
            first_layer=0,
            steps=6,
            sampling=SamplingConfig(prompts_per_step=16, samples_per_prompt=4, max_new_tokens=16, max_prompt_tokens=64),
            kl=KLConfig(coef=0.5, budget=4.0),
            epochs=2,
            minibatches=2,
            lam=1.0,
            truncation="none",
            optimizer=OptimizerConfig(learning_rate=1e-3),
        )
    ),
    sft=SFTConfig(
        **_given(
            source="chosen",
            lora=LoraConfig(rank=8, alpha=16.0),
            first_layer=0,
            epochs=3,
            max_prompt_tokens=64,
            max_response_tokens=16,
            optimizer=OptimizerConfig(learning_rate=3e-3),
        )
    ),
)
