"""Preferences on their way to a reward model: which rows are read, and how pairs of one prompt share a row and their answers.

Shapes: n pairs, G groups (prompts), N responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from plaudit.artifacts import Message, PreferenceRow, ThumbRow, VoteRow, canonical, open_snapshot
from plaudit.errors import BadInput
from plaudit.learn import pairs_file
from plaudit.learn.batches import Batcher
from plaudit.learn.configs import RewardConfig
from plaudit.learn.nets import Decoder
from plaudit.learn.pairs_file import Pair, Rejected
from plaudit.learn.tokens import ChatTokenizer, Rollout, from_text

THUMB = "thumb"  # as a source
Answer = tuple[str, bool]  # text, and whether it ended by itself


@dataclass(frozen=True)
class Rows:
    """What is trained on and what is held out, and what was left out of both."""

    train: list[PreferenceRow]
    held_out: list[PreferenceRow]
    rejected: list[Rejected]
    n_other_criteria: int
    votes: list[VoteRow] = field(default_factory=list)  # single votes behind what is held out
    thumbs: list[ThumbRow] = field(default_factory=list)  # of the training split, where they have a weight
    held_out_thumbs: list[ThumbRow] = field(default_factory=list)  # whether or not any are trained on
    groups: dict[str, dict[str, str]] = field(default_factory=dict)  # row id -> name of a slicing -> the row's group


def read_rows(config: RewardConfig) -> Rows:
    """Rows of the criteria that the config reads. Raises BadInput where nothing is left to train on, or every label is a tie."""
    wanted = {head.criterion for head in config.heads} or ({config.criterion} if config.criterion else set())
    rejected: list[Rejected] = []
    votes: list[VoteRow] = []
    thumbs: list[ThumbRow] = []
    shown_thumbs: list[ThumbRow] = []
    groups: dict[str, dict[str, str]] = {}
    train: Sequence[PreferenceRow]
    held_out: Sequence[PreferenceRow]
    if config.snapshot:
        snapshot = open_snapshot(Path(config.snapshot))
        groups = {
            id: {f"group:{name}": value for name, value in said.items()} for id, said in snapshot.groups().items()
        }
        margins = snapshot.margins()
        rows = [
            as_told(row, groups.get(row.preference_id), margins.get(row.preference_id))
            for row in snapshot.preferences()
        ]
        votes = snapshot.votes()
        every = snapshot.thumbs()
        thumbs = [one for one in every if one.split == "train"] if thumb_weight(config) else []
        shown_thumbs = [one for one in every if one.split in ("valid", "test")]
        train = [row for row in rows if row.split == "train"]
        held_out = [row for row in rows if row.split in ("valid", "test")]
    else:
        train, held_out, rejected = pairs_file.read_split(
            config.preferences, config.valid_preferences, config.valid_fraction
        )
    counts = {one.source: one.weight for one in config.source_weights}
    train = [replace(row, weight=row.weight * counts.get(row.source, 1.0)) for row in train]
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
            f"All {len(kept)} training pairs of {place} have weight 0 (their own, times that of their source); set use_weights to false, "
            "or weigh them."
        )
    n_other = len(train) + len(held_out) - len(kept) - len(kept_out)
    shown = {row.preference_id for row in kept_out}
    return Rows(
        kept,
        kept_out,
        rejected,
        n_other,
        [vote for vote in votes if vote.preference_id in shown],
        thumbs,
        shown_thumbs,
        groups,
    )


def as_told(row: PreferenceRow, groups: Mapping[str, str] | None, margin: float | None) -> PreferenceRow:
    """A row with the slices and the margin that its Snapshot says of it, as rows of files have them."""
    if groups is None and margin is None:
        return row
    return Pair(**vars(row), slices=groups or {}, margin=margin or 0.0)


def thumb_weight(config: RewardConfig) -> float:
    """What a user's thumb counts, in pairs. Unlike other sources it counts nothing where it is not named: who leaves thumbs chooses itself."""
    return next((one.weight for one in config.source_weights if one.source == THUMB), 0.0)


@dataclass(frozen=True)
class Questions:
    """Encoded pairs: one group for each prompt, its distinct answers once."""

    batcher: Batcher
    pairs: list[list[int]]  # pairs of each group
    chosen: Tensor  # (n,) response index
    rejected: Tensor  # (n,)
    cut: dict[str, int]  # prompts and answers that were over their limit
    thumbs: list[list[int]]  # thumbs of each group
    liked: Tensor  # (t,) response index of each thumb

    @property
    def data(self) -> Rollout:
        return self.batcher.data


def encode(
    tokenizer: ChatTokenizer,
    rows: Sequence[PreferenceRow],
    config: RewardConfig,
    decoder: Decoder,
    tell: Callable[[int, int], None] | None = None,
    thumbs: Sequence[ThumbRow] = (),
) -> Questions:
    """Group pairs by prompt, at most `batch_pairs` to a group. `tell` hears how far the trunk is.

    A thumb joins a group of its prompt, the one that asks about the same answer where there is one; then that answer runs once for both.

    Raises BadInput naming a row that cannot be read by this base.
    """
    by_prompt: dict[bytes, list[list[int]]] = {}
    for i, row in enumerate(rows):
        chunks = by_prompt.setdefault(canonical(list(row.messages)), [[]])
        if len(chunks[-1]) == config.batch_pairs:
            chunks.append([])
        chunks[-1].append(i)
    groups = sorted(chunk for chunks in by_prompt.values() for chunk in chunks)
    sides = [((row.chosen, row.chosen_finished), (row.rejected, row.rejected_finished)) for row in rows]
    prompts = [rows[group[0]].messages for group in groups]
    answers: list[dict[Answer, int]] = [
        {answer: at for at, answer in enumerate(dict.fromkeys(one for i in group for one in sides[i]))}
        for group in groups
    ]
    homes = _place_thumbs(thumbs, prompts, answers)
    groups += [[] for _ in range(len(prompts) - len(groups))]
    starts = [0, *accumulate(map(len, answers))]
    of_group = {i: g for g, group in enumerate(groups) for i in group}
    chosen, rejected = (
        [starts[of_group[i]] + answers[of_group[i]][sides[i][side]] for i in range(len(rows))] for side in (0, 1)
    )
    liked = [starts[g] + answers[g][_answer(thumb)] for g, thumb in zip(homes, thumbs, strict=True)]
    try:
        data = from_text(
            tokenizer,
            prompts,
            [[text for text, _ in places] for places in answers],
            [[end for _, end in places] for places in answers],
            max_prompt_tokens=config.max_prompt_tokens + 1,  # one more than is kept tells a prompt that is cut
            max_response_tokens=config.max_response_tokens,
        )
    except BadInput as error:
        raise _blame(tokenizer, rows, thumbs, error) from error
    cut = {
        "prompts": sum(len(ids) > config.max_prompt_tokens for ids in data.prompt_ids),
        "answers": sum(
            end and not kept
            for end, kept in zip((end for places in answers for _, end in places), data.finished, strict=True)
        ),
    }
    data = replace(data, prompt_ids=[ids[-config.max_prompt_tokens :] for ids in data.prompt_ids])
    depth = decoder.trunk_depth(config.first_layer)
    batcher = Batcher(decoder, data, depth, config.compute.micro_tokens, tell=tell)
    thumbs_of: list[list[int]] = [[] for _ in groups]
    for t, g in enumerate(homes):
        thumbs_of[g].append(t)
    return Questions(
        batcher,
        groups,
        torch.tensor(chosen, dtype=torch.long),
        torch.tensor(rejected, dtype=torch.long),
        cut,
        thumbs_of,
        torch.tensor(liked, dtype=torch.long),
    )


def _answer(thumb: ThumbRow) -> Answer:
    return thumb.response, thumb.response_finished


def _place_thumbs(
    thumbs: Sequence[ThumbRow], prompts: list[tuple[Message, ...]], answers: list[dict[Answer, int]]
) -> list[int]:
    """The group of each thumb; answers and groups that are missing are added."""
    by_prompt: dict[bytes, list[int]] = {}
    for g, messages in enumerate(prompts):
        by_prompt.setdefault(canonical(list(messages)), []).append(g)
    homes = []
    for thumb in thumbs:
        known = by_prompt.setdefault(canonical(list(thumb.messages)), [])
        if not known:
            known.append(len(prompts))
            prompts.append(thumb.messages)
            answers.append({})
        home = next((g for g in known if _answer(thumb) in answers[g]), known[-1])
        answers[home].setdefault(_answer(thumb), len(answers[home]))
        homes.append(home)
    return homes


def _blame(
    tokenizer: ChatTokenizer, rows: Sequence[PreferenceRow], thumbs: Sequence[ThumbRow], error: BadInput
) -> BadInput:
    """The error with the row that it is about."""
    for row in rows:
        try:
            from_text(
                tokenizer, [row.messages], [(row.chosen, row.rejected)], [(row.chosen_finished, row.rejected_finished)]
            )
        except BadInput as why:
            return BadInput(f"The Preference {row.preference_id} cannot be read: {why.message}")
    for thumb in thumbs:
        try:
            from_text(tokenizer, [thumb.messages], [(thumb.response,)], [(thumb.response_finished,)])
        except BadInput as why:
            return BadInput(f"The thumb {thumb.thumb_id} cannot be read: {why.message}")
    return error


def criteria_of(config: RewardConfig, rows: Sequence[PreferenceRow]) -> list[int]:
    """Which head reads each row; 0 where there is one for all."""
    place = {head.criterion: i for i, head in enumerate(config.heads)}
    return [place.get(row.criterion, 0) for row in rows]
