"""What somebody says when an experiment begins, on a command line or in a form, read into what `experiment.start` takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from plaudit.domain import Experiment, ExperimentState, Release, ReleaseState
from plaudit.errors import BadInput, NotFound
from plaudit.loop import pilots
from plaudit.loop.pilots import Pilot
from plaudit.stats.looks import Metric
from plaudit.store.database import Store


def opponents(store: Store, project_id: str, release_id: str | None = None) -> tuple[Release, Release]:
    """The canary (that one, else the newest) and what the users that it is for are served by. Raises NotFound."""
    wanted = {"id": release_id} if release_id else {}
    with store.read() as tx:
        canary = tx.first(Release, project_id=project_id, state=ReleaseState.CANARY, **wanted)
        if canary is None:
            raise NotFound("There is no canary to try; make one with `plaudit release canary`.")
        here = ["", canary.segment]
        lives = {
            one.segment: one for one in tx.find(Release, project_id=project_id, state=ReleaseState.LIVE, segment=here)
        }
    live = lives.get(canary.segment) or lives.get("")
    if live is None:
        raise NotFound("There is no live Release to compare it with; start `plaudit up` once.")
    return canary, live


def idle(store: Store, project_id: str) -> list[Release]:
    """Canaries that could be tried: nobody is being tried on their users."""
    with store.read() as tx:
        canaries = tx.find(Release, project_id=project_id, state=ReleaseState.CANARY, descending=True)
        running = tx.find(Experiment, project_id=project_id, state=ExperimentState.RUNNING)
        taken = {tx.get(Release, one.candidate_id).segment for one in running}
    return [one for one in canaries if one.segment not in taken]


def shares(text: str) -> tuple[float, ...]:
    """The stages of a ramp. Raises BadInput."""
    return tuple(number("stages", part) for part in text.split(","))


def metrics(given: Iterable[str], margins: Iterable[str]) -> list[Metric]:
    """NAME:ROLE:BETTER each; a margin is NAME=0.02, or a number for every goal. Raises BadInput."""
    tolerated: dict[str, float] = {}
    for_goals = 0.0
    for margin in margins:
        name, equals, value = margin.rpartition("=")
        if equals:
            tolerated[name] = float(number(f"margin {name}", value))
        else:
            for_goals = float(number("margin", margin))
    found = []
    for text in given:
        name, role, better = (["", "", "", *text.rsplit(":", 2)])[-3:]
        if not name or role not in ("goal", "guardrail", "monitor") or better not in ("up", "down"):
            raise BadInput(f"metric is {text!r}; write NAME:goal|guardrail|monitor:up|down.")
        worse = tolerated.pop(name, for_goals if role == "goal" else 0.0)
        found.append(Metric(name, role, better, worse))  # type: ignore[arg-type]
    if tolerated:
        raise BadInput(f"margin names {sorted(tolerated)[0]!r}, which is no metric.")
    return found


def amounts(given: Iterable[str]) -> dict[str, float]:
    """NAME=0.05 each: how large a difference of a metric is looked for. Raises BadInput."""
    return {name: number(f"effect {name}", value) for name, _, value in (one.rpartition("=") for one in given)}


def rules(given: Iterable[str]) -> dict[str, float]:
    """name=value each, for `experiment.rules_from`. Raises BadInput."""
    return {name: number(f"rule {name}", value) for name, _, value in (rule.partition("=") for rule in given)}


def pilot(
    segments: Sequence[str],
    users: Iterable[str] | None,
    ends_at: datetime | None,
    cap: float | None,
    prompt_price: float,
    completion_price: float,
) -> Pilot | None:
    """The pilot that was asked for, if one was; `users` None: nobody is named. A time without a zone is UTC. Raises BadInput."""
    if not segments and users is None and ends_at is None and cap is None:
        return None
    names = [name.strip() for name in users or () if name.strip()]
    if users is not None and not names:  # a pilot that names nobody would admit everybody
        raise BadInput("The list of a pilot's users is empty; name at least one user, one a line.")
    return Pilot(
        segments=tuple(segments),
        users=pilots.named(names),
        ends_at=ends_at.replace(tzinfo=UTC) if ends_at and ends_at.tzinfo is None else ends_at,
        cap=cap,
        prompt_price=prompt_price,
        completion_price=completion_price,
    )


def number(what: str, text: str) -> float:
    """Raises BadInput."""
    try:
        return int(text) if text.strip().isdigit() else float(text)
    except ValueError:
        raise BadInput(f"{what} is {text!r}; give a number.") from None
