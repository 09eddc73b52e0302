"""The area under the ROC curve: how often something good gets a higher value than something bad, with an interval over clusters.

DeLong, DeLong and Clarke-Pearson 1988 for single values; Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data", for values
that come in clusters (several thumbs of one conversation say less than as many of different ones). Both say nothing of the spread where no two
values overlap; there the bound holds that van Dantzig 1951 gives for any distributions.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput
from plaudit.stats.intervals import Interval, normal_quantile, numbers, wilson


def auc(values: ArrayLike, good: ArrayLike, clusters: ArrayLike | None = None, confidence: float = 0.95) -> Interval:
    """P(a good one's value is above a bad one's), ties half.   (n,), (n,) bool, (n,) -> Interval; its n counts clusters

    Raises BadInput where fewer than two clusters have a good one, or fewer than two a bad one: no spread can be told from one.
    """
    x, up = numbers(values, "values"), np.asarray(good, dtype=bool)
    _, place = np.unique(np.arange(len(x)) if clusters is None else np.asarray(clusters), return_inverse=True)
    fewest = len(x)
    for name, these in (("good", up), ("bad", ~up)):
        n = len(np.unique(place[these]))
        if n < 2:
            raise BadInput(f"Only {n} clusters hold a {name} value; an AUC with an interval needs two of each.")
        fewest = min(fewest, n)
    a, b = x[up], x[~up]
    # How many of the others each one beats: ranks among both, minus those among its own kind.
    beats = _midranks(x)
    of_good = (beats[up] - _midranks(a)) / len(b)  # V10: share of the bad below this good one
    of_bad = 1.0 - (beats[~up] - _midranks(b)) / len(a)  # V01: share of the good above this bad one
    mean = float(of_good.mean())
    n_clusters = int(place.max()) + 1
    sums = [
        np.bincount(place[these], weights=shares - mean, minlength=n_clusters)
        for these, shares in ((up, of_good), (~up, of_bad))
    ]
    sizes = [len(a), len(b)]
    variance = 0.0
    for these, total, size in zip((up, ~up), sums, sizes, strict=True):
        k = len(np.unique(place[these]))
        variance += k / (k - 1) * float((total**2).sum()) / size**2
    variance += 2 * n_clusters / (n_clusters - 1) * float((sums[0] * sums[1]).sum()) / (sizes[0] * sizes[1])
    if variance <= 0:  # its own estimate is none: at most AUC (1 - AUC) / the fewer of both, which is a rate's variance
        return replace(wilson(mean * fewest, fewest, confidence), n=n_clusters)
    half = normal_quantile(confidence) * math.sqrt(variance)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half), n_clusters)


def _midranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many values lie below each, ties half and itself not."""
    order = np.sort(x)
    below, upto = np.searchsorted(order, x, side="left"), np.searchsorted(order, x, side="right")
    ranks: NDArray[np.float64] = (below + upto - 1) / 2.0
    return ranks
