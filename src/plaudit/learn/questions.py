"""Preferences on their way to a reward model: which rows are read, and how pairs of one prompt share a row and their answers.

Shapes: n pairs, G groups (prompts), N responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from plaudit.artifacts import PreferenceRow, canonical, open_snapshot
from plaudit.errors import BadInput
from plaudit.learn import pairs_file
from plaudit.learn.batches import Batcher
from plaudit.learn.configs import RewardConfig
from plaudit.learn.nets import Decoder
from plaudit.learn.pairs_file import Rejected
from plaudit.learn.tokens import ChatTokenizer, Rollout, from_text


@dataclass(frozen=True)
class Rows:
    """What is trained on and what is held out, and what was left out of both."""

    train: list[PreferenceRow]
    held_out: list[PreferenceRow]
    rejected: list[Rejected]
    n_other_criteria: int


def read_rows(config: RewardConfig) -> Rows:
    """Rows of the criteria that the config reads. Raises BadInput where nothing is left to train on, or every label is a tie."""
    wanted = {head.criterion for head in config.heads} or ({config.criterion} if config.criterion else set())
    rejected: list[Rejected] = []
    train: Sequence[PreferenceRow]
    held_out: Sequence[PreferenceRow]
    if config.snapshot:
        rows = open_snapshot(Path(config.snapshot)).preferences()
        train = [row for row in rows if row.split == "train"]
        held_out = [row for row in rows if row.split in ("valid", "test")]
    else:
        train, held_out, rejected = pairs_file.read_split(
            config.preferences, config.valid_preferences, config.valid_fraction
        )
    kept, kept_out = ([row for row in rows if not wanted or row.criterion in wanted] for rows in (train, held_out))
    place = config.snapshot or config.preferences
    for criterion in sorted(wanted or {""}):
        if not any(not criterion or row.criterion == criterion for row in kept):
            raise BadInput(
                f"{place} has no training Preferences"
                + (f" for the criterion {criterion!r}" if criterion else "")
                + "; collect annotations and freeze a new Snapshot, or give a file of pairs."
            )
    if all(row.probability == 0.5 for row in kept):
        raise BadInput(
            f"All {len(kept)} training pairs of {place} are ties, which teach nothing; collect more annotations."
        )
    if config.use_weights and not any(row.weight for row in kept):
        raise BadInput(
            f"All {len(kept)} training pairs of {place} have weight 0; set use_weights to false, or weigh them."
        )
    n_other = len(train) + len(held_out) - len(kept) - len(kept_out)
    return Rows(kept, kept_out, rejected, n_other)


@dataclass(frozen=True)
class Questions:
    """Encoded pairs: one group for each prompt, its distinct answers once."""

    batcher: Batcher
    pairs: list[list[int]]  # pairs of each group
    chosen: Tensor  # (n,) response index
    rejected: Tensor  # (n,)
    cut: dict[str, int]  # prompts and answers that were over their limit

    @property
    def data(self) -> Rollout:
        return self.batcher.data


def encode(
    tokenizer: ChatTokenizer, rows: Sequence[PreferenceRow], config: RewardConfig, decoder: Decoder
) -> Questions:
    """Group pairs by prompt, at most `batch_pairs` to a group. Raises BadInput naming a row that cannot be read by this base."""
    by_prompt: dict[bytes, list[list[int]]] = {}
    for i, row in enumerate(rows):
        chunks = by_prompt.setdefault(canonical(list(row.messages)), [[]])
        if len(chunks[-1]) == config.batch_pairs:
            chunks.append([])
        chunks[-1].append(i)
    groups = sorted(chunk for chunks in by_prompt.values() for chunk in chunks)
    answers: list[dict[tuple[str, bool], int]] = []
    chosen, rejected, at = [0] * len(rows), [0] * len(rows), 0
    for group in groups:
        places: dict[tuple[str, bool], int] = {}
        for i in group:
            row = rows[i]
            chosen[i] = at + places.setdefault((row.chosen, row.chosen_finished), len(places))
            rejected[i] = at + places.setdefault((row.rejected, row.rejected_finished), len(places))
        answers.append(places)
        at += len(places)
    try:
        data = from_text(
            tokenizer,
            [rows[group[0]].messages for group in groups],
            [[text for text, _ in places] for places in answers],
            [[end for _, end in places] for places in answers],
            max_prompt_tokens=config.max_prompt_tokens + 1,  # one more than is kept tells a prompt that is cut
            max_response_tokens=config.max_response_tokens,
        )
    except BadInput as error:
        raise _blame(tokenizer, rows, error) from error
    cut = {
        "prompts": sum(len(ids) > config.max_prompt_tokens for ids in data.prompt_ids),
        "answers": sum(
            end and not kept
            for end, kept in zip((end for places in answers for _, end in places), data.finished, strict=True)
        ),
    }
    data = replace(data, prompt_ids=[ids[-config.max_prompt_tokens :] for ids in data.prompt_ids])
    batcher = Batcher(decoder, data, decoder.trunk_depth(config.first_layer), config.compute.micro_tokens)
    return Questions(batcher, groups, torch.tensor(chosen), torch.tensor(rejected), cut)


def _blame(tokenizer: ChatTokenizer, rows: Sequence[PreferenceRow], error: BadInput) -> BadInput:
    """The error with the row that it is about."""
    for row in rows:
        try:
            from_text(
                tokenizer, [row.messages], [(row.chosen, row.rejected)], [(row.chosen_finished, row.rejected_finished)]
            )
        except BadInput as why:
            return BadInput(f"The Preference {row.preference_id} cannot be read: {why.message}")
    return error


def criteria_of(config: RewardConfig, rows: Sequence[PreferenceRow]) -> list[int]:
    """Which head reads each row; 0 where there is one for all."""
    place = {head.criterion: i for i, head in enumerate(config.heads)}
    return [place.get(row.criterion, 0) for row in rows]
