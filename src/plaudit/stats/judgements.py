"""What a judge's verdicts on pairs say: win rate with ties, both orders, length control, clusters, and what could have been seen at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import scipy  # its parts load with their first use: not where a service or a command starts
from numpy.typing import ArrayLike

from plaudit.errors import BadInput
from plaudit.stats.intervals import Interval, mean_interval, normal_quantile, numbers, wilson, win_rate
from plaudit.stats.length import length_controlled_win_rate

POWER = 0.8


@dataclass(frozen=True)
class Judged:
    """`win_rate` counts a tie as half. `at_equal_length`: what it would be with both answers equally long. `detectable`: the smallest win rate
    above one half that this many prompts find with 80 % power. `first_shown`: how often the answer that stands first wins (.5 without a
    position bias), `consistent`: share of pairs with the same verdict in both orders; None where only one order was asked."""

    win_rate: Interval
    at_equal_length: Interval | None
    detectable: float
    n_pairs: int
    n_ties: int
    first_shown: Interval | None
    consistent: Interval | None

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def judged(
    outcomes: ArrayLike,
    longer: ArrayLike,
    clusters: Sequence[str],
    rng: np.random.Generator,
    swapped: ArrayLike | None = None,
) -> Judged:
    """Per pair: `outcomes` (n,) 1 the candidate won, .5 a tie, 0 it lost, with the candidate shown first; `swapped` (n,) the same, still from
    the candidate's side, with it shown second; `longer` (n,) its length minus the other's; `clusters` (n,) the prompt. A pair's outcome
    is the mean of both orders: a judge who always says "the first" gives .5. Raises BadInput for shapes, values, fewer than two pairs."""
    shown_first = numbers(outcomes, "outcomes", minimum=2)
    d = numbers(longer, "longer", minimum=2)
    if not len(shown_first) == len(d) == len(clusters):
        raise BadInput(f"{len(shown_first)} outcomes, {len(d)} lengths and {len(clusters)} clusters; give one of each.")
    y, first_shown, consistent = shown_first, None, None
    if swapped is not None:
        shown_second = numbers(swapped, "swapped", minimum=2)
        if shown_second.shape != shown_first.shape:
            raise BadInput(f"{len(shown_first)} outcomes and {len(shown_second)} in the other order; give one of each.")
        y = (shown_first + shown_second) / 2
        if len(set(clusters)) > 1:
            first_shown = mean_interval((shown_first + 1 - shown_second) / 2, clusters)
        consistent = wilson(int((shown_first == shown_second).sum()), len(y))
    rate = win_rate(y, clusters=clusters)
    many = len(y) >= 3
    return Judged(
        win_rate=rate,
        at_equal_length=length_controlled_win_rate(y, d, rng, clusters=clusters) if many else None,
        detectable=0.5 + minimum_detectable(rate),
        n_pairs=len(y),
        n_ties=int((y == 0.5).sum()),
        first_shown=first_shown,
        consistent=consistent,
    )


def minimum_detectable(interval: Interval, power: float = POWER, confidence: float = 0.95) -> float:
    """The smallest true difference from the null that an interval of this width excludes with `power`: (z + z_power) se, se from its width."""
    if not 0 < power < 1:
        raise BadInput(f"power is {power}; it must lie between 0 and 1, such as 0.8.")
    z = normal_quantile(confidence)
    return (z + float(scipy.special.ndtri(power))) * (interval.high - interval.low) / (2 * z)
