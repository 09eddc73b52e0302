"""Near duplicates: texts that share most of their runs of three words (MinHash with banded buckets).

A signature is 64 hashes of 16 bits (rensa, seeded: the same on any machine); the share of equal places estimates the Jaccard index of two
texts, with a standard error of at most .0625. Four hashes make a band, and whoever shares a band meets in a bucket; there each is held
against the bucket's first, so the cost is linear in texts. Two texts of Jaccard index .8 share a band with probability .9998, two of .5 with .64,
and then the estimate decides.

Source: Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_HASHES, BANDS, SEED = 64, 16, 1
SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")
_SPACED = {
    sign: " " for sign in range(128) if not _WORD.match(chr(sign))
}  # of an ASCII text this leaves the same words, sooner

Signatures = NDArray[np.uint16]  # (n, N_HASHES)


def shingles(text: str, mark: str = "") -> list[str]:
    """Runs of three words without case and signs, each after `mark`; a shorter text is one run."""
    words = text.translate(_SPACED).lower().split() if text.isascii() else _WORD.findall(text.casefold())
    if len(words) <= SHINGLE_WORDS:
        return [mark + " ".join(words)]
    return [f"{mark}{a} {b} {c}" for a, b, c in zip(words, words[1:], words[2:], strict=False)]


def signatures(sets: Sequence[Sequence[str]]) -> Signatures:
    """(n, 64) of n sets of shingles."""
    from rensa import RMinHash

    made: NDArray[np.uint16] = np.empty((len(sets), N_HASHES), np.uint16)
    for place, held in enumerate(sets):
        hasher: Any = RMinHash(num_perm=N_HASHES, seed=SEED)
        hasher.update(held)
        made[place] = np.array(hasher.digest(), np.uint32).astype(
            np.uint16
        )  # the low bits: as good as all, a quarter of the memory
    return made


def near_pairs(signed: Signatures, threshold: float) -> Iterator[tuple[int, int]]:
    """(i, j), i < j, of rows whose estimated Jaccard index is `threshold` or more: enough of them that joining them joins the groups."""
    bands = np.ascontiguousarray(signed).view(np.uint64)  # (n, BANDS): four hashes of 16 bits are one of 64
    for band in range(bands.shape[1]):
        keys = bands[:, band]
        order = np.argsort(keys, kind="stable")
        starts = np.concatenate(([True], keys[order][1:] != keys[order][:-1])) if len(order) else np.zeros(0, bool)
        firsts = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
        others = np.flatnonzero(~starts)
        for part in np.array_split(others, len(others) // 100_000 + 1):
            first, other = firsts[part], order[part]
            close = (signed[first] == signed[other]).mean(axis=1) >= threshold
            yield from zip(first[close].tolist(), other[close].tolist(), strict=True)
