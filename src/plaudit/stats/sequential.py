"""Tests that stay valid however often one looks: guardrail e-process, asymptotic confidence sequence, sample-ratio mismatch.

Everything shown while an experiment runs comes from here. A z-test read after each of 1,500 users of an A/A experiment at 50/50 gives a
false alarm in 26 to 34 % of experiments, and in 54 to 100 % under drift and a ramp; the e-process below in at most 4 %, watched over up
to 6,000 users (the scenarios of tests/unit/stats/test_sequential.py).

An e-value is evidence against "nothing is wrong" whose mean is at most 1 at every time while nothing is; reject when it reaches 1/alpha
(Ville's inequality).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts load with their first use: not where a service or a command starts
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput
from plaudit.stats.intervals import Interval
from plaudit.stats.user_metrics import Difference

Floats = NDArray[np.float64]
Harm = Literal["more", "fewer"]

# Log odds of an event falling in the candidate's arm that the guardrail mixes over: 10 % more events up to five times as many.
EXCESS = np.log([1.1, 1.25, 1.5, 2.0, 3.0, 5.0])
# Weight of the prior ratio in the sample-ratio test: a standard deviation of about 1.6 points around one half.
SRM_CONCENTRATION = 1000.0
SRM_STOP_E = 1000.0
SRM_WARN_P = 0.001
_MAX_LOG_E = 600.0  # an e-value of 1e260 is as good as infinite, and is still a number in JSON
_MIN_EXPECTED = 5.0  # users an arm below which chi-square is no approximation


@dataclass(frozen=True)
class SampleRatio:
    """chi_square_p is for one look at the end; e_value may be read at every look. `mismatch` stops the experiment."""

    chi_square: float
    chi_square_p: float
    e_value: float
    mismatch: bool
    n: int


def harm_e_path(in_candidate: ArrayLike, probability: ArrayLike, harm: Harm = "more") -> Floats:
    """E_t after each event of a binary guardrail (thumbs down, errors, refusals), shapes (..., n) -> (..., n).

    in_candidate: True where the event fell on a candidate user. probability: that a user enrolled then was given the candidate, in
    (0, 1), among enrolled users; broadcast. Give the **first event per user** only (`first_per_user`): with all events heavy users count
    many times and the error rate was 22 % where first events gave 1 %. harm: whether "more" or "fewer" such events are bad.

    E_t = sum_g pi_g prod_i (q_i/w_i)^b_i ((1-q_i)/(1-w_i))^(1-b_i), q = w e^g / (w e^g + 1 - w) (Lindon & Malek 2022, one-sided mixture).
    Exact: the base rate may drift and the ramp may change w in between. Alone it measures usage as well as harm: pair it with a
    per-message rate (`ratio_difference`) and the return rate.
    """
    chosen = np.asarray(in_candidate, dtype=bool)
    w = np.broadcast_to(np.asarray(probability, dtype=np.float64), chosen.shape)
    _check_probability(w)
    log_e: Floats | None = None
    for g in _excess(harm):
        steps = np.where(chosen, g, 0.0) - np.log1p(w * np.expm1(g))
        path = np.cumsum(steps, axis=-1) - math.log(len(EXCESS))
        log_e = path if log_e is None else np.logaddexp(log_e, path)
    assert log_e is not None
    result: Floats = np.exp(np.minimum(log_e, _MAX_LOG_E))
    return result


def harm_e_value(n_candidate: ArrayLike, n_events: ArrayLike, probability: ArrayLike, harm: Harm = "more") -> float:
    """The last value of `harm_e_path` from counts: per stratum of equal probability (S,), events in the candidate and in both arms.

    The order of events does not matter for the current value, so a database may count them; it may be asked at any look.
    """
    k, n, w = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (n_candidate, n_events, probability))
    )
    _check_probability(w)
    if (k < 0).any() or (k > n).any():
        raise BadInput(
            f"Candidate events {k.tolist()} must lie between 0 and all events {n.tolist()}, stratum by stratum."
        )
    grid = _excess(harm)[:, None]
    per_g = (k * grid - n * np.log1p(w * np.expm1(grid))).sum(axis=1)
    return math.exp(min(float(scipy.special.logsumexp(per_g)) - math.log(len(EXCESS)), _MAX_LOG_E))


def first_per_user(users: ArrayLike) -> NDArray[np.int64]:
    """Positions of each user's first row, ascending; rows (n,) are in order of time."""
    _, first = np.unique(np.asarray(users), return_index=True)
    return np.sort(first).astype(np.int64)


def tuned_rho(n_planned: float, alpha: float = 0.05, one_sided: bool = False) -> float:
    """The rho that makes the confidence sequence tightest at n_planned users (Howard et al. 2021; closed form of their optimum).

    Fix it before the experiment starts. A rho chosen after looking is not valid.
    """
    if not n_planned > 0 or not 0 < alpha < 0.5:
        raise BadInput(
            f"n_planned is {n_planned}, alpha {alpha}; plan at least one user and an alpha between 0 and 0.5."
        )
    log_term = 2 * math.log(1 / (2 * alpha if one_sided else alpha))
    return math.sqrt((log_term + math.log1p(log_term)) / n_planned)


def half_width(se: ArrayLike, n: ArrayLike, rho: float, alpha: float = 0.05, one_sided: bool = False) -> Floats:
    """Half-width of the asymptotic confidence sequence for a mean with standard error `se` over n users, element by element.

    se sqrt(n) sqrt(2 (n rho^2 + 1) / (n^2 rho^2) ln(sqrt(n rho^2 + 1) / alpha)); one-sided ln(1 + sqrt(n rho^2 + 1) / (2 alpha))
    (Waudby-Smith et al., arXiv 2103.06476, Theorem 2.2 and its one-sided form).
    """
    error, size = np.asarray(se, dtype=np.float64), np.asarray(n, dtype=np.float64)
    spread = size * rho**2 + 1
    log_term = np.log1p(np.sqrt(spread) / (2 * alpha)) if one_sided else np.log(np.sqrt(spread) / alpha)
    width: Floats = error * np.sqrt(size) * np.sqrt(2 * spread / (size**2 * rho**2) * log_term)
    return width


def difference_sequence(
    difference: Difference, n_planned: float, alpha: float = 0.05, min_per_arm: int = 200
) -> Interval | None:
    """Candidate minus control with bounds valid at every look (probability 1 - alpha over all of them); None before `min_per_arm`.

    For arms of equal size. The asymptotics do not hold at a 5 % canary (too few users for the
    plug-in variance of a skewed or rare metric), so arms that are not within 40/60
    raise BadInput: use an equal-size control, or the e-process. n_planned: users in both arms that the experiment is expected to reach.
    """
    total = difference.n_control + difference.n_candidate
    if min(difference.n_control, difference.n_candidate) < min_per_arm:
        return None
    if not 0.4 <= difference.n_candidate / total <= 0.6:
        raise BadInput(
            f"The arms have {difference.n_control} and {difference.n_candidate} users; a confidence sequence needs arms of equal size."
        )
    half = float(half_width(difference.se, total, tuned_rho(n_planned, alpha), alpha))
    return Interval(difference.mean, difference.mean - half, difference.mean + half, total)


def running_intersection(low: ArrayLike, high: ArrayLike) -> tuple[Floats, Floats]:
    """Bounds (..., n) over looks made nested: a value once excluded stays excluded, as a confidence sequence allows."""
    return (
        np.maximum.accumulate(np.asarray(low, dtype=np.float64), axis=-1),
        np.minimum.accumulate(np.asarray(high, dtype=np.float64), axis=-1),
    )


def srm_e_value(counts: ArrayLike, probabilities: ArrayLike, concentration: float = SRM_CONCENTRATION) -> Floats:
    """E-value that users do not arrive in the planned ratio, counts (..., J) -> (...); valid at any look (Lindon & Malek 2022).

    Dirichlet-multinomial with prior `concentration * probabilities` against the multinomial with `probabilities` (J,) or (..., J).
    """
    users, planned = np.asarray(counts, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if (
        planned.ndim == 0
        or (planned <= 0).any()
        or (np.abs(planned.sum(axis=-1) - 1) > 1e-9).any()
        or users.shape[-1] != planned.shape[-1]
    ):
        raise BadInput(f"Planned shares are {planned.tolist()}; give one positive share per arm, summing to 1.")
    prior = concentration * planned
    log_e = scipy.special.gammaln(concentration) - scipy.special.gammaln(concentration + users.sum(axis=-1))
    log_e = log_e + (scipy.special.gammaln(prior + users) - scipy.special.gammaln(prior) - users * np.log(planned)).sum(
        axis=-1
    )
    result: Floats = np.exp(np.minimum(log_e, _MAX_LOG_E))
    return result


def sample_ratio(counts: ArrayLike, probabilities: ArrayLike) -> SampleRatio:
    """Sample-ratio check of users per arm, (J,) for one stage or (S, J) stage by stage; planned shares (J,), or (S, J) where they changed.

    Count each user once, in the stage that enrolled them. Stages multiply their e-values and add their chi-squares; a stage that expects
    fewer than five users in an arm is too small for chi-square and counts in the e-value alone.
    """
    users = np.atleast_2d(np.asarray(counts, dtype=np.float64))
    planned = np.broadcast_to(np.asarray(probabilities, dtype=np.float64), users.shape)
    planned, users = planned[users.sum(axis=1) > 0], users[users.sum(axis=1) > 0]
    if len(users) == 0:
        raise BadInput("No user has been assigned yet; a sample ratio needs at least one.")
    e_value = math.exp(min(float(np.log(srm_e_value(users, planned)).sum()), _MAX_LOG_E))
    expected = users.sum(axis=1, keepdims=True) * planned
    large = expected.min(axis=1) >= _MIN_EXPECTED
    chi_square = float(((users[large] - expected[large]) ** 2 / expected[large]).sum())
    df = int(large.sum()) * (users.shape[1] - 1)
    p = float(scipy.special.chdtrc(df, chi_square)) if df else 1.0
    return SampleRatio(chi_square, p, e_value, e_value >= SRM_STOP_E, int(users.sum()))


def _excess(harm: Harm) -> Floats:
    if harm not in ("more", "fewer"):
        raise BadInput(f"harm is {harm!r}; say whether 'more' or 'fewer' events are bad.")
    return EXCESS if harm == "more" else -EXCESS


def _check_probability(w: Floats) -> None:
    if not ((w > 0) & (w < 1)).all():
        raise BadInput(
            "Each assignment probability must lie strictly between 0 and 1; drop events from before the experiment began."
        )
