"""Rollouts as guards see them, made up: no two alike, and what the arguments say planted."""

import numpy as np

from plaudit.learn.readings import FORMAT_FIGURES, Sampled

VOCABULARY = np.arange(1, 301)
ZIPF = (1 / VOCABULARY / (1 / VOCABULARY).sum()).cumsum()


def rollout(rng, prompts=12, samples=4, score=0.0, gold=0.0, length=0.0, hedges=0.0, words=300, per_token=0.0):
    """Prompts differ in their mean score, length, style and vocabulary, as real ones do; the arguments plant a change."""
    group, ids, figures = (
        [],
        [],
        {name: [] for name in ("score", "gold", "disagreement", "tokens", "kl", *FORMAT_FIGURES)},
    )
    for prompt in range(prompts):
        own, offset, style = rng.normal(0, 0.5, 2), int(rng.integers(300)), rng.beta(0.3, 3, len(FORMAT_FIGURES))
        for _ in range(samples):
            shared = rng.normal(0, 0.8)
            n = int(np.clip(rng.normal(16 + length + 3 * own[1], 4), 3, 60))
            group.append(prompt)
            ids.append(((np.searchsorted(ZIPF, rng.random(n)) + offset) % words).tolist())
            figures["tokens"].append(float(n))
            figures["score"].append(score + own[0] + shared + rng.normal(0, 0.4) + per_token * n)
            figures["gold"].append(gold + 0.6 * own[0] + 0.6 * shared + rng.normal(0, 0.7))
            figures["disagreement"].append(abs(rng.normal(0.3, 0.1)))
            figures["kl"].append(rng.normal(2, 1.5))
            for name, often in zip(FORMAT_FIGURES, style, strict=True):
                share = often + hedges * (name == "hedge")
                figures[name].append(rng.beta(1, 30) if name == "repetition" else rng.random() < share)
    return Sampled(group, ids, {name: [float(one) for one in values] for name, values in figures.items()})
