"""Signs that answers were not given by somebody who read: clicking one side, haste, a coin, a coin from some day on, copying, pasting.

Votes in, signs out. Each is a reason to look, not a proof, and none is worth anything once annotators know how to avoid it. Every test
tolerates what honest people do (a slight habit, a quick look, a hard question), and its chance of accusing one of them is ALPHA. Who is
honest is judged from the other votes on the same questions and from gold, so a project whose annotators are mostly coins accuses nobody.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts load with their first use: not where a service or a command starts
from numpy.typing import NDArray

from plaudit.errors import BadInput
from plaudit.stats.aggregate import Votes, dawid_skene
from plaudit.stats.intervals import wilson_bounds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal["one side", "haste", "coin", "drift", "copies", "pastes"]
KINDS: tuple[Kind, ...] = ("one side", "haste", "coin", "drift", "copies", "pastes")

ALPHA = 0.001  # of each kind: an honest annotator is accused of anything at most 6 times of 1,000
FROM = 12  # votes below which nothing is said of anybody
HABIT = 0.1  # how far from one half somebody may choose what is shown first without a sign
WORDS_PER_S = 1000 / 60  # nobody reads faster; skimming is about 700 words a minute (Rayner et al. 2016)
SKIMMED = 0.2  # share of answers that may come faster than that
# P(right) of the poorest honest annotator, where the others leave no doubt. Who is right .63 of the time still looks more like them than like a
# coin; at .65 a coin needs 400 votes to be seen through two others' votes, at .75 it needs 120.
HONEST = 0.75
SURE = 0.95  # as sure as the other votes on a question can make us: their model is no truth; gold is GOLD_SURE
GOLD_SURE = 0.98
CLOSE = 0.98  # nobody is so alike that we would not find them out
COMMON = 10  # questions that two must have in common
RUN = 8  # words in a row that two notes share only when one source wrote both
PASTED = 6  # such notes, and at least half of one's long ones


@dataclass(frozen=True)
class Ballots:
    """Votes that preferred or tied, one row each, in order of time.

    votes: label 0 and 1 are the two sides, 2 a tie; `first` is needed. seconds (n,): time taken. words (n,): words that were shown. strength
    (n,): 0 where none was given. notes: what was written beside it. gold: item code -> side, where the answer is known.
    """

    votes: Votes
    seconds: Floats
    words: Ints
    strength: Ints
    notes: Sequence[str | None]
    gold: Mapping[int, int]

    def __post_init__(self) -> None:
        n = len(self.votes.item)
        for name in ("seconds", "words", "strength", "notes"):
            if len(getattr(self, name)) != n:
                raise BadInput(f"Ballots.{name} has {len(getattr(self, name))} rows for {n} votes; give one a vote.")
        if self.votes.first is None:
            raise BadInput("Ballots have no order shown; give Votes.first.")


@dataclass(frozen=True)
class Sign:
    """What speaks against one worker. figure: the share that `kind` is about. n: the votes it was seen in. other: the worker that they agree
    with (copies). since: place among their votes from which on it holds (drift)."""

    worker: int
    kind: Kind
    figure: float
    n: int
    other: int | None = None
    since: int | None = None


def signs(ballots: Ballots) -> list[Sign]:
    """Every sign, by kind and then by worker."""
    found = [*_one_side(ballots), *_haste(ballots), *_coins(ballots), *_copies(ballots), *_pastes(ballots)]
    return sorted(found, key=lambda one: (KINDS.index(one.kind), one.worker))


def _one_side(ballots: Ballots) -> list[Sign]:
    """Who chooses what stands first (or last) more often than a habit explains: an exact binomial test of `share <= .5 + HABIT`, both ways."""
    votes = ballots.votes
    assert votes.first is not None
    chose = votes.label < 2
    n = np.bincount(votes.worker[chose], minlength=votes.n_workers)
    first = np.bincount(votes.worker[chose & (votes.label == votes.first)], minlength=votes.n_workers)
    tail = np.minimum(_at_least(first, n, 0.5 + HABIT), _at_least(n - first, n, 0.5 + HABIT))
    return [
        Sign(int(w), "one side", first[w] / n[w], int(n[w])) for w in np.flatnonzero((tail < ALPHA / 2) & (n >= FROM))
    ]


def _haste(ballots: Ballots) -> list[Sign]:
    """Whose answers come faster than anybody reads, more often than SKIMMED."""
    worker, n_workers = ballots.votes.worker, ballots.votes.n_workers
    n = np.bincount(worker, minlength=n_workers)
    unread = np.bincount(worker[ballots.seconds < ballots.words / WORDS_PER_S], minlength=n_workers)
    tail = _at_least(unread, n, SKIMMED)
    return [Sign(int(w), "haste", unread[w] / n[w], int(n[w])) for w in np.flatnonzero((tail < ALPHA) & (n >= FROM))]


def _at_least(k: Ints, n: Ints, p: float) -> Floats:
    """P(Bin(n, p) >= k), element by element."""
    tail: Floats = np.where(k > 0, scipy.special.betainc(np.maximum(k, 1), n - k + 1, p), 1.0)
    return tail


def _coins(ballots: Ballots) -> list[Sign]:
    """Whose votes are better explained by a coin than by somebody who is right HONEST of the time.

    Under the second the product of likelihood ratios is a non-negative martingale of mean 1 (a supermartingale for who is better), so it
    reaches 1 / ALPHA with probability ALPHA at most, whenever one looks (Ville). Who has become a coin is found by the sum of the products
    from each start on (Shiryaev-Roberts), which has mean n and so reaches n / ALPHA with probability ALPHA at most.
    """
    votes = ballots.votes
    chose = np.flatnonzero(votes.label < 2)
    if not len(chose):
        return []
    right = HONEST * (others := _others_say(ballots)[chose]) + (1 - HONEST) * (1 - others)
    evidence = np.log(0.5 / right)
    found = []
    for worker in range(votes.n_workers):
        mine = evidence[votes.worker[chose] == worker]
        if len(mine) < FROM:
            continue
        path = np.cumsum(mine)
        agreed = right[votes.worker[chose] == worker] > 0.5
        if path.max() >= -math.log(ALPHA):
            found.append(Sign(worker, "coin", float(agreed.mean()), len(mine)))
        elif _ever_a_coin(mine):
            since = int(np.argmin(path[:-1])) + 1
            found.append(Sign(worker, "drift", float(agreed[since:].mean()), len(mine), since=since))
    return found


def _ever_a_coin(evidence: Floats) -> bool:
    threshold = math.log(len(evidence) / ALPHA)
    total = -math.inf
    for one in evidence:
        total = float(np.logaddexp(0.0, total)) + float(one)
        if total >= threshold:
            return True
    return False


def _others_say(ballots: Ballots) -> Floats:
    """(n_votes,) P(the side voted for is the better one) by everybody else's votes and by gold; .5 for a tie."""
    votes = ballots.votes
    fit = dawid_skene(votes, ballots.gold or None)
    assert fit.confusion is not None
    with np.errstate(divide="ignore"):
        log_odds = np.log(np.maximum(fit.posterior[:, 0], 1e-12)) - np.log(np.maximum(fit.posterior[:, 1], 1e-12))
    own = np.log(fit.confusion[votes.worker, 0, votes.label]) - np.log(fit.confusion[votes.worker, 1, votes.label])
    first_side = scipy.special.expit(log_odds[votes.item] - own)
    said: Floats = np.where(votes.label == 0, first_side, np.where(votes.label == 1, 1 - first_side, 0.5))
    said = np.clip(said, 1 - SURE, SURE)
    if ballots.gold:
        known = np.full(votes.n_items, -1)
        known[list(ballots.gold)] = list(ballots.gold.values())
        truth = known[votes.item]
        is_gold = (truth >= 0) & (votes.label < 2)
        said[is_gold] = np.where(votes.label[is_gold] == truth[is_gold], GOLD_SURE, 1 - GOLD_SURE)
    return said


def _copies(ballots: Ballots) -> list[Sign]:
    """Pairs that give the same answer (side or tie, and strength) so often that they differ less than half as much as either differs from
    the rest. Gold is left out: there everybody should agree. Which of the two copies cannot be told from this."""
    votes = ballots.votes
    asked = np.array([item not in ballots.gold for item in range(votes.n_items)])[votes.item]
    item, worker = votes.item[asked], votes.worker[asked]
    answer = votes.label[asked] * 10 + ballots.strength[asked]
    shape = (votes.n_workers, votes.n_items)

    def together(rows: NDArray[np.bool_]) -> Floats:
        held = scipy.sparse.csr_matrix((np.ones(rows.sum()), (worker[rows], item[rows])), shape=shape)
        product: Floats = (held @ held.T).toarray()
        np.fill_diagonal(product, 0)
        return product

    common = together(np.ones(len(item), dtype=bool))
    same = np.zeros_like(common)
    for value in np.unique(answer):
        same += together(answer == value)
    # The agreement of a row's worker with everybody but the column's, at the upper end of its interval.
    rest = common.sum(axis=1, keepdims=True) - common
    _, alike = wilson_bounds(np.minimum(same.sum(axis=1, keepdims=True) - same, rest), rest)
    usual = np.minimum((1 + np.maximum(alike, alike.T)) / 2, CLOSE)
    tail = np.where(same > 0, scipy.special.betainc(np.maximum(same, 1), common - same + 1, usual), 1.0)
    suspect = (tail < ALPHA / max(1, votes.n_workers - 1)) & (common >= COMMON)
    found = []
    for w in np.flatnonzero(suspect.any(axis=1)):
        other = int(np.argmin(np.where(suspect[w], tail[w], 2.0)))
        found.append(
            Sign(int(w), "copies", float(same[w, other] / common[w, other]), int(common[w, other]), other=other)
        )
    return found


def _pastes(ballots: Ballots) -> list[Sign]:
    """Whose notes share a run of RUN words with notes on at least two other questions, by anybody: one source wrote them."""
    runs = [_runs(note) for note in ballots.notes]
    items_of: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for at, here in enumerate(runs):
        for run in here:
            items_of[run].add(int(ballots.votes.item[at]))
    long, pasted = np.zeros(ballots.votes.n_workers, dtype=int), np.zeros(ballots.votes.n_workers, dtype=int)
    for at, here in enumerate(runs):
        if here:
            long[ballots.votes.worker[at]] += 1
            pasted[ballots.votes.worker[at]] += any(len(items_of[run]) >= 3 for run in here)
    return [
        Sign(int(w), "pastes", pasted[w] / long[w], int(long[w]))
        for w in np.flatnonzero((pasted >= PASTED) & (2 * pasted >= long))
    ]


def _runs(note: str | None) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", (note or "").lower())
    return {tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)}
