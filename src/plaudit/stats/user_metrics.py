"""Metrics per user: the unit of analysis is the unit of randomisation.

Messages of one user go together, so message-level variances under user-level assignment alarm far too often, and pooling across ramp
stages turns any drift of the base rate into an effect; `stratified` compares within stages and then averages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput
from plaudit.stats.intervals import numbers

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Candidate minus control, its standard error, and the users in each arm."""

    mean: float
    se: float
    n_control: int
    n_candidate: int


def difference(control: ArrayLike, candidate: ArrayLike) -> Difference:
    """Difference of means of one value per user, (n_control,) and (n_candidate,), variances not pooled."""
    a, b = numbers(control, "control", minimum=2), numbers(candidate, "candidate", minimum=2)
    se = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return Difference(float(b.mean() - a.mean()), se, len(a), len(b))


def ratio_difference(
    control_sums: ArrayLike, control_counts: ArrayLike, candidate_sums: ArrayLike, candidate_counts: ArrayLike
) -> Difference:
    """Difference of per-message rates (sum over users / sum of messages), each array one value per user.

    Delta method at the user level (Deng et al. 2018): Var(R) = Var(x_u - R n_u) / (n_users mean(n_u)^2).
    """
    return difference(
        linearised(control_sums, control_counts, "control"), linearised(candidate_sums, candidate_counts, "candidate")
    )


def linearised(sums: ArrayLike, counts: ArrayLike, name: str = "users") -> Floats:
    """One value per user, (n,), of one arm, whose mean is the arm's rate per message and whose variance is the delta method's.

    R + (x_u - R n_u) / mean(n_u): what CUPED and winsorising of a ratio act on. With one message each it is x_u itself.
    """
    x, n = numbers(sums, f"{name} sums", minimum=2), numbers(counts, f"{name} counts", minimum=2)
    if x.shape != n.shape or (n < 0).any() or n.sum() <= 0:
        raise BadInput(f"{name}: give one sum and one count >= 0 per user, with at least one message in all.")
    rate = float(x.sum() / n.sum())
    values: Floats = rate + (x - rate * n) / n.mean()
    return values


def with_one_more_event(difference: Difference, n_control: float, n_candidate: float) -> Difference:
    """A difference of rates of yes and no over so many messages in each arm, as uncertain as if each arm had seen one more yes.

    Without it a rate of zero, or of one, looks certain: its plug-in variance is zero. With a dozen events it changes next to nothing.
    """
    se = math.sqrt(difference.se**2 + 1 / n_control**2 + 1 / n_candidate**2)
    return replace(difference, se=se)


def stratified(stages: Sequence[Difference]) -> Difference:
    """One difference from those within each stage, weighted by n_a n_b / (n_a + n_b), which no outcome can influence."""
    if not stages:
        raise BadInput("There is no stage to average over; give at least one difference.")
    weights = np.array([s.n_control * s.n_candidate / (s.n_control + s.n_candidate) for s in stages])
    weights = weights / weights.sum()
    mean = float(sum(w * s.mean for w, s in zip(weights, stages, strict=True)))
    se = math.sqrt(sum((w * s.se) ** 2 for w, s in zip(weights, stages, strict=True)))
    return Difference(mean, se, sum(s.n_control for s in stages), sum(s.n_candidate for s in stages))


def cuped(values: ArrayLike, before: ArrayLike) -> Floats:
    """Values (n,) of users of *all* arms with what their pre-period (n,) predicts taken out (Deng et al. 2013).

    y - theta (x - mean x), theta = cov(x, y) / var(x) over all arms together. A user without a pre-period (NaN) is left as they are.
    """
    y, x = numbers(values, "values", minimum=2), np.asarray(before, dtype=np.float64)
    if x.shape != y.shape:
        raise BadInput(f"values has shape {y.shape} and before {x.shape}; give one pre-period value (or NaN) per user.")
    known = np.isfinite(x)
    if known.sum() < 2 or np.ptp(x[known]) == 0:
        return y.copy()
    centred = np.where(known, x - x[known].mean(), 0.0)
    theta = float(centred[known] @ (y[known] - y[known].mean()) / (centred[known] @ centred[known]))
    return y - theta * centred


def winsorise(values: ArrayLike, fraction: float = 0.01) -> Floats:
    """Values (n,) of users of all arms, cut at the `fraction` and 1 - `fraction` quantiles of all of them."""
    y = numbers(values, "values")
    if not 0 <= fraction < 0.5:
        raise BadInput(f"fraction is {fraction}; cut less than half of the values at either end.")
    low, high = np.quantile(y, [fraction, 1 - fraction])
    return np.clip(y, low, high)
