"""Do the texts repeat themselves or one another? Over lists of tokens (words, ids: anything hashable)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

from plaudit.errors import BadInput

Tokens = Sequence[Hashable]
_SMOOTHING = 0.1


def distinct_n(texts: Sequence[Tokens], n: int) -> float:
    """Distinct n-grams over all n-grams of all texts (Li et al. 2016); 0 where no text has n tokens.

    Falls as the total length grows: compare equal numbers of texts of similar length.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_fraction(tokens: Tokens, n: int = 4) -> float:
    """Share of a text's n-grams that occurred earlier in it, 1 - distinct / all (Welleck et al. 2020, rep-n); 0 below n tokens."""
    grams = list(_ngrams(tokens, n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[Tokens], max_n: int = 4) -> float:
    """Mean of `self_bleus`: 1 where all are equal, near 0 where nothing is shared (Zhu et al. 2018, Texygen)."""
    return sum(self_bleus(texts, max_n)) / len(texts)


def self_bleus(texts: Sequence[Tokens], max_n: int = 4) -> list[float]:
    """BLEU of each text against all others.

    BLEU with uniform weights, the brevity penalty of the closest reference, and 0.1 for a count of zero matches (Chen & Cherry 2014,
    method 1). A text shorter than `max_n` is judged by the n-grams it has: two answers of one word are as equal as two of a hundred.
    Time is linear in the tokens: for each n-gram only the two largest counts matter, the second where the first is one's own.
    """
    if len(texts) < 2:
        raise BadInput(f"Self-BLEU of {len(texts)} text(s) does not exist; give at least two.")
    counts = [[Counter(_ngrams(text, n)) for n in range(1, max_n + 1)] for text in texts]
    rivals = [_top_counts([row[n] for row in counts]) for n in range(max_n)]
    lengths = Counter(len(text) for text in texts)
    return [_bleu(len(text), row, i, rivals, lengths) for i, (text, row) in enumerate(zip(texts, counts, strict=True))]


def _top_counts(counters: Sequence[Counter[tuple[Hashable, ...]]]) -> dict[tuple[Hashable, ...], tuple[int, int, int]]:
    """n-gram -> (largest count, the text that has it, largest count among the other texts)."""
    best: dict[tuple[Hashable, ...], tuple[int, int, int]] = {}
    for owner, counter in enumerate(counters):
        for gram, count in counter.items():
            top, top_owner, second = best.get(gram, (0, -1, 0))
            best[gram] = (count, owner, top) if count > top else (top, top_owner, max(second, count))
    return best


def _bleu(
    length: int,
    counters: Sequence[Counter[tuple[Hashable, ...]]],
    own: int,
    rivals: Sequence[dict[tuple[Hashable, ...], tuple[int, int, int]]],
    lengths: Counter[int],
) -> float:
    if not length:
        return float(lengths[0] > 1)
    log_precision, n_orders = 0.0, min(length, len(counters))
    for n, counter in enumerate(counters[:n_orders]):
        matches = 0
        for gram, count in counter.items():
            top, owner, second = rivals[n][gram]
            matches += min(count, second if owner == own else top)
        if n == 0 and matches == 0:
            return 0.0
        log_precision += math.log((matches or _SMOOTHING) / counter.total()) / n_orders
    others = [size for size, n_texts in lengths.items() if n_texts > (size == length)]
    closest = min(others, key=lambda size: (abs(size - length), size))
    return math.exp(min(0.0, 1 - closest / length) + log_precision)


def _ngrams(tokens: Tokens, n: int) -> Iterator[tuple[Hashable, ...]]:
    if n < 1:
        raise BadInput(f"n is {n}; an n-gram has at least one token.")
    return zip(*(tokens[i:] for i in range(n)), strict=False)
