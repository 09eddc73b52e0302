"""How annotators conduct themselves, and where most of them are wrong: the signs of `stats.conduct` and audits by slice, from the store.

Nothing is done about what is found here: the lead looks, and pauses. Gold alone pauses by itself (`quality.judge`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plaudit.domain import (
    OVERALL,
    Comparison,
    Interaction,
    Json,
    Purpose,
    Response,
    Review,
    ReviewKind,
    Standing,
    Verdict,
)
from plaudit.stats import audits, conduct
from plaudit.stats.aggregate import Votes
from plaudit.stats.conduct import Kind
from plaudit.store import annotation as queue
from plaudit.store.annotation import Vote
from plaudit.store.database import Store

BATCH = 500  # ids in one question to the store
QUOTED = 4  # words in a row that a note takes from an answer are a quotation
TIE = 2


@dataclass(frozen=True)
class Suspicion:
    """One sign against one annotator, in words."""

    annotator_id: str
    name: str
    kind: Kind
    why: str
    figure: float
    n: int
    other_id: str | None
    paused: bool


def suspicions(store: Store, project_id: str) -> list[Suspicion]:
    """Every sign in the answers to training questions and gold, by kind. Reads all of them: it is for a command or a worker, not for a page."""
    with store.read() as tx:
        votes = queue.votes(tx, project_id, Purpose.TRAINING) + queue.gold_votes(tx, project_id)
        gold = {one.id: one.gold_choice for one in tx.find(Comparison, project_id=project_id, purpose=Purpose.GOLD)}
        paused = {one.person_id for one in tx.find(Standing, project_id=project_id) if one.paused_at is not None}
        names = queue.names(tx, {vote.annotation.annotator_id for vote in votes})
        cast = _cast(votes)
        wanted = sorted({id for vote in cast for id in vote.response_ids})
        texts: dict[str, str] = {}
        for at in range(0, len(wanted), BATCH):
            texts |= {one.id: one.text for one in tx.find(Response, id=wanted[at : at + BATCH])}
    if not cast:
        return []
    workers = sorted({vote.annotation.annotator_id for vote in cast})
    found = conduct.signs(_ballots(cast, workers, gold, texts))
    return [
        Suspicion(
            annotator_id=workers[sign.worker],
            name=names.get(workers[sign.worker], workers[sign.worker]),
            kind=sign.kind,
            why=_why(sign, "" if sign.other is None else names.get(workers[sign.other], workers[sign.other])),
            figure=sign.figure,
            n=sign.n,
            other_id=None if sign.other is None else workers[sign.other],
            paused=workers[sign.worker] in paused,
        )
        for sign in found
    ]


def _cast(votes: Sequence[Vote]) -> list[Vote]:
    """Those that prefer or tie, overall and of two, in order of time."""
    said = (Verdict.PREFER, Verdict.TIE)
    kept = [
        vote
        for vote in votes
        if vote.annotation.criterion == OVERALL and vote.annotation.verdict in said and len(vote.response_ids) == 2
    ]
    return sorted(kept, key=lambda vote: (vote.annotation.created_at, vote.annotation.id))


def _ballots(
    cast: Sequence[Vote], workers: Sequence[str], gold: dict[str, str | None], texts: dict[str, str]
) -> conduct.Ballots:
    items = {id: code for code, id in enumerate(dict.fromkeys(vote.comparison_id for vote in cast))}
    codes = {id: code for code, id in enumerate(workers)}
    # A hash decides which response is side 0, so that no side is right more often by habit.
    sides = {
        vote.comparison_id: sorted(vote.response_ids, key=lambda id: hashlib.sha256(id.encode()).digest())
        for vote in cast
    }
    label, first = [], []
    for vote in cast:
        mine = sides[vote.comparison_id]
        label.append(TIE if vote.annotation.choice is None else mine.index(vote.annotation.choice))
        first.append(mine.index(vote.annotation.order[0]))
    return conduct.Ballots(
        votes=Votes(
            np.array([items[vote.comparison_id] for vote in cast]),
            np.array([codes[vote.annotation.annotator_id] for vote in cast]),
            np.array(label),
            3 if TIE in label else 2,
            np.array(first),
        ),
        seconds=np.array([vote.annotation.seconds for vote in cast]),
        words=np.array([sum(len(texts.get(id, "").split()) for id in vote.response_ids) for vote in cast]),
        strength=np.array([vote.annotation.strength or 0 for vote in cast]),
        notes=[unquoted(vote.annotation.note, [texts.get(id, "") for id in vote.response_ids]) for vote in cast],
        gold={items[id]: sides[id].index(choice) for id, choice in gold.items() if id in items and choice in sides[id]},
    )


def unquoted(note: str | None, texts: Sequence[str]) -> str | None:
    """The note without what it takes from the texts: who quotes an answer pastes nothing."""
    if note is None:
        return None
    words = re.findall(r"\w+", note.lower())
    quotable = set()
    for text in texts:
        said = re.findall(r"\w+", text.lower())
        quotable |= {tuple(said[at : at + QUOTED]) for at in range(len(said) - QUOTED + 1)}
    taken = [False] * len(words)
    for at in range(len(words) - QUOTED + 1):
        if tuple(words[at : at + QUOTED]) in quotable:
            taken[at : at + QUOTED] = [True] * QUOTED
    return " ".join(word for word, gone in zip(words, taken, strict=True) if not gone)


def _why(sign: conduct.Sign, other: str) -> str:
    share = f"{sign.figure:.0%}"
    match sign.kind:
        case "one side":
            return f"chose what was shown first in {share} of {sign.n} answers"
        case "haste":
            return f"{share} of {sign.n} answers came faster than anybody reads"
        case "coin":
            return f"agrees with gold and the others in {share} of {sign.n} answers, as a coin would"
        case "drift":
            return f"agrees with gold and the others in {share} since answer {sign.since} of {sign.n}, and did before"
        case "copies":
            return f"says the same as {other} in {share} of {sign.n} questions they both had"
        case "pastes":
            return f"{share} of {sign.n} long notes share their wording with notes on other questions"


# --- where most are wrong --------------------------------------------------------------------------------------------------


def audited(store: Store, project_id: str) -> list[audits.SliceAudit]:
    """How often experts overturned what annotators concluded, by slice, from decided audits (a random share; disputes are left out).

    A slice is a domain or a declared attribute of the interaction (`name: value`). Overturned: the expert prefers the other answer, or finds both
    bad.
    """
    with store.read() as tx:
        decided = [
            one
            for one in tx.find(Review, project_id=project_id)
            if one.kind is ReviewKind.AUDIT
            and one.decided_at is not None
            and one.probability is not None
            and one.probability != 0.5
        ]
        comparisons: dict[str, Comparison] = {}
        talks: dict[str, Interaction] = {}
        for at in range(0, len(decided), BATCH):
            for one in tx.find(Comparison, id=[review.comparison_id for review in decided[at : at + BATCH]]):
                comparisons[one.id] = one
        about = [one.interaction_id for one in comparisons.values() if one.interaction_id is not None]
        for at in range(0, len(about), BATCH):
            talks |= {talk.id: talk for talk in tx.find(Interaction, id=about[at : at + BATCH])}
    slices, overturned = [], []
    for review in decided:
        comparison = comparisons[review.comparison_id]
        attributes: Json = talks[comparison.interaction_id].attributes if comparison.interaction_id in talks else {}
        slices.append(_slices(comparison, attributes))
        concluded = comparison.response_ids[0 if (review.probability or 0) > 0.5 else 1]
        overturned.append(review.verdict is Verdict.BOTH_BAD or review.choice not in (None, concluded))
    return audits.by_slice(slices, overturned)


def _slices(comparison: Comparison, attributes: Json) -> list[str]:
    names = [f"domain: {comparison.domain}"] if comparison.domain else []
    return names + [f"{name}: {value}" for name, value in attributes.items() if isinstance(value, str | bool | int)]
