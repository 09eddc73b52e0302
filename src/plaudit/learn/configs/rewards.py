"""What a policy learns to please: one reward, or terms that are added up."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, dataclass
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from plaudit.errors import ConfigError
from plaudit.learn.configs.fields import at_least, check, option

KIND = "which of the terms it is"
NEWEST_CHECKPOINT = "newest"  # in a config of the loop: the reward Checkpoint that this turn, or this home, made last


@dataclass(frozen=True, kw_only=True)
class RewardTerm:
    """What every term of a composed reward has. The reward is the sum over terms of weight * clip(normalise(value))."""

    kind: str = option(MISSING, KIND)
    name: str = option(MISSING, "small letters, digits, underscores; its metrics are term_<name> and term_<name>_sd")
    weight: float = option(1.0, "factor in the sum; below 0 turns the term round, 0 only measures it")
    clip: float | None = option(None, "the value, normalised where asked, is clipped to +- this; null: not")
    normalise: Literal["none", "reference"] = option(
        "none", "reference: minus the mean and over the sd of the run's first samples, which are the reference's own"
    )

    def __post_init__(self) -> None:
        check(self, "name", re.fullmatch(r"[a-z][a-z0-9_]*", self.name) is not None, "like polite_2")
        check(self, "weight", math.isfinite(self.weight), "a finite number")
        check(self, "clip", self.clip is None or self.clip > 0, "above 0, or null")


@dataclass(frozen=True, kw_only=True)
class ModelTerm(RewardTerm):
    """One reward model, or an ensemble; each member's score is in units of its own reference spread."""

    kind: Literal["model"] = option("model", KIND)
    checkpoints: tuple[str, ...] = option(
        MISSING,
        "reward Checkpoint folders, on this base or another; all their members together; `newest` in a turn's config: the one it has just trained",
    )
    combine: Literal["mean", "minimum", "mean_minus_sd"] = option(
        "mean", "one score from the members' (Coste et al. 2023); the others than mean need two members"
    )
    sd_coef: float = option(1.0, "mean_minus_sd subtracts this many sd over the members")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "checkpoints", len(self.checkpoints) > 0, "at least one folder")
        check(self, "checkpoints", len(set(self.checkpoints)) == len(self.checkpoints), "each folder once")
        check(self, "sd_coef", self.sd_coef > 0, "above 0")
        if self.combine != "mean_minus_sd" and self.sd_coef != 1.0:
            raise ConfigError(
                f"ModelTerm.sd_coef is {self.sd_coef}, but combine is {self.combine!r}; only mean_minus_sd reads it."
            )


@dataclass(frozen=True, kw_only=True)
class RegexTerm(RewardTerm):
    """1 where the pattern is found in the response, else 0."""

    kind: Literal["regex"] = option("regex", KIND)
    pattern: str = option(
        MISSING, "regular expression of RE2, whose time is linear in the text; flags go inside, such as (?i)"
    )
    whole: bool = option(False, "the whole response must match")


@dataclass(frozen=True, kw_only=True)
class JsonTerm(RewardTerm):
    """1 where the response is JSON (RFC 8259), white space around it aside, else 0."""

    kind: Literal["json"] = option("json", KIND)
    keys: tuple[str, ...] = option((), "it must be an object that has these keys; empty: any JSON value")


@dataclass(frozen=True, kw_only=True)
class LengthTerm(RewardTerm):
    """0 inside the band, minus 1 for each `scale` units outside it."""

    kind: Literal["length"] = option("length", KIND)
    low: int = option(0, "shortest response that costs nothing")
    high: int | None = option(None, "longest response that costs nothing; null: no upper end")
    unit: Literal["tokens", "words", "characters"] = option("tokens", "what is counted; tokens include the stop token")
    scale: float = option(10.0, "units outside the band that cost 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "low")
        check(self, "high", self.high is None or self.high >= max(self.low, 1), "at least low and 1, or null")
        check(self, "scale", self.scale > 0, "above 0")
        if self.low == 0 and self.high is None:
            raise ConfigError("LengthTerm has neither low nor high, so it would never act; give one of them.")


@dataclass(frozen=True, kw_only=True)
class RepetitionTerm(RewardTerm):
    """Minus the share of the response's token n-grams that occurred earlier in it: 0 to -1."""

    kind: Literal["repetition"] = option("repetition", KIND)
    n: int = option(4, "tokens of an n-gram (rep-4, Welleck et al. 2020)")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "n")


@dataclass(frozen=True, kw_only=True)
class PhrasesTerm(RewardTerm):
    """What block_list and require share: phrases, found without regard to case."""

    phrases: tuple[str, ...] = option(MISSING, "texts to look for; upper and lower case are the same")
    whole_words: bool = option(True, "a phrase inside a longer word does not count; false for scripts without spaces")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "phrases", len(self.phrases) > 0 and all(map(str.strip, self.phrases)), "texts, none empty")


@dataclass(frozen=True, kw_only=True)
class BlockListTerm(PhrasesTerm):
    """Minus the number of listed phrases that occur."""

    kind: Literal["block_list"] = option("block_list", KIND)


@dataclass(frozen=True, kw_only=True)
class RequireTerm(PhrasesTerm):
    """Share of the listed phrases that occur."""

    kind: Literal["require"] = option("require", KIND)


@dataclass(frozen=True, kw_only=True)
class FunctionTerm(RewardTerm):
    """Your own function f(messages, responses, token_ids, meta) -> scores."""

    kind: Literal["function"] = option("function", KIND)
    function: str = option(MISSING, "package.module:function, found from the working directory and PYTHONPATH")
    timeout_s: float = option(60.0, "seconds for one call, which scores a whole rollout; over it the run stops")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "function", is_function_name(self.function), "like package.module:function")
        check(self, "timeout_s", self.timeout_s > 0, "above 0")


@dataclass(frozen=True, kw_only=True)
class HttpTerm(RewardTerm):
    """A scorer over HTTP: POST {"messages", "responses", "meta"} -> {"scores": [...]}."""

    kind: Literal["http"] = option("http", KIND)
    url: str = option(MISSING, "address of the scorer, http or https")
    token_variable: str = option("", "environment variable that holds a bearer token; empty sends none")
    batch: int = option(64, "responses of one request")
    timeout_s: float = option(30.0, "seconds for one whole answer")
    attempts: int = option(5, "failures in a row that open the circuit breaker; each pause is twice the one before")
    backoff_s: float = option(0.5, "pause after the first failure; a Retry-After that asks for more is kept to")
    pause_s: float = option(
        60.0, "the breaker's pause, and the longest of any; then one last attempt, or the run stops"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = urlsplit(self.url)
        check(self, "url", parts.scheme in ("http", "https") and bool(parts.hostname), "like https://host/path")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                "HttpTerm.url holds a name or a password; put a bearer token in a token_variable instead."
            )
        at_least(self, 1, "batch", "attempts")
        for name in ("timeout_s", "backoff_s", "pause_s"):
            check(self, name, getattr(self, name) > 0, "above 0")


Term = (
    ModelTerm
    | RegexTerm
    | JsonTerm
    | LengthTerm
    | RepetitionTerm
    | BlockListTerm
    | RequireTerm
    | FunctionTerm
    | HttpTerm
)
TERMS: dict[str, type[Term]] = {kind.kind: kind for kind in get_args(Term)}
Reward = str | tuple[Term, ...]
REWARD_DOC = (
    "what the policy learns to please: a reward Checkpoint folder, your own package.module:function, or a list of terms"
)


def is_function_name(text: str) -> bool:
    """Whether a text names an own function, `package.module:function`, rather than a folder."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text) is not None


def reward_terms(reward: Reward) -> tuple[Term, ...]:
    """The terms of a `reward` field: a text is one term of weight 1, a reward model or an own function."""
    if not isinstance(reward, str):
        return reward
    if is_function_name(reward):
        return (FunctionTerm(name="function", function=reward),)
    return (ModelTerm(name="model", checkpoints=(reward,)),)


def with_newest(reward: Any, folder: str) -> Any:
    """A config's `reward`, as JSON, with `folder` in the place of every `newest`; as it is where none asks for it."""
    if isinstance(reward, str):
        return folder if reward == NEWEST_CHECKPOINT else reward
    if not isinstance(reward, list | tuple):
        return reward  # building the config says what is wrong with it
    return [_newest_in_term(term, folder) for term in reward]


def _newest_in_term(term: Any, folder: str) -> Any:
    folders = term.get("checkpoints") if isinstance(term, dict) else None
    if not isinstance(folders, list | tuple):
        return term
    return {**term, "checkpoints": [folder if one == NEWEST_CHECKPOINT else one for one in folders]}


def function_names(reward: Any) -> list[str]:
    """Own functions (`package.module:function`) that a config's `reward`, as JSON, names; sorted."""
    if isinstance(reward, str):
        return [reward] if is_function_name(reward) else []
    terms = [term for term in reward if isinstance(term, dict)] if isinstance(reward, list | tuple) else []
    found = {str(term.get("function", "")) for term in terms if term.get("kind") == "function"}
    return sorted(name for name in found if is_function_name(name))


def check_reward(config: Any) -> None:
    """Raises ConfigError where a list of terms is empty, repeats a name, or weighs nothing."""
    if isinstance(config.reward, str):
        return
    where, names = f"{type(config).__name__}.reward", [term.name for term in config.reward]
    if not names:
        raise ConfigError(f"{where} is an empty list; give a Checkpoint folder or at least one term.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{where} has two terms named {twice[0]!r}; each metric needs a name of its own.")
    if all(term.weight == 0 for term in config.reward):
        raise ConfigError(f"{where} has weight 0 in all its terms, so there is nothing to learn; give one a weight.")
