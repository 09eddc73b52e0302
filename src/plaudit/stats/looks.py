"""An experiment read from rows, look by look: estimates with bounds that hold at every look, guardrails, and the verdict.

Two forms. `Rows`: one row per event, message or user; analysed by user. `Totals`: count, mean and variance of each arm at each look.
A metric of zeros and ones is judged by the exact e-process on each user's first bad value *and* by its rate; any other by its mean.
Rates and means are compared within the stage that enrolled the users, then averaged. Everything is candidate minus control.

What decides is in `stats/verdict.py`. Left out: more than two arms, and usage as harm (give a metric of your own for who came back).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plaudit.errors import BadInput
from plaudit.stats import user_metrics, verdict
from plaudit.stats.intervals import Interval
from plaudit.stats.sequential import first_per_user
from plaudit.stats.user_metrics import Difference
from plaudit.stats.verdict import Better, Guardrail, Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Role = Literal["guardrail", "goal", "monitor"]
Kind = Literal["binary", "mean"]
Period = Literal["hour", "day", "week"]

MIN_STRATUM = 10  # users an arm below which a stage has no variance worth an average
STEADY_USERS = 200  # users an arm from which the asymptotic bounds were measured to hold


@dataclass(frozen=True)
class Metric:
    """A column with its part in the decision. `margin` >= 0: how much worse a goal may be at most, or a guardrail before it fires."""

    name: str
    role: Role
    better: Better
    margin: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What decides; fix it before the first user. Shares are 0..1."""

    alpha: float = field(
        default=0.05, metadata={"help": "Chance of a false rollback over all looks, and of a false goal."}
    )
    min_users: int = field(default=200, metadata={"help": "Users in each arm before anything but harm is concluded."})
    planned_users: int = field(default=800, metadata={"help": "Users of both arms at which the bounds are tightest."})
    winsorise: float = field(
        default=0.01, metadata={"help": "Share of users cut at either end of a mean; 0 cuts none."}
    )
    max_double_fraction: float = field(default=0.01, metadata={"help": "Share of users in both arms that is an alarm."})

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise BadInput(f"alpha is {self.alpha}; it must lie between 0 and 0.5.")
        if self.min_users < 2 or self.planned_users < 1:
            raise BadInput(
                f"min_users is {self.min_users} and planned_users {self.planned_users}; give at least 2 and 1."
            )
        if not 0 <= self.winsorise < 0.5 or not 0 <= self.max_double_fraction < 1:
            raise BadInput(
                f"winsorise is {self.winsorise}, max_double_fraction {self.max_double_fraction}; give shares, such as 0.01."
            )


@dataclass(frozen=True)
class Rows:
    """Rows in order of time (N,). NaN: this row says nothing about the metric. `before`: pre-period values per row, for CUPED."""

    at: Floats  # (N,) seconds since 1970
    user: Ints  # (N,) 0..U-1; numbers that nobody has are nobody
    in_candidate: Bools  # (N,)
    stage: Ints  # (N,) any number per stage
    probability: Floats  # (N,) with which the row's user was given the candidate
    values: Mapping[str, Floats]
    before: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Totals:
    """One row per look, metric, arm and stage (N,) in order of time: users, their mean and sample variance. `cumulative`: since the start,
    else since the look before."""

    at: Floats  # (N,)
    metric: Sequence[str]  # (N,)
    in_candidate: Bools  # (N,)
    stage: Ints  # (N,)
    probability: Floats  # (N,)
    n: Ints  # (N,)
    mean: Floats  # (N,)
    variance: Floats  # (N,)
    cumulative: bool


@dataclass(frozen=True)
class Reading:
    """One metric at one look. `difference` has bounds at level `alpha` over all looks, or is None for the reason in `waits`.

    e_value: None where the metric is no guardrail of zeros and ones. `state`: fired, quiet (guardrails); met, missed (goals); watched
    (monitors); waiting, while there are no bounds and nothing fired.
    """

    name: str
    role: Role
    better: Better
    kind: Kind
    n_control: int
    n_candidate: int
    control: float | None
    candidate: float | None
    difference: Interval | None
    alpha: float
    margin: float
    e_value: float | None
    e_threshold: float | None
    state: Literal["fired", "quiet", "met", "missed", "watched", "waiting"]
    waits: str
    adjusted: Mapping[str, float | int] | None  # by CUPED: users with a pre-period, share of the variance that is left


@dataclass(frozen=True)
class Look:
    """Everything known at one time. `n_double` users met both arms and are left out of every other figure."""

    number: int
    at: float
    n_control: int
    n_candidate: int
    n_double: int
    ratio_p: float
    ratio_e: float
    stopped: bool
    verdict: Verdict
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class _Evidence:
    """What a look knows of one metric, from either form."""

    control: float | None
    candidate: float | None
    n_control: int
    n_candidate: int
    difference: Difference | None
    event_in_candidate: Bools  # (E,) first bad value per user
    event_probability: Floats  # (E,)


_NO_EVENTS = (np.zeros(0, dtype=bool), np.zeros(0))


def described(look: Look) -> dict[str, Any]:
    """A look as JSON; docs/experiments.md has every key."""
    return {
        "number": look.number,
        "at": datetime.fromtimestamp(look.at, UTC).isoformat(),
        "n_users": {"control": look.n_control, "candidate": look.n_candidate},
        "n_double": look.n_double,
        "ratio_p": look.ratio_p,
        "ratio_e": look.ratio_e,
        "stopped": look.stopped,
        "verdict": look.verdict.verdict,
        "decided_by": look.verdict.decided_by,
        "reasons": list(look.verdict.reasons),
        "metrics": [asdict(reading) for reading in look.readings],
    }


def kind_of(values: ArrayLike) -> Kind:
    """`binary` where every value that is there is 0 or 1."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return "binary" if len(known) and np.isin(known, (0.0, 1.0)).all() else "mean"


def look_ends(at: Floats, looks: int | Period) -> Ints:
    """Row counts (L,) at which to look, ascending: so many looks after equal numbers of rows, or at the end of each calendar period (UTC)."""
    if isinstance(looks, int):
        if looks < 1:
            raise BadInput(f"looks is {looks}; look at least once.")
        ends = np.unique(np.ceil(np.linspace(0, len(at), looks + 1)[1:]).astype(np.int64))
        # Rows of one moment belong to one look.
        return np.unique(np.searchsorted(at, at[ends - 1], side="right"))
    seconds, origin = {"hour": (3600, 0), "day": (86400, 0), "week": (7 * 86400, 4 * 86400)}[looks]  # weeks from Monday
    period = np.floor((at - origin) / seconds)
    return np.append(np.flatnonzero(np.diff(period)) + 1, len(at)).astype(np.int64)


def analyse_rows(rows: Rows, metrics: Sequence[Metric], plan: Plan, ends: Sequence[int] | Ints) -> list[Look]:
    """One Look after each number of rows in `ends`. Raises BadInput where a metric is no column, or no arm has two users."""
    _check(metrics, rows.values)
    if min(_users(rows, True), _users(rows, False)) < 2:
        raise BadInput(
            f"There are {_users(rows, False)} control and {_users(rows, True)} candidate users; "
            "an experiment needs at least two in each arm."
        )
    kinds = {metric.name: kind_of(rows.values[metric.name]) for metric in metrics}
    first = first_per_user(rows.user)  # positions, ascending
    order = rows.user[first]
    looks: list[Look] = []
    stopped = False
    for number, end in enumerate(ends, start=1):
        seen = first[: np.searchsorted(first, end)]
        users = order[: len(seen)]
        both = _met_both(rows, int(end))
        keep = ~both[users]
        kept = np.zeros(len(both), dtype=bool)
        kept[users[keep]] = True
        enrolled = seen[keep]
        counts, shares = _arrivals(rows, enrolled)
        n_double = int((~keep).sum())
        assigned = verdict.check_assignment(counts, shares, n_double, plan.max_double_fraction, stopped=stopped)
        stopped = assigned.stopped
        evidence = {
            metric.name: _of_rows(rows, int(end), metric, kinds[metric.name], first, kept, plan.winsorise)
            for metric in metrics
        }
        looks.append(_look(number, float(rows.at[end - 1]), metrics, kinds, evidence, counts, n_double, assigned, plan))
    return looks


def analyse_totals(totals: Totals, metrics: Sequence[Metric], plan: Plan) -> list[Look]:
    """One Look per distinct time. Raises BadInput where a metric is not there, or a running total falls."""
    names = np.asarray(totals.metric)
    _check(metrics, {str(name): None for name in names})
    in_arm = [int(totals.n[totals.in_candidate == arm].sum()) for arm in (False, True)]
    if min(in_arm) < 2:
        raise BadInput(
            f"There are {in_arm[0]} control and {in_arm[1]} candidate users; an experiment needs at least two in each arm."
        )
    kinds: dict[str, Kind] = {m.name: _kind_of_totals(totals, names == m.name) for m in metrics}
    looks: list[Look] = []
    stopped = False
    for number, at in enumerate(np.unique(totals.at), start=1):
        now = totals.at <= at
        sums = {m.name: _summed(totals, now & (names == m.name), m.name) for m in metrics}
        widest = max(sums.values(), key=lambda cells: sum(n for cell in cells.values() for n, _, _ in cell))
        counts = np.array([[pair[0][0], pair[1][0]] for pair in widest.values()], dtype=np.int64).reshape(-1, 2)
        shares = np.array([[1 - probability, probability] for _, probability in widest]).reshape(-1, 2)
        assigned = verdict.check_assignment(counts, shares, 0, plan.max_double_fraction, stopped=stopped)
        stopped = assigned.stopped
        evidence = {m.name: _of_totals(sums[m.name], m, kinds[m.name]) for m in metrics}
        looks.append(_look(number, float(at), metrics, kinds, evidence, counts, 0, assigned, plan))
    return looks


# --- one look ----------------------------------------------------------------------------------------------------------


def _look(
    number: int,
    at: float,
    metrics: Sequence[Metric],
    kinds: Mapping[str, Kind],
    evidence: Mapping[str, _Evidence],
    counts: Ints,
    n_double: int,
    assigned: verdict.Assigned,
    plan: Plan,
) -> Look:
    guards = [metric for metric in metrics if metric.role == "guardrail"]
    # Each guardrail of zeros and ones is tested twice, so that all tests together keep alpha.
    n_tests = sum(2 if kinds[metric.name] == "binary" else 1 for metric in guards)
    readings: list[Reading] = []
    fired: list[Guardrail] = []
    for metric in metrics:
        alpha = plan.alpha / n_tests if metric.role == "guardrail" else plan.alpha
        reading, found = _read(metric, kinds[metric.name], evidence[metric.name], alpha, plan)
        readings.append(reading)
        fired += [guardrail for guardrail in found if guardrail.fired]
    n_control, n_candidate = (int(n) for n in counts.sum(axis=0))
    waiting = verdict.too_few(n_candidate, n_control, plan.min_users)
    missed = [_missed(reading) for reading in readings if reading.role == "goal" and reading.state != "met"]
    if not any(metric.role == "goal" for metric in metrics):
        missed.append("no goal was declared, so that nothing can be promoted for")
    decided = verdict.decide(fired, assigned.reasons, waiting, missed, n_control + n_candidate)
    ratio = assigned.ratio
    return Look(
        number,
        at,
        n_control,
        n_candidate,
        n_double,
        ratio.chi_square_p if ratio else 1.0,
        ratio.e_value if ratio else 1.0,
        assigned.stopped,
        decided,
        tuple(readings),
    )


def _read(
    metric: Metric, kind: Kind, evidence: _Evidence, alpha: float, plan: Plan
) -> tuple[Reading, tuple[Guardrail, ...]]:
    found: list[Guardrail] = []
    interval = verdict.bounded(evidence.difference, plan.planned_users, alpha, plan.min_users)
    guards = metric.role == "guardrail"
    if guards and kind == "binary":
        events, probability = evidence.event_in_candidate, evidence.event_probability
        harmful = _worse(metric, evidence)
        found.append(verdict.event_guardrail(f"first_{metric.name}", events, probability, alpha, harmful))
    if guards:
        found.append(verdict.bounded_guardrail(metric.name, interval, metric.better, metric.margin))
    if any(guardrail.fired for guardrail in found):
        state: Literal["fired", "quiet", "met", "missed", "watched", "waiting"] = "fired"
    elif interval is None:
        state = "waiting"
    elif guards:
        state = "quiet"
    elif metric.role == "goal":
        state = "met" if verdict.goal_met(interval, metric.better, metric.margin) else "missed"
    else:
        state = "watched"
    e_value = found[0].value if guards and kind == "binary" else None
    reading = Reading(
        name=metric.name,
        role=metric.role,
        better=metric.better,
        kind=kind,
        n_control=evidence.n_control,
        n_candidate=evidence.n_candidate,
        control=evidence.control,
        candidate=evidence.candidate,
        difference=interval,
        alpha=alpha,
        margin=metric.margin,
        e_value=e_value,
        e_threshold=None if e_value is None else 1 / alpha,
        state=state,
        waits="" if interval else _why_not(evidence, plan),
        adjusted=evidence.difference.adjusted() if evidence.difference else None,
    )
    return reading, tuple(found)


def _why_not(evidence: _Evidence, plan: Plan) -> str:
    difference = evidence.difference
    if difference is None or min(difference.n_control, difference.n_candidate) < plan.min_users:
        return f"bounds need {plan.min_users} users in each arm with a value"
    if difference.se == 0:
        return "it is one value for everybody"
    return "bounds need arms of equal size"


def _worse(metric: Metric, evidence: _Evidence) -> bool:
    if evidence.difference is not None:  # stage by stage, or a ramp under drift would look like harm
        gap = evidence.difference.mean
    elif evidence.control is not None and evidence.candidate is not None:
        gap = evidence.candidate - evidence.control
    else:
        return False
    return gap < 0 if metric.better == "up" else gap > 0


def _missed(reading: Reading) -> str:
    if reading.difference is None:
        return f"goal {reading.name} is not known yet: {reading.waits}"
    wanted = f"above {-reading.margin:+.3g}" if reading.better == "up" else f"below {reading.margin:+.3g}"
    bounds = reading.difference
    return (
        f"goal {reading.name}: {bounds.mean:+.3g} [{bounds.low:+.3g}, {bounds.high:+.3g}] must be {wanted} for certain"
    )


def _check(metrics: Sequence[Metric], there: Mapping[str, object]) -> None:
    if not metrics:
        raise BadInput("No metric was named; say for example thumbs_down:guardrail:down.")
    for number, metric in enumerate(metrics):
        if metric.name not in there:
            raise BadInput(
                f"There is no metric {metric.name!r} in the file; it has {', '.join(sorted(there)) or 'none'}."
            )
        if metric.name in (other.name for other in metrics[:number]):
            raise BadInput(f"Metric {metric.name!r} is named twice; give it one role.")
        if not metric.margin >= 0:
            raise BadInput(
                f"The margin of {metric.name} is {metric.margin}; give how much worse it may be, at least 0."
            )


# --- rows --------------------------------------------------------------------------------------------------------------


def _users(rows: Rows, in_candidate: bool) -> int:
    return len(np.unique(rows.user[rows.in_candidate == in_candidate]))


def _met_both(rows: Rows, end: int) -> Bools:
    """(U,) whether a user has rows in both arms so far."""
    size = int(rows.user.max()) + 1
    n_rows = np.bincount(rows.user[:end], minlength=size)
    n_candidate = np.bincount(rows.user[:end], weights=rows.in_candidate[:end], minlength=size)
    both: Bools = (n_candidate > 0) & (n_candidate < n_rows)
    return both


def _strata(rows: Rows, enrolled: Ints) -> list[tuple[float, Bools]]:
    """(probability, which of the enrolled) for each stage that enrolled users, apart where its probability changed."""
    keys = np.stack([rows.stage[enrolled].astype(np.float64), rows.probability[enrolled]], axis=1)
    return [(float(key[1]), (keys == key).all(axis=1)) for key in np.unique(keys, axis=0)]


def _arrivals(rows: Rows, enrolled: Ints) -> tuple[Ints, Floats]:
    """Users (S, 2) in control and candidate by enrolling stage, and the shares (S, 2) that were planned."""
    counts, shares = [], []
    for probability, here in _strata(rows, enrolled):
        n_candidate = int(rows.in_candidate[enrolled[here]].sum())
        counts.append([int(here.sum()) - n_candidate, n_candidate])
        shares.append([1 - probability, probability])
    return np.array(counts, dtype=np.int64).reshape(-1, 2), np.array(shares).reshape(-1, 2)


def _of_rows(rows: Rows, end: int, metric: Metric, kind: Kind, first: Ints, kept: Bools, winsorise: float) -> _Evidence:
    """first (U,): each user's first row, ascending; kept (U,): by user, whether they are analysed at this look."""
    value = rows.values[metric.name][:end]
    known = np.flatnonzero(~np.isnan(value) & kept[rows.user[:end]])
    user, size = rows.user[known], len(kept)
    sums: Floats = np.bincount(user, weights=value[known], minlength=size).astype(np.float64)
    counts = np.bincount(user, minlength=size)
    enrolled = first[counts[rows.user[first]] > 0]
    of = rows.user[enrolled]
    chosen, x, n = rows.in_candidate[enrolled], sums[of], counts[of].astype(np.float64)
    before = _before(rows, metric.name, size)[of] if metric.name in rows.before else None
    parts = []
    for _, here in _strata(rows, enrolled) if len(enrolled) else []:
        a, b = here & ~chosen, here & chosen
        if min(a.sum(), b.sum()) >= MIN_STRATUM:
            found = user_metrics.within(x, n, a, b, before, 0.0 if kind == "binary" else winsorise)
            if kind == "binary":
                found = user_metrics.with_one_more_event(found, n[a].sum(), n[b].sum())
            parts.append(found)
    events = _NO_EVENTS
    if metric.role == "guardrail" and kind == "binary":
        bad = known[value[known] == (0.0 if metric.better == "up" else 1.0)]
        bad = bad[first_per_user(rows.user[bad])]
        events = rows.in_candidate[bad], rows.probability[bad]
    return _Evidence(
        control=_rate(x, n, ~chosen),
        candidate=_rate(x, n, chosen),
        n_control=int((~chosen).sum()),
        n_candidate=int(chosen.sum()),
        difference=user_metrics.stratified(parts) if parts else None,
        event_in_candidate=events[0],
        event_probability=events[1],
    )


def _before(rows: Rows, name: str, size: int) -> Floats:
    """(U,) each user's first pre-period value, NaN without one. It was fixed before the experiment, so later rows add nothing."""
    value = rows.before[name]
    known = np.flatnonzero(~np.isnan(value))
    known = known[first_per_user(rows.user[known])]
    found = np.full(size, np.nan)
    found[rows.user[known]] = value[known]
    return found


def _rate(x: Floats, n: Floats, chosen: Bools) -> float | None:
    return float(x[chosen].sum() / n[chosen].sum()) if chosen.any() else None


# --- totals ------------------------------------------------------------------------------------------------------------

_Cell = tuple[int, float, float]  # n, mean, sum of squared deviations
_Cells = dict[tuple[int, float], list[_Cell]]  # (stage, probability) -> [control, candidate]


def _kind_of_totals(totals: Totals, chosen: Bools) -> Kind:
    """`binary` where every mean is a whole number of ones and every variance is that of zeros and ones."""
    n, mean, variance = totals.n[chosen], totals.mean[chosen], totals.variance[chosen]
    ones = mean * n
    whole = (np.abs(ones - np.round(ones)) <= 1e-4).all() and ((mean >= 0) & (mean <= 1)).all()
    spread = mean * (1 - mean)
    close = np.abs(variance * np.where(n > 1, (n - 1) / np.maximum(n, 1), 1.0) - spread) <= 1e-4 * spread + 1e-9
    population = np.abs(variance - spread) <= 1e-4 * spread + 1e-9
    return "binary" if whole and (close | population).all() else "mean"


def _summed(totals: Totals, chosen: Bools, name: str) -> _Cells:
    cells: _Cells = {}
    for i in np.flatnonzero(chosen):
        key = (int(totals.stage[i]), float(totals.probability[i]))
        arms = cells.setdefault(key, [(0, 0.0, 0.0), (0, 0.0, 0.0)])
        arm = int(totals.in_candidate[i])
        n, mean = int(totals.n[i]), float(totals.mean[i])
        new = (n, mean, float(totals.variance[i]) * max(n - 1, 0))
        if totals.cumulative and n < arms[arm][0]:
            raise BadInput(
                f"The total of {name} falls from {arms[arm][0]} to {n} users; rows that are not totals need no --cumulative."
            )
        arms[arm] = new if totals.cumulative else _merged(arms[arm], new)
    return cells


def _merged(a: _Cell, b: _Cell) -> _Cell:
    """Chan, Golub & LeVeque (1979)."""
    n = a[0] + b[0]
    if n == 0:
        return a
    gap = b[1] - a[1]
    return n, a[1] + gap * b[0] / n, a[2] + b[2] + gap * gap * a[0] * b[0] / n


def _of_totals(cells: _Cells, metric: Metric, kind: Kind) -> _Evidence:
    parts: list[Difference] = []
    chosen: list[Bools] = []
    probability: list[Floats] = []
    arms: list[_Cell] = [(0, 0.0, 0.0), (0, 0.0, 0.0)]
    for (_, share), pair in cells.items():
        a, b = pair
        arms = [_merged(old, new) for old, new in zip(arms, pair, strict=True)]
        if min(a[0], b[0]) >= MIN_STRATUM:
            se = float(np.sqrt(a[2] / (a[0] - 1) / a[0] + b[2] / (b[0] - 1) / b[0]))
            found = Difference(b[1] - a[1], se, a[0], b[0])
            parts.append(user_metrics.with_one_more_event(found, a[0], b[0]) if kind == "binary" else found)
        for in_candidate, (n, mean, _) in enumerate(pair):
            n_bad = round(n * (1 - mean if metric.better == "up" else mean)) if kind == "binary" else 0
            chosen.append(np.full(n_bad, bool(in_candidate)))
            probability.append(np.full(n_bad, share))
    return _Evidence(
        control=arms[0][1] if arms[0][0] else None,
        candidate=arms[1][1] if arms[1][0] else None,
        n_control=arms[0][0],
        n_candidate=arms[1][0],
        difference=user_metrics.stratified(parts) if parts else None,
        event_in_candidate=np.concatenate(chosen) if chosen else _NO_EVENTS[0],
        event_probability=np.concatenate(probability) if probability else _NO_EVENTS[1],
    )
