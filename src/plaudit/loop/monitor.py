"""Monitors: what production does, window by window, as Measurements; and the rules that open and resolve Alerts about them.

Every Measurement has its n and, where it is an estimate, a 95 % interval. A change is measured against the windows before, back to the moment
the live Release became live: another Release may well answer otherwise. A rule states its direction (floor or ceiling), fires only where the
whole interval is beyond the level at which it clears, and resolves there: in between nothing happens, so it does not flap.

Scores and KL come from `learn score`, run by the worker on `sample_answers`; here they are data.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Any

import numpy as np

from plaudit.artifacts import sha256_of
from plaudit.domain import (
    ALERT_TRANSITIONS,
    Alert,
    AlertState,
    Json,
    Measurement,
    Release,
    ReleaseState,
    ResponseScore,
    check_transition,
    new_id,
)
from plaudit.errors import BadInput
from plaudit.loop import webhooks
from plaudit.stats.auc import auc
from plaudit.stats.diversity import distinct_n, repetition_fraction, self_bleus
from plaudit.stats.drift import cusum, ks, standardised_difference
from plaudit.stats.intervals import Interval, mean_interval, wilson
from plaudit.store import monitoring
from plaudit.store.database import Store, Transaction
from plaudit.store.monitoring import Act, Answer, Thumb, Traffic

MAX_ANSWERS = 2000  # of a window that are read for texts and lengths
MIN_CELL = 20  # thumbs below which an arm or a user group is not shown
MAX_GROUPS = 10  # values of an attribute beyond which it is no group but an identifier
N_DISTINCT = 100  # answers over which distinct-n is taken: it depends on how much text there is
N_ALIKE = 40  # answers that are held against one another: fewer than close a window, so nearly every one has as many
N_REFERENCE = 10  # windows that a change is measured against
LEAST_SCALE = 1e-9  # of a relative change: below it there was nothing that could change, but for rounding
MIN_BASELINE = 10  # windows that calibrate the CUSUM of score against satisfaction
BURST_ACTS = 10  # of one actor within BURST_SPAN; whoever reads what they judge gives fewer, second thoughts included
BURST_SPAN = timedelta(seconds=60)
CLICK_SPAN = timedelta(seconds=1)  # between two answers; nobody reads one in less


class Direction(StrEnum):
    FLOOR = "floor"  # low values are bad
    CEILING = "ceiling"  # high values are bad


@dataclass(frozen=True)
class AlertRule:
    """A standing question. `blocking`: while it is critical, nothing is retrained."""

    name: str
    metric: str
    direction: Direction
    warn: float
    critical: float
    clear: float  # resolves on this side of it; a firing interval lies wholly on the other
    min_samples: int
    for_windows: int = 1  # consecutive windows beyond `warn` before it fires
    blocking: bool = False


FLOOR, CEILING = Direction.FLOOR, Direction.CEILING
# Defaults of docs/monitoring.md. Units: shares, nats per response, standard deviations of the reward model's reference, or relative change.
RULES: tuple[AlertRule, ...] = (
    AlertRule("satisfaction_fell", "thumbs_up_rate_change", FLOOR, -0.1, -0.2, -0.05, min_samples=30),
    AlertRule("score_fell", "score_mean_change", FLOOR, -0.3, -0.6, -0.15, min_samples=30),
    AlertRule(
        "score_left_satisfaction", "score_satisfaction_cusum", CEILING, 4.0, 5.0, 2.0, min_samples=1, blocking=True
    ),
    AlertRule("score_predicts_nothing", "score_thumb_auc", FLOOR, 0.5, 0.45, 0.52, min_samples=100, blocking=True),
    AlertRule("kl_over_budget", "kl_mean", CEILING, 6.4, 8.0, 6.0, min_samples=30),
    AlertRule("answers_longer", "length_mean_change", CEILING, 0.25, 0.5, 0.15, min_samples=50),
    AlertRule("answers_shorter", "length_mean_change", FLOOR, -0.25, -0.5, -0.15, min_samples=50),
    AlertRule("answers_repeat", "repetition_change", CEILING, 0.05, 0.1, 0.03, min_samples=50),
    AlertRule("answers_alike", "distinct_2_change", FLOOR, -0.15, -0.3, -0.1, min_samples=N_DISTINCT),
    AlertRule("answers_echo", "self_bleu_change", CEILING, 0.15, 0.3, 0.1, min_samples=N_ALIKE),
    # Half of the feedback in bursts makes twice what there would be without them, four fifths five times: signal 18's 2x and 5x.
    AlertRule("feedback_burst", "feedback_burst_fraction", CEILING, 0.5, 0.8, 0.33, min_samples=10, blocking=True),
    AlertRule("errors", "error_rate", CEILING, 0.02, 0.1, 0.01, min_samples=50),
)


class Change(Enum):
    """What the difference to the reference is divided by."""

    PLAIN = 1  # nothing
    RELATIVE = 2  # the reference
    OF_REST = 3  # what the reference lacks to 1: of Self-BLEU, whose distance from 1 is what there is to lose


PLAIN, RELATIVE, OF_REST = Change.PLAIN, Change.RELATIVE, Change.OF_REST
CHANGES: Mapping[str, Change] = {
    "thumbs_up_rate": PLAIN,
    "score_mean": PLAIN,
    "repetition": PLAIN,
    "eos_fraction": PLAIN,
    "length_mean": RELATIVE,
    "distinct_2": RELATIVE,
    "self_bleu": OF_REST,
    "feedback_rate": RELATIVE,
}


# --- windows and samples -----------------------------------------------------------------------------------------------


def window_start(store: Store, project_id: str) -> datetime | None:
    """Where the next window begins: at the end of the last one, or at the first Interaction; None before any."""
    with store.read() as tx:
        last = tx.find(
            Measurement, project_id=project_id, metric="feedback_rate", order="window_end", descending=True, limit=1
        )
        return last[0].window_end if last else monitoring.first_interaction_at(tx, project_id)


def n_waiting(store: Store, project_id: str, now: datetime) -> int:
    """Interactions that ended since the last window: what the next one would hold."""
    start = window_start(store, project_id)
    if start is None:
        return 0
    with store.read() as tx:
        return monitoring.traffic(tx, project_id, start, now).n_interactions


def sample_answers(
    store: Store, project_id: str, start: datetime, end: datetime, n: int, rated: bool = True
) -> list[Answer]:
    """Up to n answers of the window, drawn by a hash of their id: the same ones again. `rated` prefers those with a thumb, which the
    relation of score and satisfaction needs; half of the sample stays unrated traffic. Raises BadInput."""
    if n < 0:
        raise BadInput(f"monitor_sample is {n}; give how many answers are scored, 0 for none.")
    with store.read() as tx:
        answers = monitoring.answers(tx, project_id, start, end, MAX_ANSWERS)
        spoken = {thumb.interaction_id for thumb in monitoring.thumbs(tx, project_id, start, end)} if rated else set()
    drawn = sorted(answers, key=lambda answer: sha256_of([answer.response_id, "monitor"]))
    first = [answer for answer in drawn if answer.interaction_id in spoken][: n // 2]
    chosen = {answer.response_id for answer in first}
    rest = [answer for answer in drawn if answer.response_id not in chosen]
    return first + rest[: n - len(first)]


def score_rows(answers: Sequence[Answer]) -> list[Json]:
    """Input lines for `learn score`."""
    return [
        {
            "id": answer.response_id,
            "messages": list(answer.messages),
            "response": answer.text,
            "finished": answer.finish_reason == "stop",
        }
        for answer in answers
    ]


def keep_scores(
    store: Store, project_id: str, checkpoint_id: str, scores: Mapping[str, Mapping[str, float]], now: datetime
) -> None:
    """Remember what the reward Checkpoint gave each answer, for experiments that declare `score`; the first score of an answer stays."""
    with store.write() as tx:
        known = {one.id for one in tx.find(ResponseScore, id=list(scores))}
        tx.add(
            *(
                ResponseScore(
                    id=id, project_id=project_id, checkpoint_id=checkpoint_id, value=found["score"], created_at=now
                )
                for id, found in scores.items()
                if "score" in found and id not in known
            )
        )


# --- measuring ---------------------------------------------------------------------------------------------------------


def measure(
    store: Store,
    project_id: str,
    start: datetime,
    now: datetime,
    scores: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Measurement]:
    """Measure the window [start, now) and keep what there is data for.

    `scores`: response id -> its measures from `learn score` (`score`, and `kl` for answers of our own Checkpoints), of `sample_answers`.
    """
    if now <= start:
        raise BadInput(f"A window from {start:%H:%M:%S} to {now:%H:%M:%S} is empty; measure later.")
    with store.read() as tx:
        traffic = monitoring.traffic(tx, project_id, start, now)
        answers = monitoring.answers(tx, project_id, start, now, MAX_ANSWERS)
        thumbs = monitoring.thumbs(tx, project_id, start, now)
        acts = monitoring.acts(tx, project_id, start, now)
    found: list[tuple[str, Json, Interval]] = []
    if traffic.n_interactions:
        found.append(("feedback_rate", {}, _feedback_rate(traffic)))
        found.append(("error_rate", {}, wilson(traffic.n_errors, traffic.n_interactions)))
    if acts:
        found.append(("feedback_burst_fraction", {}, wilson(sum(in_bursts(acts)), len(acts))))
    found += _of_thumbs(thumbs)
    found += _of_texts(answers)
    found += _of_scores(answers, thumbs, scores or {})
    with store.write() as tx:
        live = tx.first(Release, project_id=project_id, state=ReleaseState.LIVE, segment="")
        since = live.live_at if live else None
        found += _changes(tx, project_id, start, since, found)
        found += _length_drift(tx, project_id, start, since, answers)
        found += _cusum(tx, project_id, start, since, found)
        rows = [
            Measurement(
                id=new_id(Measurement),
                project_id=project_id,
                metric=metric,
                value=value.mean,
                low=value.low if math.isfinite(value.low) else None,
                high=value.high if math.isfinite(value.high) else None,
                n=value.n,
                labels=labels,
                window_start=start,
                window_end=now,
                created_at=now,
            )
            for metric, labels, value in found
        ]
        tx.add(*rows)
    return rows


def _feedback_rate(traffic: Traffic) -> Interval:
    """Interactions that got feedback in the window per interaction that ended in it; above 1 where feedback comes late or in bursts."""
    rate = traffic.n_with_feedback / traffic.n_interactions
    half = 1.96 * math.sqrt(max(traffic.n_with_feedback, 1)) / traffic.n_interactions  # counts are Poisson
    return Interval(rate, max(0.0, rate - half), rate + half, traffic.n_interactions)


def in_bursts(acts: Sequence[Act]) -> list[bool]:
    """Which acts (in order of time) are part of a burst by their own actor, however many others speak at the same time.

    One of more than BURST_ACTS of an actor within BURST_SPAN, on whichever answers (so somebody who rates one again and again counts too);
    or one given within CLICK_SPAN after the same actor spoke about another answer. Without an actor each interaction is its own.
    """
    burst = [False] * len(acts)
    by_actor: dict[str, list[int]] = defaultdict(list)
    for place, act in enumerate(acts):
        by_actor[f"actor {act.actor}" if act.actor else f"interaction {act.interaction_id}"].append(place)
    for places in by_actor.values():
        for nth, place in enumerate(places):
            act, before = acts[place], acts[places[nth - 1]]
            if nth and act.interaction_id != before.interaction_id and act.at - before.at < CLICK_SPAN:
                burst[place] = True
            if nth >= BURST_ACTS and act.at - acts[places[nth - BURST_ACTS]].at < BURST_SPAN:
                for member in places[nth - BURST_ACTS : nth + 1]:
                    burst[member] = True
    return burst


Found = list[tuple[str, Json, Interval]]


def _of_thumbs(thumbs: Sequence[Thumb]) -> Found:
    found: Found = []
    if thumbs:
        found.append(("thumbs_up_rate", {}, _up_rate(thumbs)))
    cells: dict[tuple[str, str], list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        if thumb.arm:
            cells["arm", thumb.arm].append(thumb)
        for name, value in thumb.attributes.items():
            if isinstance(value, str | bool | int):
                cells[f"group:{name}", str(value)].append(thumb)
    n_values: dict[str, int] = defaultdict(int)
    for kind, _ in cells:
        n_values[kind] += 1
    for (kind, value), members in sorted(cells.items()):
        if len(members) >= MIN_CELL and n_values[kind] <= MAX_GROUPS:
            found.append(("thumbs_up_rate", {kind: value}, _up_rate(members)))
    return found


def _up_rate(thumbs: Sequence[Thumb]) -> Interval:
    """Share of thumbs that are up, clustered by user; Wilson's interval where the clusters say nothing."""
    ups = [float(thumb.up) for thumb in thumbs]
    users = [thumb.actor or f"interaction {thumb.interaction_id}" for thumb in thumbs]
    plain = wilson(sum(ups), len(ups))
    if len(set(users)) < 2:
        return plain
    clustered = mean_interval(ups, users)
    wider = clustered.high - clustered.low > plain.high - plain.low
    low, high = (clustered.low, clustered.high) if wider else (plain.low, plain.high)
    return Interval(plain.mean, max(0.0, low), min(1.0, high), len(ups))


def _of_texts(answers: Sequence[Answer]) -> Found:
    if len(answers) < 2:
        return []
    split = [answer.text.lower().split() for answer in answers]
    users = [answer.actor or answer.interaction_id for answer in answers]
    ends = [answer.finish_reason for answer in answers if answer.finish_reason]
    found: Found = [
        ("length_mean", {}, _mean(_lengths(answers), users)),
        ("repetition", {}, _mean([repetition_fraction(words, 4) for words in split], users)),
    ]
    if ends:
        found.append(("eos_fraction", {}, wilson(sum(end == "stop" for end in ends), len(ends))))
    drawn = sorted(range(len(answers)), key=lambda place: sha256_of([answers[place].response_id, "distinct"]))
    if len(answers) >= N_ALIKE:
        # Of equally many each time, as with distinct-n. The interval takes what each is held against as given.
        some = drawn[:N_ALIKE]
        found.append(("self_bleu", {}, _mean(self_bleus([split[i] for i in some]), [users[i] for i in some])))
    if len(answers) >= N_DISTINCT:
        value = distinct_n([split[i] for i in drawn[:N_DISTINCT]], 2)
        found.append(("distinct_2", {}, Interval(value, math.nan, math.nan, N_DISTINCT)))
    return found


def _of_scores(answers: Sequence[Answer], thumbs: Sequence[Thumb], scores: Mapping[str, Mapping[str, float]]) -> Found:
    scored = [answer for answer in answers if "score" in scores.get(answer.response_id, {})]
    found: Found = []
    if len(scored) >= 2:
        values = np.array([scores[answer.response_id]["score"] for answer in scored])
        users = [answer.actor or answer.interaction_id for answer in scored]
        found.append(("score_mean", {}, _mean(values.tolist(), users)))
        found.append(("score_sd", {}, Interval(float(values.std(ddof=1)), math.nan, math.nan, len(values))))
    for metric in ("kl", "nll"):
        members = [answer for answer in answers if metric in scores.get(answer.response_id, {})]
        if len(members) >= 2:
            users = [answer.actor or answer.interaction_id for answer in members]
            found.append((f"{metric}_mean", {}, _mean([scores[a.response_id][metric] for a in members], users)))
    up = {thumb.interaction_id: thumb.up for thumb in thumbs}
    rated = [answer for answer in scored if answer.interaction_id in up]
    good = [up[answer.interaction_id] for answer in rated]
    users = [answer.actor or answer.interaction_id for answer in rated]
    if all(
        len({user for user, liked in zip(users, good, strict=True) if liked == side}) >= 2 for side in (True, False)
    ):
        value = auc([scores[answer.response_id]["score"] for answer in rated], good, users)
        found.append(("score_thumb_auc", {}, replace(value, n=len(rated))))
    return found


def _mean(values: Sequence[float], users: Sequence[str]) -> Interval:
    """Mean with a cluster-robust interval; `n` is the number of values."""
    clusters = users if len(set(users)) > 1 else None
    interval = mean_interval(values, clusters)
    return Interval(interval.mean, interval.low, interval.high, len(values))


def _lengths(answers: Sequence[Answer]) -> list[float]:
    return [float(a.n_tokens if a.n_tokens is not None else len(a.text.split())) for a in answers]


def _changes(tx: Transaction, project_id: str, start: datetime, since: datetime | None, found: Found) -> Found:
    """Each metric of CHANGES against the mean of the windows before, weighted by their n."""
    changes: Found = []
    for metric, labels, now in found:
        if metric not in CHANGES or labels:
            continue
        before = monitoring.history(tx, project_id, metric, labels, since, start, N_REFERENCE)
        if not before:
            continue
        n = np.array([row.n for row in before], dtype=np.float64)
        weights = n / n.sum()
        mean = float(weights @ np.array([row.value for row in before]))
        half = math.sqrt(
            float((weights**2) @ np.array([((row.high or math.nan) - (row.low or 0.0)) ** 2 / 4 for row in before]))
            if all(row.high is not None and row.low is not None for row in before)
            else math.nan
        )
        scale = {PLAIN: 1.0, RELATIVE: mean, OF_REST: 1 - mean}[CHANGES[metric]]
        if scale < LEAST_SCALE:
            continue
        spread = math.hypot((now.high - now.low) / 2, half) / scale
        value = (now.mean - mean) / scale
        changes.append((f"{metric}_change", {}, Interval(value, value - spread, value + spread, now.n)))
    return changes


def _length_drift(
    tx: Transaction, project_id: str, start: datetime, since: datetime | None, answers: Sequence[Answer]
) -> Found:
    """The Kolmogorov-Smirnov distance of lengths to those of the windows before, over its threshold: 1 and above has drifted."""
    earliest = since or monitoring.first_interaction_at(tx, project_id)
    if earliest is None or len(answers) < MIN_CELL:
        return []
    before = monitoring.answers(tx, project_id, earliest, start, MAX_ANSWERS)
    if len(before) < MIN_CELL:
        return []
    drift = ks(_lengths(before), _lengths(answers))
    return [("length_drift", {}, Interval(drift.value / drift.threshold, math.nan, math.nan, len(answers)))]


def _cusum(tx: Transaction, project_id: str, start: datetime, since: datetime | None, found: Found) -> Found:
    """CUSUM (k = .5) of score minus satisfaction over windows, the difference itself standardised: whether they part."""
    now = {metric: value.mean for metric, labels, value in found if not labels}
    if "score_mean" not in now or "thumbs_up_rate" not in now:
        return []
    series = {}
    for metric in ("score_mean", "thumbs_up_rate"):
        rows = monitoring.history(tx, project_id, metric, {}, since, start, 10_000)
        series[metric] = {row.window_start: row.value for row in rows}
    shared = sorted(series["score_mean"].keys() & series["thumbs_up_rate"].keys())
    if len(shared) < MIN_BASELINE:
        return []
    pair = [[*(series[metric][at] for at in shared), now[metric]] for metric in ("score_mean", "thumbs_up_rate")]
    baseline = min(50, max(MIN_BASELINE, len(shared) // 2))
    try:
        path = cusum(standardised_difference(pair[0], pair[1], baseline).z)
    except BadInput:  # one of the two never moved: nothing to compare yet
        return []
    value = max(float(path.upper[-1]), float(path.lower[-1]))
    return [("score_satisfaction_cusum", {}, Interval(value, math.nan, math.nan, len(shared) + 1))]


# --- alerts ------------------------------------------------------------------------------------------------------------


def evaluate_rules(store: Store, project_id: str, now: datetime, rules: Sequence[AlertRule] = RULES) -> list[Alert]:
    """Open, raise and resolve Alerts by the newest Measurements; returns those that changed. Idempotent between two measurements."""
    changed = []
    with store.write() as tx:
        for rule in rules:
            alert = _apply(tx, project_id, rule, now)
            if alert is not None:
                changed.append(alert)
        webhooks.announce(tx, project_id, "alert", [(alert.id, alert.id) for alert in changed], now)
    return changed


def open_alerts(store: Store, project_id: str) -> list[Alert]:
    """What is pending or fires now, oldest first."""
    return store.find(Alert, project_id=project_id, state=(AlertState.PENDING, AlertState.FIRING))


def _apply(tx: Transaction, project_id: str, rule: AlertRule, now: datetime) -> Alert | None:
    rows = monitoring.history(tx, project_id, rule.metric, {}, None, now, max(rule.for_windows, 1))
    rows = [row for row in rows if row.n >= rule.min_samples]
    if not rows:
        return None
    newest = rows[-1]
    severity = level(rule, newest)
    found = tx.find(Alert, project_id=project_id, rule=rule.name, state=(AlertState.PENDING, AlertState.FIRING))
    alert = found[0] if found else None
    facts: dict[str, Any] = {"value": newest.value}
    if severity is None:
        if alert is None or not _cleared(rule, newest):
            return None
        return _to(tx, alert, AlertState.RESOLVED, now, **facts)
    threshold = rule.critical if severity == "critical" else rule.warn
    facts |= {
        "severity": severity,
        "blocking": rule.blocking and severity == "critical",
        "threshold": threshold,
        "message": _message(rule, newest, severity, threshold),
    }
    lasting = len(rows) >= rule.for_windows and all(level(rule, row) for row in rows)
    if alert is None:
        alert = Alert(
            id=new_id(Alert), project_id=project_id, rule=rule.name, state=AlertState.PENDING, opened_at=now, **facts
        )
        tx.add(alert)
        return _to(tx, alert, AlertState.FIRING, now) if lasting else alert
    if alert.state == AlertState.PENDING and lasting:
        return _to(tx, alert, AlertState.FIRING, now, **facts)
    if alert.severity == "warning" and severity == "critical":
        return tx.change(Alert, alert.id, {"state": alert.state}, **facts)
    return None


def level(rule: AlertRule, row: Measurement) -> str | None:
    """critical, warning or None: whether a measurement is beyond the rule, with its whole interval beyond the clearing level."""
    sign = 1 if rule.direction == Direction.CEILING else -1
    good_end = row.low if rule.direction == Direction.CEILING else row.high
    if good_end is not None and sign * good_end <= sign * rule.clear:
        return None
    if sign * row.value >= sign * rule.critical:
        return "critical"
    return "warning" if sign * row.value >= sign * rule.warn else None


def _cleared(rule: AlertRule, row: Measurement) -> bool:
    sign = 1 if rule.direction == Direction.CEILING else -1
    return sign * row.value <= sign * rule.clear


def _to(tx: Transaction, alert: Alert, after: AlertState, now: datetime, **facts: Any) -> Alert:
    check_transition(ALERT_TRANSITIONS, alert.state, after, f"Alert {alert.id}")
    resolved = now if after == AlertState.RESOLVED else None
    return tx.change(Alert, alert.id, {"state": alert.state}, state=after, resolved_at=resolved, **facts)


def _message(rule: AlertRule, row: Measurement, severity: str, threshold: float) -> str:
    between = f" [{row.low:.3f}, {row.high:.3f}]" if row.low is not None and row.high is not None else ""
    side = "below the floor" if rule.direction == Direction.FLOOR else "above the ceiling"
    return f"{severity}: {rule.metric} is {row.value:.3f}{between} (n = {row.n}), {side} of {threshold:g}."
