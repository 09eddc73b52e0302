"""Abuse of feedback: what looks like it, what is held out because of it, and the buttons that hold and give back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import Json, Person, Quarantine, utc_now
from plaudit.errors import BadInput
from plaudit.loop import abuse as acts
from plaudit.loop import govern
from plaudit.loop.govern import Permission
from plaudit.stats.abuse import SIGNALS, Signal, Suspect
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages.forms import confirmed, read_form
from plaudit.web.pages.shell import Column, Table, answer, go
from plaudit.web.sign_in import signed_in

HOURS = (1, 24, 168)
USER, INTERACTION = "user:", "interaction:"
MEANS: dict[Signal, str] = {
    "burst": "more from one user within a minute than anybody gives who reads",
    "clicks": "one user judges another answer in less than a second, again and again",
    "repeats": "one user changes their mind about one answer, again and again",
    "brigade": "many users about one answer within minutes",
}
COUNTS = (
    Column("signal", "Signal", "brief"),
    Column("n_suspects", "Suspects", "number"),
    Column("n_acts", "Acts", "number"),
    Column("means", "What it is", "words"),
)
SUSPECTS = (
    Column("signal", "Signal", "brief"),
    Column("actor", "User", "brief"),
    Column("interaction_id", "Interaction", "brief"),
    Column("n", "Acts", "number"),
    Column("first_at", "From", "moment"),
    Column("last_at", "To", "moment"),
)
HELD = (
    Column("actor", "User", "brief"),
    Column("interaction_id", "Interaction", "brief"),
    Column("state", "State", "state"),
    Column("n_feedback", "Feedback", "number"),
    Column("reason", "Because", "words"),
    Column("by", "By", "brief"),
    Column("created_at", "Since", "moment"),
    Column("lifted_at", "Until", "moment"),
    Column("id", "Quarantine", "brief"),
)


async def page(request: Request) -> Response:
    """GET /abuse: suspects of the last `?hours=` (1, 24 or 168) and every quarantine."""
    door, me, now = door_of(request), signed_in(request), utc_now()
    given = request.query_params.get("hours", "24")
    if given not in map(str, HOURS):
        raise BadInput(f"hours is {given!r}; choose from: {', '.join(map(str, HOURS))}.")
    since = now - timedelta(hours=int(given))
    found = await door.run(acts.suspects, door.store, me.project_id, since, now)
    held = await door.run(acts.quarantines, door.store, me.project_id, True)
    quiet = f"Nothing in the last {given} hours looks like abuse, besides what is held already."
    tables = [
        Table("signals", "Signals", COUNTS, _counts(found), quiet),
        Table("suspects", "Suspects", SUSPECTS, [vars(one) for one in found], quiet),
        Table("quarantines", "Quarantines", HELD, [_row(one) for one in held], "Nothing was ever held."),
    ]
    return answer(
        request,
        "abuse.html",
        tables,
        hours=HOURS,
        chosen=int(given),
        suspects=_choices(found),
        standing=[one for one in held if one.lifted_at is None],
        on_abuse=door.settings.on_abuse,
    )


async def quarantine(request: Request) -> Response:
    """POST /abuse: hold all feedback of a user, or on an Interaction, where `sure` was ticked."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    reason = confirmed(form)
    await door.run(_quarantine, door.store, me, form, reason, utc_now())
    return go("/abuse#quarantines-title")


async def lift(request: Request) -> Response:
    """POST /abuse/lift: give the feedback of a quarantine back, where `sure` was ticked."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    reason, role = confirmed(form), govern.acting_role(me.roles, Permission.OPERATE)
    named = form.get("quarantine", "")
    await door.run(acts.lift, door.store, me.project_id, named, me.name, utc_now(), role, reason)
    return go("/abuse#quarantines-title")


def _quarantine(store: Store, me: Person, form: dict[str, str], reason: str, now: datetime) -> None:
    """Raises BadInput (nobody or two are named) and what `abuse.quarantine` raises."""
    named = [name for name in (form.get("suspect", ""), *_typed(form)) if name]
    if len(named) != 1:
        raise BadInput("Choose a suspect, or write one user or one Interaction; one at a time.")
    whom: dict[str, Any]
    if named[0].startswith(USER):
        whom = {"actor": named[0].removeprefix(USER)}
    elif named[0].startswith(INTERACTION):
        whom = {"interaction_id": named[0].removeprefix(INTERACTION)}
    else:
        raise BadInput(f"suspect is {named[0]!r}; choose one of the list.")
    role = govern.acting_role(me.roles, Permission.OPERATE)
    acts.quarantine(store, me.project_id, **whom, reason=reason, by=me.name, now=now, role=role)


def _typed(form: dict[str, str]) -> list[str]:
    given = ((USER, form.get("user", "").strip()), (INTERACTION, form.get("interaction", "").strip()))
    return [kind + name for kind, name in given if name]


def _counts(found: Sequence[Suspect]) -> list[Json]:
    """Per signal; empty where there is none of any."""
    if not found:
        return []
    of = {signal: [one for one in found if one.signal == signal] for signal in SIGNALS}
    return [
        {
            "signal": signal,
            "n_suspects": len(these),
            "n_acts": sum(one.n for one in these),
            "means": MEANS[signal],
        }
        for signal, these in of.items()
    ]


def _choices(found: Sequence[Suspect]) -> list[tuple[str, str]]:
    """(value, label) of whoever is suspected, each once."""
    signals: dict[str, list[str]] = {}
    for one in found:
        who = USER + one.actor if one.actor is not None else INTERACTION + str(one.interaction_id)
        signals.setdefault(who, []).append(one.signal)
    return [(who, f"{who.replace(':', ' ', 1)} ({', '.join(these)})") for who, these in signals.items()]


def _row(one: Quarantine) -> Json:
    return {**vars(one), "state": "held" if one.lifted_at is None else "lifted"}
