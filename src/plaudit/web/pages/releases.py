"""Releases: what users meet, what they met, who let it through; and the acts on one of them that the reader's roles allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from plaudit.domain import (
    Approval,
    AuditEntry,
    Decision,
    Evaluation,
    Experiment,
    ExperimentState,
    Json,
    Person,
    Release,
    ReleaseState,
    utc_now,
)
from plaudit.errors import BadInput, NotFound
from plaudit.loop import govern
from plaudit.loop import release as acts
from plaudit.loop.govern import Permission
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages.forms import read_form
from plaudit.web.pages.plots import Span, timeline
from plaudit.web.pages.shell import Column, Table, answer, go
from plaudit.web.sign_in import signed_in

DRAWN = 12  # releases in the timeline, the newest
OVER = (ReleaseState.RETIRED, ReleaseState.ROLLED_BACK)
LISTED = (
    Column("model", "Release", "brief", href="/releases/{id}"),
    Column("state", "State", "state"),
    Column("share", "Share of users", "number"),
    Column("state_at", "Since", "moment"),
    Column("gate", "Gate", "state"),
    Column("approvals", "Approved by"),
    Column("thumbs_up", "Thumbs up", "number"),
    Column("thumbs_low", "from", "number"),
    Column("thumbs_high", "to", "number"),
    Column("n_users", "Users", "number"),
    Column("id", "Id", "brief"),
)
SEGMENT = Column("segment", "For", "brief")
TRANSITIONS = (
    Column("seq", "Entry", "number"),
    Column("at", "When", "moment"),
    Column("actor", "Who", "brief"),
    Column("role", "As", "brief"),
    Column("action", "Did", "brief"),
    Column("before", "From", "state"),
    Column("after", "To", "state"),
    Column("reason", "Because", "words"),
)
APPROVALS = (
    Column("stage", "Stage", "brief"),
    Column("decision", "Decision", "brief"),
    Column("person", "Who", "brief"),
    Column("reason", "Because", "words"),
    Column("created_at", "When", "moment"),
)
EXPERIMENTS = (
    Column("id", "Experiment", "brief", href="/experiments/{id}"),
    Column("arm", "As", "brief"),
    Column("state", "State", "state"),
    Column("verdict", "Last look", "brief"),
    Column("n_users", "Users", "number"),
    Column("created_at", "Began", "moment"),
    Column("ended_at", "Ended", "moment"),
)


@dataclass(frozen=True)
class Ledger:
    """Releases of a project, newest first, and what is said of them elsewhere."""

    releases: list[Release]
    evaluations: list[Evaluation]
    approvals: list[Approval]
    experiments: list[Experiment]

    def evaluation(self, release: Release) -> Evaluation | None:
        """The newest that a gate judged."""
        mine = [one for one in self.evaluations if one.checkpoint_id == release.checkpoint_id and one.gate is not None]
        return mine[-1] if mine else None

    def tested(self, release: Release) -> list[Experiment]:
        """Experiments that it was an arm of, newest first."""
        return [one for one in reversed(self.experiments) if release.id in (one.candidate_id, one.control_id)]

    def share(self, release: Release) -> float:
        """Of those that it is for (all users, or its segment), who meet it now."""
        running = [one for one in self.experiments if one.state == ExperimentState.RUNNING]
        as_candidate = [one.stages[one.stage] for one in running if one.candidate_id == release.id]
        if release.state != ReleaseState.LIVE:
            return sum(as_candidate)
        return 1.0 - sum(one.stages[one.stage] for one in running if one.control_id == release.id)


@dataclass(frozen=True)
class Look:
    """Everything that the page of one Release shows."""

    release: Release
    share: float
    evaluation: Evaluation | None
    transitions: tuple[Json, ...]
    approvals: tuple[Approval, ...]
    experiments: tuple[Json, ...]
    stages: tuple[str, ...]  # that can be decided on now
    moves: tuple[tuple[str, str, tuple[str, ...]], ...]  # (act, button, what stands in its way)


# --- pages -------------------------------------------------------------------------------------------------------------


async def releases(request: Request) -> Response:
    """GET /releases."""
    door, me, now = door_of(request), signed_in(request), utc_now()
    ledger, spans = await door.run(_listed, door.store, me.project_id, now)
    empty = "No release yet. `plaudit up` offers the base model as the first, `plaudit loop run` trains what follows."
    scoped = any(one.segment for one in ledger.releases)
    columns = (*LISTED[:3], SEGMENT, *LISTED[3:]) if scoped else LISTED
    table = Table("releases", "Releases", columns, [_row(ledger, one) for one in ledger.releases], empty)
    return answer(request, "releases.html", [table], picture=_picture(spans), live=_live(ledger))


async def release(request: Request) -> Response:
    """GET /releases/{release_id}."""
    door, me, now = door_of(request), signed_in(request), utc_now()
    look = await door.run(_look, door.store, me, request.path_params["release_id"], now)
    tables = [
        Table("transitions", "What happened", TRANSITIONS, look.transitions, "Nothing is on the audit log about it."),
        Table(
            "approvals",
            "Decisions of people",
            APPROVALS,
            [vars(one) for one in look.approvals],
            "Nobody has decided on it.",
        ),
        Table("experiments", "Experiments with users", EXPERIMENTS, look.experiments, "It was in no experiment."),
    ]
    may = [str(one) for one in Permission if govern.may(me.roles, one)]
    return answer(request, "release.html", tables, look=look, release=look.release, may=may)


async def decide(request: Request) -> Response:
    """POST /releases/{release_id}/decision: a yes or no of the person who is signed in."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    release_id = request.path_params["release_id"]
    said = form.get("decision", "")
    if said not in list(Decision):
        raise BadInput(f"decision is {said!r}; choose from: {', '.join(Decision)}.")
    arguments = form.get("stage", ""), me.name, Decision(said), form.get("reason", ""), utc_now()
    await door.run(govern.approve, door.store, me.project_id, release_id, *arguments)
    return go(f"/releases/{release_id}")


async def move(request: Request) -> Response:
    """POST /releases/{release_id}/move: canary, promote, roll_back or retire, where `sure` was ticked."""
    door, me, form = door_of(request), signed_in(request), await read_form(request)
    release_id, act = request.path_params["release_id"], form.get("act", "")
    if not form.get("sure"):
        raise BadInput("sure is not ticked; tick the box beside the button, so that no slip moves users.")
    await door.run(_move, door.store, me, release_id, act, form.get("reason", "").strip() or "by hand", utc_now())
    return go(f"/releases/{release_id}")


def _move(store: Store, me: Person, release_id: str, act: str, reason: str, now: datetime) -> None:
    """The act by this person, in the role that lets them. Raises BadInput (no such act), and what the act raises."""
    from plaudit.loop import pipeline

    role = govern.acting_role(me.roles, Permission.OPERATE)
    _found(store, me.project_id, release_id)
    match act:
        case "canary":
            acts.to_canary(store, me.project_id, release_id, me.name, now, role)
        case "promote":
            pipeline.guard(store, me.project_id, now)  # a fresh look; it rolls back where a guardrail says so
            acts.promote(store, me.project_id, release_id, me.name, now, role)
        case "roll_back":
            acts.roll_back(store, me.project_id, me.name, reason, now, release_id, role)
        case "retire":
            acts.refuse(store, me.project_id, release_id, me.name, reason, now, role)
        case _:
            raise BadInput(f"act is {act!r}; choose from: canary, promote, roll_back, retire.")


# --- reading -----------------------------------------------------------------------------------------------------------


def _ledger(store: Store, project_id: str) -> Ledger:
    with store.read() as tx:
        return Ledger(
            releases=tx.find(Release, project_id=project_id, descending=True),
            evaluations=tx.find(Evaluation, project_id=project_id),
            approvals=tx.find(Approval, project_id=project_id),
            experiments=tx.find(Experiment, project_id=project_id),
        )


def _listed(store: Store, project_id: str, now: datetime) -> tuple[Ledger, list[Span]]:
    ledger = _ledger(store, project_id)
    shown = ledger.releases[:DRAWN]
    entries = (
        store.find(AuditEntry, project_id=project_id, object_id=[one.id for one in shown], order="seq") if shown else []
    )
    spans = [
        span for one in shown for span in _spans(one, [entry for entry in entries if entry.object_id == one.id], now)
    ]
    return ledger, spans


def _spans(release: Release, entries: Sequence[AuditEntry], now: datetime) -> list[Span]:
    """What it was from when to when; what is over is not drawn until now."""
    changes = [(entry.created_at, str(entry.after["state"])) for entry in entries if "state" in entry.after]
    end = release.state_at if release.state in OVER else now
    found = []
    for place, (at, state) in enumerate(changes):
        until = changes[place + 1][0] if place + 1 < len(changes) else end
        if state not in OVER or place + 1 < len(changes):
            found.append(Span(release.model, state, at, until))
    return found


def _picture(spans: Sequence[Span]) -> Markup | str:
    if not spans:
        return ""
    names = len({one.name for one in spans})
    return timeline(spans, f"The states of {names} releases over time; the table below has them as words.")


def _live(ledger: Ledger) -> list[Release]:
    return [one for one in ledger.releases if one.state == ReleaseState.LIVE]


def _row(ledger: Ledger, release: Release) -> Json:
    evaluation = ledger.evaluation(release)
    yes = [one for one in ledger.approvals if one.release_id == release.id and one.decision is Decision.APPROVE]
    thumbs, n_users = _users(ledger, release)
    return {
        "id": release.id,
        "model": release.model,
        "state": release.state,
        "share": round(ledger.share(release), 6),
        "segment": release.segment or "everybody",
        "state_at": release.state_at,
        "gate": evaluation.gate if evaluation else None,
        "approvals": ", ".join(f"{one.person} ({one.stage})" for one in yes),
        "thumbs_up": thumbs.get("mean"),
        "thumbs_low": thumbs.get("low"),
        "thumbs_high": thumbs.get("high"),
        "n_users": n_users,
    }


def _users(ledger: Ledger, release: Release) -> tuple[Json, int | None]:
    """Thumbs up per thumb with its interval, and the users behind it, from the newest experiment that was looked at."""
    for one in ledger.tested(release):
        arm = "candidate" if one.candidate_id == release.id else "control"
        if arm in one.figures.get("thumbs", {}):
            return one.figures["thumbs"][arm]["up_per_thumb"] or {}, one.figures["n_users"][arm]
    return {}, None


def _found(store: Store, project_id: str, release_id: str) -> Release:
    found = store.first(Release, id=release_id, project_id=project_id)
    if found is None:
        raise NotFound(f"There is no release {release_id!r} in this project.")
    return found


def _look(store: Store, me: Person, release_id: str, now: datetime) -> Look:
    release = _found(store, me.project_id, release_id)
    ledger = _ledger(store, me.project_id)
    entries = store.find(AuditEntry, project_id=me.project_id, object_id=release_id, order="seq")
    return Look(
        release=release,
        share=ledger.share(release),
        evaluation=ledger.evaluation(release),
        transitions=tuple(_transition(one) for one in entries),
        approvals=tuple(one for one in ledger.approvals if one.release_id == release_id),
        experiments=tuple(_experiment(one, release) for one in ledger.tested(release)),
        stages=tuple(name for name, states in govern.STAGES.items() if release.state in states),
        moves=tuple(_moves(store, release, now)) if govern.may(me.roles, Permission.OPERATE) else (),
    )


def _transition(entry: AuditEntry) -> Json:
    said: Any = entry.after.get("decision")
    return {
        "seq": entry.seq,
        "at": entry.created_at,
        "actor": entry.actor,
        "role": entry.role,
        "action": f"{entry.action} ({entry.after.get('stage')})" if said else entry.action,
        "before": entry.before.get("state"),
        "after": entry.after.get("state"),
        "reason": entry.after.get("reason"),
    }


def _experiment(one: Experiment, release: Release) -> Json:
    users = one.figures.get("n_users", {})
    return {
        "id": one.id,
        "arm": "candidate" if one.candidate_id == release.id else "control",
        "state": one.state,
        "verdict": one.figures.get("verdict"),
        "n_users": sum(users.values()) if users else None,
        "created_at": one.created_at,
        "ended_at": one.ended_at,
    }


def _moves(store: Store, release: Release, now: datetime) -> list[tuple[str, str, tuple[str, ...]]]:
    """The acts that the release's state allows, each with what stands in its way now."""
    against = partial(_against, store, release, now)
    match release.state:
        case ReleaseState.CANDIDATE | ReleaseState.SHADOW:
            canary = ("canary", "Make it the canary", against(ReleaseState.CANARY))
            return [canary, ("retire", "Put it away", ())]
        case ReleaseState.CANARY:
            return [("promote", "Make it live", against(ReleaseState.LIVE)), ("roll_back", "Roll back", ())]
        case ReleaseState.LIVE:
            return [("roll_back", "Roll back", ())]
        case _:
            return []


def _against(store: Store, release: Release, now: datetime, stage: ReleaseState) -> tuple[str, ...]:
    with store.read() as tx:
        return tuple(acts.reasons_against(tx, release, stage, now))
