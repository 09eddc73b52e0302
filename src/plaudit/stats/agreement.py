"""How much annotators agree: raw, Gwet's AC1, Fleiss, Krippendorff's alpha (nominal, ordinal, interval), Cohen's kappa.

Everything but Cohen's kappa depends on an item only through its counts per label, so items with equal counts are one *pattern*, and
resampling items is one multinomial draw over the patterns: a thousand replicates cost the same for a hundred items as for a million.

The frame trap: two 85 % raters give kappa .49 where A and B are right equally often and .257 at 90/10 (closed form). For comparisons, whose A and B
are arbitrary, pass the votes through `symmetrised` first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput
from plaudit.stats.aggregate import Votes
from plaudit.stats.intervals import Interval, mean_interval, percentile_bounds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Level = Literal["nominal", "ordinal", "interval"]
# Labels beyond which nothing here is computed: the coincidence matrix of 1,000 replicates grows with their square.
MAX_LABELS = 100
# Shared items from which a pair of workers counts towards the mean kappa, and from where on pairs of votes are sampled.
MIN_SHARED, MAX_VOTE_PAIRS = 10, 5_000_000
_BLOCK_CELLS, _REPLICATE_CELLS = 4_000_000, 20_000_000
# (patterns, K) counts and (B, patterns) multiplicities -> (B,) coefficients, NaN where undefined.
Coefficient = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True)
class Agreement:
    """Agreement on items with at least two votes. A coefficient is None where it is undefined (every vote says the same)."""

    raw: Interval
    ac1: Interval
    fleiss: Interval | None
    alpha: Interval | None
    level: Level
    n_items: int
    n_votes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def agreement(
    votes: Votes,
    rng: np.random.Generator,
    *,
    level: Level = "nominal",
    values: ArrayLike | None = None,
    n_resamples: int = 1000,
) -> Agreement:
    """All coefficients with 95 % item-bootstrap intervals. `values` (K,): what the labels stand for, for level "interval".

    Raises BadInput where fewer than two items have two votes.
    """
    if votes.n_labels > MAX_LABELS:
        raise BadInput(
            f"There are {votes.n_labels} different labels; agreement reads classes or a scale of at most {MAX_LABELS}."
        )
    counts = votes.counts()
    counts = counts[counts.sum(axis=1) >= 2]
    if len(counts) < 2:
        raise BadInput(f"{len(counts)} item(s) have two votes or more; agreement needs at least two such items.")
    patterns, multiplicity = np.unique(counts, axis=0, return_counts=True)
    # Many classes and many votes an item make nearly every item a pattern of its own: fewer replicates then, at least 200.
    n_resamples = min(n_resamples, max(200, _REPLICATE_CELLS // len(patterns)))
    sample = rng.multinomial(len(counts), multiplicity / multiplicity.sum(), size=n_resamples).astype(np.float64)
    weights = np.vstack([multiplicity.astype(np.float64), sample])
    distance = _scale(level, votes.n_labels, values)

    def interval(coefficient: Coefficient) -> Interval | None:
        figures = coefficient(patterns, weights)
        defined = figures[1:][np.isfinite(figures[1:])]
        if not np.isfinite(figures[0]) or len(defined) == 0:
            return None
        return Interval(float(figures[0]), *percentile_bounds(defined), len(counts))

    raw, ac1 = interval(_raw), interval(_ac1)
    assert raw is not None
    assert ac1 is not None  # both are defined wherever two votes share an item
    return Agreement(
        raw=raw,
        ac1=ac1,
        fleiss=interval(_fleiss),
        alpha=interval(lambda c, w: _alpha(c, w, level, distance)),
        level=level,
        n_items=len(counts),
        n_votes=int(counts.sum()),
    )


def cohen_kappa(first: ArrayLike, second: ArrayLike, rng: np.random.Generator, n_resamples: int = 1000) -> Interval:
    """Cohen's kappa (1960) of two raters' labels on the same items, both (n,) integers, with a bootstrap interval over items.

    Raises BadInput where it is undefined: both raters gave one and the same label throughout.
    """
    left, right = np.asarray(first), np.asarray(second)
    if left.shape != right.shape or left.ndim != 1 or len(left) < 2:
        raise BadInput(
            f"Ratings have shapes {left.shape} and {right.shape}; give two labels for each of at least two items."
        )
    _, codes = np.unique(np.concatenate([left, right]), return_inverse=True)
    k, n = int(codes.max()) + 1, len(left)
    table = np.bincount(codes[:n] * k + codes[n:], minlength=k * k)
    tables = np.vstack([table, rng.multinomial(n, table / n, size=n_resamples)]).reshape(-1, k, k) / n
    observed = np.trace(tables, axis1=1, axis2=2)
    expected = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)
    defined = figures[1:][np.isfinite(figures[1:])]
    if not np.isfinite(figures[0]) or len(defined) == 0:
        raise BadInput(
            "Both raters gave a single label throughout, so Cohen's kappa is undefined; report raw agreement."
        )
    return Interval(float(figures[0]), *percentile_bounds(defined), n)


@dataclass(frozen=True)
class KappaPair:
    """Cohen's kappa of two workers (codes) on the items that both labelled; `kappa` is None where it is undefined."""

    first: int
    second: int
    n_items: int
    kappa: Interval | None


@dataclass(frozen=True)
class PairwiseKappa:
    """Cohen's kappa over all pairs of workers with at least `min_shared` common items.

    mean: weighted by common items; its interval is from resampled items, its n the items. pairs: those with the most common items first.
    """

    mean: Interval
    pairs: tuple[KappaPair, ...]
    n_pairs: int
    n_undefined: int
    min_shared: int


def pairwise_kappa(
    votes: Votes, rng: np.random.Generator, *, n_resamples: int = 200, max_listed: int = 100
) -> PairwiseKappa | None:
    """Cohen's kappa (1960) for every pair of workers; None where no two workers share two items or every kappa is undefined.

    Pairs count from 10 common items, or from 2 where no pair has 10. Beyond five million pairs of votes, items are sampled.
    """
    left, right = _vote_pairs(votes, rng)
    if len(left) == 0:
        return None
    swap = votes.worker[left] > votes.worker[right]
    left, right = np.where(swap, right, left), np.where(swap, left, right)
    codes, pair, shared = np.unique(
        votes.worker[left] * votes.n_workers + votes.worker[right], return_inverse=True, return_counts=True
    )
    min_shared = MIN_SHARED if shared.max() >= MIN_SHARED else 2
    most = np.argsort(-shared, kind="stable")[: MAX_VOTE_PAIRS // votes.n_labels**2]
    kept = most[shared[most] >= min_shared]
    if len(kept) == 0:
        return None
    place = np.full(len(codes), -1)
    place[kept] = np.arange(len(kept))
    inside = place[pair] >= 0
    left, right, pair = left[inside], right[inside], place[pair][inside]
    k = votes.n_labels
    cells = (pair * k + votes.label[left]) * k + votes.label[right]
    items, item = np.unique(votes.item[left], return_inverse=True)

    def kappas(weights: Floats | None) -> tuple[Floats, Floats]:
        """(pairs,) kappa, NaN where undefined, and the weight of each pair's items."""
        tables = np.bincount(cells, weights, minlength=len(kept) * k * k).reshape(-1, k, k).astype(np.float64)
        n = tables.sum(axis=(1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            observed = np.trace(tables, axis1=1, axis2=2) / n
            expected = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / n**2
            return np.where(expected < 1 - 1e-12, (observed - expected) / (1 - expected), np.nan), n

    figures, n = kappas(None)
    defined = np.isfinite(figures)
    if not defined.any():
        return None
    n_listed = min(max_listed, len(kept))
    n_resamples = min(n_resamples, max(50, _REPLICATE_CELLS // len(cells)))
    replicates, means = np.empty((n_resamples, n_listed)), np.empty(n_resamples)
    for i in range(n_resamples):
        drawn = np.bincount(rng.integers(0, len(items), len(items)), minlength=len(items)).astype(np.float64)
        again, size = kappas(drawn[item])
        replicates[i], means[i] = again[:n_listed], _weighted_mean(again, size)
    pairs = []
    for i in range(n_listed):
        seen = replicates[:, i][np.isfinite(replicates[:, i])]
        kappa = Interval(float(figures[i]), *percentile_bounds(seen), int(n[i])) if defined[i] and len(seen) else None
        first, second = divmod(int(codes[kept[i]]), votes.n_workers)
        pairs.append(KappaPair(first, second, int(n[i]), kappa))
    mean = Interval(_weighted_mean(figures, n), *percentile_bounds(means[np.isfinite(means)]), len(items))
    return PairwiseKappa(mean, tuple(pairs), len(kept), int((~defined).sum()), min_shared)


@dataclass(frozen=True)
class GroupAgreement:
    """Agreement inside declared groups of workers and between them, over the items where both can be seen.

    within, between: share of agreeing pairs of votes. gap: within - between, paired by item; above zero, groups differ more than their members.
    """

    within: Interval
    between: Interval
    gap: Interval
    n_items: int


def group_agreement(votes: Votes, group: Ints) -> GroupAgreement | None:
    """Do groups disagree more than their members do? group: (n_votes,) code of the voter's group, -1 unknown (left out).

    t intervals over items: they do not know that a group of few workers may differ by the habits of one. None with fewer than two items that
    have two votes of one group and votes of two groups.
    """
    shares = group_counts(votes, group)  # (n_items, G, K)
    per_group = shares.sum(axis=2)
    total, labels = per_group.sum(axis=1), shares.sum(axis=1)
    inside = (per_group * (per_group - 1)).sum(axis=1)
    across = total * (total - 1) - inside
    seen = (inside > 0) & (across > 0)
    if seen.sum() < 2:
        return None
    agreeing_inside = (shares * (shares - 1)).sum(axis=(1, 2))
    agreeing = (labels * (labels - 1)).sum(axis=1)
    within = agreeing_inside[seen] / inside[seen]
    between = (agreeing - agreeing_inside)[seen] / across[seen]
    return GroupAgreement(
        mean_interval(within), mean_interval(between), mean_interval(within - between), int(seen.sum())
    )


def group_counts(votes: Votes, group: Ints) -> Floats:
    """(n_items, n_groups, K) votes by item, group and label; a group of -1 is left out."""
    if group.shape != votes.item.shape:
        raise BadInput(f"group has shape {group.shape} for {len(votes.item)} votes; give one code per vote.")
    known = group >= 0
    n_groups = int(group.max(initial=-1)) + 1
    cells = (votes.item[known] * n_groups + group[known]) * votes.n_labels + votes.label[known]
    size = votes.n_items * n_groups * votes.n_labels
    return np.bincount(cells, minlength=size).reshape(votes.n_items, n_groups, votes.n_labels).astype(np.float64)


def _vote_pairs(votes: Votes, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Row numbers (left, right) of every two votes of different workers on one item."""
    sizes = np.bincount(votes.item, minlength=votes.n_items).astype(np.float64)
    shuffled = rng.permutation(votes.n_items)
    fits = np.cumsum((sizes * (sizes - 1) / 2)[shuffled]) <= MAX_VOTE_PAIRS
    sampled = np.zeros(votes.n_items, dtype=bool)
    sampled[shuffled[fits]] = True
    rows = np.argsort(votes.item, kind="stable")
    rows = rows[sampled[votes.item[rows]]]
    item = votes.item[rows]
    at, lefts, rights = np.arange(len(rows)), [], []
    for distance in range(1, int(sizes.max())):
        at = at[at + distance < len(rows)]
        at = at[item[at] == item[at + distance]]
        if len(at) == 0:
            break
        lefts.append(rows[at])
        rights.append(rows[at + distance])
    if not lefts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    left, right = np.concatenate(lefts), np.concatenate(rights)
    apart = votes.worker[left] != votes.worker[right]
    return left[apart], right[apart]


def _weighted_mean(figures: Floats, weights: Floats) -> float:
    defined = np.isfinite(figures) & (weights > 0)
    return float(figures[defined] @ weights[defined] / weights[defined].sum()) if defined.any() else float("nan")


def symmetrised(votes: Votes, item_ids: Sequence[Hashable], mirror: ArrayLike | None = None) -> Votes:
    """The votes with labels mirrored on the items whose id hashes to an odd number, so that no label is "right" more often by habit.

    item_ids: (n_items,) stable ids. mirror: (K,) the label each label becomes; default K-1-label, which swaps A and B and turns a
    scale of strength around. A tie beside A and B (labels 0, 1, 2) needs mirror [1, 0, 2].
    """
    k = votes.n_labels
    swap = np.arange(k)[::-1] if mirror is None else np.asarray(mirror, dtype=np.int64)
    if len(item_ids) != votes.n_items or sorted(swap.tolist()) != list(range(k)):
        raise BadInput(
            f"{len(item_ids)} ids for {votes.n_items} items, mirror {swap.tolist()}; give one id per item and a permutation."
        )
    odd = np.array([hashlib.sha256(str(name).encode()).digest()[0] & 1 for name in item_ids], dtype=bool)[votes.item]
    first = None if votes.first is None else np.where(odd, swap[votes.first], votes.first)
    return replace(votes, label=np.where(odd, swap[votes.label], votes.label), first=first)


def _raw(counts: Floats, weights: Floats) -> Floats:
    """Share of agreeing pairs of votes, averaged over items: mean_i sum_k n_ik (n_ik - 1) / (m_i (m_i - 1))."""
    m = counts.sum(axis=1)
    per_item = (counts * (counts - 1)).sum(axis=1) / (m * (m - 1))
    shares: Floats = weights @ per_item / weights.sum(axis=1)
    return shares


def _class_shares(counts: Floats, weights: Floats) -> Floats:
    """(B, K) mean over items of the share of votes for each label."""
    shares: Floats = weights @ (counts / counts.sum(axis=1, keepdims=True)) / weights.sum(axis=1, keepdims=True)
    return shares


def _ac1(counts: Floats, weights: Floats) -> Floats:
    """Gwet (2008): chance agreement sum_k pi_k (1 - pi_k) / (K - 1), which does not explode where one label prevails."""
    pi = _class_shares(counts, weights)
    chance = (pi * (1 - pi)).sum(axis=1) / (counts.shape[1] - 1)
    figures: Floats = (_raw(counts, weights) - chance) / (1 - chance)
    return figures


def _fleiss(counts: Floats, weights: Floats) -> Floats:
    """Fleiss (1971), with items of unequal numbers of votes weighing the same; two raters give Scott's pi."""
    chance = (_class_shares(counts, weights) ** 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1 - 1e-12, (_raw(counts, weights) - chance) / (1 - chance), np.nan)


def _alpha(counts: Floats, weights: Floats, level: Level, distance: Floats) -> Floats:
    """Krippendorff (2011): 1 - (n - 1) sum o_ck d_ck / sum n_c n_k d_ck over the coincidence matrix o and its margins n_c."""
    k = counts.shape[1]
    m = counts.sum(axis=1)
    coincidence = np.zeros((len(weights), k, k))
    step = max(1, _BLOCK_CELLS // (k * k))
    for start in range(0, len(counts), step):
        block = counts[start : start + step]
        pairs = block[:, :, None] * block[:, None, :] - np.eye(k) * block[:, None, :]
        shares = (pairs / (m[start : start + step] - 1)[:, None, None]).reshape(len(block), k * k)
        coincidence += (weights[:, start : start + step] @ shares).reshape(-1, k, k)
    margins = coincidence.sum(axis=2)  # (B, K)
    if level == "ordinal":
        # The distance of c and k is the number of ratings between them, each end counted half (Krippendorff 2011, eq. 4).
        middle = np.cumsum(margins, axis=1) - margins / 2
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    total = margins.sum(axis=1)
    observed = (coincidence * distance).sum(axis=(1, 2))
    expected = (margins[:, :, None] * margins[:, None, :] * distance).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan)


def _scale(level: Level, k: int, values: ArrayLike | None) -> Floats:
    """(K, K) squared distances between labels; ordinal distances depend on the margins and are made where those are known."""
    if level not in ("nominal", "ordinal", "interval"):
        raise BadInput(f"Level {level!r} is unknown; choose nominal, ordinal or interval.")
    if level != "interval":
        return 1 - np.eye(k)
    numbers = np.arange(k, dtype=np.float64) if values is None else np.asarray(values, dtype=np.float64)
    if numbers.shape != (k,):
        raise BadInput(f"values has shape {numbers.shape}; give one number for each of the {k} labels.")
    distance: Floats = (numbers[:, None] - numbers[None, :]) ** 2
    return distance
