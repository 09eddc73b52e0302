"""What a finished reward model says of texts that nobody compared: traps, answers without one of their sentences, and answers that users
left a thumb on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from plaudit.artifacts import ThumbRow
from plaudit.learn import validation
from plaudit.learn.answers import Messages
from plaudit.learn.configs import RewardConfig
from plaudit.learn.questions import Rows
from plaudit.learn.readers import Texts
from plaudit.learn.rewards import RewardModel, score_responses
from plaudit.learn.tokens import ChatTokenizer, fitted, from_text, pack, run_trunk
from plaudit.learn.validation import Floats, Score
from plaudit.stats.auc import auc


def look_closer(config: RewardConfig, tokenizer: ChatTokenizer, model: RewardModel, rows: Rows) -> dict[str, Any]:
    """Trap texts and single sentences, on held-out rows where there are any; held-out thumbs, where a Snapshot has some."""
    assert config.validation is not None
    source = rows.held_out or rows.train
    score = scorer(config, tokenizer, model)
    out: dict[str, Any] = {}
    prompts = validation.pick(source, config.validation.trap_prompts)
    if prompts:
        names = [name for name in validation.TRAPS if name != "empty" or tokenizer.eos_id is not None]
        out["traps"] = validation.traps(score, prompts, names)
    if config.validation.ablations:
        out["ablations"] = validation.ablate(score, source, config.validation.ablations)
    if config.validation.thumbs:
        found = thumbs(config, tokenizer, model, rows.held_out_thumbs, rows.groups)
        out |= {"thumbs": found} if found else {}
    return out


def thumbs(
    config: RewardConfig,
    tokenizer: ChatTokenizer,
    model: RewardModel,
    rows: Sequence[ThumbRow],
    groups: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any] | None:
    """Do answers that users liked score higher than those they disliked: {auc: {mean, low, high, n}, n_up, n_down, n_left_out, by: slicing ->
    slice -> the same}; n counts prompt families. None where fewer than two families have a thumb up, or down.

    Of more than `validation.thumbs` rows some are drawn by a hash. Slicings: source, the answer's length (thirds of its characters), and `groups`
    (thumb id -> name -> value).
    """
    assert config.validation is not None
    some = sorted(rows, key=lambda row: hashlib.sha256(row.thumb_id.encode()).digest())[: config.validation.thumbs]
    if _auc([0.0] * len(some), some) is None:
        return None
    parts = score_texts(
        config,
        tokenizer,
        model,
        [row.messages for row in some],
        [[row.response] for row in some],
        [[row.response_finished] for row in some],
    )
    scores = [float(part[0]) for part in parts]
    whole = _auc(scores, some)
    assert whole is not None
    sizes = [len(row.response) for row in some]
    cuts = np.quantile(sizes, [1 / 3, 2 / 3])
    slicings = {
        "source": [row.source for row in some],
        "length": [("short", "middle", "long")[int(np.searchsorted(cuts, size, side="left"))] for size in sizes],
    }
    declared = [(groups or {}).get(row.thumb_id, {}) for row in some]
    slicings |= {
        name: [mine.get(name, "") for mine in declared] for name in sorted({n for mine in declared for n in mine})
    }
    by: dict[str, dict[str, Any]] = {}
    for name, values in slicings.items():
        for value in sorted(set(values) - {""}):
            inside = [i for i, mine in enumerate(values) if mine == value]
            found = _auc([scores[i] for i in inside], [some[i] for i in inside])
            if found is not None and len(inside) < len(some):
                by.setdefault(name, {})[value] = found
    return {**whole, "n_left_out": len(rows) - len(some), "by": by}


def _auc(scores: Sequence[float], rows: Sequence[ThumbRow]) -> dict[str, Any] | None:
    """None where there are too few of one kind for an interval."""
    families = {up: {row.family for row in rows if row.up == up} for up in (True, False)}
    if min(map(len, families.values())) < 2:
        return None
    found = auc(scores, [row.up for row in rows], [row.family for row in rows])
    n_up = sum(row.up for row in rows)
    return {"auc": found.to_dict(), "n_up": n_up, "n_down": len(rows) - n_up}


def scorer(config: RewardConfig, tokenizer: ChatTokenizer, model: RewardModel) -> Score:
    """Prompts and answers to each, which ended by themselves -> scores in units of the reference's spread."""

    def score(prompts: Sequence[Messages], answers: Sequence[Sequence[str]]) -> list[Floats]:
        return score_texts(config, tokenizer, model, prompts, answers, [[True] * len(texts) for texts in answers])

    return score


def score_texts(
    config: RewardConfig,
    tokenizer: ChatTokenizer,
    model: RewardModel,
    prompts: Sequence[Messages],
    answers: Sequence[Sequence[str]],
    finished: Sequence[Sequence[bool]],
) -> list[Floats]:
    """Scores in units of the reference's spread, an array for each prompt; limits are those that the model was trained with."""
    data = from_text(
        tokenizer,
        prompts,
        # An empty message (an empty prompt's echo) would have no token where there is no EOS.
        [[text or ("" if tokenizer.eos_id is not None else " ") for text in texts] for texts in answers],
        finished,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    data = fitted(data, model.decoder.config.max_positions)  # a padded text is longer than what was trained on
    depth = model.decoder.trunk_depth(model.first_layer)
    trunk = run_trunk(model.decoder, data, depth, config.compute.micro_tokens) if depth else None
    texts = Texts(prompts, answers, finished)
    found = score_responses(model, pack(data, None, config.compute.micro_tokens), trunk, texts) / model.sd
    parts = torch.split(found, [len(row) for row in answers])
    return [np.asarray(part, dtype=np.float64) for part in parts]
