"""Which question next: candidates in, the chosen ones and why each was chosen out.

Questions that a reward model finds hard (close to one half), on which the members of an ensemble disagree, of slices that were asked about
least, and a random share. What is chosen by the first three is no fair sample of anything: measure on questions of the random share, or on a
Snapshot's split `evaluation`. Default is all random (docs/annotation.md says what each strategy saves).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput

Floats = NDArray[np.float64]
RANDOM = "random"


@dataclass(frozen=True)
class Mix:
    """Shares of the chosen questions; what they leave is random."""

    close: float = 0.0  # P(the first is better) nearest to one half
    disagreement: float = 0.0  # an ensemble's members differ most about the difference
    coverage: float = 0.0  # of the slice with the fewest questions so far

    def __post_init__(self) -> None:
        shares = [getattr(self, one.name) for one in fields(self)]
        if min(shares) < 0 or sum(shares) > 1:
            raise BadInput(
                f"The mix is {self}; give shares of 0 or more that add up to 1 at most (the rest is random)."
            )

    @property
    def needs_scores(self) -> bool:
        return self.close > 0 or self.disagreement > 0


def read_mix(text: str) -> Mix:
    """`close=.3,disagreement=.3,coverage=.1`; empty: all random. Raises BadInput."""
    given: dict[str, float] = {}
    names = [one.name for one in fields(Mix)]
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, share = part.partition("=")
        try:
            given[name.strip()] = float(share)
        except ValueError as error:
            raise BadInput(f"The mix has {part!r}; write {names[0]}=.3 and so on.") from error
        if name.strip() not in names:
            raise BadInput(f"The mix has {name.strip()!r}; choose from {', '.join(names)} (the rest is random).")
    return Mix(**given)


def choose(
    n: int,
    mix: Mix,
    luck: ArrayLike,
    *,
    difference: ArrayLike | None = None,
    spread: ArrayLike | None = None,
    slices: Sequence[str] | None = None,
    asked: Mapping[str, int] | None = None,
) -> list[tuple[int, str]]:
    """(index, reason) of up to `n` of m candidates, the random share first.

    luck: (m,) a random number for each. difference: (m,) score of the first answer less that of the second. spread: (m,) standard deviation of
    that difference over members. slices: (m,) name of each one's slice. asked: how many of each were asked before. The random share is drawn
    before the others, from all candidates, so that it is a fair sample of them. Raises BadInput where the mix needs what is not given.
    """
    order = np.argsort(np.asarray(luck, dtype=np.float64), kind="stable")
    m, n = len(order), min(n, len(order))
    quota = {one.name: round(n * getattr(mix, one.name)) for one in fields(Mix)}
    n_random = max(0, n - sum(quota.values()))
    taken: dict[int, str] = {int(at): RANDOM for at in order[:n_random]}
    if quota["close"]:
        _take(taken, np.abs(_given(difference, m, "close", "difference"))[order], order, quota["close"], n, "close")
    if quota["disagreement"]:
        key = -_given(spread, m, "disagreement", "spread")[order]
        _take(taken, key, order, quota["disagreement"], n, "disagreement")
    if quota["coverage"]:
        if slices is None:
            raise BadInput("The mix asks for coverage, but candidates have no slices.")
        counts = Counter(asked or {})
        counts.update(slices[at] for at in taken)
        left: dict[str, list[int]] = {}
        for at in reversed([int(one) for one in order if int(one) not in taken]):
            left.setdefault(slices[at], []).append(at)
        while left and len(taken) < n:
            name = min(sorted(left), key=lambda one: counts[one])
            taken[left[name].pop()] = "coverage"
            counts[name] += 1
            if not left[name]:
                del left[name]
    return list(taken.items())


def _given(values: ArrayLike | None, m: int, name: str, needed: str) -> Floats:
    if values is None:
        raise BadInput(f"The mix asks for {name}, but there is no {needed} of scores; give a reward model.")
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (m,) or not np.isfinite(found).all():
        raise BadInput(f"{needed} has shape {found.shape} for {m} candidates, or is not finite; give one number each.")
    return found


def _take(taken: dict[int, str], key: Floats, order: NDArray[np.int64], quota: int, n: int, reason: str) -> None:
    """The `quota` with the smallest key that are not taken yet; `key` is in the order of luck, which breaks ties."""
    for at in order[np.argsort(key, kind="stable")]:
        if quota == 0 or len(taken) >= n:
            return
        if int(at) not in taken:
            taken[int(at)] = reason
            quota -= 1
