"""What an experiment's figures lead to: one order of decisions, for running experiments (`loop/experiment.py`) and for files (`stats/looks.py`).

1. a guardrail fired: roll back, however few users there are;
2. users do not arrive as planned, or met both arms: hold, for nothing below can be trusted;
3. too few users, or the ramp is not at its end: hold;
4. a goal is not certainly met: hold;
5. promote, which means that people may now approve.

Holds are advisory, rollbacks are protective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.stats.intervals import Interval
from plaudit.stats.sequential import SRM_WARN_P, SampleRatio, difference_sequence, harm_e_value, sample_ratio
from plaudit.stats.user_metrics import Difference

Better = Literal["up", "down"]
EVEN = (0.4, 0.6)  # share of the candidate's users between which the bounds of a difference hold


@dataclass(frozen=True)
class Guardrail:
    """`fired` rolls back. An e-process has `value` against `threshold`; a bounded difference has its interval against `threshold`."""

    name: str
    value: float | None
    threshold: float
    fired: bool
    n: int
    low: float | None = None
    high: float | None = None

    def said(self) -> str:
        if self.low is None or self.high is None:
            return f"guardrail {self.name}: e = {self.value:.3g} reached {self.threshold:.3g} (n = {self.n})"
        return (
            f"guardrail {self.name}: {self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}] "
            f"against control (n = {self.n})"
        )


@dataclass(frozen=True)
class Assigned:
    """What is wrong with the assignment, in words. `stopped` never ends: an e-value that was once reached stays evidence."""

    reasons: tuple[str, ...]
    ratio: SampleRatio | None
    stopped: bool


@dataclass(frozen=True)
class Verdict:
    """`decided_by` is the first step of the order that had something to say; `approval` is left to people."""

    verdict: Literal["promote", "hold", "roll_back"]
    decided_by: Literal["guardrail", "assignment", "sample", "goal", "approval"]
    reasons: tuple[str, ...]


def decide(
    guardrails: Sequence[Guardrail], broken: Sequence[str], waiting: Sequence[str], missed: Sequence[str], n_users: int
) -> Verdict:
    """The verdict at one look. broken, waiting, missed: what each later step of the order says against promotion, empty where nothing."""
    fired = tuple(guardrail.said() for guardrail in guardrails if guardrail.fired)
    if fired:
        return Verdict("roll_back", "guardrail", fired)
    if broken:
        return Verdict("hold", "assignment", tuple(broken))
    if waiting:
        return Verdict("hold", "sample", tuple(waiting))
    if missed:
        return Verdict("hold", "goal", tuple(missed))
    return Verdict("promote", "approval", (f"no guardrail fired over {n_users} users and the goal is met",))


def check_assignment(
    users: ArrayLike, shares: ArrayLike, n_double: int, max_double_fraction: float, stopped: bool = False
) -> Assigned:
    """users (S, 2): control and candidate users by the stage that enrolled them; shares (2,) or (S, 2): planned. n_double: users left out
    because they met both arms. stopped: an earlier look stopped the experiment."""
    counts = np.atleast_2d(np.asarray(users, dtype=np.int64))
    n = int(counts.sum())
    reasons, ratio = [], None
    if n:
        ratio = sample_ratio(counts, shares)
        stopped = stopped or ratio.mismatch
        control, candidate = counts.sum(axis=0)
        if stopped or ratio.chi_square_p < SRM_WARN_P:
            reasons.append(
                f"users do not arrive in the planned numbers ({candidate} candidate, {control} control, "
                f"p = {ratio.chi_square_p:.2g}, e = {ratio.e_value:.3g}): something loses users of one arm"
                + ("; the experiment is stopped" if stopped else "")
            )
    if n_double > max_double_fraction * (n + n_double):
        reasons.append(f"{n_double} of {n + n_double} users met both arms: the assignment is not sticky")
    return Assigned(tuple(reasons), ratio, stopped)


def too_few(n_candidate: int, n_control: int, min_users: int) -> list[str]:
    """The reason to wait for users, if there is one."""
    if min(n_candidate, n_control) >= min_users:
        return []
    return [f"{n_candidate} candidate and {n_control} control users; {min_users} in each arm are needed"]


def bounded(difference: Difference | None, n_planned: float, alpha: float, min_users: int) -> Interval | None:
    """Bounds that hold at every look. None before `min_users`, for unequal arms (an alarm of their own, or a small canary, for which the
    asymptotics fail), and while the metric is one value for everybody."""
    if difference is None or difference.se == 0:
        return None
    share = difference.n_candidate / (difference.n_candidate + difference.n_control)
    if not EVEN[0] <= share <= EVEN[1]:
        return None
    return difference_sequence(difference, n_planned, alpha, min_users)


def event_guardrail(
    name: str, in_candidate: NDArray[np.bool_], probability: NDArray[np.float64], alpha: float, harmful: bool = True
) -> Guardrail:
    """First bad event of each user (E,) by the e-process. `harmful`: whether the rate per message or user is higher too; more events at no
    higher a rate mean that the arm is used more, which is not harm."""
    limit = 1 / alpha
    e_value = _e_value(in_candidate, probability)
    return Guardrail(name, e_value, limit, e_value >= limit and harmful, len(in_candidate))


def bounded_guardrail(name: str, interval: Interval | None, better: Better, margin: float = 0.0) -> Guardrail:
    """Fires where the whole interval of candidate minus control is worse than `margin` >= 0."""
    threshold = 0.0 - margin if better == "up" else margin  # nobody should read -0
    if interval is None:
        return Guardrail(name, None, threshold, False, 0)
    fired = interval.high < threshold if better == "up" else interval.low > threshold
    return Guardrail(name, interval.mean, threshold, fired, interval.n, interval.low, interval.high)


def goal_met(interval: Interval, better: Better, margin: float) -> bool:
    """Whether the whole interval of candidate minus control is better than `margin` worse; margin 0 asks for an improvement."""
    return interval.low > -margin if better == "up" else interval.high < margin


def _e_value(chosen: NDArray[np.bool_], probability: NDArray[np.float64]) -> float:
    if len(chosen) == 0:
        return 1.0
    strata, index = np.unique(probability, return_inverse=True)
    events = np.bincount(index, minlength=len(strata))
    return harm_e_value(np.bincount(index, weights=chosen, minlength=len(strata)), events, strata)
