"""Which split a row is in: all rows of a prompt family are in one, and so are families that are linked.

A family's place in 0..1 is a hash of the seed and the name of the first family it is linked with, so it never moves from one Snapshot to the
next, however much is added. Stratified by slice, it is its rank by that hash within the slice instead: each slice then has its shares to
within one family, and families may move when others come.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

SPLITS = ("train", "valid", "test")
EVALUATION = "evaluation"  # a fourth, where it is asked for: nothing in it was chosen by active selection
UNLEARNT = ("test", EVALUATION)  # that nothing is trained on


def families_together(links: Iterable[tuple[str, Hashable]]) -> dict[str, str]:
    """family -> the name that stands for it: the first by name among those linked by a shared key (union-find)."""
    parent: dict[str, str] = {}

    def root(family: str) -> str:
        while parent[family] != family:
            parent[family] = parent[parent[family]]
            family = parent[family]
        return family

    first_with: dict[Hashable, str] = {}
    for family, key in links:
        parent.setdefault(family, family)
        other = first_with.setdefault(key, family)
        if other == family:  # as most links do, it names nobody else
            continue
        one, two = sorted((root(family), root(other)))
        parent[two] = one
    return {family: root(family) for family in parent}


def split_of(family: str, seed: int, fractions: Sequence[float]) -> str:
    return _at(_place(f"{seed}:{family}"), fractions)


def splits(
    together: Mapping[str, str],
    slices: Mapping[str, Counter[str]],
    seed: int,
    fractions: Sequence[float],
    evaluation_fraction: float = 0.0,
) -> dict[str, str]:
    """family -> split. `slices`: how many rows of each slice a family has; empty where nothing is stratified."""
    roots = sorted(set(together.values()))
    chosen = {root for root in roots if _place(f"{seed}:{EVALUATION}:{root}") < evaluation_fraction}
    if slices:
        weights: dict[str, Counter[str]] = defaultdict(Counter)
        for family, counts in slices.items():
            weights[together[family]] += counts
        stratum = {root: max(sorted(counts), key=lambda name: counts[name]) for root, counts in weights.items()}
        members: dict[str, list[str]] = defaultdict(list)
        for root in sorted(roots, key=lambda one: _place(f"{seed}:{one}")):
            if root not in chosen:
                members[stratum.get(root, "")].append(root)
        of_root = {
            root: _at((rank + 0.5) / len(group), fractions)
            for group in members.values()
            for rank, root in enumerate(group)
        }
    else:
        of_root = {root: split_of(root, seed, fractions) for root in roots}
    of_root |= dict.fromkeys(chosen, EVALUATION)
    return {family: of_root[root] for family, root in together.items()}


def _place(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def _at(place: float, fractions: Sequence[float]) -> str:
    if place < fractions[0]:
        return SPLITS[0]
    return SPLITS[1] if place < fractions[0] + fractions[1] else SPLITS[2]
