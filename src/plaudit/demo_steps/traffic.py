"""Simulated users of a seed ask a running service and leave thumbs there; whom they met is asked over HTTP too."""

from __future__ import annotations

from plaudit import simulate
from plaudit.client import Plaudit
from plaudit.domain import Json
from plaudit.errors import BadInput
from plaudit.loop import charts
from plaudit.stats.intervals import mean_interval, wilson

CONCURRENCY = 16
OUTSIDE = "outside"  # of the experiment


def run(url: str, key: str, n_users: int, n_messages: int, population: str, seed: int) -> Json:
    """{n_users, arms: arm -> {users, messages, up, down, up_share}}; `up_share` is of the thumbs, its interval clustered by user. The arm is that of
    the start, also where the experiment ends meanwhile."""
    if n_users < 1 or n_messages < 1:
        raise BadInput(f"users is {n_users} and messages {n_messages}; give at least 1 of each.")
    prompts = simulate.load_prompts(population if population in ("support", "bytes") else "support")
    asked_of = [one for one in prompts if one.pool == "traffic"]
    names = [f"simulated-{seed}-{number}" for number in range(n_users)]
    visits = [
        simulate.Visit(name, asked_of[(number * n_messages + turn) % len(asked_of)])
        for number, name in enumerate(names)
        for turn in range(n_messages)
    ]
    with Plaudit(url, key) as client:
        arms = {name: str(client.assign(name)["arm"] or OUTSIDE) for name in names}
    asked = simulate.ask(url, key, simulate.load_population(population), visits, concurrency=CONCURRENCY)
    return {"n_users": n_users, "arms": {arm: _figures(arm, arms, asked) for arm in sorted(set(arms.values()))}}


def picture(found: Json) -> str:
    """The share of thumbs that are up in each arm, as SVG."""
    rows = [{"label": name, **arm["up_share"]} for name, arm in found["arms"].items() if arm["up_share"]]
    return charts.spans(
        rows,
        x_title="share of the thumbs of simulated users that are up",
        about=f"Thumbs up of {found['n_users']} simulated users by arm, with 95 % intervals over users.",
        domain=(0.0, 1.0),
    )


def _figures(arm: str, arms: dict[str, str], asked: list[simulate.Asked]) -> Json:
    mine = [one for one in asked if arms[one.visit.user] == arm]
    thumbs = [(float(one.up), one.visit.user) for one in mine if one.up is not None]
    n_up, users = int(sum(up for up, _ in thumbs)), [user for _, user in thumbs]
    share = None
    if thumbs:
        apart = n_up in (0, len(thumbs)) or len(set(users)) < 2  # clusters that say nothing
        share = wilson(n_up, len(thumbs)) if apart else mean_interval([up for up, _ in thumbs], users)
    return {
        "users": sum(one == arm for one in arms.values()),
        "messages": len(mine),
        "up": n_up,
        "down": len(thumbs) - n_up,
        "up_share": share.to_dict() if share else None,
    }
