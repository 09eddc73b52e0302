"""`score`: what is measured of given answers."""

# ruff: noqa: RUF009  (`option` is dataclasses.field with its documentation, not a shared mutable default)
from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Literal

from plaudit.errors import ConfigError
from plaudit.learn.configs.fields import at_least, check, option
from plaudit.learn.configs.parts import ComputeConfig

Measure = Literal["score", "nll", "kl"]


@dataclass(frozen=True)
class ScoreConfig:
    """`score`: measure given responses. Reads JSONL rows {"id"?, "messages", "response" | "responses", "finished"?}, or pairs of chosen and
    rejected answers; writes scores.jsonl."""

    inputs: str = option(MISSING, "JSONL file of conversations with responses, or of chosen and rejected answers")
    base: str = option(MISSING, "prepared base model folder")
    measures: tuple[Measure, ...] = option(
        ("score",), "score: reward model; nll: base model, nats per token; kl: log p_policy - log p_base"
    )
    reward: str = option("", "reward Checkpoint, needed by `score`")
    policy: str = option("", "policy Checkpoint, needed by `kl`")
    bases: tuple[str, ...] = option(
        (),
        "prepared folders of other bases that the reward model or its members stand on; those beside `base` are found",
    )
    max_prompt_tokens: int = option(1024, "longer conversations lose their oldest tokens")
    max_response_tokens: int = option(512, "longer responses lose their end and count as unfinished")
    compute: ComputeConfig = option(ComputeConfig, "layout on this machine")

    def __post_init__(self) -> None:
        at_least(self, 1, "max_prompt_tokens", "max_response_tokens")
        check(self, "measures", len(self.measures) > 0, "at least one of score, nll, kl")
        for measure, name in (("score", "reward"), ("kl", "policy")):
            if (measure in self.measures) != bool(getattr(self, name)):
                raise ConfigError(
                    f"ScoreConfig.measures is {list(self.measures)} and {name} is {getattr(self, name)!r}: "
                    f"{measure!r} needs a {name} Checkpoint, and nothing else reads one."
                )
