"""What an experiment measures of each user besides thumbs: declared once, with a role, before the first user is enrolled.

Every metric is a sum and a count per user, so that the unit of analysis is the unit of assignment. What a name means is in `MEASURED`;
`outcome:NAME` is the business's own, summed per user from their assignment on (what they brought before the experiment takes out what it
predicts: CUPED), and `signal:NAME` the share of messages with that signal.

    declare([...])  ->  [Metric]      sums(tx, experiment, metrics)  ->  {name: [UserSum]}      judge(metric, values, ...)  ->  Judged
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from plaudit.domain import Experiment, FeedbackKind, Json
from plaudit.errors import BadInput
from plaudit.loop.suites import is_refusal
from plaudit.stats import user_metrics, verdict
from plaudit.stats.looks import Metric, Reading
from plaudit.stats.user_metrics import Difference
from plaudit.stats.verdict import Guardrail
from plaudit.store import experiment as observed
from plaudit.store import outcomes
from plaudit.store.database import Transaction
from plaudit.store.experiment import Exposure, Scope, UserSum, Window

# name -> what one unit of it is
MEASURED: Mapping[str, str] = {
    "thumbs_up": "share of messages with a thumb up",
    "thumbs_down": "share of messages with a thumb down",
    "rating": "mean of the ratings given",
    "edit_rate": "share of messages whose answer was edited",
    "regenerate_rate": "share of messages with the signal `regenerate`",
    "return_rate": "share of users who began a second conversation",
    "score": "mean score of the answers that monitors drew, by the reward model of the time",
    "length": "characters an answer",
    "latency": "milliseconds a whole answer took",
    "errors": "share of answers that failed",
    "refusals": "share of answers that decline, by their wording",
}
OUTCOME, SIGNAL = "outcome:", "signal:"
# Shares are as uncertain as if each arm had seen one more; anything else is cut at its 1 % and 99 % quantiles.
SHARES = frozenset({"thumbs_up", "thumbs_down", "edit_rate", "regenerate_rate", "return_rate", "errors", "refusals"})
WINSORISE = 0.01
_MIN_STRATUM = 10  # users an arm below which a stage has no variance worth an average
_REFUSAL_CHARS = 200  # that `is_refusal` reads

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PerUser:
    """One metric of every user analysed: sums (U,) over counts (U,); count 0 says nothing. `before` (U,): the user's own value from before
    the experiment, NaN without one; None where the metric has no pre-period."""

    sums: Floats
    counts: Floats
    before: Floats | None = None


@dataclass(frozen=True)
class Judged:
    """One metric at one look. `guardrail` is None where its role is another."""

    reading: Reading
    guardrail: Guardrail | None
    missed: str  # what a goal still lacks, else empty


def declare(metrics: Sequence[Metric]) -> tuple[Json, ...]:
    """As an Experiment keeps them. Raises BadInput for a name that nothing measures, one named twice, or a margin below 0."""
    for place, metric in enumerate(metrics):
        own = any(metric.name.startswith(prefix) and metric.name != prefix for prefix in (OUTCOME, SIGNAL))
        if not own and metric.name not in MEASURED:
            raise BadInput(
                f"{metric.name!r} is no metric of an experiment; choose {', '.join(MEASURED)}, outcome:NAME or signal:NAME."
            )
        if metric.name in (other.name for other in metrics[:place]):
            raise BadInput(f"Metric {metric.name!r} is declared twice; give it one role.")
        if not metric.margin >= 0:
            raise BadInput(f"The margin of {metric.name} is {metric.margin}; say how much worse it may be, at least 0.")
    return tuple(asdict(metric) for metric in metrics)


def declared(experiment: Experiment) -> tuple[Metric, ...]:
    """The metrics that were fixed when it started."""
    return tuple(Metric(**one) for one in experiment.metrics)


def per_user(
    tx: Transaction, experiment: Experiment, metrics: Sequence[Metric], users: Sequence[Exposure]
) -> dict[str, PerUser]:
    """Each metric in the order of `users`, who met one arm each."""
    return _per_user(tx, experiment.project_id, experiment.id, _untouched_until(tx, experiment), metrics, users)


def per_user_within(
    tx: Transaction, window: Window, metrics: Sequence[Metric], users: Sequence[Exposure]
) -> dict[str, PerUser]:
    """The same of all traffic of a window, as if an experiment had begun with it."""
    return _per_user(tx, window.project_id, window, window.since, metrics, users)


def _per_user(
    tx: Transaction,
    project_id: str,
    of: Scope,
    began_at: datetime,
    metrics: Sequence[Metric],
    users: Sequence[Exposure],
) -> dict[str, PerUser]:
    found = {}
    for metric in metrics:
        known = {(one.actor, one.arm): one for one in _sums(tx, project_id, of, metric.name, users)}
        rows = [known.get((user.actor, user.arm)) for user in users]
        counts = np.array([row.n if row else 0 for row in rows], dtype=np.float64)
        if _per_message(metric.name):  # a message without feedback says that there was none
            counts = np.array([user.n_messages for user in users], dtype=np.float64)
        before = None
        if metric.name.startswith(OUTCOME):
            past = outcomes.before(tx, project_id, metric.name.removeprefix(OUTCOME), began_at)
            before = np.array([past.get(user.actor, np.nan) for user in users], dtype=np.float64)
        totals = np.array([row.total if row else 0.0 for row in rows], dtype=np.float64)
        found[metric.name] = PerUser(totals, counts, before)
    return found


def _untouched_until(tx: Transaction, experiment: Experiment) -> datetime:
    """When the first experiment began that dealt users by this salt: from then on an outcome may come from an arm, also from that of a pilot
    in the same layer, and CUPED would take out what it is to find."""
    layer = tx.find(Experiment, project_id=experiment.project_id, salt=experiment.salt)
    return min(one.created_at for one in (experiment, *layer))


def _per_message(name: str) -> bool:
    return name in ("thumbs_up", "thumbs_down", "edit_rate", "regenerate_rate") or name.startswith(SIGNAL)


def _sums(tx: Transaction, project_id: str, of: Scope, name: str, users: Sequence[Exposure]) -> Sequence[UserSum]:
    if name.startswith(OUTCOME):
        rows = outcomes.per_user(tx, project_id, of, name.removeprefix(OUTCOME))
        return [UserSum(row.actor, row.arm, row.total, 1) for row in rows]
    if name.startswith(SIGNAL):
        return observed.n_with_feedback(tx, of, FeedbackKind.SIGNAL, name.removeprefix(SIGNAL))
    match name:
        case "thumbs_up":
            return [UserSum(user.actor, user.arm, user.n_up, user.n_messages) for user in users]
        case "thumbs_down":
            return [UserSum(user.actor, user.arm, user.n_down, user.n_messages) for user in users]
        case "return_rate":
            return [UserSum(user.actor, user.arm, float(user.n_conversations > 1), 1) for user in users]
        case "rating":
            return observed.ratings(tx, of)
        case "edit_rate":
            return observed.n_with_feedback(tx, of, FeedbackKind.EDIT)
        case "regenerate_rate":
            return observed.n_with_feedback(tx, of, FeedbackKind.SIGNAL, "regenerate")
        case "errors" | "latency":
            return observed.completions(tx, of)[name]
        case "refusals":
            return observed.counted_openings(tx, of, _REFUSAL_CHARS, is_refusal)
        case "length" | "score":
            return observed.answers(tx, of, score=name == "score")
    raise BadInput(f"{name!r} is no metric of an experiment.")


# --- judging -----------------------------------------------------------------------------------------------------------


def is_share(name: str) -> bool:
    return name in SHARES or name.startswith(SIGNAL)


def judge(
    metric: Metric, values: PerUser, in_candidate: Bools, stage: Ints, alpha: float, n_planned: float, min_users: int
) -> Judged:
    """alpha: what this metric's bounds may err over all looks. A guardrail fires, and a goal is met, by bounds alone: they need `min_users`."""
    share = is_share(metric.name)
    difference = _compared(values, in_candidate, stage, share)
    interval = verdict.bounded(difference, n_planned, alpha, min_users)
    guardrail = None
    missed = ""
    if metric.role == "guardrail":
        guardrail = verdict.bounded_guardrail(metric.name, interval, metric.better, metric.margin)
    met = interval is not None and verdict.goal_met(interval, metric.better, metric.margin)
    waits = "" if interval else _why_not(difference, min_users)
    if metric.role == "goal" and not met:
        wanted = f"above {-metric.margin:+.3g}" if metric.better == "up" else f"below {metric.margin:+.3g}"
        missed = f"goal {metric.name} is not known yet: {waits}"
        if interval is not None:
            bounds = f"{interval.mean:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"
            missed = f"goal {metric.name}: {bounds} must be {wanted} for certain"
    known = values.counts > 0
    reading = Reading(
        name=metric.name,
        role=metric.role,
        better=metric.better,
        kind="binary" if share else "mean",
        n_control=int((known & ~in_candidate).sum()),
        n_candidate=int((known & in_candidate).sum()),
        control=_rate(values, ~in_candidate),
        candidate=_rate(values, in_candidate),
        difference=interval,
        alpha=alpha,
        margin=metric.margin,
        e_value=None,
        e_threshold=None,
        state="fired"
        if guardrail and guardrail.fired
        else "waiting"
        if interval is None
        else "quiet"
        if guardrail
        else "watched"
        if metric.role == "monitor"
        else "met"
        if met
        else "missed",
        waits=waits,
        adjusted=difference.adjusted() if difference else None,
    )
    return Judged(reading, guardrail, missed)


def _compared(values: PerUser, in_candidate: Bools, stage: Ints, share: bool) -> Difference | None:
    """Candidate minus control within each enrolling stage, averaged; None while no stage has enough users in both arms."""
    known = values.counts > 0
    parts: list[Difference] = []
    for one in np.unique(stage[known]):
        a, b = known & (stage == one) & ~in_candidate, known & (stage == one) & in_candidate
        if min(a.sum(), b.sum()) < _MIN_STRATUM:
            continue
        cut = 0.0 if share else WINSORISE
        found = user_metrics.within(values.sums, values.counts, a, b, values.before, cut)
        parts.append(
            user_metrics.with_one_more_event(found, values.counts[a].sum(), values.counts[b].sum()) if share else found
        )
    return user_metrics.stratified(parts) if parts else None


def _why_not(difference: Difference | None, min_users: int) -> str:
    if difference is None or min(difference.n_control, difference.n_candidate) < min_users:
        return f"bounds need {min_users} users in each arm with a value"
    if difference.se == 0:
        return "it is one value for everybody"
    return "bounds need arms of equal size"


def _rate(values: PerUser, chosen: Bools) -> float | None:
    n = float(values.counts[chosen].sum())
    return float(values.sums[chosen].sum() / n) if n else None
