"""Where a reward head starts when there are only hundreds of pairs: a logistic regression on the frozen base's states.

Linear probing before fine-tuning keeps the base's features from being distorted by a head that starts as noise (LP-FT, Kumar et al. 2022,
arXiv 2202.10054). The strength of the ridge is chosen by cross-validation over prompt families inside the training split.
Left out: an intercept (it cancels in a difference; the bias is set afterwards from reference completions).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plaudit.stats import calibration

Floats = NDArray[np.float64]
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # sklearn's C (smaller is a stronger ridge) on features of unit spread
FOLDS = 5


def fit_probe(
    chosen: Floats, rejected: Floats, probability: Floats, weight: Floats, families: Sequence[str]
) -> tuple[Floats, float]:
    """(head weights (D,), the C that was taken) from states of n pairs, (n, D) each, and P(chosen beats rejected) (n,).

    Scores with these weights are log-odds. With fewer than FOLDS families the strongest ridge is taken unseen.
    """
    difference = chosen - rejected
    spread = np.concatenate([chosen, rejected]).std(axis=0) + 1e-6
    x = difference / spread
    names = sorted(set(families))
    best = STRENGTHS[0]
    if len(names) >= FOLDS:
        fold = np.array([names.index(family) % FOLDS for family in families])
        losses = {strength: _held_out_loss(x, probability, weight, fold, strength) for strength in STRENGTHS}
        best = min(losses, key=lambda strength: losses[strength])
    return _fit(x, probability, weight, best) / spread, best


def _held_out_loss(x: Floats, probability: Floats, weight: Floats, fold: NDArray[np.int64], strength: float) -> float:
    predicted = np.empty(len(x))
    for k in range(FOLDS):
        inside = fold != k
        w = _fit(x[inside], probability[inside], weight[inside], strength)
        predicted[~inside] = 1 / (1 + np.exp(-x[~inside] @ w))
    return calibration.log_loss(predicted, probability)


def _fit(x: Floats, probability: Floats, weight: Floats, strength: float) -> Floats:
    from sklearn.linear_model import LogisticRegression

    n = len(x)
    labels = np.concatenate([np.ones(n), np.zeros(n)])
    weights = np.concatenate([probability * weight, (1 - probability) * weight])
    model = LogisticRegression(fit_intercept=False, C=strength, max_iter=1000)
    model.fit(np.vstack([x, x]), labels, sample_weight=weights)
    return np.asarray(model.coef_[0], dtype=np.float64)
