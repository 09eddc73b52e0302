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
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """Candidate minus control, its standard error, and the users in each arm. `plain_se`: before CUPED, None where there is no pre-period;
    `n_before`: users who have one."""

    mean: float
    se: float
    n_control: int
    n_candidate: int
    plain_se: float | None = None
    n_before: int = 0

    def adjusted(self) -> dict[str, float | int] | None:
        """What CUPED did: users with a pre-period, and the share of the variance that it leaves."""
        if self.plain_se is None:
            return None
        left = (self.se / self.plain_se) ** 2 if self.plain_se else 1.0
        return {"n_users": self.n_before, "variance_fraction": left}


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


def within(
    sums: Floats, counts: Floats, control: Bools, candidate: Bools, before: Floats | None = None, cut: float = 0.0
) -> Difference:
    """Candidate minus control of one stage, at the user level: sums and counts (n,), which users (n,) are of each arm, their pre-period (n,)
    (NaN: none) for CUPED, the share of values to cut at either end."""
    n_control, n_candidate = int(control.sum()), int(candidate.sum())
    if np.ptp(sums[control | candidate] / counts[control | candidate]) == 0:
        found = Difference(0.0, 0.0, n_control, n_candidate)  # rounding would leave 1e-17
        return found if before is None else replace(found, plain_se=0.0)
    values = np.concatenate([linearised(sums[arm], counts[arm]) for arm in (control, candidate)])
    if cut:
        values = winsorise(values, cut)
    plain = difference(values[:n_control], values[n_control:])
    if before is None:
        return plain
    past = np.concatenate([before[control], before[candidate]])
    values = cuped(values, past)
    found = difference(values[:n_control], values[n_control:])
    return replace(found, plain_se=plain.se, n_before=int(np.isfinite(past).sum()))


def with_one_more_event(difference: Difference, n_control: float, n_candidate: float) -> Difference:
    """A difference of rates of yes and no over so many messages in each arm, as uncertain as if each arm had seen one more yes.

    Without it a rate of zero, or of one, looks certain: its plug-in variance is zero. With a dozen events it changes next to nothing.
    """
    more = 1 / n_control**2 + 1 / n_candidate**2
    plain = None if difference.plain_se is None else math.sqrt(difference.plain_se**2 + more)
    return replace(difference, se=math.sqrt(difference.se**2 + more), plain_se=plain)


def stratified(stages: Sequence[Difference]) -> Difference:
    """One difference from those within each stage, weighted by n_a n_b / (n_a + n_b), which no outcome can influence."""
    if not stages:
        raise BadInput("There is no stage to average over; give at least one difference.")
    weights = np.array([s.n_control * s.n_candidate / (s.n_control + s.n_candidate) for s in stages])
    weights = weights / weights.sum()
    mean = float(sum(w * s.mean for w, s in zip(weights, stages, strict=True)))
    se = math.sqrt(sum((w * s.se) ** 2 for w, s in zip(weights, stages, strict=True)))
    plain: float | None = None
    if any(s.plain_se is not None for s in stages):
        ses = [s.se if s.plain_se is None else s.plain_se for s in stages]
        plain = math.sqrt(sum((w * one) ** 2 for w, one in zip(weights, ses, strict=True)))
    n_control, n_candidate = sum(s.n_control for s in stages), sum(s.n_candidate for s in stages)
    return Difference(mean, se, n_control, n_candidate, plain, sum(s.n_before for s in stages))


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
