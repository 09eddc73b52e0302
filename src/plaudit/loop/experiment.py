"""Experiments: which users meet the candidate, and what their feedback says about it, however often one looks.

`assign` is a pure function of the serving config, the user and how the conversation began; `analyse` is one of what was observed. `look`
joins the store to it and decides in this order: guardrail rollback, then sample ratio and double exposure, then minimum sample and stage,
then the goal. `promote` here only means that users show no harm: the gate and two named approvals decide beside it (`loop/release.py`), so
thumbs never promote alone.

Guardrails share `Rules.alpha`: over all looks together a candidate that is no worse is rolled back with at most that probability.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.domain import (
    Assignment,
    Experiment,
    ExperimentState,
    Interaction,
    Json,
    Measurement,
    Release,
    ReleaseState,
    new_id,
)
from plaudit.errors import BadInput, Conflict, NotFound, Refused
from plaudit.loop import govern
from plaudit.stats import user_metrics
from plaudit.stats.assignment import arm_for, bucket, enrol
from plaudit.stats.intervals import Interval, wilson
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
from plaudit.store.database import Store

CANDIDATE, CONTROL = "candidate", "control"
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
class ServingConfig:
    """What the gateway serves by, swapped whole. `version` is the number of the audit entry that made it so."""

    version: int
    live: Release
    candidate: Release | None = None
    experiment: Experiment | None = None

    def release(self, release_id: str) -> Release:
        """The Release that an Assignment of this config names."""
        for release in (self.live, self.candidate):
            if release is not None and release.id == release_id:
                return release
        raise NotFound(f"Release {release_id!r} is not served by config {self.version}.")


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


@dataclass(frozen=True)
class Look:
    """One reading of a running experiment. `figures` is what the store keeps and pages show."""

    verdict: str  # promote | hold | roll_back
    reasons: tuple[str, ...]
    figures: Json


# --- serving -----------------------------------------------------------------------------------------------------------


def serving_config(store: Store, project_id: str) -> ServingConfig:
    """The live Release and the running experiment, in one consistent view. Raises NotFound before anything is live."""
    with store.read() as tx:
        live = tx.first(Release, project_id=project_id, state=ReleaseState.LIVE)
        if live is None:
            raise NotFound(f"Project {project_id} has no live release yet; start it once with `plaudit up`.")
        experiment = tx.first(Experiment, project_id=project_id, state=ExperimentState.RUNNING)
        candidate = tx.get(Release, experiment.candidate_id) if experiment else None
        return ServingConfig(observed_rows.ledger_version(tx, project_id), live, candidate, experiment)


def began(store: Store, project_id: str, conversation_id: str) -> Assignment | None:
    """What the first turn of a conversation was assigned, None where there is no turn yet."""
    with store.read() as tx:
        found = tx.find(Interaction, project_id=project_id, conversation_id=conversation_id, limit=1)
    if not found or found[0].release_id is None:
        return None
    return Assignment(found[0].release_id, found[0].experiment_id, found[0].arm)


def assign(config: ServingConfig, actor: str | None, began: Assignment | None = None) -> Assignment:
    """The Release that answers this turn. A new conversation goes by its user; without one, or outside the ramp, the live Release answers
    and the turn is part of no experiment.

    A conversation stays with the Release that it began under (`began`) while that one is served, whoever speaks later and however the ramp
    has moved; promotion and rollback move it. It is part of the experiment only where it began in the arm that its user is in now: that
    rule is the same for both arms, although only the candidate's would change the Release.
    """
    own = _by_user(config, actor)
    if began is None or (began.experiment_id, began.arm) == (own.experiment_id, own.arm):
        return own
    served = {release.id for release in (config.live, config.candidate) if release is not None}
    return Assignment(began.release_id) if began.release_id in served else own


def _by_user(config: ServingConfig, actor: str | None) -> Assignment:
    experiment = config.experiment
    if experiment is None or actor is None:
        return Assignment(config.live.id)
    enrolment = enrol(experiment.stages[experiment.stage])
    arm = arm_for(bucket(experiment.salt, actor), enrolment)
    if arm is None:
        return Assignment(config.live.id)
    release_id = experiment.candidate_id if arm == CANDIDATE else experiment.control_id
    # Arms are equal buckets at every stage, so an enrolled user was given the candidate with probability one half.
    return Assignment(release_id, experiment.id, arm, experiment.stage, 0.5)


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
) -> Experiment:
    """Enrol the first stage's users: that share of all users in *each* arm. The candidate must be a canary, the control live."""
    rules = rules or Rules()
    if not stages or any(later <= earlier for earlier, later in pairwise(stages)):
        raise BadInput(
            f"stages are {list(stages)}; give growing shares of all users in each arm, such as 0.1 then 0.5."
        )
    for share in stages:
        enrol(share)
    with store.write() as tx:
        lock_head(tx, project_id)
        running = tx.first(Experiment, project_id=project_id, state=ExperimentState.RUNNING)
        if running is not None:
            raise Conflict(f"Experiment {running.id} is running; end it before another starts.")
        for release_id, state in ((candidate_id, ReleaseState.CANARY), (control_id, ReleaseState.LIVE)):
            release = tx.get(Release, release_id)
            if release.project_id != project_id or release.state != state:
                raise Conflict(f"Release {release_id} is {release.state}; an experiment needs a {state} release there.")
        new = new_id(Experiment)
        experiment = Experiment(
            id=new,
            project_id=project_id,
            candidate_id=candidate_id,
            control_id=control_id,
            salt=new,
            stages=stages,
            stage_started_at=(now.isoformat(),),
            rules=asdict(rules),
            created_at=now,
        )
        tx.add(experiment)
        facts = {"candidate_id": candidate_id, "control_id": control_id, "stages": list(stages), "rules": asdict(rules)}
        govern.audit(tx, project_id, by, role, "experiment.start", experiment.id, {}, facts, now)
        return experiment


def advance(
    store: Store, project_id: str, experiment_id: str, by: str, now: datetime, role: str = "operator"
) -> Experiment:
    """The next stage of the ramp. Nobody enrolled changes arm. Raises Refused while the last look forbids it, Conflict at the end."""
    with store.write() as tx:
        lock_head(tx, project_id)
        experiment = tx.get(Experiment, experiment_id)
        if experiment.project_id != project_id:
            raise NotFound(f"There is no Experiment {experiment_id!r}.")
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
        before, after = {"stage": experiment.stage}, {"stage": moved.stage, "share": moved.stages[moved.stage]}
        govern.audit(tx, project_id, by, role, "experiment.advance", experiment_id, before, after, now)
        return moved


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
    seen, rules = observe(store, experiment_id), Rules(**experiment.rules)
    found = analyse(seen, rules, experiment.stage, len(experiment.stages), stopped)
    figures = {**found.figures, "verdict": found.verdict, "reasons": list(found.reasons), "at": now.isoformat()}
    with store.write() as tx:
        expect = {"state": ExperimentState.RUNNING, "stage": experiment.stage}
        tx.change(Experiment, experiment_id, expect, figures=figures)
        rate = figures["down_rate_difference"]
        if rate is not None and figures["n_messages"] != experiment.figures.get("n_messages"):  # one point per news
            tx.add(
                Measurement(
                    id=new_id(Measurement),
                    project_id=experiment.project_id,
                    metric="experiment_down_rate_difference",
                    value=rate["mean"],
                    low=rate["low"],
                    high=rate["high"],
                    n=rate["n"],
                    labels={"experiment": experiment_id},
                    window_start=experiment.created_at,
                    window_end=now,
                    created_at=now,
                )
            )
    return Look(found.verdict, found.reasons, figures)


def observe(store: Store, experiment_id: str) -> Observed:
    """What users did so far, by assigned arm. Users who met both arms are counted and left out."""
    with store.read() as tx:
        exposures = observed_rows.exposures(tx, experiment_id)
        downs = observed_rows.first_thumbs_down(tx, experiment_id)
        errors = observed_rows.first_errors(tx, experiment_id)
    seen: dict[str, int] = {}
    for exposure in exposures:
        seen[exposure.actor] = seen.get(exposure.actor, 0) + 1
    users = [exposure for exposure in exposures if seen[exposure.actor] == 1]
    downs = [event for event in downs if seen[event.actor] == 1]
    errors = [event for event in errors if seen[event.actor] == 1]

    def column(name: str) -> NDArray[np.int64]:
        return np.array([getattr(user, name) for user in users], dtype=np.int64)

    return Observed(
        in_candidate=np.array([user.arm == CANDIDATE for user in users], dtype=bool),
        stage=column("stage"),
        n_messages=column("n_messages"),
        n_down=column("n_down"),
        n_up=column("n_up"),
        n_with_feedback=column("n_with_feedback"),
        returned=column("n_conversations") > 1,
        down_in_candidate=np.array([event.arm == CANDIDATE for event in downs], dtype=bool),
        down_probability=np.array([event.probability for event in downs], dtype=np.float64),
        error_in_candidate=np.array([event.arm == CANDIDATE for event in errors], dtype=bool),
        error_probability=np.array([event.probability for event in errors], dtype=np.float64),
        n_double=sum(1 for count in seen.values() if count > 1),
    )


def analyse(seen: Observed, rules: Rules, stage: int, n_stages: int, stopped: bool = False) -> Look:
    """The verdict at this look, by what was observed alone. stopped: an earlier look found that users get lost."""
    n_candidate = int(seen.in_candidate.sum())
    n_control = len(seen.in_candidate) - n_candidate
    by_stage = _by_stage(seen, seen.n_down, seen.n_messages)
    down_rate = _bounded(by_stage, rules, rules.alpha)
    guardrails = _guardrails(seen, rules, by_stage)
    assigned = check_assignment(_arrivals(seen), (0.5, 0.5), seen.n_double, rules.max_double_fraction, stopped)
    waiting = too_few(n_candidate, n_control, rules.min_users)
    if stage + 1 < n_stages:
        waiting.append(f"the ramp is at stage {stage + 1} of {n_stages}")
    missed = []
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
        "thumbs": {arm: _thumbs(seen, chosen) for arm, chosen in _arms(seen)},
        "feedback_rate": _share(int(seen.n_with_feedback.sum()), int(seen.n_messages.sum())),
        "may_advance": not blocks_advance,
        "blocks_advance": blocks_advance,
    }
    return Look(found.verdict, found.reasons, figures)


# --- inside ------------------------------------------------------------------------------------------------------------


def _guardrails(seen: Observed, rules: Rules, down_rate: Difference | None) -> list[Guardrail]:
    alpha = rules.alpha / N_GUARDRAILS
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


N_GUARDRAILS = 4  # they share alpha equally


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
