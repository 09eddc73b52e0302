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

import numpy as np
from numpy.typing import NDArray

N_HASHES, BANDS, SEED = 64, 16, 1
SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")
# Of an ASCII text this leaves the same words in small letters, sooner.
_PLAIN = bytes(ord(chr(sign).lower()) if _WORD.match(chr(sign)) else ord(" ") for sign in range(128)) + bytes(128)

Signatures = NDArray[np.uint16]  # (n, N_HASHES)


def shingles(text: str, mark: str = "") -> list[str]:
    """Runs of three words without case and signs, each after `mark`; a shorter text is one run."""
    words = text.encode().translate(_PLAIN).decode().split() if text.isascii() else _WORD.findall(text.casefold())
    if len(words) <= SHINGLE_WORDS:
        return [mark + " ".join(words)]
    return [f"{mark}{one} {two} {three}" for one, two, three in zip(words, words[1:], words[2:], strict=False)]


def signatures(sets: Sequence[Sequence[str]]) -> Signatures:
    """(n, 64) of n sets of shingles."""
    return _shortened(_hashes(sets))


def signatures_with(sets: Sequence[Sequence[str]], more: Sequence[Sequence[str]]) -> tuple[Signatures, Signatures]:
    """Of n sets, and of each with what `more` adds to it: a hash is the least of its set's, so a union has the lesser of its parts'."""
    alone = _hashes(sets)
    return _shortened(alone), _shortened(np.minimum(alone, _hashes(more)))


def _hashes(sets: Sequence[Sequence[str]]) -> NDArray[np.uint32]:
    from rensa import RMinHash

    return np.array(RMinHash.digests_from_token_sets(sets, N_HASHES, SEED), np.uint32).reshape(len(sets), N_HASHES)


def _shortened(hashes: NDArray[np.uint32]) -> Signatures:
    """The low bits: as good as all, and half the memory."""
    return hashes.astype(np.uint16)


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
