"""Where a reward head starts when there are only hundreds of pairs: a logistic regression on the frozen base's states.

Linear probing before fine-tuning keeps the base's features from being distorted by a head that starts as noise (LP-FT, Kumar et al. 2022,
arXiv 2202.10054). The strength of the ridge is chosen by cross-validation over prompt families inside the training split.
An intercept is fitted for thumbs alone: it cancels in a difference, and the bias is set anew afterwards from reference completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plaudit.stats import calibration

Floats = NDArray[np.float64]
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # sklearn's C (smaller is a stronger ridge) on features of unit spread
FOLDS = 5
FREE = 100.0  # size of a column whose weight the ridge should leave alone


def fit_probe(
    chosen: Floats,
    rejected: Floats,
    probability: Floats,
    weight: Floats,
    families: Sequence[str],
    liked: Floats | None = None,
    up: NDArray[np.floating] | None = None,
    thumb_weight: float = 0.0,
) -> tuple[Floats, float, float]:
    """(head weights (D,), bias, the C that was taken) from states of n pairs, (n, D) each, and P(chosen beats rejected) (n,).

    Scores with these weights are log-odds. liked: states of t answers that got a thumb, (t, D), up: whether it was up (t,); each counts
    as `thumb_weight` pairs, and the bias is the log-odds of a thumb up at score 0 (0 without thumbs: it cancels in a difference). The
    strength is chosen by how well pairs are told; with fewer than FOLDS families the strongest ridge is taken unseen.
    """
    spread = np.concatenate([chosen, rejected]).std(axis=0) + 1e-6
    thumbs = _Thumbs.of(liked, up, thumb_weight, spread)
    x = (chosen - rejected) / spread
    names = sorted(set(families))
    best = STRENGTHS[0]
    if len(names) >= FOLDS:
        fold = np.array([names.index(family) % FOLDS for family in families])
        losses = {strength: _held_out_loss(x, probability, weight, fold, thumbs, strength) for strength in STRENGTHS}
        best = min(losses, key=lambda strength: losses[strength])
    found, intercept = _fit(x, probability, weight, thumbs, best)
    return found / spread, intercept - float(thumbs.centre @ found), best


@dataclass(frozen=True)
class _Thumbs:
    x: Floats  # (t, D) in units of spread, less their mean
    centre: Floats  # (D,) that mean
    up: Floats  # (t,)
    weight: float

    @staticmethod
    def of(liked: Floats | None, up: NDArray[np.floating] | None, weight: float, spread: Floats) -> _Thumbs:
        if liked is None or up is None or not len(liked) or weight == 0:
            return _Thumbs(np.zeros((0, len(spread))), np.zeros(len(spread)), np.zeros(0), 0.0)
        x = liked / spread
        return _Thumbs(x - x.mean(axis=0), x.mean(axis=0), np.asarray(up, dtype=np.float64), weight)


def _held_out_loss(
    x: Floats, probability: Floats, weight: Floats, fold: NDArray[np.int64], thumbs: _Thumbs, strength: float
) -> float:
    predicted = np.empty(len(x))
    for k in range(FOLDS):
        inside = fold != k
        w, _ = _fit(x[inside], probability[inside], weight[inside], thumbs, strength)
        predicted[~inside] = 1 / (1 + np.exp(-x[~inside] @ w))
    return calibration.log_loss(predicted, probability)


def _fit(x: Floats, probability: Floats, weight: Floats, thumbs: _Thumbs, strength: float) -> tuple[Floats, float]:
    """(weights, intercept of the thumbs). The intercept is a column of its own, so large that the ridge does not feel it."""
    from sklearn.linear_model import LogisticRegression

    n, t = len(x), len(thumbs.x)
    rows = np.vstack([x, x, thumbs.x])
    column = np.concatenate([np.zeros(2 * n), np.full(t, FREE)])
    labels = np.concatenate([np.ones(n), np.zeros(n), thumbs.up])
    weights = np.concatenate([probability * weight, (1 - probability) * weight, np.full(t, thumbs.weight)])
    model = LogisticRegression(fit_intercept=False, C=strength, max_iter=1000)
    if t == 0:
        model.fit(rows, labels, sample_weight=weights)
        return np.asarray(model.coef_[0], dtype=np.float64), 0.0
    model.fit(np.hstack([rows, column[:, None]]), labels, sample_weight=weights)
    found = np.asarray(model.coef_[0], dtype=np.float64)
    return found[:-1], float(found[-1] * FREE)
