"""Does reward mean business? Over all past experiments: what the reward model promised against what users and the business saw.

A loop that maximises a score which no outcome follows is busy with itself. One experiment is one point: the change of the reward that the
candidate was trained on, and the difference of an outcome between its users and the control's. Below `FEWEST` points nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from plaudit.domain import Checkpoint, Experiment, ExperimentState, Json, Release
from plaudit.stats.correlation import rank_correlation
from plaudit.stats.intervals import Interval, normal_quantile
from plaudit.stats.user_metrics import difference
from plaudit.store import outcomes
from plaudit.store.database import Store, Transaction

FEWEST = 8
THUMBS = "thumbs"  # the outcome that every experiment has: fewer thumbs down per message
CANDIDATE, CONTROL = "candidate", "control"


@dataclass(frozen=True)
class Point:
    """One past experiment. `reward`: in units of the reward model, candidate minus control as scored on users' answers where the metric
    score was declared, else mean score after training less the mean before it; None where there is neither. `outcome`: candidate minus
    control, above 0 is better; None where too few had it."""

    experiment_id: str
    release_id: str
    model: str
    state: str
    ended_at: datetime | None
    reward: float | None
    reward_from: str  # answers | training
    outcome: Interval | None


@dataclass(frozen=True)
class Answer:
    """`correlation` is by ranks over `counted` points; None below FEWEST, or where all are equal, as `verdict` says."""

    outcome: str
    points: tuple[Point, ...]
    counted: tuple[Point, ...]
    same_sign: int
    correlation: Interval | None
    verdict: str


def names(store: Store, project_id: str) -> list[str]:
    """The outcomes that can be asked about: thumbs, and every name that the business has sent."""
    with store.read() as tx:
        return [THUMBS, *(name for name in outcomes.names(tx, project_id) if name != THUMBS)]


def ask(store: Store, project_id: str, outcome: str = THUMBS) -> Answer:
    """Every experiment that is over, oldest first, and what they say together about `outcome`."""
    with store.read() as tx:
        over = [one for one in tx.find(Experiment, project_id=project_id) if one.state != ExperimentState.RUNNING]
        releases = {one.id: one for one in tx.find(Release, project_id=project_id)}
        checkpoints = {one.id: one for one in tx.find(Checkpoint, project_id=project_id)}
        points = []
        for one in over:
            release = releases[one.candidate_id]
            scored, promised = _declared(one.figures, "score"), _promised(checkpoints.get(release.checkpoint_id or ""))
            points.append(
                Point(
                    experiment_id=one.id,
                    release_id=release.id,
                    model=release.model,
                    state=str(one.state),
                    ended_at=one.ended_at,
                    reward=scored.mean if scored else promised,
                    reward_from="answers" if scored else "training" if promised is not None else "",
                    outcome=_seen(tx, one, outcome),
                )
            )
    return answer(outcome, points)


def answer(outcome: str, points: Sequence[Point]) -> Answer:
    """What the points say together."""
    counted = [one for one in points if one.reward is not None and one.outcome is not None]
    rewards = [one.reward for one in counted if one.reward is not None]
    seen = [one.outcome.mean for one in counted if one.outcome is not None]
    same = sum(a * b > 0 for a, b in zip(rewards, seen, strict=True))
    correlation = None
    if len(counted) < FEWEST:
        verdict = f"Too few: {len(counted)} past experiments have both figures, {FEWEST} are needed to say anything."
    elif len(set(rewards)) == 1 or len(set(seen)) == 1:
        verdict = "One of the two never changed, so nothing can be said about how they go together."
    else:
        correlation = rank_correlation(rewards, seen)
        verdict = _said(correlation)
    return Answer(outcome, tuple(points), tuple(counted), same, correlation, verdict)


def _said(found: Interval) -> str:
    if found.low > 0:
        return "Yes: where the reward rose more, the outcome rose more, and the interval lies above zero."
    if found.high < 0:
        return (
            "No: where the reward rose more, the outcome fell. Do not train on this reward; ask people what it misses."
        )
    return "Not shown: the interval holds zero, so the reward may as well have nothing to do with the outcome."


def _promised(made: Checkpoint | None) -> float | None:
    """Mean score at the end of training less that at its start, as the program wrote them."""
    after, before = (made.metrics.get(name) if made else None for name in ("score", "score_first"))
    return float(after) - float(before) if isinstance(after, int | float) and isinstance(before, int | float) else None


def _seen(tx: Transaction, one: Experiment, name: str) -> Interval | None:
    """As the experiment's last look has it where the outcome was declared, else from what the business sent."""
    if name == THUMBS:
        return _fewer_thumbs_down(one.figures)
    return _declared(one.figures, f"outcome:{name}") or _per_user(tx, one, name)


def _declared(figures: Json, name: str) -> Interval | None:
    """The difference of a declared metric, turned round where less is better."""
    found = next((part for part in figures.get("metrics", ()) if part["name"] == name and part["difference"]), None)
    if found is None:
        return None
    change = Interval(**found["difference"])
    return change if found["better"] == "up" else _turned(change)


def _turned(change: Interval) -> Interval:
    return Interval(0.0 - change.mean, 0.0 - change.high, 0.0 - change.low, change.n)  # no minus before a zero


def _fewer_thumbs_down(figures: Json) -> Interval | None:
    """Of the last look, turned round so that more is better."""
    found = figures.get("down_rate_difference")
    return _turned(Interval(**found)) if found else None


def _per_user(tx: Transaction, one: Experiment, name: str) -> Interval | None:
    """Sum per user, candidate minus control, of those who met one arm; None where nobody has the outcome or an arm has one user."""
    rows = outcomes.per_user(tx, one.project_id, one.id, name)
    met: dict[str, int] = {}
    for row in rows:
        met[row.actor] = met.get(row.actor, 0) + 1
    arms = {arm: [row.total for row in rows if row.arm == arm and met[row.actor] == 1] for arm in (CONTROL, CANDIDATE)}
    if min(len(totals) for totals in arms.values()) < 2 or not any(row.n for row in rows):
        return None
    found = difference(arms[CONTROL], arms[CANDIDATE])
    half = normal_quantile(0.95) * found.se
    return Interval(found.mean, found.mean - half, found.mean + half, found.n_control + found.n_candidate)
