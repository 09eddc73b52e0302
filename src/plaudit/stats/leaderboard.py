"""Leaderboard: policies in one order from comparisons of two at a time, by Bradley-Terry.

P(i beats j) = p_i / (p_i + p_j). A tie is half a win each way. Fitted by minorisation-maximisation (Hunter 2004, Annals of Statistics 32), all
bootstrap replicates at once. `prior` comparisons against an average policy, half won and half lost (Caron & Doucet 2012, a Gamma prior), keep
a policy that won everything finite; 0 is maximum likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput
from plaudit.stats.intervals import Interval, numbers, percentile_bounds

Floats = NDArray[np.float64]

TOLERANCE = 1e-9
ROUNDS = 20_000


@dataclass(frozen=True)
class Standing:
    """`strength`: natural log-odds of a win against an average policy of this board, centred on 0. `win_rate`: chance to beat another one
    of the board drawn at random. `ranks`: best and worst that 95 % of the replicates give. `n`: comparisons it was in."""

    name: str
    rank: int
    strength: Interval
    win_rate: float
    ranks: tuple[int, int]
    n: int

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def leaderboard(
    first: Sequence[str],
    second: Sequence[str],
    outcomes: ArrayLike,
    rng: np.random.Generator,
    clusters: Sequence[str] | None = None,
    prior: float = 1.0,
    n_resamples: int = 500,
) -> list[Standing]:
    """Best first. `outcomes` (n,) in 0..1: 1 where `first` won, 0 where `second` did, .5 a tie. `clusters` (n,): the prompt, drawn as a whole
    by the bootstrap, because answers to one prompt are no independent evidence. Raises BadInput: shapes, a policy against itself, policies
    that no chain of comparisons connects."""
    y = numbers(outcomes, "outcomes")
    if not len(first) == len(second) == len(y) or (clusters is not None and len(clusters) != len(y)):
        raise BadInput(
            f"{len(first)} first and {len(second)} second names, {len(y)} outcomes; give one of each per row."
        )
    if y.min() < 0 or y.max() > 1:
        raise BadInput(
            f"Outcomes span {y.min():g}..{y.max():g}; code a win of the first as 1, a tie as 0.5, a loss as 0."
        )
    names = sorted({*first, *second})
    place = {name: i for i, name in enumerate(names)}
    i, j = np.array([place[name] for name in first]), np.array([place[name] for name in second])
    if (i == j).any():
        raise BadInput(f"{first[int(np.argmax(i == j))]!r} is compared with itself; leave such rows out.")
    _, unit = np.unique(np.arange(len(y)) if clusters is None else np.asarray(clusters), return_inverse=True)
    n_units = int(unit.max()) + 1
    draws = np.vstack([np.ones(n_units), rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_resamples)])
    wins = _wins(i, j, y, draws[:, unit], len(names))
    _check_connected(wins[0] + wins[0].T, names)
    strengths = fit(wins, prior)  # (1 + B, K)
    order = np.argsort(-strengths, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, len(names) + 1)[None, :], axis=1)
    standings = []
    for k in order[0]:
        others = np.delete(strengths[0], k)
        low, high = percentile_bounds(strengths[1:, k])
        best, worst = np.quantile(ranks[1:, k], [0.025, 0.975], method="nearest")
        standings.append(
            Standing(
                name=names[k],
                rank=int(ranks[0, k]),
                strength=Interval(float(strengths[0, k]), low, high, n_units),
                win_rate=float(np.mean(1 / (1 + np.exp(others - strengths[0, k])))),
                ranks=(int(best), int(worst)),
                n=int(((i == k) | (j == k)).sum()),
            )
        )
    return standings


def fit(wins: Floats, prior: float = 1.0) -> Floats:
    """Log strengths, centred, of win tables: (B, K, K) -> (B, K); wins[b, i, j] is how often i beat j. Raises BadInput where the likelihood
    has no maximum (prior 0 and somebody never lost or never won)."""
    if prior == 0 and (((wins.sum(axis=2) == 0) | (wins.sum(axis=1) == 0)).any()):
        raise BadInput("A policy won or lost every comparison, so it has no finite strength; give a prior above 0.")
    met = wins + wins.transpose(0, 2, 1)
    won = wins.sum(axis=2) + prior / 2
    p = np.ones(won.shape)
    for _ in range(ROUNDS):
        weight = (met / (p[:, :, None] + p[:, None, :])).sum(axis=2) + prior / (p + 1)
        new = won / weight
        if prior == 0:
            new /= np.exp(np.log(new).mean(axis=1, keepdims=True))
        else:  # the common scale is where the mean of p / (1 + p) is one half; left to itself it creeps there
            share = new / (1 + new)
            slope = (share * (1 - share)).mean(axis=1, keepdims=True)
            new *= np.exp(np.clip((0.5 - share.mean(axis=1, keepdims=True)) / slope, -1, 1))
        moved = np.abs(np.log(new) - np.log(p)).max()
        p = new
        if moved < TOLERANCE:
            break
    logs = np.log(p)
    centred: Floats = logs - logs.mean(axis=1, keepdims=True)
    return centred


def _wins(i: NDArray[np.int64], j: NDArray[np.int64], y: Floats, weights: Floats, k: int) -> Floats:
    """(B, K, K) from rows and their weights (B, n)."""
    tables = np.empty((len(weights), k * k))
    for b, weight in enumerate(weights):
        tables[b] = np.bincount(i * k + j, weight * y, k * k) + np.bincount(j * k + i, weight * (1 - y), k * k)
    return tables.reshape(len(weights), k, k)


def _check_connected(met: Floats, names: Sequence[str]) -> None:
    reached = {0}
    while True:
        more = {int(b) for a in reached for b in np.flatnonzero(met[a])} - reached
        if not more:
            break
        reached |= more
    if len(reached) < len(names):
        apart = next(name for place, name in enumerate(names) if place not in reached)
        raise BadInput(
            f"No chain of comparisons connects {names[0]!r} and {apart!r}; compare them, or rank them apart."
        )
