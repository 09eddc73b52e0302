"""Where most annotators are wrong: the slices in which an expert overturns more of what they concluded than elsewhere.

Only a random share of questions may be looked at for this: what annotators dispute, or what a lead picks, is overturned more often anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.errors import BadInput
from plaudit.stats.intervals import Interval, wilson

ALPHA = 0.05  # of any slice being flagged where none is different (Holm)
FROM = 4  # audits in a slice below which nothing is said
WORSE = 0.1  # by so much more must be overturned than elsewhere: dust is no news


@dataclass(frozen=True)
class SliceAudit:
    """One slice: the share that experts overturned, with its 95 % interval; `p`: of so many or more, were it like the rest (Fisher, one-sided)."""

    name: str
    overturned: Interval
    elsewhere: float | None
    p: float
    flagged: bool


def by_slice(slices: Sequence[Sequence[str]], overturned: Sequence[bool]) -> list[SliceAudit]:
    """Slices by p. slices: of each audited question, the names it belongs to. Raises BadInput for columns of different length."""
    from scipy.stats import hypergeom

    if len(slices) != len(overturned):
        raise BadInput(f"There are {len(slices)} rows of slices and {len(overturned)} decisions; give one each.")
    n, k = len(overturned), sum(overturned)
    rows = []
    for name in sorted({name for names in slices for name in names}):
        inside = [bool(o) for names, o in zip(slices, overturned, strict=True) if name in names]
        if len(inside) < FROM:
            continue
        rate = wilson(sum(inside), len(inside))
        elsewhere = (k - sum(inside)) / (n - len(inside)) if n > len(inside) else None
        rows.append((name, rate, elsewhere, float(hypergeom.sf(sum(inside) - 1, n, k, len(inside)))))
    rows.sort(key=lambda row: row[3])
    found, open_still = [], True
    for place, (name, rate, elsewhere, p) in enumerate(rows):
        open_still = open_still and p * (len(rows) - place) < ALPHA
        worse = elsewhere is not None and rate.mean >= elsewhere + WORSE
        found.append(SliceAudit(name, rate, elsewhere, p, open_still and worse))
    return found
