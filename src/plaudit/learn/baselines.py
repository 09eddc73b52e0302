"""Two baselines that a reward model must beat, fitted on the same training split with the same soft labels: length, and a bag of words.

Both are logistic regressions without intercept on the difference chosen - rejected, so that swapping the sides gives 1 - p. A soft label
p is two rows: `chosen won` with weight p, `rejected won` with weight 1 - p. Left out: tuning (C = 1 for both), prompts as features (they
cancel in the difference).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Preferences as a baseline reads them; all of length n. `probability` is P(chosen beats rejected)."""

    chosen: Sequence[str]
    rejected: Sequence[str]
    probability: Floats
    weight: Floats


def length_only(train: Pairs) -> Callable[[Pairs], Floats]:
    """Fit on the difference in characters (its sign is learnt: in some data the shorter answer wins). Returns pairs -> P(chosen) (n,)."""

    def features(pairs: Pairs) -> Floats:
        lengths = [[len(a) - len(b)] for a, b in zip(pairs.chosen, pairs.rejected, strict=True)]
        return np.asarray(lengths, dtype=np.float64).reshape(-1, 1)

    scale = float(np.abs(features(train)).mean()) or 1.0
    return _fit(train, lambda pairs: features(pairs) / scale)


def bag_of_words(train: Pairs) -> Callable[[Pairs], Floats]:
    """Fit on the difference in word counts (lower case, words of any length, vocabulary of the training split). Returns pairs -> P(chosen) (n,)."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(token_pattern=r"\w+|[^\w\s]")
    try:
        vectorizer.fit([*train.chosen, *train.rejected])
    except ValueError:  # an empty vocabulary: nothing but white space in the training split, so words say nothing
        return lambda pairs: np.full(len(pairs.chosen), 0.5)
    return _fit(train, lambda pairs: vectorizer.transform(pairs.chosen) - vectorizer.transform(pairs.rejected))


def _fit(train: Pairs, features: Callable[[Pairs], Any]) -> Callable[[Pairs], Floats]:
    import scipy.sparse
    from sklearn.linear_model import LogisticRegression

    x = features(train)
    n = len(train.chosen)
    stack = scipy.sparse.vstack if scipy.sparse.issparse(x) else np.vstack
    labels = np.concatenate([np.ones(n), np.zeros(n)])
    weights = np.concatenate([train.probability * train.weight, (1 - train.probability) * train.weight])
    model = LogisticRegression(fit_intercept=False, C=1.0, max_iter=1000, solver="lbfgs")
    # The mirrored row (-x, 1 - y) says the same as (x, y): rows with x and both labels are all that a fit without intercept needs.
    model.fit(stack([x, x]), labels, sample_weight=weights)

    def predict(pairs: Pairs) -> Floats:
        if not len(pairs.chosen):
            return np.zeros(0)
        return np.asarray(model.predict_proba(features(pairs))[:, 1], dtype=np.float64)

    return predict
