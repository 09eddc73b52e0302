"""Experiments: how many users meet the candidate, and what their feedback says about it, however often one looks.

Which Release answers a user is `loop/serving.py`'s. Here `analyse` is a pure function of what was observed; `look` joins the store to it and
decides in this order: guardrail rollback, then sample ratio and double exposure, then minimum sample and stage, then the goal. `promote` here
only means that users show no harm: the gate and two named approvals decide beside it (`loop/release.py`), so thumbs never promote alone.

Guardrails, those declared too, share `Rules.alpha`: over all looks together a candidate that is no worse is rolled back with at most that
probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.domain import (
    EXPERIMENT_TRANSITIONS,
    Experiment,
    ExperimentState,
    Json,
    Measurement,
    Release,
    ReleaseState,
    check_transition,
    new_id,
)
from plaudit.errors import BadInput, Conflict, NotFound, Refused
from plaudit.loop import govern, metrics, pilots
from plaudit.loop.metrics import Judged, PerUser
from plaudit.loop.pilots import Pilot
from plaudit.loop.serving import CANDIDATE, CONTROL, HOLDOUT, RELEASED
from plaudit.stats import user_metrics
from plaudit.stats.assignment import enrol
from plaudit.stats.intervals import Interval, wilson
from plaudit.stats.looks import Metric
from plaudit.stats.user_metrics import Difference
from plaudit.stats.verdict import (
    Better,
    Guardrail,
    bounded,
    bounded_guardrail,
    check_assignment,
    decide,
    event_guardrail,
    too_few,
)
from plaudit.store import experiment as observed_rows
from plaudit.store.audit import lock_head
from plaudit.store.database import Store, Transaction

_MIN_STRATUM = 10  # users an arm below which a stage has no variance worth an average


@dataclass(frozen=True)
class Rules:
    """What decides, fixed before the first user is enrolled."""

    alpha: float = field(
        default=0.05, metadata={"help": "Chance that the guardrails roll back a candidate that is no worse."}
    )
    min_users: int = field(default=200, metadata={"help": "Users in each arm before anything but harm is concluded."})
    min_stage_users: int = field(default=20, metadata={"help": "Users in each arm before the ramp goes on."})
    goal_margin: float = field(
        default=0.05,
        metadata={"help": "Promote needs the difference in thumbs-down per message to be below this for certain."},
    )
    n_planned: int = field(default=800, metadata={"help": "Users of both arms at which the bounds are tightest."})
    max_double_fraction: float = field(
        default=0.01, metadata={"help": "Share of users seen in both arms that is an alarm."}
    )

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise BadInput(f"rules.alpha is {self.alpha}; it must lie between 0 and 0.5.")
        if self.min_users < 200:
            raise BadInput(f"rules.min_users is {self.min_users}; below 200 users an arm the bounds do not hold.")
        if self.goal_margin <= 0 or self.n_planned < 1 or self.min_stage_users < 1:
            raise BadInput("rules.goal_margin, n_planned and min_stage_users must be above 0.")


@dataclass(frozen=True)
class Observed:
    """One row per user who met exactly one arm (U,), the first events of the guardrails (E,), and how many met both."""

    in_candidate: NDArray[np.bool_]  # (U,)
    stage: NDArray[np.int64]  # (U,) that enrolled the user
    n_messages: NDArray[np.int64]  # (U,)
    n_down: NDArray[np.int64]  # (U,) messages with a thumbs-down
    n_up: NDArray[np.int64]  # (U,)
    n_with_feedback: NDArray[np.int64]  # (U,)
    returned: NDArray[np.bool_]  # (U,) began a second conversation
    down_in_candidate: NDArray[np.bool_]  # (E,) first thumbs-down of each user who gave one
    down_probability: NDArray[np.float64]  # (E,) of the candidate, when it happened
    error_in_candidate: NDArray[np.bool_]  # (F,)
    error_probability: NDArray[np.float64]  # (F,)
    n_double: int
    declared: Mapping[str, PerUser] = field(default_factory=dict)  # metric -> its values (U,)


@dataclass(frozen=True)
class Look:
    """One reading of a running experiment. `figures` is what the store keeps and pages show."""

    verdict: str  # promote | hold | roll_back
    reasons: tuple[str, ...]
    figures: Json


# --- the ramp ----------------------------------------------------------------------------------------------------------


def start(
    store: Store,
    project_id: str,
    candidate_id: str,
    control_id: str,
    now: datetime,
    stages: tuple[float, ...] = (0.1, 0.5),
    rules: Rules | None = None,
    by: str = "system",
    role: str = "operator",
    declared: Sequence[Metric] = (),
    pilot: Pilot | None = None,
    holdout: float = 0.0,
    layer: str | None = None,
    reason: str = "",
) -> Experiment:
    """Enrol the first stage's users: that share of all users in *each* arm. The candidate must be a canary, the control live for the same
    users. `declared`: metrics besides thumbs, fixed now. `pilot`: whom it is for, what it may cost. `holdout`: share of all users who keep
    the control's Release, also after promotion. `layer`: experiments of one layer deal users alike; without one it is a layer of its own.
    `reason`: why, for the audit log.
    """
    rules = rules or Rules()
    kept_metrics, kept_pilot = metrics.declare(declared), pilots.to_json(pilot)
    enrol(holdout)
    if not stages or any(later <= earlier for earlier, later in pairwise(stages)):
        raise BadInput(
            f"stages are {list(stages)}; give growing shares of all users in each arm, such as 0.1 then 0.5."
        )
    for share in stages:
        enrol(share)
    with store.write() as tx:
        lock_head(tx, project_id)
        segment = tx.get(Release, candidate_id).segment
        for running in tx.find(Experiment, project_id=project_id, state=ExperimentState.RUNNING):
            if tx.get(Release, running.candidate_id).segment == segment:
                raise Conflict(f"Experiment {running.id} is running; end it before another starts.")
        for release_id, state in ((candidate_id, ReleaseState.CANARY), (control_id, ReleaseState.LIVE)):
            release = tx.get(Release, release_id)
            if release.project_id != project_id or release.state != state:
                raise Conflict(f"Release {release_id} is {release.state}; an experiment needs a {state} release there.")
        control = tx.get(Release, control_id)
        own = tx.first(Release, project_id=project_id, state=ReleaseState.LIVE, segment=segment)
        if control_id != (own.id if own else control_id) or (own is None and control.segment):
            raise Conflict(f"Release {control_id} is not what the users of {segment or 'everybody'} are served by.")
        new = new_id(Experiment)
        experiment = Experiment(
            id=new,
            project_id=project_id,
            candidate_id=candidate_id,
            control_id=control_id,
            salt=f"{project_id}/{layer}" if layer else new,
            stages=stages,
            stage_started_at=(now.isoformat(),),
            rules=asdict(rules),
            created_at=now,
            metrics=kept_metrics,
            pilot=kept_pilot,
            holdout=holdout,
        )
        tx.add(experiment)
        facts: Json = {"candidate_id": candidate_id, "control_id": control_id, "stages": list(stages)}
        facts |= {"rules": asdict(rules), "metrics": list(kept_metrics), "holdout": holdout}
        facts["pilot"] = {**kept_pilot, "users": len(kept_pilot["users"])} if kept_pilot else {}
        facts["salt"] = experiment.salt
        facts |= {"reason": reason} if reason else {}
        govern.audit(tx, project_id, by, role, "experiment.start", experiment.id, {}, facts, now)
        return experiment


def advance(
    store: Store,
    project_id: str,
    experiment_id: str,
    by: str,
    now: datetime,
    role: str = "operator",
    reason: str = "",
) -> Experiment:
    """The next stage of the ramp. Nobody enrolled changes arm. Raises Refused while the last look forbids it, Conflict at the end."""
    with store.write() as tx:
        lock_head(tx, project_id)
        experiment = _mine(tx, project_id, experiment_id)
        if experiment.state != ExperimentState.RUNNING:
            raise Conflict(f"Experiment {experiment_id} is {experiment.state}; only a running one advances.")
        if experiment.stage + 1 >= len(experiment.stages):
            raise Conflict(
                f"Experiment {experiment_id} is at its last stage ({experiment.stages[-1]:.0%} in each arm)."
            )
        if not experiment.figures.get("may_advance"):
            reasons = tuple(experiment.figures.get("blocks_advance", ("nobody has looked at this stage yet",)))
            raise Refused(
                f"Experiment {experiment_id} stays at stage {experiment.stage + 1}: {'; '.join(reasons)}.", reasons
            )
        moved = tx.change(
            Experiment,
            experiment_id,
            {"stage": experiment.stage, "state": ExperimentState.RUNNING},
            stage=experiment.stage + 1,
            stage_started_at=(*experiment.stage_started_at, now.isoformat()),
            figures={},  # what was read at a smaller stage decides nothing at this one
        )
        before: Json = {"stage": experiment.stage}
        after: Json = {"stage": moved.stage, "share": moved.stages[moved.stage]}
        after |= {"reason": reason} if reason else {}
        govern.audit(tx, project_id, by, role, "experiment.advance", experiment_id, before, after, now)
        return moved


def stop(
    store: Store, project_id: str, experiment_id: str, by: str, reason: str, now: datetime, role: str = "operator"
) -> Experiment:
    """End it without a verdict: the canary stays one and nobody meets it until another experiment starts. Raises Conflict where it is over."""
    with store.write() as tx:
        lock_head(tx, project_id)
        running = _mine(tx, project_id, experiment_id)
        check_transition(EXPERIMENT_TRANSITIONS, running.state, ExperimentState.STOPPED, f"Experiment {experiment_id}")
        ended = tx.change(
            Experiment, experiment_id, {"state": running.state}, state=ExperimentState.STOPPED, ended_at=now
        )
        facts = {"state": str(ended.state), "reason": reason}
        govern.audit(
            tx, project_id, by, role, "experiment.end", experiment_id, {"state": str(running.state)}, facts, now
        )
        return ended


def end_holdout(
    store: Store,
    project_id: str,
    experiment_id: str,
    by: str,
    now: datetime,
    role: str = "operator",
    reason: str = "",
) -> Experiment:
    """Whoever was kept on the Release of before meets the live one too. Raises Conflict where nobody is kept."""
    with store.write() as tx:
        lock_head(tx, project_id)
        promoted = _mine(tx, project_id, experiment_id)
        if not promoted.holdout:
            raise Conflict(f"Experiment {experiment_id} holds nobody out.")
        ended = tx.change(Experiment, experiment_id, {"holdout": promoted.holdout}, holdout=0.0)
        before: Json = {"holdout": promoted.holdout}
        after: Json = {"holdout": 0.0} | ({"reason": reason} if reason else {})
        govern.audit(tx, project_id, by, role, "experiment.end_holdout", experiment_id, before, after, now)
        return ended


def _mine(tx: Transaction, project_id: str, experiment_id: str) -> Experiment:
    found = tx.get(Experiment, experiment_id)
    if found.project_id != project_id:
        raise NotFound(f"There is no Experiment {experiment_id!r}.")
    return found


# --- looking -----------------------------------------------------------------------------------------------------------


def look(store: Store, experiment_id: str, now: datetime) -> Look:
    """Read, decide, and keep the figures. Decides nothing by itself: `release.roll_back` and `release.promote` act. An ended experiment
    answers with its last look."""
    experiment = store.get(Experiment, experiment_id)
    if experiment.state != ExperimentState.RUNNING:
        figures = experiment.figures
        return Look(figures.get("verdict", "hold"), tuple(figures.get("reasons", ())), figures)
    # An e-value that once said that users get lost is kept: such an experiment is not saved by waiting.
    stopped = bool(experiment.figures.get("stopped"))
    seen, rules, declared = observe(store, experiment_id), Rules(**experiment.rules), metrics.declared(experiment)
    found = analyse(seen, rules, experiment.stage, len(experiment.stages), stopped, declared)
    figures = {**found.figures, "verdict": found.verdict, "reasons": list(found.reasons), "at": now.isoformat()}
    if experiment.pilot:
        figures["pilot"] = _pilot_figures(store, experiment, now)
    with store.write() as tx:
        expect = {"state": ExperimentState.RUNNING, "stage": experiment.stage}
        tx.change(Experiment, experiment_id, expect, figures=figures)
        if figures["n_messages"] != experiment.figures.get("n_messages"):  # one point per news
            tx.add(*_points(experiment, figures, now))
    return Look(found.verdict, found.reasons, figures)


def long_term(store: Store, project_id: str, experiment_id: str) -> Look:
    """What a promoted experiment's holdout says: users who kept the Release of before against as many who met the new one, since promotion.
    The verdict says what it would have said; nothing acts on it."""
    with store.read() as tx:
        experiment = _mine(tx, project_id, experiment_id)
    seen = observe(store, experiment_id, (RELEASED, HOLDOUT))
    return analyse(seen, Rules(**experiment.rules), 0, 1, declared=metrics.declared(experiment))


def _pilot_figures(store: Store, experiment: Experiment, now: datetime) -> Json:
    """What the pilot has cost, and why it is over, if it is."""
    pilot = pilots.from_json(experiment.pilot)
    assert pilot is not None
    with store.read() as tx:
        prompt, completion = observed_rows.spent_tokens(tx, experiment.id, CANDIDATE)
    spent = pilot.spent(prompt, completion)
    return {
        "spent": spent,
        "cap": pilot.cap,
        "ends_at": experiment.pilot["ends_at"],
        "n_tokens": prompt + completion,
        "over": pilot.over(spent, now),
    }


def _points(experiment: Experiment, figures: Json, now: datetime) -> list[Measurement]:
    """What a look adds to the course of each difference."""

    def about(rate: Json, **labels: str) -> dict[str, Any]:
        return {
            "id": new_id(Measurement),
            "project_id": experiment.project_id,
            "value": rate["mean"],
            "low": rate["low"],
            "high": rate["high"],
            "n": rate["n"],
            "labels": {"experiment": experiment.id, **labels},
            "window_start": experiment.created_at,
            "window_end": now,
            "created_at": now,
        }

    rate = figures["down_rate_difference"]
    found = [Measurement(metric="experiment_down_rate_difference", **about(rate))] if rate else []
    known = [one for one in figures["metrics"] if one["difference"]]
    return found + [
        Measurement(metric="experiment_metric_difference", **about(one["difference"], metric=one["name"]))
        for one in known
    ]


def observe(store: Store, experiment_id: str, arms: tuple[str, str] = (CANDIDATE, CONTROL)) -> Observed:
    """What users did so far, by assigned arm. Users who met both arms are counted and left out."""
    with store.read() as tx:
        exposures = observed_rows.exposures(tx, experiment_id, arms)
        downs = observed_rows.first_thumbs_down(tx, experiment_id, arms)
        errors = observed_rows.first_errors(tx, experiment_id, arms)
        seen: dict[str, int] = {}
        for exposure in exposures:
            seen[exposure.actor] = seen.get(exposure.actor, 0) + 1
        users = [exposure for exposure in exposures if seen[exposure.actor] == 1]
        found = tx.find(Experiment, id=experiment_id)  # rows may be of one that is not kept here
        declared = metrics.per_user(tx, found[0], metrics.declared(found[0]), users) if found else {}
    downs = [event for event in downs if seen[event.actor] == 1]
    errors = [event for event in errors if seen[event.actor] == 1]

    def column(name: str) -> NDArray[np.int64]:
        return np.array([getattr(user, name) for user in users], dtype=np.int64)

    return Observed(
        in_candidate=np.array([user.arm == arms[0] for user in users], dtype=bool),
        stage=column("stage"),
        n_messages=column("n_messages"),
        n_down=column("n_down"),
        n_up=column("n_up"),
        n_with_feedback=column("n_with_feedback"),
        returned=column("n_conversations") > 1,
        down_in_candidate=np.array([event.arm == arms[0] for event in downs], dtype=bool),
        down_probability=np.array([event.probability for event in downs], dtype=np.float64),
        error_in_candidate=np.array([event.arm == arms[0] for event in errors], dtype=bool),
        error_probability=np.array([event.probability for event in errors], dtype=np.float64),
        n_double=sum(1 for count in seen.values() if count > 1),
        declared=declared,
    )


def analyse(
    seen: Observed,
    rules: Rules,
    stage: int,
    n_stages: int,
    stopped: bool = False,
    declared: Sequence[Metric] = (),
) -> Look:
    """The verdict at this look, by what was observed alone. stopped: an earlier look found that users get lost."""
    n_candidate = int(seen.in_candidate.sum())
    n_control = len(seen.in_candidate) - n_candidate
    by_stage = _by_stage(seen, seen.n_down, seen.n_messages)
    down_rate = _bounded(by_stage, rules, rules.alpha)
    alpha = rules.alpha / (N_GUARDRAILS + sum(metric.role == "guardrail" for metric in declared))
    judged = [_judged(seen, rules, metric, alpha) for metric in declared]
    guardrails = [*_guardrails(seen, rules, alpha, by_stage), *(one.guardrail for one in judged if one.guardrail)]
    assigned = check_assignment(_arrivals(seen), (0.5, 0.5), seen.n_double, rules.max_double_fraction, stopped)
    waiting = too_few(n_candidate, n_control, rules.min_users)
    if stage + 1 < n_stages:
        waiting.append(f"the ramp is at stage {stage + 1} of {n_stages}")
    missed = [one.missed for one in judged if one.missed]
    if down_rate is None or down_rate.high >= rules.goal_margin:
        high = "unknown" if down_rate is None else f"{down_rate.high:+.3f}"
        missed.append(f"thumbs-down per message may be up to {high} worse; below {rules.goal_margin:+.3f} is needed")
    found = decide(guardrails, assigned.reasons, waiting, missed, n_candidate + n_control)
    blocks_advance = [*(one.said() for one in guardrails if one.fired), *assigned.reasons]
    if min(n_candidate, n_control) < rules.min_stage_users:
        blocks_advance.append(f"this stage needs {rules.min_stage_users} users in each arm")
    figures = {
        "n_users": {CANDIDATE: n_candidate, CONTROL: n_control},
        "n_messages": {arm: int(seen.n_messages[chosen].sum()) for arm, chosen in _arms(seen)},
        "n_double": seen.n_double,
        "stage": stage,
        "decided_by": found.decided_by,
        "stopped": assigned.stopped,
        "guardrails": [asdict(guardrail) for guardrail in guardrails],
        "down_rate_difference": down_rate.to_dict() if down_rate else None,
        "metrics": [_shown(one) for one in judged],
        "thumbs": {arm: _thumbs(seen, chosen) for arm, chosen in _arms(seen)},
        "feedback_rate": _share(int(seen.n_with_feedback.sum()), int(seen.n_messages.sum())),
        "may_advance": not blocks_advance,
        "blocks_advance": blocks_advance,
    }
    return Look(found.verdict, found.reasons, figures)


# --- inside ------------------------------------------------------------------------------------------------------------


def _judged(seen: Observed, rules: Rules, metric: Metric, alpha: float) -> Judged:
    mine = alpha if metric.role == "guardrail" else rules.alpha
    values = seen.declared[metric.name]
    return metrics.judge(metric, values, seen.in_candidate, seen.stage, mine, rules.n_planned, rules.min_users)


def _shown(judged: Judged) -> Json:
    """The keys of docs/experiments.md, "A metric"."""
    difference = judged.reading.difference
    return {**asdict(judged.reading), "difference": difference.to_dict() if difference else None}


def _guardrails(seen: Observed, rules: Rules, alpha: float, down_rate: Difference | None) -> list[Guardrail]:
    worse_rate = _rate(seen, seen.in_candidate) > _rate(seen, ~seen.in_candidate)
    found = []
    for name, chosen, probability, harmful in (
        ("first_thumbs_down", seen.down_in_candidate, seen.down_probability, worse_rate),
        ("first_error", seen.error_in_candidate, seen.error_probability, True),
    ):
        found.append(event_guardrail(name, chosen, probability, alpha, harmful))
    came_back = _by_stage(seen, seen.returned.astype(np.int64), None)
    better: dict[str, Better] = {"down_rate": "down", "return_rate": "up"}
    for name, difference in (("down_rate", down_rate), ("return_rate", came_back)):
        found.append(bounded_guardrail(name, _bounded(difference, rules, alpha), better[name]))
    return found


N_GUARDRAILS = 4  # they share alpha equally, and with those that are declared


def _by_stage(seen: Observed, sums: NDArray[np.int64], counts: NDArray[np.int64] | None) -> Difference | None:
    """Candidate minus control within each enrolling stage, averaged: per message, or per user where no counts are given."""
    parts: list[Difference] = []
    for stage in np.unique(seen.stage):
        here = seen.stage == stage
        a, b = here & ~seen.in_candidate, here & seen.in_candidate
        if min(a.sum(), b.sum()) < _MIN_STRATUM:
            continue
        n = np.ones_like(sums) if counts is None else counts
        found = user_metrics.ratio_difference(sums[a], n[a], sums[b], n[b])
        parts.append(user_metrics.with_one_more_event(found, n[a].sum(), n[b].sum()))
    return user_metrics.stratified(parts) if parts else None


def _bounded(difference: Difference | None, rules: Rules, alpha: float) -> Interval | None:
    return bounded(difference, rules.n_planned, alpha, rules.min_users)


def _arrivals(seen: Observed) -> NDArray[np.int64]:
    """Users (S, 2) in control and candidate by the stage that enrolled them."""
    counts = [
        [int((~seen.in_candidate & (seen.stage == s)).sum()), int((seen.in_candidate & (seen.stage == s)).sum())]
        for s in np.unique(seen.stage)
    ]
    return np.array(counts, dtype=np.int64).reshape(-1, 2)


def _arms(seen: Observed) -> list[tuple[str, NDArray[np.bool_]]]:
    return [(CANDIDATE, seen.in_candidate), (CONTROL, ~seen.in_candidate)]


def _rate(seen: Observed, chosen: NDArray[np.bool_]) -> float:
    messages = int(seen.n_messages[chosen].sum())
    return float(seen.n_down[chosen].sum() / messages) if messages else 0.0


def _thumbs(seen: Observed, chosen: NDArray[np.bool_]) -> Json:
    up, down = int(seen.n_up[chosen].sum()), int(seen.n_down[chosen].sum())
    messages = int(seen.n_messages[chosen].sum())
    return {
        "up": up,
        "down": down,
        "down_per_message": _share(down, messages),
        "up_per_thumb": _share(up, up + down),
        "feedback_rate": _share(int(seen.n_with_feedback[chosen].sum()), messages),
    }


def _share(part: int, whole: int) -> dict[str, float | int] | None:
    return wilson(part, whole).to_dict() if whole else None


def rules_from(options: dict[str, Any]) -> Rules:
    """Rules from a command line or a config file. Raises BadInput for an unknown name."""
    names = [spec.name for spec in fields(Rules)]
    for name in options:
        if name not in names:
            raise BadInput(f"{name!r} is not an experiment rule; valid are {', '.join(names)}.")
    return Rules(**options)
