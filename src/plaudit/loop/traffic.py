"""Whole experiments on simulated users, many times: how often a release that is no better is promoted, how often one that is better is, and how
many users meet one that is worse before it is taken away. The worse one is what reward hacking looks like: its score is up, its users are not.

Decides by `experiment.analyse` at every look, as the worker does. Users differ; what one does comes all at once. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from plaudit.domain import Json
from plaudit.errors import BadInput
from plaudit.loop import charts
from plaudit.loop.experiment import Observed, Rules, analyse
from plaudit.loop.metrics import PerUser
from plaudit.stats.assignment import enrol
from plaudit.stats.intervals import wilson
from plaudit.stats.looks import Metric

# The reward is shown and decides nothing; users must like the candidate better for certain.
METRICS = (Metric("thumbs_up", "goal", "up"), Metric("score", "monitor", "up"))


@dataclass(frozen=True)
class Crowd:
    """What users do while nothing changes; shares are 0..1."""

    messages_per_user: float = field(default=4.0, metadata={"help": "Messages of a user, at least 1, on average."})
    feedback_rate: float = field(default=0.3, metadata={"help": "Share of messages with a thumb."})
    up_share: float = field(default=0.65, metadata={"help": "Share of the thumbs that are up."})
    return_fraction: float = field(default=0.4, metadata={"help": "Users who begin a second conversation."})

    def __post_init__(self) -> None:
        shares = (self.feedback_rate, self.up_share, self.return_fraction)
        if not all(0 < share < 1 for share in shares) or self.messages_per_user < 1:
            raise BadInput(
                f"A crowd of {asdict(self)} cannot be; give shares between 0 and 1 and at least one message."
            )


@dataclass(frozen=True)
class Change:
    """What the candidate changes: `liked` is added to the share of thumbs that are up, `score` (in standard deviations) to the reward."""

    liked: float = 0.0
    score: float = 0.0


def trials(
    crowd: Crowd,
    changes: dict[str, Change],
    rules: Rules,
    stages: Sequence[float],
    n_runs: int,
    max_users: int,
    n_looks: int,
    seed: int,
) -> Json:
    """Per change: shares of runs that end in each verdict, with intervals, and over the runs the users who met the candidate (median, 95th
    percentile). max_users: enrolled in both arms, where a run ends undecided. Raises BadInput."""
    if n_runs < 1 or n_looks < 1 or max_users < n_looks:
        raise BadInput(
            f"runs is {n_runs}, looks {n_looks}, max_users {max_users}; give at least 1, 1, and a user a look."
        )
    for share in stages:
        enrol(share)
    found: Json = {}
    for name, change in changes.items():
        if not 0 < crowd.up_share + change.liked < 1:
            raise BadInput(
                f"{name} changes the share of thumbs up from {crowd.up_share:g} by {change.liked:+g}: no share."
            )
        rngs = [np.random.default_rng([seed, run]) for run in range(n_runs)]
        runs = [_one(crowd, change, rules, stages, max_users, n_looks, rng) for rng in rngs]
        reached = np.quantile([run.n_candidate for run in runs], [0.5, 0.95])
        users = np.quantile([run.n_users for run in runs], [0.5, 0.95])
        found[name] = {
            **asdict(change),
            "verdicts": {
                verdict: wilson(sum(run.verdict == verdict for run in runs), n_runs).to_dict()
                for verdict in ("promote", "hold", "roll_back")
            },
            "n_candidate": {"median": float(reached[0]), "p95": float(reached[1])},
            "n_users": {"median": float(users[0]), "p95": float(users[1])},
            "score_difference": float(np.mean([run.score for run in runs])),
        }
    return {
        "crowd": asdict(crowd),
        "rules": asdict(rules),
        "metrics": [asdict(metric) for metric in METRICS],
        "stages": list(stages),
        "n_runs": n_runs,
        "n_looks": n_looks,
        "max_users": max_users,
        "seed": seed,
        "changes": found,
    }


def pictures(found: Json) -> dict[str, str]:
    """What `trials` found, as SVG by name: how experiments of each kind ended, and how many users met the candidate until then."""
    ends = [
        {"label": f"{name}: {verdict.replace('_', ' ')}", **one["verdicts"][verdict]}
        for name, one in found["changes"].items()
        for verdict in ("promote", "roll_back")
    ]
    met = [
        {"label": name, "mean": one["n_candidate"]["median"], "low": 0, "high": one["n_candidate"]["p95"]}
        for name, one in found["changes"].items()
    ]
    each = f"{found['n_runs']} simulated experiments of each kind"
    return {
        "verdicts": charts.spans(
            ends,
            x_title="share of simulated experiments, with 95 % interval",
            about=f"How {each} ended.",
            domain=(0.0, 1.0),
        ),
        "users": charts.spans(
            met,
            x_title="simulated users who met the candidate: median, and 95 % of experiments",
            about=f"Users who met the candidate until {each} ended.",
        ),
    }


@dataclass(frozen=True)
class _Run:
    verdict: str
    n_users: int
    n_candidate: int
    score: float


def _one(
    crowd: Crowd,
    change: Change,
    rules: Rules,
    stages: Sequence[float],
    max_users: int,
    n_looks: int,
    rng: np.random.Generator,
) -> _Run:
    chosen = rng.random(max_users) < 0.5
    # Everybody is pleased in their own measure (Beta, as if ten thumbs had been seen of each), and leaves the sooner the less they are.
    pleased = rng.beta(10 * crowd.up_share, 10 * (1 - crowd.up_share), max_users) + change.liked * chosen
    pleased = np.clip(pleased, 0.0, 1.0)
    n_messages = 1 + rng.poisson(crowd.messages_per_user - 1, max_users)
    n_thumbs = rng.binomial(n_messages, crowd.feedback_rate)
    n_up = rng.binomial(n_thumbs, pleased)
    n_down = n_thumbs - n_up
    returned = rng.random(max_users) < np.clip(crowd.return_fraction * pleased / crowd.up_share, 0.0, 1.0)
    score = n_messages * change.score * chosen + rng.normal(0, 1, max_users) * np.sqrt(n_messages)
    stage_of = np.zeros(max_users, dtype=np.int64)
    stage, seen = 0, 0
    for end in np.linspace(0, max_users, n_looks + 1)[1:].astype(int):
        stage_of[seen:end] = stage
        seen = int(end)
        now = slice(0, seen)
        first = chosen[now][n_down[now] > 0]
        observed = Observed(
            in_candidate=chosen[now],
            stage=stage_of[now],
            n_messages=n_messages[now],
            n_down=n_down[now],
            n_up=n_up[now],
            n_with_feedback=n_thumbs[now],
            returned=returned[now],
            down_in_candidate=first,
            down_probability=np.full(len(first), 0.5),
            error_in_candidate=np.zeros(0, dtype=bool),
            error_probability=np.zeros(0),
            n_double=0,
            declared={
                "thumbs_up": PerUser(n_up[now].astype(np.float64), n_messages[now].astype(np.float64)),
                "score": PerUser(score[now], n_messages[now].astype(np.float64)),
            },
        )
        look = analyse(observed, rules, stage, len(stages), declared=METRICS)
        if look.verdict != "hold":
            break
        if look.figures["may_advance"] and stage + 1 < len(stages):
            stage += 1
    means = {one["name"]: (one["candidate"] or 0.0) - (one["control"] or 0.0) for one in look.figures["metrics"]}
    return _Run(look.verdict, seen, int(chosen[:seen].sum()), means["score"])
