"""An experiment before it starts: how long it would take and what it would find (`simulate`), and whether it cries wolf on the traffic that
there is (`replay`). Both decide by `experiment.analyse`, so what is rehearsed is what will run. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from scipy import special

from plaudit.domain import Json
from plaudit.errors import BadInput, NotFound
from plaudit.loop.experiment import Observed, Rules, analyse
from plaudit.stats.assignment import N_BUCKETS, bucket, enrol
from plaudit.stats.group_sequential import inflation, obrien_fleming
from plaudit.stats.intervals import wilson
from plaudit.store import experiment as stored
from plaudit.store.database import Store

N_LOOKS = 20  # of a simulated experiment; a worker looks more often and so ends a little sooner
_GROUP_LOOKS = 5
_NO_EVENTS: tuple[NDArray[np.bool_], NDArray[np.float64]] = (np.zeros(0, dtype=bool), np.zeros(0))


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


def simulate(
    traffic: Traffic,
    rules: Rules,
    stages: Sequence[float],
    effects: dict[str, float],
    n_runs: int,
    max_users: int,
    rng: np.random.Generator,
) -> Json:
    """effects: name -> factor on the candidate's thumbs-down per message. max_users: enrolled in both arms, where a run ends undecided.

    Users differ (Beta with the spread of ten messages); what one does comes all at once. Figures per effect: shares of runs with an interval,
    enrolled users, users who met the candidate and days until the decision, median and 95th percentile.
    """
    if traffic.down_per_message <= 0:
        raise BadInput(
            "Nobody gives a thumbs-down, so that no experiment on it can end; raise the feedback rate first."
        )
    if n_runs < 1 or max_users < N_LOOKS:
        raise BadInput(f"runs is {n_runs} and max_users {max_users}; give at least 1 and {N_LOOKS}.")
    for share in stages:
        enrol(share)
    found = {}
    for name, effect in effects.items():
        if effect <= 0:
            raise BadInput(f"{name} is {effect}; give a factor above 0, such as 1.5.")
        runs = [_one(traffic, rules, stages, effect, max_users, rng) for _ in range(n_runs)]
        found[name] = {
            "factor": effect,
            "verdicts": {
                verdict: wilson(sum(run.verdict == verdict for run in runs), n_runs).to_dict()
                for verdict in ("promote", "hold", "roll_back")
            },
            "n_users": _spread([run.n_users for run in runs]),
            "n_candidate": _spread([run.n_candidate for run in runs]),
            "days": _spread([run.days for run in runs]),
            "read_once_users": _read_once(traffic, effect),
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


def _one(
    traffic: Traffic, rules: Rules, stages: Sequence[float], effect: float, max_users: int, rng: np.random.Generator
) -> _Run:
    chosen = rng.random(max_users) < 0.5
    rate = traffic.down_per_message
    own = rng.beta(10 * rate, 10 * (1 - rate), max_users) * np.where(chosen, effect, 1.0)
    n_messages = 1 + rng.poisson(traffic.messages_per_user - 1, max_users)
    n_down = rng.binomial(n_messages, np.minimum(own, 1.0))
    returned = rng.random(max_users) < traffic.return_fraction
    stage_of = np.zeros(max_users, dtype=np.int64)
    stage, days, seen = 0, 0.0, 0
    verdict = "hold"
    for end in np.linspace(0, max_users, N_LOOKS + 1)[1:].astype(int):
        stage_of[seen:end] = stage
        days += (end - seen) / (2 * stages[stage]) / traffic.users_per_day
        seen = end
        first = chosen[:end][n_down[:end] > 0]
        observed = Observed(
            in_candidate=chosen[:end],
            stage=stage_of[:end],
            n_messages=n_messages[:end],
            n_down=n_down[:end],
            n_up=np.zeros(end, dtype=np.int64),
            n_with_feedback=n_down[:end],
            returned=returned[:end],
            down_in_candidate=first,
            down_probability=np.full(len(first), 0.5),
            error_in_candidate=_NO_EVENTS[0],
            error_probability=_NO_EVENTS[1],
            n_double=0,
        )
        look = analyse(observed, rules, stage, len(stages))
        verdict = look.verdict
        if verdict != "hold":
            break
        if look.figures["may_advance"] and stage + 1 < len(stages):
            stage += 1
    return _Run(verdict, int(seen), int(chosen[:seen].sum()), days)


def _read_once(traffic: Traffic, effect: float) -> int | None:
    """Users of both arms at which a two-sided z-test at .05, read once at the end, finds this effect on messages with power .8."""
    a, b = traffic.down_per_message, min(traffic.down_per_message * effect, 1.0)
    if a == b:
        return None
    z = float(special.ndtri(0.975) + special.ndtri(0.8))
    messages = z**2 * (a * (1 - a) + b * (1 - b)) / (a - b) ** 2
    return int(np.ceil(2 * messages / traffic.messages_per_user))


def _spread(values: Sequence[float]) -> dict[str, float]:
    median, p95 = np.quantile(values, [0.5, 0.95])
    return {"median": float(median), "p95": float(p95)}


# --- stored traffic, shuffled ------------------------------------------------------------------------------------------


def replay(store: Store, project_id: str, since: datetime, rules: Rules, n_runs: int, n_looks: int, seed: int) -> Json:
    """False alarms of `n_runs` A/A experiments: each deals the stored users anew into two arms, by the hash that serving uses, and looks
    `n_looks` times. `naive` is a z-test read at every look, the negative control. Raises NotFound with fewer than 20 users."""
    if n_runs < 1 or n_looks < 1:
        raise BadInput(f"runs is {n_runs} and looks {n_looks}; give at least 1 of each.")
    with store.read() as tx:
        turns = stored.traffic(tx, project_id, since)
    actors = sorted({turn.actor for turn in turns})
    if len(actors) < 20:
        raise NotFound(f"There are {len(actors)} named users since {since:%Y-%m-%d}; a replay needs at least 20.")
    looks = [_seen(turns[:end], actors) for end in np.linspace(0, len(turns), n_looks + 1)[1:].astype(int) if end]
    alarms: list[str] = []
    held = naive = 0
    for run in range(n_runs):
        salt = f"aa-{seed}-{run}"
        chosen = np.array([bucket(salt, actor) < N_BUCKETS // 2 for actor in actors])
        outcome = [_verdict(look, chosen, rules) for look in looks]
        fired = [name for name, _, _ in outcome if name]
        alarms += fired[:1]
        held += any(broken for _, broken, _ in outcome)
        naive += any(z for _, _, z in outcome)
    return {
        "n_users": len(actors),
        "n_messages": len(turns),
        "n_runs": n_runs,
        "n_looks": len(looks),
        "alpha": rules.alpha,
        "false_rollbacks": wilson(len(alarms), n_runs).to_dict(),
        "first_fired": {name: alarms.count(name) for name in sorted(set(alarms))},
        "false_holds": wilson(held, n_runs).to_dict(),
        "naive": wilson(naive, n_runs).to_dict(),
        "enough_users": len(actors) >= 2 * rules.min_users,
    }


@dataclass(frozen=True)
class _Seen:
    """One look at the traffic, for any arms: figures of the users who have come so far, and who gave the first events."""

    users: NDArray[np.int64]  # (u,) which actors
    observed: Observed  # in_candidate is filled in for each run
    down: NDArray[np.int64]  # (e,) actors with a thumbs-down, in order of time
    error: NDArray[np.int64]


def _seen(turns: Sequence[stored.Turn], actors: Sequence[str]) -> _Seen:
    now, number = turns[-1].at, {actor: i for i, actor in enumerate(actors)}
    size = len(actors)
    n_messages, n_down, n_thumbs = (np.zeros(size, dtype=np.int64) for _ in range(3))
    conversations: dict[int, set[str]] = {}
    firsts: dict[str, dict[int, datetime]] = {"down": {}, "error": {}}
    for turn in turns:
        i = number[turn.actor]
        n_messages[i] += 1
        n_thumbs[i] += turn.has_thumb
        conversations.setdefault(i, set()).add(turn.conversation_id)
        for name, at in (("down", turn.down_at), ("error", turn.error_at)):
            if at is not None and at <= now:
                n_down[i] += name == "down"
                firsts[name][i] = min(at, firsts[name].get(i, at))
    users = np.flatnonzero(n_messages)
    down, error = (
        np.array(sorted(firsts[name], key=lambda i, name=name: firsts[name][i]), dtype=np.int64)  # type: ignore[misc]
        for name in ("down", "error")
    )
    observed = Observed(
        in_candidate=np.zeros(len(users), dtype=bool),
        stage=np.zeros(len(users), dtype=np.int64),
        n_messages=n_messages[users],
        n_down=n_down[users],
        n_up=np.zeros(len(users), dtype=np.int64),
        n_with_feedback=n_thumbs[users],
        returned=np.array([len(conversations[i]) > 1 for i in users.tolist()], dtype=np.bool_),
        down_in_candidate=_NO_EVENTS[0],
        down_probability=np.full(len(down), 0.5),
        error_in_candidate=_NO_EVENTS[0],
        error_probability=np.full(len(error), 0.5),
        n_double=0,
    )
    return _Seen(users, observed, down, error)


def _verdict(look: _Seen, chosen: NDArray[np.bool_], rules: Rules) -> tuple[str, bool, bool]:
    """(guardrail that fired first, or empty; whether the assignment was held; whether the naive test cried)."""
    arms = chosen[look.users]
    observed = replace(
        look.observed,
        in_candidate=arms,
        down_in_candidate=chosen[look.down],
        error_in_candidate=chosen[look.error],
    )
    found = analyse(observed, rules, 0, 1).figures
    fired = next((one["name"] for one in found["guardrails"] if one["fired"]), "")
    return fired, found["decided_by"] == "assignment", _naive(observed.n_down > 0, arms)


def _naive(event: NDArray[np.bool_], arms: NDArray[np.bool_]) -> bool:
    n_candidate, n = int(arms.sum()), len(arms)
    rate = float(event.mean())
    if not 0 < rate < 1 or not 0 < n_candidate < n:
        return False
    gap = float(event[arms].mean() - event[~arms].mean())
    return bool(abs(gap) > 1.96 * np.sqrt(rate * (1 - rate) * (1 / n_candidate + 1 / (n - n_candidate))))
