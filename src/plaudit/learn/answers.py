"""What a term that reads text is given, and the check on the scores that a stranger's code gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import TrainingStopped
from plaudit.learn.tokens import ChatTokenizer, Rollout

Messages = Sequence[Mapping[str, Any]]
SHOWN = 200  # characters of a text in an error


@dataclass(frozen=True)
class Answers:
    """N responses as text, each with the conversation it answers."""

    messages: list[list[dict[str, Any]]]  # N
    texts: list[str]  # N, without the stop token
    ids: list[list[int]]  # N, as sampled, stop token included
    meta: list[
        dict[str, Any]
    ]  # N: prompt (its number in the rollout), finished (False: cut off), n_tokens (stop token included)

    def part(self, start: int, size: int) -> Answers:
        """`size` of them from `start` on."""
        here = slice(start, start + size)
        return Answers(self.messages[here], self.texts[here], self.ids[here], self.meta[here])


def read(rollout: Rollout, messages: Sequence[Messages], tokenizer: ChatTokenizer) -> Answers:
    """Decode a rollout; messages[g] is the conversation that prompt g was rendered from. All lists are copies: a scorer may do as it likes."""
    return Answers(
        messages=[[dict(message) for message in messages[group]] for group in rollout.group],
        texts=[tokenizer.decode(ids) for ids in rollout.response_ids],
        ids=[list(ids) for ids in rollout.response_ids],
        meta=[
            {"prompt": group, "finished": finished, "n_tokens": len(ids)}
            for group, finished, ids in zip(rollout.group, rollout.finished, rollout.response_ids, strict=True)
        ],
    )


def checked(returned: Any, answers: Answers, who: str) -> Tensor:
    """Scores as a tensor.   list, tuple, array or tensor of N finite numbers -> (N,) fp32

    Raises TrainingStopped, with the sample that it happened on, where they are anything else.
    """
    n = len(answers.texts)
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, (list, tuple)):
        raise TrainingStopped(
            f"{who} gave back a {type(returned).__name__}, {_short(repr(returned))}; it must give a list of {n} numbers."
        )
    if len(values) != n:
        raise TrainingStopped(
            f"{who} gave {len(values)} scores for {n} responses; it must give one for each, in their order."
        )
    scores = []
    for index, value in enumerate(values):
        number = value.item() if hasattr(value, "item") else value
        if not isinstance(number, Real):
            raise TrainingStopped(
                f"{who} gave {_short(repr(number))}, which is no number, for {shown(answers, index)}."
            )
        scores.append(float(number))
    found = torch.tensor(scores, dtype=torch.float32)
    bad = (~found.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise TrainingStopped(f"{who} gave {scores[bad[0]]} for {shown(answers, bad[0])}.")
    return found


def shown(answers: Answers, index: int) -> str:
    """One sample for a person: its number, the last message, the response."""
    last = answers.messages[index][-1].get("content", "") if answers.messages[index] else ""
    return f"response {index}, {_short(repr(answers.texts[index]))}, to {_short(repr(last))}"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
