"""How many annotations each way of choosing questions needs for the same accuracy of the reward model: real judgements, replayed.

    python benchmarks/selection.py --data DIR [--seeds 20] [--features 60]

DIR holds hh-harmless/comparisons.jsonl.gz and summaries/comparisons.jsonl.gz. In each seed a third of the prompts is held out (active selection never
touches it), STEP questions are drawn at random, and then STEP at a time by the strategy (`stats.selection.choose`), each with the label that its
annotator gave. For speed the reward model is a ridge logistic regression on the difference of word features (TF-IDF of one and two words,
reduced to `--features` by an SVD that sees no label); the ensemble is four of them on bootstraps. Slices for coverage are the source of the
question (subreddit or news; 8 clusters of prompts for HH).

The target is the accuracy of random selection at TARGET labels, read from the mean curve over seeds made monotone; `saved` is the share of
labels that a strategy needs fewer, with a 95 % bootstrap interval over seeds (paired: same splits, same first questions). A strategy that
never gets there counts as the last step of its curve. Prints a table and one JSON line. Active selection is worth switching on where `saved`
is .2 or more with an interval above 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from plaudit.formats import hh, summarize
from plaudit.formats.records import Record
from plaudit.stats.selection import Mix, choose

Floats = NDArray[np.float64]
STEP, TARGET = 100, 400
MEMBERS, RIDGE = 4, 50.0
STRATEGIES = {
    "random": Mix(),
    "close": Mix(close=0.9),
    "disagreement": Mix(disagreement=0.9),
    "coverage": Mix(coverage=0.9),
    "mixed": Mix(close=0.3, disagreement=0.3, coverage=0.1),
}


@dataclass(frozen=True)
class Pairs:
    """x: (n, D) features of the first answer less those of the second. first_won: (n,). prompt: (n,) code. slices: (n,) names."""

    x: Floats
    first_won: NDArray[np.bool_]
    prompt: NDArray[np.int64]
    slices: list[str]


def load(path: Path, name: str, n_features: int) -> Pairs:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    reader = hh.read if name == "hh-harmless" else summarize.read
    records = [one for one in reader(path) if isinstance(one, Record) and one.ranks is not None]
    luck = np.random.default_rng(0)
    swap = luck.random(len(records)) < 0.5  # HH's chosen answer stands first in the file
    answers = [one.responses[::-1] if s else one.responses for one, s in zip(records, swap, strict=True)]
    first_won = np.array([(one.ranks or (0, 0))[0] == 1 for one in records]) ^ swap
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    table = words.fit_transform([text for two in answers for text in two])
    states = TruncatedSVD(n_features, n_iter=1, random_state=0).fit_transform(table)
    lengths = np.array([[len(text.split())] for two in answers for text in two], dtype=np.float64)
    lengths = np.log1p(lengths) / np.log1p(lengths).std()
    states = np.hstack([states / states.std(axis=0), 4 * lengths])  # length is little held back by the ridge
    prompts = [str(one.messages[-1]["content"]) for one in records]
    codes = {text: code for code, text in enumerate(dict.fromkeys(prompts))}
    if name == "summaries":
        slices = [one.meta.get("batch", "") for one in records]
    else:
        asked = TruncatedSVD(20, n_iter=2, random_state=0).fit_transform(
            TfidfVectorizer(min_df=3).fit_transform(prompts)
        )
        slices = [str(one) for one in KMeans(8, n_init=1, random_state=0).fit_predict(asked)]
    return Pairs(states[0::2] - states[1::2], first_won, np.array([codes[one] for one in prompts]), slices)


def fit(x: Floats, first_won: NDArray[np.bool_]) -> Floats:
    """Ridge logistic regression without intercept.   (n, D) -> (D,)

    By the bound of Boehning & Lindsay (1988), p (1 - p) <= 1/4: each step lowers the loss, where Newton's own overshoots on few labels.
    """
    w = np.zeros(x.shape[1])
    bound = np.linalg.inv(x.T @ x / 4 + RIDGE * np.eye(x.shape[1]))
    for _ in range(30):
        w = w - bound @ (x.T @ (special.expit(x @ w) - first_won) + RIDGE * w)
    return w


def curve(pairs: Pairs, mix: Mix, seed: int, most: int) -> list[float]:
    """Accuracy on the held-out prompts with STEP, 2 STEP, .. `most` labels."""
    luck = np.random.default_rng(seed)
    held = np.isin(pairs.prompt, luck.permutation(pairs.prompt.max() + 1)[: (pairs.prompt.max() + 1) // 3])
    pool = luck.permutation(np.flatnonzero(~held))
    labelled, free = list(pool[:STEP]), list(pool[STEP:])
    accuracy: list[float] = []
    while True:
        x, y = pairs.x[labelled], pairs.first_won[labelled]
        w = fit(x, y)
        accuracy.append(float(((pairs.x[held] @ w > 0) == pairs.first_won[held]).mean()))
        if len(labelled) + STEP > most:
            return accuracy
        spread = None
        if mix.disagreement:
            members = [luck.integers(0, len(x), len(x)) for _ in range(MEMBERS)]
            spread = np.std([pairs.x[free] @ fit(x[rows], y[rows]) for rows in members], axis=0)
        chosen = choose(
            STEP,
            mix,
            luck.random(len(free)),
            difference=pairs.x[free] @ w if mix.close else None,
            spread=spread,
            slices=[pairs.slices[at] for at in free],
            asked=Counter(pairs.slices[at] for at in labelled),
        )
        taken = {at for at, _ in chosen}
        labelled += [free[at] for at in sorted(taken)]
        free = [one for at, one in enumerate(free) if at not in taken]


def needed(curves: Floats, target: float) -> float:
    """Labels at which the mean of curves (seeds, steps), made monotone, reaches the target; the last step where it never does."""
    from sklearn.isotonic import isotonic_regression

    mean = isotonic_regression(curves.mean(axis=0))
    labels = STEP * np.arange(1, len(mean) + 1)
    at = int(np.searchsorted(mean, target))
    if at == 0 or at == len(mean):
        return float(labels[min(at, len(mean) - 1)])
    low, high = mean[at - 1], mean[at]
    return float(labels[at - 1] + STEP * (target - low) / (high - low))


def compare(curves: dict[str, Floats]) -> list[dict[str, Any]]:
    """One row a strategy: accuracy at TARGET labels, labels needed for what random has there, and the share saved."""
    at, luck = TARGET // STEP - 1, np.random.default_rng(0)
    n_seeds = len(curves["random"])
    draws = [np.arange(n_seeds), *(luck.integers(0, n_seeds, n_seeds) for _ in range(1000))]
    found: dict[str, list[float]] = {name: [] for name in curves}
    for rows in draws:
        from sklearn.isotonic import isotonic_regression

        target = float(isotonic_regression(curves["random"][rows].mean(axis=0))[at])
        base = needed(curves["random"][rows], target)
        for name, one in curves.items():
            found[name].append(1 - needed(one[rows], target) / base)
    return [
        {
            "strategy": name,
            "accuracy": float(one[:, at].mean()),
            "last": float(one[:, -1].mean()),
            "needed": TARGET * (1 - found[name][0]),
            "saved": found[name][0],
            "low": float(np.quantile(found[name][1:], 0.025)),
            "high": float(np.quantile(found[name][1:], 0.975)),
        }
        for name, one in curves.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--features", type=int, default=60)
    given = parser.parse_args()
    told = {}
    for name, most in (("hh-harmless", 1000), ("summaries", 600)):
        pairs = load(given.data / name / "comparisons.jsonl.gz", name, given.features)
        curves = {}
        for strategy, mix in STRATEGIES.items():
            curves[strategy] = np.array([curve(pairs, mix, seed, most) for seed in range(given.seeds)])
            print(f"{name} {strategy}: done", file=sys.stderr, flush=True)
        told[name] = compare(curves)
        print(f"\n{name}: {len(pairs.x)} pairs, {given.seeds} seeds; accuracy at {TARGET} and {most} labels")
        print(f"{'strategy':<14}{TARGET:>8}{most:>8}{'needed':>8}{'saved':>8}  95 %")
        for row in told[name]:
            figures = f"{row['accuracy']:>8.3f}{row['last']:>8.3f}{row['needed']:>8.0f}{row['saved']:>8.2f}"
            print(f"{row['strategy']:<14}{figures}  [{row['low']:.2f}, {row['high']:.2f}]", flush=True)
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
