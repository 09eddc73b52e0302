"""An experiment before it starts: how long it would take and what it would find (`simulate`), and whether it cries wolf on the traffic that
there is (`replay`). Both decide by `experiment.analyse`, so what is rehearsed is what will run. Nothing is written.

Metrics that an experiment would declare are read from the store for all users there are (`population`), by the functions that read them for a
running one. Simulated users are then whole stored users, drawn with replacement: how their messages hang together, how skewed they are and
what their past predicts (CUPED) is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from plaudit.domain import Json
from plaudit.errors import BadInput, NotFound
from plaudit.loop import metrics
from plaudit.loop.experiment import Observed, Rules, analyse
from plaudit.loop.metrics import PerUser
from plaudit.stats import user_metrics
from plaudit.stats.assignment import N_BUCKETS, bucket, enrol
from plaudit.stats.group_sequential import inflation, obrien_fleming
from plaudit.stats.intervals import wilson
from plaudit.stats.looks import Metric
from plaudit.store import experiment as stored
from plaudit.store.database import Store, Transaction
from plaudit.store.experiment import Window

LEAST_USERS = 20  # stored ones, below which nothing is drawn from them
N_LOOKS = 20  # of a simulated experiment; a worker looks more often and so ends a little sooner
_GROUP_LOOKS = 5
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Traffic:
    """What users do while nothing changes. Shares are 0..1; `n_users` is how many were measured, 0 for figures that were given."""

    users_per_day: float
    feedback_rate: float  # share of messages with a thumb
    down_share: float  # share of those thumbs that are down
    messages_per_user: float = 3.0
    return_fraction: float = 0.3  # users who begin a second conversation
    n_users: int = 0

    def __post_init__(self) -> None:
        shares = (self.feedback_rate, self.down_share, self.return_fraction)
        if not all(0 <= share <= 1 for share in shares) or self.users_per_day <= 0 or self.messages_per_user < 1:
            raise BadInput(
                f"Traffic of {self.users_per_day:g} users a day with {self.messages_per_user:g} messages each, feedback_rate "
                f"{self.feedback_rate:g}, down_share {self.down_share:g} and return_fraction {self.return_fraction:g} cannot be; "
                "give shares between 0 and 1, at least one message a user and some users a day."
            )

    @property
    def down_per_message(self) -> float:
        return self.feedback_rate * self.down_share


def measure(store: Store, project_id: str, since: datetime) -> Traffic:
    """Traffic of named users since then. Raises NotFound where there is too little to tell."""
    with store.read() as tx:
        turns = stored.traffic(tx, project_id, since)
    users = {turn.actor for turn in turns}
    if len(users) < 2 or turns[-1].at == turns[0].at:
        raise NotFound(
            f"There are {len(users)} named users since {since:%Y-%m-%d}; give --feedback-rate and --users-per-day instead."
        )
    days = max((turns[-1].at - turns[0].at).total_seconds() / 86400, 1.0)
    thumbs = sum(turn.has_thumb for turn in turns)
    downs = sum(turn.down_at is not None for turn in turns)
    conversations = {(turn.actor, turn.conversation_id) for turn in turns}
    n_conversations: dict[str, int] = {}
    for actor, _ in conversations:
        n_conversations[actor] = n_conversations.get(actor, 0) + 1
    return Traffic(
        users_per_day=len(users) / days,
        feedback_rate=thumbs / len(turns),
        down_share=downs / thumbs if thumbs else 0.0,
        messages_per_user=len(turns) / len(users),
        return_fraction=sum(n > 1 for n in n_conversations.values()) / len(users),
        n_users=len(users),
    )


# --- simulated users ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """What a candidate changes. `down`: factor on thumbs-down per message. `moved`: by declared metric, candidate minus control, in its unit."""

    down: float = 1.0
    moved: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Crowd:
    """What users did in all (U,), before anybody is dealt into arms."""

    n_messages: Ints
    n_down: Ints
    n_up: Ints
    n_with_feedback: Ints
    returned: Bools
    failed: Bools  # met an answer that failed
    declared: Mapping[str, PerUser] = field(default_factory=dict)

    def taken(self, places: Ints) -> Crowd:
        """The users at these places, who may be there more than once."""
        declared = {name: _taken(one, places) for name, one in self.declared.items()}
        return Crowd(
            self.n_messages[places],
            self.n_down[places],
            self.n_up[places],
            self.n_with_feedback[places],
            self.returned[places],
            self.failed[places],
            declared,
        )

    def seen(self, end: int, chosen: Bools, stage: Ints) -> Observed:
        """The first `end` of them in their arms. What one does comes all at once, so the order of first events is that of users."""
        now = self.taken(np.arange(end))
        arms = chosen[:end]
        downs, errors = arms[now.n_down > 0], arms[now.failed]
        return Observed(
            in_candidate=arms,
            stage=stage[:end],
            n_messages=now.n_messages,
            n_down=now.n_down,
            n_up=now.n_up,
            n_with_feedback=now.n_with_feedback,
            returned=now.returned,
            down_in_candidate=downs,
            down_probability=np.full(len(downs), 0.5),
            error_in_candidate=errors,
            error_probability=np.full(len(errors), 0.5),
            n_double=0,
            declared=now.declared,
        )


def population(store: Store, window: Window, declared: Sequence[Metric]) -> Crowd:
    """All named users of a window with what they did by each metric. Raises BadInput (no metric), NotFound where fewer than LEAST_USERS came,
    or have a value."""
    metrics.declare(declared)
    with store.read() as tx:
        users = stored.exposures(tx, window)
        failed = {event.actor for event in stored.first_errors(tx, window)}
        found = metrics.per_user_within(tx, window, declared, users)
    _enough(len(users), window.since)
    for name, one in found.items():
        if (n := int((one.counts > 0).sum())) < LEAST_USERS:
            raise NotFound(
                f"{n} users since {window.since:%Y-%m-%d} have a value of {name}; at least {LEAST_USERS} are needed."
            )
    columns = _columns(users)
    return Crowd(**columns, failed=np.array([user.actor in failed for user in users], dtype=bool), declared=found)


def effects(harm: float, gain: float, declared: Sequence[Metric], amounts: Mapping[str, float]) -> dict[str, Effect]:
    """An equal candidate, one that is worse and one that is better: by these factors on thumbs-down, and by these amounts of declared metrics.
    Raises BadInput for a goal without an amount, an amount of no metric, or one that is not above 0."""
    for name, amount in amounts.items():
        if name not in (metric.name for metric in declared):
            raise BadInput(f"effect names {name!r}, which is no metric.")
        if not amount > 0:
            raise BadInput(f"effect of {name} is {amount}; say how large a difference is looked for, above 0.")
    for metric in declared:
        if metric.role == "goal" and metric.name not in amounts:
            raise BadInput(
                f"How large a difference of {metric.name} is looked for? Say it with --effect {metric.name}=0.05."
            )
    better = {
        metric.name: amounts[metric.name] * (1 if metric.better == "up" else -1)
        for metric in declared
        if metric.name in amounts
    }
    worse = {name: -amount for name, amount in better.items()}
    return {"no change": Effect(), "harm": Effect(harm, worse), "gain": Effect(gain, better)}


def simulate(
    traffic: Traffic,
    rules: Rules,
    stages: Sequence[float],
    effects: Mapping[str, Effect],
    n_runs: int,
    max_users: int,
    rng: np.random.Generator,
    declared: Sequence[Metric] = (),
    crowd: Crowd | None = None,
) -> Json:
    """max_users: enrolled in both arms, where a run ends undecided. crowd: stored users to draw from, which `declared` metrics need.

    Without one users differ (Beta with the spread of ten messages); what one does comes all at once. Figures per effect: shares of runs with an
    interval, enrolled users, users who met the candidate and days until the decision, median and 95th percentile; per declared metric the
    shares of runs that ended with its goal met or its guardrail fired.
    """
    if traffic.down_per_message <= 0 and crowd is None:
        raise BadInput(
            "Nobody gives a thumbs-down, so that no experiment on it can end; raise the feedback rate first."
        )
    if n_runs < 1 or max_users < N_LOOKS:
        raise BadInput(f"runs is {n_runs} and max_users {max_users}; give at least 1 and {N_LOOKS}.")
    for share in stages:
        enrol(share)
    found = {}
    for name, effect in effects.items():
        if effect.down <= 0:
            raise BadInput(f"{name} is {effect.down}; give a factor above 0, such as 1.5.")
        if crowd is not None:
            _check_moved(crowd, declared, effect)
        runs = [_one(traffic, rules, stages, effect, max_users, rng, declared, crowd) for _ in range(n_runs)]
        found[name] = {
            "factor": effect.down,
            "verdicts": {
                verdict: wilson(sum(run.verdict == verdict for run in runs), n_runs).to_dict()
                for verdict in ("promote", "hold", "roll_back")
            },
            "n_users": _spread([run.n_users for run in runs]),
            "n_candidate": _spread([run.n_candidate for run in runs]),
            "days": _spread([run.days for run in runs]),
            "read_once_users": _read_once(traffic, effect.down),
            "metrics": [_of_metric(metric, effect, runs, crowd) for metric in declared if crowd is not None],
        }
    bounds = obrien_fleming(_GROUP_LOOKS)
    return {
        "traffic": {**asdict(traffic), "down_per_message": traffic.down_per_message},
        "rules": asdict(rules),
        "stages": list(stages),
        "n_runs": n_runs,
        "max_users": max_users,
        "group_sequential": {"looks": _GROUP_LOOKS, "inflation": inflation(bounds)},
        "effects": found,
    }


@dataclass(frozen=True)
class _Run:
    verdict: str
    n_users: int
    n_candidate: int
    days: float
    metrics: Mapping[str, Json]  # of the last look


def _one(
    traffic: Traffic,
    rules: Rules,
    stages: Sequence[float],
    effect: Effect,
    max_users: int,
    rng: np.random.Generator,
    declared: Sequence[Metric],
    crowd: Crowd | None,
) -> _Run:
    chosen = rng.random(max_users) < 0.5
    if crowd is None:
        users = _modelled(traffic, effect, chosen, rng)
    else:
        users = _changed(crowd, crowd.taken(rng.integers(0, len(crowd.n_messages), max_users)), effect, chosen, rng)
    stage_of = np.zeros(max_users, dtype=np.int64)
    stage, days, seen = 0, 0.0, 0
    for end in np.linspace(0, max_users, N_LOOKS + 1)[1:].astype(int):
        stage_of[seen:end] = stage
        days += (end - seen) / (2 * stages[stage]) / traffic.users_per_day
        seen = int(end)
        look = analyse(users.seen(seen, chosen, stage_of), rules, stage, len(stages), declared=declared)
        if look.verdict != "hold":
            break
        if look.figures["may_advance"] and stage + 1 < len(stages):
            stage += 1
    last = {one["name"]: one for one in look.figures["metrics"]}
    return _Run(look.verdict, seen, int(chosen[:seen].sum()), days, last)


def _modelled(traffic: Traffic, effect: Effect, chosen: Bools, rng: np.random.Generator) -> Crowd:
    size, rate = len(chosen), traffic.down_per_message
    own = rng.beta(10 * rate, 10 * (1 - rate), size) * np.where(chosen, effect.down, 1.0)
    n_messages = 1 + rng.poisson(traffic.messages_per_user - 1, size)
    n_down = rng.binomial(n_messages, np.minimum(own, 1.0))
    returned = rng.random(size) < traffic.return_fraction
    return Crowd(n_messages, n_down, np.zeros(size, dtype=np.int64), n_down, returned, np.zeros(size, dtype=bool))


def _changed(crowd: Crowd, drawn: Crowd, effect: Effect, chosen: Bools, rng: np.random.Generator) -> Crowd:
    """Users drawn from `crowd` with what the candidate changes."""
    declared = dict(drawn.declared)
    for name, by in effect.moved.items():
        one = declared[name]
        if metrics.is_share(name):
            sums = _more_often(one.sums, one.counts, _rate(crowd.declared[name]), by, chosen, rng)
        else:
            sums = one.sums + by * one.counts * chosen
        declared[name] = replace(one, sums=sums)
    rate = float(crowd.n_down.sum() / crowd.n_messages.sum())
    n_down = _more_often(drawn.n_down, drawn.n_messages, rate, (effect.down - 1) * rate, chosen, rng)
    same = {name: declared[name].sums for name in effect.moved if name in ("thumbs_down", "return_rate", "errors")}
    return replace(
        drawn,
        declared=declared,
        # What is judged in every experiment, and declared besides, is one thing.
        n_down=np.asarray(same.get("thumbs_down", n_down)).astype(np.int64),
        returned=same["return_rate"] > 0 if "return_rate" in same else drawn.returned,
        failed=same["errors"] > 0 if "errors" in same else drawn.failed,
    )


def _more_often(
    sums: Floats | Ints, counts: Floats | Ints, rate: float, by: float, chosen: Bools, rng: np.random.Generator
) -> Floats:
    """Yeses of each user (U,) of so many, the candidate's with so much more probability on average: each no turns to yes, or yes to no, alone."""
    if by == 0:
        return sums.astype(np.float64)
    from_these = (counts - sums if by > 0 else sums).astype(np.int64)
    turned = rng.binomial(from_these, min(abs(by) / (1 - rate if by > 0 else rate), 1.0))
    moved: Floats = (sums + np.sign(by) * turned * chosen).astype(np.float64)
    return moved


def _check_moved(crowd: Crowd, declared: Sequence[Metric], effect: Effect) -> None:
    """Raises BadInput where a share would leave 0..1."""
    for metric in declared:
        rate = _rate(crowd.declared[metric.name])
        if metrics.is_share(metric.name) and not 0 <= rate + effect.moved.get(metric.name, 0.0) <= 1:
            by = abs(effect.moved[metric.name])
            raise BadInput(f"{metric.name} is {rate:.3g} today; a difference of {by:g} either way leaves 0 to 1.")


def _rate(values: PerUser) -> float:
    return float(values.sums.sum() / values.counts.sum())


def _taken(values: PerUser, places: Ints) -> PerUser:
    before = None if values.before is None else values.before[places]
    return PerUser(values.sums[places], values.counts[places], before)


def _of_metric(metric: Metric, effect: Effect, runs: Sequence[_Run], crowd: Crowd) -> Json:
    last = [run.metrics[metric.name] for run in runs]
    left = [one["adjusted"]["variance_fraction"] for one in last if one["adjusted"]]
    moved = effect.moved.get(metric.name, 0.0)
    return {
        "name": metric.name,
        "role": metric.role,
        "margin": metric.margin,
        "moved": moved,
        "met": wilson(sum(one["state"] == "met" for one in last), len(runs)).to_dict(),
        "fired": wilson(sum(one["state"] == "fired" for one in last), len(runs)).to_dict(),
        "variance_fraction": float(np.median(left)) if left else None,
        "read_once_users": _read_once_of(metric, crowd.declared[metric.name], moved),
    }


def _read_once_of(metric: Metric, values: PerUser, moved: float) -> int | None:
    """Users of both arms at which a two-sided z-test at .05 on users' values, read once, finds this difference with power .8: a goal beyond
    its margin, a guardrail's harm beyond it."""
    better = moved if metric.better == "up" else -moved
    gap = better + metric.margin if metric.role == "goal" else -better - metric.margin
    if gap <= 0 or moved == 0:
        return None
    had = values.counts > 0
    one = user_metrics.linearised(values.sums[had], values.counts[had])
    if not metrics.is_share(metric.name):
        one = user_metrics.winsorise(one, metrics.WINSORISE)
    if values.before is not None:
        one = user_metrics.cuped(one, values.before[had])
    return int(np.ceil(4 * _Z**2 * float(one.var(ddof=1)) / gap**2 / had.mean()))


_Z = float(special.ndtri(0.975) + special.ndtri(0.8))


def _read_once(traffic: Traffic, effect: float) -> int | None:
    """Users of both arms at which a two-sided z-test at .05, read once at the end, finds this effect on messages with power .8."""
    a, b = traffic.down_per_message, min(traffic.down_per_message * effect, 1.0)
    if a == b:
        return None
    messages = _Z**2 * (a * (1 - a) + b * (1 - b)) / (a - b) ** 2
    return int(np.ceil(2 * messages / traffic.messages_per_user))


def _spread(values: Sequence[float]) -> dict[str, float]:
    median, p95 = np.quantile(values, [0.5, 0.95])
    return {"median": float(median), "p95": float(p95)}


# --- stored traffic, shuffled ------------------------------------------------------------------------------------------


def replay(
    store: Store,
    project_id: str,
    since: datetime,
    rules: Rules,
    n_runs: int,
    n_looks: int,
    seed: int,
    declared: Sequence[Metric] = (),
) -> Json:
    """False alarms of `n_runs` A/A experiments: each deals the stored users anew into two arms, by the hash that serving uses, and looks
    `n_looks` times. `naive` is a z-test read at every look, the negative control; `false_goals` are goals without a margin that were met at any
    look. Raises NotFound with fewer than 20 users."""
    if n_runs < 1 or n_looks < 1:
        raise BadInput(f"runs is {n_runs} and looks {n_looks}; give at least 1 of each.")
    metrics.declare(declared)
    with store.read() as tx:
        turns = stored.traffic(tx, project_id, since)
        actors = sorted({turn.actor for turn in turns})
        _enough(len(actors), since)
        ends = [turns[end - 1].at for end in np.linspace(0, len(turns), n_looks + 1)[1:].astype(int) if end]
        looks = [_seen(tx, Window(project_id, since, end), actors, declared) for end in ends]
    alarms: list[str] = []
    held = naive = 0
    goals = [metric.name for metric in declared if metric.role == "goal" and metric.margin == 0]
    met = dict.fromkeys(goals, 0)
    for run in range(n_runs):
        salt = f"aa-{seed}-{run}"
        chosen = np.array([bucket(salt, actor) < N_BUCKETS // 2 for actor in actors])
        outcome = [_verdict(look, chosen, rules, declared) for look in looks]
        fired = [one.fired for one in outcome if one.fired]
        alarms += fired[:1]
        held += any(one.held for one in outcome)
        naive += any(one.naive for one in outcome)
        for name in goals:
            met[name] += any(name in one.met for one in outcome)
    return {
        "n_users": len(actors),
        "n_messages": len(turns),
        "n_runs": n_runs,
        "n_looks": len(looks),
        "alpha": rules.alpha,
        "false_rollbacks": wilson(len(alarms), n_runs).to_dict(),
        "first_fired": {name: alarms.count(name) for name in sorted(set(alarms))},
        "false_goals": {name: wilson(count, n_runs).to_dict() for name, count in met.items()},
        "false_holds": wilson(held, n_runs).to_dict(),
        "naive": wilson(naive, n_runs).to_dict(),
        "enough_users": len(actors) >= 2 * rules.min_users,
    }


@dataclass(frozen=True)
class _Seen:
    """One look at the traffic, for any arms: figures of the users who have come so far, and who gave the first events."""

    users: Ints  # (u,) which actors
    observed: Observed  # in_candidate is filled in for each run
    down: Ints  # (e,) actors with a thumbs-down, in order of time
    error: Ints


@dataclass(frozen=True)
class _Outcome:
    """`fired`: the guardrail that did so first, or empty. `held`: for its assignment. `met`: goals. `naive`: whether the z-test cried."""

    fired: str
    held: bool
    met: frozenset[str]
    naive: bool


def _seen(tx: Transaction, window: Window, actors: Sequence[str], declared: Sequence[Metric]) -> _Seen:
    number = {actor: i for i, actor in enumerate(actors)}
    users = stored.exposures(tx, window)
    firsts = (stored.first_thumbs_down(tx, window), stored.first_errors(tx, window))
    down, error = (np.array([number[event.actor] for event in events], dtype=np.int64) for events in firsts)
    observed = Observed(
        in_candidate=np.zeros(len(users), dtype=bool),
        stage=np.zeros(len(users), dtype=np.int64),
        **_columns(users),
        down_in_candidate=np.zeros(0, dtype=bool),
        down_probability=np.full(len(down), 0.5),
        error_in_candidate=np.zeros(0, dtype=bool),
        error_probability=np.full(len(error), 0.5),
        n_double=0,
        declared=metrics.per_user_within(tx, window, declared, users),
    )
    return _Seen(np.array([number[user.actor] for user in users], dtype=np.int64), observed, down, error)


def _columns(users: Sequence[stored.Exposure]) -> dict[str, NDArray[Any]]:
    names = ("n_messages", "n_down", "n_up", "n_with_feedback")
    found: dict[str, NDArray[Any]] = {
        name: np.array([getattr(user, name) for user in users], dtype=np.int64) for name in names
    }
    return found | {"returned": np.array([user.n_conversations > 1 for user in users], dtype=bool)}


def _enough(n_users: int, since: datetime) -> None:
    if n_users < LEAST_USERS:
        raise NotFound(f"There are {n_users} named users since {since:%Y-%m-%d}; at least {LEAST_USERS} are needed.")


def _verdict(look: _Seen, chosen: Bools, rules: Rules, declared: Sequence[Metric]) -> _Outcome:
    arms = chosen[look.users]
    observed = replace(
        look.observed,
        in_candidate=arms,
        down_in_candidate=chosen[look.down],
        error_in_candidate=chosen[look.error],
    )
    found = analyse(observed, rules, 0, 1, declared=declared).figures
    fired = next((one["name"] for one in found["guardrails"] if one["fired"]), "")
    met = frozenset(one["name"] for one in found["metrics"] if one["state"] == "met")
    return _Outcome(fired, found["decided_by"] == "assignment", met, _naive(observed.n_down > 0, arms))


def _naive(event: Bools, arms: Bools) -> bool:
    n_candidate, n = int(arms.sum()), len(arms)
    rate = float(event.mean())
    if not 0 < rate < 1 or not 0 < n_candidate < n:
        return False
    gap = float(event[arms].mean() - event[~arms].mean())
    return bool(abs(gap) > 1.96 * np.sqrt(rate * (1 - rate) * (1 / n_candidate + 1 / (n - n_candidate))))
