"""Rules as terms of a reward: pure functions of one response, and `score_rule`, which applies the one that a term names.

Each says its range. None of them reads the conversation. Regular expressions are RE2's (through Arrow): their time is linear in the text,
so that no pattern can hang a run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import ConfigError
from plaudit.learn.answers import Answers
from plaudit.learn.configs import BlockListTerm, JsonTerm, LengthTerm, RegexTerm, RepetitionTerm, RequireTerm
from plaudit.stats.diversity import repetition_fraction

RuleTerm = RegexTerm | JsonTerm | LengthTerm | RepetitionTerm | BlockListTerm | RequireTerm


def score_rule(term: RuleTerm, answers: Answers) -> Tensor:
    """The rule's value for each response.   N -> (N,) fp32"""
    match term:
        case RegexTerm():
            values = matches(answers.texts, term.pattern, term.whole)
        case JsonTerm():
            values = [is_json(text, term.keys) for text in answers.texts]
        case LengthTerm():
            sizes = [_size(term, text, ids) for text, ids in zip(answers.texts, answers.ids, strict=True)]
            values = [outside(size, term.low, term.high, term.scale) for size in sizes]
        case RepetitionTerm():
            values = [repetition(ids, term.n) for ids in answers.ids]
        case BlockListTerm():
            values = [-float(sum(occur(text, term.phrases, term.whole_words))) for text in answers.texts]
        case RequireTerm():
            values = [sum(occur(text, term.phrases, term.whole_words)) / len(term.phrases) for text in answers.texts]
    return torch.tensor(values, dtype=torch.float32)


def check_rule(term: RuleTerm) -> None:
    """Raises ConfigError for a regular expression that RE2 does not read: what it leaves out cannot be matched in linear time."""
    if isinstance(term, RegexTerm):
        import pyarrow as pa

        try:
            matches([""], term.pattern, whole=False)
        except pa.ArrowInvalid as error:
            why = str(error).partition(": ")[2] or str(error)
            raise ConfigError(
                f"The pattern of the term {term.name!r} is {term.pattern!r}, which RE2 does not read ({why}); write it without "
                "lookahead, lookbehind and backreferences, or as a function of your own."
            ) from error


def matches(texts: Sequence[str], pattern: str, whole: bool) -> list[float]:
    """1 where the pattern is found (or matches the whole text), else 0."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.match_substring_regex(pa.array(texts, pa.string()), rf"\A(?:{pattern})\z" if whole else pattern)
    return [float(one) for one in found.to_pylist()]


def is_json(text: str, keys: Sequence[str]) -> float:
    """1 for a JSON value (with `keys`: an object that has them), else 0. NaN and Infinity, which Python would read, are not JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return float(not keys or (isinstance(value, dict) and set(keys) <= value.keys()))


def outside(size: int, low: int, high: int | None, scale: float) -> float:
    """0 within low..high, both included; else minus the units missing or too many, over `scale`: 0 or below."""
    surplus = max(0, size - high) if high is not None else 0
    return -(max(0, low - size) + surplus) / scale


def repetition(tokens: Sequence[Hashable], n: int) -> float:
    """Minus the share of n-grams that occurred earlier in the response: 0 to -1; 0 where it is shorter than n."""
    return -repetition_fraction(tokens, n)


def occur(text: str, phrases: Sequence[str], whole_words: bool) -> list[bool]:
    """Whether each phrase is in the text, whatever the case; with `whole_words` not inside a longer word."""
    folded = text.casefold()
    if not whole_words:
        return [phrase.casefold() in folded for phrase in phrases]
    return [re.search(rf"(?<!\w){re.escape(phrase.casefold())}(?!\w)", folded) is not None for phrase in phrases]


def _size(term: LengthTerm, text: str, ids: Sequence[int]) -> int:
    match term.unit:
        case "tokens":
            return len(ids)
        case "words":
            return len(text.split())
        case "characters":
            return len(text)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
